"""Slots that reach each other, and sandboxes that are none: in the server, and in the job around it."""

from pathlib import Path

import defects
import pytest
from catalogue import control
from checkout import ROOT
from placed import red, verdicts

from sifproof.checks.engine import registry
from sifproof.checks.isolation import slot

HERE = Path(__file__).parent
CONTAINMENT = ROOT / "sandbox" / "slotserver" / "containment.py"
SUITES = ("isolation", "bubblewrap")
POLICY = {"off": ["isolation.host.*"]}
MODULES = ("defects.isolation_slot", "defects.bubblewrap", "defects.reset")
PLANTED = {name: d for name, d in defects.load().items() if d.nomad and d.plant.__module__ in MODULES}
SERVERS = {name: d.red for name, d in PLANTED.items()}
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


CUT_BY_SECCOMP = """
import ctypes, os, struct, sys
connect = {"x86_64": 42, "aarch64": 203}[os.uname().machine]
# The number of the call; one further where it is connect(2): EPERM; else it is allowed.
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, connect), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
ctypes.CDLL(None).prctl(22, 2, struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def changed(tmp_path):
    """Settings of a sandbox whose server makes its bubblewrap of other words."""

    def change(*replacements):
        text = CONTAINMENT.read_text()
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "containment.py").write_text(text)
        return {
            "binds": [f"{tmp_path}/containment.py:/app/slotserver/containment.py:ro"],
            "environment": {"PYTHONPYCACHEPREFIX": "/nowhere"},  # not what the image has compiled
        }

    return change


def test_a_network_that_is_cut_without_a_name_space_is_cut(house, changed):
    settings = changed(
        ('*(() if network else ("--unshare-net",))', "*()"),
        ('"--", *command)', f'"--", *(() if network else ("python3", "-c", {CUT_BY_SECCOMP!r})), *command)'),
    )
    with house.sandbox("seccomp", policy=POLICY, **settings) as server:
        found = verdicts(server, {"bubblewrap"})["bubblewrap.no-network"]
    assert found.verdict == "pass"
    assert "could not reach 127.0.0.1:" in found.message


def test_what_takes_nothing_is_no_sign_of_a_limit(house, changed):
    settings = changed(
        ('"--dev", "/dev", "--tmpfs"', '"--dev", "/dev", "--ro-bind", "/dev/null", "/dev/zero", "--tmpfs"')
    )
    with house.sandbox("no-zeros", policy=POLICY, **settings) as server:
        found = looked_at(server, {"isolation"})
    assert {name for name, v in found.items() if v.verdict == "not-measured"} >= {"isolation.slot.memory"}
    assert "could take nothing" in found["isolation.slot.memory"].message


def test_the_limits_that_a_slot_did_not_meet_are_told(house):
    def limited(line):
        return line.replace("exec env", "exec prlimit --nproc=5000 env")

    with house.sandbox("limited", line=limited, policy=POLICY) as server:
        found = looked_at(server, {"isolation"})
    forks = found["isolation.slot.forks"].message
    assert "started 300 processes and met no limit" in forks
    assert forks.endswith("the node's limits to processes: pids.max unlimited, RLIMIT_NPROC 5,000")
    disk = found["isolation.slot.disk"].message
    assert "the node sets no limit to what a slot writes but the room of its file system" in disk
    assert "memory.max 128" in found["isolation.slot.memory"].message


def test_what_a_slot_keeps_is_there_before_another_looks_for_it(house):
    """However long it takes to make it."""
    now = "{ read at rest < /proc/uptime; echo made $at; }"
    with house.sandbox("slow", policy=POLICY) as server:
        seen = slot.beside(server, f"sleep 0.5; {now}", ":")
    made = next(float(line.split()[1]) for line in seen.held.output.splitlines() if line.startswith("made"))
    tried = next(float(line[1:]) for line in seen.tried.output.splitlines() if line.startswith("@"))
    assert made <= tried


@pytest.mark.parametrize("name", SERVERS)
def test_a_defect_of_the_server(house, name):
    settings = {"binds": [f"{HERE}:/planted:ro"], "command": ["python3", "/planted/defects", name], "tokens": True}
    driver = "docker" if PLANTED[name].docker else "singularity"
    with house.sandbox(name, driver=driver, policy=POLICY, **settings) as server:
        found = looked_at(server, {check.partition(".")[0] for check in SERVERS[name]})
    assert {check for check in red(found) if found[check].required} == set(SERVERS[name]), messages(found)


def test_an_answer_that_is_a_screen_is_not_taken_for_what_the_command_found(house):
    name = "a-screen-for-an-answer"
    settings = {"binds": [f"{HERE}:/planted:ro"], "command": ["python3", "/planted/defects", name]}
    with house.sandbox(name, policy=POLICY, **settings) as server:
        found = looked_at(server, {"bubblewrap", "reset"})
    assert red(found) == set(), messages(found)
    assert found["bubblewrap.require-stateful-sandbox"].verdict == "pass"


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
    given = {check for check, item in registry.load().items() if "nested_sandboxes" in item.given_by}
    assert given == {check for check, v in found.items() if not v.required and v.verdict == "fail"}
    assert [f"{v.check}: {v.message}" for v in found.values() if v.required and v.verdict != "pass"] == []
