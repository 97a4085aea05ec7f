"""Ctrl-C in a Python of a run that has nobody to catch it yet: no traceback, the same end; all else as ever."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sifproof import run


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    run.inherit_library(environ)
    return subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_ctrl_c_shows_nothing_and_ends_the_process_by_its_signal() -> None:
    ended = python("import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)")
    assert (ended.returncode, ended.stdout + ended.stderr) == (-signal.SIGINT, "")


def test_other_errors_are_shown() -> None:
    ended = python("import nothing_of_this_name")
    assert ended.returncode == 1
    assert "ModuleNotFoundError: No module named 'nothing_of_this_name'" in ended.stderr


def test_what_a_site_does_at_the_start_of_its_pythons_is_done(tmp_path: Path) -> None:
    own = "import sys\nsys.path.append('/of/the/site')\nsys.excepthook = lambda *what: print('told by the site')\n"
    (tmp_path / "sitecustomize.py").write_text(own)
    ended = python("import sys; print(sys.path[-1]); raise KeyboardInterrupt", tmp_path)
    assert (ended.stdout, ended.stderr) == ("/of/the/site\n", "")
    assert python("1 / 0", tmp_path).stdout == "told by the site\n"


@pytest.mark.parametrize("given", ["", "/one:/two", ":/one:"])
def test_the_paths_that_were_given_stay_and_nothing_is_said_twice(given: str) -> None:
    environ = {"PYTHONPATH": given}
    run.inherit_library(environ)
    first = environ["PYTHONPATH"]
    run.inherit_library(environ)
    package = Path(run.__file__).parent
    own = [str(package / "interrupt"), str(package.parent)]
    assert environ["PYTHONPATH"] == first == os.pathsep.join([*own, *filter(None, given.split(":"))])
