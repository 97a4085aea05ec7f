"""Defects planted in sandboxes of real runs: each turns its own check red, and the exit code with it."""

import subprocess
import sys
from pathlib import Path

import defects
import pytest
import yaml
from checkout import DEAD_ENGINE, ROOT, wait_until

from sifproof.checks import teardown
from sifproof.checks.engine import registry
from sifproof.checks.engine.runner import Context, run_checks
from sifproof.nomad.node.leftovers import Process
from sifproof.nomad.ports import claim_block
from sifproof.nomad.static_port import answers
from sifproof.nomad.teardown import AllocationEnd

HERE = Path(__file__).parent
DEFECTS = defects.load()
SLOTS = 3
# Those of defects/ that are tried in whole runs too. The others: test_server_defects.py.
IN_WHOLE_RUNS = ["wrong-slot-count", "swallowed-exit-code", "lost-write"]
EXPECTED = {name: set(DEFECTS[name].red) for name in IN_WHOLE_RUNS}


def planted(defect: str, **settings) -> dict:
    """A sandbox of the reference image with a defect of ``defects``."""
    return {
        "driver": "singularity",
        "slots": SLOTS,
        "cpu": 100,
        "memory": 128,
        "binds": [f"{HERE}:/planted:ro"],
        "command": ["python3", "/planted/defects", defect],
        **settings,
    }


def run_with(checkout, sandboxes: dict[str, dict], **environment: str):
    """The outcome of a run of ``sandboxes``."""
    settings = {"sandboxes": sandboxes, "suites": ["health", "bash", "files"]}
    (checkout.root / "planted.yaml").write_text(yaml.safe_dump(settings))
    return checkout.gate("--configfile", "planted.yaml", **DEAD_ENGINE, **environment)


@pytest.fixture(scope="module")
def rejected(checkout):
    """One run, a sandbox for each defect."""
    return run_with(checkout, {name: planted(name) for name in EXPECTED})


@pytest.mark.parametrize("defect", EXPECTED)
def test_a_defect_rejects_its_sandbox(rejected, defect):
    assert rejected.red(defect) == EXPECTED[defect]
    assert rejected.standing(defect)["verdict"] == "rejected"
    reasons = [reason for reason in rejected.verdict["reasons"] if reason["sandbox"] == defect]
    assert {reason["check"] for reason in reasons} == EXPECTED[defect]
    assert {reason["fault"] for reason in reasons} == {"image"}


def test_a_defect_is_the_exit_code_of_the_run(rejected):
    assert rejected.exit_code == 1, rejected
    assert rejected.output.count("Rejected: ") == 1


@pytest.fixture(scope="module")
def foreign(checkout, tmp_path_factory):
    """A run of two sandboxes on static ports that a healthy server, unknown to Nomad, holds on this machine.

    The server of one ends for want of its port. That of the other lives on, and nobody would miss it.
    """
    block = claim_block()
    sandboxes, servers = {}, []
    try:
        for name, defect in (("crashes", "none"), ("lives-on", "never-listens")):
            port = block.static[len(servers)]
            where = ["--host", "127.0.0.1", "--port", str(port), "--slots", str(SLOTS), "--one-user"]
            servers.append(
                subprocess.Popen(
                    [sys.executable, "sandbox_server.py", *where, "--data-dir", tmp_path_factory.mktemp(name)],
                    cwd=ROOT / "sandbox",
                    stderr=subprocess.DEVNULL,
                )
            )
            wait_until(lambda port=port: answers("127.0.0.1", port, 1.0))
            sandboxes[name] = planted(defect, port=port)
        return run_with(checkout, sandboxes)
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)
        block.lock.close()


def test_a_foreign_server_on_the_static_port_is_found_out(foreign):
    assert foreign.exit_code == 3, foreign
    assert foreign.red("lives-on") == {"health.identity", "teardown.port-closed", "teardown.port-reusable"}
    assert "another server answers" in foreign.output
    assert foreign.standing("lives-on")["verdict"] == foreign.standing("crashes")["verdict"] == "infrastructure"
    # Whichever is seen first: that the stranger answers, or that the server has ended.
    crash = " ".join(reason["text"] for reason in foreign.verdict["reasons"] if reason["sandbox"] == "crashes")
    assert "another server answers" in crash or "ddress already in use" in crash
    # Nothing that a stranger answered counts for the image.
    checks = {v["check"]: v["verdict"] for v in foreign.verdicts if v["sandbox"] == "lives-on"}
    assert {checks[check] for check in registry.load() if check.startswith(("bash.", "files."))} == {"not-measured"}


GOOD_END = {
    "allocation": "a1",
    "node": "n1",
    "endpoint": "http://127.0.0.1:1",
    "port_closed_s": 0.1,
    "client_status": "complete",
    "terminal_s": 0.2,
    "exit_code": 143,
    "killed": False,
    "looked_at": True,
    "ended_s": 0.1,
    "processes": [],
    "mounts": [],
    "containers": [],
}


@pytest.mark.parametrize(
    ("check", "end", "purged"),
    [
        (None, {}, True),
        ("teardown.port-closed", {"port_closed_s": None}, True),
        ("teardown.port-closed", {"port_closed_s": 5.1}, True),
        ("teardown.stopped", {"terminal_s": None, "client_status": "running"}, True),
        ("teardown.stopped", {"terminal_s": 5.1}, True),
        ("teardown.graceful", {"killed": True, "exit_code": 137}, True),
        ("teardown.processes", {"processes": [Process(pid=7, command="sleep 600", by="environment")]}, True),
        ("teardown.fuse", {"processes": [Process(pid=7, command="/bin/squashfuse_ll -f x y", by="child")]}, True),
        ("teardown.port-reusable", {"port_taken": "Address already in use"}, True),
        ("teardown.mounts", {"mounts": ["/left"]}, True),
        ("teardown.mounts", {"containers": ["c0ffee server (running)"]}, True),
        ("teardown.purged", {}, False),
    ],
)
def test_each_check_of_the_teardown_turns_red(check, end, purged):
    ended = teardown.Ended(AllocationEnd(**{**GOOD_END, **end}), purged, 5.0)
    found = run_checks(registry.of_suite(registry.TEARDOWN), ended, Context("run", "box", "singularity"))
    assert {v.check for v in found if v.verdict == "fail"} == ({check} if check else set())
