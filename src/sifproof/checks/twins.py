"""Twins of a sandbox for checks: one to be harmed, or another sandbox on the same node."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from sifproof.checks.health import answers
from sifproof.checks.registry import NotApplicable, NotMeasured
from sifproof.checks.server import Server
from sifproof.checks.suite import server_of
from sifproof.errors import SifproofError
from sifproof.nomad import twin


def second_job(server: Server, **options: Any) -> dict[str, Any]:
    """The job of a twin of the sandbox; not applicable where there can be none."""
    try:
        return twin.create_twin(server.placed.job, **options)
    except twin.NoTwinError as error:
        raise NotApplicable(str(error)) from None


def start(server: Server, job: dict[str, Any], keep: contextlib.ExitStack) -> Server:
    """The server of ``job``, a twin of the sandbox of ``server``, ready; it ends with ``keep``."""
    placed = server.placed
    try:
        allocation = keep.enter_context(twin.running(placed.nomad, job, placed.settings.nomad.placed_within_s))
        there = server_of(dataclasses.replace(placed, allocation=allocation, job=job))
        there.keep = keep
        answered = answers(there)
    except SifproofError as error:
        raise NotMeasured(f"a second sandbox of this kind did not start: {error}") from None
    if not answered.passed:
        raise NotMeasured(f"a second sandbox of this kind did not answer: {answered.saw}")
    return there
