"""The job that production runs, as the gate puts it under test.

A file holds it, in HCL or as the JSON of Nomad's API. Nomad itself parses HCL, so that every function and block of its
own version works. The gate changes what keeps the job apart from the one in production, and what the config names. All
else stays, its shell line, its restarts and its signals among them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sifproof import __version__
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.client import RejectedError
from sifproof.nomad.job import META_PORT, META_RUN, META_SANDBOX, META_TASK, META_VERSION, PORT_LABEL

DRIVERS = {"raw_exec": "singularity", "exec": "singularity", "exec2": "singularity", "docker": "docker"}
"""The driver of a sandbox by that of the task which runs its server."""

MAX_BYTES = 1 << 20
"""Of a job file. Nomad's servers take 1 MiB too (``limits``, by default)."""

_MOST_OF_A_NAME = 63
"""Characters of a service's name: it becomes a part of names in DNS."""

_SLOTS = re.compile(r"""--slots["']?[=,\s]+["']?(\d+)\b""")
"""In a shell line, or as two words of a list."""


@dataclass(frozen=True)
class Wanted:
    """What the config says of the job; None where it leaves it to the job, or to what is found in it."""

    count: int = 1
    task: str | None = None
    port_label: str | None = None
    port: int | None = None
    datacenter: str | None = None
    constraints: Sequence[Mapping[str, str]] | None = None
    cpu: int | None = None
    memory: int | None = None


def text_of(path: Path) -> str:
    """What the job file holds; raises :class:`SifproofError` (fault: configuration) where it can't be read."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unfit(path, str(error.strerror)) from None
    if len(content) > MAX_BYTES:
        raise _unfit(path, f"it has more than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unfit(path, str(error)) from None


def slots_in(path: Path) -> int:
    """How many slots the job in ``path`` tells its server to have.

    Raises :class:`SifproofError` (fault: configuration) where that can't be read in it.
    """
    found = {int(number) for number in _SLOTS.findall(text_of(path))}
    if len(found) != 1 or found == {0}:
        raise _unfit(path, "it does not say `--slots` with one number", "set `slots` of the sandbox")
    return found.pop()


def read(
    path: Path, parse: Callable[[str, Mapping[str, str]], dict[str, Any]], variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The job in ``path``, without the ``{"Job": …}`` around it.

    ``parse`` is :meth:`~sifproof.nomad.client.Client.parse_job` of a client, asked for HCL alone; ``variables`` are
    those that the HCL has. Raises :class:`SifproofError` (fault: configuration) where it is neither JSON of a job nor
    HCL that Nomad takes.
    """
    text = text_of(path)
    if text.lstrip().startswith("{"):
        if variables:
            raise _unfit(path, "it is JSON, which has no variables", "take `job_variables` out")
        return _of_json(text, path)
    try:
        return parse(text, variables or {})
    except RejectedError as error:
        raise _unfit(path, error.why, "try it with `nomad job validate`") from None


