"""The gate's decision: what the recorded verdicts and faults of a run amount to. Pure: no file, no clock.

Who has to act decides the word, and where several have to, the first of these does:

1. *rejected*: evidence against the image stands whatever else went wrong. A failure that was measured on broken
   infrastructure, or on a node that the doctor saw lack what the check takes, is no such evidence and counts as the
   infrastructure's.
2. *configuration*: a run with another configuration is needed before anything else can be said.
3. *infrastructure*: mend it and run again; the image is not judged.
4. *incomplete*: nothing failed, but not all that was planned was measured, and no recorded fault says why.

What the run left out by plan does not count, but a run that measured nothing is incomplete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from sifproof.config import SUITES
from sifproof.doctor.record import Doctor, Explanation
from sifproof.errors import Fault
from sifproof.records import FaultRecord, Plan, PlannedSandbox, Verdict
from sifproof.report import side_by_side
from sifproof.report.terms import FAILED, Terms, terms_of
from sifproof.text import one_line

TEARDOWN = "teardown"
"""The suite about a job as a whole, needed for every sandbox, whatever suites the config chose."""

FOUNDATION = "health"
"""The suite that proves with whom the others talk."""

NESTING = "user-namespaces"
"""What the doctor calls its finding on user namespaces, one in another."""

NESTED = frozenset(
    [
        "bubblewrap.available",
        "bubblewrap.used",
        "isolation.host.kernel-settings",
        *(
            f"isolation.slot.{name}"
            for name in ("files-read", "files-written", "tmp", "tmp-own", "processes", "signals", "environment")
        ),
    ]
)
"""The checks that no server can keep under Apptainer where bubblewrap gets no user namespace. What a server says of
its sandboxes, and refuses, it can keep anywhere."""


class Outcome(StrEnum):
    """The word for a run. ``exit_code`` is what ``sifproof run`` exits with."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CONFIGURATION = "configuration"
    INFRASTRUCTURE = "infrastructure"
    INCOMPLETE = "incomplete"

    @property
    def exit_code(self) -> int:
        """0 accepted, 1 rejected, 2 configuration, 3 infrastructure, 4 incomplete."""
        return list(Outcome).index(self)

    @classmethod
    def of(cls, faults: Iterable[Fault]) -> Outcome:
        """The word for a run or sandbox with these faults."""
        return list(cls)[min((fault.exit_code for fault in faults), default=0)]


Standing = Literal["accepted", "rejected", "configuration", "infrastructure", "incomplete", "not-measured"]


class CheckDescription(Protocol):
    """What the registry knows about a check."""

    @property
    def requirement(self) -> str: ...  # noqa: D102
    @property
    def why(self) -> str: ...  # noqa: D102
    @property
    def todo(self) -> str: ...  # noqa: D102


Describe = Callable[[str], CheckDescription | None]


class Reason(BaseModel):
    """One thing that keeps the run from being accepted."""

    model_config = ConfigDict(extra="forbid")

    fault: Fault = Field(description="who has to act: image, configuration, infrastructure or incomplete")
    sandbox: str = Field(default="", description="the sandbox it concerns; empty for the whole run")
    allocation: str = Field(default="", description="id of the Nomad allocation, where it concerns one")
    check: str = Field(default="", description="id of the check that failed, where one did")
    text: str = Field(description="what happened, and why")
    todo: str = Field(default="", description="what to do next")
    follows: bool = Field(default=False, description="whether it only follows from another of the reasons")
    doctor: list[Explanation] = Field(default=[], description="what the doctor saw that may be behind it")


