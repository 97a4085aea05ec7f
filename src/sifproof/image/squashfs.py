"""The files that a SIF holds, read by unsquashfs in one pass: nothing is mounted, unpacked or run.

`unsquashfs -pf -` writes a pseudo file: a line for each name with type, mode, owner and size, then a mark, then the
contents one after another. White space, quotes and backslashes in names have a backslash before them. Link targets are
written as they are, up to the end of the line, so one that holds a newline goes on in the next.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.image import sif
from sifproof.image.process import tail
from sifproof.image.tree import Entry, Kind, Tree, hash_of

_MINIMUM = "4.5"
_KEPT_BYTES = 2**20
_MARK = (b"#\n", b"# START OF DATA - DO NOT MODIFY\n", b"#\n")
_WORD = rb"((?:[^\s\\]|\\.)+)"
_NAME = _WORD + rb" "
# Name, type, time, mode, owner and group; of a file its size and the place of its content, of a link its target.
_LINE = re.compile(_NAME + rb"([DRSIBC]) \d+ ([0-7]+) (\d+ \d+)(?: (.*))?\n", re.DOTALL)
_PLACE = re.compile(rb"(\d+) (\d+)(?: [01])?")
_HARD_LINK = re.compile(_NAME + rb"L " + _WORD + rb"\n", re.DOTALL)
_ATTRIBUTE = re.compile(_NAME + rb"x ([^=\s]+)=.*\n", re.DOTALL)
# How a line begins that does not go on with a link's target: also one whose name has a newline in it.
_BEGIN = re.compile(_NAME + rb"(?:[DRSIBC] \d+ [0-7]+ \d+ \d+\b|L |x )|.*(?<!\\)(?:\\\\)*\\\n$", re.DOTALL)
_KINDS: dict[bytes, Kind] = {b"D": "directory", b"R": "file", b"S": "link", b"B": "device", b"C": "device"}
_ELF = b"\x7fELF"
# Processors by the number that ELF has for them, as GOARCH names them.
_MACHINES = {3: "386", 62: "amd64", 40: "arm", 183: "arm64", 21: "ppc64", 8: "mips", 22: "s390x", 243: "riscv64"}


class Content(NamedTuple):
    """What a SIF's file system holds."""

    tree: Tree
    kept: dict[str, bytes]
    """The contents of the files that were asked for, by path; of a long one the first MiB."""
    programs: Counter[str]
    """How many ELF programs and libraries there are by processor, as GOARCH names it."""


def read(path: Path, keep: frozenset[str] = frozenset()) -> Content:
    """The files of the SIF at ``path``, with the contents of those of ``keep``; big files are never held whole.

    Raises :class:`SifproofError`: (configuration) it is no SIF or holds no squashfs; (infrastructure) there is no
    unsquashfs that can, or it fails.
    """
    command = [str(_unsquashfs()), "-o", str(sif.read_file_system(path).offset), "-pf", "-", str(path)]
    problem = ""
    with tempfile.TemporaryFile() as words:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            env=host_tools.environment("mksquashfs"),
        ) as process:
            stream = process.stdout
            assert stream is not None  # noqa: S101 (a pipe)
            try:
                content = _read(stream, keep)
            except (ValueError, LookupError, EOFError) as error:
                problem = str(error)
                process.kill()
        if process.returncode == 0 and not problem:
            return content
        said = tail(words, 500).strip()
    why = problem or f"exit status {process.returncode}"
    raise SifproofError(f"unsquashfs can't read {path}", why=f"{why}; it says: {said}" if said else why)


def _unsquashfs() -> Path:
    """The unsquashfs that came with the chosen mksquashfs, or with set-up's where that one is too old."""
    found = []
    for packer in (host_tools.require("mksquashfs").path, host_tools.root() / "bin" / "mksquashfs"):
        program = packer.resolve().with_name("unsquashfs")
        version = host_tools.version_of("mksquashfs", packer) if program.exists() else ""
        if version and host_tools.at_least(version, _MINIMUM):
            return program
        found.append(f"{program} is {version or 'not there'}")
    raise SifproofError(
        f"There is no unsquashfs {_MINIMUM} or later",
        why=f"it reads the files of a SIF; {', '.join(found)}",
        todo="install squashfs-tools of that version, or run `make setup`",
    )


