"""The gate's decision, case by case."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from report_samples import ALLOCATION, CHECKS, fault, plan, planned, verdict, verdicts

from sifproof import config
from sifproof.checks.engine import registry
from sifproof.config import SUITES
from sifproof.doctor.facts import parse
from sifproof.doctor.findings import Case, Finding, user_namespaces
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


def test_what_was_lost_is_told_of_its_allocation_and_of_none_only_where_there_is_none() -> None:
    of_job = hindered() | {"allocation": ""}
    for changes, where in (
        ({"bash_exit_code": hindered(), "teardown_port": of_job}, ALLOCATION["singularity"]),
        ({"teardown_port": of_job}, ""),
    ):
        told = [r for r in decide(ONE, one(**changes)).reasons if r.text == "Nomad lost node n1: it is down."]
        assert [(r.allocation, r.sandbox, r.follows) for r in told] == [(where, "singularity", False)]


def test_a_server_that_died_in_a_check_that_does_not_count_is_not_told_by_the_next() -> None:
    died = {"verdict": "fail", "message": "it died", "hindered": True, "required": False}
    decision = decide(ONE, one(bash_output=died, bash_exit_code=hindered("not looked at", Fault.IMAGE)))
    assert "not looked at" not in [reason.text for reason in decision.reasons]


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


# -- what explains what is missing ----------------------------------------------------------------------------------


def on(allocation: str, rows: list) -> list:
    """``rows`` as those of another allocation."""
    return [row.model_copy(update={"allocation": allocation}) for row in rows if row.allocation]


MISSING = {
    "a suite": lambda rows: [row for row in rows if row.suite != "files"],
    "a suite that was not looked at": lambda rows: [
        row.model_copy(update=SKIPPED if row.suite == "files" else {}) for row in rows
    ],
    "a check that was not looked at": lambda rows: [
        row.model_copy(update=SKIPPED if row.check == "bash.output" else {}) for row in rows
    ],
    "a check that is not there": lambda rows: [row for row in rows if row.check != "bash.output"],
    "what the plan does not ask for": lambda rows: [
        *rows, *on(rows[0].allocation, [verdict("image.made", **SKIPPED)])
    ],
}  # fmt: skip
"""What can be missing of an allocation, by name: its rows without it."""
ALL = [check for checks in CHECKS.values() for check in checks]


@pytest.mark.parametrize("missing", MISSING)
def test_a_server_that_is_not_well_explains_what_is_missing_of_it_and_nothing_of_another(missing: str) -> None:
    it = plan(planned(count=2, checks=ALL))
    sick = one(health_slots=FAILS)
    here = decide(it, [*MISSING[missing](sick), *on("other", one())])
    assert [(r.fault, r.follows) for r in here.reasons] == [(Fault.IMAGE, False), (Fault.IMAGE, True)]
    there = decide(it, [*sick, *MISSING[missing](on("other", one()))])
    assert [(r.fault, r.follows, r.sandbox) for r in there.reasons] == [
        (Fault.IMAGE, False, "singularity"),
        (Fault.INCOMPLETE, False, "singularity"),
    ]
    # Of what fails elsewhere than in its health, nothing follows.
    broken = decide(plan(planned(checks=ALL)), MISSING[missing](one(bash_exit_code=FAILS)))
    assert [(r.fault, r.follows) for r in broken.reasons] == [(Fault.IMAGE, False), (Fault.INCOMPLETE, False)]


@pytest.mark.parametrize("missing", MISSING)
def test_what_was_in_the_way_of_one_check_explains_what_is_missing_of_its_suite_there(missing: str) -> None:
    suite = {"a suite": "", "what the plan does not ask for": "image"}.get(
        missing, "files" if missing.startswith("a suite") else "bash"
    )
    it = plan(planned(count=2, checks=ALL))
    met = verdict(f"{suite or 'files'}.met", **hindered())
    for allocation, faults in ((met.allocation, {Fault.INFRASTRUCTURE}), ("other", {Fault.INCOMPLETE})):
        rows = [*MISSING[missing](one()), *on("other", one()), *([*on(allocation, [met])] if suite else [])]
        found = decide(it, rows).reasons
        of_gaps = {r.fault for r in found if r.text.startswith("Sandbox ") and "(no answer)" in r.text}
        of_gaps |= {r.fault for r in found if "not recorded" in r.text}
        if suite:
            assert of_gaps == faults
        else:
            assert {r.fault for r in found} == {Fault.INCOMPLETE}


@pytest.mark.parametrize(
    ("missing", "suite"), [(missing, "files" if missing.startswith("a suite") else "bash") for missing in MISSING]
)
def test_a_stage_explains_what_is_missing_from_it_on(missing: str, suite: str) -> None:
    rows = MISSING[missing](one())
    it = plan(planned(checks=ALL))
    for stage in ("agent", "submit", "health", suite):
        assert {r.fault for r in decide(it, rows, [fault(stage)]).reasons} == {Fault.INFRASTRUCTURE}
    later = decide(it, rows, [fault("teardown")])
    expected = {Fault.INFRASTRUCTURE} | ({Fault.INCOMPLETE} if missing in list(MISSING)[:4] else set())
    assert {r.fault for r in later.reasons} == expected


def test_of_several_faults_the_first_in_the_order_explains_what_is_missing() -> None:
    for kinds in ([Fault.CONFIGURATION, Fault.IMAGE], [Fault.INFRASTRUCTURE, Fault.CONFIGURATION]):
        decision = decide(ONE, [], [fault("submit", kind=kind) for kind in kinds])
        (follows,) = [r for r in decision.reasons if r.follows]
        assert follows.fault is min(kinds, key=lambda kind: kind.exit_code)


@pytest.mark.parametrize(("stage", "explained"), [("submit", True), ("health", True), ("bash", False)])
@pytest.mark.parametrize("count", [1, 2])
def test_allocations_that_nothing_was_seen_of_were_lost_before_the_first_suite(
    stage: str, explained: bool, count: int
) -> None:
    decision = decide(plan(planned(count=count)), one() if count == 2 else [], [fault(stage)])
    said = "1 of 2 allocations were checked" if count == 2 else "no check was recorded"
    (gap,) = [r for r in decision.reasons if said in r.text]
    assert (gap.fault, gap.follows) == ((Fault.INFRASTRUCTURE, True) if explained else (Fault.INCOMPLETE, False))


def test_each_suite_that_is_missing_is_told_and_those_that_are_off_are_not() -> None:
    rows = [row for row in one() if row.suite in {"health", "teardown"}]
    told = decide(ONE, rows).reasons[0].text
    assert told == "Sandbox singularity: suite bash did not run; suite files did not run."
    off = [check for check in ALL if not check.startswith("bash.")]
    assert decide(plan(planned(checks=off)), rows).reasons[0].text == "Sandbox singularity: suite files did not run."


def test_a_job_that_was_never_placed_is_torn_down_all_the_same() -> None:
    nothing = [
        row.model_copy(update={"allocation": "", "node": ""} | (SKIPPED if row.suite != "teardown" else {}))
        for row in one()
    ]
    (reason,) = decide(ONE, nothing).reasons
    assert "teardown" not in reason.text
    assert reason.text.startswith("Sandbox singularity: 0 of 1 allocations were checked; suite health was not measured")
    # What of teardown is said of the job as a whole stands for no allocation.
    whole = [row.model_copy(update={"allocation": ""}) if row.check == "teardown.purged" else row for row in one()]
    assert words(decide(ONE, whole)) == ("accepted", 0)
    assert words(decide(plan(planned(checks=ALL)), whole)) == ("incomplete", 4)


def test_nothing_measured_is_for_what_was_in_the_way_of_any_of_it() -> None:
    rows = [row.model_copy(update=SKIPPED) for row in one()]
    rows[-1] = rows[-1].model_copy(update=hindered())
    reasons = decide(ONE, rows).reasons
    assert any(r.fault is Fault.INFRASTRUCTURE and "no check was measured" in r.text for r in reasons)
    rows[0] = verdict("health.ready")
    assert not any("no check was measured" in r.text for r in decide(ONE, rows).reasons)


def test_a_check_that_no_suite_of_the_plan_has_is_told_where_it_was_not_measured() -> None:
    extra = verdict("image.made", verdict="not-measured", message="no tool " + "x" * 300)
    (reason,) = decide(ONE, one(extra)).reasons
    said = ("no tool " + "x" * 300)[:159] + "…"
    assert reason.text == f"Sandbox singularity: image.made was not measured on allocation 1a2b3c4d ({said})."
    (reason,) = decide(ONE, one(extra.model_copy(update={"message": ""}))).reasons
    assert reason.text == "Sandbox singularity: image.made was not measured on allocation 1a2b3c4d."
    for changes in ({"verdict": "pass"}, {"required": False}):
        assert words(decide(ONE, one(extra.model_copy(update=changes)))) == ("accepted", 0)


# -- whose it is, and how it is told --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("look", "node", "local", "word"),
    [
        ({"machine": "node-1", "node": "x"}, "node-1", False, "infrastructure"),
        ({"machine": "node-2", "node": "x"}, "node-1", True, "rejected"),
        ({"machine": "gate", "node": ""}, "node-1", True, "infrastructure"),  # an agent of the gate's own machine
        ({"machine": "gate", "node": ""}, "node-1", False, "rejected"),
        ({"machine": "node-1", "node": "x", "severity": "fine"}, "node-1", False, "rejected"),
        ({"machine": "node-1", "node": "x", "id": "fuse"}, "node-1", False, "rejected"),
        ({"machine": "node-1", "node": "x", "sandboxes": ["docker"]}, "node-1", False, "rejected"),
    ],
)
def test_only_what_the_doctor_saw_on_that_very_node_takes_the_blame(
    look: dict[str, object], node: str, local: bool, word: str
) -> None:
    of_finding = {"id": "user-namespaces", "severity": "blocks", "sandboxes": ["singularity"]}
    finding = Finding.model_validate(
        {"what": "There are none."} | {name: look.get(name, value) for name, value in of_finding.items()}
    )
    seen = Look(machine=str(look["machine"]), node=str(look["node"]), seconds=1, findings=[finding])
    doctor = Doctor(looks=[seen])
    it = ONE.model_copy(update={"nomad_local": local})
    assert decide(it, one(verdict("bubblewrap.used", **FAILS, node=node)), doctor=doctor).verdict == word


def test_the_doctor_is_asked_what_may_be_behind_each_reason_and_not_behind_what_follows() -> None:
    asked = []
    doctor = SimpleNamespace(looks=[], explain=lambda *of, **where: asked.append((*of, where)) or [])
    rows = one(health_ready=FAILS, bash_output=SKIPPED)
    for local in (True, False):
        asked.clear()
        decision = decide(ONE.model_copy(update={"nomad_local": local}), rows, [fault("submit", "")], doctor=doctor)
        assert sum(reason.follows for reason in decision.reasons) == 1
        assert sorted(asked, key=str) == sorted(
            [
                ("", "", "The job was not placed: no node has raw_exec.", {"node": "", "local": local}),
                ("singularity", "health.ready", "health.ready failed: exit code 0", {"node": "node-1", "local": local}),
            ],
            key=str,
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": "fail", "message": "broken"}, "bash.output failed: broken"),
        ({"verdict": "fail"}, "bash.output failed."),
        ({"verdict": "flaky", "message": "broken"}, "bash.output passed only sometimes: broken"),
        ({"verdict": "flaky"}, "bash.output passed only sometimes."),
    ],
)
def test_a_reason_says_what_came_of_the_check(changes: dict[str, object], said: str) -> None:
    decision = decide(ONE, one(bash_output=changes))
    assert decision.reasons[0].text == decision.sandboxes[0].reason == said
    assert decide(ONE, one()).sandboxes[0].reason == ""


def test_all_that_concerns_the_run_as_a_whole_is_told() -> None:
    rows = one(verdict(sandbox="stray", **FAILS), verdict(run="yesterday", **FAILS), verdict(run="before", **FAILS))
    known = {"bash.output": SimpleNamespace(requirement="r", why="w", todo="look at the pipe")}
    decision = decide(ONE, rows, [fault("agent", "", Fault.INCOMPLETE)], ["A line can't be read."], known.get)
    assert [(r.sandbox, r.check, r.text, r.todo) for r in decision.reasons] == [
        ("stray", "bash.output", "bash.output failed: exit code 0", "look at the pipe"),
        ("", "", "The job was not placed: no node has raw_exec.", "enable raw_exec on a node"),
        ("", "", "A line can't be read.", ""),
        ("", "", "Verdicts of another run lay among this one's: before, yesterday.", ""),
        ("stray", "", "There are verdicts on sandbox 'stray', which the plan does not have.", ""),
    ]
    assert decision.sentence == "Rejected: 1 of 10 required checks failed on stray: bash.output."
    # On broken infrastructure that is no evidence either.
    faults = [fault("agent", "", Fault.INFRASTRUCTURE)]
    assert {r.check: r.fault for r in decide(ONE, rows, faults).reasons}["bash.output"] is Fault.INFRASTRUCTURE


def test_a_fault_stands_by_the_sandbox_it_is_of() -> None:
    decision = decide(plan(), verdicts(), [fault("teardown", "docker")])
    (reason,) = decision.reasons
    assert (reason.sandbox, reason.fault) == ("docker", Fault.INFRASTRUCTURE)
    assert decision.sandboxes[1].reason == "The job was not placed: no node has raw_exec."


def test_a_run_without_a_sandbox_and_one_that_left_all_out_say_which_they_are() -> None:
    left_out = decide(plan(planned(left_out="no apptainer")), [])
    assert [r.text for r in left_out.reasons] == ["Every sandbox was left out, nothing was measured."]
    none = decide(ONE.model_copy(update={"sandboxes": []}), [])
    assert [r.text for r in none.reasons] == ["The run has no sandbox to measure."]


def test_the_terms_of_the_plan_stand_in_the_decision() -> None:
    terms = decide(plan(planned(limits={"bash.output": 2.0})), one()).terms
    assert [(term.check, term.limit) for term in terms.limits] == [("bash.output", 2.0)]


def test_a_consequence_is_never_the_headline() -> None:
    decision = decide(ONE, one(health_ready=FAILS, bash_output=SKIPPED))
    assert [r.follows for r in decision.reasons] == [False, True]
    assert decision.sandboxes[0].reason == "health.ready failed: exit code 0"
    assert decision.sentence == "Rejected: 1 of 9 required checks failed on singularity: health.ready."


def test_a_rejection_names_where_and_the_first_of_what_failed() -> None:
    failing = dict.fromkeys(["health_slots", "bash_output", "bash_exit_code", "files_round_trip"], FAILS)
    decision = decide(plan(), verdicts(**failing))
    assert decision.sentence == (
        "Rejected: 8 of 18 required checks failed on singularity and docker: "
        "health.slots, bash.output, bash.exit-code and 1 more."
    )
    three = decide(ONE, one(bash_output=FAILS, bash_exit_code=FAILS, files_round_trip=FAILS))
    assert three.sentence.endswith(": bash.output, bash.exit-code and files.round-trip.")


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (1, "The job was not placed: no node has raw_exec."),
        (2, "The job was not placed: no node has raw_exec (and 1 more reason)."),
        (3, "The job was not placed: no node has raw_exec (and 2 more reasons)."),
    ],
)
def test_the_sentence_says_how_many_reasons_there_are(faults: int, said: str) -> None:
    decision = decide(ONE, [], [fault(f"stage-{number}") for number in range(faults)])
    assert decision.sentence == f"Infrastructure at fault, the image is not judged: {said}"


@pytest.mark.parametrize(("failing", "said"), [(1, "1 advisory check failed"), (2, "2 advisory checks failed")])
def test_the_sentence_of_an_accepted_run_counts_what_rejects_nothing(failing: int, said: str) -> None:
    loose = [verdict(f"bash.n{n}", verdict="fail", required=n >= failing) for n in range(failing)]
    loose.append(verdict("bash.passed", required=False))
    decision = decide(ONE, one(*loose, bash_output={"verdict": "waived"}))
    assert decision.sentence.endswith(f", 1 waived; {said}.")
    assert "9 required" not in decision.sentence


def test_of_many_sandboxes_the_first_five_are_named() -> None:
    for count, named in ((5, "a, b, c, d and e"), (6, "a, b, c, d, e and 1 more"), (7, "a, b, c, d, e and 2 more")):
        names = "abcdefg"[:count]
        rows = [row for name in names for row in verdicts(name)]
        sentence = decide(plan(*[planned(name) for name in names]), rows).sentence
        assert f"passed on {named}, of the suites" in sentence


def test_how_a_server_ends_that_the_configuration_ended_or_starved_is_not_the_images() -> None:
    starved = {"verdict": "not-measured", "hindered": True, "fault": Fault.CONFIGURATION, "message": "raise memory"}
    rows = one(bash_output=starved, teardown_port=FAILS)
    assert decide(ONE, rows).verdict is Outcome.CONFIGURATION
    assert decide(ONE, one(teardown_port=FAILS)).verdict is Outcome.REJECTED
    # What else failed was measured for itself.
    assert decide(ONE, one(bash_output=starved, bash_exit_code=FAILS)).verdict is Outcome.REJECTED
