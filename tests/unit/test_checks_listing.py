"""What `sifproof checks` says, and what the pages show of policies."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sifproof import cli, config
from sifproof.checks.engine import listing, policy, registry
from sifproof.checks.engine.registry import Check, expect
from sifproof.errors import SifproofError

ROOT = Path(__file__).parents[2]


def made(**more: Any) -> Check:
    return Check("bash.made", "It is so.", "Because.", "Do it.", lambda s: expect(True), **more)


def test_facts_of_a_plain_check() -> None:
    assert list(listing.facts(made())) == [
        ("Why", "Because."),
        ("When it fails", "Do it."),
        ("At fault", "image"),
        ("singularity", "required"),
        ("docker", "required"),
    ]
    assert listing.in_short(made()) == "required"


def test_facts_of_a_check_with_all_there_is() -> None:
    full = made(
        guards=True,
        once=True,
        waits_s=0.5,
        unit="/s",
        at_least=True,
        advisory={"docker": "its profile forbids it"},
        given_by=("privileged",),
    )
    facts = dict(listing.facts(full))
    assert facts["docker"] == "advisory, required with `privileged`: its profile forbids it"
    assert facts["Measures"] == "`/s`; a limit is the least allowed, in `/s`, `/min`"
    assert facts["Waits"] == "up to 0.5 s on purpose"
    assert {"Tries", "Guards"} <= facts.keys()
    assert listing.in_short(full) == "singularity required, docker advisory, measures /s, waits 0.5 s"


def test_a_check_of_one_driver() -> None:
    one = made(drivers=("singularity",))
    assert dict(listing.facts(one))["docker"] == "does not apply"
    assert listing.in_short(one) == "singularity required"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["checks", *arguments]) == 0
    return capsys.readouterr().out


def test_every_check_is_listed_with_what_counts(capsys: pytest.CaptureFixture[str]) -> None:
    known = registry.load()
    lines = printed(capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(known)
    for line, check in zip(lines, known.values(), strict=True):
        assert listing.in_short(check) in line
        assert line.endswith(check.requirement)


def test_a_pattern_lists_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "teardown.*").splitlines()
    assert [line.split()[0] for line in lines] == [check.id for check in registry.of_suite("teardown")]


def test_one_id_tells_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "health.identity")
    check = registry.load()["health.identity"]
    for words in (check.requirement, check.why, check.todo, "infrastructure", "later checks of that allocation"):
        assert words in text


def test_a_pattern_that_names_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checks", "health.identiy"]) == 2
    assert "did you mean health.identity?" in capsys.readouterr().err


def configs() -> dict[str, str]:
    page = (ROOT / "docs/how-to/policy.md").read_text()
    found = {f"policy.md {n}": text for n, text in enumerate(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))}
    commented = (ROOT / "config/config.yaml").read_text()
    # The example of the default config, put into effect: what is commented as keys are.
    return {**found, "config.yaml": re.sub(r"^    # (?=policy:|waivers:|limits:|  )", "    ", commented, flags=re.M)}


@pytest.mark.parametrize("name", configs())
def test_the_examples_are_right(name: str) -> None:
    settings = config.load(yaml.safe_load(configs()[name]))
    policy.verify(settings, config.Origin())
    boxes = settings.sandboxes.values()
    assert any(box.policy != config.Policy() or box.waivers or box.limits for box in boxes)


def test_the_page_names_every_unit_and_what_is_wrong_in_it_is_refused() -> None:
    page = (ROOT / "docs/how-to/policy.md").read_text()
    for unit, units in policy.UNITS.items():
        assert f"| `{unit}` |" in page
        assert all(f"`{name}`" in page for name in units)
    (wrong,) = re.findall(r"<<EOF\n(.*?)EOF", page, re.DOTALL)
    with pytest.raises(SifproofError) as caught:
        policy.verify(config.load(yaml.safe_load(wrong)), config.Origin())
    assert "did you mean storage.hard-links?" in str(caught.value)
    assert "'100 MB' is no limit for it" in str(caught.value)


def test_a_reader_who_has_enough_ends_it_without_a_word() -> None:
    """As in ``sifproof checks | head -1``."""
    command = [sys.executable, "-m", "sifproof", "checks"]
    ended = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ended.stdout.close()
    assert (ended.wait(60), ended.stderr.read()) == (128 + signal.SIGPIPE, "")
    ended.stderr.close()
