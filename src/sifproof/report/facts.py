"""Facts and timings out of the JSON documents that the stages leave beside their work.

The documents belong to their stages, and those of an older run may be shown again: a fact that is not there is left
out, and what has no name here is shown all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sifproof.report.recorded import Document, Recorded

_SECRET = re.compile(r"token|secret|passw|credential|authorization|private", re.IGNORECASE)


class Timing(NamedTuple):
    """Seconds that one step of a stage took, and how many of them were waited on purpose."""

    sandbox: str
    stage: str
    step: str
    seconds: float
    waited: float = 0.0


class ImageFacts(NamedTuple):
    """What a maintainer asks first of an image; empty or None where the provenance doesn't say."""

    digest: str
    sif: str
    sha256: str
    size_bytes: int | None
    reused: bool
    """Whether an earlier run made the SIF."""


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
            # NAME=value is how environments are written down.
            yield prefix, "\n".join(str(item) for item in document if not _SECRET.search(str(item).partition("=")[0]))
    elif document not in (None, ""):
        yield prefix, str(document)


def image_facts(document: Document) -> ImageFacts:
    """The facts of one ``images/<sandbox>.json``, a :class:`~sifproof.image.provenance.Provenance` as a rule."""
    size = document.get("size_bytes")
    return ImageFacts(
        digest=_text(document.get("digest")),
        sif=_text(document.get("sif")),
        sha256=_text(document.get("sha256")).removeprefix("sha256:"),
        size_bytes=size if type(size) is int else None,
        reused=document.get("reused") is True,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def timings(recorded: Recorded) -> list[Timing]:
    """The seconds of each step that the stages recorded, then of each suite, in the order of the plan."""
    found = []
    for sandbox in recorded.plan.sandboxes:
        for stage, documents in (("image", recorded.images), ("job", recorded.endpoints)):
            steps = documents.get(sandbox.name, {}).get("seconds")
            if isinstance(steps, Mapping):
                found += [
                    Timing(sandbox.name, stage, str(step), float(seconds))
                    for step, seconds in steps.items()
                    if step != "total" and _is_duration(seconds)
                ]
        suites = dict.fromkeys(sandbox.suites, (0.0, 0.0))
        for row in recorded.verdicts:
            if row.sandbox == sandbox.name:
                took, waited = suites.get(row.suite, (0.0, 0.0))
                suites[row.suite] = took + row.duration_s, waited + row.waited_s
        found += [Timing(sandbox.name, "checks", suite, *sums) for suite, sums in suites.items() if sums[0]]
    return found


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
