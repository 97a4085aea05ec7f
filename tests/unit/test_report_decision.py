"""The gate's decision, case by case."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from report_samples import ALLOCATION, CHECKS, fault, plan, planned, verdict, verdicts

from sifproof import config
from sifproof.checks import registry
from sifproof.config import SUITES
from sifproof.doctor.facts import parse
from sifproof.doctor.findings import Case, user_namespaces
from sifproof.doctor.record import Doctor, Look
from sifproof.errors import Fault
from sifproof.records import FaultRecord
from sifproof.report.decision import Decision, Outcome, decide

FAILS = {"verdict": "fail", "message": "exit code 0"}
SKIPPED = {"verdict": "not-measured", "message": "no answer"}


def one(*rows: object, **changes: dict[str, object]) -> list:
    """The verdicts of a whole run on singularity alone."""
    return [*verdicts("singularity", **changes), *rows]


ONE = plan(planned())


def words(decision: Decision) -> tuple[str, int]:
    return decision.verdict.value, decision.exit_code


def test_outcomes_have_the_exit_codes_of_the_command_line() -> None:
    assert {o.value: o.exit_code for o in Outcome} == {
        "accepted": 0, "rejected": 1, "configuration": 2, "infrastructure": 3, "incomplete": 4,
    }  # fmt: skip
    assert [Outcome.of([kind]).exit_code for kind in Fault] == [kind.exit_code for kind in Fault]


def test_all_passed_is_accepted() -> None:
    decision = decide(plan(), verdicts())
    assert words(decision) == ("accepted", 0)
    assert decision.reasons == []
    assert decision.sentence == (
        "Accepted: 18 required checks passed on singularity and docker, of the suites health, bash and files alone."
    )
    assert [(s.name, s.verdict, s.counts) for s in decision.sandboxes] == [
        ("singularity", "accepted", {"pass": 9}),
        ("docker", "accepted", {"pass": 9}),
    ]


def test_what_was_measured_without_a_limit_is_counted_apart_and_rejects_nothing() -> None:
    decision = decide(ONE, one(bash_exit_code={"verdict": "measured"}, files_round_trip={"verdict": "measured"}))
    assert words(decision) == ("accepted", 0)
    assert decision.sentence == (
        "Accepted: 7 required checks passed on singularity, of the suites health, bash and files alone, "
        "2 measured without a limit."
    )


@pytest.mark.parametrize("word", ["fail", "flaky"])
def test_a_required_failure_rejects(word: str) -> None:
    decision = decide(ONE, one(bash_exit_code={"verdict": word, "message": "exit 7 came back as 0"}))
    assert words(decision) == ("rejected", 1)
    (reason,) = decision.reasons
    assert (reason.fault, reason.check, reason.allocation) == (Fault.IMAGE, "bash.exit-code", ALLOCATION["singularity"])
    assert "exit 7 came back as 0" in reason.text
    assert decision.sentence == "Rejected: 1 of 9 required checks failed on singularity: bash.exit-code."


def test_waived_and_not_required_do_not_reject() -> None:
    rows = one(bash_output={"verdict": "waived"}, bash_exit_code=FAILS | {"required": False})
    rows.append(verdict("bash.extra", verdict="not-measured", required=False))
    decision = decide(ONE, rows)
    assert words(decision) == ("accepted", 0)
    assert "1 waived" in decision.sentence


def test_the_check_says_who_is_to_blame() -> None:
    decision = decide(ONE, one(health_identity=FAILS | {"fault": Fault.INFRASTRUCTURE}))
    assert words(decision) == ("infrastructure", 3)


def test_what_a_foreign_server_answers_is_no_evidence_against_the_image() -> None:
    foreign = {"health_identity": FAILS | {"fault": Fault.INFRASTRUCTURE}, "bash_output": FAILS, "teardown_port": FAILS}
    decision = decide(ONE, one(**foreign))
    assert words(decision) == ("infrastructure", 3)
    assert {reason.fault for reason in decision.reasons} == {Fault.INFRASTRUCTURE}


def test_a_foreign_server_on_one_allocation_excuses_no_other() -> None:
    other = verdicts("singularity", bash_output=FAILS)
    rows = one(health_identity=FAILS | {"fault": Fault.INFRASTRUCTURE})
    rows += [row.model_copy(update={"allocation": "other"}) for row in other if row.allocation]
    decision = decide(plan(planned(count=2)), rows)
    assert words(decision) == ("rejected", 1)
    assert decision.sentence == "Rejected: 1 of 18 required checks failed on singularity: bash.output."


def test_what_is_left_of_a_server_that_the_infrastructure_kept_from_answering_is_not_the_images() -> None:
    lost = {"verdict": "not-measured", "message": "its port is taken", "hindered": True, "fault": Fault.INFRASTRUCTURE}
    port = {"verdict": "fail", "message": "it still accepts connections"}
    decision = decide(ONE, one(health_ready=lost, teardown_port=port))
    assert words(decision) == ("infrastructure", 3)
    assert {reason.fault for reason in decision.reasons} == {Fault.INFRASTRUCTURE}


def test_what_failed_before_the_infrastructure_failed_is_the_images() -> None:
    lost = {"verdict": "not-measured", "message": "the node is down", "hindered": True, "fault": Fault.INFRASTRUCTURE}
    decision = decide(ONE, one(bash_exit_code=FAILS, files_round_trip=lost))
    assert words(decision) == ("rejected", 1)


def test_another_allocation_that_was_lost_excuses_none() -> None:
    lost = {"verdict": "not-measured", "message": "the node is down", "hindered": True, "fault": Fault.INFRASTRUCTURE}
    rows = one(bash_exit_code=FAILS, health_ready={**lost, "allocation": "another"})
    assert words(decide(plan(planned(count=2)), rows)) == ("rejected", 1)


def test_what_the_node_lets_in_is_no_evidence_against_the_image() -> None:
    """Such as the home directories that a site's `apptainer` binds into every container."""
    known = registry.load()
    let_in = [verdict(f"isolation.host.{name}", **FAILS, fault=known[f"isolation.host.{name}"].blames)
              for name in ("home", "directories")]  # fmt: skip
    decision = decide(ONE, one(*let_in), describe=known.get)
    assert words(decision) == ("infrastructure", 3)
    assert {"a script of the site" in reason.todo for reason in decision.reasons} == {True}


