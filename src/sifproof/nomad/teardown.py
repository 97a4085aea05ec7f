"""Stop a job and find out what is left of it. Facts only: what is good enough is judged by the checks.

Nomad's own word is not enough: a purged job's allocations are gone from its answers at once, while their processes
still run. So after the stop each port is tried, and the machine that the allocation ran on is searched: this one by
:mod:`.node.leftovers`, another by a script that runs there (:mod:`.node.remote_leftovers`).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.nomad.allocations import Allocation, get_job_allocations
from sifproof.nomad.client import BLOCK_S, Client, NotFoundError
from sifproof.nomad.job import META_RUN, META_VERSION, kill_timeout_s
from sifproof.nomad.node import leftovers, remote_leftovers
from sifproof.nomad.node.leftovers import Process
from sifproof.nomad.node.port import why_taken
from sifproof.records import write_atomically

_LOG_BYTES = 1_000_000
_MISSED = "-1"
"""Exit code that Nomad reports when its executor ended before it could say: now and then, on a stop."""
_BACKOFF_S = (0.002, 0.1)
_CONNECT_S = 1.0


class AllocationEnd(BaseModel):
    """What became of one allocation. Seconds count from the request to stop; ``None``: not within the deadline."""

    model_config = ConfigDict(frozen=True)

    allocation: str
    node: str
    endpoint: str = Field(description="URL its server answered at; empty where it was never placed")
    port_closed_s: float | None = Field(description="until its port refused connections")
    port_seen: str = Field("", description="what its port did last, where it did not refuse")
    port_taken: str = Field("", description="why no server could listen on its port afterwards, where none could")
    port_untried: str = Field("", description="why that could not be tried")
    client_status: str = Field(description="what Nomad said last: complete, failed, lost, …; running: it did not end")
    terminal_s: float | None = Field(description="until Nomad said that it has ended")
    exit_code: int | None = Field(description="of its task, 143 for one that SIGTERM ended; None where Nomad missed it")
    killed: bool | None = Field(
        description="whether it did not end on SIGTERM and was killed after kill_timeout; None where nobody knows"
    )
    looked_at: bool = Field(description="whether processes and mounts could be looked for, here or on its node")
    unseen: str = Field("", description="why they could not")
    ended_s: float | None = Field(
        description="until the processes seen before the stop had ended; None if they were not seen from here"
    )
    processes: list[Process] = Field(description="processes of it that are left")
    mounts: list[str] = Field(description="mount points of it that are left")
    containers: list[str] = Field(description="Docker containers of it that are left")
    containers_unseen: str = Field("", description="why its containers could not be looked at, where it has such")


class Teardown(BaseModel):
    """What became of a job."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    purged: bool = Field(description="whether Nomad has forgotten the job")
    allocations: list[AllocationEnd]
    collected: list[str] = Field(description="files with its evaluations, events and logs, read before the purge")
    duration_s: float


