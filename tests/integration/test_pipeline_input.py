"""Bad input: told in words, before anything is built or submitted, and nothing that was there is touched."""

import socket

import pytest
import yaml
from checkout import DEAD_ENGINE

from sifproof.report.write import REPORTS


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
    "policy that names no check": (
        sandboxes(a={"policy": {"advisory": ["bash.outptu"]}}),
        [],
        2,
        [
            "bad.yaml, line 6: sandboxes.a.policy.advisory.0",
            "'bash.outptu' names no check",
            "bash.output",
            "bash.stderr",
        ],
    ),
    "policy on the command line": (
        {},
        ["sandboxes={a: {driver: singularity, policy: {off: [health.ready]}}}"],
        2,
        ["--config: sandboxes.a.policy.off.0", "all other checks rest on health.ready"],
    ),
    "waiver without a day": (
        sandboxes(a={"waivers": [{"check": "bash.output", "reason": "so"}]}),
        [],
        2,
        ["bad.yaml, line 5: sandboxes.a.waivers.0.until: is missing", "2027-01-31"],
    ),
    "waiver with a wrong day": (
        # What YAML takes for a day, and is none.
        "sandboxes:\n  a:\n    driver: singularity\n    waivers:\n"
        "      - {check: bash.output, reason: so, until: 2027-02-30}\n",
        [],
        2,
        ["bad.yaml, line 5: '2027-02-30' is no day", "2027-01-31"],
    ),
    "limit with a wrong unit": (
        sandboxes(a={"limits": {"performance.exec-p95": "2 MB"}}),
        [],
        2,
        ["bad.yaml, line 5: sandboxes.a.limits.performance.exec-p95", "'2 MB' is no limit", "`ms`, `s`, `min`"],
    ),
    "limit on what is not measured": (
        sandboxes(a={"limits": {"bash.output": "2 s"}}),
        [],
        2,
        ["bad.yaml, line 5:", "bash.output takes no limit", "performance.exec-p95"],
    ),
    "two sandboxes of one name": (
        "sandboxes:\n  a: {driver: singularity}\n  b: {driver: singularity}\n  a: {driver: singularity, slots: 3}\n",
        [],
        2,
        ["bad.yaml, line 4: sandboxes.a stands in line 2 too"],
    ),
    "a policy's word that YAML takes for another": (
        "sandboxes:\n  a:\n    driver: singularity\n    policy:\n      No: [bash.*]\n",
        [],
        2,
        ["bad.yaml, line 5: sandboxes.a.policy.No", "required, advisory, off"],
    ),
    "a file that is laid over the default": (
        {"nomad": {"lifetime_s": -1}},
        [],
        2,
        ["config/config.yaml and bad.yaml", "bad.yaml, line 2: nomad.lifetime_s = -1"],
    ),
    "wrong type on the command line": (
        {},
        ["sandboxes={a: {driver: singularity, slots: many}}"],
        2,
        ["--config: sandboxes.a.slots = 'many'", "integer"],
    ),
    "no such image": ({}, ["singularity_image=missing.sif"], 2, ["missing.sif", "docker-archive:"]),
    "no such layout": ({}, ["driver=singularity", "image=oci:missing"], 2, ["oci:missing"]),
    "no SIF": ({}, ["singularity_image=text.sif"], 2, ["text.sif", "SIF"]),
    "no Docker engine": ({}, ["driver=docker"], 3, ["No Docker engine answers", "DOCKER_HOST"]),
}


def refused(checkout, *arguments, **environment):
    """The outcome of a run that must leave everything but its own folder as it was, and make nothing there either."""
    before = checkout.files()
    outcome = checkout.gate(*arguments, **{**DEAD_ENGINE, **environment})
    own = f"runs/{outcome.run.id}/"
    assert {path: content for path, content in checkout.files().items() if not path.startswith(own)} == before
    # Where an image was made, the run has a document of it. The store itself is shared with the other tests at work.
    left = {path.relative_to(outcome.folder).parts[0] for path in outcome.folder.rglob("*") if path.is_file()}
    assert left <= {"logs", "faults", "plan.json"}
    assert "Traceback" not in outcome.output
    return outcome


@pytest.mark.parametrize("case", CASES)
def test_is_refused_before_anything_is_done(checkout, case):
    settings, words, exit_code, said = CASES[case]
    arguments = ["--config", *words] if words else []
    if settings:
        text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
        (checkout.root / "bad.yaml").write_text(text)
        arguments += ["--configfile", "bad.yaml"]
    outcome = refused(checkout, *arguments)
    assert outcome.exit_code == exit_code, outcome
    assert [word for word in said if word not in outcome.output] == [], outcome.output


@pytest.mark.parametrize(
    "case",
    [
        "policy that names no check",
        "limit with a wrong unit",
        "two sandboxes of one name",
        "a policy's word that YAML takes for another",
        "a file that is laid over the default",
    ],
)
def test_plain_snakemake_refuses_the_same(checkout, case):
    settings, _, _, said = CASES[case]
    text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
    (checkout.root / "bad.yaml").write_text(text)
    outcome = checkout.snakemake("--cores", "1", "--configfile", "bad.yaml")
    assert outcome.exit_code != 0
    assert [word for word in said if word not in outcome.output] == [], outcome.output


def test_a_default_config_that_is_wrong(checkout):
    path = checkout.root / "config" / "config.yaml"
    usual = path.read_text()
    path.write_text(usual.replace("    slots: 5\n", "    waivers: [{check: a, reason: b, until: 2027-02-30}]\n", 1))
    try:
        outcome = refused(checkout)
    finally:
        path.write_text(usual)
    assert outcome.exit_code == 2, outcome
    assert "config/config.yaml, line 8: '2027-02-30' is no day" in outcome.output


def test_a_cluster_that_does_not_answer(checkout):
    with socket.socket() as nobody:  # has the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        outcome = refused(checkout, NOMAD_ADDR=address)
    assert outcome.exit_code == 3, outcome
    assert address in outcome.output
    assert "Connection refused" in outcome.output


def test_an_argument_that_snakemake_does_not_know(checkout):
    outcome = refused(checkout, "--corse", "4")
    assert outcome.exit_code == 2, outcome
    assert "--corse" in outcome.output
