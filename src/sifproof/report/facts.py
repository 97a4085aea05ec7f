"""Facts and timings out of the JSON documents that the stages leave beside their work.

The documents belong to their stages, which may add to them freely: facts are found here by the names of their keys,
and what has no name here is shown all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sifproof.report.recorded import Document, Recorded

_SECONDS = frozenset({"seconds", "timings", "phases", "steps", "durations"})
_SECRET = re.compile(r"token|secret|passw|credential|authorization|private", re.IGNORECASE)


class Timing(NamedTuple):
    """Seconds that one step of a stage took."""

    sandbox: str
    stage: str
    step: str
    seconds: float


class ImageFacts(NamedTuple):
    """What a maintainer asks first of an image; empty or None where the provenance doesn't say."""

    digest: str
    sif: str
    sha256: str
    size_bytes: int | None


def flatten(document: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """``("a.b", "text")`` for each leaf of ``document``; what a key calls secret is left out."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            if not _SECRET.search(str(key)):
                yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(document, list):
        if any(isinstance(item, Mapping | list) for item in document):
            for number, item in enumerate(document):
                yield from flatten(item, f"{prefix}.{number}")
        elif document:
            yield prefix, " ".join(str(item) for item in document)
    elif document not in (None, ""):
        yield prefix, str(document)


def image_facts(document: Document) -> ImageFacts:
    """The facts of one ``images/<sandbox>.json``."""
    leaves = dict(flatten(document))
    size = _find(leaves, "sif.bytes", "sif_bytes", "sif.size", "sif_size", "size_bytes", "bytes", "size")
    return ImageFacts(
        digest=_find(leaves, "source.digest", "source_digest", "config_digest", "digest"),
        sif=_find(leaves, "sif.path", "sif_path", "sif", "path"),
        sha256=_find(leaves, "sif.sha256", "sif_sha256", "sha256").removeprefix("sha256:"),
        size_bytes=int(size) if size.isdecimal() else None,
    )


def _find(leaves: Mapping[str, str], *names: str) -> str:
    for name in names:
        for key, value in leaves.items():
            if key == name or key.endswith(f".{name}"):
                return value
    return ""


def timings(recorded: Recorded) -> list[Timing]:
    """The seconds of each step that the stages recorded, then of each suite, in the order of the plan."""
    found = []
    for sandbox in recorded.plan.sandboxes:
        for stage, documents in (("image", recorded.images), ("job", recorded.jobs), ("job", recorded.endpoints)):
            found += [
                Timing(sandbox.name, stage, step, seconds)
                for step, seconds in _seconds(documents.get(sandbox.name, {}))
                if step != "total"
            ]
        suites: dict[str, float] = {}
        for row in recorded.verdicts:
            if row.sandbox == sandbox.name and row.duration_s == row.duration_s:
                suites[row.suite] = suites.get(row.suite, 0.0) + row.duration_s
        found += [Timing(sandbox.name, "checks", suite, seconds) for suite, seconds in suites.items()]
    return list(dict.fromkeys(found))


def _seconds(document: Any) -> Iterator[tuple[str, float]]:
    """Mappings of step to seconds under a key that says so, and ``<step>_s`` keys beside them, at any depth."""
    if isinstance(document, list):
        for item in document:
            yield from _seconds(item)
    if not isinstance(document, Mapping):
        return
    for key, value in document.items():
        if key in _SECONDS and isinstance(value, Mapping):
            yield from ((str(step).removesuffix("_s"), float(s)) for step, s in value.items() if _is_duration(s))
        elif key in _SECONDS and isinstance(value, list):
            for item in value:
                if isinstance(item, Mapping) and _is_duration(item.get("seconds")):
                    name = item.get("step") or item.get("name") or item.get("phase") or "?"
                    yield str(name), float(item["seconds"])
        elif str(key).endswith("_s") and _is_duration(value):
            yield str(key).removesuffix("_s"), float(value)
        else:
            yield from _seconds(value)


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
