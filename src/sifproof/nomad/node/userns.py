"""Whether Apptainer needs ``--userns`` on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def needs_userns(status: Path = Path("/proc/self/status"), uid: int | None = None) -> bool:
    """Whether a plain ``apptainer exec`` by this user ends in "Requesting capability set …" on this machine.

    As root, Apptainer asks for every capability that the kernel has, and ends where one was taken away, as it is in
    many containers and virtual machines. In a user namespace it asks for none. An ordinary user gets such a namespace
    anyway, and a root that lacks nothing is better off without: user ids are then the node's own.

    Reads what the kernel says, in no time, where trying it out would take an image and 0.15 s.
    """
    if (os.geteuid() if uid is None else uid) != 0:
        return False
    permitted = next(int(line.split()[1], 16) for line in status.read_text().splitlines() if line.startswith("CapPrm:"))
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return permitted != (1 << (last + 1)) - 1