class SandboxDecision(BaseModel):
    """What the run says about one sandbox."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="name of the sandbox in the config")
    driver: str = Field(description="singularity or docker")
    verdict: Standing = Field(description="the run's word for this sandbox alone; not-measured where it was left out")
    reason: str = Field(default="", description="why it is not accepted, or was left out")
    counts: dict[str, int] = Field(description="number of verdicts by word")


class Decision(BaseModel):
    """The gate's decision on a run."""

    model_config = ConfigDict(extra="forbid")

    verdict: Outcome = Field(description="accepted, rejected, configuration, infrastructure or incomplete")
    exit_code: int = Field(description="what `sifproof run` exits with: 0, 1, 2, 3 or 4, in the order of these words")
    sentence: str = Field(description="the decision in one line")
    reasons: list[Reason] = Field(description="all that keeps the run from being accepted, the weightiest first")
    sandboxes: list[SandboxDecision] = Field(description="the decision on each sandbox of the plan")
    terms: Terms = Field(default=Terms(), description="what the config waives, makes advisory, turns off and limits")


def decide(
    plan: Plan,
    verdicts: Sequence[Verdict],
    faults: Sequence[FaultRecord] = (),
    problems: Sequence[str] = (),
    describe: Describe | None = None,
    *,
    doctor: Doctor | None = None,
) -> Decision:
    """The decision on a run.

    ``problems`` are records that could not be read, a sentence each; ``describe`` gives what the registry knows about
    a check by its id. What ``doctor`` saw is put beside the reasons that it may explain. It decides one thing: whose a
    failure of :data:`NESTED` is.
    """
    left_out = {sandbox.name for sandbox in plan.sandboxes if sandbox.left_out}
    counted = [v for v in verdicts if v.run == plan.run and v.sandbox not in left_out]
    faults = [fault for fault in faults if fault.sandbox not in left_out]
    known = {sandbox.name for sandbox in plan.sandboxes}

    of_run = [_of_fault(fault) for fault in faults if fault.sandbox not in known]
    of_run += [Reason(fault=Fault.INCOMPLETE, text=problem) for problem in problems]
    foreign = sorted({v.run for v in verdicts if v.run != plan.run})
    if foreign:
        text = f"Verdicts of another run lay among this one's: {', '.join(foreign)}."
        of_run.append(Reason(fault=Fault.INCOMPLETE, text=text))
    for name in sorted({v.sandbox for v in counted} - known):
        text = f"There are verdicts on sandbox {name!r}, which the plan does not have."
        of_run.append(Reason(fault=Fault.INCOMPLETE, sandbox=name, text=text))
        of_run += _failures([v for v in counted if v.sandbox == name], [], faults, describe)

    def unnested(row: Verdict) -> bool:
        return doctor is not None and _is_unnested(row, doctor, local=plan.nomad_local)

    reasons = list(of_run)
    decisions = []
    for sandbox in plan.sandboxes:
        rows = [v for v in verdicts if v.run == plan.run and v.sandbox == sandbox.name]
        word: Standing = "not-measured"
        reason = sandbox.left_out
        if not sandbox.left_out:
            own = [_of_fault(fault) for fault in faults if fault.sandbox == sandbox.name]
            around = [fault for fault in faults if fault.sandbox in {"", sandbox.name}]
            suites = [*(suite for suite in sandbox.suites if suite != TEARDOWN), TEARDOWN]
            failures = _failures(rows, suites, around, describe, unnested)
            if of_the_job := side_by_side.advice(sandbox, plan):
                for failure in failures:
                    if failure.fault is Fault.CONFIGURATION:
                        failure.todo = f"{of_the_job} {failure.todo}"
            own += failures + _hindrances(rows) + _gaps(sandbox, suites, rows, around, failures)
            own.sort(key=_weight)
            reasons += own
            word = Outcome.of(item.fault for item in own).value
            reason = own[0].text if own else ""
        decisions.append(
            SandboxDecision(
                name=sandbox.name,
                driver=sandbox.driver,
                verdict=word,
                reason=one_line(reason),
                counts=dict(Counter(row.verdict for row in rows)),
            )
        )
    if len(left_out) == len(known):
        text = "Every sandbox was left out, nothing was measured." if known else "The run has no sandbox to measure."
        reasons.append(Reason(fault=Fault.INCOMPLETE, text=text))
    reasons.sort(key=_weight)
    if doctor is not None:
        nodes = {row.allocation: row.node for row in counted if row.allocation}
        _explain(reasons, doctor, nodes, local=plan.nomad_local)
    outcome = Outcome.of(reason.fault for reason in reasons)
    return Decision(
        verdict=outcome,
        exit_code=outcome.exit_code,
        sentence=_sentence(outcome, plan, counted, reasons),
        reasons=reasons,
        sandboxes=decisions,
        terms=terms_of(plan, verdicts),
    )


