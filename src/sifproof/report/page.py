"""``report.html``: one file that needs nothing from anywhere, for a screen of any width and for paper.

Messages hold what tasks printed: the template escapes everything, and a content policy in the page forbids scripts
and requests, should anything slip through.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined

from sifproof.records import PlannedSandbox
from sifproof.report.decision import CheckDescription, Describe, Reason, SandboxDecision
from sifproof.report.escaping import one_line, printable
from sifproof.report.facts import ImageFacts, Timing, flatten, image_facts, timings
from sifproof.report.recorded import Recorded
from sifproof.report.tables import LEFT_OUT, rows
from sifproof.report.verdict import VerdictFile

WORDS = ("pass", "fail", "flaky", "waived", "not-measured")
_WORST_FIRST = ("fail", "flaky", "not-measured", "waived", "pass")
_MESSAGE_LIMIT = 4000


class Place(NamedTuple):
    """Where one allocation ran."""

    allocation: str
    node: str
    address: str


@dataclass(frozen=True)
class SandboxCard:
    """The summary of one sandbox."""

    planned: PlannedSandbox
    decided: SandboxDecision
    counts: dict[str, int]
    facts: ImageFacts
    places: list[Place]


@dataclass(frozen=True)
class ReasonCard:
    """One thing to act on, with the places where it was seen."""

    reason: Reason
    where: list[str]
    description: CheckDescription | None
    rerun: str


@dataclass(frozen=True)
class Cell:
    """The outcome of one check in one sandbox, over all its allocations; empty where the check is not one of it."""

    word: str = ""
    share: str = ""
    measured: str = ""
    required: bool = True


@dataclass(frozen=True)
class Row:
    """One check of the matrix."""

    check: str
    anchor: str
    description: CheckDescription | None
    cells: list[Cell]
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    """Sandbox and allocation, word, message: of what did not pass."""


@dataclass(frozen=True)
class Bar:
    """One step of a timing, its length as a percentage of the longest of its group."""

    step: str
    seconds: float
    percent: float


def render(recorded: Recorded, verdict: VerdictFile, checks: pd.DataFrame, describe: Describe | None = None) -> str:
    """The page of a run; ``checks`` is its :func:`~sifproof.report.tables.checks_table`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(size=size, seconds=seconds, moment=moment, anchor=anchor, printable=_message)
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    measured = [sandbox for sandbox in recorded.plan.sandboxes if not sandbox.left_out]
    return template.render(
        verdict=verdict,
        title=one_line(f"{verdict.verdict} · {verdict.run} · sifproof"),
        words=WORDS,
        totals=_counts(checks[checks["check"] != LEFT_OUT]),
        took=_took(verdict.started, verdict.finished),
        cards=list(_cards(recorded, verdict, checks)),
        reasons=list(_reasons(verdict, recorded, describe)),
        columns=measured,
        suites=list(_matrix(checks, [sandbox.name for sandbox in measured], describe)),
        timings=list(_timing_groups(timings(recorded), checks)),
        provenance=[
            (sandbox.name, kind, list(flatten(documents[sandbox.name])))
            for sandbox in recorded.plan.sandboxes
            for kind in ("images", "jobs", "endpoints")
            for documents in [getattr(recorded, kind)]
            if sandbox.name in documents
        ],
        left_out=[sandbox for sandbox in recorded.plan.sandboxes if sandbox.left_out],
    )


def size(value: int | None) -> str:
    """Bytes for people: ``78.1 MB``."""
    if value is None:
        return ""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def seconds(value: float) -> str:
    """Seconds for people: ``12 ms``, ``1.42 s``, ``3 min 05 s``."""
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 99.5:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s"


def moment(text: str) -> str:
    """An ISO 8601 time for people, in UTC; ``text`` itself where it is none."""
    parsed = _time(text)
    return f"{parsed:%-d %B %Y, %H:%M:%S} UTC" if parsed else text


