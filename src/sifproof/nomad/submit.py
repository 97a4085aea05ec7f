"""Submit a job and wait for its allocations, failing as soon as Nomad knows that it won't come to anything.

Nomad does not say "this won't work": it keeps a blocked evaluation, or an allocation that failed, and goes on waiting.
So the evaluations are read before the allocations, and the events of a task before the clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from signal import SIGBUS, SIGKILL
from typing import Any

from sifproof.errors import Fault, SifproofError
from sifproof.image import blame
from sifproof.nomad.allocations import Allocation, Event, get_job_allocations
from sifproof.nomad.client import BLOCK_S, Client
from sifproof.nomad.job import CHANGED
from sifproof.nomad.nodes import Node, describe_nodes, read_nodes

_LIFETIME_OVER = "124"
_KILLED = "look at the kernel's log on the node (`dmesg`); where it was for want of memory, raise memory"
_UNMAPPED = (
    "a part of its files could not be read any more: see who ended the mount of the image (squashfuse_ll, for want of "
    "memory perhaps), and what the kernel's log says of the disk"
)
_UNREAD = "look at the node, and at the log of its Nomad client: what ended the server is not known"
_LOG_LINES = 8
_LOG_BYTES = 65536
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def submit(client: Client, job: Mapping[str, Any]) -> str:
    """Submit ``job``; the id of the evaluation that will place it.

    Raises :class:`~sifproof.nomad.client.RejectedError` with Nomad's own words where it can't be a job.
    """
    return client.register(job)


def wait_for_allocations(
    client: Client, job_id: str, count: int, deadline_s: float, *, started: bool = True
) -> list[Allocation]:
    """The ``count`` allocations of ``job_id``, once all are placed and, with ``started``, their tasks run.

    Without ``started`` it returns as soon as addresses and ports are known, some 0.3 s before Nomad says "running".

    Raises :class:`SifproofError` as soon as Nomad knows that it won't place one or that a task has ended, and after
    ``deadline_s`` seconds.
    """
    end = time.monotonic() + deadline_s
    index = 0
    while True:
        evaluations, index = client.wait_for_change(
            "job", job_id, "evaluations", index=index, wait_s=_wait(end, BLOCK_S)
        )
        check_placed(client, job_id, evaluations)
        if evaluations and all(e["Status"] == "complete" for e in evaluations):
            break
        if time.monotonic() >= end:
            raise SifproofError(
                f"Nomad did not decide within {deadline_s:g} s where to place job {job_id}",
                why=", ".join(f"evaluation {e['ID'][:8]} is {e['Status']}" for e in evaluations),
                todo="look at the load of the cluster's servers, or raise nomad.placed_within_s",
            )
    index = 0
    while True:
        stubs, index = client.wait_for_change("job", job_id, "allocations", index=index, wait_s=_wait(end, BLOCK_S))
        known = [s for s in stubs if s["DesiredStatus"] == "run"]
        settled = len(known) >= count and all(s["ClientStatus"] != "pending" for s in known)
        ended = any(s["ClientStatus"] not in ("pending", "running") for s in known)
        if settled or ended or (len(known) >= count and not started):
            allocations = get_job_allocations(client, job_id)
            check_alive(client, allocations)
            return allocations
        if time.monotonic() >= end:
            raise _late(job_id, get_job_allocations(client, job_id), count, deadline_s)


def _wait(end: float, most: float) -> float:
    return min(most, max(end - time.monotonic(), 0.05))


def check_placed(client: Client, job_id: str, evaluations: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Raise :class:`SifproofError` where an evaluation of ``job_id`` says that an allocation can't be placed."""
    if evaluations is None:
        evaluations = client.get("job", job_id, "evaluations")
    for evaluation in evaluations:
        for group, metric in (evaluation.get("FailedTGAllocs") or {}).items():
            reasons, todo = explain_placement(metric, client)
            missing = 1 + int(metric.get("CoalescedFailures") or 0)
            raise SifproofError(
                f"Nomad can't place {missing} allocation{'s' if missing > 1 else ''} of job {job_id} (group {group})",
                why="; ".join(reasons),
                todo=todo,
            )
        if evaluation["Status"] == "failed":
            raise SifproofError(
                f"Nomad could not evaluate job {job_id}",
                why=evaluation.get("StatusDescription", ""),
                todo="look at the log of the cluster's servers",
            )


