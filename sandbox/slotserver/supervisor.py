"""Runs one command and takes everything it started with it when it ends.

    supervisor.py STATUS_FD USER:GROUP COMMAND [ARGUMENT …]

This is what stands in for bubblewrap where a machine allows no namespaces. As a "child subreaper" (prctl(2)) it
becomes the parent of every process that the command leaves behind, a daemon in its own session too, so that none
can get away. SIGTERM ends the command early. USER:GROUP is who the command runs as, in numbers; -1:-1 keeps the
caller's.

Writes to STATUS_FD what bwrap(1) writes to its ``--json-status-fd``: ``{"child-pid": N}``, later ``{"exit-code": N}``.
Standard library only, and little of it: its start is part of each call's time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings  # noqa: F401 (os.execvp imports it, as a user who may be unable to read Python's own files)

TYPE_CHECKING = False  # importing it from typing would be a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handler = Callable[[int, FrameType | None], object] | int | None

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# The group is the other slots' users. Others are none of them: the user whose Nomad client shows the files, say.
SLOT_UMASK = 0o072


def prctl(option: int, value: int) -> None:
    """prctl(2); raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def descendants(roots: set[int]) -> set[int]:
    """Ids of the processes below ``roots`` in the tree, zombies left out, from /proc/PID/stat."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (pathlib takes its time to import)
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                    state, parent = stat.read().rpartition(b")")[2].split()[:2]
            except OSError:  # it ended meanwhile
                continue
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(name))
    found: set[int] = set()
    frontier = list(roots)
    while frontier:
        for child in children.get(frontier.pop(), ()):
            if child not in found:
                found.add(child)
                frontier.append(child)
    return found


def signal_all(pids: set[int], number: int) -> None:
    """Send a signal to each; one that ended meanwhile, or that belongs to another user, is passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def end_descendants() -> None:
    """Kill and collect every process below this one."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        # Stopped first: what is stopped can't fork while the list is walked.
        below = descendants({os.getpid()})
        signal_all(below, signal.SIGSTOP)
        signal_all(below | descendants({os.getpid()}), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def start(user: int, group: int, command: list[str], on_terminate: Handler) -> int:
    """Start the command as the user; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, on_terminate)
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        if user >= 0:
            os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
            os.umask(SLOT_UMASK)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
        os.execvp(command[0], command)  # noqa: S606 (no shell is meant)
    except BaseException as error:
        os.write(2, f"supervisor: {command[0]}: {error}\n".encode())
    os._exit(127)


class Terminated(BaseException):
    """SIGTERM came."""


def main(status_fd: int, user: int, group: int, command: list[str]) -> None:
    """Run ``command`` and exit as it did, or with 128 + the number of the signal that ended it."""

    def on_sigterm(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    default = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, on_sigterm)
        os.set_inheritable(status_fd, False)
        pid = start(user, group, command, default)
        os.write(status_fd, b'{"child-pid": %d}\n' % pid)
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                break
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except Terminated:
        end_descendants()
        os._exit(128 + signal.SIGTERM)
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    code = code if code >= 0 else 128 - code
    os.write(status_fd, b'{"exit-code": %d}\n' % code)
    os._exit(code)


if __name__ == "__main__":
    by_user, by_group = sys.argv[2].split(":")
    main(int(sys.argv[1]), int(by_user), int(by_group), sys.argv[3:])
