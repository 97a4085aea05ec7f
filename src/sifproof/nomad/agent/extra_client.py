"""A second Nomad client beside a run's local agent, for the checks that kill one.

It has a datacenter of its own, in which nothing is placed that is not meant for it, and its directory lies in that of
the agent. The kernel ends it with the process that started it; what is left of its tasks then, the agent's supervisor
clears away with the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.image.process import tail
from sifproof.nomad.agent import local
from sifproof.nomad.client import Client
from sifproof.nomad.node import leftovers
from sifproof.nomad.ports import MARK, Block, claim_block

FIRST_HEARTBEAT_S = 10.0
"""Nomad's servers take a client for ready after its first heartbeat, which it sends within these, at random."""

_READY_S = 60.0
_ENDS_S = 10.0
_PR_SET_PDEATHSIG = 1


class SecondClient:
    """A client agent with a state of its own; made by :func:`started`."""

    def __init__(self, client: Client, home: Path, block: Block) -> None:
        self.datacenter = f"{local.SECOND}{secrets.token_hex(4)}"
        self.home = home / self.datacenter
        self.node_id = ""
        self._client = client
        agent = json.loads((home / "agent.json").read_text(encoding="utf-8"))
        http, rpc, serf = block.agent
        self.home.mkdir(mode=0o711)
        self._configuration = self.home / "agent.json"
        settings = {
            "name": f"{agent['name']}-{self.datacenter}",
            "datacenter": self.datacenter,
            "data_dir": str(self.home),
            "bind_addr": "127.0.0.1",
            # Only `-dev` advertises loopback unasked.
            "advertise": dict.fromkeys(("http", "rpc", "serf"), "127.0.0.1"),
            "ports": {"http": http, "rpc": rpc, "serf": serf},
            "client": {
                "enabled": True,
                "servers": [f"127.0.0.1:{agent['ports']['rpc']}"],
                "network_interface": "lo",
                "min_dynamic_port": block.dynamic[0],
                "max_dynamic_port": block.dynamic[1],
            },
            "acl": {"enabled": True},
            # The agent's own certificate, which its port for other agents asks for.
            "tls": agent["tls"],
        }
        self._configuration.touch(mode=0o600)
        self._configuration.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        self._name = settings["name"]
        self._temporary = json.loads((home / "state.json").read_text(encoding="utf-8"))["tmpdir"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; :meth:`wait_ready` tells when it takes tasks."""
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    host_tools.require("nomad").path,
                    "agent",
                    f"-config={local.CONFIGURATION}",
                    f"-config={self._configuration}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env={**local.handed_on(), "TMPDIR": self._temporary, MARK: f"{self.home}/"},
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one thread
            )
        (self.home / "pid").write_text(str(self._process.pid), encoding="ascii")

    def wait_ready(self) -> None:
        """Wait until Nomad says that it is ready; raises :class:`SifproofError` where it ends instead."""
        end = time.monotonic() + _READY_S
        index = 0
        while not self.node_id:
            nodes, index = self._client.wait_for_change("nodes", index=index, wait_s=1)
            self.check_runs()
            self.node_id = next((n["ID"] for n in nodes if n["Name"] == self._name and n["Status"] == "ready"), "")
            if time.monotonic() > end:
                raise SifproofError(f"A second Nomad client was not ready within {_READY_S:g} s", why=self._words())

    def check_runs(self) -> None:
        """Raise :class:`SifproofError` where it has ended."""
        if self._process is None or self._process.poll() is not None:
            raise SifproofError("A second Nomad client ended by itself", why=self._words())

    def kill(self) -> None:
        """Kill it (SIGKILL), as it is; its tasks are left to themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """End it, when its tasks have ended, and clear away what it had."""
        try:
            # Without Nomad's own helpers: those that it found again it gives two seconds each to end by themselves.
            leftovers.wait_none(lambda: [p for p in local.processes(self.home) if not p.is_nomad], _ENDS_S)
        finally:
            self.kill()
            local.end_second_client(self.home)
            shutil.rmtree(self.home, ignore_errors=True)
            if self.node_id:
                with contextlib.suppress(SifproofError):
                    self._client.forget_node(self.node_id)

    def _words(self) -> str:
        with (self.home / "log").open("rb") as log:
            text = tail(log, 65536).splitlines()
        return " | ".join(line.strip() for line in text[-4:])


@contextmanager
def started(client: Client, directory: Path) -> Iterator[SecondClient]:
    """A second client of the local agent in ``directory``, started and not yet ready; its end.

    ``client`` is one of that agent. What is to run on it is ended before the block is left.
    """
    block = claim_block()
    try:
        second = SecondClient(client, directory, block)
        try:
            second.start()
            yield second
        finally:
            second.end()
    finally:
        block.lock.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it has died already
        os._exit(1)
