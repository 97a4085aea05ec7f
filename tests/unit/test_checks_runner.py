"""The runner: whatever a check does, there is a verdict."""

from __future__ import annotations

import io

from sifproof.checks import registry
from sifproof.checks.registry import Check, Finding, NotMeasured, at_most, expect
from sifproof.checks.runner import Context, run_checks
from sifproof.errors import Fault, SifproofError


def made(function, name="bash.made", **more) -> Check:
    return Check(name, "It is so.", "why", "todo", function, **more)


def verdicts(*checks, blocked=""):
    context = Context("run", "box", "docker", "node", "alloc", io.StringIO())
    return list(run_checks(checks, None, context, blocked=blocked))


def raising(error):
    def function(subject):
        raise error

    return function


def test_words() -> None:
    words = [
        v.verdict
        for v in verdicts(
            made(lambda s: expect(True, "fine")),
            made(lambda s: expect(False, "broken")),
            made(raising(SifproofError("It went wrong", why="so"))),
            made(raising(NotMeasured("needs 2 slots"))),
        )
    ]
    assert words == ["pass", "fail", "fail", "not-measured"]


def test_a_broken_check_is_not_the_images_fault() -> None:
    (verdict,) = verdicts(made(raising(ZeroDivisionError("oops"))))
    assert verdict.verdict == "not-measured"
    assert "the check itself failed (ZeroDivisionError: oops)" in verdict.message


def test_a_guard_that_fails_blocks_what_follows() -> None:
    first, second = verdicts(
        made(lambda s: expect(False, "someone else"), "health.identity", guards=True, blames=Fault.INFRASTRUCTURE),
        made(lambda s: expect(True)),
    )
    assert (first.verdict, first.fault) == ("fail", Fault.INFRASTRUCTURE)
    assert second.verdict == "not-measured"
    assert "health.identity did not pass: someone else" in second.message


def test_blocked_looks_at_nothing() -> None:
    (verdict,) = verdicts(made(raising(AssertionError("looked"))), blocked="Nomad is gone")
    assert (verdict.verdict, verdict.message, verdict.attempts) == ("not-measured", "Nomad is gone", 0)


def test_value_and_limit_are_recorded() -> None:
    (verdict,) = verdicts(made(lambda s: at_most(2.5, 2.0, "s")))
    assert (verdict.verdict, verdict.value, verdict.unit, verdict.limit) == ("fail", 2.5, "s", 2.0)


def test_every_registered_check_says_what_it_requires_and_why() -> None:
    checks = registry.load()
    for check in checks.values():
        assert check.requirement.endswith("."), check.id
        assert check.why.endswith("."), check.id
        assert check.todo.endswith("."), check.id
    assert next(iter(checks)) == "health.ready"
    assert list(checks)[1] == "health.identity"


def test_an_unknown_suite_is_told_with_the_known_ones() -> None:
    try:
        registry.of_suite("speed")
    except SifproofError as error:
        assert ", ".join(registry.ALL_SUITES) in str(error)
    else:
        raise AssertionError("not refused")


def test_finding_defaults() -> None:
    assert Finding(True) == expect(True)
