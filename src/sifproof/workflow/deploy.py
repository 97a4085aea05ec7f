"""From an image to running allocations: the job of a sandbox, and its submission."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sifproof import config, documents, locks
from sifproof.doctor.record import Doctor
from sifproof.errors import SifproofError
from sifproof.image.provenance import Provenance
from sifproof.image.records import LoadedImage
from sifproof.nomad import deployed_job, job
from sifproof.nomad import submit as submission
from sifproof.nomad.allocations import Allocation, get_job_allocations
from sifproof.nomad.client import Client
from sifproof.nomad.cluster import Cluster, Endpoints
from sifproof.nomad.job import META_RUN
from sifproof.nomad.node.oom import kills
from sifproof.nomad.node.script import Node
from sifproof.nomad.node.userns import needs_userns
from sifproof.nomad.static_port import pick_static_port
from sifproof.nomad.submit import out_of_memory, unplanned_end
from sifproof.records import PlannedSandbox, write_atomically
from sifproof.run import Run
from sifproof.sandbox import tokens
from sifproof.sandbox.client import SandboxClient, ServerError


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

    Where its server takes tokens, one is made for the job: see :mod:`sifproof.sandbox.tokens`.

    ``userns: auto`` goes by what ``doctor`` tried on the nodes, or on this machine under a local agent; or else by the
    capabilities of this machine, where the nodes are here.

    Raises :class:`~sifproof.errors.SifproofError` where no static port is free or a word of the config can't be used.
    """
    sandbox = settings.selected()[planned.name]
    singularity = sandbox.driver == "singularity"
    sha256, entrypoint = "", False
    if singularity:
        made = documents.read(image, Provenance)
        entrypoint = bool(made.image.entrypoint)
        name, sha256 = str(Path(made.sif).resolve()), made.sha256
    else:
        name = documents.read(image, LoadedImage).name
    if sandbox.job is not None:
        if sandbox.job_token:
            tokens.take(output, Path(sandbox.job_token))
        else:
            tokens.remove(output)
        # Its variables may be secrets, and its own file closed to others.
        write_atomically(output, job.render(_deployed(run, planned, settings, cluster, output.parent)), mode=0o600)
        return
    userns = _userns(sandbox, settings, cluster, doctor) if sandbox.userns == "auto" else sandbox.userns
    # Two jobs of a run that are rendered at once must not pick the same port.
    with alone(output.parent):
        port = None if sandbox.port == "auto" else sandbox.port
        if port is None and singularity:
            with cluster.connect(settings.nomad) as client:
                port = free_port(client, settings, sandbox, output.parent)
        token_sha256 = [tokens.make(output)] if sandbox.takes_tokens else []
        if not token_sha256:
            tokens.remove(output)
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
            read_only=sandbox.read_only,
            command=sandbox.command,
            workdir=sandbox.workdir,
            binds=sandbox.binds,
            environment=sandbox.environment,
            userns=singularity and userns,
            apptainer=sandbox.apptainer,
            containment=sandbox.containment,
            entrypoint=entrypoint and "command" not in sandbox.model_fields_set,
            sha256=sha256 if sandbox.verify_image else "",
            token_sha256=token_sha256,
            constraints=_constraints(sandbox),
            lifetime_s=settings.nomad.lifetime_s,
            # What is killed has to be gone within the limit too.
            kill_timeout_s=max(job.KILL_TIMEOUT_S, settings.nomad.stopped_within_s / 2),
            namespace=None if cluster.local else settings.nomad.namespace or os.environ.get("NOMAD_NAMESPACE"),
            region=None if cluster.local else settings.nomad.region or os.environ.get("NOMAD_REGION"),
            run=run.id,
            sandbox=planned.name,
        )
        write_atomically(output, job.render(rendered))


def _constraints(sandbox: config.Sandbox) -> list[dict[str, str]]:
    """Where the config wants the job placed, as Nomad's API has it."""
    return [{"LTarget": c.attribute, "Operand": c.operator, "RTarget": c.value} for c in sandbox.constraints]


