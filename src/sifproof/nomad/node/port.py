"""Whether a server could listen on a port again that an allocation had."""

from __future__ import annotations

import os
import socket
import time

from sifproof.errors import SifproofError
from sifproof.nomad.allocations import TERMINAL, Allocation, parse_ports
from sifproof.nomad.client import Client
from sifproof.nomad.job import quote
from sifproof.nomad.node.script import Node

_PAUSE_S = 0.05

# As servers do it: with SO_REUSEADDR, which lets them pass connections that linger, and nothing that is bound.
_PYTHON = """\
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    s.bind((sys.argv[1], int(sys.argv[2])))
    s.listen()
except OSError as error:
    print(error.strerror)
"""
_PERL = """\
use Socket qw(:all);
my $six = $ARGV[0] =~ /:/;
socket(S, $six ? PF_INET6 : PF_INET, SOCK_STREAM, 0);
setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
my $at = inet_pton($six ? AF_INET6 : AF_INET, $ARGV[0]);
bind(S, $six ? pack_sockaddr_in6($ARGV[1], $at) : pack_sockaddr_in($ARGV[1], $at)) && listen(S, 1) || print "$!\\n";
"""
_NEITHER = "neither python3 nor perl"


def why_taken(client: Client, allocation: Allocation, *, here: bool, run: str, within_s: float) -> tuple[str, str]:
    """Why no server can listen on the port of ``allocation``, which has ended; and why that could not be tried.

    Both are empty where one can, or where Nomad has given the port to the next allocation. ``here``: it ran on this
    machine; elsewhere a script tries it. It is tried again for ``within_s`` seconds.
    """
    end = time.monotonic() + within_s
    while True:
        if here:
            taken = _bind(allocation.address, allocation.port)
        else:
            try:
                taken = _ask(Node(client, allocation.node_id, allocation.node_name, run=run), allocation)
            except SifproofError as error:
                return "", str(error)
            if taken == _NEITHER:
                return "", f"node {allocation.node_name} has {_NEITHER}, to try it with"
        if not taken or _given_again(client, allocation):
            return "", ""
        if time.monotonic() > end:
            return taken, ""
        time.sleep(_PAUSE_S)  # nothing tells when a port is let go of


def _bind(address: str, port: int) -> str:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((address, port))
            server.listen()
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""


def _ask(node: Node, allocation: Allocation) -> str:
    where = f"{quote(allocation.address)} {allocation.port}"
    return node.run(
        f"if command -v python3 >/dev/null; then exec python3 -c {quote(_PYTHON)} {where}; fi\n"
        f"if command -v perl >/dev/null; then exec perl -e {quote(_PERL)} {where}; fi\necho {quote(_NEITHER)}"
    ).strip()


def _given_again(client: Client, allocation: Allocation) -> bool:
    """Whether Nomad has placed another allocation with this port on the node: a random one comes round again."""
    return any(
        allocation.port in (port for _, port in parse_ports(other).values())
        for other in client.get("node", allocation.node_id, "allocations")
        if other["ID"] != allocation.id and other["ClientStatus"] not in TERMINAL
    )
