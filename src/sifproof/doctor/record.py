"""What the doctor saw, as a run writes it down: ``doctor.json``."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from sifproof.doctor.facts import Facts
from sifproof.doctor.findings import Finding, needs_userns


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

    def needs_userns(self, datacenter: str, program: str) -> bool | None:
        """Whether ``program`` needs ``--userns`` on a node of ``datacenter``: one job line serves them all.

        None where no node of it was looked at.
        """
        seen = [k.facts for k in self.looks if k.node and k.datacenter == datacenter and k.facts is not None]
        return any(needs_userns(facts, program) for facts in seen) if seen else None

    def lines(self) -> list[str]:
        """All of it for people, machine by machine, the worst first."""
        lines = []
        for look in self.looks:
            lines.append(f"{look.machine} (node in {look.datacenter})" if look.node else look.machine)
            for finding in look.findings:
                about = f" [{', '.join(finding.sandboxes)}]" if finding.sandboxes and finding.severity != "fine" else ""
                lines.append(f"  {finding.severity:9} {finding.id}: {finding.sentence}{about}")
                if finding.mend:
                    lines.append(f"  {'':9} → {finding.mend}")
        counts = Counter(finding.severity for look in self.looks for finding in look.findings)
        lines.append(", ".join(f"{counts[word]} {word}" for word in ("blocks", "degrades", "fine") if counts[word]))
        return lines