def explain_placement(metric: Mapping[str, Any], client: Client) -> tuple[list[str], str]:
    """Why no node fits, from one entry of ``FailedTGAllocs``: reasons, and what to do about the first of them."""
    reasons: list[str] = []
    todos: list[str] = []
    for constraint, nodes in (metric.get("ConstraintFiltered") or {}).items():
        if constraint == "missing drivers":
            reasons.append(f"{_nodes(nodes)} without the driver, or with an unhealthy one ({describe_nodes(client)})")
            todos.append(
                "enable the driver in the configuration of the clients, as nomad-singularity.hcl does, "
                "or choose another datacenter or driver"
            )
        else:
            reasons.append(f"{_nodes(nodes)} that do not meet {constraint!r}")
            todos.append("change the constraint, or choose another datacenter")
    for dimension, nodes in (metric.get("DimensionExhausted") or {}).items():
        collision = re.search(r"reserved port collision (\S+)=(\d+)", dimension)
        if collision:
            reasons.append(f"{_nodes(nodes)} on which the static port {collision[2]} is reserved by another allocation")
            todos.append(
                "choose another port or `port: auto`, stop the job that has it, "
                "or lower count: each allocation with a static port needs a node of its own"
            )
        else:
            reasons.append(f"{_nodes(nodes)} with too little {dimension} left")
            todos.append("ask for less cpu or memory, or stop other jobs")
    for quota in metric.get("QuotaExhausted") or []:
        reasons.append(f"the quota is exhausted: {quota}")
        todos.append("ask for less, or have the quota of the namespace raised")
    for node_class, nodes in (metric.get("ClassFiltered") or {}).items():
        reasons.append(f"{_nodes(nodes)} of class {node_class} that do not fit")
    if not reasons:
        available = metric.get("NodesAvailable") or {}
        datacenters = ", ".join(f"{n} in {dc}" for dc, n in available.items()) or "none"
        reasons.append(f"no ready and eligible node (counted: {datacenters}; {describe_nodes(client)})")
        todos.append("choose a datacenter that has nodes, or make its nodes ready and eligible")
    elif idle := _idle(metric, client):
        # Nomad's reasons are of the nodes that are left: that there are others is what is to be mended first.
        reasons.append("Nomad places nothing on " + ", ".join(f"{node.name}, which is {node.state}" for node in idle))
        back = f"have {idle[0].name} back (`{idle[0].mend}`)"
        todos.insert(0, f"{back}, or {todos[0]}" if todos else back)
    return reasons, todos[0] if todos else ""


def _idle(metric: Mapping[str, Any], client: Client) -> list[Node]:
    """The nodes on which Nomad places nothing now, of the datacenters that the job names."""
    try:
        nodes = read_nodes(client)
    except SifproofError:
        return []
    here = metric.get("NodesAvailable") or {node.datacenter for node in nodes}
    return [node for node in nodes if node.datacenter in here and not node.usable]


def _nodes(number: int) -> str:
    return f"{number} node{'s' if number != 1 else ''}"


def check_alive(client: Client, allocations: Sequence[Allocation]) -> None:
    """Raise :class:`SifproofError` where one of ``allocations`` can't be running any more, with its last words."""
    for allocation in allocations:
        error = failure_of(client, allocation)
        if error:
            raise error


def failure_of(client: Client, allocation: Allocation) -> SifproofError | None:
    """Why ``allocation`` is not pending or running any more, as an error to raise; ``None`` while it is."""
    if allocation.client_status in ("pending", "running") and not allocation.failed:
        return None
    where = _where(allocation)
    if allocation.client_status in ("lost", "unknown"):
        return SifproofError(
            f"Nomad lost {where}",
            why=f"it is {allocation.client_status}: the node stopped answering",
            todo="look at the node and at the log of its Nomad client",
        )
    if allocation.desired_status != "run" and not unplanned_end(allocation):
        return SifproofError(f"Nomad was told to end {where}", why=f"desired: {allocation.desired_status}")
    by_type: dict[str, Event] = {event.type: event for event in allocation.events}
    for kind, did in (
        ("Failed Validation", "finds the task of {} invalid"),
        ("Setup Failure", "could not set up {}"),
        ("Failed Artifact Download", "could not download what {} needs"),
        ("Driver Failure", "could not start {}"),
    ):
        if kind in by_type:
            return _not_started(by_type[kind], f"Nomad {did.format(where)}")
    ended = by_type.get("Terminated")
    if ended:
        return death_of(client, allocation, ended)
    last = allocation.events[-1] if allocation.events else None
    return SifproofError(
        f"The task of {where} does not run",
        why=f"last event {last.type}: {last.message}" if last else "no event was reported",
        todo="look at the log of the node's Nomad client",
    )


