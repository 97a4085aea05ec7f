"""Scripts on nodes: what they print comes back whole, and where it does not, that is told as just that."""

import pytest
from nomad_payload import local_agent, new_id

from sifproof.nomad.node import script as on_node
from sifproof.nomad.node.script import Node, ProbeError, run_on_nodes
from sifproof.nomad.nodes import read_nodes


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with local_agent(tmp_path_factory.mktemp("nomad")) as agent, agent.connect() as connected:
        yield connected


@pytest.fixture
def node(client):
    (only,) = read_nodes(client)
    yield Node(client, only.id, only.name, run="t")
    assert [job["ID"] for job in client.get("jobs") if job["ID"].startswith("sifproof-t-probe-")] == []


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("printf 'one\\n\\n'; exit 0", "one\n\n"),
        ("exec printf 'no newline at the end'", "no newline at the end"),
        ("printf '%s' '${NOMAD_TASK_DIR}' # a comment", "${NOMAD_TASK_DIR}"),
        (":", ""),
    ],
)
def test_what_it_prints_and_no_more(node, script, printed):
    assert node.run(script) == printed


def test_a_script_that_fails(node):
    with pytest.raises(ProbeError, match="failed there: no luck"):
        node.run("echo no luck >&2; exit 3")


@pytest.mark.parametrize(
    "script",
    ['rm "$NOMAD_ALLOC_DIR"/logs/probe.stdout.0', "head -c 4500000 /dev/zero | tr '\\0' x"],
    ids=["lost", "too-much"],
)
def test_a_log_that_is_not_whole_is_no_answer(node, monkeypatch, script):
    monkeypatch.setattr(on_node, "_LOGGED_S", 0.5)
    with pytest.raises(ProbeError, match="did not arrive as a whole"):
        node.run(script)


def test_a_log_that_is_written_late_is_waited_for_on_every_node(client, monkeypatch):
    looks = []

    def late(allocation, task, stream="stderr", tail=0):
        looks.append(stream)
        log = read(allocation, task, stream, tail)
        return log[: len(log) * len(looks) // 4] if stream == "stdout" else log

    read = client.logs
    monkeypatch.setattr(client, "logs", late)
    (answer,) = run_on_nodes(client, "echo one; echo end", run="t")
    assert (answer.output, answer.fault) == ("one\nend\n", "")
    assert looks[:4] == ["stdout"] * 4
    looks.clear()
    (answer,) = run_on_nodes(client, "echo one; echo gone >&2; exit 3", run="t")
    assert (answer.output, "gone" in answer.fault) == ("one\n", True)


def test_a_log_that_is_not_whole_is_told_on_every_node(client, monkeypatch):
    monkeypatch.setattr(on_node, "_LOGGED_S", 0.5)
    (answer,) = run_on_nodes(client, 'echo one; rm "$NOMAD_ALLOC_DIR"/logs/probe.stdout.0', run="t")
    assert "did not arrive as a whole" in answer.fault
    (answer,) = run_on_nodes(client, "echo one; sleep 60", run="t", timeout_s=3)
    assert answer.output == "one\n"
    assert "the script is failed there" in answer.fault


def test_a_node_that_takes_no_script(client):
    nowhere = Node(client, "00000000-0000-0000-0000-000000000000", "nowhere", run=new_id())
    with pytest.raises(ProbeError, match=r"No script could be run on node nowhere: Nomad can't place 1 allocation"):
        nowhere.run("echo never")
    with pytest.raises(ProbeError, match="No script could be run on node nowhere"), nowhere.hold("x", ready="x"):
        pass


def test_a_script_that_ends_instead_of_being_held(node):
    with pytest.raises(ProbeError, match="ended by itself"), node.hold("exit 3", ready="ready"):
        pass


def test_a_job_that_nomad_does_not_take(client):
    (only,) = read_nodes(client)
    refused = Node(client, "${", only.name, run=new_id())
    client.namespace, namespace = "none-such", client.namespace
    try:
        with pytest.raises(ProbeError, match="No script could be run"):
            refused.run(":")
    finally:
        client.namespace = namespace


def test_what_a_caller_raises_is_left_as_it_is(node):
    with pytest.raises(ZeroDivisionError), node.hold("echo ready; sleep 60 & wait", ready="ready"):
        1 / 0  # noqa: B018


def test_a_script_that_is_slow_to_clear_away_what_it_made_may_do_so(node, tmp_path):
    made = tmp_path / "made"
    with node.hold(f"trap 'sleep 4; rm {made}' TERM; touch {made}; echo ready; sleep 60 & wait", ready="ready"):
        assert made.exists()
    assert not made.exists()
