"""The command line: ``sifproof doctor | run | checks | sweep``."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sifproof import __version__, run
from sifproof import command as this_command
from sifproof.checkout import ROOT
from sifproof.errors import Fault, SifproofError
from sifproof.exit_codes import PIPE_CLOSED, guarded
from sifproof.report import gate
from sifproof.workflow import snakemake

if TYPE_CHECKING:
    from sifproof.config import Settings

_PR_SET_PDEATHSIG = 1
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``; returns its exit code. Whatever goes wrong is told."""
    return guarded(lambda: command(arguments))


def command(arguments: Sequence[str] | None = None) -> int:
    """Like :func:`main`, but raises what goes wrong."""
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if known.command == "run":
        return _run(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return {"doctor": _doctor, "checks": _checks, "sweep": _sweep}[known.command](known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sifproof", description="The acceptance gate for agent sandboxes on HPC clusters."
    )
    parser.add_argument("--version", action="version", version=f"sifproof {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "run",
        help="run the gate; further arguments go to Snakemake",
        description="Run the gate. Every argument goes on to Snakemake; --cores 4 is added where none is given.",
        epilog="exit codes: 0 accepted, 1 image rejected, 2 wrong usage or configuration, 3 infrastructure at fault, "
        "4 incomplete or interrupted. What runs nothing (-n, --list-rules) ends with 0 and says so.",
        add_help=True,
    )
    doctor = commands.add_parser(
        "doctor",
        help="look at this machine, and at every node of the cluster at NOMAD_ADDR: what keeps sandboxes from running",
        description="Look at this machine and, with NOMAD_ADDR or nomad.address, at every node of that cluster, by a "
        "short job on each. Says what keeps sandboxes from running there, and the command that mends it.",
        epilog="exit codes: 0 nothing blocks, 2 wrong usage or configuration, 3 something blocks",
    )
    doctor.add_argument("--json", action="store_true", help="all of it as JSON, with the facts")
    doctor.add_argument(
        "--configfile", nargs="+", type=Path, default=[], metavar="FILE", help="as for a run; config/config.yaml"
    )
    doctor.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="as for a run")
    checks = commands.add_parser(
        "checks",
        help="list the checks: id, for whom it is required, what is required",
        description="List the checks: id, for which drivers it is required, unit of what it measures, deliberate "
        "waits, requirement. With one id: all there is to know about it.",
    )
    checks.add_argument("pattern", nargs="?", default="*", help="id of a check, or a pattern such as 'storage.*'")
    sweep = commands.add_parser(
        "sweep",
        help="end what killed runs left: their jobs on the cluster, their local agents",
        description="End what killed runs left: local agents, and with a run's id or --all the jobs on the cluster at "
        "NOMAD_ADDR (NOMAD_NAMESPACE and the other variables count).",
    )
    which = sweep.add_mutually_exclusive_group()
    which.add_argument("run", nargs="?", help="id of one run")
    which.add_argument("--all", action="store_true", help="the jobs of every run on the cluster, those under way too")
    return parser


def _run(arguments: Sequence[str]) -> int:
    """Snakemake below this process, so that its exit code can be put in the gate's words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--directory", "-d", type=Path, default=Path())
    parser.add_argument("--configfile", "--configfiles", type=Path, nargs="+", action="extend", default=[])
    given = parser.parse_known_args(arguments)[0]
    if given.configfile:
        from sifproof import config  # noqa: PLC0415 - takes a while to import

        for file in given.configfile:  # where they are no YAML, Snakemake shows its own code
            config.read(file)
    results = given.directory / "results"
    this = run.Run(os.environ.get(run.RUN_VARIABLE) or run.new_id(), results)
    taken = this.folder.exists()
    environ = {**os.environ, run.RUN_VARIABLE: this.id}
    environ[this_command.VARIABLE] = this_command.this(["run", *arguments])
    environ.pop(run.PID_VARIABLE, None)
    run.inherit_library(environ)
    _give_a_cache(environ, given.directory)
    cores = [] if any(_names_cores(a) for a in arguments) else ["--cores", "4"]
    # Snakemake gets the terminal's Ctrl-C itself; this process waits for it to clean up. The others are held back until
    # there is a Snakemake to pass them on to.
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "sifproof.workflow.snakemake", *cores, *arguments],
            env=environ,
            preexec_fn=_child_of_this,  # noqa: PLW1509 - there is one thread
        )

        def forward(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        for number in _PASSED_ON:
            signal.signal(number, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    # What lies in the folder of another run of this id says nothing of this one, which is refused.
    return (_nothing_made if taken else partial(_exit_code, this))(code, interrupted=bool(interrupts))


def _give_a_cache(environ: MutableMapping[str, str], directory: Path) -> None:
    """Let Snakemake keep what it caches in ``directory`` where the user's own cache can't be written."""
    try:
        own = Path(environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "snakemake")
        own.mkdir(parents=True, exist_ok=True)
        writable = os.access(own, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):  # the latter where the user has no home at all
        writable = False
    if not writable:
        environ["XDG_CACHE_HOME"] = str((directory / ".snakemake" / "cache").absolute())


def _names_cores(argument: str) -> bool:
    return argument.startswith(("--cores", "--jobs", "--profile", "--workflow-profile")) or argument[:2] in ("-c", "-j")


def _child_of_this() -> None:
    """In the child: Ctrl-C is for Snakemake, and it does not outlive this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit_code(this: run.Run, code: int, *, interrupted: bool) -> int:
    """What the gate decided; where it did not come to that, who kept it from deciding. ``code`` is Snakemake's."""
    if code == Fault.CONFIGURATION.exit_code:
        return code  # refused, in words; where it is the run's id that was, what lies in its folder is another's
    decided = gate.read(this)
    if decided == 0 and code != snakemake.RAN:
        return _undecided(this, "was accepted, and Snakemake failed all the same: what failed was not the image")
    if decided is not None:
        return decided
    if (fault := _preflight_fault(this)) is not None:
        return fault
    if this.folder.exists():
        _undecided(this, f"{'was interrupted' if interrupted else 'ended'} before its verdict")
        return code if code == Fault.INFRASTRUCTURE.exit_code and not interrupted else Fault.INCOMPLETE.exit_code
    return _nothing_made(code, interrupted=interrupted)


