"""Sandboxes that are not what the server says, or not what was asked for."""

import errno
import os
import socket
import struct

from defects import turns_red
from defects.isolation_slot import OPEN, in_bubblewrap, without_bubblewrap


@turns_red("bubblewrap.available", nomad=True)
async def bubblewrap_denied(path, call, go):
    """`/health` says that there is no bubblewrap, and commands run in it."""
    answer = await go(call)
    return answer | {"bwrap_available": False} if path == "/health" else answer


@turns_red("bubblewrap.used", "bubblewrap.require-sandbox", "bubblewrap.require-stateful-sandbox", nomad=True)
async def sandbox_not_told(path, call, go):
    """The result of a command does not tell that it ran in a sandbox."""
    answer = await go(call)
    answer.get("metadata", {}).pop("sandboxed", None)
    return answer


@turns_red("bubblewrap.workspace", nomad=True)
def directory_of_the_server(arguments):
    """Commands start in the directory that the server knows their workspace by, not in `/workspace`."""

    def change(words, place):
        own, end = str(place.workspace), words.index("--")
        return [*(own if word == "/workspace" else word for word in words[:end]), *words[end:]]

    in_bubblewrap(change)


@turns_red(
    "bubblewrap.private-processes",
    "bubblewrap.only-workspace-writable",
    "bubblewrap.workspace",
    "bubblewrap.require-sandbox",
    "bubblewrap.require-stateful-sandbox",
    *OPEN,
    nomad=True,
)
def sandbox_lied_about(arguments):
    """A server without bubblewrap says `sandboxed: true` of commands that run as its own user."""
    from slotserver.containment import Supervised

    without_bubblewrap()
    Supervised.sandboxed = True


@turns_red("bubblewrap.require-sandbox", "bubblewrap.require-stateful-sandbox", nomad=True)
def required_sandbox_ignored(arguments):
    """A command that must not run without a sandbox is run without one."""
    from slotserver import tools
    from slotserver.containment import Supervised

    outside, inside = Supervised(user_per_slot=False), {}

    def check(slot, *, network, required):
        inside.setdefault(slot.place.slot_id, slot.containment)
        slot.containment = outside if required else inside[slot.place.slot_id]

    tools._check_containment = check


@turns_red("bubblewrap.no-network", nomad=True)
def network_not_cut(arguments):
    """`allow_network: false` is taken and ignored."""
    in_bubblewrap(lambda words, place: [word for word in words if word != "--unshare-net"])


def seccomp_filter(call: int, family: int) -> int:
    """A descriptor of a program for seccomp(2): ``call`` with ``family`` as its first argument is not permitted."""
    load, equal, end = 0x20, 0x15, 0x06
    lines = [(load, 0, 0, 0), (equal, 0, 3, call), (load, 0, 0, 16), (equal, 0, 1, family)]
    lines += [(end, 0, 0, 0x50000 | errno.EPERM), (end, 0, 0, 0x7FFF0000)]
    made = os.memfd_create("filter", 0)
    os.write(made, b"".join(struct.pack("=HBBI", *line) for line in lines))
    os.lseek(made, 0, os.SEEK_SET)
    return made


@turns_red("bubblewrap.no-network", nomad=True)
def sockets_of_ipv6_forgotten(arguments):
    """`allow_network: false` is kept by a filter of system calls that forbids sockets of IPv4 alone."""
    from slotserver.slots import Slot

    start, socket_call = Slot.start, {"x86_64": 41, "aarch64": 198}[os.uname().machine]

    def filtered(self, command, *, network, pass_fds=(), **options):
        made = seccomp_filter(socket_call, socket.AF_INET)
        try:
            FILTERS[:] = [] if network else [made]
            return start(self, command, network=network, pass_fds=(*pass_fds, made), **options)
        finally:
            os.close(made)

    def change(words, place):
        kept = [word for word in words if word != "--unshare-net"]
        return [kept[0], *(word for made in FILTERS for word in ("--seccomp", str(made))), *kept[1:]]

    Slot.start = filtered
    in_bubblewrap(change)


FILTERS: list[int] = []