def _where(allocation: Allocation) -> str:
    return f"allocation {allocation.id[:8]} of job {allocation.job_id} on node {allocation.node_name}"


def unplanned_end(allocation: Allocation, after_ns: int = 0) -> Event | None:
    """The first end of its task later than ``after_ns``, by the clock of the node, that nobody had asked Nomad for."""
    asked = False
    for event in allocation.events:
        if event.type in ("Restart Signaled", "Killing", "Signaling"):
            asked = True
        elif event.type == "Started":
            asked = False
        elif event.type == "Terminated" and not asked and event.time_ns > after_ns:
            return event
    return None


def was_killed(event: Event, *signals: int) -> bool:
    """Whether ``event``, the end of a task, was by one of ``signals``, which a shell tells on as its exit code."""
    codes = {str(128 + number) for number in signals}
    return event.details.get("exit_code") in codes or event.details.get("signal") in {str(n) for n in signals}


def _not_started(event: Event, what: str) -> SifproofError:
    text = event.message
    fault, todo = Fault.INFRASTRUCTURE, "look at the log of the node's Nomad client"
    if "privileged" in text:
        todo = 'set `allow_privileged = true` in plugin "docker" of the clients, or `privileged: false` here'
    elif "sys_admin" in text:
        todo = 'add "sys_admin" to `allow_caps` in plugin "docker" of the clients, or `nested_sandboxes: false` here'
    elif re.search(r"port is already allocated|address already in use", text):
        todo = "a process that Nomad doesn't know holds the port on the node: end it"
    elif re.search(r"[Ff]ailed to pull|pull access denied|manifest|[Nn]o such image", text):
        todo = (
            "make the image available to the Docker engine of the node; a local image needs a tag "
            "other than `latest`, which Nomad always pulls"
        )
    elif lacking := blame.lacking(text):
        todo = lacking
    elif re.search(_NO_SUCH_PROGRAM, text):
        fault, todo = Fault.IMAGE, "correct `command` or `workdir`: the image has no such program or folder"
    return SifproofError(what, why=text, todo=todo, fault=fault)


# As runc says it of the container's own program and folder, and of nothing else.
_NO_SUCH_PROGRAM = (
    r'exec: "[^"]*": |exec \S+: (no such file|exec format error|permission denied)|exec format error|chdir to cwd'
)

# What the last words of a crash mean: (pattern in stderr, whose fault, what to do). The first that matches counts.
_LAST_WORDS: tuple[tuple[str, Fault, str], ...] = (
    (
        re.escape(CHANGED),
        Fault.INFRASTRUCTURE,
        "somebody changed or replaced the SIF on the node: find out who, and convert the image anew",
    ),
    (
        r"[Aa]ddress (is )?already in use",
        Fault.INFRASTRUCTURE,
        "a process that Nomad doesn't know holds the port on the node: end it, or choose another port or `port: auto`",
    ),
    (
        r"(apptainer|singularity)\S*: (No such file|not found)|failed to run command .*(apptainer|singularity)",
        Fault.INFRASTRUCTURE,
        "put apptainer on the PATH of the node's Nomad client",
    ),
    (
        r"\b(timeout|env): not found|(apptainer|singularity)\S*: (error while loading|symbol lookup|.*version `)",
        Fault.INFRASTRUCTURE,
        "see that `timeout`, `env` and apptainer start by hand on that node, as the user of its Nomad client",
    ),
    (
        r"[Rr]equesting capability|Failed to create (user )?namespace|user namespace|unshare",
        Fault.INFRASTRUCTURE,
        "let the node's user make user namespaces, or try the other value of `userns`",
    ),
    (
        r"No space left on device|Disk quota exceeded|Stale file handle|Input/output error|Transport endpoint is not",
        Fault.INFRASTRUCTURE,
        "look at the disk of the node, and at what its user may take of it",
    ),
    (
        r"executable file not found|No module named|can't open file",
        Fault.IMAGE,
        "correct `command`: the image has no such program",
    ),
)