def _explain(reasons: Sequence[Reason], doctor: Doctor, nodes: Mapping[str, str], *, local: bool) -> None:
    """Put beside each of ``reasons`` what ``doctor`` saw that may be behind it; ``nodes`` by allocation."""
    for reason in reasons:
        if not reason.follows:
            node = nodes.get(reason.allocation, "")
            reason.doctor = doctor.explain(reason.sandbox, reason.check, reason.text, node=node, local=local)


def _weight(reason: Reason) -> tuple[int, bool]:
    return reason.fault.exit_code, reason.follows


def _of_fault(record: FaultRecord) -> Reason:
    text = str(record.model_copy(update={"todo": ""}))
    return Reason(fault=record.fault, sandbox=record.sandbox, text=text, todo=record.todo)


def _explains(record: FaultRecord, suite: str, suites: Sequence[str]) -> bool:
    """Whether a fault can be behind an outcome in ``suite``: a stage can't harm what was measured before it."""
    return record.stage not in suites or suite not in suites or suites.index(record.stage) <= suites.index(suite)


def _is_unnested(row: Verdict, doctor: Doctor, *, local: bool) -> bool:
    """Whether ``row`` is of a check that takes a user namespace in another, and the doctor tried in vain on its node.

    A finding that names no sandbox is of a machine where it could not be tried.
    """
    return row.check in NESTED and any(
        finding.id == NESTING and finding.severity != "fine" and row.sandbox in finding.sandboxes
        for look in doctor.looks
        if (look.machine == row.node if look.node else local)
        for finding in look.findings
    )


def _order(suite: str, suites: Sequence[str]) -> int:
    """The place of ``suite`` in the order they run; one that is not planned comes first, for nothing explains it."""
    return suites.index(suite) if suite in suites else -1


def _failures(
    rows: Sequence[Verdict],
    suites: Sequence[str],
    faults: Sequence[FaultRecord],
    describe: Describe | None,
    unnested: Callable[[Verdict], bool] = lambda row: False,
) -> list[Reason]:
    """A reason for each required check that failed or was flaky; ``unnested`` says of which the node is the cause."""
    failed = [row for row in rows if row.required and row.verdict in FAILED]
    # Where a check of who answers fails for the infrastructure, what answers need not be the image.
    unproven = {row.allocation for row in failed if row.suite == FOUNDATION and row.fault is Fault.INFRASTRUCTURE}
    # Within a suite, verdicts stand in the order they were made.
    places = {id(row): (_order(row.suite, suites), number) for number, row in enumerate(rows)}
    lost = [row for row in rows if row.hindered and row.fault is Fault.INFRASTRUCTURE]
    # How a server ends that has been ended already, or starves, says nothing of it.
    ended_by_config = {row.allocation for row in rows if row.hindered and row.fault is Fault.CONFIGURATION}
    reasons = []
    for row in failed:
        fault = row.fault
        if fault is Fault.IMAGE and (
            row.allocation in unproven
            or (unproven and not row.allocation)
            or any(gone.allocation == row.allocation and places[id(gone)] < places[id(row)] for gone in lost)
            or unnested(row)
            or any(f.fault is Fault.INFRASTRUCTURE and _explains(f, row.suite, suites) for f in faults)
        ):
            fault = Fault.INFRASTRUCTURE
        if fault is Fault.IMAGE and row.suite == TEARDOWN and row.allocation in ended_by_config:
            fault = Fault.CONFIGURATION
        description = describe(row.check) if describe else None
        said = "passed only sometimes" if row.verdict == "flaky" else "failed"
        reasons.append(
            Reason(
                fault=fault,
                sandbox=row.sandbox,
                allocation=row.allocation,
                check=row.check,
                text=f"{row.check} {said}: {row.message}" if row.message else f"{row.check} {said}.",
                todo=description.todo if description else "",
            )
        )
    return reasons


