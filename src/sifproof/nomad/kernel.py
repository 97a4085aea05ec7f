"""What the kernel of a node says of an allocation: that it killed one of its processes for want of memory."""

from __future__ import annotations

from sifproof.nomad.job import validate_id
from sifproof.nomad.probe import Node, ProbeError

# Nomad names the control group of a task after its allocation, and the kernel names the group whose limit it was.
_SCRIPT = """\
log=$( (dmesg || journalctl -kq --no-pager -n 5000) 2>/dev/null )
[ "$log" ] || exit 3
printf '%s\\n' "$log" | grep -F 'oom_memcg=/nomad' | grep -F {allocation} | tail -n 1
"""


def killed_for_memory(node: Node, allocation: str) -> str:
    """The kernel's line on the last process of ``allocation`` that it killed at the limit of its job; empty for none.

    Raises :class:`~sifproof.nomad.probe.ProbeError` where the kernel's log can't be read on the node.
    """
    return node.run(_SCRIPT.format(allocation=validate_id(allocation, "allocation id"))).strip()


__all__ = ["ProbeError", "killed_for_memory"]
