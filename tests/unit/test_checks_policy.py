"""What a sandbox must pass: policy, waivers and limits, put to a catalogue and to verdicts."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_samples import verdict

from sifproof import config
from sifproof.checks.engine import policy, registry
from sifproof.checks.engine.registry import Check, expect
from sifproof.errors import Fault, SifproofError
from sifproof.records import IdleWaiver, PlannedWaiver

DAY = datetime.date(2027, 1, 31)


def made(id: str, **more: Any) -> Check:
    return Check(id, "It is so.", "Why.", "Do it.", lambda s: expect(True), **more)


CATALOGUE = {
    check.id: check
    for check in (
        made("health.ready", guards=True),
        made("health.slots"),
        made("bash.output"),
        made("bash.exit-code"),
        made(
            "isolation.slot.kill",
            advisory={"docker": "needs a privileged container"},
            given_by=("nested_sandboxes", "privileged"),
        ),
        made("isolation.slot.tmp"),
        made("image.sif", drivers=("singularity",)),
        made("performance.exec-p95", unit="s"),
        made("performance.throughput", unit="/s", at_least=True),
        made("storage.free-space", unit="B", at_least=True),
        made("storage.free-inodes", unit="files", at_least=True),
        made("snapshot.time", drivers=("docker",), unit="s"),
        made("teardown.purged"),
    )
}


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda: CATALOGUE)


def sandbox(driver: str = "singularity", **settings: Any) -> config.Sandbox:
    return config.load({"sandboxes": {"box": {"driver": driver, **settings}}}).sandboxes["box"]


def levels(driver: str = "singularity", **lists: list[str]) -> dict[str, str]:
    chosen = config.Policy.model_validate(lists)
    return {check.id: policy.level(check, driver, chosen)[0] for check in CATALOGUE.values()}


def test_a_setting_that_gives_what_the_driver_does_not_makes_it_required() -> None:
    planned = {
        given: policy.plan_checks(sandbox("docker", nested_sandboxes=given), ["isolation"])["advisory"]
        for given in (False, True)
    }
    assert planned == {False: {"isolation.slot.kill": "needs a privileged container"}, True: {}}


def refusal(text: str, tmp_path: Path) -> str:
    """What is said of ``text``, the lines of a sandbox in a file."""
    path = tmp_path / "mine.yaml"
    path.write_text("sandboxes:\n  box:\n    driver: singularity\n" + text)
    origin = config.Origin([path])
    with pytest.raises(SifproofError) as caught:
        policy.verify(config.load(yaml.safe_load(path.read_text()), origin), origin)
    assert caught.value.fault is Fault.CONFIGURATION
    return str(caught.value)


def test_without_a_policy_all_is_required_but_what_the_driver_can_not_give() -> None:
    assert {word for check, word in levels().items()} == {"required"}
    docker = levels("docker")
    assert docker.pop("isolation.slot.kill") == "advisory"
    assert set(docker.values()) == {"required"}
    assert policy.level(CATALOGUE["isolation.slot.kill"], "docker", config.Policy()) == (
        "advisory",
        "needs a privileged container",
    )


def test_an_id_counts_more_than_a_pattern_and_a_longer_pattern_more_than_a_shorter() -> None:
    seen = levels(required=["isolation.slot.tmp"], advisory=["isolation.slot.*"], off=["isolation.*", "b*"])
    assert seen["isolation.slot.tmp"] == "required"
    assert seen["isolation.slot.kill"] == "advisory"
    assert seen["bash.output"] == "off"
    assert seen["health.slots"] == "required"


def test_of_two_patterns_that_say_as_much_the_stricter_counts() -> None:
    assert levels(advisory=["bash.*"], off=["*sh.o*"])["bash.output"] == "advisory"
    assert levels(advisory=["bash.*"], required=["*sh.o*"])["bash.output"] == "required"


def test_the_config_requires_what_the_driver_makes_advisory() -> None:
    assert levels("docker", required=["isolation.*"])["isolation.slot.kill"] == "required"


def test_the_plan_says_what_counts_and_why() -> None:
    box = sandbox(
        "docker",
        policy={"off": ["bash.output"], "advisory": ["health.slots"]},
        waivers=[{"check": "bash.*", "reason": "known", "until": DAY}],
        limits={"performance.exec-p95": "200 ms", "performance.throughput": "60 /min", "storage.free-space": "2 KiB"},
    )
    planned = policy.plan_checks(box, ["health", "bash", "isolation", "image", "performance"])
    assert planned["checks"] == [
        "health.ready",
        "health.slots",
        "bash.exit-code",
        "isolation.slot.kill",
        "isolation.slot.tmp",
        "performance.exec-p95",
        "performance.throughput",
        "teardown.purged",
    ]
    assert planned["advisory"] == {
        "health.slots": "the policy of the config says so (health.slots)",
        "isolation.slot.kill": "needs a privileged container",
    }
    assert planned["off"] == {"bash.output": "the policy of the config says so (bash.output)"}
    assert planned["waivers"] == {"bash.exit-code": PlannedWaiver(reason="known", until=DAY)}
    # In the unit of the check, and without those of suites that are not run.
    assert planned["limits"] == {"performance.exec-p95": 0.2, "performance.throughput": 1.0}


def test_the_plan_names_what_is_required_by_its_id() -> None:
    lists = {"required": ["bash.output", "isolation.*", "health.slots"]}
    planned = policy.plan_checks(sandbox(policy=lists), ["bash", "isolation"])
    assert planned["required"] == ["bash.output"]


def test_a_waiver_that_counts_for_no_check_of_the_run_is_kept_with_the_reason() -> None:
    states = {
        "isolation.slot.tmp": "not looked at",  # its suite is not run
        "performance.*": "not looked at",
        "bash.output": "not looked at",  # it is off
        "image.*": "does not apply",
        "bash.exit*": "another counts",
    }
    waivers = [{"check": check, "reason": check, "until": DAY} for check in states]
    counting = {"check": "bash.exit-code", "reason": "this one", "until": DAY}
    box = sandbox("docker", policy={"off": ["bash.output"]}, waivers=[*waivers, counting])
    planned = policy.plan_checks(box, ["bash", "image"])
    assert planned["waivers"] == {"bash.exit-code": PlannedWaiver(reason="this one", until=DAY)}
    assert planned["idle_waivers"] == [
        IdleWaiver(check=check, reason=check, until=DAY, state=state) for check, state in states.items()
    ]


def test_of_two_waivers_the_one_that_says_more_counts_and_then_the_longer() -> None:
    waivers = [
        {"check": "bash.output", "reason": "this one", "until": DAY},
        {"check": "bash.*", "reason": "any", "until": DAY + datetime.timedelta(9)},
        {"check": "bash.*", "reason": "short", "until": DAY},
    ]
    planned = policy.plan_checks(sandbox(waivers=waivers), ["bash"])["waivers"]
    assert {check: waiver.reason for check, waiver in planned.items()} == {
        "bash.output": "this one",
        "bash.exit-code": "any",
    }


@pytest.mark.parametrize(
    ("check", "text", "value"),
    [
        ("performance.exec-p95", "200 ms", 0.2),
        ("performance.exec-p95", "1.5s", 1.5),
        ("performance.exec-p95", " 2 min ", 120.0),
        ("performance.throughput", "20 /s", 20.0),
        ("performance.throughput", "90/min", 1.5),
        ("storage.free-space", "1 GiB", 2.0**30),
        ("storage.free-space", "1 GB", 1e9),
        ("storage.free-space", "10 B", 10.0),
        ("storage.free-inodes", "5000 files", 5000.0),
    ],
)
def test_limits_have_units(check: str, text: str, value: float) -> None:
    assert policy.parse_limit(text, CATALOGUE[check]) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "20", "ms", "-1 s", "1 h", "1 B", "1,5 s", "nan s", "1e3 s", "2 s s", "1 S"])
def test_a_limit_with_a_wrong_unit_is_refused_with_those_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="`ms`, `s`, `min`"):
        policy.parse_limit(text, CATALOGUE["performance.exec-p95"])


@pytest.mark.parametrize(("check", "text"), [("performance.exec-p95", "0 ms"), ("performance.throughput", "0.0 /s")])
def test_a_limit_of_nothing_is_refused(check: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is no limit for it: more than zero is expected"):
        policy.parse_limit(text, CATALOGUE[check])


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.012, "s", "12 ms"),
        (0.00001, "s", "0.01 ms"),
        (1.25, "s", "1.25 s"),
        (90.0, "s", "90 s"),
        (2.0**21, "B", "2.1 MB"),
        (0.0, "B", "0 B"),
        (81_210_000_000, "B", "81.2 GB"),
        (185.2, "/s", "185 /s"),
        (16319189, "files", "16,319,189 files"),
        (3.0, "", "3 "),
    ],
)
def test_values_are_said_in_units_that_people_read(value: float, unit: str, said: str) -> None:
    assert policy.amount(value, unit) == said


def at(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Let it be ``moment``, UTC."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime.fromisoformat(moment).astimezone(tz)

    monkeypatch.setattr(policy.datetime, "datetime", Clock)


def judged(word: str, **changes: Any) -> Any:
    return policy.judge(
        verdict("bash.output", verdict=word, message="seen", **changes),
        {},
        {"bash.output": PlannedWaiver(reason="ticket 7", until=DAY)},
    )


@pytest.mark.parametrize("moment", ["2027-01-01T00:00:00+00:00", "2027-01-31T23:59:59+00:00"])
@pytest.mark.parametrize("word", ["fail", "flaky"])
def test_a_waiver_counts_until_the_end_of_its_last_day(monkeypatch: pytest.MonkeyPatch, word: str, moment: str) -> None:
    at(monkeypatch, moment)
    seen = judged(word)
    assert (seen.verdict, seen.required) == ("waived", True)
    assert seen.message == f"waived until 2027-01-31 (ticket 7); {word}: seen"


@pytest.mark.parametrize("moment", ["2027-02-01T00:00:00+00:00", "2027-01-31T23:30:00-01:00"])
@pytest.mark.parametrize("word", ["fail", "flaky"])
def test_an_expired_waiver_waives_nothing(monkeypatch: pytest.MonkeyPatch, word: str, moment: str) -> None:
    at(monkeypatch, moment)
    seen = judged(word)
    assert (seen.verdict, seen.required) == (word, True)
    assert seen.message == "its waiver ended on 2027-01-31 (ticket 7); seen"


def test_the_day_is_utcs_wherever_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "2027-02-01T09:00:00+10:00")  # still January by UTC
    assert judged("fail").verdict == "waived"


@pytest.mark.parametrize(("moment", "said"), [("2027-01-31", "until"), ("2027-02-01", "ended on")])
def test_a_waiver_of_a_check_that_passes_is_no_longer_needed(
    monkeypatch: pytest.MonkeyPatch, moment: str, said: str
) -> None:
    at(monkeypatch, f"{moment}T12:00:00+00:00")
    seen = judged("pass")
    assert seen.verdict == "pass"
    assert seen.message == f"seen; its waiver {said} 2027-01-31 and is no longer needed (ticket 7)"


@pytest.mark.parametrize("day", ["2027-01-01", "2027-02-01"])
@pytest.mark.parametrize("changes", [{"attempts": 0}, {"attempts": 1}, {"required": False}])
def test_what_could_not_be_looked_at_is_not_waived(
    monkeypatch: pytest.MonkeyPatch, day: str, changes: dict[str, Any]
) -> None:
    at(monkeypatch, f"{day}T00:00:00+00:00")
    seen = judged("not-measured", **changes)
    assert (seen.verdict, seen.required, seen.message) == ("not-measured", changes.get("required", True), "seen")


def test_advisory_is_not_required() -> None:
    assert policy.judge(verdict("bash.output", verdict="fail"), {"bash.output": "so"}, {}).required is False
    assert policy.judge(verdict("bash.output", verdict="fail"), {"bash.stderr": "so"}, {}).required is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "    policy:\n      off:\n        - bash.outptu\n",
            [
                "mine.yaml, line 6: sandboxes.box.policy.off.0: 'bash.outptu' names no check",
                "did you mean bash.output?",
            ],
        ),
        ("    policy: {required: [nothing.*]}\n", ["line 4:", "'nothing.*' names no check", "`bash.*`, `isolation.*`"]),
        ("    policy: {advisory: [health.*]}\n", ["line 4:", "all other checks rest on health.ready", "`required`"]),
        ("    policy: {off: ['*']}\n", ["line 4:", "all other checks rest on health.ready"]),
        (
            "    policy:\n      off: [bash.*]\n      advisory: [bash.*]\n",
            ["line 5: sandboxes.box.policy.off.0: 'bash.*' stands in the policy twice"],
        ),
        (
            "    waivers:\n      - until: 2027-01-31\n        reason: so\n        check: bash.nothing\n",
            ["mine.yaml, line 7: sandboxes.box.waivers.0.check: 'bash.nothing' names no check", "bash.exit-code"],
        ),
        (
            "    waivers:\n      - {check: health.ready, reason: so, until: 2027-01-31}\n",
            ["line 5:", "it can't be waived"],
        ),
        (
            "    limits:\n      bash.output: 2 s\n",
            ["line 5:", "bash.output takes no limit", "performance.exec-p95, performance.throughput"],
        ),
        (
            "    limits:\n      performance.exec-p95: 2 MiB\n",
            ["mine.yaml, line 5: sandboxes.box.limits.performance.exec-p95: '2 MiB' is no limit", "`ms`, `s`, `min`"],
        ),
        ("    limits: {performance.exec_p95: 2 s}\n", ["line 4:", "did you mean performance.exec-p95?"]),
        ("    limits:\n      storage.free-space: 100\n", ["line 5:", "'100' is no limit", "`B`, `kB`"]),
        ("    limits:\n      storage.free-inodes:\n", ["line 5:", "'' is no limit", "units `files` are"]),
        ("    limits: {storage.free-space: 0 GB}\n", ["line 4:", "more than zero"]),
        (
            "    policy: {required: ['snap*']}\n",
            ["line 4: sandboxes.box.policy.required.0: snap* does not apply to the"],
        ),
        ("    limits: {snapshot.time: 1 s}\n", ["line 4:", "snapshot.time does not apply to the driver singularity"]),
    ],
)
def test_what_names_nothing_is_refused_with_its_line_and_what_is_allowed(
    text: str, said: list[str], tmp_path: Path
) -> None:
    refused = refusal(text, tmp_path)
    for words in said:
        assert words in refused


@pytest.mark.parametrize("pattern", ["image.sif", "image.*"])
def test_what_the_driver_can_not_do_can_not_be_required(pattern: str) -> None:
    wrong = config.load({"sandboxes": {"box": {"driver": "docker", "policy": {"required": [pattern]}}}})
    with pytest.raises(SifproofError, match=re.escape(f"{pattern} does not apply to the driver docker")):
        policy.verify(wrong, config.Origin())
    # What reaches further, or is for several sandboxes, may name what is another driver's.
    lists = {"required": ["*"], "advisory": ["image.*"]}
    waivers = [{"check": "image.sif", "reason": "so", "until": DAY}]
    shared = {"driver": "docker", "policy": lists, "waivers": waivers}
    policy.verify(config.load({"sandboxes": {"box": shared}}), config.Origin())


def test_guards_may_stand_under_a_pattern_where_they_are_required_by_name() -> None:
    lists = {"required": ["health.ready"], "advisory": ["health.*"]}
    policy.verify(config.load({"sandboxes": {"box": {"driver": "docker", "policy": lists}}}), config.Origin())


def test_units_of_the_whole_catalogue_can_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    measuring = [check for check in registry.load().values() if check.unit]
    assert {check.unit for check in measuring} <= set(policy.UNITS)
    for check in measuring:
        assert policy.parse_limit(f"3 {check.unit}", check) == 3.0
