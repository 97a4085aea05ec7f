"""What a sandbox must pass: the config's policy, waivers and limits, put to the catalogue and to verdicts.

The plan of a run holds the outcome by check id (:func:`plan_checks`); verdicts are judged by the plan alone
(:func:`judge`), so that what is read in a run's folder is what counted.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from sifproof import config
from sifproof.checks.engine import registry
from sifproof.checks.engine.registry import Check
from sifproof.records import FINE, IdleWaiver, PlannedWaiver, Verdict

Level = Literal["required", "advisory", "off"]
LEVELS: tuple[Level, ...] = get_args(Level)

UNITS: dict[str, dict[str, float]] = {
    "s": {"ms": 1e-3, "s": 1.0, "min": 60.0},
    "/s": {"/s": 1.0, "/min": 1 / 60},
    "B": {
        "B": 1.0,
        **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("kMGT", 1)},
        **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)},
    },
    "files": {"files": 1.0},
}
"""Units that a limit may be given in, by the unit that the check measures in, with what each is worth in it."""

_SAID_IN = {"s": ("ms", "s"), "B": ("B", "kB", "MB", "GB", "TB")}

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(\S*)")
_WILD = re.compile(r"[*?\[]")


def matching(pattern: str, checks: Iterable[str]) -> list[str]:
    """The ids of ``checks`` that ``pattern``, an id or a shell pattern, names."""
    return [check for check in checks if fnmatchcase(check, pattern)]


def _says(pattern: str) -> tuple[bool, int]:
    """How much ``pattern`` says: an id more than a pattern, a longer pattern more than a shorter one."""
    return not _WILD.search(pattern), len(pattern)


def level(check: Check, driver: str, policy: config.Policy, *, given: bool = False) -> tuple[Level, str]:
    """How ``check`` counts for a sandbox of ``driver``, and why where it is not required.

    ``given`` says that a setting of the sandbox gives what its driver does not by itself.
    """
    weights = [
        # Of two that say as much, the stricter.
        ((*_says(pattern), -LEVELS.index(word)), word, pattern)
        for word in LEVELS
        for pattern in getattr(policy, word)
        if fnmatchcase(check.id, pattern)
    ]
    if weights:
        _, word, pattern = max(weights)
        return word, "" if word == "required" else f"the policy of the config says so ({pattern})"
    if driver in check.advisory and not given:
        return "advisory", check.advisory[driver]
    return "required", ""


def _level_in(sandbox: config.Sandbox, check: Check) -> tuple[Level, str]:
    given = any(getattr(sandbox, setting) for setting in check.given_by)
    return level(check, sandbox.driver, sandbox.policy, given=given)


def parse_limit(text: str, check: Check) -> float:
    """``text`` in the unit of ``check``; raises ``ValueError`` with what is allowed."""
    allowed = ", ".join(f"`{unit}`" for unit in UNITS[check.unit])
    match = _QUANTITY.fullmatch(text.strip())
    if not match or match[2] not in UNITS[check.unit]:
        raise ValueError(f"{text!r} is no limit for it: a number and one of the units {allowed} are expected")
    if not float(match[1]):
        raise ValueError(f"{text!r} is no limit for it: more than zero is expected")
    return float(match[1]) * UNITS[check.unit][match[2]]


def amount(value: float, unit: str) -> str:
    """``value`` for people: ``12 ms``, ``78.1 MB``, ``185 /s``."""
    for word in reversed(_SAID_IN.get(unit, ())):
        worth = UNITS[unit][word]
        if value >= worth or worth == min(UNITS[unit].values()):
            value, unit = value / worth, word
            break
    return f"{value:.3g} {unit}" if abs(value) < 1000 else f"{value:,.0f} {unit}"


def plan_checks(sandbox: config.Sandbox, suites: Iterable[str]) -> dict[str, Any]:
    """The fields of :class:`~sifproof.records.PlannedSandbox` that say which checks of ``suites`` count, and how."""
    checks: list[str] = []
    advisory: dict[str, str] = {}
    off: dict[str, str] = {}
    known = {check.id: check for check in registry.load().values() if sandbox.driver in check.drivers}
    run = (*suites, registry.TEARDOWN)
    for check in known.values():
        if check.suite not in run:
            continue
        word, why = _level_in(sandbox, check)
        if word == "off":
            off[check.id] = why
            continue
        checks.append(check.id)
        if word == "advisory":
            advisory[check.id] = why
    counting = {
        check: waiver
        # The last counts: what says most, and of two that say as much the longer.
        for waiver in sorted(sandbox.waivers, key=lambda waiver: (*_says(waiver.check), waiver.until))
        for check in matching(waiver.check, checks)
    }
    return {
        "checks": checks,
        "required": [check for check in checks if check in sandbox.policy.required],
        "advisory": advisory,
        "off": off,
        "waivers": {c: PlannedWaiver(reason=waiver.reason, until=waiver.until) for c, waiver in counting.items()},
        "idle_waivers": [
            _idle(waiver, checks, known)
            for waiver in sandbox.waivers
            if not any(waiver is other for other in counting.values())
        ],
        "limits": {check: parse_limit(text, known[check]) for check, text in sandbox.limits.items() if check in checks},
    }


def _idle(waiver: config.Waiver, checks: Iterable[str], known: Iterable[str]) -> IdleWaiver:
    """``waiver``, which counts for none of the planned ``checks``; ``known`` are all that the driver has."""
    if matching(waiver.check, checks):
        state = "another counts"
    else:
        state = "not looked at" if matching(waiver.check, known) else "does not apply"
    return IdleWaiver.model_validate({**waiver.model_dump(), "state": state})


def today() -> datetime.date:
    """The day that waivers are held against: UTC, so that a run is the same wherever it is started."""
    return datetime.datetime.now(datetime.UTC).date()


def judge(
    verdict: Verdict,
    advisory: Mapping[str, str],
    waivers: Mapping[str, PlannedWaiver],
    required: Collection[str] = (),
) -> Verdict:
    """``verdict`` as the plan of its sandbox counts it; waivers count until the end of their last day, by UTC.

    What was not measured is not waived: nobody can have accepted what nobody saw. What the config requires by id
    counts, also where the check says that it does not apply.
    """
    changes: dict[str, Any] = {}
    if verdict.check in advisory:
        changes["required"] = False
    if verdict.check in required and not verdict.required:
        changes |= {"required": True, "message": f"required by its id in the policy; {verdict.message}"}
    waiver = waivers.get(verdict.check)
    if waiver and verdict.verdict != "not-measured":
        until, over = waiver.until.isoformat(), today() > waiver.until
        if verdict.verdict in FINE:
            note = f"its waiver {'ended on' if over else 'until'} {until} and is no longer needed ({waiver.reason})"
            changes["message"] = f"{verdict.message}; {note}" if verdict.message else note
        elif verdict.required and over:
            changes["message"] = f"its waiver ended on {until} ({waiver.reason}); {verdict.message}"
        elif verdict.required:
            changes["verdict"] = "waived"
            changes["message"] = f"waived until {until} ({waiver.reason}); {verdict.verdict}: {verdict.message}"
    return verdict.model_copy(update=changes)


def verify(settings: config.Settings, origin: config.Origin) -> None:
    """Raise :class:`SifproofError` (fault: configuration) where a policy, waiver or limit names what there is not."""
    found = [f"{origin.line_of(where)}{'.'.join(map(str, where))}: {words}" for where, words in _problems(settings)]
    if found:
        raise config.refuse(found, origin)


def _problems(settings: config.Settings) -> Iterator[tuple[config.Location, str]]:
    """What is wrong with policies, waivers and limits, put to the catalogue: the key, and a sentence each."""
    known = registry.load()
    guards = [check for check in known.values() if check.guards]
    for name, sandbox in settings.sandboxes.items():
        here = ("sandboxes", name)
        seen: set[str] = set()
        for word in LEVELS:
            for number, pattern in enumerate(getattr(sandbox.policy, word)):
                there = (*here, "policy", word, number)
                found = matching(pattern, known)
                loose = [check.id for check in guards if check.id in found and _is_loose(check, sandbox)]
                if not found:
                    yield there, no_check(pattern, known)
                elif pattern in seen:
                    yield there, f"{pattern!r} stands in the policy twice; one list, once, is allowed"
                elif word != "required" and loose:
                    yield there, f"{pattern!r}: {_ALL_REST.format(', '.join(loose))}; name them in `required`"
                elif word == "required" and all(sandbox.driver not in known[check].drivers for check in found):
                    yield there, f"{pattern} does not apply to the driver {sandbox.driver}"
                seen.add(pattern)
        for number, waiver in enumerate(sandbox.waivers):
            place = (*here, "waivers", number, "check")
            found = matching(waiver.check, known)
            if not found:
                yield place, no_check(waiver.check, known)
            elif rests := [check.id for check in guards if check.id in found]:
                yield place, f"{waiver.check!r}: {_ALL_REST.format(', '.join(rests))}; it can't be waived"
        for check, text in sandbox.limits.items():
            if sentence := _wrong_limit(check, text, known, sandbox.driver):
                yield (*here, "limits", check), sentence


_ALL_REST = "all other checks rest on {}"


def _is_loose(check: Check, sandbox: config.Sandbox) -> bool:
    return _level_in(sandbox, check)[0] != "required"


def _wrong_limit(check: str, text: str, known: Mapping[str, Check], driver: str) -> str:
    measuring = [item.id for item in known.values() if item.unit]
    if check not in known:
        return no_check(check, measuring)
    if check not in measuring:
        return f"{check} takes no limit; those that do: {', '.join(measuring) or 'none'}"
    if driver not in known[check].drivers:
        return f"{check} does not apply to the driver {driver}"
    try:
        parse_limit(text, known[check])
    except ValueError as error:
        return str(error)
    return ""


def no_check(pattern: str, known: Iterable[str]) -> str:
    """What to say of a ``pattern`` that names none of ``known``: what was probably meant, and what there is."""
    allowed = list(known)
    close = config.closest(pattern, allowed)
    hint = f"did you mean {close}? " if close else ""
    same = [check for check in allowed if check.startswith(f"{pattern.partition('.')[0]}.")]
    suites = ", ".join(dict.fromkeys(f"`{check.partition('.')[0]}.*`" for check in allowed))
    listed = f"that suite has {', '.join(same)}" if same else f"the suites are {suites}"
    return f"{pattern!r} names no check; {hint}{listed}; `sifproof checks` lists all"