def saw(node: str, **facts: str) -> Look:
    """What the doctor made of a node like this, for the sandbox of :data:`ONE`."""
    said = {"uid": "1000", "program.0": "apptainer", "program.0.plain": "ok", "end": "ok"} | facts
    found = parse("".join(f"{key.replace('_', '.')}={value}\n" for key, value in said.items()))
    sandboxes = config.load({"sandboxes": {"singularity": {"driver": "singularity"}}}).selected()
    findings = list(user_namespaces(Case(facts=found, sandboxes=sandboxes)))
    return Look(machine=node, node=f"id of {node}", seconds=1, facts=found, findings=findings)


REFUSED = {"userns_apparmor": "1", "program_0_nested": "no: Operation not permitted"}
"""A node of Ubuntu 24.04, as it comes."""
OPEN_SLOTS = [verdict(check, **FAILS) for check in ("bubblewrap.used", "isolation.slot.files-read")]


def test_slots_lie_open_on_a_node_without_user_namespaces_whatever_the_image() -> None:
    decision = decide(ONE, one(*OPEN_SLOTS), doctor=Doctor(looks=[saw("node-1", **REFUSED)]))
    assert words(decision) == ("infrastructure", 3)
    assert {reason.fault for reason in decision.reasons} == {Fault.INFRASTRUCTURE}
    mends = [reason.doctor[0].mend for reason in decision.reasons]
    assert {"apparmor_restrict_unprivileged_userns=0" in mend for mend in mends} == {True}


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([saw("node-1", program_0_nested="ok")], id="the node has them"),
        pytest.param([saw("node-1")], id="not tried"),
        pytest.param([saw("node-1", program_0_nested="ok"), saw("node-2", **REFUSED)], id="another node has none"),
        pytest.param([], id="not looked at"),
    ],
)
def test_slots_that_lie_open_elsewhere_are_the_images(looks: list[Look]) -> None:
    assert words(decide(ONE, one(*OPEN_SLOTS), doctor=Doctor(looks=looks))) == ("rejected", 1)


@pytest.mark.parametrize(
    "check", ["bubblewrap.require-sandbox", "bubblewrap.private-processes", "isolation.slot.forks"]
)
def test_what_a_server_says_of_its_sandboxes_it_has_to_keep_without_them_too(check: str) -> None:
    doctor = Doctor(looks=[saw("node-1", **REFUSED)])
    assert words(decide(ONE, one(verdict(check, **FAILS)), doctor=doctor)) == ("rejected", 1)


