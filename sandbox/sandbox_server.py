#!/usr/bin/env python3
"""Starts the sandbox server: ``python3 sandbox_server.py --port 8080 --host 0.0.0.0 --slots 10 --data-dir /data``.

Ends on SIGTERM and SIGINT, with exit code 0, when every command has been ended. Needs Python 3.11 and aiohttp 3.8 or
later, bash and find, and, for real sandboxes, bubblewrap 0.8 or later.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from slotserver.access import Access, parse_sha256
from slotserver.api import Api
from slotserver.containment import WeakerError
from slotserver.slots import Slots

MAX_SLOTS = 1000
_GOODBYE_S = 0.05  # for the last answers to reach their clients

_log = logging.getLogger("sandbox_server")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line. ``--data-dir`` always wins; Nomad's variable counts only where it is absent."""
    alloc_dir = os.environ.get("NOMAD_ALLOC_DIR")
    parser = argparse.ArgumentParser(description="A server of agent sandboxes over HTTP.", allow_abbrev=False)
    parser.add_argument("--port", type=_whole_number(0, 65535), default=8080, help="TCP port; 0 takes a free one")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (%(default)s)")  # noqa: S104
    parser.add_argument("--slots", type=_whole_number(1, MAX_SLOTS), default=10, help="number of slots (%(default)s)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(alloc_dir, "data") if alloc_dir else Path("/data"),
        help="directory of the slots' workspaces ($NOMAD_ALLOC_DIR/data, else /data)",
    )
    parser.add_argument(
        "--one-user",
        action="store_true",
        help="without bubblewrap, run the commands of all slots as the server's own user even where it is root",
    )
    parser.add_argument(
        "--token-sha256",
        action="append",
        type=_sha256,
        default=[],
        metavar="HEX",
        help="SHA-256 of a token that clients send as `Authorization: Bearer TOKEN`; may be given several times. "
        "Without it whoever reaches the port can run commands",
    )
    parser.add_argument(
        "--allow-weaker",
        action="store_true",
        help="start even where commands can't be locked in as well as they were in this data directory before",
    )
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal ends it; raises OSError where the port or the directories can't be had, or WeakerError."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    data_dir = options.data_dir.absolute()
    slots, why_not = await Slots.make(
        data_dir, options.slots, user_per_slot=not options.one_user, weaker=options.allow_weaker
    )
    _log.info("containment: %s%s", slots.containment.name, f" ({why_not})" if why_not else "")
    api = Api(slots, data_dir, Access(options.token_sha256))
    runner = web.AppRunner(api.application(), handle_signals=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port).start()
    for address in runner.addresses:
        _log.info("listening on http://%s", _host_and_port(address))
    await stop.wait()
    await slots.close()
    # The end of the process closes the port and what is open on it; aiohttp's own ways would wait for clients.
    await asyncio.sleep(_GOODBYE_S)


def _host_and_port(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


def _sha256(text: str) -> str:
    try:
        return parse_sha256(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    """Run the server until it is told to end."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    options = parse_arguments(sys.argv[1:])
    try:
        asyncio.run(serve(options))
    except (OSError, WeakerError) as error:
        sys.exit(f"sandbox_server: {error}")
    sys.stderr.flush()
    # A thread that still reads a large file must not hold up the end; its answer has no client any more.
    os._exit(0)


if __name__ == "__main__":
    main()
