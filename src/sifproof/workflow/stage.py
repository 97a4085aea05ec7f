"""What every rule's script does around its work: its log, its outcome, and a fault that the next stages find.

A stage that can't do its work does not fail its rule. It writes ``{"fault": …}`` where its result would stand, the
stages after it hand that on, suites record ``not-measured``, and the report is written; only the gate fails a run.
The exception is a stage before anything was made or submitted (``fatal``): that fails at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sifproof.documents import Inherited
from sifproof.errors import Fault, SifproofError
from sifproof.records import FINE, FaultRecord, PlannedSandbox, Verdict, write_atomically
from sifproof.run import Run

BAD = "✗ "
"""Begins the last line of a log whose rule succeeded, for only the gate fails a run, but whose outcome is bad."""


def log_to(path: str | os.PathLike[str]) -> None:
    """Send standard output and error of this process, and of all that it starts, to ``path``."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


@contextmanager
def stage(name: str, snakemake: Any, *, sandbox: str = "", fatal: bool = False) -> Iterator[None]:
    """Around the work of a script: its output goes to the rule's log, a fault is recorded in the run's folder.

    The log's last line is the outcome; the progress display shows it.
    """
    log_to(snakemake.log[0])
    try:
        yield
    except SifproofError as error:
        _hand_on(error, name, snakemake, sandbox)
        if fatal:
            sys.exit(error.fault.exit_code)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(Fault.INCOMPLETE.exit_code)
    except Exception as error:
        # A fault of sifproof's own must not keep teardown and report from their work either.
        traceback.print_exc()
        unexpected = SifproofError(
            f"The stage {name} failed in a way that sifproof did not foresee",
            why=f"{type(error).__name__}: {error}",
            todo=f"please report it, with {snakemake.log[0]}",
            fault=Fault.INCOMPLETE,
        )
        _hand_on(unexpected, name, snakemake, sandbox)
        if fatal:
            sys.exit(unexpected.fault.exit_code)


def _hand_on(error: SifproofError, name: str, snakemake: Any, sandbox: str) -> None:
    """Record ``error`` in the run's folder, and put it where the stage's result would stand."""
    if not isinstance(error, Inherited):
        record(Run(snakemake.params.run).folder, error, name, sandbox)
    output = Path(snakemake.output[0])
    fault = json.dumps({"fault": FaultRecord.of(error, name, sandbox).model_dump()}) + "\n"
    # A file of verdicts has none then; the gate misses them, and finds the fault.
    write_atomically(output, "" if output.suffix == ".jsonl" else fault)
    print(BAD + str(error), flush=True)


def outcome(suite: str, planned: PlannedSandbox, verdicts: Sequence[Verdict]) -> str:
    """The last line of the log of ``suite``: how many verdicts there are of each word; bad where one that counts is."""
    if not any(check.startswith(f"{suite}.") for check in planned.checks):
        return "nothing to check: off"
    counts = Counter(v.verdict + ("" if v.required or v.verdict in FINE else " (not required)") for v in verdicts)
    text = ", ".join(f"{number} {word}" for word, number in counts.most_common()) or "no verdict"
    return text if counts and not set(counts) & {"fail", "flaky", "not-measured"} else BAD + text


def record(run: Path, error: SifproofError, name: str, sandbox: str = "") -> None:
    """Write the fault into the run's folder, where report and gate look for it."""
    path = run / "faults" / (f"{name}.{sandbox}.json" if sandbox else f"{name}.json")
    write_atomically(path, FaultRecord.of(error, name, sandbox).model_dump_json(indent=2) + "\n")