def test_a_failure_on_broken_infrastructure_is_the_infrastructures() -> None:
    rows = one(bash_exit_code=FAILS)
    assert words(decide(ONE, rows, [fault("submit")])) == ("infrastructure", 3)
    assert words(decide(ONE, rows, [fault("agent", sandbox="")])) == ("infrastructure", 3)
    assert words(decide(ONE, rows, [fault("bash")])) == ("infrastructure", 3)
    # Too late, or elsewhere: the evidence stands.
    assert words(decide(ONE, rows, [fault("files")])) == ("rejected", 1)
    assert words(decide(ONE, rows, [fault("teardown")])) == ("rejected", 1)
    assert words(decide(plan(), [*rows, *verdicts("docker")], [fault("submit", "docker")])) == ("rejected", 1)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (Fault.IMAGE, "rejected"),
        (Fault.CONFIGURATION, "configuration"),
        (Fault.INFRASTRUCTURE, "infrastructure"),
        (Fault.INCOMPLETE, "incomplete"),
    ],
)
def test_a_fault_gives_its_word_and_explains_what_is_missing(kind: Fault, word: str) -> None:
    decision = decide(plan(), verdicts("docker"), [fault("submit", "singularity", kind)])
    assert words(decision) == (word, kind.exit_code)
    assert decision.reasons[0].text == "The job was not placed: no node has raw_exec."
    assert decision.reasons[0].todo == "enable raw_exec on a node"
    assert {reason.fault for reason in decision.reasons} == {kind}
    assert [s.verdict for s in decision.sandboxes] == [word, "accepted"]
    also = " (and 1 more reason)" if kind is Fault.INCOMPLETE else ""  # what was not looked at
    assert decision.sentence.endswith(f": The job was not placed: no node has raw_exec{also}.")


def test_a_fault_of_the_whole_run_explains_every_sandbox() -> None:
    decision = decide(plan(), [], [fault("agent", "")])
    assert words(decision) == ("infrastructure", 3)
    assert [s.verdict for s in decision.sandboxes] == ["infrastructure", "infrastructure"]


def test_a_fault_alone_keeps_the_run_from_being_accepted() -> None:
    assert words(decide(ONE, one(), [fault("teardown")])) == ("infrastructure", 3)


def test_the_first_word_in_the_order_wins() -> None:
    faults = [fault("agent", "", Fault.INCOMPLETE), fault("submit", "docker", Fault.INFRASTRUCTURE)]
    assert words(decide(plan(), [], faults)) == ("infrastructure", 3)
    faults.append(fault("source", "docker", Fault.CONFIGURATION))
    assert words(decide(plan(), [], faults)) == ("configuration", 2)
    decision = decide(plan(), verdicts("singularity", bash_output=FAILS), faults[1:])
    assert words(decision) == ("rejected", 1)
    codes = [reason.fault.exit_code for reason in decision.reasons]
    assert codes == sorted(codes)


def test_no_verdict_at_all_is_incomplete() -> None:
    decision = decide(ONE, [])
    assert words(decision) == ("incomplete", 4)
    assert "no check was recorded" in decision.sentence


@pytest.mark.parametrize("suite", ["health", "bash", "files", "teardown"])
def test_a_suite_that_did_not_run_is_incomplete(suite: str) -> None:
    decision = decide(ONE, [row for row in one() if row.suite != suite])
    assert words(decision) == ("incomplete", 4)
    assert decision.sentence == f"Incomplete, the image is not judged: Sandbox singularity: suite {suite} did not run."


def test_a_suite_that_ran_on_one_allocation_only_is_incomplete() -> None:
    rows = one()
    rows += [row.model_copy(update={"allocation": "second"}) for row in rows if row.suite != "files"]
    decision = decide(plan(planned(count=2)), rows)
    assert words(decision) == ("incomplete", 4)
    assert decision.reasons[0].text == "Sandbox singularity: suite files did not run on allocation second."


def test_a_teardown_that_was_seen_on_one_allocation_only_is_incomplete() -> None:
    rows = one()
    rows += [row.model_copy(update={"allocation": "second"}) for row in rows if row.suite != "teardown"]
    decision = decide(plan(planned(count=2)), rows)
    assert words(decision) == ("incomplete", 4)
    assert decision.reasons[0].text == "Sandbox singularity: suite teardown did not run on allocation second."


def test_each_check_of_the_plan_has_to_be_recorded() -> None:
    rows = [row for row in one() if row.check != "health.slots"]
    asked = [check for checks in CHECKS.values() for check in checks]
    decision = decide(plan(planned(checks=asked)), rows)
    assert words(decision) == ("incomplete", 4)
    assert "health.slots was not recorded on allocation 1a2b3c4d" in decision.reasons[0].text
    assert words(decide(plan(planned(checks=asked)), one())) == ("accepted", 0)


