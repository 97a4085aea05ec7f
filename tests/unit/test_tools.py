"""Which program is taken for a tool, and what is said where there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sifproof import host_tools
from sifproof.errors import SifproofError


def program(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho asked >> '{folder}/asked'\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on it: `bin` is its PATH, `tools` what set-up made."""
    monkeypatch.setenv("SIFPROOF_TOOLS", str(tmp_path / "tools"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "tools").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("apptainer version 1.4.5", "1.4.5"),
        ("apptainer version 1.3.6-1.el9", "1.3.6"),
        ("singularity-ce version 4.1.2-jammy", "SingularityCE 4.1.2"),
        ("singularity version 3.8.7", "Singularity 3.8.7"),
        ("Nomad v1.11.2\nBuildDate 2026-02-11T19:01:47Z", "1.11.2"),
        ("Nomad v1.10.0-beta.1+ent", "1.10.0"),
        ("mksquashfs version 4.6.1 (2023/03/25)\ncopyright", "4.6.1"),
        ("skopeo version 1.18.0", "1.18.0"),
        ("buildah version 1.39.3 (image-spec 1.1.0, runtime-spec 1.2.0)", "1.39.3"),
        ("mmdebstrap 1.5.7", "1.5.7"),
        ("Docker version 26.1.5+dfsg1, build a72d7cd", "26.1.5"),
        ("go1.26.6", "1.26.6"),
        ("command not found", ""),
        ("", ""),
    ],
)
def test_version_is_read_from_what_programs_print(printed: str, version: str) -> None:
    assert host_tools.parse_version(printed) == version


@pytest.mark.parametrize(
    ("name", "version", "enough"),
    [
        ("nomad", "1.8", True),
        ("nomad", "1.10.5", True),
        ("nomad", "1.7.7", False),
        ("nomad", "", False),
        ("apptainer", "1.2.0", True),
        ("apptainer", "1.1.9", False),
        ("apptainer", "SingularityCE 4.1.0", True),
        ("apptainer", "SingularityCE 3.11.4", False),
        ("apptainer", "Singularity 3.8.7", False),
        ("docker", "28.2.2", True),
        ("docker", "19.03.1", False),
    ],
)
def test_new_enough(name: str, version: str, enough: bool) -> None:
    assert host_tools.new_enough(name, version) is enough


def test_path_comes_first(machine: Path) -> None:
    own = program(machine / "bin", "nomad", "Nomad v1.9.0")
    program(machine / "tools/bin", "nomad", "Nomad v1.11.2")
    assert host_tools.find("nomad") == host_tools.Tool("nomad", own, "1.9.0", "PATH")


def test_too_old_on_path_yields_to_setup(machine: Path) -> None:
    program(machine / "bin", "nomad", "Nomad v1.4.0")
    made = program(machine / "tools/bin", "nomad", "Nomad v1.11.2")
    assert host_tools.find("nomad") == host_tools.Tool("nomad", made, "1.11.2", ".tools")


def test_a_later_folder_of_path_may_be_newer(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "bin", "skopeo", "skopeo version 1.2.0")
    newer = program(machine / "opt", "skopeo", "skopeo version 1.18.0")
    monkeypatch.setenv("PATH", f"{machine / 'bin'}:{machine / 'opt'}")
    found = host_tools.find("skopeo")
    assert found is not None
    assert found.path == newer


def test_another_program_of_the_same_name_is_not_taken(machine: Path) -> None:
    program(machine / "bin", "nomad", "nomad 2.0.1")
    program(machine / "bin", "docker", "podman version 5.4.0")
    assert host_tools.find("nomad") is None
    assert host_tools.find("docker") is None


def test_singularity_is_taken_where_there_is_no_apptainer(machine: Path) -> None:
    own = program(machine / "bin", "singularity", "singularity-ce version 4.1.2")
    found = host_tools.find("apptainer")
    assert found == host_tools.Tool("apptainer", own, "SingularityCE 4.1.2", "PATH")


def test_missing_tool_is_told_with_what_to_do(machine: Path) -> None:
    old = program(machine / "bin", "apptainer", "apptainer version 1.0.3")
    with pytest.raises(SifproofError) as told:
        host_tools.require("apptainer")
    text = str(told.value)
    assert "apptainer 1.2 or later was not found" in text
    assert f"{old} is 1.0.3" in text
    assert "make setup" in text


