"""The lines a run ends with."""

from __future__ import annotations

import io
from pathlib import Path

from report_samples import NASTY, plan, planned, verdict, verdicts
from rich.console import Console

from sifproof.errors import Fault
from sifproof.records import FaultRecord
from sifproof.report.decision import Decision, decide
from sifproof.report.terminal import closing_lines, print_closing

REPORT = Path("results/report.html")


def printed(decision: Decision, *, terminal: bool, most: int = 10) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=terminal, width=60, highlight=False, color_system="standard" if terminal else None
    )
    print_closing(decision, REPORT, most, console)
    return stream.getvalue()


def test_accepted_is_one_line_with_the_path_of_the_report() -> None:
    decision = decide(plan(), verdicts())
    assert printed(decision, terminal=False) == (
        "Accepted: 18 required checks passed on singularity and docker, of the suites health, bash and files alone. "
        "Report: results/report.html\n"
    )


def test_failing_checks_have_a_line_each() -> None:
    rows = verdicts("singularity", bash_output={"verdict": "fail", "message": "no\noutput"})
    lines = printed(decide(plan(planned()), rows), terminal=False).splitlines()
    assert lines[0].startswith("Rejected: ")
    assert lines[0].endswith("Report: results/report.html")
    assert lines[1].split() == ["image", "singularity", "1a2b3c4d:", "bash.output", "failed:", "no", "output"]
    assert len(lines) == 2


def test_what_the_sentence_says_is_not_said_again() -> None:
    lost = {"verdict": "not-measured", "message": "Nomad lost node n1.", "fault": "infrastructure", "hindered": True}
    lines = closing_lines(decide(plan(planned()), verdicts("singularity", bash_output=lost)), REPORT)
    assert lines == [
        "Infrastructure at fault, the image is not judged: Nomad lost node n1. Report: results/report.html"
    ]


def test_no_more_lines_than_asked_for() -> None:
    rows = [verdict(f"bash.c{n}", verdict="fail") for n in range(30)]
    decision = decide(plan(planned()), rows)
    lines = closing_lines(decision, REPORT, most=5)
    assert len(lines) == 7
    own = [reason for reason in decision.reasons if not reason.follows]
    assert lines[-1] == f"… and {len(own) - 5} more in the report"


def test_a_left_out_sandbox_has_a_line_with_the_reason() -> None:
    left_out = planned("docker").model_copy(update={"left_out": "No Docker engine answers."})
    lines = closing_lines(decide(plan(planned(), left_out), verdicts("singularity")), REPORT)
    assert lines[0].startswith("Accepted: ")
    assert lines[0].endswith("; left out: docker. Report: results/report.html")
    assert lines[1:] == ["left out docker: No Docker engine answers."]


def test_what_only_follows_from_another_reason_has_none() -> None:
    crash = FaultRecord(stage="submit", sandbox="singularity", fault=Fault.IMAGE, what="It crashed", todo="mend it")
    lines = closing_lines(decide(plan(planned()), [], [crash]), REPORT)
    assert lines == ["Rejected: It crashed. Report: results/report.html", "image singularity: mend it"]


def test_colours_on_a_terminal_only() -> None:
    decision = decide(plan(), verdicts())
    assert "\x1b[" in printed(decision, terminal=True)
    assert "\x1b[" not in printed(decision, terminal=False)


def test_hostile_text_reaches_no_terminal() -> None:
    rows = [verdict(f"bash.c{n}", verdict="fail", message=text) for n, text in enumerate(NASTY)]
    text = printed(decide(plan(planned()), rows), terminal=False, most=100)
    lines = text.splitlines()
    assert {line.isprintable() for line in lines} == {True}
    assert "[bold]rich[/bold] markup" in text
    assert len([line for line in lines if "bash.c" in line]) == len(NASTY) + 1
