"""Files of one slot, never reached through a path that leaves it.

Commands of the slot may make any link at any moment, so a path that was looked at and then opened by name could lead
elsewhere by then. Here a path is walked one component at a time, each opened relative to the one before and never
through a link; links are read and walked the same way. What openat2(2) calls RESOLVE_BENEATH, where links that stay
inside are followed, in a way that every kernel and container profile has.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

_MAX_LINKS = 40  # as the kernel has it
_MAX_DEPTH = 64  # of a walk, because each level holds a descriptor
_PASS_THROUGH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO without a writer must not hold us up, nor a terminal become ours.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class OutsideError(Exception):
    """The path leads out of the workspace."""


class WrongKindError(Exception):
    """What the path names is there, but is no regular file or no directory."""


class TooDeepError(Exception):
    """The directories lie deeper in each other than a walk goes."""


@dataclass(frozen=True)
class Location:
    """An entry of the workspace: an open directory, a name in it, and the path without links from the workspace."""

    directory: int
    name: str
    path: str

    def stat(self) -> os.stat_result:
        """The entry itself, a link not followed; raises FileNotFoundError."""
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[int, os.stat_result]]:
        """The entry, a regular file, open for reading: descriptor and status. WrongKindError for anything else."""
        if not stat.S_ISREG(self.stat().st_mode):
            raise WrongKindError
        descriptor = os.open(self.name, _READ, dir_fd=self.directory)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):  # exchanged between the two calls
                raise WrongKindError
            yield descriptor, status
        finally:
            os.close(descriptor)

    def walk(self, *, recursive: bool, most: int, depth: int = _MAX_DEPTH) -> Iterator[tuple[Location, os.stat_result]]:
        """What is in this directory, a directory before what is in it; links are not followed.

        Sorted by name, as far as there are no more than ``most`` entries; of a larger directory any ``most``.
        WrongKindError where this is no directory, TooDeepError beyond ``depth`` levels.
        """
        if not stat.S_ISDIR(self.stat().st_mode):
            raise WrongKindError
        if depth == 0:
            raise TooDeepError
        directory = os.open(self.name, _LIST, dir_fd=self.directory)
        try:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in itertools.islice(entries, most))
            for name in names:
                entry = Location(directory, name, name if self.path == "." else f"{self.path}/{name}")
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    status = entry.stat()
                    yield entry, status
                    if recursive and stat.S_ISDIR(status.st_mode):
                        yield from entry.walk(recursive=True, most=most, depth=depth - 1)
        finally:
            os.close(directory)


class Workspace:
    """The files of one slot. Every method takes a path as a client gives it, relative or absolute.

    All of them raise OutsideError, and OSError where the system says no.
    """

    def __init__(
        self,
        root: Path,
        opened: Callable[[], AbstractContextManager[int]],
        *,
        also_known_as: str,
        owner: tuple[int, int],
    ) -> None:
        """``opened`` gives a descriptor of ``root``; ``also_known_as`` is what commands call it; ``owner``, user and
        group, gets what is made here.
        """
        self.root = root
        self._opened = opened
        self._roots = (root.resolve().parts, Path(also_known_as).parts)
        self._owner = owner

    @contextlib.contextmanager
    def locate(self, path: str, *, make_parents: bool = False) -> Iterator[Location]:
        """The entry that ``path`` leads to; it need not exist, its directory must (or is made)."""
        # What leaves the workspace by its words alone is refused whether or not it exists.
        if "\0" in path or os.path.normpath(path).split("/")[0] == "..":
            raise OutsideError
        current = self._open_root()
        walked: list[str] = []
        pending = self._components((), path)
        links = 0
        try:
            while True:
                if not pending:
                    yield Location(current, ".", "/".join(walked) or ".")
                    return
                name = pending.pop(0)
                target = None
                if name == "..":
                    if not walked:
                        raise OutsideError
                    pending = walked[:-1] + pending
                else:
                    target = _link_target(current, name)
                    if target is None and not pending:
                        yield Location(current, name, "/".join((*walked, name)))
                        return
                if target is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    pending = self._components(walked, target) + pending
                if name == ".." or target is not None:  # walk again from the root: no open directory can be trusted
                    onward, walked = self._open_root(), []
                else:
                    onward = self._enter(current, name, make=make_parents)
                    walked.append(name)
                os.close(current)
                current = onward
        finally:
            os.close(current)

    def write_file(self, path: str, content: bytes) -> None:
        """Replace the file as a whole: a reader sees the old or the new, never a part. Parents are made."""
        with self.locate(path, make_parents=True) as location:
            mode = 0o666
            with contextlib.suppress(FileNotFoundError):
                status = location.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise WrongKindError
                mode = stat.S_IMODE(status.st_mode)
                if not mode & stat.S_IWUSR:  # which a server that runs as root is not asked about
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            temporary = f".{secrets.token_hex(8)}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, mode, dir_fd=location.directory)
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(content)
                    if mode != 0o666:  # an existing file's mode is kept, also what the umask would take away
                        os.fchmod(descriptor, mode)
                    os.fchown(descriptor, *self._owner)
                os.replace(temporary, location.name, src_dir_fd=location.directory, dst_dir_fd=location.directory)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=location.directory)
                raise

    def _open_root(self) -> int:
        with self._opened() as descriptor:
            return os.dup(descriptor)

    def _components(self, walked: list[str] | tuple[()], path: str) -> list[str]:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not path.startswith("/"):
            return [*walked, *parts]
        for root in self._roots:
            if tuple(parts[: len(root) - 1]) == root[1:]:
                return parts[len(root) - 1 :]
        raise OutsideError

    def _enter(self, directory: int, name: str, *, make: bool) -> int:
        try:
            return os.open(name, _PASS_THROUGH, dir_fd=directory)
        except FileNotFoundError:
            if not make:
                raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=directory)
            os.chown(name, *self._owner, dir_fd=directory, follow_symlinks=False)
        return os.open(name, _PASS_THROUGH, dir_fd=directory)


def _link_target(directory: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is no link
            return None
        raise
