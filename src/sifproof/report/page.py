"""``report.html``: one file that needs nothing from anywhere, for a screen of any width and for paper.

Messages hold what tasks printed: the template escapes everything, and a content policy in the page forbids scripts
and requests, should anything slip through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from sifproof import command
from sifproof.checks.engine.policy import amount
from sifproof.doctor.record import Explanation
from sifproof.records import FINE, PlannedSandbox
from sifproof.report.decision import CheckDescription, Describe, Reason, SandboxDecision
from sifproof.report.facts import ImageFacts, Timing, flatten, image_facts, timings
from sifproof.report.recorded import Document, Recorded
from sifproof.report.tables import LEFT_OUT, rows
from sifproof.report.terms import WORST_FIRST
from sifproof.report.verdict import VerdictFile
from sifproof.text import one_line, printable

WORDS = ("pass", "fail", "flaky", "waived", "measured", "not-measured")
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
    """One thing to act on, and where it was seen."""

    reason: Reason
    heading: str
    text: str
    where: str
    description: CheckDescription | None
    rerun: str
    doctor: list[Explanation]


@dataclass(frozen=True)
class Cell:
    """The outcome of one check in one sandbox, over all its allocations; empty where the check is not one of it."""

    word: str = ""
    share: str = ""
    measured: str = ""
    required: bool = True
    advisory: str = ""
    """Why it is not required, where the plan says so."""
    off: bool = False


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
    waited: float = 0.0


def render(recorded: Recorded, verdict: VerdictFile, checks: pd.DataFrame, describe: Describe | None = None) -> str:
    """The page of a run; ``checks`` is its :func:`~sifproof.report.tables.checks_table`."""
    measured = [sandbox for sandbox in recorded.plan.sandboxes if not sandbox.left_out]
    return _template().render(
        verdict=verdict,
        lead=_lead(verdict.sentence),
        title=one_line(f"{verdict.verdict} · {verdict.run} · sifproof"),
        words=WORDS,
        totals=_counts(checks[checks["check"] != LEFT_OUT]),
        took=_took(verdict.started, verdict.finished),
        cards=list(_cards(recorded, verdict, checks)),
        reasons=list(_reasons(verdict, recorded, describe)),
        columns=measured,
        suites=list(_matrix(checks, measured, describe)),
        shown=set(checks["check"]),
        terms=verdict.terms,
        waited=float(checks["waited_s"].sum()),
        timings=list(_timing_groups(recorded, checks)),
        provenance=[
            (sandbox.name, list(flatten(recorded.images[sandbox.name])))
            for sandbox in recorded.plan.sandboxes
            if sandbox.name in recorded.images
        ],
        looks=recorded.doctor.looks if recorded.doctor else [],
        left_out=len(recorded.plan.sandboxes) - len(measured),
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    environment.filters.update(
        size=size, seconds=seconds, amount=amount, moment=moment, anchor=anchor, printable=_message, code=code
    )
    return environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))


def _finalize(value: object) -> object:
    """Every text of the page passes through here, before it is escaped."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def moment(text: str) -> str:
    """An ISO 8601 time for people, in UTC; ``text`` itself where it is none."""
    parsed = _time(text)
    return f"{parsed:%-d %B %Y, %H:%M:%S} UTC" if parsed else text


def code(text: str) -> Markup:
    """``text`` with what stands between backticks as code, the rest escaped."""
    text = printable(text)
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(parts))


