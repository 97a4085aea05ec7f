"""Restarts, kills and full disks, of sandboxes that lose their data, don't come back, or don't say so."""

import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import defects
import pytest
import requests
from catalogue import CONTROLS, control
from checkout import wait_until
from defects.persistence import AFTER_A_KILL
from placed import answers, red, verdicts

from sifproof import config
from sifproof.checks import resilience
from sifproof.checks.engine import registry
from sifproof.nomad import job_copy
from sifproof.nomad.client import connect
from sifproof.nomad.node.signals import kill_server

HERE = Path(__file__).parent
SUITES = ("persistence", "resilience")
SMALLEST = ["submit-job", "read-job", "list-jobs", "read-logs", "read-fs"]
# Each takes a second or more of its own: tried on the defects that might concern it.
APART = (
    "resilience.stopped",
    "resilience.port-taken",
    "resilience.disk-full",
    "resilience.disk-full-kept",
    "resilience.agent",
)
SERVERS = {name: d.red for name, d in defects.load().items() if d.red[0].partition(".")[0] in SUITES}

DATA = '--bind "$NOMAD_ALLOC_DIR/data:/data"'
NEW = '"$NOMAD_TASK_DIR/new"'
LINES = {
    "a-slot-outside-the-allocation": (
        lambda line: line.replace(DATA, f'{DATA} --bind "$NOMAD_TASK_DIR:/data/slots/slot_2"'),
        ("persistence.in-allocation",),
        "The workspace of one slot is bound from a directory of the node that is not the allocation's.",
    ),
    "a-slot-made-anew": (
        lambda line: f"rm -rf {NEW} && mkdir {NEW} && {line.replace(DATA, f'{DATA} --bind {NEW}:/data/slots/slot_2')}",
        ("persistence.after-restart", "persistence.in-allocation", "resilience.killed-data"),
        "The workspace of one slot is bound from a directory that the task makes anew at each start.",
    ),
    "a-shell-outlives-the-server": (
        lambda line: line.replace("exec env -i", "env -i") + "\nsleep 600",
        ("resilience.killed",),
        "The task's shell goes on when the server has ended, so that Nomad never starts it again.",
    ),
    "dies-with-the-agent": (
        # $PPID is Nomad's executor, whose parent is the agent.
        lambda line: (
            "(above() { cut -d ' ' -f 4 /proc/$PPID/stat; }; agent=$(above);"
            ' while [ "$(above)" = "$agent" ]; do sleep 0.05; done; kill $$) &\n' + line
        ),
        ("resilience.agent",),
        "Something beside the server ends it when the node's Nomad agent has ended.",
    ),
}
for _name, (_, _red, _sentence) in LINES.items():
    _left = AFTER_A_KILL if "resilience.killed" in _red else ()
    control(_name, "job", *_red, sentence=_sentence, not_measured=_left)

SERVE = 'python3 /app/sandbox_server.py "$@"'
MUTE = control(
    "mute-about-its-port",
    "server",
    "resilience.port-taken",
    sentence="The server tries for ever to get its port when another has it, and says nothing.",
)
PORT_ONLY = {"off": ["persistence.*", "resilience.[!p]*"]}


def looked_at(expected) -> dict:
    return {"off": [check for check in APART if check not in expected]}


def impatient(server, ready_within_s):
    """For a server of which it is known that it does not come to what it is waited for."""
    nomad = server.placed.settings.nomad.model_copy(update={"ready_within_s": ready_within_s})
    server.placed.settings = server.placed.settings.model_copy(update={"nomad": nomad})


@pytest.mark.parametrize(
    ("name", "driver"),
    [
        *((name, "singularity") for name in SERVERS),
        *((name, "docker") for name in ("refuses-a-used-directory", "lost-on-a-full-disk")),
    ],
)
def test_a_defect_of_the_server(house, monkeypatch, name, driver):
    if name == "health-of-another-process":
        monkeypatch.setattr(resilience, "_WORKS_S", 2.0)
    with house.sandbox(
        name,
        driver=driver,
        command=["python3", "/planted/defects", name],
        binds=[f"{HERE}:/planted:ro"],
        policy=looked_at(SERVERS[name]),
        tokens=name == "no-token-when-it-starts-again",
    ) as server:
        assert red(verdicts(server, SUITES), CONTROLS[name].not_measured) == set(SERVERS[name])


