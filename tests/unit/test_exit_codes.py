"""The exit codes: 0 and 1 are the gate's word on a run, and nobody's by default."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sifproof import cli
from sifproof.exit_codes import guarded
from sifproof.report import gate
from sifproof.run import Run
from sifproof.workflow import snakemake

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, out: int = subprocess.PIPE, cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of ``sifproof ARGUMENTS…``."""
    done = subprocess.run(
        [sys.executable, "-m", "sifproof", *arguments],
        cwd=cwd,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("SIFPROOF_RUN", "NOMAD_", "PYTHON"))},
            "PYTHONPATH": str(ROOT / "src"),
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


BROKEN = {
    "a package that it needs": ("yaml", "raise RuntimeError('of the site')", ["checks", "doctor", "run -n"]),
    "one that can't be read": ("pydantic", "def broken(:", ["checks", "run -n"]),
    "one that lacks what is asked of it": ("requests", "", ["doctor"]),
    "a module of Python's own": ("argparse", "import nowhere", ["sweep", "run -n"]),
    "the first that is loaded": ("enum", "raise OSError(28, 'No space left on device')", ["checks"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_module_that_can_not_be_loaded_is_the_machines_fault(case: str, tmp_path: Path) -> None:
    name, text, commands = BROKEN[case]
    (tmp_path / f"{name}.py").write_text(text)
    for words in commands:
        code, said = command(*words.split(), PYTHONPATH=f"{tmp_path}:{ROOT / 'src'}")
        assert code == 3, (words, said)
        assert "this Python can't load a module" in said.splitlines()[-1], (words, said)


@pytest.mark.parametrize("words", ["checks", "doctor --json", "run --list-rules", "run -n"])
def test_output_that_can_not_be_written_is_the_machines_fault(words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        code, said = command(*words.split(), out=full.fileno())
    assert code == 3, said
    assert "No space left on device" in said
    assert "Traceback" not in said


def test_where_nothing_can_be_told_the_code_still_says_it() -> None:
    # One shell line of a service: both streams on a disk that is full.
    line = f"exec {sys.executable} -m sifproof run -n > /dev/full 2>&1"
    done = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False
    )
    assert done.returncode == 3


@pytest.mark.parametrize("words", ["checks", "run -n"])
def test_who_reads_no_more_is_told_apart(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code, said = command(*words.split(), out=writer)
    os.close(writer)
    assert (code, "Traceback" in said, "sifproof:" in said) == (141, False, False), said


NOTHING_RUN = {
    "a dry run": ("-n", 0, "nothing was to run, so there is no verdict"),
    "a list": ("--list-target-rules", 0, "nothing was to run, so there is no verdict"),
    "a part that needs nothing": ("--until convert", 4, "nothing was run, so there is no verdict"),
    "a target that is none": ("nowhere", 2, "No rule to produce nowhere"),
    "an option that is none": ("--nowhere", 2, "unrecognized arguments: --nowhere"),
    "a setting without a value": ("--config driver", 2, "Config entries have to be defined as name=value pairs"),
    "a Snakefile that is not there": ("--snakefile /nowhere/Snakefile", 2, "/nowhere/Snakefile"),
}


@pytest.mark.parametrize("case", NOTHING_RUN)
def test_a_run_of_nothing_is_not_accepted(case: str) -> None:
    words, expected, text = NOTHING_RUN[case]
    code, said = command("run", *words.split(), DOCKER_HOST="unix:///nowhere.sock")
    assert (code, text in said) == (expected, True), said


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null", ""])
def test_a_home_that_can_not_be_written_keeps_no_run_from_its_work(home: str) -> None:
    code, said = command("run", "-n", HOME=home)
    assert (code, "Traceback" in said) == (0, False), said


def test_a_folder_that_can_not_be_written_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    code, said = command("run", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path))
    assert code == 3, said


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 3),
        (OSError(errno.EMFILE, "Too many open files"), 3),
        (ZeroDivisionError("of ours"), 4),
        (KeyboardInterrupt(), 4),
        (SystemExit(1), 4),
        (SystemExit("in words"), 4),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
    ],
)
def test_no_crash_is_a_verdict(error: BaseException, code: int) -> None:
    assert guarded(lambda: raising(error)) == code


