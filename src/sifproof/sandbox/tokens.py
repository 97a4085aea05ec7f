"""The token of a job: who has it may use the job's servers. A job holds its SHA-256 alone.

It lies in ``results/runs/<run>/tokens/<sandbox>``, which only the user of the run may read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from sifproof.errors import Fault, SifproofError

_MAX_CHARACTERS = 4096


def path_for(job: Path) -> Path:
    """Where the token of the job lies that is rendered to ``job``: ``jobs/<sandbox>.json`` of a run's folder."""
    return job.parent.parent / "tokens" / job.stem


def make(job: Path) -> str:
    """Make the token of ``job`` and write it down; its SHA-256."""
    token = secrets.token_urlsafe()
    keep(job, token)
    return hashlib.sha256(token.encode()).hexdigest()


def take(job: Path, file: Path) -> None:
    """Write down the token in ``file`` as that of ``job``.

    Raises :class:`SifproofError` (fault: configuration) where there is none in it.
    """
    try:
        with file.open(encoding="ascii") as stream:
            token = stream.read(_MAX_CHARACTERS + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = str(error.strerror) if isinstance(error, OSError) else "it holds more than ASCII"
        raise SifproofError(f"The token can't be read from {file}", why=why, fault=Fault.CONFIGURATION) from None
    if not token or len(token) > _MAX_CHARACTERS or token.split() != [token]:
        raise SifproofError(
            f"{file} holds no token", why="one word is expected, and nothing else", fault=Fault.CONFIGURATION
        )
    keep(job, token)


def keep(job: Path, token: str) -> None:
    """Write down ``token`` as that of ``job``."""
    path = path_for(job)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never that of an earlier job, with whatever mode and whatever link to it.
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token)


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
