"""What Nomad knows about the allocations of a job: where each one is, its port, its state, its times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sifproof.nomad.client import Client
from sifproof.nomad.job import META_PORT, META_TASK, PORT_LABEL

TERMINAL = frozenset({"complete", "failed", "lost"})
"""States of an allocation on its node that end it."""


class Event(BaseModel):
    """One event of a task, as Nomad keeps the last ten of."""

    model_config = ConfigDict(frozen=True)

    type: str
    time_ns: int = Field(description="nanoseconds since 1970, by the clock of the node")
    message: str
    details: dict[str, str] = Field(default_factory=dict)


class Allocation(BaseModel):
    """One allocation of a job. ``address`` and ``port`` are empty and 0 until Nomad has placed it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    job_id: str
    node_id: str
    node_name: str
    task: str
    address: str = Field(description="IP address or name at which the port is reached, without brackets")
    port: int
    ports: dict[str, int] = Field(description="every port by its label")
    client_status: str = Field(description="pending, running, complete, failed, lost or unknown")
    desired_status: str = Field(description="run, stop or evict")
    failed: bool = Field(description="whether a task of it failed")
    events: tuple[Event, ...] = ()
    created_ns: int = Field(description="when Nomad placed it; nanoseconds since 1970, by the clock of the server")

    @property
    def url(self) -> str:
        """Where its server answers, as ``http://10.0.0.7:8080`` or ``http://[fd00::7]:8080``."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"

    @property
    def terminal(self) -> bool:
        """Whether its node says that it has ended."""
        return self.client_status in TERMINAL

    def time_ns(self, event: str) -> int | None:
        """When its first event of type ``event`` was: ``Received``, ``Task Setup``, ``Started``, ``Terminated``…"""
        return next((e.time_ns for e in self.events if e.type == event), None)


def parse_ports(allocation: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Address and port of ``allocation`` (as Nomad's API gives it) by label.

    ``AllocatedResources.Shared.Ports`` is the truth since Nomad 0.12, for static and dynamic ports alike. Where it is
    empty, the ports stand in ``Networks``, of the group or of a task.
    """
    resources = allocation.get("AllocatedResources") or {}
    shared = resources.get("Shared") or {}
    ports = shared.get("Ports") or []
    if ports:
        return {p["Label"]: (_host(p.get("HostIP", "")), int(p["Value"])) for p in ports}
    found: dict[str, tuple[str, int]] = {}
    networks = list(shared.get("Networks") or [])
    for task in (resources.get("Tasks") or {}).values():
        networks += task.get("Networks") or []
    for network in networks:
        for port in [*(network.get("DynamicPorts") or []), *(network.get("ReservedPorts") or [])]:
            found.setdefault(port["Label"], (_host(network.get("IP", "")), int(port["Value"])))
    return found


def _host(address: str) -> str:
    return address.removeprefix("[").removesuffix("]")


def parse_allocation(raw: Mapping[str, Any]) -> Allocation:
    """The :class:`Allocation` in ``raw``, an answer of ``/v1/allocation/:id``."""
    ports = parse_ports(raw)
    # A job that production runs has names of its own for the port and the task; its marks say which.
    marks = (raw.get("Job") or {}).get("Meta") or {}
    address, port = ports.get(marks.get(META_PORT, PORT_LABEL)) or next(iter(ports.values()), ("", 0))
    states = raw.get("TaskStates") or {}
    # The job's own task; a sidecar that Nomad injects comes after it.
    task = next(iter(states), "")
    groups = (raw.get("Job") or {}).get("TaskGroups") or []
    for group in groups:
        if group["Name"] == raw.get("TaskGroup") and group.get("Tasks"):
            task = group["Tasks"][0]["Name"]
    task = marks.get(META_TASK, task)
    events = [
        Event(
            type=event["Type"],
            time_ns=int(event["Time"]),
            message=event.get("DisplayMessage") or event.get("Message") or "",
            details={str(k): str(v) for k, v in (event.get("Details") or {}).items()},
        )
        for event in (states.get(task) or {}).get("Events") or []
    ]
    return Allocation(
        id=raw["ID"],
        name=raw.get("Name", ""),
        job_id=raw.get("JobID", ""),
        node_id=raw.get("NodeID", ""),
        node_name=raw.get("NodeName", ""),
        task=task,
        address=address,
        port=port,
        ports={label: number for label, (_, number) in ports.items()},
        client_status=raw.get("ClientStatus", ""),
        desired_status=raw.get("DesiredStatus", ""),
        failed=bool((states.get(task) or {}).get("Failed")),
        events=tuple(events),
        created_ns=int(raw.get("CreateTime", 0)),
    )


def get_job_allocations(client: Client, job_id: str) -> list[Allocation]:
    """The allocations of ``job_id`` with address and port of each, by name.

    The list that Nomad gives of a job holds no ports: each allocation is read in full.
    """
    stubs = client.get("job", job_id, "allocations")
    return sorted(
        (parse_allocation(client.get("allocation", stub["ID"])) for stub in stubs), key=lambda a: (a.name, a.id)
    )
