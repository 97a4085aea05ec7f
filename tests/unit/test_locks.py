"""Locks on file systems that know none, and what is not taken away from another machine."""

import errno
import fcntl
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from checkout import ROOT

from sifproof import locks
from sifproof.image import scratch
from sifproof.nomad.agent import local

OTHER = "elsewhere~01234567"
DAY = 25 * 3600


@pytest.fixture(params=["", "ENOSYS", "ENOLCK", "EOPNOTSUPP", "EBADF"])
def folder(request, tmp_path, monkeypatch) -> Path:
    """A folder on a file system that knows locks, or whose `flock` fails in each of these ways."""
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if request.param and Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(tmp_path):
            raise OSError(getattr(errno, request.param), "planted")
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    return tmp_path


def test_one_has_it_at_a_time(folder):
    file = folder / "lock"
    with locks.waited_for(file):
        assert locks.take(file, wait=False) is None
        assert locks.take(file, wait=False, shared=True) is None
    with locks.waited_for(file), locks.waited_for(folder):
        pass  # another one's
    first, second = (locks.take(file, wait=False, shared=True) for _ in range(2))
    assert first and second
    assert locks.take(file, wait=False) is None
    first.close()
    second.close()
    assert not scratch.is_locked(file)


def test_whoever_inherits_it_holds_it(folder):
    with locks.waited_for(folder / "lock") as held:
        child = subprocess.Popen(["sleep", "600"], pass_fds=[held.descriptor])
    try:
        assert scratch.is_locked(folder / "lock")
    finally:
        child.kill()
        child.wait()
    assert not scratch.is_locked(folder / "lock")


def test_a_scratch_directory_is_swept_when_nobody_holds_it_and_not_before(folder):
    with scratch.directory(folder) as (path, _):
        assert scratch.sweep([folder]) == []
        assert path.exists()
    left = folder / f"sifproof-build-{scratch.owner()}-x"
    left.mkdir()
    assert scratch.sweep([folder]) == [left]


def test_no_link_is_followed(folder):
    (folder / "lock").symlink_to(folder / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        locks.take(folder / "lock")
    assert not (folder / "precious").exists()


def aged(path: Path, seconds: float) -> Path:
    """``path``, last changed so long ago."""
    for one in (*path.rglob("*"), path):
        os.utime(one, (time.time() - seconds,) * 2)
    return path


def host() -> str:
    return locks.machine().partition("~")[0]


def restarted() -> str:
    """This machine before its last start."""
    return f"{host()}~00000000"


@pytest.mark.parametrize(
    ("owner", "seconds", "may_live"),
    [
        ("this machine", 0, False),  # its lock tells
        (OTHER, 0, True),
        (OTHER, DAY, False),
        ("", 0, True),  # nobody knows whose it is
        ("", DAY, False),
        ("123", 0, True),
        ("restarted", 0, True),  # it has changed since: another machine goes by the same name
        ("restarted", "before the start", False),
    ],
)
def test_who_may_live(tmp_path, owner, seconds, may_live):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").touch()
    owner = {"this machine": locks.machine(), "restarted": restarted()}.get(owner, owner)
    if seconds == "before the start":
        seconds = time.time() - locks._started() + 60
    assert locks.may_live(owner, aged(tmp_path / "x", seconds)) is may_live


def test_a_file_deep_inside_that_grows_tells_of_life(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    aged(tmp_path, DAY)
    (tmp_path / "a" / "b" / "file").write_text("more")
    assert locks.may_live(OTHER, tmp_path)


def test_a_build_of_another_machine_is_left_alone_until_it_is_old(tmp_path):
    """Its lock is not seen here."""
    theirs = tmp_path / f"sifproof-build-{OTHER}-1-2-x"
    before = tmp_path / "sifproof-build-1-2-x"  # as they were called without a machine
    for path in (theirs, before):
        path.mkdir()
        (path / "image.sif").touch()
    assert scratch.sweep([tmp_path]) == []
    assert sorted(scratch.sweep([aged(tmp_path, DAY)])) == sorted([theirs, before])


def test_an_agent_of_another_machine_is_left_alone_and_its_number_is_nobodys_here(tmp_path):
    home = tmp_path / "run"
    home.mkdir()
    with subprocess.Popen(["sleep", "600"]) as bystander:
        (home / "lock").write_text(f"{bystander.pid} {OTHER}")
        assert local.is_locked(home)
        assert local.sweep(tmp_path) == []
        assert local._supervisor(home) is None
        (home / "lock").write_text(f"{bystander.pid} {locks.machine()}")
        assert local._supervisor(home) == bystander.pid
        bystander.kill()
    (home / "lock").write_text(f"1 {OTHER}")
    aged(home, DAY)
    assert local.sweep(tmp_path) == ["run"]
    assert not home.exists()


def test_there_is_one_place_that_locks():
    for folder in ("src", "tools", "workflow", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "locks.py":
                # In what runs inside of a sandbox, to try the file system there.
                outside = path.read_text(encoding="utf-8") if "checks/storage" not in str(path) else ""
                assert not re.search(r"\b(flock|lockf)\(", outside), path
