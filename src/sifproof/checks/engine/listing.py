"""What there is to know about a check, as `sifproof checks` and the reference page say it."""

from __future__ import annotations

from collections.abc import Iterator

from sifproof import config
from sifproof.checks.engine.policy import UNITS
from sifproof.checks.engine.registry import Check


def facts(check: Check) -> Iterator[tuple[str, str]]:
    """All beside the requirement of ``check``: a name and a text each."""
    yield "Why", check.why
    yield "When it fails", check.todo
    yield "At fault", check.blames.value
    for driver in config.DRIVERS:
        yield driver, _level(check, driver)
    if check.unit:
        units = ", ".join(f"`{unit}`" for unit in UNITS[check.unit])
        yield "Measures", f"`{check.unit}`; a limit is the {'least' if check.at_least else 'most'} allowed, in {units}"
        if check.limit_judges:
            yield "Without a limit", "nothing is judged: the verdict is `measured`"
    if check.waits_s:
        yield "Waits", f"up to {check.waits_s:g} s on purpose"
    if check.once:
        yield "Tries", "one; where it fails it is not tried again"
    if check.guards:
        yield "Guards", "where it does not pass, the later checks of that allocation are `not-measured`"


def _level(check: Check, driver: str) -> str:
    if driver not in check.drivers:
        return "does not apply"
    if driver not in check.advisory:
        return "required"
    given = " or ".join(f"`{setting}`" for setting in check.given_by)
    return f"advisory{f', required with {given}' if given else ''}: {check.advisory[driver]}"


def in_short(check: Check) -> str:
    """For whom ``check`` is required, what it measures and how long it waits, in a few words."""
    levels = {d: "advisory" if d in check.advisory else "required" for d in config.DRIVERS if d in check.drivers}
    if levels == dict.fromkeys(config.DRIVERS, "required"):
        words = ["required"]
    else:
        words = [f"{driver} {word}" for driver, word in levels.items()]
    if check.unit:
        words.append(f"measures {check.unit}")
    if check.waits_s:
        words.append(f"waits {check.waits_s:g} s")
    return ", ".join(words)
