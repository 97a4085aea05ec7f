"""Is what the config asks for there? Asked before anything is built or submitted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sifproof import __version__, command, config, host_tools
from sifproof.checks.engine import policy
from sifproof.errors import Fault, SifproofError
from sifproof.image import engine, source
from sifproof.nomad import deployed_job, teardown
from sifproof.nomad.client import connect
from sifproof.nomad.nodes import NoDriverError, check_driver_available
from sifproof.records import Plan, PlannedSandbox
from sifproof.run import Run

LOCAL_DATACENTER = "dc1"
"""Where ``nomad agent -dev`` is."""


def make_plan(settings: config.Settings, run: Run) -> Plan:
    """What the run sets out to do.

    Raises :class:`SifproofError` where an image does not exist or is not what it is said to be, a tool is missing,
    Nomad can't be reached, or no node has the driver of a sandbox that is not optional.
    """
    used = {name: host_tools.require(name) for name in needed_tools(settings)}
    address, version, why_not = _look_at_cluster(settings, run)
    docker = any(s.driver == "docker" and name not in why_not for name, s in settings.selected().items())
    # What a run does without, more slowly or not at all.
    used |= {name: tool for name in ("skopeo", *(["docker"] if docker else [])) if (tool := host_tools.find(name))}
    sandboxes = []
    for name, sandbox in settings.selected().items():
        left_out = why_not.get(name)
        if left_out is not None and not sandbox.optional:
            raise left_out
        if left_out is None:
            _image_can_be_run(name, sandbox)
            if not address and sandbox.datacenter != LOCAL_DATACENTER:
                raise SifproofError(
                    f"sandboxes.{name}.datacenter: {sandbox.datacenter!r} does not exist",
                    why=f"the local agent that this run starts is in {LOCAL_DATACENTER!r}",
                    todo="leave the key out, or set NOMAD_ADDR to the cluster that has it",
                    fault=Fault.CONFIGURATION,
                )
        sandboxes.append(
            PlannedSandbox(
                name=name,
                driver=sandbox.driver,
                image=sandbox.image,
                slots=_slots(sandbox),
                job=sandbox.rendered,
                count=sandbox.count,
                suites=settings.ordered_suites(),
                **policy.plan_checks(sandbox, settings.ordered_suites()),
                job_id=run.job_id(name),
                left_out=str(left_out) if left_out is not None else "",
            )
        )
    if all(sandbox.left_out for sandbox in sandboxes):
        raise SifproofError(
            "There is nothing to measure",
            why="; ".join(f"{sandbox.name}: {sandbox.left_out}" for sandbox in sandboxes),
        )
    return Plan(
        run=run.id,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        sifproof=__version__,
        nomad_address=address,
        nomad_version=version or used["nomad"].version,
        nomad_local=not address,
        command=command.current(),
        tools={name: f"{tool.version} ({tool.origin})" for name, tool in used.items()},
        sandboxes=sandboxes,
    )


def _slots(sandbox: config.Sandbox) -> int:
    if sandbox.job is None or "slots" in sandbox.model_fields_set:
        return sandbox.slots
    return deployed_job.slots_in(Path(sandbox.job))


def _image_can_be_run(name: str, sandbox: config.Sandbox) -> None:
    if sandbox.image == config.REFERENCE:
        return
    image = source.parse(sandbox.image)
    if sandbox.driver == "docker" and image.kind is source.Kind.SIF:
        raise SifproofError(
            f"sandboxes.{name}.image: the docker driver can't run {image}",
            why="a SIF holds no image that a Docker engine could load",
            todo="run the singularity sandboxes alone (driver=singularity), or name the SIF as singularity_image",
            fault=Fault.CONFIGURATION,
        )
    source.verify(image)


def needed_tools(settings: config.Settings) -> list[str]:
    """The programs without which no run with ``settings`` can begin."""
    sandboxes = settings.selected().values()
    needed = [] if settings.nomad.effective_address() else ["nomad"]
    if any(s.driver == "singularity" for s in sandboxes):
        needed += ["apptainer", "mksquashfs"]
    if any(s.image == config.REFERENCE for s in sandboxes):
        needed += ["buildah"]
    return needed


def _look_at_cluster(settings: config.Settings, run: Run) -> tuple[str, str, dict[str, SifproofError]]:
    """Address and version of the cluster, and why each sandbox whose driver can't be had can't be run."""
    address = settings.nomad.effective_address()
    why_not = {}
    docker = [name for name, s in settings.selected().items() if s.driver == "docker"]
    if not address:
        if docker and engine.engine_version() is None:
            error = SifproofError(
                "No Docker engine answers",
                why="the docker sandboxes need one on this machine",
                todo="start one, set DOCKER_HOST, or, as root, run "
                f"`{command.by_make(command.current(), 'DOCKER=yes')}`",
            )
            why_not = dict.fromkeys(docker, error)
        return "", "", why_not
    with connect(address, namespace=settings.nomad.namespace, region=settings.nomad.region) as client:
        version = client.version()
        # Of run night and sandbox 2-a, and of run night-2 and sandbox a, the ids are the same.
        there = {job["ID"] for job in client.get("jobs", params={"prefix": run.job_id("")})}
        wanted = {run.job_id(name) for name in settings.selected()}
        if jobs := sorted({*teardown.jobs_of(client, run.id), *(there & wanted)}):
            raise run.taken(f"the cluster at {client.address} has its jobs: {', '.join(jobs[:3])}")
        for name, sandbox in settings.selected().items():
            try:
                check_driver_available(client, sandbox.driver, sandbox.datacenter)
            except NoDriverError as error:
                why_not[name] = error
    return client.address, version, why_not
