"""No program gets the caller's environment: what is started anywhere in the project gets one that is made."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT

from sifproof import host_tools, variables
from sifproof.image import process, sif
from sifproof.nomad.agent import local
from sifproof.nomad.node import leftovers

# Who gets it whole, and why.
WHOLE = {
    ("src/sifproof/cli.py", "Popen", "environ"): "Snakemake is sifproof itself: settings of sites are for it",
    ("benchmarks/steady.py", "run", "{**os.environ, run.RUN_VARIABLE: this.id}"): "sifproof itself",
    ("tools/setup.py", "execv", ""): "set-up itself, by a newer Python",
    ("tools/rootless.py", "execvp", ""): "it becomes the command, in the environment that whoever started it made",
    ("tools/docker_engine.py", "Popen", "callers"): "the command that a person gave",
}
STARTS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput", "system", "popen"}
STARTS |= {"execv", "execvp", "execl", "execlp", "spawnv", "spawnvp", "posix_spawn", "posix_spawnp", "startfile"}
STARTS |= {"execve", "execvpe", "execle", "execlpe", "spawnve", "spawnvpe", "run_command"}
STARTS |= {"create_subprocess_exec", "create_subprocess_shell"}
MODULES = {"subprocess", "os", "asyncio", "pty"}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call that starts a program: file, call, name of the function."""
    for folder in ("src", "workflow", "tools", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = ""
                if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                    name = node.func.attr if node.func.value.id in MODULES else ""
                elif isinstance(node.func, ast.Name) and node.func.id in {"run_command", "Popen"}:
                    name = node.func.id
                if name in STARTS:
                    yield str(path.relative_to(ROOT)), node, name


def test_every_call_that_starts_a_program_says_which_environment_it_gets() -> None:
    found = list(calls())
    assert len(found) > 20
    wrong, whole = [], set()
    for file, call, name in found:
        given = next((ast.unparse(k.value) for k in call.keywords if k.arg in ("env", "environ")), "")
        if (file, name, given) in WHOLE:
            whole.add((file, name, given))
        elif not given or "os.environ" in given or given == "None":
            wrong.append(f"{file}:{call.lineno}: {name}, env={given or 'left out'}")
    assert wrong == []
    assert whole == set(WHOLE)


def test_no_rule_starts_a_shell() -> None:
    for path in [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:
        assert "shell:" not in path.read_text(encoding="utf-8"), path


HOSTILE = {
    "APPTAINER_FIXPERMS": "1",
    "APPTAINER_FAKEROOT": "1",
    "SINGULARITY_SANDBOX": "1",
    "BUILDAH_FORMAT": "docker",
    "STORAGE_DRIVER": "none",
    "CONTAINERS_CONF": "/nowhere",
    "SOURCE_DATE_EPOCH": "1",
    "SQFS_ANYTHING": "1",
    "LD_PRELOAD": "/nowhere.so",
    "PERL5LIB": "/nowhere",
    "GODEBUG": "1",
    "DOCKER_DEFAULT_PLATFORM": "linux/s390x",
    "LC_ALL": "de_DE.UTF-8",
    "LANGUAGE": "de",
    "NOMAD_TOKEN": "secret",
    "NOBODY_THOUGHT_OF_IT": "1",
}
MEANT = {"HTTPS_PROXY": "http://proxy", "DOCKER_HOST": "tcp://engine", "REGISTRY_AUTH_FILE": "/auth.json"}


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hostile caller, and programs of every name that write down what they get; a function that reads it."""
    (tmp_path / "bin").mkdir()
    for name, need in host_tools.NEEDS.items():
        for command in need.commands or (name,):
            program = tmp_path / "bin" / command
            program.write_text(f"#!/bin/sh\nenv -0 > {tmp_path}/{name}.$1\necho 'singularity-ce {need.says} 99.0.0'\n")
            program.chmod(0o755)
    for name, value in {**HOSTILE, **MEANT, "SIFPROOF_TOOLS": str(tmp_path / "tools")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")

    def read(file: str) -> dict[str, str]:
        words = (tmp_path / file).read_bytes().decode().split("\0")
        return dict(word.partition("=")[::2] for word in words if word)

    return read


def assert_made(got: dict[str, str], *meant: str) -> None:
    assert not {k: v for k, v in got.items() if HOSTILE.get(k) == v}
    assert got["LC_ALL"] == "C"
    assert {name for name in MEANT if name in got} == set(meant)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("apptainer", ()),
        ("mksquashfs", ()),
        ("nomad", ()),
        ("mmdebstrap", ("HTTPS_PROXY",)),
        ("skopeo", ("HTTPS_PROXY", "REGISTRY_AUTH_FILE")),
        ("buildah", ("HTTPS_PROXY", "REGISTRY_AUTH_FILE")),
        ("docker", ("HTTPS_PROXY", "DOCKER_HOST")),
    ],
)
def test_each_program_gets_what_it_needs_and_nothing_that_nobody_thought_of(seen, name, meant) -> None:
    process.run(name, ["run"], log=None, timeout_s=60, environment={"TMPDIR": "/ours"})
    process.capture(name, "capture")
    assert_made(seen(f"{name}.run"), *meant)
    assert_made(seen(f"{name}.capture"), *meant)
    assert seen(f"{name}.run")["TMPDIR"] == "/ours"
    # Also where it only says its version: what is chosen must not depend on it either.
    assert_made(seen(f"{name}.{host_tools.NEEDS[name].version[0]}"), *meant)


def test_programs_that_are_started_in_other_ways(seen, tmp_path: Path) -> None:
    sif.read_labels(tmp_path / "x.sif")
    assert_made(seen("apptainer.inspect"))
    (tmp_path / "docker.ps").touch()
    with pytest.raises(ValueError, match="Expecting value"):
        leftovers.find_containers("x", str(tmp_path / "bin" / "docker"))
    assert_made(seen("docker.ps"), "HTTPS_PROXY", "DOCKER_HOST")
    leftovers.remove_container("x", str(tmp_path / "bin" / "docker"))
    assert_made(seen("docker.rm"), "HTTPS_PROXY", "DOCKER_HOST")


def test_a_local_agent_and_so_its_tasks_get_no_setting_of_a_tool(seen) -> None:
    assert_made(local.handed_on(), "DOCKER_HOST")


def test_an_empty_environment_is_enough() -> None:
    assert variables.of("skopeo", {}) == {"PATH": os.defpath, "LC_ALL": "C"}