def test_the_sentence_says_where_only_some_suites_were_asked_for() -> None:
    rows = [row for row in one() if row.suite in {"health", "teardown"}]
    decision = decide(plan(planned(suites=["health"])), rows)
    assert words(decision) == ("accepted", 0)
    assert decision.sentence.endswith("passed on singularity, of the suites health alone.")


def test_the_sentence_says_what_is_off() -> None:
    rows = [row for row in one() if row.suite in {"health", "teardown"}]
    checks = [row.check for row in rows]
    off = dict.fromkeys(CHECKS["bash"], "the policy says so")
    part = decide(plan(planned(suites=["health", "bash"], checks=checks, off=off)), rows)
    assert part.sentence.endswith("passed on singularity, of the suites health alone; 2 checks off.")
    whole = decide(plan(planned(suites=list(SUITES), checks=checks, off=off)), rows)
    assert whole.sentence.endswith("passed on singularity; 2 checks off.")
    left_out = planned("docker", left_out="no engine", off=off)
    assert "off" not in decide(plan(planned(suites=list(SUITES), checks=checks), left_out), rows).sentence


def test_an_allocation_that_was_not_checked_is_incomplete() -> None:
    decision = decide(plan(planned(count=3)), one())
    assert words(decision) == ("incomplete", 4)
    assert "1 of 3 allocations were checked" in decision.sentence


def test_verdicts_without_an_allocation_do_not_stand_for_one() -> None:
    rows = [row.model_copy(update={"allocation": ""}) for row in one()]
    assert words(decide(ONE, rows)) == ("incomplete", 4)


def test_a_required_check_that_was_not_measured_is_incomplete() -> None:
    decision = decide(ONE, one(files_round_trip=SKIPPED, bash_output=SKIPPED))
    assert words(decision) == ("incomplete", 4)
    assert "bash.output was not measured on allocation 1a2b3c4d (no answer)" in decision.reasons[0].text
    assert "suite files was not measured" in decision.reasons[0].text


def test_a_suite_of_which_nothing_is_required_may_be_not_measured() -> None:
    assert words(decide(ONE, one(files_round_trip=SKIPPED | {"required": False}))) == ("accepted", 0)


def test_a_suite_that_the_policy_turned_off_is_no_gap() -> None:
    rows = [row for row in one() if row.suite != "files"]
    asked = [check for checks in CHECKS.values() for check in checks]
    left = [check for check in asked if not check.startswith("files.")]
    assert words(decide(plan(planned(checks=left)), rows)) == ("accepted", 0)
    assert words(decide(plan(planned(checks=asked)), rows)) == ("incomplete", 4)


def test_what_a_failed_guard_kept_from_being_measured_has_its_word() -> None:
    behind = {"bash_output": SKIPPED, "bash_exit_code": SKIPPED, "files_round_trip": SKIPPED}
    decision = decide(ONE, one(health_ready=FAILS, **behind))
    assert words(decision) == ("rejected", 1)
    assert [(reason.fault, reason.follows) for reason in decision.reasons] == [
        (Fault.IMAGE, False),
        (Fault.IMAGE, True),
    ]
    decision = decide(ONE, one(health_identity=FAILS | {"fault": Fault.INFRASTRUCTURE}, **behind))
    assert words(decision) == ("infrastructure", 3)


def hindered(
    message: str = "Nomad lost node n1: it is down.", fault: Fault = Fault.INFRASTRUCTURE
) -> dict[str, object]:
    return {"verdict": "not-measured", "message": message, "fault": fault, "hindered": True}


def test_what_was_lost_is_told_once_and_everything_missing_follows_from_it() -> None:
    rows = one(
        bash_exit_code=hindered(), files_round_trip=hindered("not looked at"), teardown_port=hindered("not looked")
    )
    decision = decide(ONE, rows)
    assert words(decision) == ("infrastructure", 3)
    first, *rest = decision.reasons
    assert (first.text, first.fault, first.allocation, first.follows) == (
        "Nomad lost node n1: it is down.",
        Fault.INFRASTRUCTURE,
        ALLOCATION["singularity"],
        False,
    )
    assert {(r.fault, r.follows) for r in rest} == {(Fault.INFRASTRUCTURE, True)}
    assert decision.sentence == "Infrastructure at fault, the image is not judged: Nomad lost node n1: it is down."


def test_a_failure_seen_before_it_was_lost_still_rejects() -> None:
    decision = decide(ONE, one(bash_output=FAILS, bash_exit_code=hindered()))
    assert words(decision) == ("rejected", 1)
    assert decision.reasons[0].check == "bash.output"


