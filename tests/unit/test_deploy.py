"""What of a config is in the rendered job."""

import hashlib
import json
from pathlib import Path

import pytest
from test_nomad_allocations import RAW

from sifproof import config
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.allocations import Allocation, parse_allocation
from sifproof.nomad.cluster import Cluster
from sifproof.nomad.job import META_RUN
from sifproof.nomad.node.oom import Kill
from sifproof.nomad.node.script import ProbeError
from sifproof.records import PlannedSandbox
from sifproof.run import Run
from sifproof.sandbox import tokens
from sifproof.workflow import deploy


def rendered_to(folder: Path) -> Path:
    """Where the job lies in the folder of a run."""
    output = folder / "jobs" / "box.json"
    output.parent.mkdir(exist_ok=True)
    return output


@pytest.mark.parametrize(("stopped_within_s", "killed_after_s"), [(3, 5), (10, 5), (40, 20)])
def test_a_server_has_half_of_the_time_to_stop_until_it_is_killed(tmp_path, stopped_within_s, killed_after_s):
    image = tmp_path / "box.json"
    made = {"source": "x", "digest": "x", "architecture": "amd64", "sif": "/x.sif", "sha256": "0" * 64}
    image.write_text(json.dumps({**made, "size_bytes": 1, "created": "2026-01-01T00:00:00Z"}))
    sandbox = {"driver": "singularity", "port": 20000}
    output = rendered_to(tmp_path)
    deploy.render_job(
        Run("r", tmp_path),
        PlannedSandbox(
            name="box", driver="singularity", image="x", slots=1, count=1, suites=[], job_id="sifproof-r-box"
        ),
        config.load({"sandboxes": {"box": sandbox}, "nomad": {"stopped_within_s": stopped_within_s}}),
        Cluster(address="http://127.0.0.1:1", version="", local=True),
        image=str(image),
        output=output,
    )
    task = json.loads(output.read_text())["Job"]["TaskGroups"][0]["Tasks"][0]
    assert task["KillTimeout"] == killed_after_s * 10**9
    assert f"timeout --foreground -k {killed_after_s} " in task["Config"]["args"][-1]


REFERENCE_SERVER = {"driver": "docker"}
TAKES_NONE = {
    "another command": {"driver": "docker", "command": ["python3", "/other/server.py"]},
    "another image": {"driver": "docker", "image": "docker-daemon:somebodys:1"},
    "turned off": {"driver": "docker", "tokens": False},
    "the plain line": {"driver": "singularity", "port": 20000, "containment": "plain"},
}


def render(folder: Path, sandbox: dict[str, object]) -> Path:
    image, output = folder / "image.json", rendered_to(folder)
    made = {"source": "x", "digest": "x"}
    if sandbox["driver"] == "docker":
        made |= {"id": "x", "name": "x", "layers": [], "seconds": {}}
    else:
        made |= {"architecture": "amd64", "sif": "/x.sif", "sha256": "0" * 64, "size_bytes": 1, "created": ""}
    image.write_text(json.dumps(made))
    deploy.render_job(
        Run("r", folder),
        PlannedSandbox(name="box", driver="docker", image="x", slots=1, count=1, suites=[], job_id="sifproof-r-box"),
        config.load({"sandboxes": {"box": sandbox}}),
        Cluster(address="http://127.0.0.1:1", version="", local=True),
        image=str(image),
        output=output,
    )
    return output


@pytest.mark.parametrize("sandbox", [REFERENCE_SERVER, {**TAKES_NONE["another image"], "tokens": True}])
def test_a_job_holds_the_hash_of_its_token_which_lies_beside_it_for_its_user_alone(tmp_path, sandbox):
    output = render(tmp_path, sandbox)
    token = tokens.read(output)
    assert (tmp_path / "tokens" / "box").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tokens").stat().st_mode & 0o777 == 0o700
    line = json.loads(output.read_text())["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]["args"][-1]
    assert line.split("--token-sha256 ")[1].split()[0] == hashlib.sha256(token.encode()).hexdigest()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and token in path.read_text()] == [
        tmp_path / "tokens" / "box"
    ]


