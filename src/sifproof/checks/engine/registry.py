"""What a check is: an id, a requirement in a sentence, why it matters, what to do when it fails, and a function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from sifproof.config import DRIVERS, SUITES
from sifproof.errors import Fault, SifproofError

TEARDOWN = "teardown"
ALL_SUITES: tuple[str, ...] = (*SUITES, TEARDOWN)
"""In the order they run."""


@dataclass(frozen=True)
class Finding:
    """What a check saw. ``value`` and ``limit`` are in ``unit``; a limit is the most that value may be.

    Of a check that has a unit, the runner judges the value against the limit of the config, where there is one.
    ``fault`` is who has to act, where what was seen tells that better than the check's ``blames``.
    ``waited_s`` are the seconds that it waited on purpose, where they were more than the check's ``waits_s``.
    """

    passed: bool
    saw: str = ""
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    fault: Fault | None = None
    waited_s: float = 0.0


class NotMeasured(Exception):  # noqa: N818 - an outcome, not an error
    """Raised by a check that could not look; its text is the reason. The run is then incomplete."""


class NotApplicable(NotMeasured):
    """Raised by a check that has nothing to look at here, whatever the image is like: it does not count against it."""


def expect(passed: bool, saw: object = "", *, waited_s: float = 0.0) -> Finding:
    """A finding: whether it is as required, and what was seen."""
    return Finding(bool(passed), str(saw), waited_s=waited_s)


def measured(value: float, saw: str) -> Finding:
    """A finding of a check with a unit: ``value`` in that unit. The runner puts the limit of the config to it."""
    return Finding(True, saw, value)


def at_most(value: float, limit: float, unit: str, saw: str = "") -> Finding:
    """A finding that ``value`` does not exceed ``limit``."""
    return Finding(value <= limit, saw or f"{value:.3g} {unit}, at most {limit:g} {unit} allowed", value, unit, limit)


@dataclass(frozen=True)
class Check:
    """One registered check; ``function`` takes the subject of its suite and returns a :class:`Finding`.

    ``drivers``
        to whose sandboxes it applies; for others it is not planned.
    ``advisory``
        for which drivers it is not required unless the config says so, with the reason.
    ``given_by``
        settings of a sandbox; where one is on, ``advisory`` does not count, for the sandbox can then keep it.
    ``waits_s``
        seconds that it waits on purpose, for a time-out or a command that sleeps: no cost of the gate's own.
    ``unit``, ``at_least``
        of a check that measures: unit of its value, ``s``, ``B`` or ``/s``, and whether a limit is the least allowed.
    ``limit_judges``
        of a check that measures: without a limit of the config nothing is judged, and the verdict is ``measured``.
    ``takes_memory``
        it has the memory of the job run out on purpose.
    ``once``
        not tried a second time when it fails: it changes what it looks at, or has waited already.
    """

    id: str
    requirement: str
    why: str
    todo: str
    function: Callable[..., Finding]
    blames: Fault = Fault.IMAGE
    guards: bool = False
    drivers: tuple[str, ...] = DRIVERS
    advisory: Mapping[str, str] = field(default_factory=dict)
    waits_s: float = 0.0
    unit: str = ""
    at_least: bool = False
    limit_judges: bool = False
    once: bool = False
    given_by: tuple[str, ...] = ()
    takes_memory: bool = False

    @property
    def suite(self) -> str:
        """The first part of the id."""
        return self.id.partition(".")[0]


F = TypeVar("F", bound=Callable[..., Finding])
_registry: dict[str, Check] = {}


def check(
    id: str,
    requirement: str,
    *,
    why: str,
    todo: str,
    blames: Fault = Fault.IMAGE,
    guards: bool = False,
    drivers: tuple[str, ...] = DRIVERS,
    advisory: Mapping[str, str] | None = None,
    waits_s: float = 0.0,
    unit: str = "",
    at_least: bool = False,
    limit_judges: bool = False,
    once: bool = False,
    given_by: tuple[str, ...] = (),
    takes_memory: bool = False,
) -> Callable[[F], F]:
    """Register the function below as the check ``id``; the arguments are those of :class:`Check`.

    ``blames`` says who has to act when it fails. ``guards`` marks a check without which nothing else that the server
    says can be believed: where it fails, the checks after it on that allocation are ``not-measured``.
    """

    def register(function: F) -> F:
        if id in _registry:
            raise ValueError(f"two checks are called {id}")
        _registry[id] = Check(
            id,
            requirement,
            why,
            todo,
            function,
            blames,
            guards,
            drivers,
            dict(advisory or {}),
            waits_s,
            unit,
            at_least,
            limit_judges,
            once,
            given_by,
            takes_memory,
        )
        return function

    return register


def load() -> dict[str, Check]:
    """Every check by id, suites and checks in the order they run."""
    for suite in ALL_SUITES:
        importlib.import_module(f"sifproof.checks.{suite}")
    return dict(sorted(_registry.items(), key=lambda item: ALL_SUITES.index(item[1].suite)))


def of_suite(suite: str) -> list[Check]:
    """The checks of ``suite`` in the order they run; raises :class:`SifproofError` for a suite that has none."""
    if suite not in ALL_SUITES:
        raise SifproofError(
            f"There is no suite {suite!r}",
            todo=f"Choose from {', '.join(ALL_SUITES)}",
            fault=Fault.CONFIGURATION,
        )
    return [item for item in load().values() if item.suite == suite]
