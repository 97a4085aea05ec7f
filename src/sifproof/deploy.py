"""From an image to running allocations: what stages hand on about images, the job, its submission."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sifproof import config, stages
from sifproof.cluster import Cluster, Endpoints
from sifproof.image.digest import SourceDigest
from sifproof.image.provenance import Provenance
from sifproof.nomad import job
from sifproof.nomad import submit as submission
from sifproof.nomad.ports import pick_static_port
from sifproof.nomad.userns import needs_userns
from sifproof.records import PlannedSandbox

Path_ = str | os.PathLike[str]


class SourceImage(BaseModel):
    """The image of a sandbox as it was found: ``sources/<sandbox>.json``."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="the image, as the config names it or as the reference image was built")
    digest: SourceDigest


class LoadedImage(BaseModel):
    """The image of a docker sandbox in the engine: ``images/<sandbox>.json``."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="where it was loaded from")
    digest: str = Field(description="sha256:… of its config")
    name: str = Field(description="name and tag in the engine")


def sandbox_job(
    run: str, planned: PlannedSandbox, settings: config.Settings, cluster: Cluster, image: Path_
) -> dict[str, Any]:
    """The Nomad job of a sandbox; ``image`` is the file that conversion or loading wrote."""
    sandbox = settings.selected()[planned.name]
    port: int | None = None if sandbox.port == "auto" else sandbox.port
    sif = None
    userns = False
    if sandbox.driver == "singularity":
        sif = str(Path(stages.read(image, Provenance).sif).resolve())
        # Asked of this machine alone: on a cluster the nodes are not at hand.
        userns = cluster.local and needs_userns() if sandbox.userns == "auto" else sandbox.userns
        if port is None:
            with cluster.connect(settings.nomad) as client:
                port = pick_static_port(client, sandbox.datacenter)
        name = sif
    else:
        name = stages.read(image, LoadedImage).name
    return job.create_sandbox_job(
        planned.job_id,
        name,
        planned.count,
        planned.slots,
        sandbox.privileged,
        sandbox.cpu,
        sandbox.memory,
        port,
        sandbox.datacenter,
        sandbox.driver,
        sif,
        command=sandbox.command,
        workdir=sandbox.workdir,
        binds=sandbox.binds,
        environment=sandbox.environment,
        userns=userns,
        lifetime_s=settings.nomad.lifetime_s,
        meta={job.META_RUN: run, job.META_SANDBOX: planned.name},
        namespace=settings.nomad.namespace or os.environ.get("NOMAD_NAMESPACE") if not cluster.local else None,
        region=settings.nomad.region or os.environ.get("NOMAD_REGION") if not cluster.local else None,
    )


def submit(planned: PlannedSandbox, settings: config.Settings, cluster: Cluster, job_file: Path_) -> Endpoints:
    """Submit the rendered job; its allocations once all run.

    Raises :class:`SifproofError` as soon as Nomad knows that it won't come to that; the job is left for teardown.
    """
    content = stages.read_document(job_file)
    begin = time.time()
    with cluster.connect(settings.nomad) as client:
        submission.submit(client, content)
        submitted = time.time()
        found = submission.wait_for_allocations(client, planned.job_id, planned.count, settings.nomad.placed_within_s)
    running = time.time()
    return Endpoints(
        job_id=planned.job_id,
        allocations=found,
        seconds={"submit": round(submitted - begin, 3), "place and start": round(running - submitted, 3)},
    )
