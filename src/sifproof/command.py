"""The command of a run, as a shell takes it: what *run again* means in reports and messages.

``sifproof run`` alone would test the default config, which is another image. Standard library only.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "SIFPROOF_COMMAND"
"""Holds the run's command for every process below the outermost."""

DEFAULT = "sifproof run"
_CONFIG = ("--config", "-C")
_PASSWORD = re.compile(r"(?<=://)([^/\s:@'\"]*):[^/\s@'\"]+@")


def of(program: Sequence[str], arguments: Sequence[str]) -> str:
    """The command that ran ``program`` with ``arguments``; a password in an address is left out."""
    return _PASSWORD.sub(r"\1:***@", shlex.join([*program, *arguments]))


def this(arguments: Sequence[str]) -> str:
    """The command of this process, with ``arguments``."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return of([sys.executable, "-m", started.parent.name], arguments)
    found = shutil.which(started.name)
    by_name = sys.argv[0] == started.name or (found and started.exists() and Path(found).samefile(started))
    return of([started.name if by_name else sys.argv[0]], arguments)


def current(environ: Mapping[str, str] = os.environ) -> str:
    """The command of the run that this process belongs to; that of the default config where it belongs to none."""
    return environ.get(VARIABLE) or DEFAULT


def with_settings(command: str, *settings: str) -> str:
    """``command`` with ``settings`` (``driver=docker``) in place of what its ``--config`` says of these keys.

    Snakemake takes the last ``--config`` alone, so they join that one.
    """
    words = shlex.split(command)
    end = words.index("--") if "--" in words else len(words)
    at = next((n for n in range(end - 1, -1, -1) if words[n].partition("=")[0] in _CONFIG), None)
    if at is None:
        return shlex.join([*words[:end], "--config", *settings, *words[end:]])
    option, _, first = words[at].partition("=")
    stop = at + 1
    while stop < end and not words[stop].startswith("-") and not first:
        stop += 1
    keys = {setting.partition("=")[0] for setting in settings}
    kept = [word for word in ([first] if first else words[at + 1 : stop]) if word.partition("=")[0] not in keys]
    return shlex.join([*words[:at], option, *kept, *settings, *words[stop:]])


def by_make(command: str, *variables: str) -> str:
    """``make run`` that does what ``command`` does, with ``variables`` (``DOCKER=yes``)."""
    words = shlex.split(command)
    arguments = words[words.index("run") + 1 :] if "run" in words[:4] else words[1:]
    # make expands what it gets, then a shell splits it.
    given = [f"ARGS={shlex.join(arguments).replace('$', '$$')}"] if arguments else []
    return shlex.join(["make", "run", *variables, *given])