def stop_and_verify(
    client: Client,
    job_id: str,
    allocations: Sequence[Allocation] | None = None,
    *,
    collect: Path,
    deadline_s: float = 10.0,
    local: bool = False,
    run: str = "",
) -> Teardown:
    """Stop and purge ``job_id``, and look for what is left of its ``allocations`` (Nomad's own list where absent).

    In order: its evaluations, the state of its allocations and their logs go to files in ``collect``; the job is
    stopped; ports, processes and Nomad's word are waited for, ``deadline_s`` seconds in all; the job is purged; ports,
    processes, mounts and containers are looked for once more.

    Processes and mounts are looked for here where the allocation runs on this machine, as far as this user may see it:
    where ``local`` says so, or where processes of it are seen before the stop. Else a script looks on its node, before
    the stop and after it; ``run`` is the run's id, for the names of these jobs.

    Raises :class:`SifproofError` where Nomad can't be asked. A job that Nomad does not know is no error.
    """
    begin = time.monotonic()
    # Also what Nomad placed beside those that the caller knows of.
    known = {a.id: a for a in allocations or ()} | {a.id: a for a in _listed(client, job_id)}
    tasks = _tasks(client, job_id)
    drivers = {task["Driver"] for task in tasks}
    ids = list(known)
    before = leftovers.find_processes(ids) if ids else {}
    here = {a.node_id for a in known.values() if local or before[a.id]}
    looked = {a.id: local or a.node_id in here for a in known.values()}
    afar = {a.id: a.node_id for a in known.values() if not looked[a.id]}
    noted = remote_leftovers.find(client, afar, run=run)

    with _pidfds(before) as pidfds:
        stopped = time.monotonic()
        end = stopped + deadline_s
        client.deregister(job_id, purge=False)
        # At once: a process or a port that stays must not make the rest look late.
        with ThreadPoolExecutor(2 * len(known) + 1) as watchers:
            ports = {a.id: watchers.submit(_wait_closed, a, stopped, end) for a in known.values()}
            processes = {key: watchers.submit(_wait_ended, held, stopped, end) for key, held in pidfds.items()}
            terminal = _wait_terminal(client, job_id, ids, stopped, end)
            closed = {key: port.result() for key, port in ports.items()}
            gone = {key: process.result() for key, process in processes.items()}

        final = {a.id: a for a in _listed(client, job_id)}
        collected = _collect(client, job_id, [final.get(i, known[i]) for i in ids], collect)
        client.deregister(job_id, purge=True)
        purged = _forgotten(client, job_id)
        rest = max(end - time.monotonic(), 0.5)
        there = remote_leftovers.find(
            client, afar, run=run, before=noted, within_s=rest, containers="docker" in drivers
        )

        ends = []
        for allocation in known.values():
            last = final.get(allocation.id, allocation)
            left, mounts, containers, unseen = [], [], [], ""
            if looked[allocation.id]:
                rest = max(end - time.monotonic(), 0.5)
                left = _left(allocation.id, pidfds[allocation.id], rest)
                mounts = leftovers.wait_unmounted(allocation.id, max(end - time.monotonic(), 0.5))
                if "docker" in drivers:
                    try:
                        docker = host_tools.require("docker")
                        containers = leftovers.find_containers(allocation.id, str(docker.path))
                    except SifproofError as error:
                        unseen = str(error)
            else:
                seen = there[allocation.id]
                left, mounts, containers, unseen = seen.processes, seen.mounts, seen.containers, seen.containers_unseen
            taken, untried = "", "it was never placed"
            if allocation.port:
                rest = max(end - time.monotonic(), 0.5)
                here_too = looked[allocation.id]
                taken, untried = why_taken(client, allocation, here=here_too, run=run, within_s=rest)
            ended_s = gone[allocation.id] if looked[allocation.id] and pidfds[allocation.id] else None
            ends.append(
                AllocationEnd(
                    allocation=allocation.id,
                    node=allocation.node_name,
                    endpoint=allocation.url if allocation.port else "",
                    port_closed_s=closed[allocation.id][0],
                    port_seen=closed[allocation.id][1],
                    port_taken=taken,
                    port_untried=untried,
                    client_status=last.client_status,
                    terminal_s=terminal.get(allocation.id),
                    exit_code=_exit_code(last),
                    killed=_was_killed(last, ended_s, terminal.get(allocation.id), tasks),
                    looked_at=looked[allocation.id] or not there[allocation.id].unseen,
                    unseen="" if looked[allocation.id] else there[allocation.id].unseen,
                    ended_s=ended_s,
                    processes=left,
                    mounts=mounts,
                    containers=containers,
                    containers_unseen=unseen,
                )
            )
    return Teardown(
        job_id=job_id,
        purged=purged,
        allocations=ends,
        collected=[str(path) for path in collected],
        duration_s=round(time.monotonic() - begin, 3),
    )


def _tasks(client: Client, job_id: str) -> list[dict[str, Any]]:
    try:
        job = client.get("job", job_id)
    except NotFoundError:
        return []
    return [task for group in job["TaskGroups"] for task in group["Tasks"]]


def _listed(client: Client, job_id: str) -> list[Allocation]:
    try:
        return get_job_allocations(client, job_id)
    except NotFoundError:
        return []


_Held = list[tuple[Process, int]]


@contextmanager
def _pidfds(processes: dict[str, list[Process]]) -> Iterator[dict[str, _Held]]:
    """A pidfd for each process that still runs: it goes on meaning that process, whatever becomes of the number."""
    held: dict[str, _Held] = {}
    for key, several in processes.items():
        opened = leftovers.open_pidfds([p.pid for p in several])
        held[key] = [(p, opened[p.pid]) for p in several if p.pid in opened]
    try:
        yield held
    finally:
        for pairs in held.values():
            for _, descriptor in pairs:
                os.close(descriptor)


def _left(allocation: str, held: _Held, deadline_s: float) -> list[Process]:
    """The processes of ``allocation`` that are still there after ``deadline_s`` seconds.

    Those seen before the stop are followed by their pidfd: an orphaned squashfuse_ll shows no trace of where it
    belongs any more. The others are searched for anew.
    """
    end = time.monotonic() + deadline_s
    leftovers.wait_ended([descriptor for _, descriptor in held], deadline_s)
    survivors = {p.pid: p for p, descriptor in held if not leftovers.wait_ended([descriptor], 0)}
    for process in leftovers.wait_none(
        lambda: leftovers.find_processes([allocation])[allocation], max(end - time.monotonic(), 0)
    ):
        survivors.setdefault(process.pid, process)
    return list(survivors.values())


