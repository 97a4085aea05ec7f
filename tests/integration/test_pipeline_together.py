"""Runs of the gate side by side in one checkout: each ends with its own verdict, and takes nothing from the other."""

import pytest
from checkout import DEAD_ENGINE, SINGULARITY

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
