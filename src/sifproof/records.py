"""What a run writes down: verdicts, faults and the plan of the run. Reports are made from these alone.

Everything lies under ``results/runs/<run>/``:

``plan.json``
    one :class:`Plan`: the sandboxes of the run and the suites each must pass.
``images/<sandbox>.json``
    provenance of the image under test (see :mod:`sifproof.image`).
``verdicts/<sandbox>.<suite>.jsonl``
    one :class:`Verdict` a line, one file per sandbox and suite.
``faults/<stage>.<sandbox>.json``
    one :class:`FaultRecord` where a stage could not do its work.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sifproof.errors import Fault, SifproofError

Word = Literal["pass", "fail", "flaky", "waived", "measured", "not-measured"]
FINE = frozenset({"pass", "measured"})
"""Words of which nobody has to act. ``measured``: a value was measured, and there was no limit to judge it by."""
IdleState = Literal["not looked at", "does not apply", "another counts"]
"""Of a waiver that no verdict says anything of."""


class Verdict(BaseModel):
    """The outcome of one check on one subject: a row of ``results/checks.tsv``.

    Its fields are the columns in order, but for ``fault`` and ``hindered``, which only the decision needs.
    """

    model_config = ConfigDict(extra="forbid")

    run: str = Field(description="id of the run")
    sandbox: str = Field(description="name of the sandbox in the config")
    driver: str = Field(description="singularity or docker")
    node: str = Field(default="", description="name of the Nomad node; empty where nothing was placed")
    allocation: str = Field(default="", description="id of the Nomad allocation; empty where there was none")
    suite: str = Field(description="group of checks")
    check: str = Field(description="stable id of the check, suite first")
    verdict: Word = Field(description="pass, fail, flaky, waived, measured (no limit) or not-measured")
    required: bool = Field(default=True, description="whether anything but pass, measured or waived rejects the run")
    value: float | None = Field(default=None, description="what was measured, where the check measures")
    unit: str = Field(default="", description="unit of value and limit")
    limit: float | None = Field(
        default=None, description="the most that value may be, or of a rate the least, where there is a limit"
    )
    duration_s: float = Field(default=0.0, description="seconds the check took")
    waited_s: float = Field(default=0.0, description="seconds of them that the check waited on purpose")
    attempts: int = Field(default=1, description="how often the check was tried")
    message: str = Field(default="", description="what was seen, in words; the reason where it did not pass")
    fault: Fault = Field(default=Fault.IMAGE, description="who has to act where it did not pass")
    hindered: bool = Field(
        default=False,
        description="whether something from outside the check kept it from looking, or ended what it looked at; "
        "`fault` says whose that is",
    )


class FaultRecord(BaseModel):
    """Why a stage could not do its work, in the words of the :class:`SifproofError` that ended it."""

    model_config = ConfigDict(extra="forbid")

    stage: str = Field(description="preflight, image, submit, teardown, …")
    sandbox: str = Field(default="", description="the sandbox it concerns; empty for the whole run")
    fault: Fault
    what: str
    why: str = ""
    todo: str = ""

    @classmethod
    def of(cls, error: SifproofError, stage: str, sandbox: str = "") -> FaultRecord:
        """The record of ``error``."""
        return cls(stage=stage, sandbox=sandbox, fault=error.fault, what=error.what, why=error.why, todo=error.todo)

    def error(self) -> SifproofError:
        """The error it was made of."""
        return SifproofError(self.what, why=self.why, todo=self.todo, fault=self.fault)

    def __str__(self) -> str:
        return str(self.error())


class PlannedWaiver(BaseModel):
    """A waiver for one check."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    until: datetime.date = Field(description="the last day it counts")


class IdleWaiver(PlannedWaiver):
    """A waiver of the config that counts for no check of the run."""

    check: str = Field(description="id of the check, or the pattern, as the config has it")
    state: IdleState = Field(
        description="why: what it names is off or not of the suites of this run, or is for other drivers, or another "
        "waiver says more of it"
    )


class PlannedSandbox(BaseModel):
    """One sandbox of the run: what the gate must find verdicts for."""

    model_config = ConfigDict(extra="forbid")

    name: str
    driver: Literal["singularity", "docker"]
    image: str = Field(description="the image as the config names it")
    slots: int
    job: Literal["contained", "plain", "given"] = Field(
        default="contained",
        description="whose job it is: sifproof's own, the line that most clusters deploy, or the one of the config",
    )
    count: int = Field(description="allocations expected")
    suites: list[str] = Field(description="suites that must have verdicts for each allocation")
    checks: list[str] = Field(default=[], description="ids of the checks in them and in teardown, each to be recorded")
    required: list[str] = Field(
        default=[], description="those of them that the config requires by id: they count where they don't apply too"
    )
    advisory: dict[str, str] = Field(default={}, description="those of them that are not required, with the reason")
    off: dict[str, str] = Field(
        default={}, description="checks of its suites that the config turns off, with the reason"
    )
    waivers: dict[str, PlannedWaiver] = Field(default={}, description="waivers by the id of their check")
    idle_waivers: list[IdleWaiver] = Field(default=[], description="waivers that count for none of the checks")
    limits: dict[str, float] = Field(default={}, description="limits by the id of their check, in its unit")
    job_id: str
    left_out: str = Field(default="", description="why the sandbox is not measured in this run; empty where it is")


class Plan(BaseModel):
    """What a run set out to do, written before anything is built or submitted."""

    model_config = ConfigDict(extra="forbid")

    run: str
    started: str = Field(description="UTC, ISO 8601")
    sifproof: str = Field(description="version of sifproof")
    nomad_address: str
    nomad_version: str
    nomad_local: bool = Field(description="whether the run started the agent itself")
    command: str = Field(default="sifproof run", description="the run's command, as a shell takes it")
    tools: dict[str, str] = Field(default_factory=dict, description="version and origin of each tool by name")
    sandboxes: list[PlannedSandbox]

    def sandbox(self, name: str) -> PlannedSandbox:
        """The sandbox ``name``."""
        return next(sandbox for sandbox in self.sandboxes if sandbox.name == name)


def write_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the whole new one, never a part.

    ``mode`` is that of the new file, less what the umask takes away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_verdicts(path: Path, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Write ``verdicts`` to ``path`` as JSON lines, once all are there; returns them."""
    rows = list(verdicts)
    write_atomically(path, "".join(v.model_dump_json() + "\n" for v in rows))
    return rows


def read_verdicts(path: Path) -> Iterator[Verdict]:
    """The verdicts in ``path``, in the order they were written."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield Verdict.model_validate_json(line)
