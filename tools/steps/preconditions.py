"""What set-up can't make: what the machine itself must allow. Each lack is told with what it costs and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sifproof import variables
from sifproof.errors import SifproofError
from steps import places

FUSE = Path("/dev/fuse")


def lacking(*, docker: bool) -> Iterator[SifproofError]:
    """What this machine lacks for runs; with ``docker``, for a private Docker engine too."""
    yield from _user_namespaces()
    yield from _fuse()
    if docker and os.geteuid() != 0:
        yield SifproofError(
            "a private Docker engine can't be started",
            why="it needs root, and this is an ordinary user; the docker sandbox is left out of runs, and tests that "
            "need an engine fail",
            todo="run as root, or start an engine and set DOCKER_HOST where it is not at its usual place",
        )


_UNFIT = {
    ":": "bind mounts and lists of folders are split there",
    ",": "bind mounts are split there",
    "$": "setuptools and Nomad take what follows for the name of a variable",
    "{": "setuptools and Nomad take what follows for the name of a variable",
    "}": "setuptools and Nomad take what is before it for the name of a variable",
    '"': "pip puts the path into shell lines between such quotes",
    "`": "pip puts the path into shell lines, which would run what follows",
    "\\": "pip puts the path into shell lines, which would take it away",
}


_MOUNTED = "Apptainer, which set-up puts there, does not know its own mounts again: the kernel writes it as a number"
"""Why no tools can lie below a blank, or what else ``/proc/self/mountinfo`` has a number for."""


def require_fit_paths(*, apptainer: bool) -> None:
    """Raise where checkout or tools lie at a path with which what is made there could not run.

    ``apptainer`` says whether set-up's own is to run.
    """
    paths = {
        places.CHECKOUT: (_UNFIT, "move the checkout to a folder without it"),
        places.TOOLS: (
            _UNFIT | (dict.fromkeys(" #", _MOUNTED) if apptainer else {}),
            "set SIFPROOF_TOOLS to a folder without it, for this and for runs, or move the checkout",
        ),
    }
    for path, (unfit, todo) in paths.items():
        for character in str(path):
            why = unfit.get(character) or ("" if character.isprintable() else "no line of text can hold it")
            if why:
                raise SifproofError(
                    f"{str(path)!r} can't hold what set-up makes",
                    why=f"there is {character!r} in the path: {why}",
                    todo=todo,
                )


def require_room(gigabytes: float, what: str) -> None:
    """Raise unless ``.tools`` has ``gigabytes`` of free disk for ``what``."""
    places.TOOLS.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(places.TOOLS).free / 1e9
    if free < gigabytes:
        raise SifproofError(
            f"{what} needs {gigabytes:g} GB of free disk, and {places.TOOLS} has {free:.1f} GB",
            todo="make room, or set SIFPROOF_TOOLS to a folder on a larger disk",
        )


def _user_namespaces() -> Iterator[SifproofError]:
    # bubblewrap in the container makes a namespace inside Apptainer's: two levels.
    one = ["unshare", "--user", "--map-root-user"]
    for words, what in ((one, "user namespaces"), ([*one, *one], "user namespaces inside user namespaces")):
        asked = subprocess.run([*words, "true"], capture_output=True, text=True, check=False, env=variables.of())
        if asked.returncode != 0:
            yield SifproofError(
                f"this machine gives no {what}",
                why=f"`{' '.join(words)} true` said: {asked.stderr.strip()}; without them Apptainer runs no image for "
                "an ordinary user, and commands in a sandbox are not shielded from one another",
                todo=_how_to_allow_user_namespaces(),
            )
            return


def _how_to_allow_user_namespaces() -> str:
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "have root run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
    if _setting("user/max_user_namespaces") == "0":
        return "have root run `sysctl -w user.max_user_namespaces=65536`"
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "have root run `sysctl -w kernel.unprivileged_userns_clone=1`"
    return "in a container, start it with --privileged; elsewhere ask who looks after the machine"


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _fuse() -> Iterator[SifproofError]:
    cost = (
        "without it Apptainer can mount no image for an ordinary user, and sandboxes with the singularity driver fail"
    )
    if not FUSE.exists():
        yield SifproofError(
            f"{FUSE} is not there",
            why=cost,
            todo="have root run `modprobe fuse`; for a container, `--device /dev/fuse`",
        )
    elif not os.access(FUSE, os.R_OK | os.W_OK):
        yield SifproofError(
            f"{FUSE} can't be read and written by this user", why=cost, todo=f"have root run `chmod 666 {FUSE}`"
        )
