"""The runner: whatever a check does, there is a verdict."""

from __future__ import annotations

import datetime
import io
import socket
import time
from pathlib import Path

import pytest
from report_samples import planned

from sifproof.checks.engine import registry, runner
from sifproof.checks.engine.presence import Loss, Lost
from sifproof.checks.engine.registry import Check, Finding, NotApplicable, NotMeasured, at_most, expect, measured
from sifproof.checks.engine.runner import Context, run_checks
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.client import ForbiddenError, UnreachableError
from sifproof.records import PlannedWaiver


def made(function, name="bash.made", **more) -> Check:
    return Check(name, "It is so.", "why", "todo", function, **more)


def verdicts(*checks, blocked="", hindered_by=None, look=lambda thorough: None, **counts):
    context = Context("run", "box", "docker", "node", "alloc", io.StringIO(), **counts)
    return list(run_checks(checks, None, context, blocked=blocked, hindered_by=hindered_by, look=look))


def in_turn(*outcomes):
    """A check's function that gives the next of ``outcomes`` each time: a finding, or an exception to raise."""
    left = iter(outcomes)

    def function(subject):
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return function


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


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (expect(False, "broken"), "fail"),
        (NotMeasured("no tool"), "not-measured"),
        (NotApplicable("no"), "not-measured"),
    ],
)
def test_whatever_a_guard_comes_to_but_a_pass_blocks_what_follows(outcome, word) -> None:
    guard = made(in_turn(outcome), "health.ready", guards=True)
    first, second, third = verdicts(guard, *[made(raising(AssertionError("looked")))] * 2)
    assert (first.verdict, second.verdict, third.verdict) == (word, "not-measured", "not-measured")
    assert {v.message for v in (second, third)} == {
        f"not looked at, because health.ready did not pass: {first.message}"
    }
    assert {v.attempts for v in (second, third)} == {0}


def test_a_guard_that_passes_blocks_nothing_and_neither_does_another_check_that_fails() -> None:
    found = verdicts(
        made(lambda s: expect(True), guards=True), made(lambda s: expect(False)), made(lambda s: expect(True))
    )
    assert [v.verdict for v in found] == ["pass", "fail", "pass"]


# -- what was lost -------------------------------------------------------------------------------------------------


GONE = SifproofError("Nomad lost node n1", why="it is down", todo="look at it")
DEAD = SifproofError("The server ended by itself", why="exit code 3", fault=Fault.IMAGE)


def looks(*seen):
    """A look that gives each of ``seen`` in turn, and then the last; and what it was asked."""
    asked = []

    def look(thorough):
        asked.append(thorough)
        return seen[min(len(asked), len(seen)) - 1]

    return look, asked


def test_what_is_lost_is_the_infrastructures_and_nothing_after_it_is_looked_at() -> None:
    look, asked = looks(None, Loss(GONE, died=False))
    failing = made(in_turn(expect(False, "no answer")))
    first, second, third = verdicts(failing, *[made(raising(AssertionError("looked")))] * 2, look=look)
    assert [v.verdict for v in (first, second, third)] == ["not-measured"] * 3
    assert {(v.fault, v.hindered, v.required) for v in (first, second, third)} == {(Fault.INFRASTRUCTURE, True, True)}
    assert first.message == str(GONE)
    assert {v.message for v in (second, third)} == {f"not looked at, because of what bash.made met: {GONE}"}
    assert asked[:2] == [False, True]


def test_a_server_that_died_is_the_finding_of_the_check_at_work_waived_or_not() -> None:
    waiver = PlannedWaiver(reason="ticket 7", until=datetime.date.max)
    for counts in ({}, {"waivers": {"bash.made": waiver}}, {"advisory": {"bash.made": "so"}}):
        look, _ = looks(None, Loss(DEAD, died=True))
        first, second = verdicts(
            made(lambda s: expect(False, "reset")), made(lambda s: expect(True)), look=look, **counts
        )
        assert (first.verdict, first.fault, first.hindered, first.required) == ("fail", Fault.IMAGE, True, True)
        assert first.message == f"the server died during this check; it had said: reset. {DEAD}"
        assert (second.verdict, second.fault, second.hindered) == ("not-measured", Fault.IMAGE, True)


def test_what_was_measured_before_it_was_lost_stays_and_a_server_that_died_did_not_pass() -> None:
    for loss, word in ((Loss(GONE, died=False), "pass"), (Loss(DEAD, died=True), "fail")):
        look, _ = looks(None, loss)
        (only,) = verdicts(made(lambda s: expect(True, "fine")), look=look)
        assert only.verdict == word


