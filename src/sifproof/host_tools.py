"""The programs that sifproof calls: which there are, how new each must be, and which one of a machine is taken.

What lies on PATH and is new enough is taken; what set-up made under ``.tools/`` comes second. Standard library only:
``tools/setup.py`` uses this module before any dependency is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sifproof import variables
from sifproof.checkout import ROOT
from sifproof.errors import SifproofError

Origin = Literal["PATH", ".tools"]
_VERSION_TIMEOUT_S = 20


@dataclass(frozen=True)
class Need:
    """What is asked of one tool.

    ``version`` is what makes it tell its version, ``says`` what its answer must hold (others have taken the same name),
    ``commands`` the names it goes by.
    """

    why: str
    minimum: str
    version: tuple[str, ...] = ("--version",)
    says: str = ""
    commands: tuple[str, ...] = ()


NEEDS: dict[str, Need] = {
    "nomad": Need("it runs the sandboxes", "1.8", ("version",), "Nomad v"),
    "apptainer": Need(
        "it makes and runs the .sif",
        "1.2",
        commands=("apptainer", "singularity"),
    ),
    "mksquashfs": Need(
        "it packs the file system of the .sif, zstd among its ways", "4.4", ("-version",), "mksquashfs version"
    ),
    "skopeo": Need("it copies and identifies images", "1.9"),
    "buildah": Need("it builds the reference image", "1.28"),
    "mmdebstrap": Need("it makes the reference image's base of Debian packages", "1.5"),
    "docker": Need("it reads and builds images in a Docker engine", "20.10", says="Docker version"),
}
"""Each tool by name. Minimum versions are the oldest whose options sifproof uses."""

# SingularityCE counts its versions in a way of its own.
_SINGULARITY_CE_MINIMUM = "4.0"


@dataclass(frozen=True)
class Tool:
    """A program that was chosen. ``origin`` says whether the machine had it or set-up made it."""

    name: str
    path: Path
    version: str
    origin: Origin


def root() -> Path:
    """The folder of set-up: ``SIFPROOF_TOOLS``, else ``.tools`` of the checkout that holds this file."""
    given = os.environ.get("SIFPROOF_TOOLS")
    return Path(given).absolute() if given else ROOT / ".tools"


def find(name: str) -> Tool | None:
    """The program to use for ``name``, a key of :data:`NEEDS`; None where there is none that is new enough."""
    return next((tool for tool in _candidates(name) if new_enough(name, tool.version)), None)


def require(name: str) -> Tool:
    """Like :func:`find`. Raises :class:`SifproofError`, which says what to do, where there is none."""
    tool = find(name)
    if tool:
        return tool
    need = NEEDS[name]
    old = [f"{t.path} is {_told(t.version)}" for t in _candidates(name)]
    raise SifproofError(
        f"{name} {need.minimum} or later was not found",
        why=f"{need.why}" + (f"; {', '.join(old)}" if old else ""),
        todo=f"run `make setup`, or put {' or '.join(need.commands or (name,))} on PATH",
    )


def environment(program: str = "") -> dict[str, str]:
    """The environment to start ``program`` in, as :mod:`sifproof.variables` makes it, the chosen tools first on PATH.

    ``singularity`` and ``apptainer`` both name the chosen one there: spython knows only the former.
    """
    links: dict[str, str] = {}
    for name, need in NEEDS.items():
        if tool := find(name):
            links |= {command: str(tool.path) for command in need.commands or (name,)}
    folders = [str(_folder_of(links)), *map(str, _path_without_ours())]
    return variables.of(program) | {"PATH": os.pathsep.join(folders)}


def new_enough(name: str, version: str) -> bool:
    """Whether ``version``, as :func:`version_of` tells it, will do for ``name``."""
    kind, _, number = version.rpartition(" ")
    minimum = _SINGULARITY_CE_MINIMUM if kind == "SingularityCE" else NEEDS[name].minimum
    return bool(number) and kind != "Singularity" and at_least(number, minimum)


def parse_version(text: str) -> str:
    """The version in what a program prints when asked for it: ``1.4.5``, or ``SingularityCE 4.1.0``; empty if none.

    Singularity from before the project split in two says ``singularity version 3.8.7``; no option of ours is in it.
    """
    number = re.search(r"\d+(?:\.\d+)+", text)
    if not number:
        return ""
    kind = {"singularity-ce": "SingularityCE ", "singularity": "Singularity "}
    return kind.get(text.split(maxsplit=1)[0].lower(), "") + number.group()


def version_of(name: str, path: Path) -> str:
    """The version of the program at ``path``; empty where it does not run. Asked once for each state of the file."""
    real = path.resolve()
    try:
        state = real.stat()
    except OSError:
        return ""
    key = f"{name}:{real}:{state.st_mtime_ns}:{state.st_size}"
    known = _read_known()
    if key not in known:
        known[key] = _ask(name, path)
        if known[key]:
            _write_known(known)
    return known[key]


def _ask(name: str, path: Path) -> str:
    try:
        answer = subprocess.run(
            [str(path), *NEEDS[name].version],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=variables.of(name),
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # Old mksquashfs ends with 1 after it told its version; a program that can't run tells none.
    return parse_version(answer.stdout) if NEEDS[name].says in answer.stdout else ""


def _candidates(name: str) -> Iterator[Tool]:
    """The programs that could be ``name``, the machine's own before set-up's, each with its version."""
    commands = NEEDS[name].commands or (name,)
    own: list[tuple[Path, Origin]] = [(f / c, "PATH") for c in commands for f in _path_without_ours()]
    for path, origin in [*own, (root() / "bin" / name, ".tools")]:
        # In this order: access() says no where is_file() raises, in a folder that can't be entered.
        if os.access(path, os.X_OK) and path.is_file():
            yield Tool(name, path, version_of(name, path), origin)


def _path_without_ours() -> list[Path]:
    """PATH without set-up's own folders, which an outer :func:`environment` may have put there."""
    ours = root()
    folders = (Path(p) for p in os.environ.get("PATH", os.defpath).split(os.pathsep) if p)
    return [f for f in folders if ours not in f.parents and f.parent.name != "sifproof-path"]


