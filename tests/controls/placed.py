"""Sandboxes that really run, with one thing changed: the reference image under a local agent of the test's own.

Defects of the job, the image and the node are planted here; those of the server alone need no Nomad, see
``test_server_defects.py``.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import naive
from catalogue import CONTROLS
from checkout import wait_until

from sifproof import config, documents
from sifproof.checks.engine import policy, registry
from sifproof.checks.engine.runner import Context, blocked_by, run_checks
from sifproof.checks.engine.subject import Placement, Server
from sifproof.checks.engine.suite import as_deployed, server_of
from sifproof.errors import SifproofError
from sifproof.image import convert, digest, engine, source
from sifproof.image.provenance import SifStore
from sifproof.image.records import LoadedImage
from sifproof.image.reference import build_reference_image
from sifproof.nomad import teardown
from sifproof.nomad.agent import local
from sifproof.nomad.cluster import Cluster, Endpoints
from sifproof.records import PlannedSandbox, Verdict, write_atomically
from sifproof.run import Run, new_id
from sifproof.workflow.deploy import alone, free_port, render_job, submit

SLOTS = 3
TRIED: set[str] = set()
"""The controls of which it was seen what would have been noticed of them without the gate."""


@dataclass
class House:
    """A local agent and the images; everything of it lies below ``folder``."""

    folder: Path
    images: Path
    run: Run = field(init=False)
    cluster: Cluster = field(init=False)

    def __post_init__(self) -> None:
        self.run = Run(new_id(), self.folder / "results")
        agent = local.start(self.run.id, self.folder / "agents", os.getpid(), log=self.folder / "agent.log")
        self.cluster = Cluster(address=agent.address, version="", local=True, directory=str(agent.directory))

    def close(self) -> None:
        local.stop(self.run.id, self.folder / "agents")

    def image_file(self, driver: str, name: str) -> Path:
        """What the image stage writes for the reference image under ``driver``."""
        path = self.run.folder / "images" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = source.parse(build_reference_image(self.images / "reference").source)
        identity = digest.digest(image, SifStore(self.images / "sif").digests)
        log = self.folder / f"{name}.image.log"
        if driver == "singularity":
            documents.write(path, convert.convert(image, self.images / "sif", log=log, identity=identity))
        else:
            loaded = engine.load_into_engine(image, name, log=log, identity=identity)
            documents.write(path, LoadedImage.of(str(image), identity, loaded, {}))
        return path

    def free_port(self) -> int:
        """A static port that the node has free."""
        sandbox = config.load({"sandboxes": {"any": {"driver": "singularity"}}})
        jobs = self.run.folder / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        with self.cluster.connect(sandbox.nomad) as client, alone(jobs):
            return free_port(client, sandbox, sandbox.sandboxes["any"], jobs)

    @contextlib.contextmanager
    def sandbox(
        self,
        name: str,
        *,
        driver: str = "singularity",
        line: Callable[[str], str] = lambda line: line,
        change: Callable[[dict[str, Any]], None] = lambda job: None,
        image: Path | None = None,
        ready: bool = True,
        **settings: Any,
    ) -> Iterator[Server]:
        """A running sandbox, and its end.

        ``settings`` are keys of a sandbox's config; ``line`` changes the shell line of the task, ``change`` the job
        as it is submitted; ``image`` stands for the file that the image stage wrote. Returns with the server ready,
        and where ``name`` is that of a control, after :func:`try_without_gate`.
        """
        values = {"driver": driver, "slots": SLOTS, "cpu": 100, "memory": 128, **settings}
        whole = config.load({"sandboxes": {name: values}})
        planned = PlannedSandbox(
            name=name,
            driver=driver,
            image="reference",
            slots=whole.sandboxes[name].slots,
            count=1,
            suites=[],
            job_id=self.run.job_id(name),
        )
        file = image or self.image_file(driver, name)
        output = self.run.folder / "jobs" / f"{name}.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        render_job(self.run, planned, whole, self.cluster, image=str(file), output=output)
        job = documents.read_document(output)
        config_of_task = job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]
        before = config_of_task["args"][-1]
        config_of_task["args"][-1] = line(before)
        change(job)
        mode = output.stat().st_mode & 0o777
        write_atomically(output, documents.json.dumps(job), mode)  # who picks a port reads all of them
        with self.cluster.connect(whole.nomad) as client:
            try:
                endpoints: Endpoints = submit(planned, whole, self.cluster, str(output))
                server = server_of(
                    Placement(
                        run=self.run.id,
                        nomad=client,
                        cluster=self.cluster,
                        settings=whole,
                        sandbox=as_deployed(whole.sandboxes[name], planned.slots, job),
                        allocation=endpoints.allocations[0],
                        endpoints=endpoints,
                        job=job,
                        image=file,
                        job_file=output,
                    )
                )
                if ready:
                    wait_until(lambda: answers(server), 60)
                    if name in CONTROLS and CONTROLS[name].served:
                        try_without_gate(name, server)
                with server.keep:
                    yield server
            finally:
                teardown.stop_and_verify(
                    client, planned.job_id, [], collect=self.run.folder / "collected" / name, deadline_s=20, local=True
                )
                with alone(output.parent):  # others read all jobs for a port of their own
                    output.unlink()  # its port is free again: a house has forty


def try_without_gate(name: str, server: Server) -> None:
    """Of the control ``name``, planted in ``server``, as much is noticed without the gate as the matrix says."""
    TRIED.add(name)
    planted = CONTROLS[name]
    noticed = naive.script_stops(server.client.url, server.placed.token), naive.probe_fails(server.client.url)
    assert tuple(map(bool, noticed)) == (planted.plain, planted.health), noticed


def answers(server: Server) -> bool:
    """Whether the server answers ``/health``."""
    with contextlib.suppress(SifproofError):
        return bool(server.client.health())
    return False


def verdicts(
    server: Server, suites: Iterable[str], without: Collection[str] = (), limits: Mapping[str, float] | None = None
) -> dict[str, Verdict]:
    """The verdict of each check of ``suites`` that applies to the server's driver, as a run of the gate records it.

    ``without`` are those that have nothing to look at here; ``limits`` go before those of the sandbox's config.
    """
    sandbox = server.placed.sandbox
    chosen = list(suites)
    planned = policy.plan_checks(sandbox, chosen)
    counts = {"advisory": planned["advisory"], "limits": planned["limits"] | dict(limits or {})}
    context = Context(server.placed.run, "box", sandbox.driver, log=io.StringIO(), **counts)
    checks = [
        c for suite in chosen for c in registry.of_suite(suite) if c.id in planned["checks"] and c.id not in without
    ]
    return {v.check: v for v in run_checks(checks, server, context)}


def red(found: dict[str, Verdict], unclear: Iterable[str] = ()) -> set[str]:
    """The checks that failed, where every other one found out what it asks.

    A check that fails once and then passes, or that could not look, is no proof of what was planted: only those named
    in ``unclear`` may, the ones kept from looking by a guard that failed, and those that do not apply.
    """
    failed = {check for check, verdict in found.items() if verdict.verdict == "fail"}
    kept = {blocked_by(found[check]) for check in failed if registry.load()[check].guards}
    left = {
        check: f"{verdict.verdict}: {verdict.message}"
        for check, verdict in found.items()
        if verdict.verdict == "flaky" or (could_not_look(verdict) and verdict.message not in kept)
    }
    assert left.keys() == set(unclear), left
    return failed


def could_not_look(verdict: Verdict) -> bool:
    """Whether the check found nothing out that it should have: more than that it does not apply here."""
    return verdict.verdict == "not-measured" and (verdict.required or verdict.hindered)
