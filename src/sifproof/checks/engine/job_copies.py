"""Twins of a sandbox for checks: one to be harmed, or another sandbox on the same node."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from sifproof.checks.engine.readiness import answers
from sifproof.checks.engine.registry import NotApplicable, NotMeasured
from sifproof.checks.engine.subject import Server
from sifproof.checks.engine.suite import server_of
from sifproof.errors import SifproofError
from sifproof.nomad import job_copy


def second_job(server: Server, **options: Any) -> dict[str, Any]:
    """The job of a twin of the sandbox; not applicable where there can be none."""
    try:
        return job_copy.create_twin(server.placed.job, **options)
    except job_copy.NoTwinError as error:
        raise NotApplicable(str(error)) from None


def start(server: Server, job: dict[str, Any], keep: contextlib.ExitStack) -> Server:
    """The server of ``job``, a twin of the sandbox of ``server``, ready; it ends with ``keep``."""
    placed = server.placed
    try:
        allocation = keep.enter_context(job_copy.running(placed.nomad, job, placed.settings.nomad.placed_within_s))
        there = server_of(dataclasses.replace(placed, allocation=allocation, job=job))
        there.keep = keep
        answered = answers(there)
    except SifproofError as error:
        raise NotMeasured(f"a second sandbox of this kind did not start: {error}") from None
    if not answered.passed:
        raise NotMeasured(f"a second sandbox of this kind did not answer: {answered.saw}")
    return there