def anchor(text: str) -> str:
    """``text`` as an HTML id."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def _lead(sentence: str) -> str:
    """The sentence without its opening, which the headline says."""
    lead = sentence.partition(": ")[2] or sentence
    return lead[:1].upper() + lead[1:]


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
        endpoints = list(_places(recorded.endpoints.get(planned.name, {})))
        known = {place.allocation for place in endpoints}
        checked = {row.allocation: row.node for row in rows(own) if row.allocation and row.allocation not in known}
        yield SandboxCard(
            planned=planned,
            decided=decided,
            counts=_counts(own),
            facts=image_facts(recorded.images.get(planned.name, {})),
            places=[*endpoints, *(Place(allocation, node, "") for allocation, node in checked.items())],
        )


def _places(document: Document) -> Iterator[Place]:
    """The allocations of one ``endpoints/<sandbox>.json``, a :class:`~sifproof.nomad.cluster.Endpoints` as a rule."""
    allocations = document.get("allocations")
    for item in allocations if isinstance(allocations, list) else []:
        if isinstance(item, Mapping):
            host, port = str(item.get("address", "")), item.get("port")
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            yield Place(str(item.get("id", "")), str(item.get("node_name", "")), address if host and port else "")


def _reasons(verdict: VerdictFile, recorded: Recorded, describe: Describe | None) -> Iterator[ReasonCard]:
    """One card for what is the same in several places."""
    groups: dict[tuple[str, ...], list[Reason]] = {}
    for reason in verdict.reasons:
        key = (reason.fault, reason.check) if reason.check else (reason.fault, "", reason.text, reason.todo)
        groups.setdefault((*key, reason.sandbox) if not reason.check else (*key, reason.text), []).append(reason)
    drivers = {sandbox.name: sandbox.driver for sandbox in recorded.plan.sandboxes}
    for group in groups.values():
        first = group[0]
        if first.check:
            heading, text = first.check, first.text.removeprefix(f"{first.check} failed: ")
        else:
            heading, _, text = first.text.partition("\n")
        affected = dict.fromkeys(drivers[reason.sandbox] for reason in group if reason.sandbox in drivers)
        explained = [seen for reason in group for seen in reason.doctor]
        one = len(affected) == 1 and len(drivers) > 1
        chosen = [f"driver={next(iter(affected))}"] if one else []
        yield ReasonCard(
            reason=first,
            heading=heading,
            text=text,
            where=_some(list(dict.fromkeys(_place(r.sandbox, r.allocation) for r in group if r.sandbox))),
            description=describe(first.check) if describe and first.check else None,
            rerun=command.with_settings(verdict.command, *chosen) if chosen else verdict.command,
            doctor=[seen for n, seen in enumerate(explained) if seen not in explained[:n]],
        )


def _some(places: Sequence[str], most: int = 6) -> str:
    more = len(places) - most
    return ", ".join(places[:most]) + (f" and {more} more" if more > 0 else "")


def _place(sandbox: str, allocation: str) -> str:
    return f"{sandbox} {allocation[:8]}" if allocation else sandbox


def _matrix(
    checks: pd.DataFrame, sandboxes: Sequence[PlannedSandbox], describe: Describe | None
) -> Iterator[tuple[str, list[Row]]]:
    shown = checks[checks["sandbox"].isin([sandbox.name for sandbox in sandboxes])]
    for suite, of_suite in shown.groupby("suite", sort=False):
        said: set[tuple[str, str]] = set()
        by_check: dict[str, list[Any]] = {}
        for outcome in rows(of_suite):
            by_check.setdefault(outcome.check, []).append(outcome)
        made = []
        for check, outcomes in by_check.items():
            description = describe(check) if describe else None
            at_least = bool(getattr(description, "at_least", False))
            cells = [
                _cell([item for item in outcomes if item.sandbox == sandbox.name], sandbox, check, at_least)
                for sandbox in sandboxes
            ]
            made.append(Row(check, anchor(f"check-{check}"), description, cells, list(_notes(outcomes, said))))
        yield str(suite), made


def _cell(outcomes: Sequence[Any], sandbox: PlannedSandbox, check: str, at_least: bool) -> Cell:
    if not outcomes:
        return Cell(off=check in sandbox.off)
    word = min((item.verdict for item in outcomes), key=WORST_FIRST.index)
    alike = [item for item in outcomes if item.verdict == word]
    valued = [item for item in alike if not pd.isna(item.value)]
    measured = ""
    if valued:
        worst = (min if at_least else max)(valued, key=lambda item: item.value)
        bound = "at least" if at_least else "at most"
        limit = "" if pd.isna(worst.limit) else f", {bound} {amount(worst.limit, worst.unit)}"
        measured = f"{amount(worst.value, worst.unit)}{limit}"
    return Cell(
        word=word,
        share=f"{len(alike)}/{len(outcomes)}" if len(alike) < len(outcomes) else "",
        measured=measured,
        required=any(item.required for item in outcomes),
        advisory=sandbox.advisory.get(check, ""),
    )


def _notes(outcomes: Sequence[Any], said: set[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    places: dict[tuple[str, str], list[str]] = {}
    for item in outcomes:
        if item.verdict not in FINE and item.message:
            places.setdefault((item.verdict, item.message), []).append(_place(item.sandbox, item.allocation))
    for (word, message), where in places.items():
        # One cause leaves a whole suite unmeasured: say it once.
        key = (message, ", ".join(where))
        if word != "not-measured" or key not in said:
            said.add(key)
            yield _some(where), word, message


def _timing_groups(recorded: Recorded, checks: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, list[Bar]]]]]:
    titles = {
        "image": "Image: source to SIF",
        "job": "Job: submitted to ready",
        "checks": "Checks, by suite",
    }
    found = timings(recorded)
    for stage, title in titles.items():
        of_stage = [timing for timing in found if timing.stage == stage]
        longest = max((timing.seconds for timing in of_stage), default=0.0) or 1.0
        groups: dict[str, list[Bar]] = {}
        for timing in of_stage:
            groups.setdefault(_title(timing, recorded), []).append(
                Bar(timing.step, timing.seconds, 100 * timing.seconds / longest, timing.waited)
            )
        if groups:
            yield title, list(groups.items())
    slowest = checks[checks["duration_s"] > 0].nlargest(8, "duration_s")
    if len(slowest):
        longest = float(slowest["duration_s"].max())
        several = bool(slowest.duplicated(["sandbox", "check"]).any())
        bars = [
            Bar(
                f"{row.check} ({_place(row.sandbox, row.allocation if several else '')})",
                row.duration_s,
                100 * row.duration_s / longest,
                row.waited_s,
            )
            for row in rows(slowest)
        ]
        yield "Slowest checks", [("", bars)]


def _title(timing: Timing, recorded: Recorded) -> str:
    reused = timing.stage == "image" and image_facts(recorded.images.get(timing.sandbox, {})).reused
    return f"{timing.sandbox}, converted by an earlier run" if reused else timing.sandbox
