"""On which terms a run was judged: what its config waives, makes advisory, turns off and limits; what came of it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from sifproof.records import FINE, IdleState, Plan, PlannedSandbox, PlannedWaiver, Verdict

State = Literal["used", "expired", "no longer needed"] | IdleState

FAILED = frozenset({"fail", "flaky"})
_IDLE = frozenset(get_args(IdleState))


class WaiverTerm(BaseModel):
    """A waiver, by the check that it counts for; one that counts for none is there as well."""

    model_config = ConfigDict(extra="forbid")

    sandbox: str = Field(description="name of the sandbox")
    check: str = Field(description="id of the check; of a waiver that counts for none what the config names")
    reason: str = Field(description="why the check may fail, as the config says")
    until: datetime.date = Field(description="last day that the waiver counts")
    ended: bool = Field(description="whether that day is over")
    state: State = Field(
        description="used: the check failed and that was waived; expired: it failed, and the day is over; no longer "
        "needed: it passed; not looked at: it was not measured, is off, or its suite was not run; does not apply: it "
        "is for other drivers; another counts: another waiver says more of it"
    )

    def said(self) -> str:
        """The state, and what the day adds to it."""
        return f"{self.state}, expired" if self.ended and self.state in _IDLE else self.state


class AdvisoryTerm(BaseModel):
    """A check that is run and rejects nothing."""

    model_config = ConfigDict(extra="forbid")

    sandbox: str = Field(description="name of the sandbox")
    check: str = Field(description="id of the check")
    reason: str = Field(description="why it is not required")
    verdict: str = Field(description="what came of it, the worst of all allocations; empty where nothing was recorded")
    text: str = Field(default="", description="what was seen, where it did not pass")


class OffTerm(BaseModel):
    """A check that was not run."""

    model_config = ConfigDict(extra="forbid")

    sandbox: str = Field(description="name of the sandbox")
    check: str = Field(description="id of the check")
    reason: str = Field(description="why not")


class LimitTerm(BaseModel):
    """A limit of the config."""

    model_config = ConfigDict(extra="forbid")

    sandbox: str = Field(description="name of the sandbox")
    check: str = Field(description="id of the check")
    limit: float = Field(description="the most, or of a rate the least, that it may measure, in its unit")
    values: list[float] = Field(description="what it measured, one for each allocation")
    unit: str = Field(default="", description="unit of both; empty where nothing was measured")


class Terms(BaseModel):
    """On which terms a run was judged, sandbox by sandbox."""

    model_config = ConfigDict(extra="forbid")

    waivers: list[WaiverTerm] = Field(default=[], description="waivers of the config")
    advisory: list[AdvisoryTerm] = Field(default=[], description="checks that were run and are not required")
    off: list[OffTerm] = Field(default=[], description="checks of its suites that were not run")
    limits: list[LimitTerm] = Field(default=[], description="limits of the config")

    def of(self, sandbox: str) -> Terms:
        """Those of one sandbox."""
        return Terms(
            waivers=[term for term in self.waivers if term.sandbox == sandbox],
            advisory=[term for term in self.advisory if term.sandbox == sandbox],
            off=[term for term in self.off if term.sandbox == sandbox],
            limits=[term for term in self.limits if term.sandbox == sandbox],
        )

    def failing(self) -> list[AdvisoryTerm]:
        """What would have rejected the run, were it required."""
        return [term for term in self.advisory if term.verdict in FAILED]


WORST_FIRST = ("fail", "flaky", "not-measured", "waived", "measured", "pass")


def terms_of(plan: Plan, verdicts: Sequence[Verdict]) -> Terms:
    """The terms of ``plan``, and what ``verdicts`` made of them."""
    terms = Terms()
    for sandbox in plan.sandboxes:
        rows: dict[str, list[Verdict]] = {}
        for row in verdicts:
            if row.run == plan.run and row.sandbox == sandbox.name:
                rows.setdefault(row.check, []).append(row)
        terms.waivers += _waivers(sandbox, rows, plan.started)
        if sandbox.left_out:
            continue
        for check, reason in sandbox.advisory.items():
            worst = min(rows.get(check, []), key=lambda row: WORST_FIRST.index(row.verdict), default=None)
            word, text = (worst.verdict, worst.message) if worst else ("", "")
            term = AdvisoryTerm(sandbox=sandbox.name, check=check, reason=reason, verdict=word)
            terms.advisory.append(term.model_copy(update={"text": text if word not in FINE else ""}))
        terms.off += [OffTerm(sandbox=sandbox.name, check=c, reason=reason) for c, reason in sandbox.off.items()]
        for check, limit in sandbox.limits.items():
            seen = [row for row in rows.get(check, []) if row.value is not None]
            values = [row.value for row in seen if row.value is not None]
            unit = seen[0].unit if seen else ""
            terms.limits.append(LimitTerm(sandbox=sandbox.name, check=check, limit=limit, values=values, unit=unit))
    return terms


def _waivers(sandbox: PlannedSandbox, rows: dict[str, list[Verdict]], started: str) -> Iterator[WaiverTerm]:
    def term(check: str, waiver: PlannedWaiver, state: State) -> WaiverTerm:
        # ISO 8601, UTC: the day comes first.
        ended = bool(started) and waiver.until.isoformat() < started[:10]
        named = {"sandbox": sandbox.name, "check": check, "reason": waiver.reason, "until": waiver.until}
        return WaiverTerm.model_validate({**named, "ended": ended, "state": state})

    for check, waiver in sandbox.waivers.items():
        words = {row.verdict for row in rows.get(check, [])}
        state: State = "not looked at"
        if "waived" in words:
            state = "used"
        elif words & FAILED:
            state = "expired"
        elif words & FINE:
            state = "no longer needed"
        yield term(check, waiver, state)
    for idle in sandbox.idle_waivers:
        yield term(idle.check, idle, idle.state)
