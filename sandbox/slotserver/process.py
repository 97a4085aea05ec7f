"""One contained command: its output, its end, and the end of everything it started.

Everything happens in the event loop, without a thread per process: pipes are read as they fill, and one SIGCHLD
handler collects every child. The server makes itself a "child subreaper" (prctl(2)), so that nothing a command leaves
behind can get away from it, and no zombie stays where the server is the container's first process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from .supervisor import PR_SET_CHILD_SUBREAPER, descendants, prctl, signal_all

_CHUNK_BYTES = 64 * 1024
# Put before what is started: the kernel ends it first when memory runs out, before this server and whatever serves the
# image's files, however large these are. It is the child that marks itself: the server must not bear the mark for a
# moment. Not bash, which would run what BASH_ENV names, outside of any containment.
_FIRST_TO_GO = ("sh", "-c", '{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null; exec "$@"', "sh")
_CHILD_PID = re.compile(rb'"child-pid": *([0-9]{1,9}) *[,}]')
_EXIT_CODE = re.compile(rb'"exit-code": *[0-9]+ *[,}]')
_KILL_AFTER_S = 2.0  # a supervisor that did not act on SIGTERM by then is stuck or was stopped
_GONE_WITHIN_S = 5.0  # SIGKILL takes effect at once, but for a process stuck in the kernel

T = TypeVar("T")


async def uninterrupted(work: Awaitable[T]) -> T:
    """Wait for ``work`` to its end even when cancelled meanwhile, and only then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


