"""The command line: what a run and the doctor take for the config, from the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifproof import cli

WRONG = {
    "a check that is none": ("policy: {off: [nope]}", "'nope' names no check"),
    "a limit without a unit": ("limits: {performance.exec-p95: 5 bananas}", "'5 bananas' is no limit"),
    "a text for a number": ("slots: many", "sandboxes.a.slots = 'many': input should be a valid integer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_doctor_refuses_what_a_run_refuses(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = WRONG[case]
    assert cli.main(["doctor", "--config", f"sandboxes={{a: {{driver: singularity, {text}}}}}"]) == 2
    assert f"--config: sandboxes.a.{text.partition(':')[0]}" in (told := capsys.readouterr().err)
    assert said in told
    file = tmp_path / "mine.yaml"
    file.write_text(f"sandboxes:\n  a:\n    driver: singularity\n    {text}\n")
    assert cli.main(["doctor", "--configfile", str(file)]) == 2
    assert said in (told := capsys.readouterr().err)
    assert f"{file}, line 4: " in told


def test_keys_that_stand_twice_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("sandboxes:\n  a: {driver: singularity}\n  a: {driver: docker}\n")
    for command in ("doctor", "run"):
        assert cli.main([command, "--configfile", str(file)]) == 2
        assert f"{file}, line 3: sandboxes.a stands in line 2 too" in capsys.readouterr().err


def test_values_within_a_mapping_have_their_types() -> None:
    text = "a: {driver: singularity, slots: 3, port: 9000, nested_sandboxes: true, userns: false, command: [run, '7']}"
    settings = cli._settings([], [f"sandboxes={{{text}}}", "nomad={lifetime_s: 60}", "suites=health"])
    # Like a run, without the sandboxes of the default.
    assert list(settings.sandboxes) == ["a"]
    sandbox = settings.sandboxes["a"]
    assert (sandbox.slots, sandbox.port, sandbox.nested_sandboxes, sandbox.userns) == (3, 9000, True, False)
    assert sandbox.command == ["run", "7"]
    assert settings.nomad.lifetime_s == 60


def test_a_word_that_sets_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--config", "slots"]) == 2
    assert "--config slots: KEY=VALUE is expected" in capsys.readouterr().err
