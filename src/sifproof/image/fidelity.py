"""Whether a SIF holds what its image holds: the differences, and which of them conversion can't help making.

What Apptainer changes was found by converting odd images with Apptainer 1.4.5, as root and as an ordinary user:
:data:`KNOWN` is that list. Whatever is not in it is a fault of the conversion, or another SIF. Not compared are times,
and extended attributes other than capabilities.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from sifproof.image.tree import Entry, Tree, find

Aspect = Literal["files", "content", "modes", "links"]

KNOWN = {
    "own-files": "Apptainer adds its own: /.singularity.d, and links to it in the root directory",
    "mount-points": "Apptainer makes the places that it mounts something at where the image has none",
    "network-files": "Apptainer empties /etc/hosts and /etc/resolv.conf: it mounts the node's over them",
    "unnamed-directories": "no layer says which mode a directory has that is only on the way to a file",
    "devices": "only root can make a device: it becomes an empty file; a sandbox gets its /dev from Apptainer",
    "owners": "only root can give a file away: all belong to whoever runs the SIF",
    "capabilities": "only root can give a file capabilities, and a SIF is mounted so that they have no effect",
}
"""Differences of files that conversion makes, with the reason."""

KNOWN_SETTINGS = {
    "search-paths": "Apptainer appends its own folders to PATH and LD_LIBRARY_PATH",
    "runtime-variables": "Apptainer sets them itself when a container starts",
    "unusable-names": "a variable whose name no shell accepts is not handed on",
    "schema-labels": "Apptainer writes the org.label-schema labels about the SIF itself",
}
"""Differences of settings that conversion makes, with the reason."""

NO_COUNTERPART = ("User", "Volumes", "Healthcheck", "StopSignal")
"""Settings of an image that Apptainer leaves alone: a SIF runs as whoever starts it, and is read-only."""

FOLDER = ".singularity.d"
RUNSCRIPT, LABELS = f"{FOLDER}/runscript", f"{FOLDER}/labels.json"
_OWN_LINKS = frozenset({".exec", ".run", ".shell", ".test", "environment", "singularity"})
_MOUNT_POINTS = frozenset(
    {"dev", "etc", "etc/hosts", "etc/resolv.conf", "home", "proc", "root", "sys", "tmp", "var", "var/tmp"}
)
_NETWORK_FILES = ("etc/hosts", "etc/resolv.conf")
_SEARCH_PATHS = frozenset({"PATH", "LD_LIBRARY_PATH"})
_RUNTIME = re.compile(r"(APPTAINER|SINGULARITY|NOMAD)_\w*|HOME|PWD|OLDPWD|SHLVL|IFS|_|PROMPT_COMMAND")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


class Difference(NamedTuple):
    """One thing that is not the same in image and SIF."""

    path: str
    """Of a file; the name of a setting."""
    aspect: str
    image: str
    sif: str
    """What the one and the other has, in words."""
    known: str = ""
    """Key of :data:`KNOWN` or :data:`KNOWN_SETTINGS`; empty where nothing explains it."""

    def __str__(self) -> str:
        return f"{show(self.path)}: {self.image} in the image, {self.sif} in the SIF"


def compare(image: Tree, sif: Tree) -> list[Difference]:
    """Every difference between the files of an image and those of a SIF, by path."""
    network = _network_files(image)
    found: list[Difference] = []
    for path in sorted(image.keys() | sif.keys()):
        one, other = image.get(path), sif.get(path)
        if one != other:
            found += _differences(path, one, other, path in network)
    return found


def _network_files(image: Tree) -> set[str]:
    """The names that the network files of ``image`` go by, through symbolic and hard links."""
    paths = {path for name in _NETWORK_FILES if (path := find(image, name))}
    twins = {image[path].twin for path in paths} - {""}
    return paths | {path for path, entry in image.items() if entry.twin in twins}


def _differences(path: str, image: Entry | None, sif: Entry | None, network: bool) -> Iterator[Difference]:
    own = path == FOLDER or path.startswith(f"{FOLDER}/")
    if image is None or sif is None or image.kind != sif.kind:
        known = _known_kind(path, image, sif)
        yield Difference(path, "files", _kind(image), _kind(sif), "own-files" if own and sif else known)
        return
    if (image.size, image.sha256) != (sif.size, sif.sha256):
        emptied = "network-files" if network and sif.size == 0 else ""
        one, other = (f"{entry.size} bytes, sha256 {entry.sha256[:12]}" for entry in (image, sif))
        yield Difference(path, "content", one, other, "own-files" if own else emptied)
    if image.mode != sif.mode and sif.mode is not None:
        known = "own-files" if own else "network-files" if network else ""
        if image.mode is None:
            yield Difference(path, "modes", "no mode", f"{sif.mode:04o}", "unnamed-directories")
        else:
            yield Difference(path, "modes", f"{image.mode:04o}", f"{sif.mode:04o}", known)
    if image.owner != sif.owner:
        yield Difference(path, "modes", f"owner {image.owner}", f"owner {sif.owner}", "owners" * (sif.owner == "0:0"))
    if image.capabilities != sif.capabilities:
        one, other = ("capabilities" if entry.capabilities else "no capabilities" for entry in (image, sif))
        yield Difference(path, "modes", one, other, "capabilities" if image.capabilities else "")
    if image.target != sif.target:
        yield Difference(path, "links", f"leads to {show(image.target)}", f"to {show(sif.target)}", "own-files" * own)
    if image.twin != sif.twin:
        one, other = (f"a hard link of {show(e.twin)}" if e.twin else "no hard link" for e in (image, sif))
        yield Difference(path, "links", one, other)


def _known_kind(path: str, image: Entry | None, sif: Entry | None) -> str:
    if sif is None:
        return ""
    if image is None:
        if path in _OWN_LINKS and sif.kind == "link" and sif.target.startswith(f"{FOLDER}/"):
            return "own-files"
        return "mount-points" if path in _MOUNT_POINTS and sif.kind in {"directory", "file"} and not sif.size else ""
    return "devices" if image.kind == "device" and sif.kind == "file" and not sif.size else ""


def _kind(entry: Entry | None) -> str:
    return f"a {entry.kind}" if entry else "nothing"


def compare_environment(given: Iterable[str], seen: Mapping[str, str]) -> list[Difference]:
    """What a process of the SIF finds of the environment ``given`` by the image, as `NAME=value`.

    ``seen`` has for each name what :func:`fingerprint` makes of it. No value is told: it may be a secret. Of a name
    that stands twice an engine hands on the last value, and Apptainer the first.
    """
    found = []
    values: dict[str, list[str]] = {}
    for name, value in (entry.split("=", 1) for entry in given if "=" in entry):
        values.setdefault(name, []).append(value)
    for name, (*others, value) in values.items():
        there = seen.get(name, "")
        if there in {fingerprint(name, value), value if name in _SEARCH_PATHS else None}:
            continue
        known = ""
        if _RUNTIME.fullmatch(name):
            known = "runtime-variables"
        elif name in _SEARCH_PATHS and there.startswith(f"{value}:"):
            known = "search-paths"
        elif not _VARIABLE.fullmatch(name) and name not in seen:
            known = "unusable-names"
        had = f"the last of {len(others) + 1} values" if others else "a value"
        found.append(Difference(name, "environment", had, "another" if name in seen else "none", known))
    return found


def fingerprint(name: str, value: str) -> str:
    """What is compared of a variable: the SHA-256 of `NAME=value`; of search paths the value itself."""
    if name in _SEARCH_PATHS:
        return value
    return hashlib.sha256(f"{name}={value}".encode("utf-8", "surrogateescape")).hexdigest()


def compare_labels(image: Mapping[str, str], sif: Mapping[str, str]) -> list[Difference]:
    """The labels of the image that the SIF does not have as they are; it has more."""
    return [
        Difference(
            name,
            "labels",
            repr(value),
            repr(sif[name]) if name in sif else "none",
            "schema-labels" if name.startswith("org.label-schema.") and name in sif else "",
        )
        for name, value in image.items()
        if sif.get(name) != value
    ]


def read_runscript(script: str) -> dict[str, list[str]] | None:
    """Entrypoint and command in the runscript of a SIF made of an OCI image; None where it has another form."""
    words: dict[str, list[str]] = {}
    for variable, setting in (("OCI_ENTRYPOINT", "Entrypoint"), ("OCI_CMD", "Cmd")):
        begin = re.search(rf"^{variable}=", script, re.MULTILINE)
        if not begin:
            return None
        lexer = shlex.shlex(script[begin.end() :], posix=True, punctuation_chars=False)
        lexer.whitespace_split, lexer.commenters = True, ""
        try:
            quoted = "" if script[begin.end() : begin.end() + 1] in {"", "\n"} else lexer.get_token() or ""
        except ValueError:
            return None
        words[setting] = [re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL) for word in _WORD.findall(quoted)]
    return words


def unexplained(differences: Iterable[Difference], aspect: str) -> list[Difference]:
    """Those of ``aspect`` that conversion need not make."""
    return [difference for difference in differences if difference.aspect == aspect and not difference.known]


def summary(differences: Sequence[Difference], aspect: str) -> str:
    """How many of ``aspect`` conversion makes, by kind; empty where there are none."""
    kinds = [difference.known for difference in differences if difference.aspect == aspect and difference.known]
    return ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys([*KNOWN, *KNOWN_SETTINGS]) if kind in kinds
    )


def table(differences: Iterable[Difference]) -> str:
    """All of them, one a line, with tabs between path, aspect, image, SIF and what explains it."""
    rows = [("path", "aspect", "image", "sif", "known"), *differences]
    return "".join("\t".join(show(word) for word in row) + "\n" for row in rows)


def show(name: str) -> str:
    """``name`` on one line, for people: what can't be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
