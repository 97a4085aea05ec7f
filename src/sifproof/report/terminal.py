"""The last lines that a run prints: its verdict with the path of the report, then what failed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from sifproof.report.decision import Decision, Outcome
from sifproof.report.escaping import one_line

_STYLES = {Outcome.ACCEPTED: "bold green", Outcome.REJECTED: "bold red"}


def closing_lines(decision: Decision, report: Path, most: int = 10) -> list[str]:
    """One line with the verdict and the path of the report, then one for each of the ``most`` weightiest reasons."""
    lines = [f"{decision.sentence.rstrip('.')}. Report: {report}"]
    for reason in decision.reasons[:most]:
        where = " ".join(filter(None, [reason.sandbox or "run", reason.allocation[:8]]))
        todo = f" → {reason.todo}" if reason.todo else ""
        lines.append(one_line(f"{reason.fault.value:<14} {where}: {reason.text}{todo}", 400))
    if len(decision.reasons) > most:
        lines.append(f"… and {len(decision.reasons) - most} more in the report")
    return lines


def print_closing(decision: Decision, report: Path, most: int = 10, console: Console | None = None) -> None:
    """Print :func:`closing_lines`, with colours where ``console`` (standard output) is a terminal."""
    console = console or Console(highlight=False)
    first, *rest = closing_lines(decision, report, most)
    opening, colon, remainder = first.partition(":")
    verdict = Text.assemble((opening, _STYLES.get(decision.verdict, "bold yellow")), colon + remainder)
    for line in (verdict, *(Text("  " + line) for line in rest)):
        # Lines stay whole: they are searched for, and copied.
        console.print(line, soft_wrap=True)
