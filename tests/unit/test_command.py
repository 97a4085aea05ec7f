"""*Run again* means the command of the run: what it is told as tests the same image on the same sandboxes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from report_samples import fault, plan, record, verdicts
from snakemake.cli import get_argument_parser

from sifproof import cli, command, config
from sifproof.errors import SifproofError
from sifproof.report.terminal import closing_lines
from sifproof.report.verdict import read_verdict
from sifproof.report.write import write_reports
from sifproof.run import Run
from sifproof.workflow.plan import make_plan

ODD = ["a word", "it's", 'say "so"', "$HOME", "`id`", "ünd", "100%", "{x}", "a\\b", "--", "*", ""]
IMAGE = "image=docker-archive:/my images/it's $5 (100%).tar"


def selected(told: str) -> config.Settings:
    """The settings of the run that ``told`` starts, as Snakemake's own parser takes its words."""
    words = shlex.split(told)
    args = get_argument_parser().parse_args(words[words.index("run") + 1 :] if "run" in words else words[1:])
    return cli._settings(args.configfile or [], args.config or [])


def in_shell(told: str) -> list[str]:
    """The arguments that a shell gives the program of ``told``."""
    show = f"{shlex.quote(sys.executable)} -c 'import sys; sys.stdout.write(chr(0).join(sys.argv[1:]))'"
    line = f"{show} {told.partition(' ')[2]}"
    return subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout.decode().split("\0")


def test_a_shell_takes_it_as_it_was_given() -> None:
    assert in_shell(command.of(["sifproof"], ODD)) == ODD


def test_a_program_is_called_as_it_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "snakemake"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    for started, told in {
        "snakemake": "snakemake",
        str(program): "snakemake",
        "/gone/snakemake": "/gone/snakemake",
    }.items():
        monkeypatch.setattr("sys.argv", [started])
        assert command.this(["run"]) == f"{told} run"


def test_no_password_is_told() -> None:
    told = command.of(["sifproof", "run"], ["--config", "nomad={address: 'http://me:secret@host:4646'}", "image=a:b@c"])
    assert "secret" not in told
    assert "http://me:***@host:4646" in told
    assert "image=a:b@c" in told


COMMANDS = {
    "nothing": ([], {"driver"}),
    "an image": (["--config", IMAGE, "suites=health,bash"], {"image", "suites", "driver"}),
    "the short option": (["-C", IMAGE, "--cores", "2"], {"image", "driver"}),
    "one word": ([f"--config={IMAGE}", "-n"], {"image", "driver"}),
    "twice, and the last counts": (["--config", "suites=files", "--config", IMAGE], {"image", "driver"}),
    "a driver that is another": (["--config", "driver=docker", IMAGE], {"image", "driver"}),
    "targets": (["--config", IMAGE, "--", "all"], {"image", "driver"}),
    "a target and no setting": (["all", "--until", "gate"], {"driver"}),
}


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.parametrize("program", [["sifproof", "run"], ["/opt/my site/bin/sifproof", "run"], ["snakemake"]])
def test_the_same_for_one_driver(case: str, program: list[str]) -> None:
    arguments, keys = COMMANDS[case]
    told = command.of(program, arguments)
    narrowed = command.with_settings(told, "driver=singularity")
    before, after = selected(told), selected(narrowed)
    assert after.model_fields_set - before.model_fields_set <= {"driver"}
    assert keys <= after.model_fields_set
    assert after.driver == "singularity"
    assert (after.image, after.suites, after.sandboxes) == (before.image, before.suites, before.sandboxes)
    assert shlex.split(narrowed)[: len(program)] == program
    parse = get_argument_parser().parse_args
    ours = [w[w.index("run") + 1 :] if "run" in w else w[1:] for w in map(shlex.split, (told, narrowed))]
    assert parse(ours[0]).targets == parse(ours[1]).targets


def test_the_config_file_is_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "my config.yaml"
    file.write_text("sandboxes: {mine: {driver: singularity, image: 'docker://mine:1'}}")
    told = command.of(["sifproof", "run"], ["--configfile", str(file), "--config", "suites=health"])
    settings = selected(command.with_settings(told, "driver=singularity"))
    assert {name: sandbox.image for name, sandbox in settings.sandboxes.items()} == {"mine": "docker://mine:1"}
    assert settings.suites == ["health"]


MAKES_OWN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "DOCKER")


def test_make_does_the_same(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("run:\n\t@printf '%s\\0' $(DOCKER) $(ARGS)\n")
    # The tests themselves may run under make, which then says where it is.
    environment = {name: value for name, value in os.environ.items() if name not in MAKES_OWN}
    for program in (["sifproof", "run"], [sys.executable, "-m", "sifproof", "run"], ["snakemake"]):
        words = [word for word in ODD if word]
        told = command.by_make(command.of(program, words), "DOCKER=yes")
        done = subprocess.run(["sh", "-c", told], cwd=tmp_path, env=environment, capture_output=True, check=True)
        assert done.stdout.decode().split("\0") == ["yes", *words, ""]
    assert command.by_make("sifproof run", "DOCKER=yes") == "make run DOCKER=yes"


def test_an_engine_is_advised_for_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    monkeypatch.setenv(command.VARIABLE, command.of(["sifproof", "run"], ["--config", "driver=docker", IMAGE]))
    for name in [name for name in os.environ if name.startswith("NOMAD_")]:
        monkeypatch.delenv(name)
    settings = config.load({"sandboxes": {"a": {"driver": "docker"}}})
    with pytest.raises(SifproofError) as caught:
        make_plan(settings, Run("night"))
    advice = caught.value.todo.partition("`")[2].rpartition("`")[0]
    assert shlex.split(advice)[:3] == ["make", "run", "DOCKER=yes"]
    assert IMAGE in shlex.split(shlex.split(advice)[3].removeprefix("ARGS=").replace("$$", "$"))


def test_it_stands_in_every_report(tmp_path: Path) -> None:
    told = command.of(["sifproof", "run"], ["--configfile", "it's mine.yaml", "--config", IMAGE])
    it = plan().model_copy(update={"command": told})
    folder = record(tmp_path, it, verdicts(bash_output={"verdict": "fail"}), [fault()])
    write_reports(folder, tmp_path)
    verdict = read_verdict(tmp_path, it.run)
    assert verdict.command == told
    assert f"run again: {told}" in closing_lines(verdict, tmp_path / "report.html", command=verdict.command)
    cases = ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    red = [result.text or "" for case in cases for result in case if result.tag in {"failure", "error"}]
    assert red
    assert all(text.splitlines()[-1] == f"run again: {told}" for text in red)
    from sifproof.report.tables import read_tsv

    assert set(read_tsv(tmp_path / "summary.tsv")["command"]) == {told}
    import html

    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    shown = [part.partition("</code>")[0] for part in page.split("<dt>Run again</dt><dd><code>")[1:]]
    assert shown
    for one in shown:
        assert one in {told, *(command.with_settings(told, f"driver={s.driver}") for s in it.sandboxes)}