def _read(stream: IO[bytes], keep: frozenset[str]) -> Content:
    tree, sizes = _names(stream)
    kept: dict[str, bytes] = {}
    programs: Counter[str] = Counter()
    for path, size in sizes:
        head = stream.read(min(size, _KEPT_BYTES if path in keep else 64))
        if path in keep:
            kept[path] = head
        if head.startswith(_ELF):
            programs[_machine(head)] += 1
        tree[path] = tree[path]._replace(size=size, sha256=hash_of(stream, size - len(head), head))
    return Content(dict(sorted(_with_twins(tree).items())), kept, programs)


def _names(stream: IO[bytes]) -> tuple[Tree, list[tuple[str, int]]]:
    """The first part: all names, and those of contents with their sizes in the order in which they follow.

    Of a hard link the other name stands as its twin.
    """
    tree: Tree = {}
    sizes: list[tuple[str, int]] = []
    end = 0
    for line in _lines(stream):
        if found := _LINE.fullmatch(line):
            path, rest = _unescape(found[1]), found[5] or b""
            tree["." if path == "/" else path] = _entry(found[2], found[3], found[4], rest)
            if found[2] == b"R":
                place = _PLACE.fullmatch(rest)
                if not place or int(place[2]) != end:
                    raise ValueError(f"the content of {path!r} is not where it should be")
                sizes.append((path, int(place[1])))
                end += int(place[1])
        elif found := _HARD_LINK.fullmatch(line):
            tree[_unescape(found[1])] = Entry("file", None, twin=_unescape(found[2]))
        elif found := _ATTRIBUTE.fullmatch(line):
            path = _unescape(found[1])
            if found[2] == b"security.capability" and path in tree:
                tree[path] = tree[path]._replace(capabilities=True)
        else:
            raise ValueError(f"it wrote {line!r}, which is no line of a pseudo file")
    return tree, sizes


def _entry(kind: bytes, mode: bytes, owner: bytes, rest: bytes) -> Entry:
    entry = Entry(
        _KINDS.get(kind, "socket" if rest == b"s" else "fifo"), int(mode, 8), owner.decode().replace(" ", ":")
    )
    return entry._replace(mode=None, target=_text(rest)) if kind == b"S" else entry


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of the first part, those joined that belong together; leaves ``stream`` where the contents begin."""
    line = b""
    for more in stream:
        if more == _MARK[0]:
            if (second := stream.readline()) == _MARK[1]:
                stream.readline()
                yield line
                return
            more += second  # noqa: PLW2901 (a link's target after all)
        whole = _LINE.fullmatch(line)
        goes_on = whole is not None and whole[2] == b"S" and not _BEGIN.match(more)
        if (whole or _HARD_LINK.fullmatch(line) or _ATTRIBUTE.fullmatch(line)) and not goes_on:
            yield line
            line = more
        else:
            line += more
    raise EOFError("it ended before the contents")


def _with_twins(tree: Tree) -> Tree:
    """``tree`` with hard links as :class:`~sifproof.image.tree.Entry` has them."""
    groups: dict[str, list[str]] = {}
    for path, entry in tree.items():
        if entry.twin:
            groups.setdefault(entry.twin, [entry.twin]).append(path)
    for first, group in groups.items():
        twin = min(group) if tree[first].kind == "file" else ""
        tree |= dict.fromkeys(group, tree[first]._replace(twin=twin))
    return tree


def _unescape(name: bytes) -> str:
    return _text(re.sub(rb"\\(.)", rb"\1", name, flags=re.DOTALL))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _machine(head: bytes) -> str:
    """The processor of the ELF file that begins with ``head``."""
    order: Literal["little", "big"] = "big" if head[5:6] == b"\2" else "little"
    number = int.from_bytes(head[18:20], order)
    machine = _MACHINES.get(number, f"ELF machine {number}")
    return f"{machine}le" if machine in {"ppc64", "mips"} and order == "little" else machine
