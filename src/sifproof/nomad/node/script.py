"""Scripts on the nodes of a cluster: short jobs of Nomad's, run by ``raw_exec`` as the user of the node's client.

What a node is like can be asked nobody but the node. A script is POSIX shell, for nothing else is on every node; what
it prints is its answer. Such a job needs no capability that submitting a sandbox does not need.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from sifproof import __version__
from sifproof.errors import SifproofError
from sifproof.nomad.allocations import Allocation, get_job_allocations
from sifproof.nomad.client import BLOCK_S, Client
from sifproof.nomad.job import META_RUN, META_VERSION, quote, validate_id
from sifproof.nomad.nodes import read_nodes
from sifproof.nomad.submit import check_alive, check_placed, wait_for_allocations

TASK = "probe"

ANSWER_BYTES = 4_000_000
"""The most that is read of what a script prints."""

_PLACED_S = 30.0

_CLEARED_S = 15
"""How long a script may take to clear away what it made, once it is told to end."""

_LOGGED_S = 10.0
"""How long Nomad may take to write down what a task printed that has ended."""


class ProbeError(SifproofError):
    """A script could not be run on a node, or failed there."""


def _pauses(within_s: float) -> Iterator[float]:
    """Pauses between looks at a log, for ``within_s`` seconds: it is a file, and no event tells that it has grown."""
    end, pause = time.monotonic() + within_s, 0.02
    while True:
        yield pause
        if time.monotonic() > end:
            return
        pause = min(pause * 2, 0.2)


class _Marked:
    """A script that prints a mark before and after what it prints itself: they show whether all of it has arrived."""

    def __init__(self, script: str) -> None:
        mark = secrets.token_hex(8)
        self._begin, self._end = f"{mark}\n", f"\n{mark}\n"
        # Told to end, it waits for the script, which may have something to clear away.
        self.text = f"trap : HUP INT TERM\necho {mark}\n(\n{script}\n)\ncode=$?\nprintf '\\n%s\\n' {mark}\nexit $code"

    def whole(self, log: str) -> str | None:
        """What the script printed; None where ``log`` lacks its beginning or its end."""
        if not (log.startswith(self._begin) and log.endswith(self._end)):
            return None
        return log[len(self._begin) : -len(self._end)]

    def part(self, log: str) -> str:
        """What of it there is in ``log``, whose end need not have come."""
        return log.removeprefix(self._begin).removesuffix(self._end)


def create_probe_job(
    job_id: str,
    script: str,
    *,
    kind: Literal["batch", "service", "sysbatch"] = "batch",
    node_id: str = "",
    node_ids: Sequence[str] = (),
    datacenters: Sequence[str] = ("*",),
    environment: Mapping[str, str] | None = None,
    lifetime_s: float = 60.0,
    namespace: str | None = None,
    region: str | None = None,
    run: str = "",
) -> dict[str, Any]:
    """A job that runs ``script``: on node ``node_id``, or with ``sysbatch`` on every node of ``datacenters``.

    ``node_ids``, where it is not empty, are those of them that count.
    It ends by itself after ``lifetime_s`` seconds. ``environment`` are variables of the script, for what must not be
    part of its text; a value must hold no ``${``.
    """
    constraints = [{"LTarget": "${node.unique.id}", "Operand": "=", "RTarget": node_id}] if node_id else []
    if node_ids:
        one_of = f"^({'|'.join(validate_id(one) for one in node_ids)})$"
        constraints.append({"LTarget": "${node.unique.id}", "Operand": "regexp", "RTarget": one_of})
    policies: dict[str, Any] = {"RestartPolicy": {"Attempts": 0, "Mode": "fail"}}
    if kind != "sysbatch":
        policies["ReschedulePolicy"] = {"Attempts": 0, "Unlimited": False}
    return {
        "Job": {
            "ID": job_id,
            "Name": job_id,
            "Type": kind,
            "Datacenters": list(datacenters),
            **({"Namespace": namespace} if namespace else {}),
            **({"Region": region} if region else {}),
            "Meta": {META_VERSION: __version__, META_RUN: run},
            "Constraints": constraints,
            **({"Update": {"MaxParallel": 0}} if kind == "service" else {}),
            "TaskGroups": [
                {
                    "Name": TASK,
                    "Count": 1,
                    **policies,
                    "EphemeralDisk": {"SizeMB": 10},
                    "Tasks": [
                        {
                            "Name": TASK,
                            "Driver": "raw_exec",
                            "Config": {
                                "command": "/bin/sh",
                                "args": [
                                    "-c",
                                    f"exec timeout -k {_CLEARED_S} {lifetime_s:g} /bin/sh -c {quote(script)}",
                                ],
                            },
                            "Env": dict(environment or {}),
                            "Resources": {"CPU": 20, "MemoryMB": 32},
                            "KillSignal": "SIGTERM",
                            "KillTimeout": (_CLEARED_S + 5) * 1_000_000_000,
                            "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 5},
                        }
                    ],
                }
            ],
        }
    }


class Node:
    """One node, looked at through Nomad."""

    def __init__(self, client: Client, node_id: str, name: str, *, run: str) -> None:
        self.client = client
        self.id = node_id
        self.name = name
        self._run = run

    def run(self, script: str, *, timeout_s: float = 30.0) -> str:
        """What ``script`` prints on the node.

        Raises :class:`ProbeError` where it can't be placed there, fails, does not end in time, or where not all of what
        it printed can be read.
        """
        marked = _Marked(script)
        with self._in_words(), self._submitted(marked.text, "batch", timeout_s) as job_id:
            allocation = self._ended(job_id, timeout_s)
            if allocation.failed or allocation.client_status != "complete":
                words = self.client.logs(allocation.id, TASK, "stderr", 2000).strip()
                raise ProbeError(
                    f"A script that looks at node {self.name} failed there",
                    why=words or "; ".join(e.message for e in allocation.events[-2:] if e.message),
                    todo="look at the log of the node's Nomad client",
                )
            for pause in _pauses(_LOGGED_S):
                log = self.client.logs(allocation.id, TASK, "stdout", ANSWER_BYTES)
                if (said := marked.whole(log)) is not None:
                    return said
                time.sleep(pause)
        raise ProbeError(
            f"What a script printed on node {self.name} did not arrive as a whole",
            why=_lacking(log),
            todo="look at the log and the disk of the node's Nomad client",
        )

    @contextmanager
    def hold(self, script: str, *, ready: str, timeout_s: float = 30.0, lifetime_s: float = 600.0) -> Iterator[str]:
        """What ``script`` prints on the node before the line ``ready``; it goes on running until the block ends.

        It is then told to end by SIGTERM, has some seconds to clear away what it made (``trap``), and has ended when
        the block is left. Raises :class:`ProbeError` where it is not ready in time.
        """
        with self._submitted(script, "service", lifetime_s) as job_id:
            with self._in_words():
                before = self._said_before(ready, job_id, timeout_s)
            try:
                yield before
            finally:
                with self._in_words():
                    self.client.deregister(job_id, purge=False)
                    self._ended(job_id, _PLACED_S)

    def _said_before(self, ready: str, job_id: str, timeout_s: float) -> str:
        (allocation,) = wait_for_allocations(self.client, job_id, 1, _PLACED_S)
        for pause in _pauses(timeout_s):
            before, found, _ = self.client.logs(allocation.id, TASK, "stdout", ANSWER_BYTES).partition(f"{ready}\n")
            if found:
                return before
            check_alive(self.client, get_job_allocations(self.client, job_id))
            time.sleep(pause)
        raise ProbeError(
            f"A script that looks at node {self.name} was not ready within {timeout_s:g} s",
            why=self.client.logs(allocation.id, TASK, "stderr", 2000).strip(),
        )

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Whatever keeps a script from being run is a :class:`ProbeError`: it says nothing of what was to be seen."""
        try:
            yield
        except ProbeError:
            raise
        except SifproofError as error:
            why = f"{error.what.rstrip('.')}: {error.why}" if error.why else error.what
            raise ProbeError(
                f"No script could be run on node {self.name}", why=why, todo=error.todo, fault=error.fault
            ) from error

    @contextmanager
    def _submitted(self, script: str, kind: Literal["batch", "service"], lifetime_s: float) -> Iterator[str]:
        # The run's id first: what ends a run that was interrupted knows its jobs by it.
        job_id = f"sifproof-{self._run}-probe-{secrets.token_hex(4)}"
        job = create_probe_job(
            job_id,
            script,
            kind=kind,
            node_id=self.id,
            lifetime_s=lifetime_s,
            namespace=self.client.namespace,
            region=self.client.region,
            run=self._run,
        )
        with self._in_words():
            self.client.register(job)
        try:
            yield job_id
        finally:
            # It ends by itself, and what ends the run's jobs knows it.
            with suppress(SifproofError):
                self.client.deregister(job_id, purge=True)

    def _ended(self, job_id: str, within_s: float) -> Allocation:
        """The one allocation of ``job_id`` once it has ended."""
        end = time.monotonic() + within_s + _PLACED_S
        index = 0
        while True:
            stubs, index = self.client.wait_for_change("job", job_id, "allocations", index=index, wait_s=BLOCK_S)
            if stubs and all(stub["ClientStatus"] not in ("pending", "running") for stub in stubs):
                return get_job_allocations(self.client, job_id)[0]
            if not stubs:
                check_placed(self.client, job_id)
            if time.monotonic() > end:
                raise ProbeError(
                    f"A script that looks at node {self.name} did not end within {within_s:g} s",
                    todo="look at the node and at the log of its Nomad client",
                )


@dataclass(frozen=True)
class Answer:
    """What a script came to on one of several nodes. With a ``fault`` the output may be a part, or empty."""

    node_id: str
    node_name: str
    output: str = ""
    fault: str = ""
    at: float = 0.0
    """When the answer was there, in seconds since 1970 by this machine's clock."""
    created_s: float = 0.0
    """When the script was placed, in seconds since 1970 by the clock of Nomad's servers."""


def run_on_nodes(
    client: Client, script: str, *, run: str, node_ids: Sequence[str] = (), timeout_s: float = 30.0
) -> list[Answer]:
    """What ``script`` prints on every node that takes raw_exec jobs, or on those of ``node_ids``, by name.

    It runs on all of them at once, as one job, and each may fail by itself. Nodes that are down, draining, not
    eligible, or without a healthy raw_exec are left out.

    Raises :class:`SifproofError` where Nomad can't be asked, or refuses the job.
    """
    wanted = {
        node.id: node.name
        for node in read_nodes(client)
        if node.usable
        and (node.id in node_ids or not node_ids)
        and (driver := node.drivers.get("raw_exec"))
        and driver.detected
        and driver.healthy
    }
    if not wanted:
        return []
    job_id = f"sifproof-{run}-probe-{secrets.token_hex(4)}"
    marked = _Marked(script)
    job = create_probe_job(
        job_id,
        marked.text,
        kind="sysbatch",
        node_ids=node_ids,
        lifetime_s=timeout_s,
        namespace=client.namespace,
        region=client.region,
        run=run,
    )
    evaluation = client.register(job)
    try:
        answers = _answers(client, evaluation, wanted, marked, time.monotonic() + timeout_s + _PLACED_S)
    finally:
        client.deregister(job_id, purge=True)
    return sorted(answers, key=lambda answer: answer.node_name)


def _answers(client: Client, evaluation: str, wanted: Mapping[str, str], marked: _Marked, end: float) -> list[Answer]:
    """The answer of each node of ``wanted`` (name by id) to the job that ``evaluation`` places.

    What is not there at ``end`` is a fault.
    """
    index = 0
    while True:
        decided, index = client.wait_for_change("evaluation", evaluation, index=index, wait_s=BLOCK_S)
        if decided["Status"] not in ("pending", "blocked") or time.monotonic() > end:
            break
    ended: dict[str, _Ended] = {}
    index = 0
    while True:
        wait_s = min(BLOCK_S, max(end - time.monotonic(), 0.05))
        stubs, index = client.wait_for_change("job", decided["JobID"], "allocations", index=index, wait_s=wait_s)
        late = time.monotonic() > end
        for stub in stubs:
            node = stub["NodeID"]
            if node in wanted and (late or stub["ClientStatus"] not in ("pending", "running")):
                ended.setdefault(node, _Ended(stub, time.time()))
        nowhere = wanted.keys() - {stub["NodeID"] for stub in stubs}
        if late or ended.keys() | nowhere >= wanted.keys():
            break
    left = list(ended.values())
    for pause in _pauses(_LOGGED_S):
        left = [one for one in left if not one.read(client, marked)]
        if not left:
            break
        time.sleep(pause)
    words = "; ".join(str(reason) for reason in (decided.get("FailedTGAllocs") or {}).get(TASK, {}).items())
    fault = f"Nomad placed nothing there ({words or 'no reason given'})"
    return [
        *(Answer(node, wanted[node], fault=fault) for node in nowhere),
        *(one.answer(client, marked) for one in ended.values()),
    ]


@dataclass
class _Ended:
    """An allocation of the script that has ended, or for which there is no more time."""

    stub: Mapping[str, Any]
    at: float
    log: str = ""
    error: str = ""

    def read(self, client: Client, marked: _Marked) -> bool:
        """Read what it printed; whether more of it can't come."""
        try:
            self.log = client.logs(self.stub["ID"], TASK, "stdout", ANSWER_BYTES)
        except SifproofError as error:
            self.error = str(error)
            return True
        return marked.whole(self.log) is not None or self.stub["ClientStatus"] in ("pending", "running", "lost")

    def answer(self, client: Client, marked: _Marked) -> Answer:
        """What became of it."""
        said, status = marked.whole(self.log), self.stub["ClientStatus"]
        fault = self.error
        if not fault and status != "complete":
            events = [e for state in (self.stub.get("TaskStates") or {}).values() for e in state.get("Events") or []]
            words = "; ".join(str(e.get("DisplayMessage") or e.get("Type")) for e in events[-2:])
            with suppress(SifproofError):
                words = client.logs(self.stub["ID"], TASK, "stderr", 2000).strip() or words
            fault = f"the script is {status} there: {words or 'no word of it'}"
        elif not fault and said is None:
            fault = f"what the script printed did not arrive as a whole: {_lacking(self.log)}"
        return Answer(
            node_id=self.stub["NodeID"],
            node_name=self.stub["NodeName"],
            output=marked.part(self.log) if said is None else said,
            fault=fault,
            at=self.at,
            created_s=int(self.stub.get("CreateTime") or 0) / 1e9,
        )


def _lacking(log: str) -> str:
    return f"of its log there are {len(log)} characters, without its beginning or its end"
