"""What set-up promises whatever interrupts it, and that its locks fit what they lock."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
from checkout import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tools"))

import docker_engine  # noqa: E402
from steps import debian, places, preconditions  # noqa: E402
from steps.progress import Step  # noqa: E402

from sifproof import locks  # noqa: E402
from sifproof.errors import SifproofError  # noqa: E402


def test_interrupted_build_leaves_what_was_there(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with places.building(made, "first") as fresh:
        (fresh / "file").write_text("whole")
    with pytest.raises(KeyboardInterrupt), places.building(made, "second") as fresh:
        (fresh / "file").write_text("ha")
        raise KeyboardInterrupt
    assert places.made_of(made) == "first"
    assert (made / "file").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_remains_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    remains = tmp_path / f".made.{locks.machine()}.x1y2"
    (remains / "deep").mkdir(parents=True)
    theirs = tmp_path / ".made.elsewhere~01234567.x1y2"  # they may be at it: their lock is not seen here
    theirs.mkdir()
    with places.building(tmp_path / "made", "stamp"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"made", theirs.name}


def test_half_made_folder_counts_as_not_made(tmp_path: Path) -> None:
    assert places.made_of(tmp_path) == ""
    assert places.made_of(tmp_path / "absent") == ""


def test_digest_tells_parts_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("b")
    assert places.digest("a", "b") != places.digest("ab")
    assert places.digest("a", "b") == places.digest("a", tmp_path / "file")


def test_failing_command_is_told_with_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(SifproofError) as told, Step("name", "doing", tmp_path) as step:
        step.run(["sh", "-c", "seq 100; echo the reason >&2; exit 7"])
    assert "exit code 7" in str(told.value)
    assert "the reason" in str(told.value)
    assert "\n    1\n" not in str(told.value)
    assert (tmp_path / "name.log").read_text().endswith("the reason\n")


def test_too_little_disk_is_told_before_it_fills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "TOOLS", tmp_path)
    preconditions.require_room(0.001, "a small thing")
    with pytest.raises(SifproofError, match=r"building Nomad needs 1e\+06 GB of free disk"):
        preconditions.require_room(1e6, "building Nomad")


def test_fuse_device_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preconditions, "FUSE", tmp_path / "fuse")
    told = [str(lack) for lack in preconditions.lacking(docker=False)]
    assert any(f"{tmp_path}/fuse is not there" in text and "modprobe fuse" in text for text in told)


def test_machine_own_mirror_is_read_from_what_apt_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = (
        "'http://apt.vendor.test/dists/bookworm/main/binary-amd64/Packages.xz' a 0\n"
        "'http://mirror.test/debian-security/dists/bookworm-security/main/binary-amd64/Packages.xz' b 0\n"
        "'http://mirror.test/debian/dists/bookworm/main/binary-amd64/Packages.xz' c 0\n"
    )
    monkeypatch.setattr(debian, "_output", lambda argv: plan)
    assert debian._own_mirror() == "http://mirror.test/debian"
    monkeypatch.setattr(debian, "_output", lambda argv: plan.replace("bookworm", "noble"))
    assert debian._own_mirror() == ""


@pytest.mark.parametrize("bundle", debian.BUNDLES)
def test_debian_lock_pins_every_package_of_a_bundle(bundle: str) -> None:
    lines = [line.split() for line in debian.LOCK.read_text().splitlines() if not line.startswith("#")]
    pinned = {name for line_bundle, name, *_ in lines if line_bundle == bundle}
    assert pinned == {name.partition("/")[0] for name in debian.BUNDLES[bundle]}
    assert {bool(re.fullmatch(r"[0-9a-f]{64}", words[4])) for words in lines} == {True}


def test_python_lock_satisfies_the_project() -> None:
    from packaging.requirements import Requirement

    text = (CHECKOUT / "tools/python/requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"{name} is not locked: run `make lock`"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} is locked as {pinned[name]}"


def test_what_tries_mutants_is_locked_beside_the_rest_and_not_twice() -> None:
    from packaging.requirements import Requirement

    locks = [(CHECKOUT / f"tools/python/{name}.lock").read_text() for name in ("mutation", "requirements")]
    own, rest = (dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE)) for text in locks)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    (tool,) = map(Requirement, project["optional-dependencies"]["mutation"])
    assert tool.specifier.contains(own[tool.name])
    assert not set(own) & set(rest)
    assert "http" not in locks[0]
    assert locks[0].count("--hash=sha256:") >= len(own)


def test_rootless_gives_files_to_nobody_and_says_it_did(tmp_path: Path) -> None:
    rootless = str(CHECKOUT / "tools/rootless.py")
    script = "set -e; id -u; : > file; chown 7:9 file; chgrp 9 file; stat -c %u:%g file; exit 3"
    ended = subprocess.run(
        [sys.executable, rootless, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["0", "0:0"], ended.stderr
    assert ended.returncode == 3
    assert (tmp_path / "file").stat().st_uid == os.getuid()


def test_command_of_a_step_ends_with_a_set_up_that_is_killed(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(CHECKOUT / 'tools')!r}, {str(CHECKOUT / 'src')!r}]\n"
        "from pathlib import Path\nfrom steps.progress import Step\n"
        f"with Step('name', 'doing', Path({str(tmp_path)!r})) as step:\n"
        "    step.run(['sh', '-c', 'echo $$ > pid.new; mv pid.new pid; exec sleep 999'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    pid_file = tmp_path / "pid"
    wait_until(pid_file.exists)
    child = psutil.Process(int(pid_file.read_text()))
    process.kill()
    process.wait()
    wait_until(lambda: not _runs(child))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_engine_removes_the_images_of_engines_that_are_gone_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_engine.host_tools, "root", lambda: tmp_path)
    with docker_engine._data_root() as kept:
        second = docker_engine._data_root()
        lives = second.__enter__()
    killed = tmp_path / "docker" / f"passing.{locks.machine()}.killed"
    theirs = tmp_path / "docker" / "passing.elsewhere~01234567.x"
    killed.mkdir()
    theirs.mkdir()
    with docker_engine._data_root() as again:
        assert again == kept
        assert lives.is_dir()
        assert not killed.exists()
        assert theirs.exists()
    second.__exit__(None, None, None)
    assert not lives.exists()
