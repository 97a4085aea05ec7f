"""The end of a run that did not get to its own teardown: its jobs, then its agent; and what earlier runs left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sifproof.errors import SifproofError
from sifproof.nomad import local
from sifproof.nomad.client import connect
from sifproof.nomad.teardown import sweep as sweep_jobs
from sifproof.run import Run

AGENTS = Path("nomad")


def end_run(this: Run, tools: Path = Path(".tools")) -> None:
    """End the jobs of ``this`` run on the cluster it used, and its local agent. Nothing there is no error.

    Raises :class:`SifproofError` where the cluster can't be asked or the agent stays.
    """
    local.stop(this.id, tools / AGENTS)
    cluster = _cluster(this)
    if cluster and not cluster.get("local"):
        with connect(cluster["address"]) as client:
            sweep_jobs(client, this.job_id(""))


def sweep(this: Run | None, tools: Path = Path(".tools")) -> list[str]:
    """What was cleared away, a line each: of ``this`` run, or of every run whose processes are gone.

    Without ``this``, agents and folders of dead runs on this machine are cleared away. The jobs of other runs on a
    cluster are left alone: only their own run can tell whether it still lives, and each job ends by itself.
    """
    if this is None:
        return [f"local agent of run {run}" for run in local.sweep(tools / AGENTS)]
    lines = [f"local agent of run {this.id}"] if (tools / AGENTS / this.id).exists() else []
    local.stop(this.id, tools / AGENTS)
    cluster = _cluster(this)
    if cluster and not cluster.get("local"):
        with connect(cluster["address"]) as client:
            lines += [f"job {job}" for job in sweep_jobs(client, this.job_id(""))]
    return lines


def _cluster(this: Run) -> dict[str, Any] | None:
    """The cluster of ``this`` run as its folder says; none where it never got to one."""
    path = this.folder / "nomad.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SifproofError(f"{path} can't be read", why=str(error)) from None
