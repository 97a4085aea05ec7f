"""What the kernel of a node says of an allocation: that it killed one of its processes for want of memory."""

from __future__ import annotations

import re
from typing import NamedTuple

from sifproof.nomad.job import validate_id
from sifproof.nomad.node.script import Node, ProbeError

# Nomad names the control group of a task after its allocation, and the kernel names the group whose limit it was.
_LOG = """\
log=$( (dmesg || journalctl -kq --no-pager -n 5000) 2>/dev/null )
[ "$log" ] || exit 3
printf '%s\\n' "$log" | grep -F 'oom_memcg=/nomad' | grep -F {allocation}
"""


def killed_for_memory(node: Node, allocation: str) -> str:
    """The kernel's line on the last process of ``allocation`` that it killed at the limit of its job; empty for none.

    Raises :class:`~sifproof.nomad.node.script.ProbeError` where the kernel's log can't be read on the node.
    """
    lines = node.run(_LOG.format(allocation=validate_id(allocation, "allocation id")) + ":").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Kill(NamedTuple):
    """A process that the kernel killed for want of memory."""

    task: str
    """Its name; empty where the kernel does not tell."""
    age_s: float
    """How long ago."""


def kills(node: Node, allocation: str) -> list[Kill]:
    """The processes of ``allocation`` that the kernel killed at the limit of its job, as far as its log has times.

    Raises as :func:`killed_for_memory`.
    """
    script = _LOG.format(allocation=validate_id(allocation, "allocation id"))
    *lines, uptime = node.run(f"{script}cut -d ' ' -f 1 /proc/uptime").strip().splitlines()
    found = []
    for line in lines:
        # The kernel's log counts from the start of the machine, as the time that it is up does.
        at, task = re.search(r"\[ *(\d+\.\d+)\]", line), re.search(r"task=([^,]+)", line)
        if at:
            found.append(Kill(task[1] if task else "", float(uptime) - float(at[1])))
    return found


__all__ = ["Kill", "ProbeError", "killed_for_memory", "kills"]
