"""Runs of the gate side by side in one checkout: each ends with its own verdict, and takes nothing from the other."""

import json

import pytest
from checkout import DEAD_ENGINE, SINGULARITY, Started

from sifproof.report.write import REPORTS


def test_two_at_once(checkout):
    # The id of the one begins with that of the other.
    started = [
        checkout.start(*SINGULARITY, f"suites={suites}", SIFPROOF_RUN=name, **DEAD_ENGINE)
        for name, suites in (("night", "health"), ("night-2", "health,files"))
    ]
    try:
        for one in started:
            one.keeper.wait(600)
        outcomes = [one.wait() for one in started]
    finally:
        for one in started:
            one.end()
    for outcome in outcomes:
        assert outcome.exit_code == 0, outcome
        assert outcome.verdict["run"] == outcome.run.id
        assert {path.name for path in (outcome.folder / "report").iterdir()} == set(REPORTS)
        # The path that its last words name is that of its own report, whoever was last.
        assert "Report: results/" in outcome.output
    files, health = ({v["suite"] for v in one.verdicts} for one in reversed(outcomes))
    assert (health, files) == ({"health", "teardown"}, {"health", "files", "teardown"})
    # In results/ lies the set of one of them, whole.
    kept = [{name: (one.folder / "report" / name).read_bytes() for name in REPORTS} for one in outcomes]
    assert checkout.reports() in kept
    assert {path.name for path in checkout.results.iterdir()} == {"README.md", "images", "runs", *REPORTS}


@pytest.mark.parametrize("arguments", [(), ("--no-hooks",)])
def test_an_id_that_there_was(checkout, arguments):
    taken = checkout.results / "runs" / "taken"
    taken.mkdir(parents=True, exist_ok=True)
    (taken / "gate.json").write_text('{"run": "taken", "exit_code": 0}')
    outcome = checkout.gate(*SINGULARITY, *arguments, SIFPROOF_RUN="taken", **DEAD_ENGINE)
    assert outcome.exit_code == 2, outcome
    assert "SIFPROOF_RUN=taken is the id of a run that there was" in outcome.output


def test_what_a_report_says_runs_it_again(checkout):
    # An image whose server does not start.
    file = checkout.root / "it's mine.yaml"
    file.write_text("sandboxes: {mine: {driver: singularity, command: [python3, /app/no server.py]}}\n")
    first = checkout.gate("--configfile", file.name, "--config", "suites=health", **DEAD_ENGINE)
    assert first.exit_code == 1, first
    told = first.output.partition("run again: ")[2].partition("\n")[0]
    assert told == first.verdict["command"]
    again = Started(checkout, ["sh", "-c", told], checkout.environment(**DEAD_ENGINE))
    try:
        second = again.wait()
    finally:
        again.end()
    assert second.exit_code == 1, second
    same = [json.loads((one.folder / "plan.json").read_text())["sandboxes"] for one in (first, second)]
    for sandbox in (sandbox for several in same for sandbox in several):
        del sandbox["job_id"]
    assert same[0] == same[1]
