"""What is left of allocations on nodes that are other machines: ``remote_leftovers.sh`` looks for it there.

The same traces count as on this machine (:mod:`.leftovers`). A process that was found before the stop is known again by
its number and its start: an orphaned squashfuse_ll shows no trace of where it belongs any more.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from sifproof.errors import SifproofError
from sifproof.nomad.client import Client
from sifproof.nomad.job import validate_id
from sifproof.nomad.node.leftovers import Process, unescape
from sifproof.nomad.node.script import run_on_nodes

_PROCESS = re.compile(r"process (\S+) (\d+) (\d+) ([a-z]+) (\S*) ?(.*)")
_START_S = 60.0
"""Seconds that Nomad and a busy node may take beside the script itself."""


@dataclass
class Remains:
    """What a node told of one allocation."""

    processes: list[Process] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    containers_unseen: str = ""
    unseen: str = ""
    """Why the node could not be looked at; empty where it was."""
    earlier: list[str] = field(default_factory=list, repr=False)
    """What to know the processes by later on."""


def find(
    client: Client,
    allocations: Mapping[str, str],
    *,
    run: str,
    before: Mapping[str, Remains] | None = None,
    within_s: float = 0.0,
    containers: bool = False,
) -> dict[str, Remains]:
    """What there is of ``allocations`` (node id by allocation id) on their nodes; one job looks at all of them.

    With ``within_s`` it waits that many seconds for it all to go. ``before`` is what was found earlier: those of its
    processes that still live count. ``containers`` asks the Docker engine of the node too. ``run`` is the run's id.
    """
    found = {allocation: Remains() for allocation in allocations}
    if not found:
        return found
    for allocation, earlier in (before or {}).items():
        found[allocation].unseen = earlier.unseen
    values = {
        "ids": " ".join(validate_id(allocation) for allocation in allocations),
        "earlier": "\n".join(line for remains in (before or {}).values() for line in remains.earlier),
        "within": str(math.ceil(within_s)) if within_s else "",
        "containers": "yes" if containers else "",
    }
    script = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + _script()
    nodes = set(allocations.values())
    try:
        answers = {
            answer.node_id: answer
            for answer in run_on_nodes(client, script, run=run, node_ids=sorted(nodes), timeout_s=within_s + _START_S)
        }
    except SifproofError as error:
        for remains in found.values():
            remains.unseen = remains.unseen or str(error)
        return found
    for allocation, node in allocations.items():
        remains, answer = found[allocation], answers.get(node)
        if answer is None:
            remains.unseen = "its node takes no script: it is not ready and eligible, or has no healthy raw_exec"
        elif answer.fault or not answer.output.endswith("end\n"):
            remains.unseen = answer.fault or "the script on its node did not come to its end"
        else:
            _read(answer.output, allocation, remains)
    return found


def _read(output: str, allocation: str, remains: Remains) -> None:
    for line in output.splitlines():
        kind, _, rest = line.partition(" ")
        if match := _PROCESS.fullmatch(line):
            if match[1] == allocation:
                command = match[6].strip() or "[ended]"
                process = Process(pid=int(match[2]), command=command, by=match[4], program=match[5])
                remains.processes.append(process)
                remains.earlier.append(f"{allocation} {match[2]} {match[3]} {match[4]}")
        elif kind == "mount" and allocation in rest:
            remains.mounts.append(unescape(os.fsencode(rest)))
        elif kind == "container" and rest.startswith(f"{allocation} "):
            remains.containers.append(rest.partition(" ")[2])
        elif kind == "unseen" and rest.startswith(f"{allocation} "):
            remains.containers_unseen = rest.partition(" ")[2]


@cache
def _script() -> str:
    lines = files(__package__).joinpath("remote_leftovers.sh").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith("#"))
