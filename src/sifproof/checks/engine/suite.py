"""Runs one suite on every allocation of a sandbox. Whatever is in the way, there are verdicts for all of it."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TextIO

from sifproof import config, documents
from sifproof.checks.engine import registry
from sifproof.checks.engine.presence import Loss, Watch
from sifproof.checks.engine.runner import Context, Look, blocked_by, run_checks
from sifproof.checks.engine.subject import Ended, Placement, Server
from sifproof.errors import Fault, SifproofError
from sifproof.nomad import deployed_job, teardown
from sifproof.nomad.allocations import Allocation, parse_allocation
from sifproof.nomad.cluster import Cluster, Endpoints
from sifproof.nomad.submit import check_alive
from sifproof.nomad.teardown import AllocationEnd
from sifproof.records import FINE, PlannedSandbox, Verdict
from sifproof.sandbox.client import SandboxClient

Path = str | os.PathLike[str]

_CLOCKS_S = 0.5
"""How exactly the time of a node's event is known here: a script there has to be started to tell it."""


def run_suite(
    name: str,
    planned: PlannedSandbox,
    settings: config.Settings,
    *,
    run: str,
    nomad: Path,
    endpoints: Path,
    job: Path,
    image: Path,
    earlier: Iterable[Verdict],
    log: TextIO,
) -> Iterator[Verdict]:
    """The verdicts of suite ``name``, allocation by allocation.

    ``nomad``, ``endpoints``, ``job`` and ``image`` are the files that earlier stages wrote. Where one of them holds a
    fault, every check is ``not-measured`` with its words. ``earlier`` are the verdicts of the suites before: on an
    allocation where a guarding check did not pass, nothing is looked at.
    """
    checks = _planned(name, planned)
    context = Context.of(run, planned, log)
    try:
        found = documents.read(endpoints, Endpoints)
        cluster = documents.read(nomad, Cluster)
        rendered = documents.read_document(job)
    except SifproofError as error:
        yield from run_checks(checks, None, context, blocked=str(error))
        return
    try:
        client = cluster.connect(settings.nomad)
    except SifproofError as error:
        for there in (context.at(a.node_name, a.id) for a in found.allocations):
            yield from run_checks(checks, None, there, blocked=str(error), hindered_by=error.fault)
        return
    ways = _in_the_way(earlier)
    for allocation in found.allocations:
        placement = Placement(
            run=run,
            nomad=client,
            cluster=cluster,
            settings=settings,
            sandbox=as_deployed(settings.selected()[planned.name], planned.slots, rendered),
            allocation=allocation,
            endpoints=found,
            job=rendered,
            image=pathlib.Path(image),
            job_file=pathlib.Path(job),
        )
        server = server_of(placement)
        there = context.at(allocation.node_name, allocation.id)
        watch = Watch(partial(cluster.connect, settings.nomad), allocation, port=placement.port_inside, run=run)
        server.client.on_silence, server.silence_expected = watch.unanswered, watch.silence_expected
        blocked, hindered_by = ways.get(allocation.id, ("", None))
        try:
            rows = run_checks(checks, server, there, blocked=blocked, hindered_by=hindered_by, look=watch.look)
            yield from unless_starved(rows, watch, there)
        finally:
            watch.close()
            server.client.on_silence = lambda: None
            try:
                server.keep.close()
            except Exception as error:  # it is no news about the server, and the verdicts are there
                there.say(
                    f"What suite {name} started beside allocation {allocation.id} could not all be ended: {error} "
                    f"What is left of it ends with the run's jobs; their ids begin with {planned.job_id}."
                )


def unless_starved(rows: Iterable[Verdict], watch: Watch, context: Context) -> list[Verdict]:
    """``rows``, made one by one; what did not pass is no evidence where the kernel killed meanwhile for want of memory.

    It ends commands first, and leaves a server that hardly moves: there is no check that this can't turn red, but for
    one that has memory run out on purpose.
    """
    known, every, began = registry.load(), [], time.monotonic()
    for row in rows:
        ended = time.monotonic()
        every.append((row, began, ended))
        began = ended

    def troubled(row: Verdict) -> bool:
        bad = row.required and row.verdict not in {*FINE, "waived"} and not row.hindered
        return bad and not known[row.check].takes_memory

    kills = watch.kills() if any(troubled(row) for row, _, _ in every) else []
    judged = []
    for row, first, last in every:
        meanwhile = [task for at, task in kills if first - _CLOCKS_S < at < last + _CLOCKS_S]
        if meanwhile and troubled(row):
            error = watch.starved(meanwhile[-1])
            context.say(f"{row.check} is not held against the image: {error}")
            message = f"{error} The check had said: {row.message}"
            changes = {"verdict": "not-measured", "hindered": True, "fault": error.fault, "message": message}
            row = row.model_copy(update=changes)  # noqa: PLW2901
        judged.append(row)
    return judged