@pytest.mark.parametrize(("fault", "word"), [(Fault.IMAGE, "rejected"), (Fault.CONFIGURATION, "configuration")])
def test_a_server_that_died_is_one_reason(fault: Fault, word: str) -> None:
    died = {"verdict": "fail", "message": "the server died", "fault": fault, "hindered": True}
    decision = decide(
        ONE, one(bash_output=died, bash_exit_code=hindered("x", fault), files_round_trip=hindered("x", fault))
    )
    assert decision.verdict.value == word
    (told,) = [r for r in decision.reasons if not r.follows]
    assert (told.check, told.fault) == ("bash.output", fault)
    assert {r.fault for r in decision.reasons} == {fault}


def test_a_sandbox_that_was_lost_before_anything_was_measured() -> None:
    rows = [row.model_copy(update=hindered()) for row in one()]
    decision = decide(ONE, rows)
    assert words(decision) == ("infrastructure", 3)
    assert decision.reasons[0].text == "Nomad lost node n1: it is down."


def test_what_was_lost_on_one_allocation_explains_nothing_of_another() -> None:
    other = [row.model_copy(update={"allocation": "other"}) for row in one() if row.allocation]
    other = [r.model_copy(update=SKIPPED) if r.check == "bash.output" else r for r in other]
    decision = decide(plan(planned(count=2)), [*one(bash_exit_code=hindered()), *other])
    assert {(r.fault, r.follows) for r in decision.reasons} == {
        (Fault.INFRASTRUCTURE, False),
        (Fault.INFRASTRUCTURE, True),
        (Fault.INCOMPLETE, False),
    }
    missing = decide(plan(planned(count=2)), one(bash_exit_code=hindered()))
    assert any(r.fault is Fault.INCOMPLETE and "1 of 2 allocations" in r.text for r in missing.reasons)


def test_what_kept_a_check_from_looking_that_does_not_count_is_no_reason() -> None:
    decision = decide(ONE, one(verdict("bash.extra", **hindered(), required=False)))
    assert words(decision) == ("accepted", 0)


def test_what_is_left_out_does_not_count() -> None:
    left_out = planned("docker", left_out="There is no Docker engine.")
    decision = decide(plan(planned(), left_out), one(), [fault("preflight", "docker")])
    assert words(decision) == ("accepted", 0)
    assert decision.sentence == (
        "Accepted: 9 required checks passed on singularity, of the suites health, bash and files alone; "
        "left out: docker."
    )
    assert decision.sandboxes[1].model_dump() == {
        "name": "docker",
        "driver": "docker",
        "verdict": "not-measured",
        "reason": "There is no Docker engine.",
        "counts": {},
    }


def test_a_run_that_left_everything_out_is_incomplete() -> None:
    assert words(decide(plan(planned(left_out="no apptainer")), [])) == ("incomplete", 4)
    nothing = ONE.model_copy(update={"sandboxes": []})
    assert words(decide(nothing, [])) == ("incomplete", 4)


def test_a_record_that_cannot_be_read_is_incomplete() -> None:
    decision = decide(ONE, one(), problems=["verdicts/x.jsonl, line 3, cannot be understood."])
    assert words(decision) == ("incomplete", 4)
    assert "line 3" in decision.sentence


def test_verdicts_of_another_run_count_for_nothing() -> None:
    decision = decide(ONE, [row.model_copy(update={"run": "yesterday"}) for row in one()])
    assert words(decision) == ("incomplete", 4)
    assert any("yesterday" in reason.text for reason in decision.reasons)
    assert decision.sandboxes[0].counts == {}


def test_verdicts_on_a_sandbox_that_is_not_planned_are_told_and_still_reject() -> None:
    assert words(decide(ONE, one(verdict(sandbox="stray")))) == ("incomplete", 4)
    assert words(decide(ONE, one(verdict(sandbox="stray", verdict="fail")))) == ("rejected", 1)


def test_the_registry_says_what_to_do() -> None:
    known = {"bash.output": SimpleNamespace(requirement="r", why="w", todo="look at the pipe")}
    decision = decide(ONE, one(bash_output=FAILS, bash_exit_code=FAILS), describe=known.get)
    assert {reason.check: reason.todo for reason in decision.reasons} == {
        "bash.output": "look at the pipe",
        "bash.exit-code": "",
    }


def test_the_sentence_is_one_line_whatever_a_task_says() -> None:
    record = FaultRecord(
        stage="submit", sandbox="singularity", fault=Fault.IMAGE, what="it\nsaid\x1b[31m", why="a\tb\nc"
    )
    sentence = decide(ONE, [], [record]).sentence
    assert sentence.isprintable()
    assert len(decide(ONE, [], [record.model_copy(update={"what": "x" * 10_000})]).sentence) <= 400
