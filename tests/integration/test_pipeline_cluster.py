"""A cluster that is given: it is used, nothing is started, nothing stays on it, and its token stays a secret."""

import contextlib
import json
import os
import subprocess

import pytest
import requests
import yaml
from checkout import DEAD_ENGINE, ROOT, SINGULARITY, children, command_line, descendants, environ, wait_until
from nomad_payload import LISTEN, bootstrap, clear_away, end_agent, new_id, shell_job

from sifproof import host_tools
from sifproof.nomad.ports import claim_block

# As docs/how-to/cluster.md tells people to write it.
POLICY = """
namespace "default" {
  capabilities = ["submit-job", "read-job", "list-jobs", "read-logs", "read-fs", "alloc-lifecycle"]
}
node { policy = "read" }
"""


class Cluster:
    """An agent as a person starts it from ``nomad-singularity.hcl``, with access control."""

    def __init__(self, address: str, agent: subprocess.Popen, management: str) -> None:
        self.address, self.agent, self._management = address, agent, management

    def ask(self, method: str, path: str, **body):
        answer = requests.request(
            method, f"{self.address}/v1/{path}", headers={"X-Nomad-Token": self._management}, timeout=60, **body
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def purge(self) -> None:
        """Forget every job: that of a run which a failing test killed must not fail the tests after it."""
        for job in self.ask("get", "jobs"):
            self.ask("delete", f"job/{job['ID']}", params={"purge": "true"})

    def token(self, *, without: str = "") -> str:
        """A token that may just what the documentation says is needed, or all but one of it."""
        name = f"sifproof-{without}"
        self.ask("post", f"acl/policy/{name}", json={"Name": name, "Rules": POLICY.replace(f'"{without}", ', "")})
        return self.ask("post", "acl/token", json={"Name": "gate", "Type": "client", "Policies": [name]})["SecretID"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    block = claim_block()
    http, rpc, serf = block.agent
    settings = {
        "acl": {"enabled": True},
        "data_dir": str(folder / "data"),
        "ports": {"http": http, "rpc": rpc, "serf": serf},
        "client": {"min_dynamic_port": block.dynamic[0], "max_dynamic_port": block.dynamic[1]},
    }
    (folder / "own.json").write_text(json.dumps(settings))
    environment = {k: v for k, v in host_tools.environment().items() if not k.startswith("NOMAD_")} | DEAD_ENGINE
    with (folder / "log").open("wb") as log:
        agent = subprocess.Popen(
            [
                host_tools.require("nomad").path,
                "agent",
                "-dev",
                f"-config={ROOT}/nomad-singularity.hcl",
                f"-config={folder}/own.json",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{http}"
        cluster = Cluster(address, agent, bootstrap(address, agent))
        wait_until(lambda: [n for n in cluster.ask("get", "nodes") if n["Status"] == "ready"], 60)
        yield cluster
    finally:
        end_agent(agent)
        clear_away(folder)
        block.lock.close()


@pytest.fixture(autouse=True)
def nothing_stays(cluster):
    yield
    cluster.purge()


@pytest.fixture(scope="module")
def secrets(cluster):
    return {"NOMAD_ADDR": cluster.address, "NOMAD_TOKEN": cluster.token(), **DEAD_ENGINE}


@pytest.fixture(scope="module")
def seen(checkout, cluster, secrets):
    """A run on the cluster, and the environment of every process that it made the agent start."""
    environments: dict[str, bytes] = {}
    agents = set()
    started = checkout.start(*SINGULARITY, **secrets)
    try:
        while started.keeper.poll() is None:
            for pid in descendants(cluster.agent.pid):
                if variables := environ(pid):
                    environments[command_line(pid)] = variables
            agents |= {pid for pid in descendants(started.keeper.pid) if "nomad agent" in command_line(pid)}
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.keeper.wait(0.05)
        return started.wait(), environments, agents
    except BaseException:
        started.end()
        cluster.purge()
        raise


def test_the_given_cluster_is_used_and_left_as_it_was(seen, cluster):
    outcome, _, agents = seen
    assert outcome.exit_code == 0, outcome
    assert agents == set()
    assert outcome.allocations("singularity")
    assert outcome.verdict["nomad"] == {
        "address": cluster.address,
        "version": outcome.verdict["nomad"]["version"],
        "local": False,
    }
    assert cluster.agent.poll() is None
    assert cluster.ask("get", "jobs") == []
    # Nomad's own helpers go when it forgets the allocation.
    cluster.ask("put", "system/gc")
    wait_until(lambda: children(cluster.agent.pid) == [])


def test_processes_and_mounts_of_a_cluster_on_this_machine_are_looked_at(seen):
    outcome, _, _ = seen
    words = {v["check"]: v["verdict"] for v in outcome.verdicts}
    assert words["teardown.processes"] == words["teardown.mounts"] == "pass"


def test_the_token_is_in_no_task_no_file_and_no_output(seen, checkout, secrets):
    outcome, environments, _ = seen
    token = secrets["NOMAD_TOKEN"].encode()
    servers = [v for command, v in environments.items() if "python3 /app/sandbox_server.py" in command]
    assert servers, sorted(environments)
    assert [command for command, variables in environments.items() if token in variables] == []
    assert token not in outcome.output.encode()
    holding = [
        path
        for folder in (checkout.results, checkout.root / ".snakemake")
        for path in folder.rglob("*")
        if path.is_file() and token in path.read_bytes()
    ]
    assert holding == []


def test_a_driver_that_no_node_has(checkout, secrets):
    before = checkout.reports()
    outcome = checkout.gate("--config", "driver=docker", **secrets)
    assert outcome.exit_code == 3, outcome
    assert "No node can run driver docker" in outcome.output
    assert {p.name for p in outcome.folder.iterdir()} <= {"logs", "faults", "plan.json"}
    assert checkout.reports() == before


def test_a_token_that_may_nothing(checkout, cluster):
    before = checkout.reports()
    outcome = checkout.gate(
        *SINGULARITY, **DEAD_ENGINE, NOMAD_ADDR=cluster.address, NOMAD_TOKEN="0" * 8 + "-0000" * 3 + "-" + "0" * 12
    )
    assert outcome.exit_code == 3, outcome
    assert "NOMAD_TOKEN" in outcome.output
    assert checkout.reports() == before


def test_a_token_with_a_carriage_return_is_in_no_file_and_no_output(checkout, cluster, secrets):
    outcome = checkout.gate(*SINGULARITY, **secrets | {"NOMAD_TOKEN": secrets["NOMAD_TOKEN"] + "\r"})
    assert outcome.exit_code == 2, outcome
    assert "a carriage return" in outcome.output
    token = secrets["NOMAD_TOKEN"].encode()
    assert token not in outcome.output.encode()
    assert [path for path in outcome.folder.rglob("*") if path.is_file() and token in path.read_bytes()] == []


def test_an_interrupted_run_leaves_no_job_on_the_cluster(checkout, cluster, secrets):
    started = checkout.start(*SINGULARITY, **secrets)
    try:
        started.reached("singularity.bash.log")
        os.killpg(started.group, 2)
        outcome = started.wait()
    finally:
        started.end()
    assert outcome.exit_code == 4
    assert [job for job in cluster.ask("get", "jobs") if job["Status"] != "dead"] == []
    assert checkout.reports() == {}


# Long enough that a run which waits for them does not pass: Nomad knows at once.
PATIENT = {"placed_within_s": 600, "ready_within_s": 600}


def run_with(checkout, secrets, **sandboxes):
    """A run of the health suite on ``sandboxes``."""
    common = {"driver": "singularity", "slots": 1, "cpu": 50, "memory": 64}
    settings = {"sandboxes": {n: common | s for n, s in sandboxes.items()}, "suites": ["health"], "nomad": PATIENT}
    (checkout.root / "several.yaml").write_text(yaml.safe_dump(settings))
    return checkout.gate("--configfile", "several.yaml", **secrets)


def reason(outcome, sandbox: str) -> str:
    """The first of the reasons why a sandbox is not accepted, in words."""
    return next(f"{r['text']} {r['todo']}" for r in outcome.verdict["reasons"] if r["sandbox"] == sandbox)


def test_static_ports_as_given_taken_and_too_few(checkout, cluster, secrets):
    block = claim_block()
    given, taken, twice, *_ = range(block.static[0], block.static[1] + 1)
    other = shell_job(new_id(), LISTEN, port=taken)
    cluster.ask("post", "jobs", json=other)
    try:
        wait_until(lambda: cluster.ask("get", f"job/{other['Job']['ID']}/allocations"))
        outcome = run_with(
            checkout, secrets, given={"port": given}, taken={"port": taken}, twice={"port": twice, "count": 2}
        )
    finally:
        cluster.ask("delete", f"job/{other['Job']['ID']}", params={"purge": "true"})
        block.lock.close()
    assert outcome.exit_code == 3, outcome
    assert outcome.standing("given")["verdict"] == "accepted"
    assert outcome.allocations("given")[0]["port"] == given
    assert f"static port {taken} is reserved by another allocation" in reason(outcome, "taken")
    assert f"static port {twice} is reserved by another allocation" in reason(outcome, "twice")
    assert "lower count" in reason(outcome, "twice")
    assert cluster.ask("get", "jobs") == [] or {job["Status"] for job in cluster.ask("get", "jobs")} == {"dead"}


def test_a_token_that_may_not_read_files_is_no_stranger_on_the_port(checkout, cluster, secrets):
    outcome = run_with(checkout, secrets | {"NOMAD_TOKEN": cluster.token(without="read-fs")}, box={})
    assert outcome.exit_code == 3, outcome
    (identity,) = [v for v in outcome.verdicts if v["check"] == "health.identity"]
    # Who listens on the port is not known then, and nobody is sent to look.
    assert identity["verdict"] == "not-measured"
    assert "does not permit it (file" in identity["message"] and "another server" not in identity["message"]
    assert "read-fs" in reason(outcome, "box")
    assert "listens" not in reason(outcome, "box")
    mended = run_with(checkout, secrets | {"NOMAD_TOKEN": cluster.token()}, box={})
    assert mended.exit_code == 0, mended


def test_a_server_that_ends_at_once_is_told_with_its_last_words(checkout, secrets):
    words = "the slots are on fire"
    outcome = run_with(
        checkout,
        secrets,
        crash={"command": ["python3", "-c", f"import sys; sys.exit({words!r})"]},
        none={"command": ["false"]},
    )
    assert outcome.exit_code == 1, outcome
    assert words in reason(outcome, "crash")
    assert "exit code 1" in reason(outcome, "none")
    assert {outcome.standing(name)["verdict"] for name in ("crash", "none")} == {"rejected"}