def as_deployed(sandbox: config.Sandbox, slots: int, job: Mapping[str, Any]) -> config.Sandbox:
    """What the checks go by: of a job that the config names (``job``), what that job says in place of the config."""
    if sandbox.rendered == "contained":
        return sandbox
    task = deployed_job.task_of(job)
    values: dict[str, Any] = {"verify_image": False}  # sifproof's own line alone compares the file before it begins
    if sandbox.job is not None:
        given = {k: v for k, v in (task.get("Env") or {}).items() if "${" not in v}
        memory = (task.get("Resources") or {}).get("MemoryMB") or sandbox.memory
        # Where its server starts, its line says in ways that are not read here.
        values |= {"slots": slots, "environment": given, "memory": memory, "workdir": ""}
    return sandbox.model_copy(update=values)


def _in_the_way(earlier: Iterable[Verdict]) -> dict[str, tuple[str, Fault | None]]:
    """Why an allocation is not looked at any more, by its id; and who has to act, where that was no check's finding."""
    known = registry.load()
    ways: dict[str, tuple[str, Fault | None]] = {}
    last: dict[str, Verdict] = {}
    for verdict in earlier:
        last[verdict.allocation] = verdict
        if known[verdict.check].guards and verdict.verdict != "pass":
            ways.setdefault(verdict.allocation, (blocked_by(verdict), verdict.fault if verdict.hindered else None))
    for allocation, verdict in last.items():
        # What is lost stays so until the end of its suite, and after it.
        if verdict.hindered:
            ways.setdefault(allocation, (blocked_by(verdict), verdict.fault))
    return ways


def _planned(suite: str, planned: PlannedSandbox) -> list[registry.Check]:
    return [check for check in registry.of_suite(suite) if check.id in planned.checks]


def server_of(placement: Placement) -> Server:
    """The subject of the suites: the server of the allocation that ``placement`` names."""
    client, allocation = placement.nomad, placement.allocation
    return Server(
        client=SandboxClient(allocation.url, token=placement.token),
        slots=placement.sandbox.slots,
        ready_within_s=placement.settings.nomad.ready_within_s,
        read_allocation_file=lambda path: client.file(allocation.id, f"/alloc/data/{path}"),
        ask_nomad=lambda: check_alive(client, [parse_allocation(client.get("allocation", allocation.id))]),
        driver=placement.sandbox.driver,
        placement=placement,
    )


def run_teardown(
    planned: PlannedSandbox,
    settings: config.Settings,
    *,
    run: str,
    nomad: Path,
    endpoints: Path,
    collect: pathlib.Path,
    log: TextIO,
) -> Iterator[Verdict]:
    """Stop and purge the sandbox's job, and the verdicts of the teardown suite on each of its allocations.

    The job is stopped also where submitting it had a fault, for it may have been half placed. ``collect`` is the
    folder that takes what Nomad knows of it.
    """
    checks = _planned(registry.TEARDOWN, planned)
    context = Context.of(run, planned, log)
    known: list[Allocation] = []
    reason = ""
    try:
        known = documents.read(endpoints, Endpoints).allocations
    except SifproofError as error:
        reason = str(error)
    try:
        cluster = documents.read(nomad, Cluster)
        with cluster.connect(settings.nomad) as client:
            ended = teardown.stop_and_verify(
                client,
                planned.job_id,
                known,
                collect=collect,
                deadline_s=settings.nomad.stopped_within_s,
                # Another user's processes are not to be seen from here, but by root.
                local=cluster.local or (os.geteuid() == 0 and cluster.is_here(settings.nomad)),
                run=run,
            )
    except SifproofError as error:
        hindered_by = None if isinstance(error, documents.Inherited) else error.fault
        for there in [context.at(a.node_name, a.id) for a in known] or [context]:
            yield from run_checks(checks, None, there, blocked=str(error), hindered_by=hindered_by)
        return
    if not ended.allocations:
        yield from run_checks(checks, None, context, blocked=reason or "the job has no allocation")
    for allocation in ended.allocations:
        there = context.at(allocation.node, allocation.allocation)
        subject = Ended(allocation, ended.purged, settings.nomad.stopped_within_s, planned.driver)
        yield from run_checks(checks, subject, there, look=_look_at_node(cluster, settings, known, allocation, run))


def _look_at_node(
    cluster: Cluster, settings: config.Settings, known: Iterable[Allocation], ended: AllocationEnd, run: str
) -> Look:
    """Whether the node of ``ended`` was lost, to be asked where something is not as it should be."""
    watches = [
        Watch(partial(cluster.connect, settings.nomad), one, port=one.port, run=run)
        for one in known
        if one.id == ended.allocation
    ]

    def look(thorough: bool) -> Loss | None:
        return next((watch.look_at_node() for watch in watches if thorough), None)

    return look