def _folder_of(links: dict[str, str]) -> Path:
    """A folder that holds ``links`` (name to target) and nothing else; made when it is not there."""
    key = hashlib.sha256(json.dumps(links, sort_keys=True).encode()).hexdigest()[:12]
    private = Path(tempfile.gettempdir()) / f"sifproof-{os.geteuid()}"
    for base in (root(), private):
        if base == private and not make_private(base):
            continue
        folder = base / "sifproof-path" / key
        if folder.is_dir():
            return folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            fresh = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        except OSError:
            continue
        for name, target in links.items():
            (fresh / name).symlink_to(target)
        fresh.chmod(0o755)
        try:
            fresh.rename(folder)
        except OSError:  # another process was first with the same links
            for name in links:
                (fresh / name).unlink()
            fresh.rmdir()
        return folder
    raise SifproofError(
        "no folder for the links to the chosen tools could be made",
        why=f"{root()} can't be written, and {private} can't either or is open to other users",
        todo="set SIFPROOF_TOOLS or TMPDIR to a folder that can",
    )


def make_private(folder: Path) -> bool:
    """Whether ``folder``, made where it is not there, is a folder of this user in which nobody else can write.

    Among the temporary files of all users anyone may have made one of that name before, with programs in it.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _known_file() -> Path:
    return root() / "versions.json"


def _read_known() -> dict[str, str]:
    try:
        known = json.loads(_known_file().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_known(known: dict[str, str]) -> None:
    file = _known_file()
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(known, indent=1))
        fresh.replace(file)
    except OSError:  # a read-only .tools only costs the time to ask again
        with contextlib.suppress(OSError):
            fresh.unlink()


def at_least(version: str, minimum: str) -> bool:
    """Whether dotted number ``version`` is ``minimum`` or later."""
    number, least = (tuple(map(int, v.split("."))) for v in (version, minimum))
    return number >= least


def _told(version: str) -> str:
    return version or "no program that runs here"