def _hindrances(rows: Sequence[Verdict]) -> list[Reason]:
    """What kept checks from looking, or ended what they looked at: told once for each allocation.

    Of a server that died, the check that was at work tells it already.
    """
    first: dict[str, Verdict] = {}
    for row in rows:
        if row.hindered and (row.required or row.verdict == "fail"):
            first.setdefault(row.allocation, row)
    if len(first) > 1:
        first.pop("", None)
    return [
        Reason(fault=row.fault, sandbox=row.sandbox, allocation=allocation, text=row.message)
        for allocation, row in first.items()
        if row.verdict == "not-measured"
    ]


def _gaps(
    sandbox: PlannedSandbox,
    suites: Sequence[str],
    rows: Sequence[Verdict],
    faults: Sequence[FaultRecord],
    failures: Sequence[Reason],
) -> list[Reason]:
    """What the plan asks for and no verdict answers, one reason for each party that has to act."""
    gaps: dict[Fault, list[str]] = {}
    hindered = {(row.suite, row.allocation): row.fault for row in rows if row.hindered}
    nothing = all(row.verdict == "not-measured" for row in rows)

    def gap(text: str, suite: str, allocation: str = "") -> None:
        # What was kept from being looked at there; nothing at all was measured for whatever was in its way.
        behind = [
            fault
            for (where, whose), fault in hindered.items()
            if (where, whose) == (suite, allocation) or (nothing and not allocation)
        ]
        behind += [record.fault for record in faults if _explains(record, suite, suites)]
        behind += [
            failure.fault
            for failure in failures
            if failure.check.startswith(f"{FOUNDATION}.") and failure.allocation == allocation
        ]
        fault = min(behind, key=lambda item: item.exit_code, default=Fault.INCOMPLETE)
        gaps.setdefault(fault, []).append(text)

    of_allocations = [row for row in rows if row.suite != TEARDOWN]
    checked = {row.allocation for row in of_allocations if row.allocation}
    if nothing:
        gap("no check was measured" if rows else "no check was recorded", suites[0])
    elif len(checked) < sandbox.count:
        gap(f"{len(checked)} of {sandbox.count} allocations were checked", suites[0])
    if rows:
        for suite in suites:
            of_suite = [row for row in rows if row.suite == suite]
            expected = [check for check in sandbox.checks if check.startswith(f"{suite}.")]
            if not of_suite and sandbox.checks and not expected:
                continue  # the policy, or the driver, leaves nothing of it to look at
            if not of_suite:
                _suite_gaps(suite, "", of_suite, expected, gap)
                continue
            # A job that was never placed is torn down all the same: then there is no allocation to name.
            allocations = {row.allocation for row in (rows if suite == TEARDOWN else of_allocations)}
            if suite == TEARDOWN and len(allocations) > 1:
                allocations.discard("")
            for allocation in sorted(allocations):
                _suite_gaps(suite, allocation, [r for r in of_suite if r.allocation == allocation], expected, gap)
        for row in rows:
            if row.suite not in suites and row.required and row.verdict == "not-measured":
                gap(_not_measured(row.check, row.allocation, row.message), row.suite, row.allocation)
    return [
        Reason(
            fault=fault,
            sandbox=sandbox.name,
            text=f"Sandbox {sandbox.name}: {'; '.join(dict.fromkeys(texts))}.",
            follows=fault is not Fault.INCOMPLETE,
        )
        for fault, texts in gaps.items()
    ]