def _nothing_made(code: int, *, interrupted: bool) -> int:
    if code == snakemake.LOOKED and not interrupted:
        print("sifproof: nothing was to run, so there is no verdict", file=sys.stderr)
        return 0
    if interrupted:
        how = "interrupted before anything was made"
    elif code == snakemake.RAN:
        how = "nothing was run, so there is no verdict: the targets, or an option, leave the gate out"
    elif code in (2, 3, 4, PIPE_CLOSED):
        return code  # it said why
    else:
        how = f"Snakemake ended with {code} before anything was made"
        if code < 0:
            how = f"Snakemake was ended by {signal.Signals(-code).name} before anything was made"
    return _told(how)


def _told(text: str) -> int:
    print(f"sifproof: {text}", file=sys.stderr)
    return Fault.INCOMPLETE.exit_code


def _undecided(this: run.Run, how: str) -> int:
    return _told(f"run {this.id} {how}; its logs are in {this.folder / 'logs'}")


def _preflight_fault(this: run.Run) -> int | None:
    """The exit code for what kept the run from beginning, where something did. None of it is about an image."""
    try:
        fault = Fault(json.loads((this.folder / "faults" / "preflight.json").read_bytes())["fault"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Fault.INCOMPLETE.exit_code
    return Fault.INCOMPLETE.exit_code if fault is Fault.IMAGE else fault.exit_code


def _doctor(known: argparse.Namespace) -> int:
    from sifproof.doctor import look  # noqa: PLC0415
    from sifproof.workflow import plan  # noqa: PLC0415 - not needed by `run`

    settings = _settings(known.configfile, known.config)
    images = Path("results/images")
    seen = look.everything(
        settings,
        run=run.new_id(),
        images=images if images.parent.is_dir() else None,
        needed=plan.needed_tools(settings),
    )
    print(seen.model_dump_json(indent=2) if known.json else "\n".join(seen.lines()))
    return Fault.INFRASTRUCTURE.exit_code if seen.blocks else 0


def _settings(files: Sequence[Path], words: Sequence[str]) -> Settings:
    """The settings that a run with ``--configfile FILES --config WORDS`` has."""
    from sifproof import config  # noqa: PLC0415 - not needed by `run`
    from sifproof.workflow import flow  # noqa: PLC0415

    given: dict[str, Any] = {}
    if words:
        from snakemake.cli import parse_config  # noqa: PLC0415 - takes a second to import

        try:
            given = parse_config(words)
        except ValueError as error:
            raise SifproofError(
                f"--config {' '.join(words)}: KEY=VALUE is expected", why=str(error), fault=Fault.CONFIGURATION
            ) from None
    mapping: dict[str, Any] = {}
    for file in files:
        mapping = _over(mapping, config.read(file))
    mapping = _over(mapping, given)
    if "sandboxes" not in mapping:
        default = ROOT / "config" / "config.yaml"
        files = [default, *files]
        mapping = _over(config.read(default), mapping)
    return flow.checked(mapping, config.Origin(files, given))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below`` as Snakemake lays one config over another: mappings are merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = _over(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def _checks(known: argparse.Namespace) -> int:
    from sifproof.checks.engine import listing, policy, registry  # noqa: PLC0415 - not needed by `run`

    checks = registry.load()
    found = [checks[id] for id in policy.matching(known.pattern, checks)]
    if not found:
        raise SifproofError(policy.no_check(known.pattern, checks), fault=Fault.CONFIGURATION)
    if known.pattern in checks:
        print(f"{known.pattern}\n\n{found[0].requirement}\n")
        for name, text in listing.facts(found[0]):
            print(f"{name + ':':15} {text}")
        return 0
    ids = max(len(item.id) for item in found)
    short = max(len(listing.in_short(item)) for item in found)
    for item in found:
        print(f"{item.id:{ids}}  {listing.in_short(item):{short}}  {item.requirement}")
    return 0


def _sweep(known: argparse.Namespace) -> int:
    from sifproof.nomad import sweep  # noqa: PLC0415 - not needed by `run`

    for line in sweep.sweep(run.Run(known.run) if known.run else None, everything=known.all):
        print(line)
    return 0
