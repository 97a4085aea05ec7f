"""What is measured of a sandbox that is slow, and held against limits."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from catalogue import control
from checkout import wait_until
from placed import red, verdicts

from sifproof import config
from sifproof.checks import performance
from sifproof.checks.engine import registry
from sifproof.errors import Fault

ROOMY = {check.id: "30 s" if check.unit == "s" else "1 /s" for check in registry.of_suite("performance")}
LATE_S = 1.5

CALLS = control(
    "slow-calls",
    "server",
    "performance.exec-p50",
    "performance.exec-p95",
    "performance.throughput",
    sentence="Each call takes 30 ms more than its command.",
)
SERVER = control(
    "slow-server",
    "image",
    "performance.ready",
    "performance.submit-to-healthy",
    sentence=f"The server takes {LATE_S} s before it listens.",
)
NODE = control(
    "slow-node",
    "node",
    "performance.start",
    "performance.submit-to-healthy",
    sentence=f"The node waits {LATE_S} s for a download before it starts the task.",
)
SCHEDULER = control(
    "slow-scheduler",
    "node",
    "performance.place",
    "performance.submit-to-healthy",
    sentence=f"Nomad's servers let the job wait {LATE_S} s before they place it.",
)

SLOW_CALLS = """
import asyncio, sandbox_server
from slotserver.slots import Slots
execute = Slots.execute
async def late(self, call):
    await asyncio.sleep(0.03)
    return await execute(self, call)
Slots.execute = late
sandbox_server.main()
"""


def limited(**limits: str) -> dict[str, str]:
    """Limits by the last part of their check's id, and so much room for all others that no load exceeds it."""
    return ROOMY | {f"performance.{name.replace('_', '-')}": limit for name, limit in limits.items()}


@pytest.fixture
def few(monkeypatch):
    """Few calls, where another thing is looked at."""
    for name, value in (("SAMPLES", 10), ("_FEWEST", 5), ("_WINDOW_S", 0.2)):
        monkeypatch.setattr(performance, name, value)


@pytest.fixture(scope="module")
def quick(house):
    with house.sandbox("quick") as server:
        yield server


def test_all_is_measured_and_without_limits_not_judged(quick):
    found = verdicts(quick, ["performance"])
    assert found.keys() == ROOMY.keys()
    assert [v for v in found.values() if v.verdict != "measured" or v.value is None or v.limit is not None] == []
    value = {check.removeprefix("performance."): v.value for check, v in found.items()}
    assert all(amount > 0 for amount in value.values())
    # The phases add up to the whole, and none of them is more.
    assert value["place"] + value["start"] + value["ready"] == pytest.approx(value["submit-to-healthy"])
    assert value["exec-p50"] <= value["submit-to-healthy"] < 30


def test_slow_calls(house, few):
    limits = limited(exec_p50="25 ms", exec_p95="25 ms", throughput="80 /s")
    with house.sandbox("slow-calls", command=["python3", "-c", SLOW_CALLS], limits=limits) as server:
        found = verdicts(server, ["performance"])
    assert red(found) == set(CALLS.red), found
    # Each takes samples of its own.
    assert min(found["performance.exec-p95"].value, found["performance.exec-p50"].value) >= 0.03
    assert found["performance.throughput"].value <= server.slots / 0.03


def test_a_slow_server(house, few):
    late = ["sh", "-c", f'sleep {LATE_S}; exec python3 /app/sandbox_server.py "$@"', "sh"]
    limits = limited(ready=f"{LATE_S} s", submit_to_healthy=f"{LATE_S} s")
    with house.sandbox("slow-server", command=late, limits=limits) as server:
        found = verdicts(server, ["performance"])
    assert red(found) == set(SERVER.red), found


def test_a_slow_node(house, few):
    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(LATE_S)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    def fetching(job):
        url = f"http://127.0.0.1:{source.server_port}/nothing"
        job["Job"]["TaskGroups"][0]["Tasks"][0]["Artifacts"] = [{"GetterSource": url, "RelativeDest": "local/"}]

    source = ThreadingHTTPServer(("127.0.0.1", 0), Late)
    threading.Thread(target=source.serve_forever, daemon=True).start()
    limits = limited(start=f"{LATE_S} s", submit_to_healthy=f"{LATE_S} s")
    try:
        with house.sandbox("slow-node", change=fetching, limits=limits) as server:
            found = verdicts(server, ["performance"])
    finally:
        source.shutdown()
        source.server_close()
    assert red(found) == set(NODE.red), found