def test_what_is_lost_before_the_first_check_is_told_by_it() -> None:
    for loss, word in ((Loss(GONE, died=False), "not-measured"), (Loss(DEAD, died=True), "fail")):
        found = verdicts(*[made(raising(AssertionError("looked")))] * 2, look=lambda thorough, loss=loss: loss)
        assert [v.verdict for v in found] == [word, "not-measured"]
        assert {(v.attempts, v.hindered) for v in found[1:]} == {(0, True)}


def test_a_request_that_can_not_be_answered_ends_a_check_at_once() -> None:
    look, _ = looks(None, Loss(GONE, died=False))
    (only,) = verdicts(made(in_turn(Lost(str(GONE)))), look=look)
    assert (only.verdict, only.message, only.hindered) == ("not-measured", str(GONE), True)
    look, _ = looks(None, Loss(DEAD, died=True))
    (only,) = verdicts(made(in_turn(Lost(str(DEAD)))), look=look)
    assert (only.verdict, only.message) == ("fail", f"the server died during this check. {DEAD}")


@pytest.mark.parametrize("kind", [UnreachableError, ForbiddenError])
def test_what_can_not_be_asked_is_not_known(kind) -> None:
    error = kind("Nomad can't be asked", todo="mend it")
    (only,) = verdicts(made(raising(error), once=True))
    assert (only.verdict, only.fault, only.hindered) == ("not-measured", Fault.INFRASTRUCTURE, True)
    assert only.message == str(error)
    # It is asked once more, and what is seen then counts as it is.
    (only,) = verdicts(made(in_turn(error, expect(True, "fine"))))
    assert (only.verdict, only.attempts, only.hindered) == ("pass", 2, False)
    (only,) = verdicts(made(in_turn(error, expect(False, "broken"))))
    assert (only.verdict, only.attempts, only.fault) == ("fail", 2, Fault.IMAGE)
    # A guard that could not ask blocks, and who has to act stays the same.
    guard, after = verdicts(made(raising(error), "health.identity", guards=True), made(lambda s: expect(True)))
    assert (guard.verdict, after.verdict, after.fault, after.hindered) == (
        "not-measured",
        "not-measured",
        Fault.INFRASTRUCTURE,
        True,
    )


def test_nobody_is_asked_while_checks_pass_but_at_the_ends_and_now_and_then(monkeypatch) -> None:
    look, asked = looks(None)
    verdicts(*[made(lambda s: expect(True))] * 5, look=look)
    assert asked == [False, False]
    monkeypatch.setattr(runner, "LOOK_EVERY_S", -1.0)
    look, asked = looks(None)
    verdicts(*[made(lambda s: expect(True))] * 5, look=look)
    assert asked == [False] * 6


def test_what_does_not_apply_is_no_reason_to_ask() -> None:
    look, asked = looks(None)
    verdicts(made(raising(NotApplicable("one slot"))), made(lambda s: expect(True)), look=look)
    assert asked == [False, False]


def test_blocked_says_who_has_to_act_where_that_is_no_check_s_finding() -> None:
    (verdict,) = verdicts(made(raising(AssertionError("looked"))), blocked="gone", hindered_by=Fault.CONFIGURATION)
    assert (verdict.verdict, verdict.fault, verdict.hindered) == ("not-measured", Fault.CONFIGURATION, True)


def test_the_reason_for_what_is_not_looked_at_is_told_once_however_often_it_is_handed_on() -> None:
    look, _ = looks(None, Loss(GONE, died=False))
    first, second = verdicts(made(lambda s: expect(False)), made(lambda s: expect(True), "bash.after"), look=look)
    handed_on = f"not looked at, because of what bash.made met: {GONE}"
    assert (runner.blocked_by(first), runner.blocked_by(second)) == (handed_on, handed_on)


def test_what_does_not_apply_counts_where_it_was_not_seen_whether_it_would() -> None:
    look, _ = looks(None, Loss(GONE, died=False))
    (only,) = verdicts(made(raising(NotApplicable("one slot"))), look=look)
    assert (only.verdict, only.required, only.message) == ("not-measured", True, str(GONE))


def test_the_log_has_a_line_for_each_check_and_without_a_log_nothing_is_said(capsys) -> None:
    log = io.StringIO()
    for context in (Context("run", "box", "docker", log=log), Context("run", "box", "docker")):
        list(run_checks([made(lambda s: expect(False, "broken"), once=True)], None, context))
    (line,) = log.getvalue().splitlines()
    assert line.split()[:2] == ["fail", "bash.made"]
    assert line.endswith("  broken")
    assert capsys.readouterr().out == ""


