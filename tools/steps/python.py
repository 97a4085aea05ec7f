"""The Python side: ``.venv`` with what ``tools/python/*.lock`` pins by version and hash, and sifproof itself, editable.

The locks are written by ``make lock``. ``bootstrap.lock`` holds what is needed to install the rest, ``go.lock`` the Go
toolchain for machines without one, ``mutation.lock`` what `make mutants` needs beyond the rest.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from sifproof import variables
from sifproof.errors import SifproofError
from steps import debian, places
from steps.progress import Step

VENV = places.CHECKOUT / ".venv"
_LOCKS = places.CHECKOUT / "tools" / "python"


def python() -> Path:
    """The interpreter of ``.venv``."""
    return VENV / "bin" / "python"


def ready() -> bool:
    """Whether ``.venv`` holds sifproof and all it needs."""
    return (VENV / ".sifproof-made-of").exists()


def make() -> None:
    """Make ``.venv``, unless it is there and made of the same locks by the same Python at the same place."""
    stamp, locks = wanted(), [_LOCKS / "bootstrap.lock", _LOCKS / "requirements.lock"]
    if places.made_of(VENV) != stamp:
        _refuse_to_replace_what_is_not_ours()
        if not _has_pip():
            debian.unpack("pip")
        with Step(
            "python", f"Python packages for .venv, from PyPI by {' and '.join(f.name for f in locks)}", places.LOGS
        ) as step:
            _make_empty(step)
            pip(step, "install", "--require-hashes", "--only-binary=:all:", "-r", locks[0])
            # One dependency of Snakemake has no wheel: it is built with the setuptools just installed, nothing else.
            pip(
                step,
                "install",
                "--require-hashes",
                "--only-binary=:all:",
                "--no-binary=connection-pool",
                "--no-build-isolation",
                "-r",
                locks[1],
            )
            places.mark(VENV, stamp)
    _install_project()


def add_mutation() -> None:
    """Put into ``.venv`` what `make mutants` needs beyond the rest."""
    make()
    lock, stamp_file = _LOCKS / "mutation.lock", VENV / ".mutation-made-of"
    stamp = places.digest(lock, places.made_of(VENV))
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return
    with Step("mutation", f"mutmut for .venv, from PyPI by {lock.name}", places.LOGS) as step:
        # What it shares with the rest is there already.
        pip(step, "install", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", lock)
        stamp_file.write_text(stamp)


def wanted() -> str:
    """The digest of what ``.venv`` is to be made of."""
    interpreter = f"{sys.version} {Path(sys.executable).resolve()} {VENV}"
    return places.digest(Path(__file__), interpreter, _LOCKS / "bootstrap.lock", _LOCKS / "requirements.lock")


def _install_project() -> None:
    stamp_file = VENV / ".sifproof-made-of"
    stamp = places.digest(places.CHECKOUT / "pyproject.toml", places.made_of(VENV))
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return
    with Step("sifproof", "sifproof itself into .venv, editable", places.LOGS) as step:
        pip(step, "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", places.CHECKOUT)
        # Python reads it in the letters of the locale, whichever that is some day: from there the way is plain ASCII.
        for file in VENV.glob("lib/python3*/site-packages/__editable__.sifproof-*.pth"):
            file.write_text(os.path.relpath(places.CHECKOUT / "src", file.parent) + "\n", encoding="ascii")
        stamp_file.write_text(stamp)


def renew_locks() -> None:
    """Write ``tools/python/*.lock`` anew, for all Pythons that sifproof works with, from the newest versions."""
    make()
    project, base = places.CHECKOUT / "pyproject.toml", _LOCKS / "requirements.lock"
    with Step("locks", "asking PyPI for the newest versions", places.LOGS) as step:
        pip(step, "install", "uv")
        _compile(step, "requirements", project, "--extra", "dev")
        _compile(step, "bootstrap", _LOCKS / "bootstrap.in")
        _compile(step, "go", _LOCKS / "go.in")
        there = re.findall(r"^([\w.-]+)==", base.read_text(), re.MULTILINE)
        beyond = [word for name in there for word in ("--no-emit-package", name)]
        _compile(step, "mutation", project, "--extra", "mutation", "--constraints", base, *beyond)
        pip(step, "uninstall", "--yes", "uv")


def _compile(step: Step, lock: str, *source: str | Path) -> None:
    step.run(
        [
            *(VENV / "bin" / "uv", "pip", "compile", "--universal", "--upgrade", "--generate-hashes"),
            *("--python-version", "3.11", "--no-header", "--no-annotate", "--no-emit-index-url"),
            *("--output-file", _LOCKS / f"{lock}.lock", *source),
        ],
        env=variables.of("uv"),
    )


def pip(step: Step, *words: str | Path) -> None:
    """Run the pip of ``.venv``, or before there is one, Debian's unpacked one."""
    arguments = [*words, "--disable-pip-version-check", "--no-input"]
    if words[0] == "install":
        arguments += ["--progress-bar=off", "--no-warn-script-location"]
    command: list[str | Path] = [python(), "-m", "pip"]
    if not list(VENV.glob("lib/python3*/site-packages/pip")):
        command = [python(), next((places.TOOLS / "debian" / "pip").glob("usr/share/python-wheels/pip-*.whl")) / "pip"]
    # setuptools writes the path of the checkout in the letters of the locale.
    step.run([*command, *arguments], env={**variables.of("pip"), "LC_ALL": "C.UTF-8"})


def _has_pip() -> bool:
    # Debian and Ubuntu keep pip and ensurepip in packages of their own, which a plain machine lacks.
    return importlib.util.find_spec("ensurepip") is not None


def _make_empty(step: Step) -> None:
    # Renamed before it is removed, marked before it gets its name: at no moment does it look like somebody else's.
    old, new = VENV.with_name(".venv.old"), VENV.with_name(".venv.new")
    for remains in (old, new):
        shutil.rmtree(remains, ignore_errors=True)
    if VENV.exists():
        VENV.rename(old)
        shutil.rmtree(old)
    new.mkdir()
    places.mark(new, "unfinished")
    new.rename(VENV)
    flags = [] if _has_pip() else ["--without-pip"]
    if importlib.util.find_spec("venv") is None:
        raise SifproofError(
            f"{sys.executable} can't make virtual environments",
            why="its module `venv` is missing",
            todo="install the whole of Python's standard library (Debian's package libpython3-stdlib)",
        )
    step.run([sys.executable, "-m", "venv", *flags, VENV])


def _refuse_to_replace_what_is_not_ours() -> None:
    if VENV.exists() and not places.made_of(VENV) and any(VENV.iterdir()):
        raise SifproofError(
            f"{VENV} is not set-up's",
            why="it is there, but set-up did not make it and would have to replace it",
            todo="move it out of the way and run this again",
        )
