"""The token of a job: who has it may use the job's servers. A job holds its SHA-256 alone.

It lies in ``results/runs/<run>/tokens/<sandbox>``, which only the user of the run may read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from sifproof.errors import SifproofError


def path_for(job: Path) -> Path:
    """Where the token of the job lies that is rendered to ``job``: ``jobs/<sandbox>.json`` of a run's folder."""
    return job.parent.parent / "tokens" / job.stem


def make(job: Path) -> str:
    """Make the token of ``job`` and write it down; its SHA-256."""
    path, token = path_for(job), secrets.token_urlsafe()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never that of an earlier job, with whatever mode and whatever link to it.
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token)
    return hashlib.sha256(token.encode()).hexdigest()


def read(job: Path) -> str | None:
    """The token of ``job``; None where it has none."""
    try:
        return path_for(job).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SifproofError(f"The token of a job can't be read from {path_for(job)}", why=str(error.strerror)) from None


def remove(job: Path) -> None:
    """See that ``job`` has no token."""
    path_for(job).unlink(missing_ok=True)
