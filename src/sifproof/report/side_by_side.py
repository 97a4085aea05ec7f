"""Whose a failure is under a job that is not sifproof's own: the job's, the image's or the node's.

The best evidence is the same image under sifproof's own job in the same run: what passes there and fails under the job
of production, that job lets happen. What fails under both is not the job's, nor is what fails now and then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sifproof.errors import Fault
from sifproof.records import FaultRecord, Plan, PlannedSandbox, Verdict

OF_THE_JOB = ("isolation.host.", "teardown.")
"""Checks of what a job's own line decides, by the beginnings of their ids: it is to blame unless shown otherwise."""

STARTED = "health.ready"
"""The check that a server passes which has started."""


def blame(plan: Plan, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """``verdicts``, in which failures that a job of the config's explains are the configuration's fault."""
    sandboxes = {sandbox.name: sandbox for sandbox in plan.sandboxes}
    return [_blamed(row, sandboxes.get(row.sandbox), plan, verdicts) for row in verdicts]


def blame_faults(plan: Plan, verdicts: Sequence[Verdict], faults: Sequence[FaultRecord]) -> list[FaultRecord]:
    """``faults``, in which a server that did not start under a job of the config's is the configuration's fault.

    Where it did start under sifproof's own job with the same image, that is.
    """
    sandboxes = {sandbox.name: sandbox for sandbox in plan.sandboxes}
    ready = {row.sandbox for row in verdicts if (row.check, row.verdict) == (STARTED, "pass")}

    def blamed(record: FaultRecord) -> FaultRecord:
        sandbox = sandboxes.get(record.sandbox)
        if sandbox is None or sandbox.job == "contained" or (record.stage, record.fault) != ("submit", Fault.IMAGE):
            return record
        starts = [twin.name for twin in _alike(sandbox, plan) if twin.name in ready]
        if not starts:
            return record
        said = f"To blame is {_whose(sandbox)}: under sifproof's own ({starts[0]}) the same image starts."
        todo = "compare the command of the job with that of sifproof's own, in jobs/ of the run's folder"
        return record.model_copy(update={"fault": Fault.CONFIGURATION, "why": _with(record.why, said), "todo": todo})

    return [blamed(record) for record in faults]


def _whose(sandbox: PlannedSandbox) -> str:
    return "the job that production runs" if sandbox.job == "given" else "the plain job"


def _blamed(row: Verdict, sandbox: PlannedSandbox | None, plan: Plan, verdicts: Sequence[Verdict]) -> Verdict:
    if sandbox is None or sandbox.job == "contained" or row.verdict not in ("fail", "flaky"):
        return row
    words = {
        twin.name: {seen.verdict for seen in verdicts if (seen.sandbox, seen.check) == (twin.name, row.check)}
        for twin in _alike(sandbox, plan)
    }
    passes = [name for name, seen in words.items() if seen == {"pass"}]
    fails = [name for name, seen in words.items() if seen & {"fail", "waived"}]
    whose = _whose(sandbox)
    if passes and row.verdict == "flaky":
        # It passed under this job too: that it passes under the other says nothing of either.
        said = f"It passed under {whose} too, as it does under sifproof's own ({passes[0]})."
        return row.model_copy(update={"message": _with(row.message, said)})
    if passes:
        said = f"To blame is {whose}: under sifproof's own ({passes[0]}) the same image passes."
    elif fails:
        said = f"It is not {whose} alone: under sifproof's own ({fails[0]}) the same image fails too."
        return row.model_copy(update={"message": _with(row.message, said)})
    elif row.check.startswith(OF_THE_JOB):
        said = f"To blame is {whose}, unless sifproof's own, beside it in one run, fails too."
    else:
        return row
    return row.model_copy(update={"message": _with(row.message, said), "fault": Fault.CONFIGURATION})


def advice(sandbox: PlannedSandbox, plan: Plan) -> str:
    """What to do about a failure that the job of ``sandbox`` is to blame for; nothing where the job is sifproof's own.

    It goes before the advice of the check, which is written for sifproof's own job.
    """
    if sandbox.job == "contained":
        return ""
    change = "Change the job" if sandbox.job == "given" else "Leave `containment: plain` out, or accept what it lets in"
    own = next(_alike(sandbox, plan), None)
    if own is None:
        shown = "a sandbox with the same image and sifproof's own job, in the same run, shows whether that passes"
    else:
        shown = f"sifproof's own job is `jobs/{own.name}.json` in the folder of this run, to compare"
    return f"{change}; {shown}. For sifproof's own job the advice is:"


def _with(message: str, said: str) -> str:
    return f"{message.rstrip('.')}. {said}" if message else said


def _alike(sandbox: PlannedSandbox, plan: Plan) -> Iterator[PlannedSandbox]:
    """The sandboxes of the run with the same image and driver under sifproof's own job."""
    for other in plan.sandboxes:
        if other.job == "contained" and (other.image, other.driver) == (sandbox.image, sandbox.driver):
            yield other