@pytest.mark.parametrize("name", LINES)
def test_a_defect_of_the_job(house, name):
    line, expected, _ = LINES[name]
    with house.sandbox(name, line=line, policy=looked_at(expected)) as server:
        if name == "a-shell-outlives-the-server":
            impatient(server, 5.0)
        assert red(verdicts(server, SUITES), CONTROLS[name].not_measured) == set(expected)


def with_a_shell(line: str) -> dict:
    return {"command": ["sh", "-c", line, "sh"], "policy": PORT_ONLY}


def test_a_server_that_is_mute_about_its_port(house, monkeypatch):
    monkeypatch.setattr(resilience, "_TAKEN_S", 5.0)
    with house.sandbox(MUTE.name, **with_a_shell(f"until {SERVE} 2> /dev/null; do sleep 0.2; done")) as server:
        impatient(server, 5.0)
        found = verdicts(server, SUITES)
    assert red(found) == set(MUTE.red)
    assert "neither listens nor ends within 5 s" in found["resilience.port-taken"].message


def test_a_port_that_nobody_holds_any_more_is_shared_with_nobody(house):
    with house.sandbox("holds-no-more", policy=PORT_ONLY) as server:
        placed = server.placed
        assert kill_server(placed.node, placed.allocation.id, placed.port_inside)
        wait_until(lambda: not answers(server))
        found = verdicts(server, SUITES)
    assert red(found, ["resilience.port-taken"]) == set()
    taken = found["resilience.port-taken"]
    assert "the server that was to hold the port does not" in taken.message


@pytest.mark.parametrize(
    "line",
    [f"exec {SERVE} 2>&1", f"until {SERVE}; do sleep 0.2; done"],
    ids=["ends, and says why to stdout", "tries again, and says why"],
)
def test_a_server_may_say_in_its_own_way_that_its_port_is_taken(house, line):
    with house.sandbox("says-it", **with_a_shell(line)) as server:
        (found,) = verdicts(server, SUITES).values()
        assert server.bash("ls -A").output == ""
    assert found.verdict == "pass" and "in use" in found.message.lower()


@pytest.mark.parametrize("driver", ["singularity", "docker"])
def test_a_server_may_have_a_supervisor_of_its_own(house, driver):
    """Which starts it again before Nomad could: its task goes on."""
    line = f"while :; do {SERVE}; done"
    policy = {"off": ["persistence.*", "resilience.[!k]*"]}
    with house.sandbox("supervised", driver=driver, command=["sh", "-c", line, "sh"], policy=policy) as server:
        found = verdicts(server, SUITES)
    assert {check: v.verdict for check, v in found.items()} == {
        "resilience.killed": "pass",
        "resilience.killed-data": "pass",
        "resilience.killed-isolation": "pass",
    }, found
    assert "its own supervisor started it again" in found["resilience.killed"].message


def test_what_nomads_own_check_says_is_what_counts_as_seen(house, monkeypatch):
    """A check that asks something else than a stopped server never fails."""

    def another(job):
        let_nomad_check(job)
        job["Job"]["TaskGroups"][0]["Services"][0]["Checks"][0].update(Type="http", Path="/", PortLabel="other")
        job["Job"]["TaskGroups"][0]["Networks"][0]["ReservedPorts"] = [{"Label": "other", "Value": elsewhere}]

    let_nomad_check = job_copy.let_nomad_check
    monkeypatch.setattr(job_copy, "let_nomad_check", another)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    elsewhere = listening.server_port
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        with house.sandbox("checked", policy={"off": ["persistence.*", "resilience.[!s]*"]}) as server:
            (found,) = verdicts(server, SUITES).values()
    finally:
        listening.shutdown()
        listening.server_close()
    assert (found.verdict, found.check) == ("fail", "resilience.stopped")
    assert "Nomad's own check says success" in found.message