def _wait_closed(allocation: Allocation, stopped: float, end: float) -> tuple[float | None, str]:
    """Seconds from ``stopped`` until the port of ``allocation`` refuses; ``None`` if it does not before ``end``.

    Then also what was seen last. A node that does not answer, or to which no way leads, says nothing about its port.
    Nothing tells when a port of another machine closes: it is tried again and again, ever more slowly.
    """
    if not allocation.port:
        return 0.0, ""
    pause, longest = _BACKOFF_S
    while True:
        try:
            with socket.create_connection((allocation.address, allocation.port), _CONNECT_S):
                seen = "it still accepts connections"
        except ConnectionRefusedError:
            return time.monotonic() - stopped, ""
        except TimeoutError:
            seen = f"no answer to a connection within {_CONNECT_S:g} s"
        except OSError as error:
            seen = f"a connection failed: {error.strerror or error}"
        if time.monotonic() >= end:
            return None, seen
        time.sleep(pause)
        pause = min(pause * 2, longest)


def _wait_ended(held: _Held, stopped: float, end: float) -> float | None:
    """Seconds from ``stopped`` until the server's processes of an allocation had ended; ``None``: they did not."""
    ended = leftovers.wait_ended([d for p, d in held if not p.is_nomad], max(end - time.monotonic(), 0))
    return time.monotonic() - stopped if ended else None


def _wait_terminal(client: Client, job_id: str, ids: Collection[str], stopped: float, end: float) -> dict[str, float]:
    """Seconds from ``stopped`` until Nomad said of each of ``ids`` that it has ended; without those it did not."""
    ended: dict[str, float] = {}
    index = 0
    while len(ended) < len(ids):
        wait_s = min(BLOCK_S, max(end - time.monotonic(), 0.05))
        stubs, index = client.wait_for_change("job", job_id, "allocations", index=index, wait_s=wait_s)
        live = {stub["ID"] for stub in stubs if stub["ClientStatus"] in ("pending", "running", "unknown")}
        now = time.monotonic()
        for key in ids:
            if key not in live:
                ended.setdefault(key, now - stopped)
        if now >= end:
            break
    return ended


def _forgotten(client: Client, job_id: str) -> bool:
    try:
        client.get("job", job_id)
    except NotFoundError:
        return True
    return False


def _exit_code(allocation: Allocation) -> int | None:
    """The task's last exit code; None where Nomad missed it."""
    code = next((e.details.get("exit_code") for e in reversed(allocation.events) if e.type == "Terminated"), None)
    return int(code) if code and code != _MISSED else None


def _was_killed(
    allocation: Allocation, ended_s: float | None, terminal_s: float | None, tasks: Iterable[Mapping[str, Any]]
) -> bool | None:
    """Whether SIGKILL ended the task, which Nomad sends after its kill timeout, where SIGTERM did not.

    ``ended_s`` and ``terminal_s`` are the seconds after which its processes were gone, and Nomad said so; ``tasks`` are
    those of its job. Where Nomad missed its exit code, what ended before the kill timeout was not killed, and of the
    rest nobody knows (None).
    """
    ends = [e.details for e in allocation.events if e.type == "Terminated"]
    # From within a container 137 tells the same as signal 9.
    if any(end.get("signal") == "9" or end.get("exit_code") == "137" for end in ends):
        return True
    if _exit_code(allocation) is not None:
        return False
    seen_s = min((s for s in (ended_s, terminal_s) if s is not None), default=None)
    patience_s = next((kill_timeout_s(task) for task in tasks if task["Name"] == allocation.task), 0.0)
    return False if seen_s is not None and seen_s < patience_s else None


def _collect(client: Client, job_id: str, allocations: Sequence[Allocation], folder: Path) -> list[Path]:
    """Write what Nomad knows of ``job_id`` to ``folder``: after the purge it can't be asked."""
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        write_atomically(folder / name, text)
        written.append(folder / name)

    try:
        write("evaluations.json", json.dumps(client.get("job", job_id, "evaluations"), indent=2))
    except NotFoundError:
        return written
    for allocation in allocations:
        short = allocation.id[:8]
        try:
            raw = client.get("allocation", allocation.id)
            # The job stands beside it in the run's folder; its times and events are what counts here.
            raw.pop("Job", None)
            write(f"{short}.json", json.dumps(raw, indent=2))
            for stream in ("stdout", "stderr"):
                write(f"{short}.{stream}.log", client.logs(allocation.id, allocation.task, stream, _LOG_BYTES))
        except SifproofError as error:  # a lost node can't give its logs; that must not keep the job alive
            write(f"{short}.unreadable.txt", f"{error}\n")
    return written


def jobs_of(client: Client, run: str | None) -> list[str]:
    """The ids of the jobs that sifproof made for ``run``, or for any run.

    By the mark that each carries: the id of one run may begin with that of another.
    """
    jobs = client.get("jobs", params={"prefix": "sifproof-", "meta": "true"})
    marks = {job["ID"]: job.get("Meta") or {} for job in jobs}
    return [id for id, meta in marks.items() if META_VERSION in meta and run in (None, meta.get(META_RUN))]


def sweep(client: Client, run: str | None = None) -> list[str]:
    """Stop and purge the jobs of ``run``, or of every run; the ids of those purged."""
    swept = jobs_of(client, run)
    for job in swept:
        client.deregister(job, purge=True)
    return swept
