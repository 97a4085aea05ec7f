"""What ends with a run, and what is swept up after one that was killed."""

from __future__ import annotations

import os

from sifproof.nomad import teardown
from sifproof.nomad.agent import local
from sifproof.nomad.client import connect
from sifproof.run import Run


def end_run(run: Run, address: str = "", namespace: str | None = None, region: str | None = None) -> None:
    """End what ``run`` still has: its local agent with all that runs on it, or its jobs on the cluster at ``address``.

    Called when Snakemake ended well, failed or was interrupted. A run that got as far as its teardown has no job left.
    Raises :class:`~sifproof.errors.SifproofError` where something stays.
    """
    if not address:
        local.stop(run.id)
        return
    with connect(address, namespace=namespace, region=region) as client:
        teardown.sweep(client, run.id)


def sweep(run: Run | None, *, everything: bool = False) -> list[str]:
    """End what killed runs left, or all that ``run`` has; what was ended, a line each.

    Local agents end with their runs, unless their supervisor was killed too. Jobs on a cluster (``NOMAD_ADDR``) end
    by their lifetime; this ends those of ``run`` now, or, with ``everything``, those of every run.
    """
    if run is not None:
        lines = []
        if local.find(run.id) is not None:
            local.stop(run.id)
            lines.append(f"local agent of run {run.id}: ended")
    else:
        lines = [f"local agent of run {name}: what it left was removed" for name in local.sweep()]
    if os.environ.get("NOMAD_ADDR") and (run or everything):
        with connect() as client:
            jobs = teardown.sweep(client, run.id if run else None)
        lines += [f"job {job}: stopped and purged" for job in jobs]
    return lines