def _deployed(
    run: Run, planned: PlannedSandbox, settings: config.Settings, cluster: Cluster, jobs: Path
) -> dict[str, Any]:
    """The job that production runs, as it is submitted here."""
    sandbox = settings.selected()[planned.name]
    given = sandbox.model_fields_set

    def parse(text: str, variables: Mapping[str, str]) -> dict[str, Any]:
        with cluster.connect(settings.nomad) as client:
            return client.parse_job(text, variables)

    with alone(jobs):
        found = deployed_job.read(Path(sandbox.job or ""), parse, sandbox.job_variables)
        port = sandbox.port if isinstance(sandbox.port, int) else None
        if "port" in given and port is None:
            with cluster.connect(settings.nomad) as client:
                port = free_port(client, settings, sandbox, jobs)
        wanted = deployed_job.Wanted(
            count=planned.count,
            task=sandbox.job_task,
            port_label=sandbox.job_port,
            port=port,
            datacenter=sandbox.datacenter if "datacenter" in given else None,
            constraints=_constraints(sandbox) if "constraints" in given else None,
            cpu=sandbox.cpu if "cpu" in given else None,
            memory=sandbox.memory if "memory" in given else None,
        )
        return deployed_job.under_test(
            found, wanted, driver=sandbox.driver, job_id=planned.job_id, run=run.id, sandbox=planned.name
        )


def _userns(sandbox: config.Sandbox, settings: config.Settings, cluster: Cluster, doctor: Doctor | None) -> bool:
    seen = doctor.needs_userns(sandbox.datacenter, sandbox.apptainer, local=cluster.local) if doctor else None
    return needs_userns() and cluster.is_here(settings.nomad) if seen is None else seen


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No one else reads or changes the jobs in ``folder`` meanwhile."""
    with locks.waited_for(folder / ".lock"):
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
        for network in group.get("Networks") or []
        for port in network.get("ReservedPorts") or []
    }
    return pick_static_port(client, sandbox.datacenter, configured | rendered)


_ASKED_EVERY_S = 0.02


def submit(planned: PlannedSandbox, settings: config.Settings, cluster: Cluster, job_file: str) -> Endpoints:
    """Submit the rendered job; its allocations once all run, and when each gave its first healthy answer.

    Raises :class:`~sifproof.errors.SifproofError` as soon as Nomad knows that it won't come to that. What was placed
    stays for teardown to collect and to stop.
    """
    content = documents.read_document(job_file)
    job_id, within_s = planned.job_id, settings.nomad.placed_within_s
    with cluster.connect(settings.nomad) as client:
        begin = time.monotonic()
        submission.submit(client, content)
        try:
            submitted = time.monotonic()
            placed = submission.wait_for_allocations(client, job_id, planned.count, within_s, started=False)
            # Asked from now on: Nomad says "running" a while after a server may have answered.
            with _first_answers(placed, tokens.read(Path(job_file))) as answers:
                left = max(within_s - (time.monotonic() - submitted), 1.0)
                found = submission.wait_for_allocations(client, job_id, planned.count, left)
                running = time.monotonic()
                patience_s = settings.nomad.ready_within_s
                while wait(answers.values(), timeout=0.5).not_done and time.monotonic() < running + patience_s:
                    submission.check_alive(client, get_job_allocations(client, job_id))
        except SifproofError as error:
            raise _unless_starved(client, content, error) from None
    times = {id: at - begin for id, answer in answers.items() if (at := answer.result()) is not None}
    seconds = {"submit": submitted - begin, "place and start": running - submitted}
    if len(times) == len(answers):
        seconds["first answer"] = max(0.0, max(times.values()) - (running - begin))
    return Endpoints(
        job_id=job_id,
        allocations=found,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        healthy_s={id: round(value, 4) for id, value in times.items()},
    )


def _unless_starved(client: Client, content: Mapping[str, Any], error: SifproofError) -> SifproofError:
    """``error`` of a job that did not come to run; another where the kernel killed processes of it for want of memory.

    It may kill the one that mounts the image, and the server ends as if its files were damaged.
    """
    job = content["Job"]
    try:
        for one in get_job_allocations(client, job["ID"]):
            if unplanned_end(one) is None:
                continue
            node = Node(client, one.node_id, one.node_name, run=job["Meta"][META_RUN])
            if killed := kills(node, one.id):
                return out_of_memory(one, f"the kernel killed {killed[-1].task or 'a process'} of it; {error.why}")
    except SifproofError:  # who can't be asked knows of nothing else
        return error
    return error


@contextmanager
def _first_answers(allocations: Sequence[Allocation], token: str | None) -> Iterator[dict[str, Future[float | None]]]:
    """When each of ``allocations`` first answered in health, by the monotonic clock; asked until the block ends."""
    over = threading.Event()

    def ask(url: str) -> float | None:
        client = SandboxClient(url, token=token, timeout_s=1.0, grace_s=0.0)
        while not over.is_set():
            try:
                client.health()
                return time.monotonic()
            except ServerError:
                over.wait(_ASKED_EVERY_S)
        return None

    with ThreadPoolExecutor(max(len(allocations), 1)) as askers:
        try:
            yield {allocation.id: askers.submit(ask, allocation.url) for allocation in allocations}
        finally:
            over.set()
