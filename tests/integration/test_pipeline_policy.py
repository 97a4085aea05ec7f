"""Policy, waivers and limits of the config, through the whole pipeline, on sandboxes that do have a defect."""

import csv

import pytest
import yaml
from checkout import DEAD_ENGINE, ROOT

DEFECT = "swallowed-exit-code"
RED = "bash.exit-code"
SLOW = "performance.exec-p95"


def planted(**settings) -> dict:
    return {
        "driver": "singularity",
        "binds": [f"{ROOT}/tests/controls:/planted:ro"],
        "command": ["python3", "/planted/defects", DEFECT],
        **settings,
    }


@pytest.fixture(scope="module")
def seen(checkout):
    """One run: the same defect, waived and waived no longer."""
    sandboxes = {
        "lenient": planted(
            slots=2,
            policy={"advisory": [SLOW], "off": ["bash.parallel", "performance.*-p50"]},
            waivers=[
                {"check": RED, "reason": "ticket 7", "until": "2099-12-31"},
                {"check": "bash.output", "reason": "ticket 8", "until": "2020-01-01"},
                {"check": "storage.*", "reason": "ticket 10", "until": "2020-01-01"},
            ],
            limits={SLOW: "0.1 ms", "performance.throughput": "1 /min"},
        ),
        "strict": planted(slots=2, waivers=[{"check": "bash.*", "reason": "ticket 9", "until": "2020-01-01"}]),
    }
    text = yaml.safe_dump({"sandboxes": sandboxes, "suites": ["bash", "performance"]})
    # Days as YAML has them, and the word `off` as people write it.
    text = text.replace("'2099-12-31'", "2099-12-31").replace("'2020-01-01'", "2020-01-01").replace("'off'", "off")
    (checkout.root / "policy.yaml").write_text(text)
    return checkout.gate("--configfile", "policy.yaml", **DEAD_ENGINE)


def test_the_same_failure_is_judged_as_each_config_says(seen):
    assert seen.exit_code == 1, seen
    assert {name: seen.standing(name)["verdict"] for name in ("lenient", "strict")} == {
        "lenient": "accepted",
        "strict": "rejected",
    }, seen
    assert {(r["sandbox"], r["check"]) for r in seen.verdict["reasons"]} == {("strict", RED)}
    found = {(v["sandbox"], v["check"]): v for v in seen.verdicts}
    assert found["lenient", RED]["verdict"] == "waived"
    assert found["lenient", RED]["message"].startswith("waived until 2099-12-31 (ticket 7); fail: ")
    assert found["strict", RED]["message"].startswith("its waiver ended on 2020-01-01 (ticket 9); ")
    slow = found["lenient", SLOW]
    assert (slow["verdict"], slow["required"], slow["limit"]) == ("fail", "False", "0.0001")
    assert float(found["lenient", "performance.throughput"]["limit"]) == pytest.approx(1 / 60)
    # The other sandbox has no limit: it is measured, and not judged.
    assert (found["strict", SLOW]["verdict"], found["strict", SLOW]["limit"]) == ("measured", "")
    assert {check for box, check in found if box == "strict"} - {check for box, check in found if box == "lenient"} == {
        "bash.parallel",
        "performance.exec-p50",
    }


def test_every_report_says_so(seen):
    report = seen.folder / "report"
    states = {(t["sandbox"], t["check"]): t["state"] for t in seen.verdict["terms"]["waivers"]}
    assert (states["lenient", RED], states["strict", RED]) == ("used", "expired")
    assert states["lenient", "bash.output"] == states["strict", "bash.output"] == "no longer needed"
    assert states["lenient", "storage.*"] == "not looked at"
    with (report / "summary.tsv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream, delimiter="\t") if row["sandbox"] == "lenient")
    assert (row["waived"], row["advisory"], row["off"]) == ("1", "1", "2")
    assert float(row["waited_s"]) > 0
    for words in (
        "waiver lenient: bash.exit-code until 2099-12-31, used (ticket 7)",
        "waiver lenient: storage.* ended on 2020-01-01, not looked at, expired (ticket 10)",
        "advisory lenient: performance.exec-p95",
        "off lenient: bash.parallel, performance.exec-p50",
    ):
        assert words in seen.output
    page = (report / "report.html").read_text()
    assert "On which terms" in page
    assert "ticket 9" in page
    assert "ticket 10" in page
    assert "limit.performance.exec-p95" in (report / "junit.xml").read_text()


def test_terms_on_the_command_line(checkout):
    words = (
        f'sandboxes={{"box": {{"driver": "singularity", "slots": 2, "privileged": false, '
        f'"binds": ["{ROOT}/tests/controls:/planted:ro"], '
        f'"command": ["python3", "/planted/defects", "{DEFECT}"], "policy": {{"off": ["bash.parallel"]}}, '
        f'"waivers": [{{"check": "{RED}", "reason": "ticket 7, still", "until": "2099-12-31"}}]}}}}'
    )
    outcome = checkout.gate("--config", words, "suites=bash", **DEAD_ENGINE)
    assert outcome.exit_code == 0, outcome
    assert outcome.standing("box")["counts"]["waived"] == 1
    assert "; 1 check off" in outcome.verdict["sentence"]
    assert "waiver box: bash.exit-code until 2099-12-31, used (ticket 7, still)" in outcome.output
    assert "off box: bash.parallel" in outcome.output


def test_what_is_required_by_its_id_counts_where_it_does_not_apply(checkout):
    """With one slot there is no second one to work beside."""
    beside = "bash.parallel"
    words = (
        "sandboxes={named: {driver: singularity, slots: 1, policy: {required: [%s]}}, "
        "covered: {driver: singularity, slots: 1, policy: {required: ['bash.*']}}}"
    )
    outcome = checkout.gate("--config", words % beside, "suites=bash", **DEAD_ENGINE)
    assert outcome.exit_code == 4, outcome
    assert (outcome.standing("named")["verdict"], outcome.standing("covered")["verdict"]) == ("incomplete", "accepted")
    found = {v["sandbox"]: v for v in outcome.verdicts if v["check"] == beside}
    assert [(found[name]["verdict"], found[name]["required"]) for name in ("named", "covered")] == [
        ("not-measured", "True"),
        ("not-measured", "False"),
    ]