def test_blocked_looks_at_nothing() -> None:
    (verdict,) = verdicts(made(raising(AssertionError("looked"))), blocked="Nomad is gone")
    assert (verdict.verdict, verdict.message, verdict.attempts) == ("not-measured", "Nomad is gone", 0)
    assert not verdict.hindered


def test_what_fails_and_then_passes_is_flaky() -> None:
    (verdict,) = verdicts(made(in_turn(expect(False, "broken"), expect(True, "fine"))))
    assert (verdict.verdict, verdict.attempts) == ("flaky", 2)
    assert verdict.message == "failed, and passed on a second try; the first time: broken"
    (verdict,) = verdicts(made(in_turn(SifproofError("No answer", fault=Fault.INFRASTRUCTURE), expect(True))))
    assert (verdict.verdict, verdict.fault) == ("flaky", Fault.INFRASTRUCTURE)


def test_what_fails_twice_fails_with_its_last_words() -> None:
    (verdict,) = verdicts(made(in_turn(expect(False, "first"), expect(False, "second"))))
    assert (verdict.verdict, verdict.attempts, verdict.message) == ("fail", 2, "second")
    # It was seen to fail: that it could not be looked at again takes nothing from it.
    (verdict,) = verdicts(made(in_turn(expect(False, "first"), NotMeasured("gone"))))
    assert (verdict.verdict, verdict.attempts, verdict.message) == ("fail", 2, "first")


def test_guards_and_what_proves_nothing_twice_are_tried_once() -> None:
    for more in ({"once": True}, {"guards": True}):
        (verdict,) = verdicts(made(in_turn(expect(False, "broken"), expect(True)), **more))
        assert (verdict.verdict, verdict.attempts) == ("fail", 1)


def test_not_measured_and_pass_are_tried_once() -> None:
    for outcome, word in ((NotMeasured("no tool"), "not-measured"), (expect(True), "pass")):
        (verdict,) = verdicts(made(in_turn(outcome)))
        assert (verdict.verdict, verdict.attempts) == (word, 1)


def test_deliberate_waits_are_told_and_are_never_more_than_the_time_it_took() -> None:
    (verdict,) = verdicts(made(lambda s: time.sleep(0.02) or expect(True), waits_s=0.01))
    assert verdict.waited_s == 0.01
    # A second, longer look.
    (verdict,) = verdicts(made(lambda s: time.sleep(0.02) or expect(True, waited_s=0.015), waits_s=0.01))
    assert verdict.waited_s == 0.015
    (verdict,) = verdicts(made(lambda s: expect(True), waits_s=9.0))
    assert verdict.waited_s <= verdict.duration_s
    (verdict,) = verdicts(made(lambda s: time.sleep(0.02) or expect(False), waits_s=0.01))
    assert verdict.waited_s == 0.02


def test_nothing_to_look_at_does_not_count() -> None:
    (verdict,) = verdicts(made(raising(NotApplicable("one slot"))))
    assert (verdict.verdict, verdict.required) == ("not-measured", False)


def test_nothing_to_look_at_counts_where_the_policy_requires_it_by_its_id() -> None:
    (verdict,) = verdicts(made(raising(NotApplicable("one slot"))), required=["bash.made"])
    assert (verdict.verdict, verdict.required) == ("not-measured", True)
    assert verdict.message == "required by its id in the policy; one slot"
    (verdict,) = verdicts(made(raising(NotApplicable("one slot"))), required=["bash.other"])
    assert verdict.required is False


def test_a_plan_hands_over_all_that_its_config_says() -> None:
    box = planned(
        required=["bash.made"],
        advisory={"bash.b": "so"},
        waivers={"bash.c": PlannedWaiver(reason="so", until=datetime.date.max)},
        limits={"bash.d": 1.0},
    )
    context = Context.of("run", box)
    assert {name: getattr(context, name) for name in ("required", "advisory", "waivers", "limits")} == {
        name: getattr(box, name) for name in ("required", "advisory", "waivers", "limits")
    }


def test_a_verdict_says_where_it_was_found_and_of_what() -> None:
    log = io.StringIO()
    context = Context.of("run", planned("docker"), log).at("node-7", "alloc-7")
    assert context.log is log
    seen = []
    check = made(lambda s: seen.append(s) or expect(len(seen) > 1, "seen"), "bash.made", blames=Fault.INFRASTRUCTURE)
    subject = object()
    (verdict,) = run_checks([check], subject, context)
    assert seen == [subject, subject]
    told = ["run", "sandbox", "driver", "node", "allocation", "suite", "check", "value", "unit", "limit", "fault"]
    assert [getattr(verdict, name) for name in told] == [
        *("run", "docker", "docker", "node-7", "alloc-7", "bash", "bash.made", None, "", None, Fault.INFRASTRUCTURE),
    ]  # fmt: skip


