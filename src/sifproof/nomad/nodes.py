"""What the nodes of a cluster can do, asked before anything is built or submitted."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sifproof.errors import SifproofError
from sifproof.nomad.client import BLOCK_S, Client

NOMAD_DRIVER = {"singularity": "raw_exec", "docker": "docker"}
"""Nomad's driver for each driver of a sandbox."""


class NoDriverError(SifproofError):
    """No node of the datacenter can run the driver."""


class Driver(BaseModel):
    """The state of one driver on one node."""

    model_config = ConfigDict(frozen=True)

    detected: bool
    healthy: bool
    description: str


class Node(BaseModel):
    """One client node of the cluster."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    datacenter: str
    status: str = Field(description="initializing, ready, down or disconnected")
    eligible: bool = Field(description="whether Nomad places anything there")
    draining: bool
    drivers: dict[str, Driver]

    @property
    def usable(self) -> bool:
        """Whether Nomad may place a task there."""
        return self.status == "ready" and self.eligible and not self.draining

    @property
    def state(self) -> str:
        """Its state in a word or two."""
        if self.draining:
            return "draining"
        return self.status if self.eligible or self.status != "ready" else "not eligible"

    @property
    def mend(self) -> str:
        """What makes a node usable that is not, as a command."""
        if self.status != "ready":
            return "systemctl restart nomad; journalctl -u nomad  # on the node: it says what keeps it from the servers"
        return f"nomad node {'drain -disable' if self.draining else 'eligibility -enable'} {self.id}"


def _parse(raw: list[dict[str, object]]) -> list[Node]:
    nodes = []
    for node in raw:
        drivers = node.get("Drivers")
        nodes.append(
            Node(
                id=str(node["ID"]),
                name=str(node["Name"]),
                datacenter=str(node["Datacenter"]),
                status=str(node["Status"]),
                eligible=node.get("SchedulingEligibility") == "eligible",
                draining=bool(node.get("Drain")),
                drivers={
                    name: Driver(
                        detected=bool(d.get("Detected")),
                        healthy=bool(d.get("Healthy")),
                        description=str(d.get("HealthDescription") or ""),
                    )
                    for name, d in (drivers if isinstance(drivers, dict) else {}).items()
                },
            )
        )
    return nodes


def read_nodes(client: Client) -> list[Node]:
    """Every node that the cluster knows, with its drivers."""
    return _parse(client.get("nodes"))


def describe_nodes(client: Client) -> str:
    """The nodes in words, for an error: name, datacenter, state, and what is wrong with their drivers."""
    nodes = read_nodes(client)
    if not nodes:
        return "the cluster has no node"
    return "; ".join(
        f"{n.name} in {n.datacenter} is {n.state}"
        + "".join(f", {name}: {_driver_words(n, name)}" for name in NOMAD_DRIVER.values())
        for n in nodes
    )


def _driver_words(node: Node, name: str) -> str:
    driver = node.drivers.get(name)
    if driver is None:
        return "not enabled"
    if driver.detected and driver.healthy:
        return "healthy"
    return driver.description or ("unhealthy" if driver.detected else "not detected")


def check_driver_available(client: Client, driver: Literal["singularity", "docker"], datacenter: str) -> list[Node]:
    """The nodes of ``datacenter`` that can run ``driver``.

    Raises :class:`NoDriverError`, with each node and what is wrong with it, where there is none.
    """
    name = NOMAD_DRIVER[driver]
    nodes = read_nodes(client)
    here = [n for n in nodes if n.datacenter == datacenter]
    able = [n for n in here if n.usable and (d := n.drivers.get(name)) and d.detected and d.healthy]
    if able:
        return able
    what = f"No node can run driver {driver} (Nomad's {name}) in datacenter {datacenter}"
    if not here:
        others = ", ".join(sorted({n.datacenter for n in nodes}))
        raise NoDriverError(
            what,
            why=f"the datacenter has no node; the cluster has nodes in: {others or 'none'}",
            todo="correct datacenter, or start a Nomad client there",
        )
    seen = "; ".join(f"node {n.name} is {n.state}, {name}: {_driver_words(n, name)}" for n in here)
    if driver == "docker":
        todo = "start a Docker engine that the Nomad client can reach, or leave the docker sandboxes out"
    else:
        todo = 'enable plugin "raw_exec" in the configuration of the clients, as nomad-singularity.hcl does'
    raise NoDriverError(what, why=seen, todo=todo)


def wait_for_node_ready(client: Client, deadline_s: float, datacenter: str | None = None) -> list[Node]:
    """The usable nodes (of ``datacenter``), as soon as there is one; :class:`SifproofError` after ``deadline_s``."""
    end = time.monotonic() + deadline_s
    index = 0
    while True:
        raw, index = client.wait_for_change(
            "nodes", index=index, wait_s=min(BLOCK_S, max(end - time.monotonic(), 0.05))
        )
        usable = [n for n in _parse(raw) if n.usable and datacenter in (None, n.datacenter)]
        if usable:
            return usable
        if time.monotonic() >= end:
            raise SifproofError(
                f"No node of the Nomad cluster is ready after {deadline_s:g} s", why=describe_nodes(client)
            )