def death_of(client: Client, allocation: Allocation, event: Event) -> SifproofError:
    """What ``event``, the end of the task of ``allocation``, says of it: how it ended, and who has to act."""
    where = _where(allocation)
    code, signal = event.details.get("exit_code", ""), event.details.get("signal", "0")
    how = f"signal {signal}" if signal not in ("", "0") else f"exit code {code}"
    said, unread = _said(client, allocation)
    words = unread or _last(said)
    why = how + (f"; its last words were: {words}" if words else "; it wrote nothing to stderr")
    if event.details.get("oom_killed") == "true" or (code == "137" and "OOM" in event.message):
        return out_of_memory(allocation, how)
    if code == _LIFETIME_OVER and not words:
        return SifproofError(
            f"The server of {where} was ended because its lifetime is over",
            why=how,
            todo="raise nomad.lifetime_s",
            fault=Fault.CONFIGURATION,
        )
    what = f"The server of {where} ended by itself"
    if unread:
        return SifproofError(what, why=why, todo=_UNREAD)
    blamed = blame.of_start(said) or _blame_by(words)
    if blamed is None and was_killed(event, SIGKILL):
        # By the kernel, for want of memory on the node, or by a person: no image sends that to its own server.
        what = f"The server of {where} was killed, Nomad does not know by whom"
        blamed = blame.Blame(Fault.INFRASTRUCTURE, _KILLED)
    if blamed is None and was_killed(event, SIGBUS):
        blamed = blame.Blame(Fault.INFRASTRUCTURE, _UNMAPPED)
    blamed = blamed or blame.Blame(Fault.IMAGE, "start the image by hand with the same command and mend it")
    return SifproofError(what, why=why, todo=blamed.todo, fault=blamed.fault)


def _blame_by(words: str) -> blame.Blame | None:
    """Who is to blame for a task that ended with ``words`` which are known."""
    return next((blame.Blame(fault, todo) for pattern, fault, todo in _LAST_WORDS if re.search(pattern, words)), None)


def out_of_memory(allocation: Allocation, how: str) -> SifproofError:
    """That the kernel ended the task of ``allocation`` at the limit of memory that its job sets."""
    return SifproofError(
        f"The kernel ended the server of {_where(allocation)}",
        why=f"it used more than the memory reserved for it ({how})",
        todo="raise memory",
        fault=Fault.CONFIGURATION,
    )


def last_words(client: Client, allocation: Allocation, stream: str = "stderr") -> str:
    """The last lines that the task of ``allocation`` wrote to ``stream``, on one line; empty where it wrote none."""
    said, unread = _said(client, allocation, stream)
    return unread or _last(said)


def _said(client: Client, allocation: Allocation, stream: str = "stderr") -> tuple[str, str]:
    """What the task of ``allocation`` wrote to ``stream``, its end; and why that can't be read."""
    try:
        return client.logs(allocation.id, allocation.task, stream, _LOG_BYTES), ""
    except SifproofError as error:  # a node that is gone can't be asked; the crash is the news
        return "", f"(not readable: {error})"


def _last(text: str) -> str:
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    return " | ".join(lines[-_LOG_LINES:])


def _late(job_id: str, allocations: Sequence[Allocation], count: int, deadline_s: float) -> SifproofError:
    states = [
        f"{a.id[:8]} on {a.node_name} is {a.client_status}"
        + (f" after {a.events[-1].type!r}: {a.events[-1].message}" if a.events else "")
        for a in allocations
    ]
    return SifproofError(
        f"Job {job_id} did not run within {deadline_s:g} s",
        why=f"{len(allocations)} of {count} allocations are placed; " + "; ".join(states),
        todo="look at the log of the node's Nomad client, or raise nomad.placed_within_s",
    )
