"""A static port for a job, picked so that nothing on the nodes has it and others seldom pick the same."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Collection

from sifproof.errors import SifproofError
from sifproof.nomad.allocations import TERMINAL, parse_ports
from sifproof.nomad.client import Client
from sifproof.nomad.nodes import read_nodes
from sifproof.nomad.ports import HIGHEST, LOWEST, META_STATIC_PORTS, ephemeral_ports


def pick_static_port(client: Client, datacenter: str, exclude: Collection[int] = ()) -> int:
    """A port that no allocation has on any usable node of ``datacenter``, and that no server answers on.

    It is only picked, not reserved: that happens when Nomad places the job. ``exclude`` are ports that were picked
    before, for jobs that are not placed yet.
    """
    nodes = [client.get("node", n.id) for n in read_nodes(client) if n.usable and n.datacenter == datacenter]
    taken = set(exclude)
    spans: list[range] = []
    for node in nodes:
        resources = node.get("NodeResources") or {}
        own = re.fullmatch(r"(\d+)-(\d+)", (node.get("Meta") or {}).get(META_STATIC_PORTS, ""))
        if own:
            spans.append(range(int(own[1]), int(own[2]) + 1))
        elif resources.get("MaxDynamicPort"):
            taken.update(range(int(resources["MinDynamicPort"]), int(resources["MaxDynamicPort"]) + 1))
        reserved = ((node.get("ReservedResources") or {}).get("Networks") or {}).get("ReservedHostPorts") or ""
        for span in filter(None, reserved.split(",")):
            first, _, last = span.partition("-")
            taken.update(range(int(first), int(last or first) + 1))
        for allocation in client.get("node", node["ID"], "allocations"):
            if allocation["ClientStatus"] not in TERMINAL:
                taken.update(port for _, port in parse_ports(allocation).values())
    low, high = ephemeral_ports()
    allowed = [
        port
        for port in (spans[0] if spans else range(LOWEST, HIGHEST + 1))
        if port not in taken and not low <= port <= high and all(port in span for span in spans)
    ]
    random.shuffle(allowed)
    addresses = {address for node in nodes if (address := _host(node))}
    for port in allowed[:100]:
        if not any(answers(address, port, 0.5) for address in addresses):
            return port
    raise SifproofError(
        f"No static port is free on the nodes of datacenter {datacenter}",
        why=f"{len(nodes)} nodes, {len(taken)} ports taken",
        todo="give a port that is free, or stop jobs that have one",
    )


def _host(node: dict[str, str]) -> str:
    return (node.get("HTTPAddr") or "").rpartition(":")[0].strip("[]")


def answers(address: str, port: int, timeout_s: float) -> bool:
    """Whether something accepts connections on ``port`` of ``address``."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout_s):
        return True
    return False
