"""Waivers, advisory checks, what is off, limits and deliberate waits: in every report."""

from __future__ import annotations

import csv
import datetime
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from report_samples import CHECKS, plan, planned, record, verdict, verdicts

from sifproof.records import IdleWaiver, Plan, PlannedWaiver, Verdict
from sifproof.report.decision import decide
from sifproof.report.terminal import closing_lines
from sifproof.report.terms import terms_of
from sifproof.report.write import write_reports

TOMORROW, YESTERDAY = datetime.date(2026, 1, 3), datetime.date(2026, 1, 1)
"""Of the sample run, which is of 2 January 2026."""

CHECKED = [check for checks in CHECKS.values() for check in checks]


def waiver(until: datetime.date = TOMORROW, reason: str = "ticket 7") -> PlannedWaiver:
    return PlannedWaiver(reason=reason, until=until)


def judged() -> tuple[Plan, list[Verdict]]:
    """A run with one of everything that a config can say."""
    box = planned(
        checks=[check for check in CHECKED if check != "health.slots"],
        off={"health.slots": "the policy of the config says so (health.slots)"},
        advisory={"bash.exit-code": "Docker's default profile forbids it"},
        waivers={
            "bash.output": waiver(),
            "files.round-trip": waiver(YESTERDAY, "ticket 8"),
            "teardown.purged": waiver(YESTERDAY, "ticket 9"),
        },
        limits={"health.ready": 0.5},
    )
    changed = {
        "bash.output": {"verdict": "waived", "message": "waived until 2026-01-03 (ticket 7); fail: no output"},
        "files.round-trip": {"verdict": "fail", "message": "its waiver ended on 2026-01-01 (ticket 8); other bytes"},
        "bash.exit-code": {"verdict": "fail", "required": False, "message": "exit 0"},
        "health.ready": {"value": 0.4, "unit": "s", "limit": 0.5},
        "teardown.port": {"duration_s": 2.0, "waited_s": 1.5},
    }
    rows = [verdict(check, **changed.get(check, {})) for check in box.checks]
    return plan(box), rows


def test_states_of_waivers() -> None:
    found = {term.check: (term.state, term.ended) for term in terms_of(*judged()).waivers}
    assert found == {
        "bash.output": ("used", False),
        "files.round-trip": ("expired", True),
        "teardown.purged": ("no longer needed", True),
    }
    run, _ = judged()
    assert {term.state for term in terms_of(run, []).waivers} == {"not looked at"}
    rows = [verdict("bash.output", verdict="not-measured"), verdict("bash.output", allocation="b")]
    assert terms_of(run, rows).waivers[0].state == "no longer needed"
    assert terms_of(run, [*rows, verdict("bash.output", allocation="c", verdict="waived")]).waivers[0].state == "used"


def idle(check: str, state: str, until: datetime.date = TOMORROW) -> IdleWaiver:
    return IdleWaiver.model_validate({"check": check, "reason": f"about {check}", "until": until, "state": state})


