"""``junit.xml``, for the test pages of CI systems: red there exactly when the gate is.

A required check that failed is a ``failure``, or an ``error`` where it is not the image that is to blame; so is a
required check that was not measured. What the gate does not count is ``skipped`` and says why.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pandas as pd
from junitparser import Attr, Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from sifproof.errors import Fault
from sifproof.records import FINE
from sifproof.report.decision import Decision, Reason
from sifproof.report.tables import LEFT_OUT, rows
from sifproof.report.terms import FAILED, OffTerm, Terms, WaiverTerm
from sifproof.text import one_line, xml_text


class _Case(TestCase):
    """GitLab links to ``file``, which junitparser does not know on a case."""

    file = Attr()


def render(checks: pd.DataFrame, decision: Decision, run: str, started: str = "", *, command: str = "") -> str:
    """The JUnit XML of a run: one suite per sandbox and suite of ``checks``, and one for the gate's own reasons.

    ``checks`` is a :func:`~sifproof.report.tables.checks_table`; ``started`` is UTC, ISO 8601;
    ``command`` runs it again.
    """
    suites = []
    left_out = {sandbox.name for sandbox in decision.sandboxes if sandbox.verdict == "not-measured"}
    advisory = {(term.sandbox, term.check): term.reason for term in decision.terms.advisory}
    blamed = {(r.sandbox, r.allocation, r.check): r.fault for r in decision.reasons if r.check}
    for (sandbox, suite), group in checks.groupby(["sandbox", "suite"], sort=False):
        name = f"{sandbox}.{suite}"
        several = group["allocation"].nunique() > 1
        cases = [
            _case(
                name,
                row,
                several=several,
                counted=sandbox not in left_out,
                blamed=blamed.get((row.sandbox, row.allocation, row.check)),
                advisory=advisory.get((row.sandbox, row.check), ""),
                command=command,
            )
            for row in rows(group)
        ]
        suites.append(_suite(name, cases, started))
        terms = decision.terms.of(str(sandbox))
        for check, text in _properties(terms, str(suite)):
            suites[-1].add_property(xml_text(check), xml_text(text))
    there = {suite.name for suite in suites}
    idle = [w for w in decision.terms.waivers if f"{w.sandbox}.{w.check.partition('.')[0]}" not in there]
    if idle:
        suites.append(_suite("waivers", [_waiver_case(term) for term in idle], started))
    if decision.terms.off:
        suites.append(_suite("off", [_off_case(term) for term in decision.terms.off], started))
    # What no check stands for must be red here too.
    others = [reason for reason in decision.reasons if not reason.check]
    if others:
        suites.append(_suite("gate", [_reason_case(number, r, command) for number, r in enumerate(others, 1)], started))
    report: Any = JUnitXml(xml_text(f"sifproof {run}"))
    for made in suites:
        report.append(made)
    report.update_statistics()
    stream = io.BytesIO()
    report.write(stream)
    return stream.getvalue().decode("utf-8") + "\n"


def _suite(name: str, cases: list[TestCase], started: str) -> TestSuite:
    suite = TestSuite(xml_text(name))
    if started:
        # The widely used schema wants a time without a zone.
        suite.timestamp = xml_text(started)[:19]
    suite.hostname = "localhost"
    suite.add_testcases(cases)
    return suite


def _properties(terms: Terms, suite: str) -> Iterator[tuple[str, str]]:
    """What the config says of the checks of ``suite``, by the name of a property."""
    for waiver in terms.waivers:
        if waiver.check.startswith(f"{suite}."):
            yield f"waiver.{waiver.check}", _said(waiver)
    for limit in terms.limits:
        if limit.check.startswith(f"{suite}."):
            yield f"limit.{limit.check}", f"{limit.limit:g} {limit.unit}".strip()


def _said(waiver: WaiverTerm) -> str:
    return f"until {waiver.until}, {waiver.said()}: {waiver.reason}"


def _waiver_case(term: WaiverTerm) -> TestCase:
    case = _new(f"{term.sandbox}.waivers", term.check, 0.0)
    case.result = [Skipped(one_line(xml_text(_said(term)), 300), "waiver")]
    return case


def _off_case(term: OffTerm) -> TestCase:
    case = _new(f"{term.sandbox}.off", term.check, 0.0)
    case.result = [Skipped(one_line(xml_text(f"off: {term.reason}"), 300), "off")]
    return case


def _case(
    suite: str, row: Any, *, several: bool, counted: bool, blamed: Fault | None, advisory: str, command: str
) -> TestCase:
    case = _new(suite, f"{row.check} [{row.allocation[:8] or '-'}]" if several else row.check, row.duration_s)
    if row.check != LEFT_OUT:
        case.file = xml_text(f"src/sifproof/checks/{row.suite}.py")
    required = row.required and counted
    if row.verdict in FAILED and required:
        case.result = [_result(Failure if blamed is Fault.IMAGE else Error, row, command)]
    elif row.verdict == "not-measured" and required:
        case.result = [_result(Error, row, command)]
    elif row.verdict not in FINE:
        reason = row.verdict if row.required else f"{row.verdict}, not required{advisory and f' ({advisory})'}"
        message = f"{reason}: {row.message}" if row.message else reason
        case.result = [Skipped(one_line(xml_text(message), 300), row.verdict)]
    elif row.message:
        unjudged = "measured, without a limit to judge it by: " if row.verdict == "measured" else ""
        case.system_out = xml_text(f"{unjudged}{row.message}")
    return case


def _result(kind: type[FinalResult], row: Any, command: str) -> FinalResult:
    result = kind(one_line(xml_text(row.message), 300) or row.verdict, row.verdict)
    lines = [row.message] if row.message else []
    if not pd.isna(row.value):
        limit = "" if pd.isna(row.limit) else f", limit: {row.limit:g} {row.unit}"
        lines.append(f"value: {row.value:g} {row.unit}{limit}")
    lines.append(f"driver: {row.driver}, node: {row.node or '-'}, allocation: {row.allocation or '-'}")
    result.text = xml_text("\n".join([*lines, *_again(command)]))
    return result


def _again(command: str) -> list[str]:
    return [f"run again: {command}"] if command else []


def _reason_case(number: int, reason: Reason, command: str) -> TestCase:
    case = _new(f"{reason.sandbox or 'run'}.gate", f"{number} {reason.fault.value}", 0.0)
    error = Error(one_line(xml_text(reason.text), 300), reason.fault.value)
    error.text = xml_text(
        "\n".join(filter(None, [reason.text, reason.todo, *map(str, reason.doctor), *_again(command)]))
    )
    case.result = [error]
    return case


def _new(suite: str, name: str, seconds: float) -> _Case:
    return _Case(xml_text(name), classname=xml_text(suite), time=round(seconds, 6))
