"""The gate's word on a run, in the run's own folder: what ``sifproof run`` exits with.

``results/`` holds the reports of the latest run, which may be another one's by now. Standard library only, so that it
can be read whatever else of a Python is broken.
"""

from __future__ import annotations

import contextlib
import json
import os

from sifproof.run import Run

FILE = "gate.json"


def write(run: Run, verdict: str, exit_code: int) -> None:
    """Write down what the gate decided on ``run``."""
    path = run.folder / FILE
    fresh = path.with_name(f".{FILE}.{os.getpid()}")
    fresh.write_text(json.dumps({"run": run.id, "verdict": verdict, "exit_code": exit_code}) + "\n", encoding="utf-8")
    fresh.replace(path)


def read(run: Run) -> int | None:
    """The exit code that the gate decided on; None where it has not come to a decision."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
        if said["run"] == run.id and said["exit_code"] in range(5):
            return int(said["exit_code"])
    return None
