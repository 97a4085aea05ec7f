"""The directories of the slots, which lie in directories of the server's own.

    DATA/slots/slot_N     a slot's workspace
    DATA/.state/slot_N    its /tmp

A command may do to its slot's directory what it likes: close it to itself, and, where it runs as the server's own user,
move another slot's into its place, or put a link there. So each call opens them anew, from the data directory down,
through no link, and what is changed is what was opened. What is missing is made, what is in the way is set aside, and
what its owner can't enter is opened to him.

With a user for each slot no command can do more to them than close them: they lie in directories of the server's, and
those above, which Nomad makes writable for everybody, are closed to the slots' users, see ``close_to_slots``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

WORKSPACES_DIRECTORY = "slots"
STATE_DIRECTORY = ".state"
SLOT_GROUP = 40_000
FIRST_SLOT_USER = 40_001
_SLOT_USERS = range(FIRST_SLOT_USER, FIRST_SLOT_USER + 10_000)
_THROUGH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_TRIES = 5  # a command may put things in the way again meanwhile
_SERVERS_OWN = -1, -1
_UMASK = os.umask(0o077)
os.umask(_UMASK)  # it can't be read but by setting it
_MODE = 0o777 & ~_UMASK
_OPEN_TO_ALL = 0o755

Owner = tuple[int, int]


@contextlib.contextmanager
def opened(directory: Path, owner: Owner, *, as_new: bool = False) -> Iterator[int]:
    """A descriptor of ``directory``, DATA/KIND/NAME, which is there and open to ``owner``. Raises OSError.

    ``owner`` is user and group; -1 where they are the server's own. ``as_new`` takes away what a command set for it.
    """
    with contextlib.ExitStack() as stack:
        data = _keep(stack, _open_data(directory.parents[1]))
        _let_in(data)
        above = _keep(stack, _open_own(data, directory.parent.name))
        if owner != _SERVERS_OWN and stat.S_IMODE(os.fstat(above).st_mode) & 0o777 != _OPEN_TO_ALL:
            path_of(above).chmod(_OPEN_TO_ALL)  # for the slots' users to go through, and to change nothing in
        inner = _keep(stack, _open(above, directory.name, _MODE))
        _give(inner, owner, as_new=as_new)
        yield inner


@contextlib.contextmanager
def state(data: Path) -> Iterator[int]:
    """A descriptor of the directory of the server's own state. Raises OSError."""
    with contextlib.ExitStack() as stack:
        yield _keep(stack, _open_own(_keep(stack, _open_data(data)), STATE_DIRECTORY))


def path_of(descriptor: int) -> Path:
    """A path of what is open, wherever it was moved; for calls that take no descriptor, or none that only names."""
    return Path(f"/proc/self/fd/{descriptor}")


def close_to_slots(data: Path, given: Iterable[Path]) -> list[str]:
    """Let the slots' users change nothing in the directories above their own; what could not be done, in words.

    ``given`` are the directories that Nomad gave to the allocation, of which the slots' users need none. Nobody else
    loses a right: what is taken is that of their group, which becomes the directories' group.
    """
    problems = []
    data = data.resolve()
    there = {path.resolve() for path in given if path.is_dir()}
    ways = {path for path in (data, *data.parents) if path == data or any(path.is_relative_to(d) for d in there)}
    beside = {
        child for way in (ways & there) - {data} for child in way.iterdir() if child.is_dir() and not child.is_symlink()
    }
    for directory in sorted(ways | there | beside):
        try:
            _close(directory, on_the_way=directory in ways)
        except NotADirectoryError:  # a link to one
            continue
        except OSError as error:
            problems.append(f"{directory} can't be closed to the slots' users: {error.strerror}")
    return problems


def keep_names(data: Path) -> None:
    """Let nobody rename in ``data`` what is not his: Nomad lets every user of the node, who could put one of his own
    into the place of the slots'. Where the server may not change it, it stays as it is.
    """
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        descriptor = _keep(stack, _open_data(data))
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o022 and not mode & stat.S_ISVTX:
            path_of(descriptor).chmod(mode | stat.S_ISVTX)


def _close(directory: Path, *, on_the_way: bool) -> None:
    with contextlib.ExitStack() as stack:
        descriptor = _keep(stack, os.open(directory, _THROUGH | os.O_NOFOLLOW))
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        allowed = mode >> 3 & 7 if status.st_gid == SLOT_GROUP else mode & 7
        if on_the_way and (mode & stat.S_ISVTX or not allowed & 2):
            return  # no entry of others can be renamed there
        if allowed:
            os.chown(path_of(descriptor), -1, SLOT_GROUP)
            path_of(descriptor).chmod(mode & ~0o070 | (0o010 if on_the_way else 0))


def _keep(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _open_data(data: Path) -> int:
    try:
        return os.open(data, _THROUGH)
    except FileNotFoundError:
        data.mkdir(parents=True, exist_ok=True)
        return os.open(data, _THROUGH)


def _open_own(data: int, name: str) -> int:
    """A directory of the server's own in ``data``; one that belongs to a slot's user is none."""
    for _ in range(_TRIES):
        descriptor = _open(data, name, _OPEN_TO_ALL)
        if os.fstat(descriptor).st_uid not in _SLOT_USERS:
            _let_in(descriptor)
            return descriptor
        os.close(descriptor)
        _set_aside(data, name)
    raise OSError(errno.EBUSY, "it is exchanged again and again", name)


def _open(parent: int, name: str, mode: int) -> int:
    for _ in range(_TRIES):
        try:
            return os.open(name, _THROUGH | os.O_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            _set_aside(parent, name)
    raise OSError(errno.EBUSY, "it is exchanged again and again", name)


def _set_aside(parent: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, f".{name}.{secrets.token_hex(4)}.aside", src_dir_fd=parent, dst_dir_fd=parent)


def _let_in(directory: int) -> None:
    """Open a directory of the server's user to him where a command closed it."""
    status = os.fstat(directory)
    if not status.st_mode & stat.S_IXUSR and status.st_uid == os.geteuid():
        path_of(directory).chmod(stat.S_IMODE(status.st_mode) | stat.S_IRWXU)


def _give(directory: int, owner: Owner, *, as_new: bool) -> None:
    """Make the directory its owner's, who may have closed it; it stays read-only where he made it so."""
    status = os.fstat(directory)
    mode = wanted = stat.S_IMODE(status.st_mode)
    if owner == _SERVERS_OWN and status.st_uid in _SLOT_USERS:  # given to a user who is not to be
        owner = os.geteuid(), os.getegid()
    if owner not in (_SERVERS_OWN, (status.st_uid, status.st_gid)):
        os.chown(path_of(directory), *owner)
    if as_new:
        _take_attributes(directory)
        wanted = _MODE
    elif not mode & stat.S_IXUSR:
        wanted |= stat.S_IRWXU
    if owner[0] in _SLOT_USERS:
        # Closed to the group, which is the other slots' users, and open to others: the user whose Nomad client shows
        # the allocation's files is none of them.
        wanted = wanted & ~0o077 | 0o005
    if wanted != mode:
        path_of(directory).chmod(wanted)


def _take_attributes(directory: int) -> None:
    """Remove access lists, which what is made in the directory would get too, and whatever else was attached."""
    with contextlib.suppress(OSError):  # many file systems have none
        for name in os.listxattr(path_of(directory)):
            if name.startswith(("system.posix_acl_", "user.")):
                os.removexattr(path_of(directory), name)
