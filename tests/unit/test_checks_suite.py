"""A suite is over when its checks are: what fails to be cleared away afterwards takes no verdict with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from report_samples import verdict

from sifproof import config
from sifproof.checks.engine import presence, suite
from sifproof.checks.engine.runner import Context
from sifproof.checks.engine.subject import Placement, Server
from sifproof.errors import Fault, SifproofError
from sifproof.records import PlannedSandbox, Verdict

ALLOCATION = {
    "id": "a1",
    "name": "a[0]",
    "job_id": "sifproof-r-box",
    "node_id": "n1",
    "node_name": "node",
    "task": "server",
    "address": "127.0.0.1",
    "port": 9,
    "ports": {"http": 9},
    "client_status": "running",
    "desired_status": "run",
    "failed": False,
    "created_ns": 1,
}


@pytest.mark.parametrize("failure", [OSError("the disk is gone"), RuntimeError("odd")])
def test_the_verdicts_stay_where_clearing_away_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    made = suite.server_of
    ended = []

    def never_ends(placement: Placement) -> Server:
        def end() -> None:
            raise failure

        server = made(placement)
        server.keep.callback(ended.append, "the rest")
        server.keep.callback(end)
        return server

    monkeypatch.setattr(suite, "server_of", never_ends)
    monkeypatch.setattr(presence, "_NOMAD_BACK_S", 0.0)  # nobody listens at its address
    files = {
        "nomad": {"address": "http://127.0.0.1:9", "version": "", "local": False},
        "endpoints": {"job_id": "sifproof-r-box", "allocations": [ALLOCATION], "seconds": {}, "healthy_s": {}},
        "job": {"Job": {"TaskGroups": [{"Tasks": [{"Name": "server"}]}]}},
        "image": {},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    planned = PlannedSandbox(
        name="box",
        driver="singularity",
        image="reference",
        slots=1,
        count=1,
        suites=["health"],
        job_id="sifproof-r-box",
        checks=["health.status", "health.slots"],
    )
    log = io.StringIO()
    verdicts = suite.run_suite(
        "health",
        planned,
        config.load({"sandboxes": {"box": {"driver": "singularity"}}}),
        run="r",
        **{name: tmp_path / name for name in files},
        earlier=[],
        log=log,
    )
    assert [(v.check, v.verdict) for v in verdicts] == [
        ("health.status", "not-measured"),
        ("health.slots", "not-measured"),
    ]
    assert ended == ["the rest"]
    assert f"could not all be ended: {failure}" in log.getvalue()
    assert "ids begin with sifproof-r-box" in log.getvalue()


class Starving:
    """Watches over an allocation of which processes were killed at ``times``; counts how often it was asked."""

    def __init__(self, *times: float) -> None:
        self.times, self.asked = times, 0

    def kills(self) -> list[tuple[float, str]]:
        self.asked += 1
        return [(at, "bwrap") for at in self.times]

    def starved(self, task: str) -> SifproofError:
        return SifproofError(f"The kernel killed {task}", todo="raise memory", fault=Fault.CONFIGURATION)


def judged(
    monkeypatch: pytest.MonkeyPatch, rows: list[Verdict], watch: Starving, seconds: float = 10.0
) -> list[Verdict]:
    """``rows``, each of which took so many ``seconds``, from 0 on."""
    clock = iter(range(1000))
    monkeypatch.setattr(suite.time, "monotonic", lambda: next(clock) * seconds)
    return suite.unless_starved(iter(rows), watch, Context("r", "box", "singularity"))


@pytest.mark.parametrize(
    ("row", "excused"),
    [
        ({"verdict": "fail"}, True),
        ({"verdict": "flaky"}, True),
        ({"verdict": "not-measured"}, True),
        ({"verdict": "fail", "required": False}, False),
        ({"verdict": "not-measured", "hindered": True, "fault": Fault.INFRASTRUCTURE}, False),
        ({"verdict": "waived"}, False),
        ({"verdict": "pass"}, False),
        ({"verdict": "measured"}, False),
    ],
)
def test_what_does_not_pass_while_memory_runs_out_is_the_jobs(monkeypatch, row, excused) -> None:
    given = verdict("bash.output", message="exit code 137", **row)
    watch = Starving(5.0)
    (seen,) = judged(monkeypatch, [given], watch)
    assert watch.asked == excused
    if excused:
        assert (seen.verdict, seen.hindered, seen.fault) == ("not-measured", True, Fault.CONFIGURATION)
        assert seen.message == "The kernel killed bwrap. Raise memory. The check had said: exit code 137"
    else:
        assert seen == given


def test_what_failed_before_memory_ran_out_or_after_it_stands(monkeypatch) -> None:
    rows = [verdict("bash.output", verdict="fail"), verdict("bash.stderr", verdict="fail")]
    for times in ((), (25.0,), (-5.0,)):
        assert judged(monkeypatch, rows, Starving(*times)) == rows
    first, second = judged(monkeypatch, rows, Starving(15.0))
    assert (first, second.fault) == (rows[0], Fault.CONFIGURATION)


def test_a_check_that_has_memory_run_out_on_purpose_is_not_excused_by_it(monkeypatch) -> None:
    rows = [verdict("isolation.slot.memory", verdict="fail")]
    assert judged(monkeypatch, rows, Starving(5.0)) == rows
