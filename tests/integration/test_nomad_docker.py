"""Sandboxes under Nomad's docker driver, with a real Docker engine (``make test`` starts one where none answers)."""

import os
import subprocess

import pytest
import requests
from nomad_payload import BINDS, COMMAND, import_image, local_agent, new_id, wait_until

from sifproof import host_tools
from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Ended
from sifproof.checks.teardown import mounts
from sifproof.errors import SifproofError
from sifproof.nomad import nodes, submit, teardown
from sifproof.nomad.allocations import get_job_allocations
from sifproof.nomad.job import create_sandbox_job
from sifproof.nomad.node import leftovers

IMAGE = "sifproof-payload:1"


def docker(*words):
    return subprocess.run(
        [host_tools.require("docker").path, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    import_image(tmp_path_factory.mktemp("image"), IMAGE)
    yield IMAGE
    docker("rmi", "--force", IMAGE)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    with local_agent(tmp_path_factory.mktemp("nomad")) as started:
        yield started


@pytest.fixture
def client(agent):
    with agent.connect() as connected:
        yield connected
        for left in connected.get("jobs"):
            connected.deregister(left["ID"], purge=True)


def sandbox(job_id, image=IMAGE, **changes):
    arguments = {"driver": "docker", "command": COMMAND, "binds": BINDS, "cpu": 50, "memory": 64, "kill_timeout_s": 30}
    return create_sandbox_job(job_id, image, **arguments | changes)


def run(client, job):
    submit.submit(client, job)
    (allocation,) = submit.wait_for_allocations(client, job["Job"]["ID"], 1, 60)
    return allocation


def stop(client, job_id, folder):
    return teardown.stop_and_verify(client, job_id, collect=folder / "collected", deadline_s=60)


def answer(allocation):
    def ask():
        try:
            return requests.get(allocation.url, timeout=30).json()
        except requests.ConnectionError:
            return None

    return wait_until(ask)


@pytest.mark.parametrize("port", ["auto", 9000])
def test_a_sandbox_runs_on_a_dynamic_port_and_is_gone_after_the_stop(client, image, tmp_path, port):
    assert nodes.check_driver_available(client, "docker", "dc1")
    job_id = new_id()
    words = ["a b", "$(id)", "${node.unique.id}", "%{x}", "q'\"", "$HOME"]
    allocation = run(
        client, sandbox(job_id, port=port, command=[*COMMAND, *words], environment={"GREETING": "a,b=$(id)"})
    )
    said = answer(allocation)
    assert said["words"] == words
    assert said["cwd"] == "/app"
    assert said["environment"]["GREETING"] == "a,b=$(id)"
    assert said["environment"]["NOMAD_PORT_http"] == ("9000" if port == 9000 else "8080")
    assert allocation.port not in (8080, 9000)
    assert client.file(allocation.id, "/alloc/data/started") == b"by the server"
    (end,) = stop(client, job_id, tmp_path).allocations
    assert end.looked_at
    assert (end.processes, end.mounts, end.containers) == ([], [], [])
    assert end.port_closed_s is not None
    assert not end.killed
    assert docker("ps", "--all", "--quiet", "--filter", f"label=com.hashicorp.nomad.alloc_id={allocation.id}") == ""


def test_an_engine_that_does_not_tell_has_not_been_looked_at(client, image, tmp_path, monkeypatch):
    allocation = run(client, sandbox(new_id()))
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/engine.sock")
    with pytest.raises(SifproofError, match=r"did not answer: .*/no/engine.sock"):
        leftovers.find_containers(allocation.id, str(host_tools.require("docker").path))
    (end,) = teardown.stop_and_verify(client, allocation.job_id, collect=tmp_path, local=True).allocations
    assert "/no/engine.sock" in end.containers_unseen
    ended = Ended(end, purged=True, stopped_within_s=10)
    with pytest.raises(NotMeasured, match=r"could not be looked at.*/no/engine.sock"):
        mounts(ended)


def test_a_forgotten_job_ends_by_itself(client, image, tmp_path):
    job_id = new_id()
    submit.submit(client, sandbox(job_id, lifetime_s=1.5))
    ended = wait_until(lambda: next((a for a in get_job_allocations(client, job_id) if a.terminal), None))
    assert "lifetime" in str(submit.failure_of(client, ended))
    wait_until(lambda: client.get("job", job_id)["Status"] == "dead")
    assert stop(client, job_id, tmp_path).purged


@pytest.fixture
def bare(tmp_path):
    """What makes an image one with sleep(1) and without timeout(1)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sleep").symlink_to("/usr/bin/sleep")
    return {"binds": [*BINDS, f"{tmp_path}/bin:/bare:ro"], "environment": {"PATH": "/bare"}}


def test_a_forgotten_job_ends_by_itself_in_an_image_without_timeout(client, image, bare):
    job_id = new_id()
    submit.submit(client, sandbox(job_id, lifetime_s=1.5, **bare))
    ended = wait_until(lambda: next((a for a in get_job_allocations(client, job_id) if a.terminal), None))
    assert "lifetime" in str(submit.failure_of(client, ended))


def test_a_server_in_an_image_without_timeout_is_told_to_end(client, image, tmp_path, bare):
    job_id = new_id()
    assert answer(run(client, sandbox(job_id, **bare)))["cwd"] == "/app"
    (end,) = stop(client, job_id, tmp_path).allocations
    assert not end.killed
    assert end.processes == []


def test_privileged_is_permitted(client, image):
    allocation = run(client, sandbox(new_id(), privileged=True))
    (container,) = leftovers.find_containers(allocation.id, str(host_tools.require("docker").path))
    assert docker("inspect", "--format", "{{.HostConfig.Privileged}}", container.split()[0]) == "true"


def test_an_image_that_is_not_there(client):
    submit.submit(client, sandbox("missing", image="sifproof.invalid/no-such:1"))
    with pytest.raises(SifproofError, match="could not start") as caught:
        submit.wait_for_allocations(client, "missing", 1, 60)
    assert "make the image available" in caught.value.todo


def test_a_command_that_is_not_in_the_image(client, image):
    job = sandbox(new_id(), command=["no-such-program"])
    submit.submit(client, job)
    with pytest.raises(SifproofError) as caught:
        submit.wait_for_allocations(client, job["Job"]["ID"], 1, 60)
        wait_until(lambda: any(a.terminal for a in get_job_allocations(client, job["Job"]["ID"])))
        submit.check_alive(client, get_job_allocations(client, job["Job"]["ID"]))
    assert "exit code 127" in str(caught.value)


def test_a_container_that_a_killed_agent_leaves_is_removed(tmp_path_factory, image):
    folder = tmp_path_factory.mktemp("killed")
    with local_agent(folder) as own:
        with own.connect() as client:
            allocation = run(client, sandbox("left"))
        label = f"label=com.hashicorp.nomad.alloc_id={allocation.id}"
        assert docker("ps", "--quiet", "--filter", label)
        os.kill(own.agent, 9)
        wait_until(lambda: not own.directory.exists())
        assert docker("ps", "--all", "--quiet", "--filter", label) == ""


def test_images_are_not_nomads_to_delete(client):
    (plugin,) = [p for p in client.get("agent", "self")["config"]["Plugins"] if p["Name"] == "docker"]
    assert plugin["Config"]["gc"] == [{"image": False}]
