"""Runs checks and turns whatever happens into verdicts: a check never raises out of its suite."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from sifproof.checks.registry import Check, Finding, NotApplicable, NotMeasured
from sifproof.errors import Fault, SifproofError
from sifproof.records import Verdict, Word


@dataclass(frozen=True)
class Context:
    """What the verdicts of one subject have in common."""

    run: str
    sandbox: str
    driver: str
    node: str = ""
    allocation: str = ""
    log: TextIO | None = field(default=None, compare=False)

    def verdict(
        self,
        check: Check,
        word: Word,
        message: str,
        *,
        seconds: float = 0.0,
        finding: Finding | None = None,
        fault: Fault | None = None,
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
            attempts=0 if word == "not-measured" and seconds == 0 else 1,
            message=message,
            fault=fault or check.blames,
        )

    def say(self, text: str) -> None:
        """A line for the log of the rule."""
        if self.log is not None:
            print(text, file=self.log, flush=True)


def run_checks(checks: Iterable[Check], subject: object, context: Context, *, blocked: str = "") -> Iterator[Verdict]:
    """One verdict per check, in order.

    ``blocked`` is the reason why nothing can be looked at: every verdict is then ``not-measured``. A check that
    ``guards`` and fails blocks those after it.
    """
    for check in checks:
        if blocked:
            verdict = context.verdict(check, "not-measured", blocked)
        else:
            verdict = _run(check, check.function, subject, context)
            if check.guards and verdict.verdict != "pass":
                blocked = blocked_by(verdict)
        context.say(f"{verdict.verdict:12} {check.id:28} {verdict.duration_s:6.3f} s  {verdict.message}".rstrip())
        yield verdict


def blocked_by(verdict: Verdict) -> str:
    """The reason that later checks give when ``verdict`` of a guarding check is not a pass."""
    return f"not looked at, because {verdict.check} did not pass: {verdict.message}"


def _run(check: Check, function: Callable[..., Finding], subject: object, context: Context) -> Verdict:
    start = time.perf_counter()
    finding: Finding | None = None
    fault: Fault | None = None
    required = True
    word: Word
    try:
        finding = function(subject)
        word = "pass" if finding.passed else "fail"
        message = finding.saw
    except NotMeasured as reason:
        word, message, required = "not-measured", str(reason), not isinstance(reason, NotApplicable)
    except SifproofError as error:
        word, message, fault = "fail", str(error), error.fault
    except Exception as error:  # a fault of the check itself must not look like one of the image
        context.say(traceback.format_exc())
        word, message = "not-measured", f"the check itself failed ({type(error).__name__}: {error}); please report it"
    verdict = context.verdict(check, word, message, seconds=time.perf_counter() - start, finding=finding, fault=fault)
    return verdict.model_copy(update={"required": required})