def _of_json(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _unfit(path, f"it is no JSON: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("Job"), dict):
        found = found["Job"]
    if not isinstance(found, dict) or not isinstance(found.get("TaskGroups"), list):
        raise _unfit(
            path,
            "it holds no job as Nomad's API has it",
            "write it with `nomad job inspect` or `nomad job run -output`",
        )
    return found


def _unfit(path: Path | str, why: str, todo: str = "correct `job` of the sandbox") -> SifproofError:
    return SifproofError(f"The job {path} can't be put under test", why=why, todo=todo, fault=Fault.CONFIGURATION)


def under_test(
    found: Mapping[str, Any], wanted: Wanted, *, driver: str, job_id: str, run: str, sandbox: str
) -> dict[str, Any]:
    """The job ``found`` as the gate submits it: ``{"Job": {…}}``.

    Its id, the marks of the run in ``Meta`` and the count are set, and what ``wanted`` names. The names of its services
    end with the id, so that nobody who looks for the service of production is sent to a sandbox under test.

    Raises :class:`SifproofError` (fault: configuration) where it is not clear which task or port is meant, or where the
    job is of a kind that the gate can't place.
    """
    name = str(found.get("ID") or found.get("Name") or "without a name")
    kind = found.get("Type") or "service"
    if kind not in ("service", "batch") or found.get("Periodic") or found.get("ParameterizedJob"):
        kind = "periodic" if found.get("Periodic") else "parameterized" if found.get("ParameterizedJob") else kind
        raise _unfit(name, f"it is a {kind} job", "give one of type `service`, with a count")
    job = copy.deepcopy(dict(found))
    group, task = _task(job, driver, wanted.task, name)
    port = _port(group, task, wanted.port_label, name)
    job.update(ID=job_id, Name=job_id, Stop=False)
    for gone in ("Namespace", "Region", "Status", "Version", "ParentID"):
        job.pop(gone, None)
    job["Meta"] = {
        **(job.get("Meta") or {}),
        META_VERSION: __version__,
        META_RUN: run,
        META_SANDBOX: sandbox,
        META_TASK: task["Name"],
        META_PORT: port["Label"],
    }
    group["Count"] = wanted.count
    if wanted.datacenter is not None:
        job["Datacenters"] = [wanted.datacenter]
    if wanted.constraints is not None:
        job["Constraints"] = [dict(one) for one in wanted.constraints]
        group["Constraints"], task["Constraints"] = [], []
    resources = task.setdefault("Resources", {}) or {}
    task["Resources"] = resources
    if wanted.cpu is not None:
        resources["CPU"] = wanted.cpu
    if wanted.memory is not None:
        resources["MemoryMB"] = wanted.memory
    if wanted.port is not None:
        _reserve(group, task, port["Label"], wanted.port)
    for service in _services(job):
        service["Name"] = _apart(str(service.get("Name") or "service"), job_id)
    return {"Job": job}


def _apart(name: str, job_id: str) -> str:
    """``name`` with the id of the job, or with what stands for it where that is longer than Nomad takes."""
    if len(f"{name}-{job_id}") <= _MOST_OF_A_NAME:
        return f"{name}-{job_id}"
    short = hashlib.sha256(job_id.encode()).hexdigest()[:12]
    # Nomad fills in what it refers to, and looks at the rest.
    return f"{name}-{short}" if "${" in name else f"{name[: _MOST_OF_A_NAME - 13].rstrip('-')}-{short}"


def task_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """The task under test of ``job`` (``{"Job": …}``), one that :func:`under_test` made or sifproof's own."""
    body = job["Job"]
    tasks: list[dict[str, Any]] = body["TaskGroups"][0]["Tasks"]
    name = (body.get("Meta") or {}).get(META_TASK)
    return next((task for task in tasks if task.get("Name") == name), tasks[0])


def port_label_of(job: Mapping[str, Any]) -> str:
    """The label of the port under test."""
    return str((job["Job"].get("Meta") or {}).get(META_PORT, PORT_LABEL))


def is_given(job: Mapping[str, Any]) -> bool:
    """Whether ``job`` is one that production runs, rather than one that sifproof rendered."""
    return META_TASK in (job["Job"].get("Meta") or {})


def _task(job: Mapping[str, Any], driver: str, wanted: str | None, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The group and the task of the server: the one that the config names, or the only one that can be meant."""
    if len(job["TaskGroups"]) != 1:
        groups = ", ".join(str(group.get("Name")) for group in job["TaskGroups"])
        raise _unfit(name, f"it has the groups {groups}, and a sandbox is one", "give a job with the sandbox's alone")
    group = job["TaskGroups"][0]
    tasks = [one for one in group.get("Tasks") or [] if wanted in (None, one.get("Name"))]
    if not wanted:  # what starts before or beside the server says so
        tasks = [one for one in tasks if not one.get("Lifecycle")] or tasks
    if len(tasks) != 1:
        names = ", ".join(str(one.get("Name")) for one in group.get("Tasks") or [])
        raise _unfit(name, f"its tasks are {names}", "name the one that is the server as `job_task`")
    task = tasks[0]
    if DRIVERS.get(str(task.get("Driver"))) != driver:
        raise _unfit(
            name,
            f"its task {task.get('Name')} has the driver {task.get('Driver')}, which is not that of a {driver} sandbox",
            "correct `driver` of the sandbox",
        )
    return group, task


def ports(group: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """The ports of a group and of one of its tasks: each with the network that has it, and whether it is static."""
    for network in [*(group.get("Networks") or []), *((task.get("Resources") or {}).get("Networks") or [])]:
        for kind in ("ReservedPorts", "DynamicPorts"):
            for port in network.get(kind) or []:
                yield network, kind, port


def _port(group: Mapping[str, Any], task: Mapping[str, Any], wanted: str | None, name: str) -> dict[str, Any]:
    found = [port for _, _, port in ports(group, task)]
    labels = [str(port.get("Label")) for port in found]
    for label in (wanted, PORT_LABEL) if not wanted and len(found) > 1 else (wanted,):
        if label in labels:
            return found[labels.index(label)]
    if len(found) == 1 and not wanted:
        return found[0]
    raise _unfit(name, f"its ports are {', '.join(labels) or 'none'}", "name that of the server as `job_port`")


def _reserve(group: Mapping[str, Any], task: Mapping[str, Any], label: str, number: int) -> None:
    for network, kind, port in list(ports(group, task)):
        if port.get("Label") == label:
            network[kind].remove(port)
            network["ReservedPorts"] = [*(network.get("ReservedPorts") or []), {**port, "Value": number}]


def _services(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for group in job["TaskGroups"]:
        yield from group.get("Services") or []
        for task in group.get("Tasks") or []:
            yield from task.get("Services") or []
