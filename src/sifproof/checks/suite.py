"""Runs one suite on every allocation of a sandbox. Whatever is in the way, there are verdicts for all of it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import TextIO

from sifproof import config, stages
from sifproof.checks import registry
from sifproof.checks.runner import Context, blocked_by, run_checks
from sifproof.checks.server import Server
from sifproof.checks.teardown import Ended
from sifproof.cluster import Cluster, Endpoints
from sifproof.errors import SifproofError
from sifproof.nomad import teardown
from sifproof.nomad.allocations import Allocation, parse_allocation
from sifproof.nomad.client import Client
from sifproof.nomad.submit import check_alive
from sifproof.records import PlannedSandbox, Verdict
from sifproof.sandbox.client import SandboxClient

Path = str | os.PathLike[str]


def run_suite(
    name: str,
    planned: PlannedSandbox,
    settings: config.Settings,
    *,
    run: str,
    nomad: Path,
    endpoints: Path,
    earlier: Iterable[Verdict],
    log: TextIO,
) -> Iterator[Verdict]:
    """The verdicts of suite ``name``, allocation by allocation.

    ``nomad`` and ``endpoints`` are the files that earlier stages wrote. Where one of them holds a fault, every check
    is ``not-measured`` with its words. ``earlier`` are the verdicts of the suites before: on an allocation where a
    guarding check did not pass, nothing is looked at.
    """
    checks = registry.of_suite(name)
    context = Context(run, planned.name, planned.driver, log=log)
    try:
        found = stages.read(endpoints, Endpoints)
        client = stages.read(nomad, Cluster).connect(settings.nomad)
    except SifproofError as error:
        yield from run_checks(checks, None, context, blocked=str(error))
        return
    known = registry.load()
    guards = {v.allocation: blocked_by(v) for v in earlier if known[v.check].guards and v.verdict != "pass"}
    for allocation in found.allocations:
        there = Context(run, planned.name, planned.driver, allocation.node_name, allocation.id, log)
        server = _server(allocation, planned, settings, client)
        yield from run_checks(checks, server, there, blocked=guards.get(allocation.id, ""))


def _server(allocation: Allocation, planned: PlannedSandbox, settings: config.Settings, client: Client) -> Server:
    return Server(
        client=SandboxClient(allocation.url),
        slots=planned.slots,
        ready_within_s=settings.nomad.ready_within_s,
        read_allocation_file=lambda path: client.file(allocation.id, f"/alloc/data/{path}"),
        ask_nomad=lambda: check_alive(client, [parse_allocation(client.get("allocation", allocation.id))]),
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
    checks = registry.of_suite(registry.TEARDOWN)
    context = Context(run, planned.name, planned.driver, log=log)
    known: list[Allocation] = []
    reason = ""
    try:
        known = stages.read(endpoints, Endpoints).allocations
    except SifproofError as error:
        reason = str(error)
    try:
        cluster = stages.read(nomad, Cluster)
        with cluster.connect(settings.nomad) as client:
            ended = teardown.stop_and_verify(
                client,
                planned.job_id,
                known,
                collect=collect,
                deadline_s=settings.nomad.stopped_within_s,
                local=cluster.local,
            )
    except SifproofError as error:
        yield from run_checks(checks, None, context, blocked=str(error))
        return
    if not ended.allocations:
        yield from run_checks(checks, None, context, blocked=reason or "the job has no allocation")
    for allocation in ended.allocations:
        there = Context(run, planned.name, planned.driver, allocation.node, allocation.allocation, log)
        subject = Ended(allocation, ended.purged, settings.nomad.stopped_within_s)
        yield from run_checks(checks, subject, there)
