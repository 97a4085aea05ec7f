"""The last lines that a run prints: its verdict with the path of the report, then what failed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from sifproof.report.decision import Decision, Outcome
from sifproof.report.terms import Terms
from sifproof.text import one_line

_STYLES = {Outcome.ACCEPTED: "bold green", Outcome.REJECTED: "bold red"}


def closing_lines(decision: Decision, report: Path, most: int = 10, command: str = "") -> list[str]:
    """One line with the verdict and the path of the report, then what led to it.

    That is a line for each of the ``most`` weightiest reasons, without those that only follow from another, what the
    doctor saw that may be behind them, once each, a line for each waiver and each advisory failure, for what
    the config turned off, and for each sandbox that was left out. Where it is not accepted, ``command`` runs it again.
    """
    lines = [f"{decision.sentence.rstrip('.')}. Report: {report}"]
    reasons = [reason for reason in decision.reasons if not reason.follows]
    for reason in reasons[:most]:
        where = " ".join(filter(None, [reason.sandbox or "run", reason.allocation[:8]]))
        # The one reason stands in the sentence already.
        said = "" if reason.text.rstrip(".") in decision.sentence else reason.text
        if text := " → ".join(filter(None, [said, reason.todo])):
            lines.append(one_line(f"{reason.fault.value} {where}: {text}", 400))
    seen = dict.fromkeys(str(explanation) for reason in reasons[:most] for explanation in reason.doctor)
    lines += [one_line(text, 400) for text in seen]
    if len(reasons) > most:
        lines.append(f"… and {len(reasons) - most} more in the report")
    lines += _terms(decision.terms, most)
    left_out = [sandbox for sandbox in decision.sandboxes if sandbox.verdict == "not-measured"]
    lines += [one_line(f"left out {sandbox.name}: {sandbox.reason}", 400) for sandbox in left_out]
    if command and decision.verdict is not Outcome.ACCEPTED:
        lines.append(f"run again: {command}")
    return lines


def _terms(terms: Terms, most: int) -> list[str]:
    """A line for each waiver that there is, for each advisory check that failed, and for what the config turned off."""
    said = []
    for waiver in terms.waivers:
        until = f"{'ended on' if waiver.ended else 'until'} {waiver.until}"
        said.append(f"waiver {waiver.sandbox}: {waiver.check} {until}, {waiver.said()} ({waiver.reason})")
    failing = terms.failing()
    said += [
        f"advisory {t.sandbox}: {t.check} {t.verdict} (not required: {t.reason}): {t.text}" for t in failing[:most]
    ]
    if len(failing) > most:
        said.append(f"… and {len(failing) - most} more advisory checks in the report")
    for sandbox in dict.fromkeys(term.sandbox for term in terms.off):
        said.append(f"off {sandbox}: {', '.join(term.check for term in terms.off if term.sandbox == sandbox)}")
    return [one_line(text, 400) for text in said]


def print_closing(
    decision: Decision, report: Path, most: int = 10, console: Console | None = None, *, command: str = ""
) -> None:
    """Print :func:`closing_lines`, with colours where ``console`` (standard output) is a terminal."""
    console = console or Console(highlight=False)
    first, *rest = closing_lines(decision, report, most, command)
    opening, colon, remainder = first.partition(":")
    verdict = Text.assemble((opening, _STYLES.get(decision.verdict, "bold yellow")), colon + remainder)
    for line in (verdict, *(Text("  " + line) for line in rest)):
        # Lines stay whole: they are searched for, and copied.
        console.print(line, soft_wrap=True)