def memory_of(house, part: float) -> int:
    with house.cluster.connect(config.Nomad()) as client:
        # Not that of a second client, which Nomad may not have noticed to be gone.
        (node,) = (client.get("node", node["ID"]) for node in client.get("nodes") if node["Datacenter"] == "dc1")
    return int(node["NodeResources"]["Memory"]["MemoryMB"] * part)


def test_a_node_without_room_for_a_twin_is_not_the_servers_fault(house):
    with house.sandbox("large", memory=memory_of(house, 0.6), policy={"off": ["resilience.agent"]}) as server:
        found = verdicts(server, ["resilience"])
    assert {check: v.verdict for check, v in found.items()} == dict.fromkeys(found, "not-measured")
    assert "too little memory left" in found["resilience.port-taken"].message


def test_one_slot_of_a_server_that_writes_in_place(house):
    """To write a file anew that fills the disk frees it first: that would be no write to a full disk."""
    second = HERE.parent / "second_server"
    with house.sandbox(
        "one-slot",
        slots=1,
        binds=[f"{second}:/second:ro"],
        command=["python3", "/second/server.py"],
        policy={"off": ["persistence.*", "resilience.[!d]*"]},
    ) as server:
        found = verdicts(server, SUITES)["resilience.disk-full"]
    assert found.verdict == "pass", found


@pytest.mark.parametrize(("driver", "more"), [("singularity", {}), ("docker", {"read_only": True})])
def test_all_green_without_a_defect(house, driver, more):
    """On a node with room for the sandbox and one twin of it at a time."""
    memory = memory_of(house, 0.4)
    with house.sandbox(f"well-{driver}", driver=driver, memory=memory, **more) as server:
        found = verdicts(server, SUITES)
        assert found.keys() == {c for c, check in registry.load().items() if check.suite in SUITES} - (
            {"resilience.port-taken"} if driver == "docker" else set()
        )
        assert {check: verdict.message for check, verdict in found.items() if verdict.verdict != "pass"} == {}
        # Later stages find the server as it was.
        assert server.client.health()["status"] == "ok"
        twins = [job["ID"] for job in server.placed.nomad.get("jobs") if "-twin-" in job["ID"]]
        assert len(twins) <= 1, "those of the checks before the last are gone"


def test_what_the_smallest_token_does_not_allow(house):
    """On a cluster that others use too, with no right to restart tasks: told as what it is, and blamed on nobody."""
    with house.sandbox("few-rights", policy={"off": ["resilience.[!a]*"]}) as server:
        placed = server.placed
        headers = {"X-Nomad-Token": (Path(placed.cluster.directory) / "token").read_text()}
        rules = {"Name": "small", "Rules": f'namespace "default" {{ capabilities = {json.dumps(SMALLEST)} }}'}
        url = f"{placed.cluster.address}/v1/acl"
        requests.post(f"{url}/policy/small", json=rules, headers=headers, timeout=20).raise_for_status()
        wanted = {"Name": "small", "Type": "client", "Policies": ["small"]}
        made = requests.post(f"{url}/token", json=wanted, headers=headers, timeout=20).json()
        placed.cluster = placed.cluster.model_copy(update={"local": False})
        with connect(placed.cluster.address, token=made["SecretID"], environment={}) as placed.nomad:
            found = verdicts(server, SUITES)
    assert found["persistence.in-allocation"].verdict == "pass"
    for check in ("persistence.restart", "persistence.after-restart"):
        assert found[check].verdict == "not-measured" and found[check].required
        assert "lacks `alloc-lifecycle`" in found[check].message
    agent = found["resilience.agent"]
    assert (agent.verdict, agent.required) == ("not-measured", False)
    assert "nobody kills agents that others use" in agent.message