class Clock:
    """In the place of the module ``time``, for the runner: each check takes the next of ``seconds``."""

    def __init__(self, *seconds):
        self.left, self.now, self.running = list(seconds), 1000.0, False

    def perf_counter(self):
        if self.running:
            self.now += self.left.pop(0)
        self.running = not self.running
        return self.now

    def monotonic(self):
        return 0.0


def test_how_long_a_check_took_and_waited_is_told_to_a_tenth_of_a_millisecond(monkeypatch) -> None:
    monkeypatch.setattr(runner, "time", Clock(1.23456, 0.00002))
    took, short = verdicts(made(lambda s: expect(True), waits_s=0.87654), made(lambda s: expect(True)))
    assert (took.duration_s, took.waited_s) == (1.2346, 0.8765)
    assert (short.duration_s, short.waited_s, short.attempts) == (0.0, 0.0, 1)


def test_of_two_tries_all_the_time_is_told(monkeypatch) -> None:
    for second, word in ((expect(True), "flaky"), (expect(False), "fail"), (NotMeasured("gone"), "fail")):
        monkeypatch.setattr(runner, "time", Clock(1.11114, 2.22224))
        (verdict,) = verdicts(made(in_turn(expect(False), second), waits_s=0.11114))
        assert (verdict.verdict, verdict.duration_s, verdict.waited_s) == (word, 3.3333, 0.2222)


def test_what_a_check_was_doing_when_it_broke_stands_in_the_log(monkeypatch) -> None:
    log = io.StringIO()
    list(run_checks([made(raising(ZeroDivisionError("oops")))], None, Context("run", "box", "docker", log=log)))
    assert "Traceback" in log.getvalue()
    assert "ZeroDivisionError: oops" in log.getvalue()


def test_the_log_can_be_read_while_checks_go_on() -> None:
    class Log(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    log = Log()
    found = run_checks([made(lambda s: expect(True))] * 2, None, Context("run", "box", "docker", log=log))
    next(found)
    assert log.flushed == 1
    assert log.getvalue().startswith("pass         bash.made ")


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError(), TimeoutError()])
def test_an_end_that_says_nothing_is_told_by_its_name(error) -> None:
    (verdict,) = verdicts(made(raising(error)))
    assert verdict.verdict == "fail"
    assert verdict.message.endswith(f" ({type(error).__name__})")


def test_a_check_that_breaks_is_not_waived() -> None:
    waiver = PlannedWaiver(reason="ticket 7", until=datetime.date.max)
    (verdict,) = verdicts(made(raising(ZeroDivisionError("oops"))), waivers={"bash.made": waiver})
    assert (verdict.verdict, verdict.required) == ("not-measured", True)


def test_a_server_that_hangs_up_fails_the_check_and_not_the_gate() -> None:
    def hung_up(subject):
        here, there = socket.socketpair()
        with here:
            there.close()
            here.sendall(b"GET / HTTP/1.1")

    def silent(subject):
        here, there = socket.socketpair()
        with here, there:
            here.settimeout(0.01)
            here.recv(1)

    broken, late = verdicts(made(hung_up), made(silent))
    assert (broken.verdict, broken.fault) == ("fail", Fault.IMAGE)
    assert broken.message.startswith("the connection broke off (")
    assert (late.verdict, late.message) == ("fail", "no answer came in time (timed out)")
    # Of files and programs of this machine the server knows nothing.
    (verdict,) = verdicts(made(lambda s: Path("/nonexistent/file").read_bytes()))
    assert verdict.verdict == "not-measured"


def test_a_message_of_any_length_is_cut_and_says_so() -> None:
    (verdict,) = verdicts(made(lambda s: expect(False, "x" * 5_000_000)))
    assert verdict.message == "x" * 4000 + "… (cut: it has 5,000,000 characters)"
    (verdict,) = verdicts(made(lambda s: expect(False, "x" * 4000)))
    assert verdict.message == "x" * 4000


def test_what_is_advisory_or_waived_is_recorded_so() -> None:
    waiver = PlannedWaiver(reason="ticket 7", until=datetime.date.max)
    failing = made(lambda s: expect(False, "broken"))
    (verdict,) = verdicts(failing, advisory={"bash.made": "so"})
    assert (verdict.verdict, verdict.required) == ("fail", False)
    (verdict,) = verdicts(failing, waivers={"bash.made": waiver})
    assert (verdict.verdict, verdict.attempts) == ("waived", 2)
    assert verdict.message == "waived until 9999-12-31 (ticket 7); fail: broken"