def anchor(text: str) -> str:
    """``text`` as an HTML id."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def _message(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MESSAGE_LIMIT else f"{text[:_MESSAGE_LIMIT]}… ({len(text)} characters)"


def _time(text: str) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def _took(started: str, finished: str) -> float | None:
    begin, end = _time(started), _time(finished)
    return (end - begin).total_seconds() if begin and end and end >= begin else None


def _counts(checks: pd.DataFrame) -> dict[str, int]:
    counts = checks["verdict"].value_counts()
    return {word: int(counts.get(word, 0)) for word in WORDS}


def _cards(recorded: Recorded, verdict: VerdictFile, checks: pd.DataFrame) -> Iterator[SandboxCard]:
    for planned, decided in zip(recorded.plan.sandboxes, verdict.sandboxes, strict=True):
        own = checks[(checks["sandbox"] == planned.name) & (checks["check"] != LEFT_OUT)]
        addresses = dict(_addresses(recorded.endpoints.get(planned.name, {})))
        nodes = {row.allocation: row.node for row in rows(own) if row.allocation}
        yield SandboxCard(
            planned=planned,
            decided=decided,
            counts=_counts(own),
            facts=image_facts(recorded.images.get(planned.name, {})),
            places=[Place(item, nodes.get(item, ""), addresses.get(item, "")) for item in {**nodes, **addresses}],
        )


def _addresses(document: Any) -> Iterator[tuple[str, str]]:
    """``(allocation, address:port)`` wherever a mapping names both."""
    if isinstance(document, list):
        for item in document:
            yield from _addresses(item)
    elif isinstance(document, Mapping):
        allocation = next((document[key] for key in ("allocation", "allocation_id", "id") if key in document), None)
        host = next((document[key] for key in ("address", "host", "ip", "url") if key in document), None)
        if isinstance(allocation, str) and isinstance(host, str):
            port = document.get("port")
            bracketed = f"[{host}]" if ":" in host and "[" not in host and "//" not in host else host
            yield allocation, f"{bracketed}:{port}" if port else bracketed
        for item in document.values():
            yield from _addresses(item)


def _reasons(verdict: VerdictFile, recorded: Recorded, describe: Describe | None) -> Iterator[ReasonCard]:
    """One card for what is the same in several places."""
    groups: dict[tuple[str, ...], list[Reason]] = {}
    for reason in verdict.reasons:
        key = (reason.fault, reason.check) if reason.check else (reason.fault, "", reason.text, reason.todo)
        groups.setdefault((*key, reason.sandbox) if not reason.check else (*key, reason.text), []).append(reason)
    drivers = {sandbox.name: sandbox.driver for sandbox in recorded.plan.sandboxes}
    for group in groups.values():
        first = group[0]
        affected = dict.fromkeys(drivers[reason.sandbox] for reason in group if reason.sandbox in drivers)
        one = len(affected) == 1 and len(drivers) > 1
        chosen = f" --config driver={shlex.quote(next(iter(affected)))}" if one else ""
        yield ReasonCard(
            reason=first,
            where=list(dict.fromkeys(_place(reason.sandbox, reason.allocation) for reason in group if reason.sandbox)),
            description=describe(first.check) if describe and first.check else None,
            rerun=f"sifproof run{chosen}",
        )


def _place(sandbox: str, allocation: str) -> str:
    return f"{sandbox} {allocation[:8]}" if allocation else sandbox


def _matrix(
    checks: pd.DataFrame, sandboxes: Sequence[str], describe: Describe | None
) -> Iterator[tuple[str, list[Row]]]:
    shown = checks[checks["sandbox"].isin(sandboxes)]
    for suite, of_suite in shown.groupby("suite", sort=False):
        said: set[tuple[str, str]] = set()
        of_suite_rows = []
        for check, of_check in of_suite.groupby("check", sort=False):
            of_suite_rows.append(
                Row(
                    check=str(check),
                    anchor=anchor(f"check-{check}"),
                    description=describe(str(check)) if describe else None,
                    cells=[_cell(of_check[of_check["sandbox"] == sandbox]) for sandbox in sandboxes],
                    notes=list(_notes(of_check, said)),
                )
            )
        yield str(suite), of_suite_rows


def _cell(outcomes: pd.DataFrame) -> Cell:
    if outcomes.empty:
        return Cell()
    word = next(word for word in _WORST_FIRST if word in set(outcomes["verdict"]))
    alike = outcomes[outcomes["verdict"] == word]
    measured = ""
    for row in rows(alike.nlargest(1, "value").dropna(subset=["value"])):
        measured = f"{row.value:.4g} {row.unit}" + ("" if pd.isna(row.limit) else f" of {row.limit:.4g}")
    return Cell(
        word=word,
        share=f"{len(alike)}/{len(outcomes)}" if len(outcomes) > 1 else "",
        measured=measured,
        required=bool(outcomes["required"].any()),
    )


def _notes(outcomes: pd.DataFrame, said: set[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    for row in rows(outcomes):
        if row.verdict == "pass" or not row.message:
            continue
        # One cause leaves a whole suite unmeasured: say it once.
        key = (row.sandbox, row.message)
        if row.verdict == "not-measured" and key in said:
            continue
        said.add(key)
        yield _place(row.sandbox, row.allocation), row.verdict, row.message


def _timing_groups(found: Sequence[Timing], checks: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, list[Bar]]]]]:
    titles = {
        "image": "Image: source to SIF",
        "job": "Job: submitted to ready",
        "checks": "Checks, by suite",
    }
    for stage, title in titles.items():
        of_stage = [timing for timing in found if timing.stage == stage]
        longest = max((timing.seconds for timing in of_stage), default=0.0) or 1.0
        groups: dict[str, list[Bar]] = {}
        for timing in of_stage:
            groups.setdefault(timing.sandbox, []).append(
                Bar(timing.step, timing.seconds, 100 * timing.seconds / longest)
            )
        if groups:
            yield title, list(groups.items())
    slowest = checks[checks["duration_s"] > 0].nlargest(8, "duration_s")
    if len(slowest):
        longest = float(slowest["duration_s"].max())
        bars = [
            Bar(f"{row.check} ({_place(row.sandbox, '')})", row.duration_s, 100 * row.duration_s / longest)
            for row in rows(slowest)
        ]
        yield "Slowest checks", [("", bars)]