class Reaper:
    """Collects every child of this process, those it started and those it inherited from a command."""

    def __init__(self) -> None:
        self._started: set[int] = set()
        self._exits: dict[int, asyncio.Future[int]] = {}

    def install(self) -> None:
        """Become the collector of the running event loop's process."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._collect)

    def start(self, popen: Callable[[], subprocess.Popen[bytes]]) -> tuple[int, asyncio.Future[int]]:
        """Start a process; returns its id and the future of its exit code. Raises OSError."""
        process = popen()
        process.returncode = 0  # it is collected here, so Popen must not wait for it when it is thrown away
        self._started.add(process.pid)
        return process.pid, self._exit_of(process.pid)

    async def gone(self, pids: set[int]) -> None:
        """Wait until none of these is a process that was inherited; they are dead or dying."""
        exits = [self._exit_of(pid) for pid in pids if self._inherited(pid)]
        if exits:
            await asyncio.wait(exits, timeout=_GONE_WITHIN_S)

    async def end_strays(self) -> None:
        """End what was inherited from a command whose own container did not end it."""
        while strays := descendants({os.getpid()}) - self._started - descendants(self._started):
            signal_all(strays, signal.SIGKILL)
            # Those below them are inherited when these are gone, or end with their name space.
            await self.gone(strays)
            if any(self._inherited(pid) for pid in strays):
                return

    def _inherited(self, pid: int) -> bool:
        """Whether it is a child of this process that was not started here, and not collected yet."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return pid not in self._started

    def _exit_of(self, pid: int) -> asyncio.Future[int]:
        if pid not in self._exits:
            self._exits[pid] = asyncio.get_running_loop().create_future()
        return self._exits[pid]

    def _collect(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._started.discard(pid)
                future = self._exits.pop(pid, None)
                if future and not future.done():
                    future.set_result(os.waitstatus_to_exitcode(status))


class Pipe:
    """Collects what comes out of a pipe: the first ``limit`` bytes are kept, the rest is read and dropped."""

    def __init__(self, limit: int, on_data: Callable[[], None] = lambda: None) -> None:
        self._reading_end, self.writing_end = os.pipe()
        os.set_blocking(self._reading_end, False)
        self._limit = limit
        self._kept = bytearray()
        self._dropped = False
        self._on_data = on_data
        self._loop = asyncio.get_running_loop()

    def listen(self) -> None:
        """Close our copy of the writing end and read from now on; to be called when the writer has started."""
        os.close(self.writing_end)
        self.writing_end = -1
        self._loop.add_reader(self._reading_end, self._read)

    def take(self) -> tuple[bytes, bool]:
        """What came up to now, what still lies in the pipe included, and whether bytes were dropped; forgets both."""
        self._read_rest()
        taken = bytes(self._kept), self._dropped
        self._kept.clear()
        self._dropped = False
        return taken

    def close(self) -> None:
        """Close both ends; what came before, or still lies in the pipe, can be taken afterwards."""
        if self._reading_end >= 0:
            self._read_rest()
            self._loop.remove_reader(self._reading_end)
            os.close(self._reading_end)
            self._reading_end = -1
        if self.writing_end >= 0:
            os.close(self.writing_end)
            self.writing_end = -1

    def _read_rest(self) -> None:
        for _ in range(64):  # a pipe holds 16 chunks at most; more of them means that something writes on
            if not self._read():
                return

    def _read(self) -> bool:
        if self._reading_end < 0:
            return False
        try:
            data = os.read(self._reading_end, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._reading_end)
            return False
        room = self._limit - len(self._kept)
        self._kept += data[:room]
        self._dropped |= len(data) > room
        self._on_data()
        return True


class Process:
    """A command in its containment. Leaving the ``async with`` block ends it and everything it started."""

    def __init__(
        self,
        reaper: Reaper,
        argv: Callable[[int], list[str]],
        *,
        cwd: str,
        env: Mapping[str, str],
        output_limit: int,
        stdin: int = subprocess.DEVNULL,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """Start it. ``argv`` gets the file descriptor to which bwrap or the supervisor reports; OSError if it fails."""
        self._reaper = reaper
        self.stdout, self.stderr = Pipe(output_limit), Pipe(output_limit)
        self._report = Pipe(64 * 1024)
        pipes = (self.stdout, self.stderr, self._report)
        try:
            self._pid, self._outer_exit = reaper.start(
                lambda: subprocess.Popen(
                    [*_FIRST_TO_GO, *argv(self._report.writing_end)],
                    stdin=stdin,
                    stdout=self.stdout.writing_end,
                    stderr=self.stderr.writing_end,
                    cwd=cwd,
                    env=env,
                    pass_fds=(self._report.writing_end, *pass_fds),
                    start_new_session=True,
                )
            )
        except BaseException:
            for pipe in pipes:
                pipe.close()
            raise
        for pipe in pipes:
            pipe.listen()
        self._ended: asyncio.Task[int | None] | None = None

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.terminate()
        await uninterrupted(self._end())

    @property
    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return not self._outer_exit.done()

    def terminate(self) -> None:
        """Tell the command to end, with all that it started. ``wait`` says when it has."""
        if self.running:
            # bwrap dies of SIGTERM and takes its name space with it; the supervisor ends its tree.
            signal_all({self._pid}, signal.SIGTERM)
            signal_all({self._pid}, signal.SIGCONT)

    async def wait(self) -> int | None:
        """The command's exit code (128 + N where signal N ended it), when nothing it started is left.

        None where there is none: it was terminated, or the containment failed (then ``stderr`` tells why).
        """
        await asyncio.wait({self._outer_exit})
        return await uninterrupted(self._end())

    async def _end(self) -> int | None:
        if self._ended is None:
            self._ended = asyncio.ensure_future(self._collect())
        return await asyncio.shield(self._ended)

    async def _collect(self) -> int | None:
        await asyncio.wait({self._outer_exit}, timeout=_KILL_AFTER_S)
        if self.running:
            signal_all({self._pid}, signal.SIGKILL)
            await asyncio.wait({self._outer_exit}, timeout=_GONE_WITHIN_S)
        # Its writer may have been ended in the middle of it, and without name spaces a command can write to it, too.
        report = self._report.take()[0]
        code = -1 if self.running else self._outer_exit.result()
        ended_by_itself = code >= 0 and bool(_EXIT_CODE.search(report))
        if not ended_by_itself:
            # Ended early, perhaps so early that what it had just started knew of no parent to end with.
            await self._reaper.end_strays()
        elif first := _CHILD_PID.search(report):
            # bwrap ends a moment before the first process of its name space does, which ends last of all in it.
            await self._reaper.gone({int(first[1])})
        for pipe in (self.stdout, self.stderr, self._report):
            pipe.close()
        return code if ended_by_itself else None
