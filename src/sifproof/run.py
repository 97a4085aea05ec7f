"""Identity of a run, what its processes inherit, the layout of its folder.

Standard library only: the Snakefile imports it at every parse.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sifproof.errors import Fault, SifproofError

RUN_VARIABLE = "SIFPROOF_RUN"
"""Holds the run's id for every process below the outermost: a value made at parse time differs in each child parse."""

PID_VARIABLE = "SIFPROOF_RUN_PID"
"""Holds the pid of the run's outermost Snakemake; when that process ends, whatever the run started ends."""

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,62}")


def inherit_library(environ: MutableMapping[str, str]) -> None:
    """Make Pythons below find the library as this one does, in conda environments and on other nodes too.

    They end quietly on Ctrl-C: see ``interrupt/sitecustomize.py``.
    """
    package = Path(__file__).parent
    first = [str(package / "interrupt"), str(package.parent)]
    given = environ.get("PYTHONPATH", "").split(os.pathsep)
    environ["PYTHONPATH"] = os.pathsep.join(first + [path for path in given if path not in ("", *first)])


def new_id() -> str:
    """UTC date and time, and a random part that tells apart runs of one second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class Run:
    """A run by its id, with the paths of what it writes, relative to the working directory."""

    id: str
    results: Path = Path("results")

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise SifproofError(
                f"{RUN_VARIABLE}={self.id!r} can't be the id of a run",
                why="it becomes part of job ids, paths and URLs: letters, digits and hyphens, 63 at most",
                fault=Fault.CONFIGURATION,
            )

    @property
    def folder(self) -> Path:
        """Where everything of this run lies."""
        return self.results / "runs" / self.id

    @property
    def images(self) -> Path:
        """Made things that a digest identifies; they outlive runs."""
        return self.results / "images"

    def job_id(self, sandbox: str) -> str:
        """Id of the sandbox's Nomad job. It tells people whose it is; the mark that the job carries decides that."""
        return f"sifproof-{self.id}-{sandbox}"

    def claim(self) -> None:
        """Make the folder of the run; raises :class:`SifproofError` where another run of this id was first."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise self.taken(f"{self.folder} exists") from None

    def taken(self, why: str) -> SifproofError:
        """The error of a run whose id another one has: it would take that one's verdict and jobs for its own."""
        return SifproofError(
            f"{RUN_VARIABLE}={self.id} is the id of a run that there was",
            why=why,
            todo=f"unset {RUN_VARIABLE}, or give each run an id of its own",
            fault=Fault.CONFIGURATION,
        )


def current(environ: MutableMapping[str, str] = os.environ) -> Run:
    """The run of this process: the inherited one, or a new one that children inherit.

    Raises :class:`SifproofError` where the outermost process is given the id of a run that there was: its verdict
    would be taken for this one's.
    """
    run = Run(environ.setdefault(RUN_VARIABLE, new_id()))
    if PID_VARIABLE not in environ and run.folder.exists():
        raise run.taken(f"{run.folder} exists")
    environ.setdefault(PID_VARIABLE, str(os.getpid()))
    return run
