"""The default config on a healthy image: accepted, by both drivers, and all reports say the same."""

import json
from collections import Counter

import pandas
import pytest
from checkout import DEAD_ENGINE, FEW, SINGULARITY, Checkout
from junitparser import JUnitXml

from sifproof.checks.engine import registry
from sifproof.image.engine import engine_version
from sifproof.report.write import REPORTS
from sifproof.run import new_id

DRIVERS = ["singularity", "docker"]


@pytest.fixture(scope="module")
def accepted(checkout):
    assert engine_version(timeout_s=60), "no Docker engine answers; `make test` starts one"
    outcome = checkout.gate()
    assert outcome.exit_code == 0, outcome
    return outcome


def test_both_drivers_pass_every_check(accepted):
    for driver in DRIVERS:
        checks = {check.id for check in registry.load().values() if driver in check.drivers}
        assert accepted.standing(driver)["verdict"] == "accepted"
        (allocation,) = accepted.allocations(driver)
        rows = [v for v in accepted.verdicts if v["driver"] == driver]
        assert {v["allocation"] for v in rows} == {allocation["id"]}
        assert {v["check"] for v in rows} == checks
        # The rest is what the driver can't give, or what does not apply to this machine.
        judged = [v for v in rows if v["required"] == "True" and v["verdict"] != "measured"]
        assert {v["verdict"] for v in judged} == {"pass"}
        # The default config limits the rest of what is measured.
        assert {v["check"] for v in rows if v["verdict"] == "measured"} == {
            "performance.place",
            "performance.start",
            "performance.ready",
        }
        assert len([v for v in rows if v["required"] == "True"]) > 0.9 * len(checks)
    assert "Accepted" in accepted.output
    assert "results/report.html" in accepted.output


def test_the_reports_agree(accepted, checkout):
    assert set(checkout.reports()) == set(REPORTS)
    words = {d: Counter(v["verdict"] for v in accepted.verdicts if v["driver"] == d) for d in DRIVERS}
    assert {d: accepted.standing(d)["counts"] for d in DRIVERS} == words

    table = pandas.read_csv(checkout.results / "checks.tsv", sep="\t")
    assert table.groupby("driver").size().to_dict() == {d: sum(words[d].values()) for d in DRIVERS}
    assert table.required.dtype == bool
    assert table.duration_s.dtype == float
    summary = pandas.read_csv(checkout.results / "summary.tsv", sep="\t")
    assert sorted(summary.sandbox) == sorted(DRIVERS)
    assert set(summary.run) == {accepted.run.id}

    junit = JUnitXml.fromfile(str(checkout.results / "junit.xml"))
    assert (junit.tests, junit.failures, junit.errors, junit.skipped) == (
        len(table),
        0,
        0,
        (~table.verdict.isin(["pass", "measured"])).sum(),
    )
    page = (checkout.results / "report.html").read_text()
    assert accepted.run.id in page
    assert all(check in page for check in registry.load())

    # The run keeps a set of its own, which a later run does not touch.
    assert checkout.reports() == {name: (accepted.folder / "report" / name).read_bytes() for name in REPORTS}


def test_each_driver_has_its_kind_of_port(accepted):
    networks = {}
    for driver in DRIVERS:
        (group,) = json.loads((accepted.folder / "jobs" / f"{driver}.json").read_text())["Job"]["TaskGroups"]
        (networks[driver],) = group["Networks"]
    assert [p["Value"] for p in networks["singularity"]["ReservedPorts"]] == [
        accepted.allocations("singularity")[0]["port"]
    ]
    assert networks["docker"].keys() == {"DynamicPorts"}


def test_nothing_that_a_run_leaves_has_its_tokens_but_their_own_files(accepted, checkout):
    kept = {path: path.read_bytes() for path in (accepted.folder / "tokens").iterdir()}
    assert {path.name for path in kept} == set(DRIVERS)
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    others = [path for path in (*accepted.folder.rglob("*"), *checkout.results.glob("*")) if path.is_file()]
    assert [
        path for path in others if path not in kept and any(one in path.read_bytes() for one in kept.values())
    ] == []
    assert not any(one.decode() in accepted.output for one in kept.values())


def test_plain_snakemake_without_a_docker_engine_leaves_docker_out(accepted, checkout):
    before = checkout.reports()
    outcome = checkout.snakemake("--cores", "4", "--config", FEW, **DEAD_ENGINE)
    assert outcome.exit_code == 0, outcome
    assert "No Docker engine answers" in outcome.output
    assert {v["sandbox"] for v in outcome.verdicts if v["verdict"] == "pass"} == {"singularity"}
    assert outcome.red() == set()
    assert (outcome.standing("docker")["verdict"], outcome.standing("singularity")["verdict"]) == (
        "not-measured",
        "accepted",
    )
    assert "No Docker engine answers" in (checkout.results / "report.html").read_text()
    # The earlier run's reports have left results/, not the disk.
    assert {name: (accepted.folder / "report" / name).read_bytes() for name in REPORTS} == before
    assert set(checkout.reports()) == set(REPORTS)


def test_snakemake_looks_without_doing(checkout):
    before = checkout.files()
    dry = checkout.snakemake("--dry-run", **DEAD_ENGINE)
    assert dry.exit_code == 0, dry
    assert "teardown" in dry.output
    lint = checkout.snakemake("--lint")
    assert lint.exit_code == 0, lint
    assert "Lints for" not in lint.output
    assert checkout.files() == before


def test_an_image_is_converted_once_and_again_when_it_changes(tmp_path, images):
    checkout = Checkout(tmp_path, images=images)

    def convert():
        run = new_id()
        made = f"results/runs/{run}/images/singularity.json"
        outcome = checkout.snakemake("--cores", "4", made, *SINGULARITY, SIFPROOF_RUN=run, **DEAD_ENGINE)
        assert outcome.exit_code == 0, outcome
        provenance = json.loads((tmp_path / made).read_text())
        assert "fault" not in provenance, provenance
        return provenance

    convert()
    again = convert()
    with (tmp_path / "sandbox" / "slotserver" / "__init__.py").open("a") as module:
        module.write("# changed\n")
    changed = convert()
    assert again["reused"]
    assert changed["digest"] != again["digest"]
    assert changed["sif"] != again["sif"]
    assert changed["sha256"] != again["sha256"]
    assert convert()["sha256"] == changed["sha256"]


def test_two_runs_side_by_side_do_not_disturb_each_other(tmp_path, images):
    started = [
        Checkout(tmp_path / name, images=images).start("--cores", "2", *SINGULARITY, FEW, **DEAD_ENGINE)
        for name in ("one", "other")
    ]
    try:
        outcomes = [run.wait() for run in started]
    finally:
        for run in started:
            run.end()
    assert [o.exit_code for o in outcomes] == [0, 0], "\n".join(map(str, outcomes))
    assert len({o.allocations("singularity")[0]["port"] for o in outcomes}) == 2