@contextmanager
def paused(house):
    """Nomad's servers, with work that waits for :data:`LATE_S` seconds from now on."""
    with house.cluster.connect(config.Nomad()) as client:
        url = f"{client.address}/v1/operator/scheduler/configuration"
        headers = {"X-Nomad-Token": client._endpoints["job"].token or ""}
        usual = requests.get(url, headers=headers, timeout=10).json()["SchedulerConfig"]

    def pause(on: bool) -> None:
        requests.put(url, headers=headers, timeout=10, json=usual | {"PauseEvalBroker": on}).raise_for_status()

    pause(True)
    timer = threading.Timer(LATE_S, pause, [False])
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_a_slow_scheduler(house, few):
    limits = limited(place=f"{LATE_S / 2} s", submit_to_healthy=f"{LATE_S / 2} s")
    with ExitStack() as pause:
        # Not before the job is ready to be submitted.
        changed = {"change": lambda _: pause.enter_context(paused(house))}
        with house.sandbox("slow-scheduler", **changed, limits=limits) as server:
            found = verdicts(server, ["performance"])
    assert red(found) == set(SCHEDULER.red), found


def placed(server, **changes):
    """``server`` with another allocation or other times at submission."""
    endpoints = server.placed.endpoints.model_copy(update={k: v for k, v in changes.items() if k == "healthy_s"})
    allocation = server.placed.allocation.model_copy(update={k: v for k, v in changes.items() if k != "healthy_s"})
    return replace(server, placement=replace(server.placed, endpoints=endpoints, allocation=allocation))


PHASES = ("performance.place", "performance.start", "performance.ready", "performance.submit-to-healthy")


def test_clocks_that_contradict_themselves_are_told(quick, few):
    early = placed(quick, created_ns=quick.placed.allocation.created_ns - 10**10)
    found = {check: v for check, v in verdicts(early, ["performance"]).items() if check in PHASES}
    assert {check for check, v in found.items() if v.verdict == "not-measured"} == {PHASES[0], PHASES[2]}
    assert "the clock was set meanwhile" in found["performance.place"].message
    # However far the clock of the node is from the others, nothing changes: its stamps are compared with each other.
    events = tuple(e.model_copy(update={"time_ns": e.time_ns + 10**13}) for e in quick.placed.allocation.events)
    ahead = verdicts(placed(quick, events=events), ["performance"])
    assert {ahead[check].verdict for check in PHASES} == {"measured"}
    assert ahead["performance.start"].value < 30


@pytest.mark.parametrize(
    ("phase", "fault"),
    [("place", Fault.INFRASTRUCTURE), ("start", Fault.INFRASTRUCTURE), ("ready", Fault.IMAGE)],
)
def test_who_has_to_act_for_a_late_answer_is_told_by_the_phase_that_took_longest(quick, few, phase, fault):
    """Of a sandbox whose times are made so that one phase is an hour longer."""
    allocation, hour_ns = quick.placed.allocation, 3600 * 10**9
    changes = {"healthy_s": {allocation.id: quick.placed.endpoints.healthy_s[allocation.id] + 3600}}
    if phase == "place":
        changes["created_ns"] = allocation.created_ns + hour_ns
    if phase == "start":
        later = {"Started": hour_ns}
        changes["events"] = tuple(
            e.model_copy(update={"time_ns": e.time_ns + later.get(e.type, 0)}) for e in allocation.events
        )
    late = placed(quick, **changes)
    late.placed.sandbox = late.placed.sandbox.model_copy(update={"limits": limited()})
    found = verdicts(late, ["performance"])
    assert red(found) == {f"performance.{phase}", "performance.submit-to-healthy"}
    assert {found[check].fault for check in red(found)} == {fault}


def test_a_server_that_took_too_long_is_not_ready_and_not_measured(quick, few):
    late = placed(quick, healthy_s={})
    found = verdicts(late, ["performance"])
    assert {(found[check].verdict, found[check].required) for check in PHASES[2:]} == {("not-measured", True)}
    ready = verdicts(late, ["health"])["health.ready"]
    assert (ready.verdict, ready.message) == ("fail", "no healthy answer within 60 s; now there is one")


def test_too_few_calls_are_not_measured(quick, monkeypatch):
    monkeypatch.setattr(performance, "_WITHIN_S", 0.01)
    monkeypatch.setattr(performance, "_WINDOW_S", 0.01)
    found = verdicts(quick, ["performance"])
    rare = {check for check, v in found.items() if v.verdict == "not-measured"}
    assert rare == {"performance.exec-p50", "performance.exec-p95", "performance.throughput"}
    assert all("too few to tell" in found[check].message and found[check].required for check in rare)


def test_a_slot_that_is_lost_is_left_out(quick, few):
    placed = quick.placed
    allocation = Path(placed.cluster.directory) / "data/alloc" / placed.allocation.id
    go = allocation / "alloc/data" / quick.workspace() / "go"
    with ThreadPoolExecutor(1) as caller:
        busy = caller.submit(quick.bash, "until [ -e go ]; do sleep 0.1; done; rm go", slot=0, timeout_s=120)
        try:
            wait_until(lambda: 0 not in quick.idle())
            found = verdicts(quick, ["performance"])
            assert not busy.done()
        finally:
            # A file of the slot: the server would have the tool wait for the command.
            go.touch()
    assert {v.verdict for v in found.values()} == {"measured"}
    assert f"of {quick.slots - 1} slots" in found["performance.throughput"].message
