"""What the Snakefile asks: the run, its sandboxes, the order of the suites, and what to end when it is over."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sifproof import command, config, run
from sifproof.documents import read
from sifproof.errors import SifproofError
from sifproof.records import Plan
from sifproof.report.write import FOLDER, REPORTS


@dataclass(frozen=True)
class Flow:
    """One run's way through the rules."""

    run: run.Run
    settings: config.Settings

    @property
    def suites(self) -> list[str]:
        """The suites in the order they run; teardown follows them."""
        return self.settings.ordered_suites()

    @property
    def reports(self) -> dict[str, str]:
        """Path of each report of this run by the name that rules give it; ``results/`` gets a copy.

        The copy is no output of a rule: Snakemake would take that of an earlier run for this one's.
        """
        return {name.partition(".")[0]: str(self.run.folder / FOLDER / name) for name in REPORTS}

    def names(self, driver: str | None = None) -> str:
        """Regular expression that the sandboxes of ``driver``, or all, match; nothing where there is none."""
        names = [n for n, s in self.settings.selected().items() if driver in (None, s.driver)]
        return "|".join(names) or "(?!)"

    def teardowns(self, plan: str | os.PathLike[str] | None) -> list[str]:
        """Verdicts of the teardown of each sandbox that ``plan`` does not leave out; of each one without a plan."""
        names = (
            [sandbox.name for sandbox in read(plan, Plan).sandboxes if not sandbox.left_out]
            if plan
            else list(self.settings.selected())
        )
        return [str(self.run.folder / "verdicts" / f"{name}.teardown.jsonl") for name in names]

    def uses_reference(self, sandbox: str) -> bool:
        """Whether the sandbox runs the reference image."""
        return self.settings.selected()[sandbox].image == config.REFERENCE

    def before(self, sandbox: str, suite: str) -> list[str]:
        """Verdicts of the suites on ``sandbox`` that run before ``suite``."""
        earlier = self.suites[: self.suites.index(suite)]
        return [str(self.run.folder / "verdicts" / f"{sandbox}.{name}.jsonl") for name in earlier]


def readable(file: str) -> str:
    """``file``, which Snakemake is to read next; ends the process with a plain sentence where it is no YAML."""
    try:
        config.read(_short(file))
    except SifproofError as error:
        print(error, file=sys.stderr)
        sys.exit(error.fault.exit_code)
    return file


def begin(
    mapping: dict[str, Any],
    files: Iterable[str | os.PathLike[str]] = (),
    given: Mapping[str, Any] | None = None,
) -> Flow:
    """The flow of the config that Snakemake merged, from ``files`` and from what the command line gives over them.

    ``mapping`` gets the types of :func:`checked`, for the scripts of the rules read it too. Ends the process with a
    plain sentence where it is wrong.
    """
    run.inherit_library(os.environ)
    quote_interpreter()
    if run.PID_VARIABLE not in os.environ:
        os.environ.setdefault(command.VARIABLE, command.this(sys.argv[1:]))
    origin = config.Origin([_short(file) for file in files], given or {})
    try:
        return Flow(run.current(), checked(mapping, origin))
    except SifproofError as error:
        print(error, file=sys.stderr)
        sys.exit(error.fault.exit_code)


def quote_interpreter() -> None:
    """Have Snakemake quote the path of its Python in the shell line that runs a script: there may be a blank in it."""
    from snakemake.script import PythonScript  # noqa: PLC0415 - loaded by Snakemake, which is what calls this

    if PythonScript._execute_cmd.__name__ != "quoted":
        execute = PythonScript._execute_cmd

        def quoted(script: PythonScript, line: str, **words: Any) -> Any:
            return execute(script, line.replace("{py_exec}", "{py_exec:q}"), **words)

        PythonScript._execute_cmd = quoted


def checked(mapping: dict[str, Any], origin: config.Origin) -> config.Settings:
    """The settings in ``mapping``, once all of it was looked at: files, keys, values, and the checks that it names.

    What is text only because Snakemake made it so gets its type, in ``mapping`` itself too. Raises
    :class:`SifproofError` where something is wrong.
    """
    for file in origin.files:
        if file.is_file():  # a pipe has been read by now
            config.read(file)
    config.retype(mapping, origin.given)
    settings = config.load(mapping, origin)
    if any(s.policy != config.Policy() or s.waivers or s.limits for s in settings.sandboxes.values()):
        from sifproof.checks.engine import policy  # noqa: PLC0415 - the catalogue takes a while to import

        policy.verify(settings, origin)
    return settings


def _short(path: str | os.PathLike[str]) -> Path:
    """``path`` from here, where it lies below."""
    here = Path(path).absolute()
    return here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here


def claim(flow: Flow) -> None:
    """Make the folder of the run, before its first job; ends the process where another run has the same id."""
    if os.environ[run.PID_VARIABLE] != str(os.getpid()):
        return
    try:
        flow.run.claim()
    except SifproofError as error:
        print(error, file=sys.stderr)
        sys.exit(error.fault.exit_code)


def end(flow: Flow) -> None:
    """End what the run left: its local agent, or its jobs on the cluster. Says so where that fails."""
    if not (flow.run.folder / "plan.json").exists():
        # It has started nothing yet, and jobs that bear its id are another's.
        with contextlib.suppress(OSError):
            flow.run.folder.rmdir()  # where not even that was begun: it is empty
        return
    from sifproof.nomad import sweep  # noqa: PLC0415 - only at the end of a run

    settings = flow.settings.nomad
    try:
        sweep.end_run(flow.run, settings.effective_address(), settings.namespace, settings.region)
    except SifproofError as error:
        print(error, file=sys.stderr)


def sif_store(this: run.Run) -> Path:
    """The folder of converted images."""
    return this.images / "sif"
