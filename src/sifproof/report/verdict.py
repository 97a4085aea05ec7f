"""``verdict.json``: the run's decision for programs, and its schema."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sifproof.errors import Fault, SifproofError
from sifproof.report.decision import Decision
from sifproof.report.recorded import Recorded


class Nomad(BaseModel):
    """The cluster that the run used."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(description="URL of the agent, without credentials")
    version: str = Field(description="version of the agent")
    local: bool = Field(description="whether the run started the agent itself")


class VerdictFile(Decision):
    """The content of ``results/verdict.json``."""

    schema_version: Literal[1] = Field(default=1, description="changes when a field is removed or changes its meaning")
    run: str = Field(description="id of the run")
    started: str = Field(description="when the run began; UTC, ISO 8601; empty where the plan is lost")
    finished: str = Field(description="when the reports were written; UTC, ISO 8601")
    sifproof: str = Field(description="version of sifproof")
    command: str = Field(description="the command of the run, as a shell takes it: it tests the same once more")
    nomad: Nomad
    tools: dict[str, str] = Field(description="version and origin of each tool by name")
    reports: dict[str, str] = Field(description="path of each report by name, relative to the results folder")


def of(
    recorded: Recorded, decision: Decision, reports: dict[str, str], finished: datetime | None = None
) -> VerdictFile:
    """The verdict file of a run; ``reports`` gives the path of each report below the results folder by name."""
    plan = recorded.plan
    # The plan is made before the agent of a local run has an address.
    address, version = (str(recorded.nomad.get(key, "")) for key in ("address", "version"))
    return VerdictFile(
        **decision.model_dump(),
        run=plan.run,
        started=plan.started,
        finished=(finished or datetime.now(UTC)).isoformat(timespec="seconds"),
        sifproof=plan.sifproof,
        command=plan.command,
        nomad=Nomad(
            address=without_credentials(address or plan.nomad_address),
            version=version or plan.nomad_version,
            local=plan.nomad_local,
        ),
        tools=plan.tools,
        reports=reports,
    )


def without_credentials(url: str) -> str:
    """``url`` without user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_verdict(results: Path, run: str) -> VerdictFile:
    """The published verdict of ``run``.

    Raises:
        SifproofError: (incomplete) there is none, it can't be understood, or it is that of another run.
    """
    path = results / "verdict.json"
    todo = "read the log of the report rule, and run again"
    try:
        verdict = VerdictFile.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "it does not follow its schema"
        raise SifproofError(f"{path} cannot be read", why=why, todo=todo, fault=Fault.INCOMPLETE) from error
    if verdict.run != run:
        raise SifproofError(
            f"{path} is the verdict of run {verdict.run}, not of {run}", todo=todo, fault=Fault.INCOMPLETE
        )
    return verdict