def test_a_waiver_does_not_open_what_a_guard_closes() -> None:
    waiver = PlannedWaiver(reason="ticket 7", until=datetime.date.max)
    guard = made(lambda s: expect(False, "a stranger"), "health.identity", guards=True)
    waivers = {"health.identity": waiver, "bash.made": waiver}
    first, second = verdicts(guard, made(lambda s: expect(True)), waivers=waivers)
    assert (first.verdict, second.verdict) == ("waived", "not-measured")


@pytest.mark.parametrize(
    ("value", "at_least", "word"),
    [
        (0.5, False, "pass"),
        (0.6, False, "fail"),
        (0.5, True, "pass"),
        (0.4, True, "fail"),
        (float("nan"), True, "fail"),
    ],
)
def test_what_is_measured_is_held_against_the_limit_of_the_config(value, at_least, word) -> None:
    check = made(lambda s: measured(value, "seen"), unit="s", at_least=at_least)
    (verdict,) = verdicts(check, limits={"bash.made": 0.5})
    assert (verdict.verdict, verdict.unit, verdict.limit) == (word, "s", 0.5)
    assert verdict.message == f"seen; at {'least' if at_least else 'most'} 500 ms allowed"


def test_without_a_limit_it_is_measured_and_not_judged() -> None:
    (verdict,) = verdicts(made(lambda s: measured(7.0, "seen"), unit="s"))
    assert (verdict.verdict, verdict.value, verdict.unit, verdict.limit) == ("pass", 7.0, "s", None)


def test_a_failure_is_no_pass_because_its_value_keeps_the_limit() -> None:
    (verdict,) = verdicts(made(lambda s: Finding(False, "broken", 0.1), unit="s"), limits={"bash.made": 0.5})
    assert verdict.verdict == "fail"
    (verdict,) = verdicts(made(lambda s: expect(False, "no answer"), unit="s"), limits={"bash.made": 0.5})
    assert verdict.verdict == "fail"


def test_a_check_that_measures_does_not_pass_without_a_value() -> None:
    (verdict,) = verdicts(made(lambda s: expect(True), unit="s"), limits={"bash.made": 0.5})
    assert verdict.verdict == "not-measured"
    assert "it passed without a value" in verdict.message


def test_a_slow_second_try_that_keeps_the_limit_is_flaky() -> None:
    (verdict,) = verdicts(
        made(in_turn(measured(0.9, "slow"), measured(0.1, "fast")), unit="s"), limits={"bash.made": 0.5}
    )
    assert (verdict.verdict, verdict.value) == ("flaky", 0.9)


def test_value_and_limit_are_recorded() -> None:
    (verdict,) = verdicts(made(lambda s: at_most(2.5, 2.0, "s")))
    assert (verdict.verdict, verdict.value, verdict.unit, verdict.limit) == ("fail", 2.5, "s", 2.0)


def test_every_registered_check_says_what_it_requires_and_why() -> None:
    checks = registry.load()
    for check in checks.values():
        assert check.requirement.endswith((".", ".)")), check.id
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


@pytest.mark.parametrize(
    ("limits", "seconds", "word"),
    [({}, 3.0, "measured"), ({"bash.made": 5.0}, 3.0, "pass"), ({"bash.made": 2.0}, 3.0, "fail")],
)
def test_what_has_no_limit_is_measured_and_not_passed(limits, seconds, word) -> None:
    check = made(lambda s: measured(seconds, "three"), unit="s", limit_judges=True, once=True)
    (verdict,) = verdicts(check, limits=limits)
    assert (verdict.verdict, verdict.value, verdict.required) == (word, seconds, True)


def test_what_fails_for_another_reason_fails_without_a_limit() -> None:
    (verdict,) = verdicts(made(lambda s: expect(False, "lost"), unit="s", limit_judges=True, once=True))
    assert verdict.verdict == "fail"


def test_a_check_that_judges_more_than_its_value_passes_without_a_limit() -> None:
    (verdict,) = verdicts(made(lambda s: measured(3.0, "back"), unit="s"))
    assert verdict.verdict == "pass"


def test_a_waiver_of_what_was_only_measured_is_not_needed() -> None:
    waiver = PlannedWaiver(reason="slow disk", until=datetime.date(2999, 1, 1))
    check = made(lambda s: measured(3.0, "three"), unit="s", limit_judges=True)
    (verdict,) = verdicts(check, waivers={"bash.made": waiver})
    assert verdict.verdict == "measured"
    assert "no longer needed" in verdict.message
