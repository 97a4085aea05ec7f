"""What the doctor saw, as a run writes it down: ``doctor.json``."""

from __future__ import annotations

import re
from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from sifproof.doctor.facts import Facts
from sifproof.doctor.findings import Finding, needs_userns
from sifproof.text import one_line

CLUSTER = "the cluster"
"""Stands for a machine where something concerns the cluster as a whole."""

_MOST = 3


class Explanation(BaseModel):
    """What the doctor saw that may be behind a failure."""

    model_config = ConfigDict(extra="forbid")

    machine: str = Field(description="where it was seen: a host, a Nomad node, or `the cluster`")
    finding: str = Field(description="what was looked at, such as `fuse`")
    text: str = Field(description="what was seen, and why it matters")
    mend: str = Field(default="", description="the command that mends it")

    def __str__(self) -> str:
        return f"doctor, {self.machine}: {self.text}" + (f" → {self.mend}" if self.mend else "")


class Look(BaseModel):
    """What was seen on one machine."""

    model_config = ConfigDict(extra="forbid")

    machine: str = Field(description="host name; of a node, the name that Nomad has for it")
    node: str = Field(default="", description="id of the Nomad node; empty for the machine that the gate runs on")
    datacenter: str = Field(default="", description="of the node")
    seconds: float = Field(description="that looking took")
    facts: Facts | None = Field(default=None, description="None where it could not be looked at")
    findings: list[Finding]


class Doctor(BaseModel):
    """What the doctor saw: ``doctor.json`` in the folder of a run."""

    model_config = ConfigDict(extra="forbid")

    looks: list[Look]

    @property
    def blocks(self) -> bool:
        """Whether something keeps sandboxes from running."""
        return any(finding.severity == "blocks" for look in self.looks for finding in look.findings)

    def needs_userns(self, datacenter: str, program: str, *, local: bool) -> bool | None:
        """Whether ``program`` needs ``--userns`` on a node of ``datacenter``: one job line serves them all.

        ``local`` says that the node is this machine, under an agent of the run's own. None where none was looked at.
        """
        there = [k for k in self.looks if (not k.node if local else k.node and k.datacenter == datacenter)]
        seen = [look.facts for look in there if look.facts is not None and look.facts.caps_permitted is not None]
        return any(needs_userns(facts, program) for facts in seen) if seen else None

    def explain(self, sandbox: str, check: str, text: str, *, node: str = "", local: bool) -> list[Explanation]:
        """What was seen that may be behind the failure of ``check``, or of a stage, of which ``text`` tells.

        ``node`` is the name of the node that it happened on, empty where it is not known but from the text; ``local``
        says that this machine is the node.
        """
        named = (
            k.machine for k in self.looks if k.node and re.search(rf"\bnode {re.escape(k.machine)}(?![.-]?\w)", text)
        )
        node = node or next(named, "")
        found = []
        for look in self.looks:
            elsewhere = look.machine != node if look.node else look.machine != CLUSTER and not local
            if node and elsewhere:
                continue
            found += [(look.machine, f) for f in look.findings if f.explains(sandbox, check, text)]
        found.sort(key=lambda pair: pair[1].severity != "blocks")
        seen = [Explanation(machine=m, finding=f.id, text=f.sentence, mend=f.mend) for m, f in found]
        return seen[:_MOST]

    def lines(self) -> list[str]:
        """All of it for people, machine by machine, the worst first."""
        lines = []
        for look in self.looks:
            # What a cluster calls its nodes, and the paths in a command, may hold what a terminal obeys.
            lines.append(one_line(f"{look.machine} (node in {look.datacenter})" if look.node else look.machine))
            for finding in look.findings:
                about = f" [{', '.join(finding.sandboxes)}]" if finding.sandboxes and finding.severity != "fine" else ""
                lines.append(f"  {finding.severity:9} {finding.id}: {finding.sentence}{about}")
                if finding.mend:
                    lines.append(f"  {'':9} → {one_line(finding.mend)}")
        counts = Counter(finding.severity for look in self.looks for finding in look.findings)
        lines.append(", ".join(f"{counts[word]} {word}" for word in ("blocks", "degrades", "fine") if counts[word]))
        return lines
