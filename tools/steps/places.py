"""Where set-up puts things, and how it puts them there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sifproof import locks
from steps.progress import say

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("SIFPROOF_TOOLS") or CHECKOUT / ".tools").absolute()
LOGS = TOOLS / "log"
_STAMP = ".made-of"


def cache() -> Path:
    """The folder that outlives checkouts: packages fetched and the Nomad built, each under its digest."""
    if given := os.environ.get("SIFPROOF_CACHE"):
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    if not base and os.environ.get("HOME"):
        base = f"{os.environ['HOME']}/.cache"
    folder = Path(base) / "sifproof" if base else TOOLS / "cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return TOOLS / "cache"
    return folder if os.access(folder, os.W_OK) else TOOLS / "cache"


def digest(*parts: str | bytes | Path) -> str:
    """SHA-256 over ``parts``, files by their content."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of ``path``, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def made_of(folder: Path) -> str:
    """The digest of what ``folder`` was made of; empty where it was not made whole."""
    try:
        return (folder / _STAMP).read_text()
    except OSError:
        return ""


def mark(folder: Path, stamp: str) -> None:
    """Write down what ``folder`` was made of."""
    (folder / _STAMP).write_text(stamp)


@contextlib.contextmanager
def building(folder: Path, stamp: str) -> Iterator[Path]:
    """A new folder to build in, which becomes ``folder`` when all went well.

    What an interrupted call left behind is removed: set-up holds a lock on the checkout, nobody else of this machine
    builds here.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*"):
        if not locks.may_live(stale.name.removeprefix(f".{folder.name}.").partition(".")[0], stale):
            shutil.rmtree(stale)
    ours = f".{folder.name}.{locks.machine()}."
    fresh = Path(tempfile.mkdtemp(prefix=ours, dir=folder.parent))
    try:
        fresh.chmod(0o755)
        yield fresh
        mark(fresh, stamp)
        old = folder.parent / f"{ours}old"
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def link(name: str, target: Path) -> None:
    """Make ``.tools/bin/<name>`` a link to ``target``."""
    place = TOOLS / "bin" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    pointing = os.path.relpath(target, place.parent)
    if place.is_symlink() and str(place.readlink()) == pointing:
        return
    fresh = place.with_name(f".{name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(pointing)
    fresh.replace(place)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is the whole of it or is not there; two at once do no harm."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    try:
        shutil.copy2(source, name)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the checkout's set-up lock; the kernel lets go of it with the process, however that ends."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    lock = locks.take(TOOLS / "lock", wait=False)
    if lock is None:
        say("Another set-up is at work in this checkout; waiting for it to end.")
        lock = locks.waited_for(TOOLS / "lock")
    with lock:
        yield
