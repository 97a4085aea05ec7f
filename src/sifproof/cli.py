"""The command line: ``sifproof doctor | run | checks | sweep``."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sifproof import __version__, run
from sifproof.errors import Fault, SifproofError
from sifproof.records import FaultRecord

if TYPE_CHECKING:
    from sifproof.config import Settings

_PR_SET_PDEATHSIG = 1
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the command; returns its exit code."""
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    try:
        if known.command == "run":
            return _run(rest)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        code = {"doctor": _doctor, "checks": _checks, "sweep": _sweep}[known.command](known)
        sys.stdout.flush()
        return code
    except SifproofError as error:
        print(f"sifproof: {error}", file=sys.stderr)
        return error.fault.exit_code
    except KeyboardInterrupt:
        return Fault.INCOMPLETE.exit_code
    except BrokenPipeError:  # `sifproof checks | head`: whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


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
        "4 incomplete or interrupted",
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
    known = this.folder.exists()
    environ = {**os.environ, run.RUN_VARIABLE: this.id}
    environ.pop(run.PID_VARIABLE, None)
    run.inherit_library(environ)
    cores = [] if any(_names_cores(a) for a in arguments) else ["--cores", "4"]
    # Snakemake gets the terminal's Ctrl-C itself; this process waits for it to clean up. The others are held back until
    # there is a Snakemake to pass them on to.
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *cores, *arguments],
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
    # An id that there was is refused by the Snakefile: what lies in its folder is another run's.
    return Fault.CONFIGURATION.exit_code if known else _exit_code(this, code, interrupted=bool(interrupts))


def _names_cores(argument: str) -> bool:
    return argument.startswith(("--cores", "--jobs", "--profile", "--workflow-profile")) or argument[:2] in ("-c", "-j")


def _child_of_this() -> None:
    """In the child: Ctrl-C is for Snakemake, and it does not outlive this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit_code(this: run.Run, code: int, *, interrupted: bool) -> int:
    """What the gate decided; where it was not reached, who kept it from deciding."""
    from sifproof.report.verdict import read_verdict  # noqa: PLC0415 - pulls in pydantic models

    if not this.folder.exists():
        if interrupted:
            print("sifproof: interrupted before anything was made", file=sys.stderr)
            return Fault.INCOMPLETE.exit_code
        # Nothing ran: a dry run, --lint, --version, or arguments and settings that Snakemake refused.
        return 0 if code == 0 else Fault.CONFIGURATION.exit_code
    faults = this.folder / "faults" / "preflight.json"
    if faults.exists():
        return FaultRecord.model_validate_json(faults.read_bytes()).fault.exit_code
    try:
        decided = read_verdict(this.results, this.id).exit_code
    except SifproofError:
        how = "was interrupted" if interrupted else "ended"
        print(
            f"sifproof: run {this.id} {how} before its verdict; its logs are in {this.folder / 'logs'}", file=sys.stderr
        )
        return Fault.INCOMPLETE.exit_code
    # A gate that accepts, and a Snakemake that fails all the same: what failed was not the image.
    return decided or (Fault.INCOMPLETE.exit_code if code else 0)


def _doctor(known: argparse.Namespace) -> int:
    from sifproof import preflight  # noqa: PLC0415 - not needed by `run`
    from sifproof.doctor import look  # noqa: PLC0415

    settings = _settings(known.configfile, known.config)
    images = Path("results/images")
    seen = look.everything(
        settings,
        run=run.new_id(),
        images=images if images.parent.is_dir() else None,
        needed=preflight.needed_tools(settings),
    )
    print(seen.model_dump_json(indent=2) if known.json else "\n".join(seen.lines()))
    return Fault.INFRASTRUCTURE.exit_code if seen.blocks else 0


def _settings(files: Sequence[Path], words: Sequence[str]) -> Settings:
    """The settings that a run with ``--configfile FILES --config WORDS`` has."""
    from sifproof import config, pipeline  # noqa: PLC0415 - not needed by `run`

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
        default = Path(__file__).parents[2] / "config" / "config.yaml"
        files = [default, *files]
        mapping = _over(config.read(default), mapping)
    return pipeline.checked(mapping, config.Origin(files, given))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below`` as Snakemake lays one config over another: mappings are merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = _over(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def _checks(known: argparse.Namespace) -> int:
    from sifproof.checks import listing, policy, registry  # noqa: PLC0415 - not needed by `run`

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
    from sifproof.nomad import cleanup  # noqa: PLC0415 - not needed by `run`

    for line in cleanup.sweep(run.Run(known.run) if known.run else None, everything=known.all):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