def test_program_that_does_not_run_is_told_as_such(machine: Path) -> None:
    broken = machine / "bin" / "skopeo"
    broken.parent.mkdir()
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    with pytest.raises(SifproofError, match="skopeo is no program that runs here"):
        host_tools.require("skopeo")


def test_environment_puts_the_chosen_first_and_nothing_else(machine: Path) -> None:
    own = program(machine / "bin", "nomad", "Nomad v1.9.0")
    program(machine / "bin", "apptainer", "apptainer version 1.0.0")
    made = program(machine / "tools/bin", "apptainer", "apptainer version 1.4.5")
    first, *rest = host_tools.environment()["PATH"].split(os.pathsep)
    assert rest == [str(machine / "bin")]
    chosen = {link.name: link.readlink() for link in Path(first).iterdir()}
    assert chosen == {
        "nomad": own,
        "apptainer": made,
        "singularity": made,
    }


def test_environment_twice_is_environment_once(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "bin", "nomad", "Nomad v1.9.0")
    once = host_tools.environment()["PATH"]
    monkeypatch.setenv("PATH", once)
    assert host_tools.environment()["PATH"] == once
    assert host_tools.find("nomad").origin == "PATH"  # type: ignore[union-attr]


def test_path_only_singularity_is_also_found_as_apptainer(machine: Path) -> None:
    own = program(machine / "bin", "apptainer", "apptainer version 1.4.5")
    first = Path(host_tools.environment()["PATH"].split(os.pathsep)[0])
    assert (first / "singularity").readlink() == own


def test_version_is_asked_once_for_each_state_of_the_file(machine: Path) -> None:
    own = program(machine / "bin", "skopeo", "skopeo version 1.18.0")
    for _ in range(3):
        host_tools.find("skopeo")
    assert (machine / "bin/asked").read_text().count("asked") == 1
    program(machine / "bin", "skopeo", "skopeo version 1.19.10")
    found = host_tools.find("skopeo")
    assert found == host_tools.Tool("skopeo", own, "1.19.10", "PATH")


def test_damaged_memory_of_versions_is_no_harm(machine: Path) -> None:
    program(machine / "bin", "skopeo", "skopeo version 1.18.0")
    for damage in ("", "{", "[]", "nonsense"):
        (machine / "tools/versions.json").write_text(damage)
        assert host_tools.find("skopeo") is not None
    assert json.loads((machine / "tools/versions.json").read_text())


def test_tools_folder_that_is_not_there_is_no_harm(machine: Path) -> None:
    (machine / "tools").rmdir()
    program(machine / "bin", "skopeo", "skopeo version 1.18.0")
    assert host_tools.find("skopeo") is not None
    assert (Path(host_tools.environment()["PATH"].split(os.pathsep)[0]) / "skopeo").is_symlink()


@pytest.fixture
def temporary(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, on a machine where set-up's can't be written."""
    (machine / "file").touch()
    monkeypatch.setenv("SIFPROOF_TOOLS", str(machine / "file" / "tools"))
    monkeypatch.setattr(host_tools.tempfile, "tempdir", str(machine))
    program(machine / "bin", "skopeo", "skopeo version 1.18.0")
    return machine


def test_without_a_tools_folder_links_lie_where_nobody_else_can_write(temporary: Path) -> None:
    first = Path(host_tools.environment()["PATH"].split(os.pathsep)[0])
    assert first.parents[1] == temporary / f"sifproof-{os.geteuid()}"
    assert first.parents[1].stat().st_mode & 0o777 == 0o700
    assert (first / "skopeo").is_symlink()


@pytest.mark.parametrize("made", ["by another user", "open to all", "a link", "a file"])
def test_what_others_may_have_put_there_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    if made == "by another user":
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
    folder = temporary / f"sifproof-{os.geteuid()}"
    if made == "a link":
        (temporary / "elsewhere").mkdir()
        folder.symlink_to(temporary / "elsewhere")
    elif made == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777 if made == "open to all" else 0o700)
    with pytest.raises(SifproofError, match="open to other users"):
        host_tools.environment()
