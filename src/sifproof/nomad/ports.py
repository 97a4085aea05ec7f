"""Ports for the agents of several runs on one machine. Standard library only: the agent waits for this module."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import NamedTuple

from sifproof.errors import SifproofError

META_STATIC_PORTS = "sifproof_static_ports"
"""Key in a node's ``Meta``: the ports ``LOW-HIGH`` that the run which started this agent may use as static ones."""

MARK = "SIFPROOF_NOMAD"
"""Variable in the environment of a local agent, and so of what it starts: its directory, with a slash at the end."""

LOWEST, HIGHEST = 10_000, 32_767
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


def ephemeral_ports() -> tuple[int, int]:
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
    low, high = ephemeral_ports()
    firsts = [f for f in range(LOWEST, HIGHEST - _BLOCK, _BLOCK) if f + _BLOCK <= low or f > high]
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
        f"No {_BLOCK} ports in a row are free on this machine between {LOWEST} and {HIGHEST}",
        todo="end what holds them",
    )
