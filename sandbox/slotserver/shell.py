"""The shell that lives on between the calls of bash_stateful."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .process import Process
    from .slots import Slot

_LOOKED_AGAIN_S = 0.2  # a shell that reads on without a report gives no event
_MOST_REPORTED_BYTES = 64 * 1024

# Copies of the descriptors for output, far from those that commands take for themselves. `set -v` shows nobody more.
_BEGIN = "exec 250>&1 251>&2 2>/dev/null\n"

# A command and its report share one shell with whatever commands have made of it, so these lines name nothing of the
# session's but `eval`, and say nothing where it could be seen:
# * a command has standard input, output and error of its own, and can close or redirect them for itself alone;
# * what the shell says of the lines themselves (`set -x`, a trap DEBUG or ERR) goes nowhere;
# * the exit code is told in an error message about the syntax of `[[`, for no function, alias or `enable -n` can stand
#   in the way of that. It needs `eval` and the copies of the descriptors as a command does, so a session that has lost
#   them is noticed at once;
# * after a command that ends within a quote bash would end at the next `{`, were there no empty line before it;
# * the empty line at the end is read when the report is done, whatever has become of it.
_CALL = """\
{{ \\eval {command} </dev/null >&250 2>&251 250>&- 251>&-; }} >/dev/null 2>&1

! {{ \\eval "[[ 0 -eq '$? {token}' ]]"; }} >/dev/null 2>&0 9<&250 9<&251

"""


class ShellLostError(Exception):
    """The shell goes on, but does not tell any more how a command ended."""


class Shell:
    """A bash that takes commands from a socket, and answers with their exit codes on the same.

    No program that a command starts can get at it: it is closed while a command runs, but for a copy that only the
    shell itself could use, and a socket can't be opened through /proc. An exit code comes with a number that the shell
    reads when the command has ended. What a command printed before it ended lies in the pipes of its output by then.
    """

    def __init__(self, slot: Slot, *, network: bool) -> None:
        """Start it; raises ToolError."""
        self.network = network
        self.exit_code: int | None = None
        self._heard = asyncio.Event()
        self._reported = bytearray()
        # The shell's end is kept as well: it tells what the shell has not read yet.
        self._ours, self._its = socket.socketpair()
        self._ours.setblocking(False)
        try:
            self.process: Process = slot.start(["bash", "--norc"], network=network, stdin=self._its.fileno())
        except BaseException:
            self._ours.close()
            self._its.close()
            raise
        self._begin = _BEGIN
        asyncio.get_running_loop().add_reader(self._ours, self._hear)

    @property
    def running(self) -> bool:
        """Whether it takes another command."""
        return self.process.running

    async def run(self, command: str) -> int | None:
        """Run a command; returns its exit code, or None where the shell ended instead. Raises ShellLostError."""
        token = str(10**14 + secrets.randbelow(9 * 10**14))
        text = self._begin + _CALL.format(command=_quoted(command), token=token)
        self._begin = ""
        self._reported.clear()
        ended = asyncio.ensure_future(self.process.wait())
        reported = asyncio.ensure_future(
            self._report(text.encode(), re.compile(rb"\b([0-9]{1,3}) %b\b" % token.encode()))
        )
        try:
            await asyncio.wait({reported, ended}, return_when=asyncio.FIRST_COMPLETED)
            return reported.result() if reported.done() else None
        finally:
            reported.cancel()
            ended.cancel()

    async def end(self) -> None:
        """End it and everything it started."""
        async with self.process:
            pass
        self.exit_code = await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        self._its.close()

    async def _report(self, text: bytes, wanted: re.Pattern[bytes]) -> int:
        """Have the shell run ``text``, and wait for its report."""
        await asyncio.get_running_loop().sock_sendall(self._ours, text)
        while True:
            has_read_on = self._has_read_all()
            self._hear()
            if found := wanted.search(self._reported):
                return int(found[1])
            if has_read_on:
                raise ShellLostError
            self._heard.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), _LOOKED_AGAIN_S)

    def _has_read_all(self) -> bool:
        try:
            self._its.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return False

    def _hear(self) -> None:
        """Take what was said; more than a socket holds would be somebody who does not stop, and others wait."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(16):
                self._reported = (self._reported + self._ours.recv(_MOST_REPORTED_BYTES))[-_MOST_REPORTED_BYTES:]
                self._heard.set()


def _quoted(command: str) -> str:
    """As one word for the shell, and never as an assignment, which `set -k` would take for one."""
    return "'" + command.replace("'", "'\\''") + "'"
