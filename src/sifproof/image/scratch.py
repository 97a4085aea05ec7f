"""Room to work in: private directories in memory or on disk that never outlive their owner for long.

A directory belongs to whoever holds the lock on it (:mod:`sifproof.locks`). So a directory that nobody holds is left
over from something that was killed, and the next call removes it, and ends what the killed one had started: tools know
their owner by the variable :data:`OWNER_VARIABLE`. Its name says which machine made it: locks of others may be unseen.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from sifproof import locks

OWNER_VARIABLE = "SIFPROOF_OWNER"
_PREFIX = "sifproof-build-"


class Place(NamedTuple):
    """Where a scratch directory may lie."""

    path: Path
    in_memory: bool

    def free_bytes(self) -> int:
        """Room there; in memory no more than three quarters of what this process may still take."""
        try:
            status = os.statvfs(self.path)
        except OSError:
            return 0
        if not os.access(self.path, os.W_OK | os.X_OK):
            return 0
        free = status.f_bavail * status.f_frsize
        return min(free, memory_available() * 3 // 4) if self.in_memory else free

    def __str__(self) -> str:
        return f"{self.path} ({'memory' if self.in_memory else 'disk'})"


def choose(places: list[Place], need_bytes: int) -> list[Place]:
    """Those of ``places`` that hold ``need_bytes``, in order, and last the disk with the most room in any case."""
    roomy = [p for p in places if p.free_bytes() >= need_bytes]
    largest = max((p for p in places if not p.in_memory), key=Place.free_bytes)
    return roomy if largest in roomy else [*roomy, largest]


def memory_available() -> int:
    """Bytes of memory that this process may still take, with the limits of its control groups."""
    available = psutil.virtual_memory().available
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                root, limit, used = "/sys/fs/cgroup", "memory.max", "memory.current"
            elif "memory" in controllers.split(","):
                root, limit, used = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            for level in [Path(group), *Path(group).parents]:
                folder = Path(root + str(level))
                with suppress(OSError, ValueError):  # "max" is no number
                    left = int((folder / limit).read_text()) - int((folder / used).read_text())
                    available = min(available, max(left, 0))
    return available


def owner() -> str:
    """This process, told apart from others of the same id before and after it, and on other machines."""
    return f"{locks.machine()}-{os.getpid()}-{round(psutil.Process().create_time() * 100)}"


@contextmanager
def directory(parent: Path) -> Iterator[tuple[Path, int]]:
    """A new directory in ``parent`` and the descriptor that holds its lock; removed at the end."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{owner()}-", dir=parent))
        try:
            held = locks.waited_for(path)
        except FileNotFoundError:  # a sweep was faster
            continue
        if path.exists():
            break
        held.close()
    with held:
        try:
            yield path, held.descriptor
        finally:
            remove(path)


@contextmanager
def lock(path: Path) -> Iterator[int]:
    """Hold the lock file ``path``, waiting for whoever else does; yields its descriptor.

    On a file system whose locks other machines don't see two conversions may run at once; each still ends in one whole
    file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.waited_for(path) as held:
        yield held.descriptor


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock on ``path``."""
    try:
        held = locks.take(path, wait=False, make=False)
    except OSError:
        return False
    if held is None:
        return True
    held.close()
    return False


def sweep(parents: Iterable[Path]) -> list[Path]:
    """Remove this user's directories in ``parents`` that nobody holds any more, on whatever machine; returns them."""
    removed = []
    for parent in set(parents):
        for path in parent.glob(f"{_PREFIX}*"):
            with suppress(OSError):
                if path.lstat().st_uid != os.geteuid():
                    continue
                made_by, *rest = path.name.removeprefix(_PREFIX).split("-")
                if path.is_symlink() or not path.is_dir() or locks.may_live(made_by, path):
                    continue
                held = locks.take(path, wait=False)
                if held is None:
                    continue
                with held:
                    _end_tools_of("-".join([made_by, *rest[:2]]))
                    remove(path)
                    removed.append(path)
    return removed


def remove(tree: Path) -> None:
    """Remove ``tree``, directories that their owner may not write among it."""
    for folder, names, _ in os.walk(tree):
        for name in names:
            inner = Path(folder, name)
            if not inner.is_symlink():
                with suppress(OSError):
                    inner.chmod(0o700)
    shutil.rmtree(tree, ignore_errors=True)


def _end_tools_of(dead: str) -> None:
    if dead == owner():
        return
    orphans = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(OWNER_VARIABLE) == dead]
    for orphan in orphans:
        with suppress(psutil.Error):
            orphan.kill()
    psutil.wait_procs(orphans, timeout=10)
