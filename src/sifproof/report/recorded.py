"""Read back what a run recorded. A record that can't be read is a sentence in ``problems``, never a traceback: the
process that wrote it may have been killed in the middle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sifproof.doctor.record import Doctor
from sifproof.records import FaultRecord, Plan, Verdict
from sifproof.report import side_by_side
from sifproof.text import one_line

Document = Mapping[str, Any]
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Recorded:
    """All that a run recorded, as far as it can be read."""

    folder: Path
    plan: Plan
    verdicts: list[Verdict] = field(default_factory=list)
    faults: list[FaultRecord] = field(default_factory=list)
    images: dict[str, Document] = field(default_factory=dict)
    """Provenance of the image under test, by sandbox."""
    endpoints: dict[str, Document] = field(default_factory=dict)
    """Allocations and how long they took to run, by sandbox."""
    nomad: Document = field(default_factory=dict)
    """The cluster."""
    doctor: Doctor | None = None
    """What the doctor saw; None where it was not recorded."""
    problems: list[str] = field(default_factory=list)


def read_run(folder: Path) -> Recorded:
    """What lies below ``folder``, the ``results/runs/<run>`` of a run."""
    problems: list[str] = []
    plan = _model(folder / "plan.json", Plan, problems)
    if plan is None:
        plan = Plan(
            run=folder.name,
            started="",
            sifproof="",
            nomad_address="",
            nomad_version="",
            nomad_local=False,
            sandboxes=[],
        )
    verdicts = [v for path in sorted(folder.glob("verdicts/*.jsonl")) for v in _verdicts(path, problems)]
    faults = [_model(path, FaultRecord, problems) for path in sorted(folder.glob("faults/*.json"))]
    return Recorded(
        folder=folder,
        plan=plan,
        verdicts=side_by_side.blame(plan, verdicts),
        faults=side_by_side.blame_faults(plan, verdicts, [record for record in faults if record]),
        images=_documents(folder / "images", problems),
        endpoints=_documents(folder / "endpoints", problems),
        nomad=_documents(folder, problems, "nomad.json").get("nomad", {}),
        # It decides nothing: a run is not incomplete without it.
        doctor=_model(folder / "doctor.json", Doctor, []),
        problems=problems,
    )


def _read(path: Path, problems: list[str]) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        problems.append(f"{_name(path)} was not written.")
    except OSError as error:
        problems.append(f"{_name(path)} cannot be read: {error.strerror}.")
    return None


def _model(path: Path, model: type[_Model], problems: list[str]) -> _Model | None:
    content = _read(path, problems)
    if content is None:
        return None
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        problems.append(f"{_name(path)} cannot be understood: {_first(error)}.")
        return None


def _verdicts(path: Path, problems: list[str]) -> Iterator[Verdict]:
    for number, line in enumerate((_read(path, problems) or b"").split(b"\n"), start=1):
        if line.strip():
            try:
                yield Verdict.model_validate_json(line)
            except ValidationError as error:
                # A suite that could not begin says so where its verdicts would stand, and in faults/.
                if line.startswith(b'{"fault":') and number == 1:
                    continue
                problems.append(f"{_name(path)}, line {number}, cannot be understood: {_first(error)}.")


def _documents(folder: Path, problems: list[str], pattern: str = "*.json") -> dict[str, Document]:
    """The JSON objects by stem; without those that hand on a fault, which is in ``faults/`` too."""
    documents: dict[str, Document] = {}
    for path in sorted(folder.glob(pattern)):
        content = _read(path, problems)
        if content is None:
            continue
        try:
            document = json.loads(content)
        except ValueError as error:
            problems.append(f"{_name(path)} cannot be understood: {one_line(str(error), 120)}.")
            continue
        if not isinstance(document, dict):
            problems.append(f"{_name(path)} cannot be understood: it holds no JSON object.")
        elif set(document) != {"fault"}:
            documents[path.stem] = document
    return documents


def _name(path: Path) -> str:
    parent = path.parent.name
    return f"{parent}/{path.name}" if parent in {"verdicts", "faults", "images", "endpoints"} else path.name


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return one_line(f"{where}: {first['msg']}" if where else first["msg"], 160)