def _suite_gaps(
    suite: str,
    allocation: str,
    rows: Sequence[Verdict],
    expected: Sequence[str],
    gap: Callable[[str, str, str], None],
) -> None:
    """Report to ``gap`` what is missing of ``suite`` on ``allocation``; ``expected`` are the ids of its checks."""
    if not rows:
        gap(f"suite {suite} did not run{_on(allocation)}", suite, allocation)
    elif all(row.verdict == "not-measured" for row in rows) and any(row.required for row in rows):
        gap(_not_measured(f"suite {suite}", allocation, rows[0].message), suite, allocation)
    else:
        for row in rows:
            if row.required and row.verdict == "not-measured":
                gap(_not_measured(row.check, allocation, row.message), suite, allocation)
        recorded = {row.check for row in rows}
        for check in expected:
            if check not in recorded:
                gap(f"{check} was not recorded{_on(allocation)}", suite, allocation)


def _not_measured(what: str, allocation: str, message: str) -> str:
    return f"{what} was not measured{_on(allocation)}" + (f" ({one_line(message, 160)})" if message else "")


def _on(allocation: str) -> str:
    return f" on allocation {allocation[:8]}" if allocation else ""


def _sentence(outcome: Outcome, plan: Plan, counted: Sequence[Verdict], reasons: Sequence[Reason]) -> str:
    required = [row for row in counted if row.required]
    measured = [sandbox.name for sandbox in plan.sandboxes if not sandbox.left_out]
    left_out = [sandbox for sandbox in plan.sandboxes if sandbox.left_out]
    weightiest = [reason for reason in reasons if reason.fault.exit_code == outcome.exit_code]
    checks = list(dict.fromkeys(reason.check for reason in weightiest if reason.check))
    where = _listed(list(dict.fromkeys(reason.sandbox for reason in weightiest if reason.check)))
    if outcome is Outcome.ACCEPTED:
        waived = sum(row.verdict == "waived" for row in required)
        unjudged = sum(row.verdict == "measured" for row in counted)
        passed = sum(row.verdict == "pass" for row in required)
        text = f"{_number(passed, 'required check')} passed on {_listed(measured)}"
        text += _part(plan)
        text += f", {unjudged} measured without a limit" if unjudged else ""
        text += f", {waived} waived" if waived else ""
        loose = sum(row.verdict in FAILED for row in counted if not row.required)
        text += f"; {_number(loose, 'advisory check')} failed" if loose else ""
        off = sum(len(sandbox.off) for sandbox in plan.sandboxes if not sandbox.left_out)
        text += f"; {_number(off, 'check')} off" if off else ""
    elif outcome is Outcome.REJECTED and checks:
        failed = sum(bool(reason.check) for reason in weightiest)
        text = f"{failed} of {_number(len(required), 'required check')} failed on {where}: {_listed(checks, 3)}"
    else:
        more = sum(not reason.follows for reason in reasons) - 1
        text = reasons[0].text.rstrip(".") + (f" (and {_number(more, 'more reason')})" if more else "")
    if left_out and measured:
        text += f"; left out: {_listed([item.name for item in left_out])}"
    opening = {
        Outcome.ACCEPTED: "Accepted",
        Outcome.REJECTED: "Rejected",
        Outcome.CONFIGURATION: "Wrong configuration, the image is not judged",
        Outcome.INFRASTRUCTURE: "Infrastructure at fault, the image is not judged",
        Outcome.INCOMPLETE: "Incomplete, the image is not judged",
    }[outcome]
    return one_line(f"{opening}: {text}.", 400)


def _part(plan: Plan) -> str:
    """Which suites were run, where that is not all there are."""
    measured = [sandbox for sandbox in plan.sandboxes if not sandbox.left_out]
    asked = {suite for sandbox in measured for suite in sandbox.suites if suite != TEARDOWN}
    if asked >= set(SUITES):
        return ""
    checks = [check.partition(".")[0] for sandbox in measured for check in sandbox.checks]
    run = asked & set(checks) if checks else asked
    return f", of the suites {_listed(sorted(run, key=SUITES.index))} alone"


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = list(names[:most])
    if len(names) > most:
        return ", ".join(shown) + f" and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