def test_a_job_that_is_rendered_again_has_another_token(tmp_path):
    first = tokens.read(render(tmp_path, REFERENCE_SERVER))
    assert tokens.make(tmp_path / "jobs" / "box.json")
    assert tokens.read(tmp_path / "jobs" / "box.json") != first


@pytest.mark.parametrize("sandbox", TAKES_NONE.values(), ids=TAKES_NONE)
def test_a_server_that_may_not_know_the_option_gets_none(tmp_path, sandbox):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "box").write_text("of an earlier job")
    output = render(tmp_path, sandbox)
    assert "token" not in output.read_text()
    assert tokens.read(output) is None


def given(folder, **settings):
    task = {"Name": "s", "Driver": "raw_exec", "Config": {"command": "serve", "args": ["--slots", "2"]}}
    group = {"Name": "g", "Tasks": [task], "Networks": [{"DynamicPorts": [{"Label": "api"}]}]}
    (folder / "job.json").write_text(json.dumps({"ID": "agents", "TaskGroups": [group]}))
    return {"driver": "singularity", "job": str(folder / "job.json"), **settings}


def test_the_token_of_a_job_of_productions_comes_from_its_file(tmp_path):
    (tmp_path / "secret").write_text("let-me-in\n")
    output = render(tmp_path, given(tmp_path, job_token=str(tmp_path / "secret")))
    assert tokens.read(output) == "let-me-in"
    assert "let-me-in" not in output.read_text()
    assert tokens.read(render(tmp_path, given(tmp_path))) is None


@pytest.mark.parametrize("content", ["", "two words", "x" * 5000, "ü"])
def test_a_file_without_a_token_is_refused(tmp_path, content):
    (tmp_path / "secret").write_text(content)
    with pytest.raises(SifproofError) as raised:
        render(tmp_path, given(tmp_path, job_token=str(tmp_path / "secret")))
    assert raised.value.fault is Fault.CONFIGURATION
    assert content not in str(raised.value) or not content


def ended(*types: str) -> Allocation:
    """An allocation whose task has these events."""
    events = [{"Type": kind, "Time": number} for number, kind in enumerate(types, 1)]
    return parse_allocation({**RAW, "ClientStatus": "failed", "TaskStates": {"server": {"Events": events}}})


MUTE = SifproofError("The server ended by itself", why="exit code 135", fault=Fault.INFRASTRUCTURE)
JOB = {"Job": {"ID": "sifproof-r-box", "Meta": {META_RUN: "r"}}}


def judged(monkeypatch, allocations, killed) -> SifproofError:
    def kills(*_):
        if isinstance(killed, Exception):
            raise killed
        return killed

    monkeypatch.setattr(deploy, "get_job_allocations", lambda *_: allocations)
    monkeypatch.setattr(deploy, "kills", kills)
    return deploy._unless_starved(None, JOB, MUTE)


def test_a_server_that_dies_at_its_start_for_want_of_memory_is_the_configurations(monkeypatch):
    found = judged(monkeypatch, [ended("Started"), ended("Started", "Terminated")], [Kill("squashfuse_ll", 3.0)])
    assert (found.fault, found.todo) == (Fault.CONFIGURATION, "raise memory")
    assert "killed squashfuse_ll" in found.why and "exit code 135" in found.why


@pytest.mark.parametrize(
    ("allocations", "killed"),
    [
        ([], [Kill("tail", 1.0)]),
        ([ended("Started")], [Kill("tail", 1.0)]),
        ([ended("Started", "Killing", "Terminated")], [Kill("tail", 1.0)]),
        ([ended("Started", "Terminated")], []),
        ([ended("Started", "Terminated")], ProbeError("no way to the node")),
    ],
)
def test_else_what_was_seen_of_its_start_stands(monkeypatch, allocations, killed):
    assert judged(monkeypatch, allocations, killed) is MUTE
