"""Locks between processes of one machine, on every file system; and whether what lies there may be another machine's.

The kernel lets go of a lock when its holder ends, however that is: what nobody holds is left behind. Lustre without
`-o flock` and other file systems of clusters know no locks (ENOSYS, ENOLCK, EOPNOTSUPP), NFS none of directories
(EBADF). There an empty file in this machine's memory stands in, which keeps processes of one user and machine apart.

With `-o localflock`, as with that file, a lock says nothing of other machines. So whatever is removed because nobody
holds it carries the machine that made it, :func:`machine`; of another one only what is old goes (:func:`may_live`).

Standard library only: set-up uses it before any dependency is installed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from sifproof.errors import SifproofError
from sifproof.host_tools import make_private

_UNKNOWN_THERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EINVAL}
_OLD_S = 24 * 3600.0
"""Another machine's work that nothing changed in for so long has no owner any more: each step of one ends sooner."""


class Lock:
    """A lock that is held, until :meth:`close` or the end of every process that has its :attr:`descriptor`."""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = descriptors

    @property
    def descriptor(self) -> int:
        """Whoever inherits it holds the lock too."""
        return self._descriptors[-1]

    def close(self) -> None:
        """Let go of it, as far as nobody inherited it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


def take(path: Path, *, wait: bool = True, shared: bool = False, make: bool = True) -> Lock | None:
    """The lock of ``path``, a directory or a file; None where it is not free and is not to be waited for.

    A file is made where it is missing, unless ``make`` says no. No link is followed. Raises OSError where ``path``
    can't be opened, and :class:`SifproofError` where no lock can be had at all.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | (os.O_CREAT if make else 0)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    held = [descriptor]
    try:
        try:
            fcntl.flock(descriptor, how)
        except OSError as error:
            if error.errno not in _UNKNOWN_THERE:
                raise
            held.append(_stand_in(descriptor))
            fcntl.flock(held[-1], how)
    except BaseException as error:
        Lock(*held).close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return Lock(*held)


def waited_for(path: Path) -> Lock:
    """As :func:`take`, which waits and so has it."""
    lock = take(path)
    assert lock is not None  # noqa: S101 (it waited)
    return lock


def _stand_in(descriptor: int) -> int:
    """A file of this user in this machine's memory, or among its temporary files, that stands for another."""
    found = os.fstat(descriptor)
    for base in (Path("/dev/shm"), Path(tempfile.gettempdir())):  # noqa: S108 (a private folder is made)
        folder = base / f"sifproof-locks-{os.geteuid()}"
        if make_private(folder):
            with suppress(OSError):
                name = folder / f"{found.st_dev:x}-{found.st_ino:x}"
                return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    raise SifproofError(
        "No lock can be had",
        why="the file system knows none, and no file that stands in can be made in /dev/shm or TMPDIR",
        todo="set TMPDIR to a folder of your own on this machine",
    )


@cache
def machine() -> str:
    """This machine since its last start, as part of a name: ``node7~1f0c2d3e``. It has no hyphen and no dot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return f"{re.sub(r'[^A-Za-z0-9]', '_', socket.gethostname())}~{boot[:8]}"


def may_live(owner: str, path: Path) -> bool:
    """Whether ``path``, of the :func:`machine` ``owner``, may have an owner that lives though its lock is free here.

    That can't be where it was made by this machine. What was made before this machine was started, and not changed
    since, is no more in use; of others, and what nobody knows the maker of, counts when something in it changed last.
    """
    if owner == machine():
        return False
    changed = _changed(path)
    if owner.partition("~")[0] == machine().partition("~")[0] and changed < _started():
        return False
    return time.time() - changed < _OLD_S


def _started() -> float:
    lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime ")))


def _changed(path: Path) -> float:
    """When anything in ``path`` changed last; 0 where there is nothing."""
    newest = 0.0
    with suppress(OSError):
        newest = path.lstat().st_mtime
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(OSError):
                newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)  # noqa: PTH118 (many of them)
    return newest
