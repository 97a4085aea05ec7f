"""A recorded run to make reports of: what the stages write, in small."""

from __future__ import annotations

import json
from pathlib import Path

from sifproof.errors import Fault
from sifproof.records import FaultRecord, Plan, PlannedSandbox, Verdict, write_atomically, write_verdicts

RUN = "20260102-030405-abcd"
SUITES = ["health", "bash", "files"]
CHECKS = {
    "health": ["health.ready", "health.identity", "health.slots"],
    "bash": ["bash.output", "bash.exit-code"],
    "files": ["files.round-trip"],
    "teardown": ["teardown.purged", "teardown.port", "teardown.processes"],
}
ALLOCATION = {
    "singularity": "1a2b3c4d-0000-4000-8000-000000000001",
    "docker": "5e6f7a8b-0000-4000-8000-000000000002",
}

NASTY = [
    "tab\there, line\nbreak, carriage\rreturn, both\r\n",
    'quote " and "" and \'',
    '"',
    '"starts quoted',
    "NA", "nan", "NULL", "None", "null", "N/A", "<NA>", "-nan", "#N/A",
    "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)",
    "back\\slash \\n \\t \\x41 \\\\", "\\",
    "Grüße 你好 🙂 \u200f\u202e rtl", "\u2028\u2029\x85", "\x00\x01\x1b[31mred\x1b[0m\x7f\x9b",
    "<script>alert(1)</script>", "]]>", "<![CDATA[", "&amp;&#0;", "'\"><img src=x onerror=alert(1)>",
    "{{ 7*7 }}{% raw %}", "[bold]rich[/bold] markup", "#comment", " leading and trailing ", "007", "1e5", "True", "",
]  # fmt: skip
"""Texts that have broken tables, pages and parsers."""


def planned(name: str = "singularity", **changes: object) -> PlannedSandbox:
    """A sandbox of the plan, called like its driver."""
    values: dict[str, object] = {
        "name": name,
        "driver": name if name in ALLOCATION else "singularity",
        "image": "docker-daemon:sandbox:latest",
        "slots": 5,
        "count": 1,
        "suites": SUITES,
        "job_id": f"sifproof-{RUN}-{name}",
    }
    return PlannedSandbox.model_validate(values | changes)


def plan(*sandboxes: PlannedSandbox) -> Plan:
    """A plan; of one singularity and one docker sandbox where none is given."""
    return Plan(
        run=RUN,
        started="2026-01-02T03:04:05+00:00",
        sifproof="0.1.0",
        nomad_address="http://127.0.0.1:4646",
        nomad_version="1.11.2",
        nomad_local=True,
        tools={"apptainer": "1.4.5 (/usr/bin/apptainer)", "nomad": "1.11.2 (.tools/bin/nomad)"},
        sandboxes=list(sandboxes) or [planned("singularity"), planned("docker")],
    )


def verdict(check: str = "bash.output", sandbox: str = "singularity", **changes: object) -> Verdict:
    """A verdict, a pass where nothing else is said."""
    suite = check.partition(".")[0]
    values: dict[str, object] = {
        "run": RUN,
        "sandbox": sandbox,
        "driver": sandbox if sandbox in ALLOCATION else "singularity",
        "node": "node-1",
        "allocation": ALLOCATION.get(sandbox, "9c9c9c9c-0000-4000-8000-000000000009"),
        "suite": suite,
        "check": check,
        "verdict": "pass",
        "duration_s": 0.25,
    }
    return Verdict.model_validate(values | changes)


def verdicts(*sandboxes: str, **changes: dict[str, object]) -> list[Verdict]:
    """Every verdict of a whole run; ``changes`` by check id with ``_`` for ``.`` and ``-``."""
    return [
        verdict(check, sandbox, **changes.get(check.replace(".", "_").replace("-", "_"), {}))
        for sandbox in sandboxes or ("singularity", "docker")
        for checks in CHECKS.values()
        for check in checks
    ]


def fault(stage: str = "submit", sandbox: str = "singularity", kind: Fault = Fault.INFRASTRUCTURE) -> FaultRecord:
    """A fault of a stage."""
    return FaultRecord(
        stage=stage, sandbox=sandbox, fault=kind, what="The job was not placed", why="no node has raw_exec",
        todo="enable raw_exec on a node",
    )  # fmt: skip


def record(
    results: Path,
    plan: Plan,
    verdicts: list[Verdict],
    faults: list[FaultRecord] | None = None,
    documents: bool = True,
) -> Path:
    """Write a run below ``results`` as the stages do; returns its folder."""
    folder = results / "runs" / plan.run
    write_atomically(folder / "plan.json", plan.model_dump_json())
    for sandbox in sorted({row.sandbox for row in verdicts}):
        for suite in sorted({row.suite for row in verdicts if row.sandbox == sandbox}):
            rows = [row for row in verdicts if (row.sandbox, row.suite) == (sandbox, suite)]
            write_verdicts(folder / "verdicts" / f"{sandbox}.{suite}.jsonl", rows)
    for item in faults or []:
        write_atomically(folder / "faults" / f"{item.stage}.{item.sandbox or 'run'}.json", item.model_dump_json())
    if documents:
        for sandbox in plan.sandboxes:
            if not sandbox.left_out:
                write_atomically(folder / "images" / f"{sandbox.name}.json", json.dumps(_image()))
                write_atomically(folder / "endpoints" / f"{sandbox.name}.json", json.dumps(_endpoints(sandbox)))
        nomad = {"address": "http://user:pass@127.0.0.1:4646", "version": "1.11.2", "local": True}
        write_atomically(folder / "nomad.json", json.dumps(nomad))
    return folder


def _image() -> dict[str, object]:
    """As :class:`sifproof.image.provenance.Provenance` writes it, and a key of a later version."""
    return {
        "source": "docker-daemon:sandbox:latest",
        "digest": "sha256:" + "ab" * 32,
        "sif": "results/images/sandbox.sif",
        "sha256": "cd" * 32,
        "size_bytes": 78_100_000,
        "versions": {"apptainer": "1.4.5", "mksquashfs": "4.6.1"},
        "arguments": ["apptainer build --disable-cache x.sif oci:o"],
        "seconds": {"export": 1.9, "unpack": 0.8, "squash": 2.6, "sha256": 0.4, "total": 5.7},
        "image": {"env": ["PATH=/bin", "API_TOKEN=hidden-from-every-report"]},
        "registry_token": "hidden-from-every-report",
    }


def _endpoints(sandbox: PlannedSandbox) -> dict[str, object]:
    """The part of :class:`sifproof.nomad.cluster.Endpoints` that reports use."""
    allocation = {"id": ALLOCATION.get(sandbox.name, ""), "node_name": "node-1", "address": "::1", "port": 31000}
    return {"job_id": sandbox.job_id, "allocations": [allocation], "seconds": {"submit": 0.04, "place and start": 0.4}}