def test_every_report_shows_waivers_that_count_for_nothing(tmp_path: Path) -> None:
    box = planned(
        idle_waivers=[
            idle("storage.*", "not looked at", YESTERDAY),
            idle("image.sif", "does not apply"),
            idle("bash.*", "another counts"),
        ],
        waivers={"bash.output": waiver()},
    )
    gone = planned("docker", left_out="no engine", waivers={"bash.output": waiver(reason="ticket 8")})
    run, rows = plan(box, gone), verdicts("singularity", bash_output={"verdict": "waived"})
    assert closing_lines(decide(run, rows), Path("r"))[1:5] == [
        "waiver singularity: bash.output until 2026-01-03, used (ticket 7)",
        "waiver singularity: storage.* ended on 2026-01-01, not looked at, expired (about storage.*)",
        "waiver singularity: image.sif until 2026-01-03, does not apply (about image.sif)",
        "waiver singularity: bash.* until 2026-01-03, another counts (about bash.*)",
    ]
    write_reports(record(tmp_path, run, rows), tmp_path)
    terms = json.loads((tmp_path / "verdict.json").read_text())["terms"]["waivers"]
    assert [(t["sandbox"], t["check"], t["state"], t["ended"]) for t in terms] == [
        ("singularity", "bash.output", "used", False),
        ("singularity", "storage.*", "not looked at", True),
        ("singularity", "image.sif", "does not apply", False),
        ("singularity", "bash.*", "another counts", False),
        ("docker", "bash.output", "not looked at", False),
    ]
    root = ET.parse(tmp_path / "junit.xml").getroot()
    (suite,) = (suite for suite in root if suite.get("name") == "waivers")
    assert [
        (case.get("classname"), case.get("name"), case.find("skipped").get("message"))  # type: ignore[union-attr]
        for case in suite.iterfind("testcase")
    ] == [
        ("singularity.waivers", "storage.*", "until 2026-01-01, not looked at, expired: about storage.*"),
        ("singularity.waivers", "image.sif", "until 2026-01-03, does not apply: about image.sif"),
        ("docker.waivers", "bash.output", "until 2026-01-03, not looked at: ticket 8"),
    ]
    properties = {item.get("name"): item.get("value") for item in root.iterfind(".//property")}
    assert properties["waiver.bash.*"] == "until 2026-01-03, another counts: about bash.*"
    with (tmp_path / "summary.tsv").open(newline="") as stream:
        said = {row["sandbox"]: row["waivers"] for row in csv.DictReader(stream, delimiter="\t")}
    assert said == {
        "singularity": "bash.output: used; storage.*: not looked at, expired; image.sif: does not apply; "
        "bash.*: another counts",
        "docker": "bash.output: not looked at",
    }
    page = (tmp_path / "report.html").read_text()
    for words in ("about storage.*", "not looked at, expired", "about image.sif", "does not apply", "ticket 8"):
        assert words in page
    # A link needs a place that it goes to.
    assert 'href="#check-bash-output"' in page
    assert "#check-storage" not in page


def test_a_waiver_ends_with_its_last_day() -> None:
    run = plan(planned(waivers={"bash.output": waiver(datetime.date(2026, 1, 2))}))
    assert terms_of(run, []).waivers[0].ended is False


def test_advisory_off_and_limits() -> None:
    terms = terms_of(*judged())
    assert [(t.check, t.verdict, t.text) for t in terms.failing()] == [("bash.exit-code", "fail", "exit 0")]
    assert [(t.check, t.reason) for t in terms.off] == [
        ("health.slots", "the policy of the config says so (health.slots)")
    ]
    assert [(t.check, t.limit, t.values, t.unit) for t in terms.limits] == [("health.ready", 0.5, [0.4], "s")]
    assert terms.of("other") == terms_of(plan(planned(left_out="gone", off={"bash.output": "so"})), [])


def test_an_advisory_check_that_passed_is_no_failure() -> None:
    run = plan(planned(advisory={"bash.output": "so"}))
    assert terms_of(run, [verdict("bash.output")]).failing() == []
    (worst,) = terms_of(run, [verdict("bash.output"), verdict("bash.output", verdict="flaky")]).failing()
    assert worst.verdict == "flaky"


def test_what_is_waived_or_advisory_does_not_reject_and_is_counted() -> None:
    rows = verdicts(
        "singularity",
        bash_output={"verdict": "waived"},
        bash_exit_code={"verdict": "fail", "required": False},
        files_round_trip={"verdict": "flaky", "required": False},
    )
    decision = decide(plan(planned()), rows)
    assert decision.exit_code == 0
    assert decision.sentence.startswith("Accepted: 6 required checks passed on singularity, ")
    assert decision.sentence.endswith(", 1 waived; 2 advisory checks failed.")
    assert decision.sandboxes[0].counts == {"pass": 6, "waived": 1, "fail": 1, "flaky": 1}


@pytest.mark.parametrize("word", ["fail", "flaky"])
def test_an_expired_waiver_rejects(word: str) -> None:
    run, rows = judged()
    rows = [row.model_copy(update={"verdict": word}) if row.check == "files.round-trip" else row for row in rows]
    decision = decide(run, rows)
    assert decision.exit_code == 1
    (reason,) = decision.reasons
    assert reason.check == "files.round-trip"
    assert "its waiver ended on 2026-01-01 (ticket 8); other bytes" in reason.text


