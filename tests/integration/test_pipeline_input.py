"""Bad input: told in words, before anything is built or submitted, and nothing that was there is touched."""

import os
import socket

import pytest
import yaml
from checkout import DEAD_ENGINE

from sifproof.report.write import REPORTS


def no_such_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def checkout(checkout):
    """With reports of an earlier run, and a file that is no SIF."""
    for name in REPORTS:
        (checkout.results / name).write_text(f"{name} of yesterday")
        kept = checkout.results / "runs" / "yesterday" / "report" / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"{name} of yesterday")
    (checkout.root / "text.sif").write_text("no SIF at all\n" * 100)
    return checkout


def sandboxes(**several):
    return {"sandboxes": {name: {"driver": "singularity", **settings} for name, settings in several.items()}}


# name: settings file, words of --config, exit code, words that the message must have
CASES = {
    "unknown key": ({}, ["singularity_imag=x.sif"], 2, ["singularity_imag", "'x.sif'", "singularity_image"]),
    "unknown key of a sandbox": (sandboxes(a={"slot": 3}), [], 2, ["sandboxes.a.slot", "= 3", "slots", "memory"]),
    "wrong type": (sandboxes(a={"slots": "five"}), [], 2, ["sandboxes.a.slots", "'five'", "integer"]),
    "port out of range": (sandboxes(a={"port": 70000}), [], 2, ["sandboxes.a.port", "70000", "65535", "auto"]),
    "one static port for two": (
        sandboxes(a={"port": 12345}, b={"port": 12345}),
        [],
        2,
        ["sandboxes.b.port", "12345", "sandboxes.a", "auto"],
    ),
    "no such suite": ({}, ["suites=health,speed"], 2, ["suites", "'speed'", "files"]),
    "no such image": ({}, ["singularity_image=missing.sif"], 2, ["missing.sif", "docker-archive:"]),
    "no such layout": ({}, ["driver=singularity", "image=oci:missing"], 2, ["oci:missing"]),
    "no SIF": ({}, ["singularity_image=text.sif"], 2, ["text.sif", "SIF"]),
    "no Docker engine": ({}, ["driver=docker"], 3, ["No Docker engine answers", "DOCKER_HOST"]),
}


def refused(checkout, *arguments, **environment):
    """The outcome of a run that must leave everything but its own folder as it was, and make nothing there either."""
    before, images = checkout.files(), stored(checkout)
    outcome = checkout.gate(*arguments, **{**DEAD_ENGINE, **environment})
    own = f"runs/{outcome.run.id}/"
    assert {path: content for path, content in checkout.files().items() if not path.startswith(own)} == before
    assert stored(checkout) == images
    left = {path.relative_to(outcome.folder).parts[0] for path in outcome.folder.rglob("*") if path.is_file()}
    assert left <= {"logs", "faults", "plan.json"}
    assert "Traceback" not in outcome.output
    return outcome


def stored(checkout):
    return {entry.name for entry in os.scandir(checkout.results / "images" / "sif")}


@pytest.mark.parametrize("case", CASES)
def test_is_refused_before_anything_is_done(checkout, case):
    settings, words, exit_code, said = CASES[case]
    arguments = ["--config", *words] if words else []
    if settings:
        (checkout.root / "bad.yaml").write_text(yaml.safe_dump(settings))
        arguments += ["--configfile", "bad.yaml"]
    outcome = refused(checkout, *arguments)
    assert outcome.exit_code == exit_code, outcome
    assert [word for word in said if word not in outcome.output] == [], outcome.output


def test_a_cluster_that_does_not_answer(checkout):
    address = no_such_port()
    outcome = refused(checkout, NOMAD_ADDR=address)
    assert outcome.exit_code == 3, outcome
    assert address in outcome.output
    assert "Connection refused" in outcome.output


def test_an_argument_that_snakemake_does_not_know(checkout):
    outcome = refused(checkout, "--corse", "4")
    assert outcome.exit_code == 2, outcome
    assert "--corse" in outcome.output
