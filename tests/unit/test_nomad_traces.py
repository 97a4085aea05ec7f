"""A process is what the kernel says that it runs, whatever it calls itself; here and in what a node tells."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkout import wait_until

from sifproof import host_tools, locks
from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Ended
from sifproof.checks.teardown import graceful, processes
from sifproof.nomad.agent import local
from sifproof.nomad.allocations import Allocation, parse_allocation
from sifproof.nomad.node import leftovers, remote_leftovers
from sifproof.nomad.node.leftovers import Process
from sifproof.nomad.teardown import AllocationEnd, _was_killed

# Of this process alone: others may run the same tests on this machine.
ID = str(uuid.uuid4())


@contextmanager
def running(name: str, program: str = "sleep") -> Iterator[subprocess.Popen[bytes]]:
    """A process of an allocation that gives itself a name."""
    with subprocess.Popen(
        [name, "600"], executable=shutil.which(program) or program, env={"NOMAD_ALLOC_ID": ID}, stdin=subprocess.DEVNULL
    ) as process:
        # Until it is the program, it is the one that starts it.
        wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(name.encode()))
        try:
            yield process
        finally:
            process.kill()


def seen_here() -> list[Process]:
    return leftovers.find_processes([ID])[ID]


def seen_by_the_script() -> list[Process]:
    values = f"ids={ID} earlier= within= containers=\n"
    said = subprocess.run(
        ["sh", "-c", values + remote_leftovers._script()], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    assert said.endswith("end\n")
    found = remote_leftovers.Remains()
    remote_leftovers._read(said, ID, found)
    return found.processes


@pytest.mark.parametrize("look", [seen_here, seen_by_the_script])
@pytest.mark.parametrize("name", ["nomad agent", "nomad logmon", "/usr/bin/squashfuse_ll"])
def test_a_name_is_not_believed(look, name: str) -> None:
    with running(name) as process:
        (found,) = look()
    assert (found.pid, found.program) == (process.pid, "sleep")
    assert (found.is_nomad, found.is_agent, found.is_fuse) == (False, False, False)


@pytest.mark.parametrize("look", [seen_here, seen_by_the_script])
def test_the_program_is(look, tmp_path: Path) -> None:
    for name in ("nomad", "squashfuse_ll"):
        shutil.copy(shutil.which("sleep") or "", tmp_path / name)
    with running("x", str(tmp_path / "squashfuse_ll")):
        (found,) = look()
        assert found.is_fuse and not found.is_nomad
    with running("nomad logmon", str(tmp_path / "nomad")):
        (tmp_path / "nomad").unlink()  # as when a new version takes its place
        (found,) = look()
        assert found.is_nomad
    with running("nomad agent", str(tmp_path / "squashfuse_ll")):
        (found,) = look()
        assert not found.is_nomad


@pytest.mark.parametrize("look", [seen_here, seen_by_the_script])
def test_in_a_container_no_name_is(look, tmp_path: Path) -> None:
    script = f"import os, time; os.chroot({str(tmp_path)!r}); print(flush=True); time.sleep(600)"
    with subprocess.Popen(
        ["nomad", "-c", script], executable=sys.executable, env={"NOMAD_ALLOC_ID": ID}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        try:
            (found,) = look()
        finally:
            process.kill()
    assert (found.program, found.is_nomad) == ("-", False)


@pytest.mark.parametrize(("driver", "passed"), [("singularity", True), ("docker", False)])
def test_under_docker_a_fuse_program_is_a_process_like_any_other(driver: str, passed: bool) -> None:
    left = Process(pid=7, command="fuse-overlayfs x", by="cgroup", program="fuse-overlayfs")
    end = AllocationEnd(
        allocation=ID,
        node="node",
        endpoint="",
        port_closed_s=0.0,
        client_status="complete",
        terminal_s=0.1,
        exit_code=143,
        killed=False,
        looked_at=True,
        ended_s=None,
        processes=[left],
        mounts=[],
        containers=[],
    )
    assert processes(Ended(end, True, 5.0, driver)).passed is passed


def ended_with(**details: str) -> Allocation:
    events = [{"Type": "Terminated", "Time": 1, "Details": details}] if details else []
    return parse_allocation({"ID": ID, "TaskStates": {"server": {"Events": events}}})


@pytest.mark.parametrize(
    ("end", "ended_s", "terminal_s", "killed"),
    [
        (ended_with(exit_code="137"), 0.1, 0.1, True),
        (ended_with(exit_code="0", signal="9"), 0.1, 0.1, True),
        (ended_with(exit_code="143"), 9.0, 9.0, False),
        (ended_with(exit_code="-1"), 0.2, 0.3, False),
        (ended_with(exit_code="-1"), None, 0.3, False),
        (ended_with(exit_code="-1"), 0.2, 9.0, False),
        (ended_with(exit_code="-1"), 5.1, 5.2, None),
        (ended_with(), 0.2, None, False),
        (ended_with(), None, None, None),
    ],
)
def test_where_nomad_missed_the_exit_code_time_tells_who_was_not_killed(
    end: Allocation, ended_s: float | None, terminal_s: float | None, killed: bool | None
) -> None:
    assert _was_killed(end, ended_s, terminal_s, [{"Name": "server", "KillTimeout": 5_000_000_000}]) is killed


@pytest.mark.parametrize(("killed", "passed"), [(False, True), (True, False), (None, None)])
def test_a_server_of_which_nobody_knows_whether_it_was_killed_passes_nothing(
    killed: bool | None, passed: bool | None
) -> None:
    end = AllocationEnd.model_construct(terminal_s=5.2, exit_code=None, killed=killed)
    if passed is None:
        with pytest.raises(NotMeasured, match="Nomad missed how the task ended"):
            graceful(Ended(end, True, 10.0))
    else:
        assert graceful(Ended(end, True, 10.0)).passed is passed


def test_an_agent_that_goes_while_others_are_swept_is_no_error(tmp_path: Path) -> None:
    """A name that was listed and leads nowhere any more."""
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "lock").write_text(f"1 {locks.machine()}")
    assert local.sweep(tmp_path) == ["left"]
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize("hangs", ["ps", "rm"])
def test_an_engine_that_hangs_keeps_nothing_else_from_being_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    engine = tmp_path / "docker"
    engine.write_text(
        f"#!/bin/sh\n[ $1 != {hangs} ] || exec sleep 600\n"
        'echo \'{"ID": "0123456789ab", "Names": "x", "State": "running"}\'\n'
    )
    engine.chmod(0o755)
    monkeypatch.setattr(host_tools, "find", lambda _: host_tools.Tool("docker", engine, "", ""))
    monkeypatch.setattr(leftovers, "ANSWERS_WITHIN_S" if hangs == "ps" else "_REMOVED_WITHIN_S", 0.5)
    (tmp_path / "home" / "data" / "alloc" / ID).mkdir(parents=True)
    assert local.clear(tmp_path / "home") == ["container 0123456789ab x (running)"] * (hangs == "rm")
    assert not (tmp_path / "home").exists()


def test_mounts_are_found_whatever_letters_their_path_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "self").mkdir()
    lines = [
        "1 0 8:1 /root/gr\u00fc\u00dfe\\040a /home/gr\u00fc\u00dfe\\040a/\\134x rw shared:1 - ext4 /dev/sda1 rw",
        "2 0 8:1 / /elsewhere rw - fuse /home/gr\u00fc\u00dfe\\040a/image rw",
        "3 0 8:1 / /other rw - ext4 /dev/sda1 rw,upperdir=/home/none",
    ]
    raw = "\n".join(lines).encode() + b"\n4 0 8:1 / /home/gr\xfc\xdfe rw - tmpfs tmpfs rw\n"
    (tmp_path / "self" / "mountinfo").write_bytes(raw)
    monkeypatch.setattr(leftovers, "_PROC", tmp_path)
    assert leftovers.find_mounts("/home/gr\u00fc\u00dfe a/") == ["/home/gr\u00fc\u00dfe a/\\x", "/elsewhere"]
    assert leftovers.find_mounts("/home/gr\udcfc\udcdfe") == ["/home/gr\udcfc\udcdfe"]
    assert leftovers.find_mounts("/home/none") == []


def test_a_node_tells_mounts_whatever_letters_their_path_has() -> None:
    found = remote_leftovers.Remains()
    remote_leftovers._read(f"mount /gr\u00fc\u00dfe\\040a/{ID}/secrets\nend\n", ID, found)
    assert found.mounts == [f"/gr\u00fc\u00dfe a/{ID}/secrets"]
