"""Ports on this machine and on a cluster's nodes, picked so that others seldom pick the same."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from sifproof.errors import SifproofError
from sifproof.nomad.client import Client
from sifproof.nomad.preflight import read_nodes

META_STATIC_PORTS = "sifproof_static_ports"
"""Key in a node's ``Meta``: the ports ``LOW-HIGH`` that the run which started this agent may use as static ones."""

_LOWEST, _HIGHEST = 10_000, 32_767
_BLOCK = 100


class Block(NamedTuple):
    """A hundred ports for one local agent; nobody else on this machine who asks :func:`claim_block` gets them."""

    first: int
    lock: socket.socket

    @property
    def agent(self) -> tuple[int, int, int]:
        """For the agent itself: HTTP, RPC, Serf."""
        return self.first, self.first + 1, self.first + 2

    @property
    def dynamic(self) -> tuple[int, int]:
        """For Nomad to give to tasks, first and last."""
        return self.first + 10, self.first + 59

    @property
    def static(self) -> tuple[int, int]:
        """For jobs to reserve, first and last."""
        return self.first + 60, self.first + 99


def _ephemeral() -> tuple[int, int]:
    """The ports the kernel gives to outgoing connections: never to be picked, they come and go."""
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(low), int(high)


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen on ``port`` of ``address``, and of every address, on this machine now."""
    for host in {address, ""}:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def claim_block() -> Block:
    """A block of ports that are all free, claimed until the returned socket is closed or this process ends.

    The claim is the name of an abstract socket: the kernel gives it to one process per network namespace, which is
    just how far ports reach too, and takes it back whatever way the process ends.
    """
    low, high = _ephemeral()
    firsts = [f for f in range(_LOWEST, _HIGHEST - _BLOCK, _BLOCK) if f + _BLOCK <= low or f > high]
    random.shuffle(firsts)
    for first in firsts:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock.bind(f"\0sifproof-ports-{first}")
        except OSError:
            lock.close()
            continue
        if all(is_free(port) for port in range(first, first + _BLOCK)):
            return Block(first, lock)
        lock.close()
    raise SifproofError(
        f"No {_BLOCK} ports in a row are free on this machine between {_LOWEST} and {_HIGHEST}",
        todo="end what holds them",
    )


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
            if allocation.get("ClientStatus") in ("pending", "running"):
                shared = (allocation.get("AllocatedResources") or {}).get("Shared") or {}
                taken.update(int(p["Value"]) for p in shared.get("Ports") or [])
    low, high = _ephemeral()
    allowed = [
        port
        for port in (spans[0] if spans else range(_LOWEST, _HIGHEST + 1))
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
