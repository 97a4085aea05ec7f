"""From an image to running allocations: the job of a sandbox, and its submission."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sifproof import config, stages
from sifproof.cluster import Cluster, Endpoints
from sifproof.doctor.record import Doctor
from sifproof.image.provenance import Provenance
from sifproof.image.records import LoadedImage
from sifproof.nomad import job
from sifproof.nomad import submit as submission
from sifproof.nomad.client import Client
from sifproof.nomad.static_port import pick_static_port
from sifproof.nomad.userns import needs_userns
from sifproof.records import PlannedSandbox, write_atomically
from sifproof.run import Run


def render_job(
    run: Run,
    planned: PlannedSandbox,
    settings: config.Settings,
    cluster: Cluster,
    *,
    image: str,
    output: Path,
    doctor: Doctor | None = None,
) -> None:
    """Write the Nomad job of a sandbox to ``output``; ``image`` is the file that conversion or loading wrote.

    ``userns: auto`` goes by what ``doctor`` saw on the nodes, or else by this machine, where the nodes are here.

    Raises :class:`~sifproof.errors.SifproofError` where no static port is free or a word of the config can't be used.
    """
    sandbox = settings.selected()[planned.name]
    singularity = sandbox.driver == "singularity"
    sha256 = ""
    if singularity:
        made = stages.read(image, Provenance)
        name, sha256 = str(Path(made.sif).resolve()), made.sha256
    else:
        name = stages.read(image, LoadedImage).name
    userns = _userns(sandbox, settings, cluster, doctor) if sandbox.userns == "auto" else sandbox.userns
    constraints = [{"LTarget": c.attribute, "Operand": c.operator, "RTarget": c.value} for c in sandbox.constraints]
    # Two jobs of a run that are rendered at once must not pick the same port.
    with _alone(output.parent):
        port = None if sandbox.port == "auto" else sandbox.port
        if port is None and singularity:
            with cluster.connect(settings.nomad) as client:
                port = free_port(client, settings, sandbox, output.parent)
        rendered = job.create_sandbox_job(
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
            nested_sandboxes=sandbox.nested_sandboxes,
            command=sandbox.command,
            workdir=sandbox.workdir,
            binds=sandbox.binds,
            environment=sandbox.environment,
            userns=singularity and userns,
            apptainer=sandbox.apptainer,
            sha256=sha256 if sandbox.verify_image else "",
            constraints=constraints,
            lifetime_s=settings.nomad.lifetime_s,
            namespace=None if cluster.local else settings.nomad.namespace or os.environ.get("NOMAD_NAMESPACE"),
            region=None if cluster.local else settings.nomad.region or os.environ.get("NOMAD_REGION"),
            run=run.id,
            sandbox=planned.name,
        )
        write_atomically(output, job.render(rendered))


def _userns(sandbox: config.Sandbox, settings: config.Settings, cluster: Cluster, doctor: Doctor | None) -> bool:
    seen = doctor.needs_userns(sandbox.datacenter, sandbox.apptainer) if doctor else None
    return needs_userns() and cluster.is_here(settings.nomad) if seen is None else seen


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_port(client: Client, settings: config.Settings, sandbox: config.Sandbox, jobs: Path) -> int:
    """A static port for ``sandbox`` that neither Nomad, nor the config, nor a job rendered in ``jobs`` has.

    Raises :class:`~sifproof.errors.SifproofError` where there is none.
    """
    configured = {s.port for s in settings.selected().values() if isinstance(s.port, int)}
    rendered = {
        port["Value"]
        for path in jobs.glob("*.json")
        for group in json.loads(path.read_text(encoding="utf-8")).get("Job", {}).get("TaskGroups", [])
        for network in group["Networks"]
        for port in network.get("ReservedPorts", [])
    }
    return pick_static_port(client, sandbox.datacenter, configured | rendered)


def submit(planned: PlannedSandbox, settings: config.Settings, cluster: Cluster, job_file: str) -> Endpoints:
    """Submit the rendered job; its allocations once all run.

    Raises :class:`~sifproof.errors.SifproofError` as soon as Nomad knows that it won't come to that. What was placed
    stays for teardown to collect and to stop.
    """
    content = stages.read_document(job_file)
    with cluster.connect(settings.nomad) as client:
        begin = time.monotonic()
        submission.submit(client, content)
        submitted = time.monotonic()
        found = submission.wait_for_allocations(client, planned.job_id, planned.count, settings.nomad.placed_within_s)
        running = time.monotonic()
    seconds = {"submit": submitted - begin, "place and start": running - submitted}
    return Endpoints(
        job_id=planned.job_id, allocations=found, seconds={name: round(value, 3) for name, value in seconds.items()}
    )
