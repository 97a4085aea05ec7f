"""The JSON that goes from one stage to the next, in the run's folder.

A stage that can't do its work writes ``{"fault": …}`` where its result would stand; whoever reads it has that fault.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sifproof.errors import SifproofError
from sifproof.records import FaultRecord, write_atomically

Model = TypeVar("Model", bound=BaseModel)


class Inherited(SifproofError):  # noqa: N818 - it was an error where it arose
    """A fault of an earlier stage, found in its output: recorded already."""


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in ``path``; raises :class:`Inherited` where the stage that wrote it had a fault."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(content, dict) and set(content) == {"fault"}:
        fault = FaultRecord.model_validate(content["fault"])
        raise Inherited(fault.what, why=fault.why, todo=fault.todo, fault=fault.fault)
    if not isinstance(content, dict):
        raise SifproofError(f"{path} holds no JSON object", todo="Start a new run")
    return content


def read(path: str | os.PathLike[str], model: type[Model]) -> Model:
    """The result in ``path``; raises :class:`Inherited` where the stage that wrote it had a fault."""
    try:
        return model.model_validate(read_document(path))
    except ValidationError as error:
        raise SifproofError(
            f"{path} is not what this version of sifproof writes", why=str(error), todo="Start a new run"
        ) from None


def write(path: str | os.PathLike[str], result: BaseModel) -> None:
    """Write a stage's result."""
    write_atomically(Path(path), result.model_dump_json(indent=2) + "\n")
