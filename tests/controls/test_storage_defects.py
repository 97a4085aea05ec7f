"""A data directory on a file system that lacks something, for real: each lack is named, and none hangs the gate."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import lacking
import pytest
from catalogue import control
from placed import red, try_without_gate, verdicts

from sifproof.checks import storage
from sifproof.checks.engine import registry
from sifproof.image import scratch

RED = {
    "rename-in-two-steps": ("storage.rename",),
    "directories-are-copied": ("storage.rename",),
    "fsync-refused": ("storage.fsync",),
    "directory-fsync-refused": ("storage.fsync",),
    "no-flock": ("storage.flock",),
    "flock-for-all": ("storage.flock",),
    "no-posix-locks": ("storage.fcntl-locks",),
    "posix-locks-for-all": ("storage.fcntl-locks",),
    "sockets-hang": ("storage.unix-sockets",),
    "sockets-hang-for-good": ("storage.unix-sockets",),
    "no-sockets": ("storage.unix-sockets",),
    "no-fifos": ("storage.fifos",),
    "no-symlinks": ("storage.symlinks",),
    "no-hard-links": ("storage.hard-links",),
    "names-fold-case": ("storage.case",),
    "slow-creation": ("storage.small-files",),
    "nearly-full": ("storage.free-space",),
    "few-inodes": ("storage.free-inodes",),
}
# Of what is measured. The file system below is slow, and a busy machine makes it slower still: every call goes to a
# program, and back.
LIMITS = {"storage.small-files": "1 /s", "storage.free-space": "2 MiB", "storage.free-inodes": "1000 files"}
# What a defect cannot reach, on any machine.
MORE_THAN = {"slow-creation": {"storage.small-files": 20.0}}

for _name, _red in RED.items():
    control(_name, "node", *_red, sentence=lacking.DEFECTS[_name])


class FileSystem:
    """The file system of :mod:`lacking`, mounted."""

    def __init__(self, folder: Path) -> None:
        self.mountpoint = folder / "mounted"
        (folder / "below").mkdir()
        self.mountpoint.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, lacking.__file__, folder / "below", self.mountpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "mounted\n"

    @contextmanager
    def defect(self, name: str):
        try:
            self._plant(name)
            yield
        finally:
            self._plant("")

    def _plant(self, name: str) -> None:
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "planted\n"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def file_system(tmp_path_factory):
    made = FileSystem(tmp_path_factory.mktemp("lacking"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(house, file_system):
    """A sandbox whose data directory is on it."""

    def bound(line: str) -> str:
        changed = line.replace('"$NOMAD_ALLOC_DIR/data:/data"', quote(f"{file_system.mountpoint}:/data"))
        assert changed != line
        return changed

    with house.sandbox("on-lacking", line=bound, limits=LIMITS) as server:
        server.client = server.client.clone(grace_s=1.0)
        yield server


def test_all_green_where_nothing_is_wrong(server):
    found = verdicts(server, ["storage"])
    assert found.keys() == {check.id for check in registry.of_suite("storage")}
    assert [verdict for verdict in found.values() if verdict.verdict != "pass"] == []
    assert server.bash("ls -A", slot=-1).output == ""


def test_every_defect_is_a_control():
    assert RED.keys() | {""} == lacking.DEFECTS.keys()
    assert {check.id for check in registry.of_suite("storage")} == {check for red in RED.values() for check in red}


@pytest.mark.parametrize("name", [name for name in RED if "hang" not in name])
def test_what_lacks_is_named(server, file_system, name):
    with file_system.defect(name):
        try_without_gate(name, server)
        found = verdicts(server, ["storage"], limits=MORE_THAN.get(name, {}))
    assert red(found) == set(RED[name]), found
    assert {v.verdict for v in found.values()} <= {"pass", "fail"}, found
    assert server.bash("ls -A", slot=-1).output == ""


@pytest.mark.parametrize(("name", "check"), [("modes-for-all", "archive"), ("times-of-its-own", "list")])
def test_no_server_is_blamed_for_what_a_file_system_does_not_keep(server, file_system, name, check):
    with file_system.defect(name):
        found = verdicts(server, ["artifacts"])
    assert [verdict for verdict in found.values() if verdict.verdict != "pass"] == []
    assert "the file system" in found[f"artifacts.{check}"].message


@pytest.fixture
def impatient(monkeypatch):
    """With sockets alone, which hang: what else is looked at has its usual time."""
    judge = storage._judge_with

    def soon(server, programs, **more):
        with pytest.MonkeyPatch.context() as patch:
            if programs is storage._SOCKET:
                patch.setattr(storage, "HANGS_S", 2.0)
                patch.setattr(storage, "_LONGER_S", 4.0)
                patch.setattr(storage, "_LATER_S", 0.5)
            return judge(server, programs, **more)

    monkeypatch.setattr(storage, "_judge_with", soon)


@pytest.mark.usefixtures("impatient")
def test_a_call_that_hangs_is_ended(server, file_system):
    with file_system.defect("sockets-hang"):
        try_without_gate("sockets-hang", server)
        found = verdicts(server, ["storage"])
        assert server.idle() == list(range(server.slots))
    assert red(found) == {"storage.unix-sockets"}, found
    assert "did not return within 4 s, and was ended" in found["storage.unix-sockets"].message


def test_what_only_takes_its_time_is_looked_at_for_longer(server, monkeypatch):
    monkeypatch.setattr(storage, "HANGS_S", 0.5)
    assert storage._judge(server, "sleep 1; echo fine").passed


@pytest.mark.usefixtures("impatient")
def test_a_call_that_can_not_be_ended_keeps_its_slot_and_nothing_else(server, file_system):
    with file_system.defect("sockets-hang-for-good"):
        try_without_gate("sockets-hang-for-good", server)
        found = verdicts(server, ["storage"])
        # The server gives the slot back when it gives up on the process; the check saw it lost.
        assert set(server.idle()) >= set(range(server.slots - 1))
        assert server.bash("echo alive").output == "alive"
    assert red(found) == {"storage.unix-sockets"}, found
    assert {v.verdict for v in found.values()} == {"pass", "fail"}
    assert f"slot_{server.slots - 1} is lost" in found["storage.unix-sockets"].message


PROGRAMS = {
    "fsync": (storage._FSYNC, ["fsync-refused", "directory-fsync-refused"]),
    "flock": (storage._FLOCK, ["no-flock", "flock-for-all"]),
    "fcntl": (storage._FCNTL, ["no-posix-locks", "posix-locks-for-all"]),
    "socket": (storage._SOCKET, ["no-sockets"]),
}


@pytest.mark.parametrize(
    ("programs", "tool", "defects"),
    [(programs, tool, defects) for programs, defects in PROGRAMS.values() for tool in programs],
)
def test_each_program_that_an_image_may_have_sees_the_same(file_system, tmp_path, programs, tool, defects):
    def said(folder: Path) -> str:
        for name in ("file", "socket"):
            (folder / name).unlink(missing_ok=True)
        command = ["sh", "-c", storage._run(tool, programs[tool])]
        return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout

    assert said(tmp_path).splitlines()[-1] == "fine"
    assert said(file_system.mountpoint).splitlines()[-1] == "fine"
    for defect in defects:
        with file_system.defect(defect):
            assert said(file_system.mountpoint).splitlines()[-1].startswith("lacks: "), defect


def test_a_sync_that_knows_no_files_is_none_to_try_it_with(tmp_path):
    sync = tmp_path / "sync"
    sync.write_text('#!/bin/sh\n[ "$1" = --help ] && echo "Usage: sync" || touch "$0.called"\n')
    sync.chmod(0o755)
    here = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.check_output(["sh", "-c", storage._FSYNC["sync"]], cwd=tmp_path, env=here, text=True)
    assert said == "no tool: python3, perl, sync of single files\n"
    assert list(tmp_path.iterdir()) == [sync]


def test_the_node_is_asked_where_the_image_has_no_program_for_it(house):
    with house.sandbox("bare") as server:
        # Every node has apptainer, and no image.
        found = storage._judge_with(server, {"apptainer": "echo word > file && cat file > /dev/null && echo fine"})
        assert (found.passed, found.saw) == (True, "fine (the node's own programs, on the workspace's directory)")
        lacks = storage._judge_with(server, {"apptainer": "echo lacks: this"})
        assert not lacks.passed
        with pytest.raises(registry.NotMeasured, match="nor has the node"):
            storage._judge_with(server, {"no-such-program": ":", "nor-this": ":"})
        assert server.bash("ls -A", slot=-1).output == ""


HOLDS = """
import sys
from pathlib import Path
from sifproof.image import scratch
from sifproof.workflow import deploy
with deploy.alone(Path(sys.argv[1])), scratch.directory(Path(sys.argv[1])) as (path, _):
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("defect", ["no-flock", ""])
def test_what_the_gate_itself_locks_is_locked_there_too(file_system, defect):
    place = file_system.mountpoint
    with (
        file_system.defect(defect),
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder,
    ):
        path = Path(holder.stdout.readline().strip())
        assert scratch.is_locked(place / ".lock")
        assert scratch.sweep([place]) == []
        holder.kill()
        holder.wait()
        assert not scratch.is_locked(place / ".lock")
        assert scratch.sweep([place]) == [path]
        (place / ".lock").unlink()
