"""Whose a failure is under a job that is not sifproof's own."""

import pytest
from report_samples import plan, planned, verdict

from sifproof.errors import Fault
from sifproof.records import FaultRecord
from sifproof.report.decision import decide
from sifproof.report.side_by_side import advice, blame, blame_faults

HOST, TEARDOWN, BASH = "isolation.host.home", "teardown.graceful", "bash.output"


def judged(check, own, given, *, kind="given", blames=Fault.IMAGE, image="docker-daemon:sandbox:latest"):
    """The verdict on the sandbox `prod`, after one on `own` with sifproof's own job; None for none beside it."""
    sandboxes = [planned("prod", job=kind)]
    rows = [verdict(check, "prod", verdict=given, fault=blames, message="seen.")]
    if own is not None:
        sandboxes.insert(0, planned("own", image=image))
        rows.insert(0, verdict(check, "own", verdict=own, fault=blames))
    return blame(plan(*sandboxes), rows)[-1]


@pytest.mark.parametrize("blames", [Fault.IMAGE, Fault.INFRASTRUCTURE])
@pytest.mark.parametrize("check", [HOST, TEARDOWN, BASH])
def test_what_passes_under_sifproofs_own_job_is_the_jobs_fault(check, blames):
    found = judged(check, "pass", "fail", blames=blames)
    assert found.fault is Fault.CONFIGURATION
    assert found.message == (
        "seen. To blame is the job that production runs: under sifproof's own (own) the same image passes."
    )


@pytest.mark.parametrize("check", [HOST, TEARDOWN, BASH])
def test_what_fails_under_both_is_not_the_jobs(check):
    found = judged(check, "fail", "fail")
    assert found.fault is Fault.IMAGE
    assert "the same image fails too" in found.message


def test_without_sifproofs_own_beside_it_only_what_a_job_decides_is_its_fault():
    assert judged(HOST, None, "fail", blames=Fault.INFRASTRUCTURE).fault is Fault.CONFIGURATION
    assert judged(TEARDOWN, None, "fail").fault is Fault.CONFIGURATION
    assert judged(BASH, None, "fail").fault is Fault.IMAGE


@pytest.mark.parametrize("own", ["not-measured", "flaky"])
def test_what_was_not_seen_to_pass_excuses_no_image(own):
    assert judged(BASH, own, "fail").fault is Fault.IMAGE


@pytest.mark.parametrize("blames", [Fault.IMAGE, Fault.INFRASTRUCTURE])
@pytest.mark.parametrize("check", [HOST, TEARDOWN, BASH])
def test_what_fails_now_and_then_is_not_the_jobs_for_having_passed_once_under_another(check, blames):
    found = judged(check, "pass", "flaky", blames=blames)
    assert (found.verdict, found.fault) == ("flaky", blames)
    assert found.message == (
        "seen. It passed under the job that production runs too, as it does under sifproof's own (own)."
    )


def test_another_image_is_no_evidence():
    assert judged(BASH, "pass", "fail", image="docker-daemon:other:1").fault is Fault.IMAGE


@pytest.mark.parametrize("word", ["pass", "not-measured", "waived"])
def test_what_did_not_fail_is_left_as_it_is(word):
    assert judged(HOST, "pass", word).message == "seen."


def test_sifproofs_own_job_is_never_to_blame():
    assert judged(HOST, "pass", "fail", kind="contained", blames=Fault.INFRASTRUCTURE).fault is Fault.INFRASTRUCTURE


def test_the_plain_job_is_called_so():
    assert "the plain job" in judged(HOST, "pass", "fail", kind="plain").message


@pytest.mark.parametrize(
    ("kind", "beside", "words"),
    [
        ("contained", "own", ""),
        ("given", "own", "Change the job; sifproof's own job is `jobs/own.json`"),
        ("given", "", "Change the job; a sandbox with the same image and sifproof's own job"),
        ("plain", "own", "Leave `containment: plain` out"),
    ],
)
def test_the_advice_is_to_change_the_job_that_is_to_blame(kind, beside, words):
    tested = planned("prod", job=kind)
    said = advice(tested, plan(*([planned(beside)] if beside else []), tested))
    assert bool(said) == bool(words)
    assert said.startswith(words)


def test_what_the_job_is_to_blame_for_says_so_before_the_advice_of_the_check():
    whole = plan(planned("own"), planned("prod", job="given"))
    rows = [verdict(check, name) for name in ("own", "prod") for check in (HOST, BASH)]
    rows[2:] = [verdict(check, "prod", verdict="fail") for check in (HOST, BASH)]
    rows[1] = verdict(BASH, "own", verdict="fail")
    reasons = decide(whole, blame(whole, rows)).reasons
    todo = {reason.check: reason.todo for reason in reasons if reason.sandbox == "prod"}
    assert todo[HOST].startswith("Change the job; ")
    assert "Change the job" not in todo[BASH]


def ended(sandbox="prod", stage="submit", fault=Fault.IMAGE):
    return FaultRecord(stage=stage, sandbox=sandbox, fault=fault, what="The server ended by itself", why="exit code 2")


@pytest.mark.parametrize("kind", ["given", "plain"])
def test_a_server_that_starts_under_sifproofs_own_job_alone_is_not_the_images_fault(kind):
    both = plan(planned("own"), planned("prod", job=kind))
    (found,) = blame_faults(both, [verdict("health.ready", "own")], [ended()])
    assert found.fault is Fault.CONFIGURATION
    assert "under sifproof's own (own) the same image starts" in str(found)
    assert "exit code 2" in str(found) and "jobs/" in found.todo


@pytest.mark.parametrize(
    ("own", "record"),
    [
        ({"verdict": "fail"}, ended()),
        ({"verdict": "not-measured"}, ended()),
        ({}, ended(sandbox="own")),
        ({}, ended(stage="image")),
        ({}, ended(fault=Fault.INFRASTRUCTURE)),
        ({}, ended(sandbox="")),
    ],
)
def test_other_faults_are_left_as_they_are(own, record):
    both = plan(planned("own"), planned("prod", job="given"))
    assert blame_faults(both, [verdict("health.ready", "own", **own)], [record]) == [record]


def test_without_the_same_image_under_sifproofs_own_job_a_server_that_ends_is_the_images():
    other = plan(planned("own", image="docker-daemon:other:1"), planned("prod", job="given"))
    for seen in ([], [verdict("health.ready", "own")]):
        assert blame_faults(other, seen, [ended()]) == [ended()]