def test_a_waived_check_that_is_missing_is_still_missed() -> None:
    run, rows = judged()
    decision = decide(run, [row for row in rows if row.check not in ("bash.output", "files.round-trip")])
    assert decision.exit_code == 4
    assert "bash.output was not recorded" in decision.reasons[0].text


def test_closing_lines() -> None:
    lines = closing_lines(decide(*judged()), Path("results/report.html"))
    assert lines[2:] == [
        "waiver singularity: bash.output until 2026-01-03, used (ticket 7)",
        "waiver singularity: files.round-trip ended on 2026-01-01, expired (ticket 8)",
        "waiver singularity: teardown.purged ended on 2026-01-01, no longer needed (ticket 9)",
        "advisory singularity: bash.exit-code fail (not required: Docker's default profile forbids it): exit 0",
        "off singularity: health.slots",
    ]


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    write_reports(record(tmp_path, *judged()), tmp_path)
    return tmp_path


def test_tables(reports: Path) -> None:
    with (reports / "summary.tsv").open(newline="") as stream:
        (row,) = csv.DictReader(stream, delimiter="\t")
    assert (row["waived"], row["advisory"], row["off"], row["waited_s"]) == ("1", "1", "1", "1.5")
    with (reports / "checks.tsv").open(newline="") as stream:
        rows = {row["check"]: row for row in csv.DictReader(stream, delimiter="\t")}
    assert rows["bash.output"]["message"] == "waived until 2026-01-03 (ticket 7); fail: no output"
    assert (rows["bash.exit-code"]["required"], rows["bash.exit-code"]["verdict"]) == ("False", "fail")
    assert (rows["health.ready"]["limit"], rows["teardown.port"]["waited_s"]) == ("0.5", "1.5")


def test_verdict_file(reports: Path) -> None:
    terms = json.loads((reports / "verdict.json").read_text())["terms"]
    assert [(term["check"], term["until"], term["state"]) for term in terms["waivers"]] == [
        ("bash.output", "2026-01-03", "used"),
        ("files.round-trip", "2026-01-01", "expired"),
        ("teardown.purged", "2026-01-01", "no longer needed"),
    ]
    assert [len(terms[name]) for name in ("advisory", "off", "limits")] == [1, 1, 1]


def test_junit(reports: Path) -> None:
    root = ET.parse(reports / "junit.xml").getroot()
    skipped = {case.get("name"): case.find("skipped").get("message") for case in root.iterfind(".//testcase[skipped]")}  # type: ignore[union-attr]
    assert skipped == {
        "bash.output": "waived: waived until 2026-01-03 (ticket 7); fail: no output",
        "bash.exit-code": "fail, not required (Docker's default profile forbids it): exit 0",
        "health.slots": "off: the policy of the config says so (health.slots)",
    }
    assert [case.get("name") for case in root.iterfind(".//testcase[failure]")] == ["files.round-trip"]
    properties = {item.get("name"): item.get("value") for item in root.iterfind(".//property")}
    assert properties == {
        "limit.health.ready": "0.5 s",
        "waiver.bash.output": "until 2026-01-03, used: ticket 7",
        "waiver.files.round-trip": "until 2026-01-01, expired: ticket 8",
        "waiver.teardown.purged": "until 2026-01-01, no longer needed: ticket 9",
    }


def test_page(reports: Path) -> None:
    text = (reports / "report.html").read_text()
    for words in (
        "On which terms",
        'data-waiver="used"',
        'data-waiver="expired"',
        'data-waiver="no longer needed"',
        "take it out of the config",
        "ticket 8",
        "Docker&#39;s default profile forbids it",
        "Off, and not run",
        "400 ms",
        "1.50 s of it waits",
        "checks waited 1.50 s on purpose",
    ):
        assert words in text, words


def test_a_run_without_terms_of_its_own_has_no_words_about_them(tmp_path: Path) -> None:
    write_reports(record(tmp_path, plan(planned()), verdicts("singularity")), tmp_path)
    assert "On which terms" not in (tmp_path / "report.html").read_text()
    assert closing_lines(decide(plan(planned()), verdicts("singularity")), Path("r"))[1:] == []
