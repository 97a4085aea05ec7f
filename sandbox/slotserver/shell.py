"""The shell that lives on between the calls of bash_stateful."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from typing import TYPE_CHECKING

from .process import Pipe

if TYPE_CHECKING:
    from .slots import Slot


class Shell:
    """A bash that reads its commands from a pipe and reports each one's exit code on another.

    The exit codes have a pipe of their own, so nothing a command prints can be taken for one. What a command printed
    before it ended lies in the pipes of its output by the time its exit code comes.
    """

    def __init__(self, slot: Slot, *, network: bool) -> None:
        """Start it; raises ToolError."""
        self.network = network
        self.exit_code: int | None = None
        self._reported = asyncio.Event()
        self._codes = Pipe(4096, self._reported.set)
        self._codes_fd = self._codes.writing_end
        commands, self._commands = os.pipe()
        os.set_blocking(self._commands, False)
        try:
            self.process = slot.start(["bash"], network=network, stdin=commands, pass_fds=(self._codes_fd,))
        except BaseException:
            self._codes.close()
            os.close(self._commands)
            raise
        finally:
            os.close(commands)
        self._codes.listen()

    @property
    def running(self) -> bool:
        """Whether it takes another command."""
        return self.process.running

    async def run(self, command: str) -> int | None:
        """Run a command; returns its exit code, or None where the shell ended instead."""
        self._reported.clear()
        ended = asyncio.ensure_future(self.process.wait())
        # The command sees neither pipe: it reads from /dev/null, as commands of bash do.
        line = f"eval {shlex.quote(command)} </dev/null {self._codes_fd}>&-\nbuiltin echo $? >&{self._codes_fd}\n"
        reported = asyncio.ensure_future(self._write_and_wait(line.encode()))
        try:
            await asyncio.wait({reported, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reported.cancel()
            ended.cancel()
        if not self._reported.is_set():
            return None
        return int(self._codes.take()[0])

    async def end(self) -> None:
        """End it and everything it started."""
        async with self.process:
            pass
        self.exit_code = await self.process.wait()
        self._codes.close()
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1

    async def _write_and_wait(self, data: bytes) -> None:
        writable = asyncio.Event()
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        loop.add_writer(self._commands, writable.set)
        try:
            while view:
                await writable.wait()
                writable.clear()
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(self._commands, view) :]
        except BrokenPipeError:
            return  # it ended; its exit code says how
        finally:
            loop.remove_writer(self._commands)
        await self._reported.wait()
