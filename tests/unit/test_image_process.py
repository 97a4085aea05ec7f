"""What is told of a tool that failed."""

import os
import select
import sys
from contextlib import suppress

import pytest

from sifproof import host_tools
from sifproof.image import process
from sifproof.image.process import ToolFailure


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("INFO:    Starting build...\n\x1b[31mFATAL:   While packing: bad\x1b[0m\n", "FATAL:   While packing: bad"),
        ('time="2026-01-01T00:00:00Z" level=fatal msg="Error reading \\"x\\": gone"\n', 'Error reading "x": gone'),
        ("Error: first\nzlib\nlzma\n", "Error: first"),
        ("one\ntwo\nthree\nfour\n", "two | three | four"),
        ("INFO: only that\n", "exit status 9, and it said nothing"),
    ],
)
def test_last_words(output, said):
    assert ToolFailure("tool", 9, output).last_words == said


@pytest.fixture
def python(monkeypatch):
    """The tool `python`, as if it were one of those that convert images."""
    tool = host_tools.Tool("python", sys.executable, "3", "PATH")
    monkeypatch.setattr(host_tools, "require", lambda _: tool)


def test_the_log_gets_command_and_output_as_it_comes_and_the_failure_its_own_part(python, tmp_path):
    log = tmp_path / "log"
    process.run("python", ["-c", "print('before')"], log=log, timeout_s=60)
    with pytest.raises(ToolFailure) as raised:
        process.run("python", ["-c", "import sys; sys.exit('after')"], log=log, timeout_s=60)
    assert (raised.value.status, raised.value.output) == (1, "after\n")
    assert log.read_text().splitlines()[:2] == ["$ python -c 'print('\"'\"'before'\"'\"')'", "before"]


def test_what_takes_too_long_is_ended_with_all_it_started(python, tmp_path):
    child = f"import os, subprocess; subprocess.run(['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 600'])"
    with pytest.raises(ToolFailure, match="python") as raised:
        process.run("python", ["-c", child], log=None, timeout_s=4)
    assert raised.value.status is None
    pid = int((tmp_path / "pid").read_text())
    with suppress(ProcessLookupError):  # it may be gone already
        ended, _, _ = select.select([os.pidfd_open(pid)], [], [], 60)
        assert ended


def test_capture(python):
    assert process.capture("python", "-c", "print(1)") == b"1\n"
    with pytest.raises(ToolFailure) as raised:
        process.capture("python", "-c", "import time; time.sleep(60)", timeout_s=0.2)
    assert raised.value.status is None


def test_of_a_tool_that_says_a_lot_the_end_is_kept(python, tmp_path):
    with pytest.raises(ToolFailure) as raised:
        process.run("python", ["-c", "print('x' * 2**20); print('Error: the end'); exit(1)"], log=None, timeout_s=60)
    assert len(raised.value.output) == 256 * 1024
    assert raised.value.last_words == "Error: the end"
