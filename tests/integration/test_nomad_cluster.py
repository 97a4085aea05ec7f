"""A cluster that asks for a token: what is told to one who lacks it, and how little will do."""

import json
import subprocess

import pytest
import requests
from nomad_payload import LISTEN, bootstrap, clear_away, end_agent, new_id, shell_job, wait_until

from sifproof import config, host_tools
from sifproof.errors import SifproofError
from sifproof.nomad import nodes, submit, teardown
from sifproof.nomad.agent import local
from sifproof.nomad.client import connect
from sifproof.nomad.cluster import Cluster
from sifproof.nomad.ports import MARK, claim_block

# The smallest policy that a run needs.
POLICY = """
namespace "default" { capabilities = ["submit-job", "read-job", "list-jobs", "read-logs", "read-fs"] }
node { policy = "read" }
agent { policy = "read" }
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address and management token of an agent with access control, started by hand with the repository's config."""
    folder = tmp_path_factory.mktemp("acl")
    block = claim_block()
    http, rpc, serf = block.agent
    additions = {
        "data_dir": str(folder / "data"),
        "ports": {"http": http, "rpc": rpc, "serf": serf},
        "client": {"min_dynamic_port": block.dynamic[0], "max_dynamic_port": block.dynamic[1]},
        "acl": {"enabled": True},
    }
    (folder / "acl.json").write_text(json.dumps(additions))
    with (folder / "log").open("w") as log:
        agent = subprocess.Popen(
            [
                host_tools.require("nomad").path,
                "agent",
                "-dev",
                f"-config={local.CONFIGURATION}",
                f"-config={folder / 'acl.json'}",
            ],
            env={**host_tools.environment(), MARK: f"{folder}/"},
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{http}"
        token = bootstrap(address, agent)
        with connect(address, token=token, environment={}) as client:
            nodes.wait_for_node_ready(client, 60)
        yield address, token
    finally:
        end_agent(agent)
        left = clear_away(folder)
        block.lock.close()
    assert left == []


def small_token(cluster):
    """A token with no more rights than :data:`POLICY` gives."""
    address, token = cluster
    headers = {"X-Nomad-Token": token}
    name = new_id("policy")
    rules = {"Name": name, "Rules": POLICY}
    requests.post(f"{address}/v1/acl/policy/{name}", json=rules, headers=headers, timeout=60).raise_for_status()
    made = requests.post(
        f"{address}/v1/acl/token", json={"Type": "client", "Policies": [name]}, headers=headers, timeout=60
    )
    made.raise_for_status()
    return made.json()["SecretID"]


@pytest.mark.parametrize("token", [None, "11111111-2222-3333-4444-555555555555"])
def test_without_a_right_it_is_told_which_is_missing(cluster, token):
    with connect(cluster[0], token=token, environment={}) as client:
        for call in (lambda: submit.submit(client, shell_job(new_id(), LISTEN)), lambda: nodes.read_nodes(client)):
            with pytest.raises(SifproofError, match="does not permit it") as caught:
                call()
            assert "NOMAD_TOKEN" in caught.value.todo
            assert "capabilit" in caught.value.todo or "policy has" in caught.value.todo
            assert str(token) not in str(caught.value)


def test_the_smallest_policy_will_do_for_a_whole_run(cluster, tmp_path, monkeypatch):
    job_id = new_id()
    monkeypatch.setenv("NOMAD_ADDR", cluster[0])
    monkeypatch.setenv("NOMAD_TOKEN", small_token(cluster))
    assert Cluster(address=cluster[0], version="", local=False).is_here(config.Nomad())
    with connect() as client:
        assert client.version()
        assert nodes.check_driver_available(client, "singularity", "dc1")
        submit.submit(client, shell_job(job_id, 'echo told >&2; echo x > "$NOMAD_ALLOC_DIR/data/x"; ' + LISTEN))
        (allocation,) = submit.wait_for_allocations(client, job_id, 1, 60)
        assert client.file(allocation.id, "/alloc/data/x") == b"x\n"
        wait_until(lambda: "told" in client.logs(allocation.id, allocation.task))
        report = teardown.stop_and_verify(client, job_id, collect=tmp_path, deadline_s=60)
    assert report.purged
    (end,) = report.allocations
    assert end.looked_at
    assert end.processes == []