def test_what_snakemake_says_of_the_machine_is_told_from_wrong_usage() -> None:
    wrapped = type("WorkflowError", (Exception,), {"__module__": "snakemake.exceptions"})("Failed to open")
    assert snakemake.whose(wrapped) == 2
    wrapped.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert snakemake.whose(wrapped) == 3


@pytest.fixture
def this(tmp_path: Path) -> Run:
    run = Run("night", tmp_path)
    (run.folder / "faults").mkdir(parents=True)
    return run


@pytest.mark.parametrize("code", range(5))
def test_the_gates_word_is_the_code(this: Run, code: int) -> None:
    gate.write(this, "a word", code)
    assert cli._exit_code(this, snakemake.RAN if code == 0 else snakemake.FAILED, interrupted=False) == code


def test_a_run_is_judged_by_its_own_folder(this: Run, capsys: pytest.CaptureFixture[str]) -> None:
    # What lies in results/ is another run's, and so may be what was copied here by hand.
    (this.results / "verdict.json").write_text(json.dumps({"run": this.id, "exit_code": 0}))
    other = Run("night-2", this.results)
    other.folder.mkdir()
    gate.write(other, "accepted", 0)
    assert cli._exit_code(this, snakemake.RAN, interrupted=False) == 4
    assert "run night ended before its verdict" in capsys.readouterr().err
    (this.folder / gate.FILE).write_bytes((other.folder / gate.FILE).read_bytes())
    assert cli._exit_code(this, snakemake.RAN, interrupted=False) == 4
    for text in ("", "[]", '{"run": "night", "exit_code": "0"}', '{"run": "night", "exit_code": 7}'):
        (this.folder / gate.FILE).write_text(text)
        assert cli._exit_code(this, snakemake.RAN, interrupted=False) == 4


def test_an_accepting_gate_and_a_snakemake_that_fails(this: Run) -> None:
    gate.write(this, "accepted", 0)
    for code in (snakemake.FAILED, 1, -9, 3):
        assert cli._exit_code(this, code, interrupted=False) == 4


@pytest.mark.parametrize(
    ("fault", "code"), [("configuration", 2), ("infrastructure", 3), ("incomplete", 4), ("image", 4)]
)
def test_what_kept_a_run_from_beginning(this: Run, fault: str, code: int) -> None:
    (this.folder / "faults" / "preflight.json").write_text(json.dumps({"fault": fault}))
    assert cli._exit_code(this, snakemake.FAILED, interrupted=False) == code


@pytest.mark.parametrize("code", [0, 1, -9, snakemake.RAN, snakemake.FAILED])
def test_a_run_without_a_decision_is_incomplete(this: Run, code: int) -> None:
    assert cli._exit_code(this, code, interrupted=False) == 4


@pytest.mark.parametrize(
    ("code", "expected"), [(1, 4), (-9, 4), (-6, 4), (3, 3), (4, 4), (2, 2), (0, 0), (10, 4), (120, 4)]
)
def test_where_nothing_was_made(tmp_path: Path, code: int, expected: int) -> None:
    assert cli._exit_code(Run("night", tmp_path), code, interrupted=False) == expected


@pytest.mark.parametrize("decided", range(5))
def test_what_another_run_of_that_id_came_to_is_not_said_of_this_one(decided: int, tmp_path: Path) -> None:
    other = Run("night", tmp_path / "results")
    other.folder.mkdir(parents=True)
    gate.write(other, "a word", decided)
    (tmp_path / "yaml.py").write_text("raise RuntimeError")
    broken = f"{tmp_path}:{ROOT / 'src'}"
    assert command("run", "--version", "-d", str(tmp_path), SIFPROOF_RUN="night")[0] == 0
    code, said = command("run", "-n", "-d", str(tmp_path), SIFPROOF_RUN="night", PYTHONPATH=broken)
    assert code == 3, said
    code, said = command("run", "-d", str(tmp_path), SIFPROOF_RUN="night")
    assert (code, "is the id of a run that there was" in said) == (2, True), said


def test_an_id_that_a_run_had_is_refused_whatever_that_run_came_to(this: Run) -> None:
    gate.write(this, "accepted", 0)
    assert cli._exit_code(this, 2, interrupted=False) == 2
