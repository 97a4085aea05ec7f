"""Slots that reach each other, and sandboxes that are none: in the server, and in the job around it."""

from pathlib import Path

import defects
import pytest
from catalogue import control
from placed import red, verdicts

from sifproof.checks import registry
from sifproof.checks.isolation import slot

HERE = Path(__file__).parent
SUITES = ("isolation", "bubblewrap")
POLICY = {"off": ["isolation.host.*"]}
MODULES = ("defects.isolation_slot", "defects.bubblewrap")
SERVERS = {name: d.red for name, d in defects.load().items() if d.plant.__module__ in MODULES}
OPEN = SERVERS["bubblewrap-is-not-found"]

LINES = {
    "no-dev-full": (
        lambda line: line.replace("--bind /dev/full ", ""),
        OPEN,
        "`--bind /dev/full` is left out, without which bubblewrap can't make a `/dev` in Apptainer.",
    ),
}
TASKS = {
    "too-few-processes-for-all": (
        lambda config: config.update(pids_limit=150),
        ("isolation.slot.forks",),
        "The container may have 150 processes (`pids_limit`), and one slot may take all of them.",
    ),
    "too-small-a-disk-for-all": (
        lambda config: config.update(
            shm_size=48 * 2**20, args=[config["args"][0].replace('"$NOMAD_ALLOC_DIR/data"', "/dev/shm/data")]
        ),
        ("isolation.slot.disk",),
        "The workspaces are in the container's `/dev/shm`, which has 48 MiB, and one slot may fill it.",
    ),
}
for _name, (_, _red, _sentence) in (LINES | TASKS).items():
    control(_name, "job", *_red, sentence=_sentence)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(slot, "_HOLD_S", 0.3)
    monkeypatch.setattr(slot, "_PEAK_S", 0.3)


def looked_at(server, suites=SUITES) -> dict:
    return {check: v for check, v in verdicts(server, suites).items() if not check.startswith("isolation.host.")}


def messages(found) -> list[str]:
    return [f"{v.verdict} {check}: {v.message}" for check, v in found.items() if v.verdict != "pass"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_defect_of_the_server(house, name):
    settings = {"binds": [f"{HERE}:/planted:ro"], "command": ["python3", "/planted/defects", name]}
    with house.sandbox(name, policy=POLICY, **settings) as server:
        found = looked_at(server, {check.partition(".")[0] for check in SERVERS[name]})
    assert red(found) == set(SERVERS[name]), messages(found)


@pytest.mark.parametrize("name", LINES)
def test_a_defect_of_the_line_that_starts_apptainer(house, name):
    line, expected, _ = LINES[name]
    with house.sandbox(name, line=line, policy=POLICY) as server:
        found = looked_at(server)
    assert red(found) == set(expected), messages(found)


@pytest.mark.parametrize("name", TASKS)
def test_a_defect_of_the_task_in_docker(house, name):
    change, expected, _ = TASKS[name]

    def plant(job):
        change(job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"])

    with house.sandbox(name, driver="docker", nested_sandboxes=True, change=plant, policy=POLICY) as server:
        found = looked_at(server)
    assert red(found) == set(expected), messages(found)


def test_in_docker_all_is_green_and_required_with_nested_sandboxes(house):
    with house.sandbox("nested", driver="docker", nested_sandboxes=True, policy=POLICY) as server:
        found = looked_at(server)
    assert [v for v in found.values() if v.verdict != "pass" or not v.required] == []


def test_what_the_default_profile_of_docker_can_t_give_is_told_and_rejects_nothing(house):
    with house.sandbox("default-profile", driver="docker", policy=POLICY) as server:
        found = looked_at(server)
    given = {check for check, item in registry.load().items() if item.given_by}
    assert given == {check for check, v in found.items() if not v.required and v.verdict == "fail"}
    assert [f"{v.check}: {v.message}" for v in found.values() if v.required and v.verdict != "pass"] == []
