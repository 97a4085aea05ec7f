"""Runs checks and turns whatever happens into verdicts: a check never raises out of its suite."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TextIO

from sifproof.checks.engine import policy
from sifproof.checks.engine.presence import Loss, Lost
from sifproof.checks.engine.registry import Check, Finding, NotApplicable, NotMeasured
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.client import ForbiddenError, UnreachableError
from sifproof.records import FINE, PlannedSandbox, PlannedWaiver, Verdict, Word

LOOK_EVERY_S = 0.5
"""How often Nomad is asked whether all is still there while checks pass: a server that was started again answers."""

Look = Callable[[bool], Loss | None]
"""Whether what is looked at was lost; more is asked where something did not go as it should (True)."""

MESSAGE_LIMIT = 4000
"""Characters of a message: what a server answers stands in every report, and may be any length."""


@dataclass(frozen=True)
class Context:
    """What the verdicts of one subject have in common."""

    run: str
    sandbox: str
    driver: str
    node: str = ""
    allocation: str = ""
    log: TextIO | None = field(default=None, compare=False)
    required: Collection[str] = ()
    advisory: Mapping[str, str] = field(default_factory=dict)
    waivers: Mapping[str, PlannedWaiver] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: str, planned: PlannedSandbox, log: TextIO | None = None) -> Context:
        """That of a sandbox of the plan; :meth:`at` is that of one of its allocations."""
        return cls(
            run,
            planned.name,
            planned.driver,
            log=log,
            required=planned.required,
            advisory=planned.advisory,
            waivers=planned.waivers,
            limits=planned.limits,
        )

    def at(self, node: str, allocation: str) -> Context:
        """The same for one allocation."""
        return replace(self, node=node, allocation=allocation)

    def verdict(
        self,
        check: Check,
        word: Word,
        message: str,
        *,
        seconds: float = 0.0,
        finding: Finding | None = None,
        fault: Fault | None = None,
        hindered: bool = False,
    ) -> Verdict:
        """The verdict of ``check`` here; ``fault`` is who has to act, where that is not whom the check blames."""
        return Verdict(
            run=self.run,
            sandbox=self.sandbox,
            driver=self.driver,
            node=self.node,
            allocation=self.allocation,
            suite=check.suite,
            check=check.id,
            verdict=word,
            value=finding.value if finding else None,
            unit=finding.unit if finding else "",
            limit=finding.limit if finding else None,
            duration_s=round(seconds, 4),
            waited_s=round(min(max(check.waits_s, finding.waited_s if finding else 0), seconds), 4),
            attempts=0 if word == "not-measured" and seconds == 0 else 1,
            message=_bounded(message),
            fault=fault or check.blames,
            hindered=hindered,
        )

    def say(self, text: str) -> None:
        """A line for the log of the rule."""
        if self.log is not None:
            print(text, file=self.log, flush=True)


def run_checks(
    checks: Iterable[Check],
    subject: object,
    context: Context,
    *,
    blocked: str = "",
    hindered_by: Fault | None = None,
    look: Look = lambda thorough: None,
) -> Iterator[Verdict]:
    """One verdict per check, in order.

    ``blocked`` is the reason why nothing can be looked at: every verdict is then ``not-measured``; ``hindered_by`` is
    who has to act, where that came from outside the checks. A check that ``guards`` and fails blocks those after it.
    One that fails is tried a second time, unless that would prove nothing (``once``, ``guards``): where it then passes,
    it is ``flaky``. ``look`` tells what was lost: the check at work fails where the server died of itself or of its
    job, it is ``not-measured`` where something else took it away, and those after it are blocked.
    """
    every = list(checks)
    loss = None if blocked else look(False)
    looked = time.monotonic()
    for left, check in zip(range(len(every) - 1, -1, -1), every, strict=True):
        if blocked:
            verdict = context.verdict(
                check, "not-measured", blocked, fault=hindered_by, hindered=hindered_by is not None
            )
        else:
            verdict = context.verdict(check, "not-measured", "") if loss else _tried(check, subject, context, look)
            troubled = verdict.verdict not in FINE and verdict.required
            if not loss and (troubled or not left or time.monotonic() - looked > LOOK_EVERY_S):
                loss, looked = look(troubled), time.monotonic()
            if loss:
                verdict = _lost(loss, verdict)
                blocked, hindered_by = _blocked_by_loss(loss, check), loss.error.fault
            elif check.guards and verdict.verdict != "pass":
                blocked, hindered_by = blocked_by(verdict), verdict.fault if verdict.hindered else None
        # That a server died is no finding of the check that was at work, which may be waived.
        if not (verdict.hindered and verdict.verdict == "fail"):
            verdict = policy.judge(verdict, context.advisory, context.waivers, context.required)
        context.say(f"{verdict.verdict:12} {check.id:28} {verdict.duration_s:6.3f} s  {verdict.message}".rstrip())
        yield verdict


def blocked_by(verdict: Verdict) -> str:
    """The reason that later checks give when ``verdict`` of a guarding check is not a pass."""
    if verdict.hindered:
        met = f"not looked at, because of what {verdict.check} met: "
        return verdict.message if verdict.message.startswith("not looked at, ") else met + verdict.message
    return f"not looked at, because {verdict.check} did not pass: {verdict.message}"


def _blocked_by_loss(loss: Loss, check: Check) -> str:
    return f"not looked at, because of what {check.id} met: {loss.error}"


def _tried(check: Check, subject: object, context: Context, look: Look) -> Verdict:
    """The verdict of ``check``, tried a second time where that may prove something."""
    verdict = _run(check, subject, context)
    if verdict.verdict != "fail" and not verdict.hindered:
        return verdict
    if check.once or check.guards or look(True):
        return verdict
    second = _run(check, subject, context)
    if verdict.hindered:  # it was not looked at: nothing to hold against the second
        return second.model_copy(update={"attempts": 2})
    return _again(verdict, second)


def _lost(loss: Loss, verdict: Verdict) -> Verdict:
    """``verdict`` of the check during which ``loss`` was noticed."""
    if not loss.died and verdict.verdict in FINE:
        return verdict
    changes = {"message": _bounded(str(loss.error)), "fault": loss.error.fault, "hindered": True, "required": True}
    if not loss.died:
        return verdict.model_copy(update={**changes, "verdict": "not-measured"})
    said = f"; it had said: {verdict.message}" if verdict.verdict != "not-measured" and verdict.message else ""
    message = _bounded(f"the server died during this check{said}. {loss.error}")
    return verdict.model_copy(update={**changes, "message": message, "verdict": "fail"})


def _bounded(message: str) -> str:
    if len(message) <= MESSAGE_LIMIT:
        return message
    return f"{message[:MESSAGE_LIMIT]}… (cut: it has {len(message):,} characters)"


def _again(first: Verdict, second: Verdict) -> Verdict:
    """What two tries of a check amount to, the first of which failed."""
    both = {
        "attempts": 2,
        "duration_s": round(first.duration_s + second.duration_s, 4),
        "waited_s": round(first.waited_s + second.waited_s, 4),
    }
    if second.verdict in FINE:
        message = f"failed, and passed on a second try; the first time: {first.message}"
        # What failed is what has to be read: its value, and who is to blame.
        return first.model_copy(update={**both, "verdict": "flaky", "message": message})
    return (second if second.verdict == "fail" else first).model_copy(update=both)


def _run(check: Check, subject: object, context: Context) -> Verdict:
    start = time.perf_counter()
    finding: Finding | None = None
    fault: Fault | None = None
    required, hindered = True, False
    word: Word
    try:
        finding = _limited(check, check.function(subject), context.limits.get(check.id))
        word = "pass" if finding.passed else "fail"
        if finding.passed and check.limit_judges and finding.limit is None:
            word = "measured"
        message, fault = finding.saw, finding.fault
    except NotMeasured as reason:
        word, message, required = "not-measured", str(reason), not isinstance(reason, NotApplicable)
    except Lost as error:
        word, message, hindered = "not-measured", str(error), True
    except (UnreachableError, ForbiddenError) as error:  # what can't be asked is not known
        word, message, fault, hindered = "not-measured", str(error), error.fault, True
    except SifproofError as error:
        word, message, fault = "fail", str(error), error.fault
    except (ConnectionError, TimeoutError) as error:  # the other end's doing, not the check's
        broke = "no answer came in time" if isinstance(error, TimeoutError) else "the connection broke off"
        word, message = "fail", f"{broke} ({str(error) or type(error).__name__})"
    except Exception as error:  # a fault of the check itself must not look like one of the image
        context.say(traceback.format_exc())
        word, message = "not-measured", f"the check itself failed ({type(error).__name__}: {error}); please report it"
    seconds = time.perf_counter() - start
    verdict = context.verdict(check, word, message, seconds=seconds, finding=finding, fault=fault, hindered=hindered)
    return verdict.model_copy(update={"required": required})


def _limited(check: Check, finding: Finding, limit: float | None) -> Finding:
    """``finding`` of a check that measures, judged by the limit of the config."""
    if not check.unit or (finding.value is None and not finding.passed):
        return finding
    if finding.value is None:
        raise ValueError("it passed without a value")
    if limit is None:
        return replace(finding, unit=check.unit)
    kept = finding.value >= limit if check.at_least else finding.value <= limit
    allowed = f"at {'least' if check.at_least else 'most'} {policy.amount(limit, check.unit)} allowed"
    return replace(
        finding, passed=finding.passed and kept, saw=f"{finding.saw}; {allowed}", unit=check.unit, limit=limit
    )
