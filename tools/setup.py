#!/usr/bin/env python3
"""Makes everything that runs and tests need, under ``.tools/`` and ``.venv/``: ``make setup`` calls it.

It needs Python 3.11 and, for the tools that the machine lacks, apt and the network. Calling it again costs nothing;
after an interruption it goes on where it was. ``--docker`` adds a Docker engine for runs and tests with a private one,
``--brief`` says nothing when there is nothing to do.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 (who calls this with an older one is helped here)
    for minor in range(20, 10, -1):
        if newer := shutil.which(f"python3.{minor}"):
            os.execv(newer, [newer, *sys.argv])  # noqa: S606
    sys.exit(f"sifproof needs Python 3.11 or later; this is {sys.version.split()[0]} at {sys.executable}.")

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from steps import debian, nomad, places, preconditions, python  # noqa: E402
from steps.progress import paint, say, started  # noqa: E402

from sifproof import host_tools  # noqa: E402
from sifproof.errors import SifproofError  # noqa: E402

# Without these `snakemake` can't run the default config; what else is missing is told, and the rest goes on.
_ESSENTIAL = ("nomad", "apptainer", "mksquashfs", "skopeo", "buildah", "mmdebstrap")
_FROM_BUNDLE = {
    "apptainer": ("apptainer", "mksquashfs"),
    "images": ("skopeo", "buildah"),
    "mmdebstrap": ("mmdebstrap",),
}
_BUILD_GB, _UNPACK_GB = 6.0, 1.0


def main() -> int:
    """Do what is missing; 0 where `snakemake` can run after it."""
    parser = argparse.ArgumentParser(description="Prepare this checkout for runs and tests.")
    parser.add_argument("--docker", action="store_true", help="also the Docker engine that tests and DOCKER=yes use")
    parser.add_argument("--brief", action="store_true", help="say nothing when there is nothing to do")
    parser.add_argument("--python-only", action="store_true", help="only .venv, which is all that lint needs")
    parser.add_argument("--mutation", action="store_true", help="only .venv, and what `make mutants` needs in it")
    parser.add_argument("--renew-lock", action="store_true", help="write the locks under tools/ anew")
    options = parser.parse_args()
    preconditions.require_fit_paths(
        apptainer=not (options.python_only or options.mutation) and not _on_path("apptainer")
    )
    os.environ["SIFPROOF_TOOLS"] = str(places.TOOLS)
    with places.alone():
        if options.renew_lock:
            python.renew_locks()
            debian.renew_lock()
            return 0
        if options.mutation:
            python.add_mutation()
            return 0
        if options.python_only:
            python.make()
            return 0
        faults = _make_all(docker=options.docker)
    lacking = list(preconditions.lacking(docker=options.docker))
    if options.brief and not faults and not started():
        for lack in lacking:
            say(f"  {paint('yellow', 'note')}  {lack}")
        return 0
    return _tell(faults, lacking)


def _make_all(*, docker: bool) -> list[SifproofError]:
    """Take each step; a step that fails is told at the end, and the others go on without it."""
    faults: list[SifproofError] = []
    try:
        python.make()
    except SifproofError as error:
        return [error]  # nothing else can be made without it
    for bundle, names in _FROM_BUNDLE.items():
        if not all(_on_path(name) for name in names):
            _attempt(faults, _unpack, bundle)
    if docker or (not _on_path("docker") and _engine_is_likely()):
        _attempt(faults, _unpack, "docker")
    if docker and not shutil.which("bwrap"):
        _attempt(faults, _unpack, "bubblewrap")
    if docker:
        _attempt(faults, _unpack, "busybox")
    if not _on_path("nomad"):
        _attempt(faults, _build_nomad)
    return faults


def _attempt(faults: list[SifproofError], step, *arguments) -> None:  # type: ignore[no-untyped-def]
    try:
        step(*arguments)
    except SifproofError as error:
        faults.append(error)


def _unpack(bundle: str) -> None:
    debian.unpack(bundle, before=lambda: preconditions.require_room(_UNPACK_GB, f"unpacking {bundle}"))


def _build_nomad() -> None:
    nomad.build(before=lambda: preconditions.require_room(_BUILD_GB, "building Nomad"))


def _on_path(name: str) -> bool:
    tool = host_tools.find(name)
    return tool is not None and tool.origin == "PATH"


def _engine_is_likely() -> bool:
    return bool(os.environ.get("DOCKER_HOST")) or Path("/var/run/docker.sock").exists()


def _tell(faults: list[SifproofError], lacking: list[SifproofError]) -> int:
    """The table of tools, what went wrong, and how to go on. Returns the exit code."""
    found = {name: host_tools.find(name) for name in host_tools.NEEDS}
    say()
    for name, tool in found.items():
        if tool:
            origin = f"on PATH, {tool.path}" if tool.origin == "PATH" else ".tools"
            say(f"  {paint('green', 'ok')}  {name:<11} {tool.version:<12} {origin}")
        elif name == "docker":
            say(f"  {paint('faint', '--')}  {name:<11} {'left out':<12} no engine here; DOCKER=yes brings one")
        else:
            say(f"  {paint('red', '--')}  {name:<11} {'missing':<12} {host_tools.NEEDS[name].why}")
    for lack in lacking:
        say(f"\n  {paint('yellow', 'note')}  {lack}")
    for fault in faults:
        say(f"\n  {paint('red', 'failed')}  {fault}")
    ready = python.ready() and all(found[name] for name in _ESSENTIAL)
    if ready:
        activate = shlex.quote(os.path.relpath(python.VENV / "bin" / "activate"))
        say(f"\nReady. Go on with\n    source {activate}\n    snakemake --cores 4")
    else:
        say("\nNot ready: what failed above is needed for a run.")
    return 0 if ready else 1


def _end(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    try:
        sys.exit(main())
    except SifproofError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        say("\nInterrupted; the next call goes on from here.")
        sys.exit(130)
