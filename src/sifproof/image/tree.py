"""The files of an image: what its layers amount to, one after another, and the list of them that a store keeps.

Layers are merged as the OCI image specification says and as Apptainer unpacks them: a later entry replaces an earlier
one of its name, directories grow together, a whiteout removes what lower layers hold, the way to an entry leads through
symbolic links, and never out of the image. Nothing is unpacked: contents go through a hash.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from sifproof.errors import SifproofError

Kind = Literal["file", "directory", "link", "device", "fifo", "socket"]

CHUNK = 1 << 20
# tarfile copies what is left of its buffer for each header: with more of it, small files take twice as long.
_BUFFER = 1 << 16
_WHITEOUT, _OPAQUE, _META = ".wh.", ".wh..wh..opq", ".wh..wh."
_CAPABILITIES = "SCHILY.xattr.security.capability"
_MOST_LINKS = 255
# By how they begin. Not tarfile's own: it reads the first of several gzip members, and takes the rest for nothing.
_UNPACKERS: dict[bytes, Callable[[IO[bytes]], io.BufferedIOBase]] = {
    b"\x1f\x8b": lambda packed: gzip.GzipFile(fileobj=packed),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_FORMAT = 1


class Entry(NamedTuple):
    """One name of a file tree. What a kind does not have is empty."""

    kind: Kind
    mode: int | None
    """Permission bits with set-uid, set-gid and sticky; None where no layer says: a directory that a layer only needs
    on the way to a file."""
    owner: str = "0:0"
    size: int = 0
    sha256: str = ""
    target: str = ""
    twin: str = ""
    """Of a file with several names (hard links) the first of them, in the order of text."""
    capabilities: bool = False
    """Whether the file gives its process capabilities."""


Tree = dict[str, Entry]
"""Entries by path, relative to the root, which is ``.``; bytes that are no UTF-8 stand as surrogates."""


class Listing(NamedTuple):
    """What an image holds."""

    config: dict[str, Any]
    """The image's config, as the OCI image specification describes it."""
    tree: Tree


@dataclass(eq=False)
class _Node:
    """A name of the tree on its way. Hard links are several of one ``inode``."""

    entry: Entry
    layer: int
    children: dict[str, _Node] | None = None
    inode: object = field(default_factory=object)


@dataclass
class _Merge:
    """The tree while layers are put on it; ``number`` is that of the layer at hand."""

    root: _Node = field(default_factory=lambda: _Node(Entry("directory", None), 0, {}))
    number: int = 0

    def put(self, layer: IO[bytes]) -> str:
        """Put one layer, a tar in any compression that Python knows, on what is there; the sha256 of the tar."""
        self.number += 1
        with (
            _unpacked(layer) as stream,
            tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER, encoding="utf-8", errors="surrogateescape") as tar,
        ):
            for member in tar:
                self._member(tar, member)
                tar.members = []  # type: ignore[attr-defined] # else it keeps every header
            return stream.finish()

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _clean(member.name)
        folder, _, name = path.rpartition("/")
        if name.startswith(_WHITEOUT):
            self._whiteout(folder, name)
            return
        if path == "":
            self.root.entry = Entry("directory", member.mode & 0o7777, _owner(member))
            return
        parent = self._folder(folder)
        children = parent.children
        assert children is not None  # noqa: S101 (a folder)
        there = children.get(name)
        if member.islnk():
            node = self._linked(path, member.linkname)
        elif member.isdir() and there is not None and there.children is not None:
            there.entry, there.layer = _entry(tar, member), self.number
            return
        else:
            node = _Node(_entry(tar, member), self.number, {} if member.isdir() else None)
        children[name] = node

    def _linked(self, path: str, target: str) -> _Node:
        folder, _, name = _clean(target).rpartition("/")
        parent = self._find(folder)
        node = (parent.children or {}).get(name) if parent else None
        if node is None or node.children is not None:
            raise ValueError(f"{path!r} is a hard link to {target!r}, and there is no such file")
        # What the link itself says of mode and owner does not count.
        return _Node(node.entry, self.number, inode=node.inode)

    def _whiteout(self, folder: str, name: str) -> None:
        parent = self._find(folder)
        if parent is None or parent.children is None:
            return
        if name == _OPAQUE:
            self._prune(parent.children)
        elif not name.startswith(_META):
            hidden = name.removeprefix(_WHITEOUT)
            node = parent.children.get(hidden)
            if node is not None and not self._keeps(node):
                del parent.children[hidden]

    def _keeps(self, node: _Node) -> bool:
        """Whether ``node``, rid of what is of lower layers, has something of this one."""
        return bool(node.children is not None and self._prune(node.children)) or node.layer == self.number

    def _prune(self, children: dict[str, _Node]) -> int:
        for name in [name for name, node in children.items() if not self._keeps(node)]:
            del children[name]
        return len(children)

    def _folder(self, path: str) -> _Node:
        """The directory ``path``, made where there is none, as whoever unpacks the layer has to."""
        node = self._walk(path, make=True)
        assert node is not None  # noqa: S101 (made)
        return node

    def _find(self, path: str) -> _Node | None:
        return self._walk(path, make=False)

    def _walk(self, path: str, *, make: bool) -> _Node | None:
        todo = path.split("/")[::-1] if path else []
        way = [self.root]
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                way = way[:-1] or way
                continue
            if name in {"", "."}:
                continue
            children = way[-1].children
            assert children is not None  # noqa: S101 (only directories are on the way)
            node = children.get(name)
            if node is not None and node.entry.kind == "link":
                links += 1
                if links > _MOST_LINKS:
                    raise ValueError(f"{path!r} leads through more than {_MOST_LINKS} symbolic links")
                if node.entry.target.startswith("/"):
                    way = [self.root]
                todo += node.entry.target.split("/")[::-1]
                continue
            if node is None or node.children is None:
                if not make:
                    return None
                node = children[name] = _Node(Entry("directory", None), self.number, {})
            way.append(node)
        return way[-1]

    def tree(self) -> Tree:
        """What has come of it."""
        found: dict[str, _Node] = {".": self.root}
        names: dict[object, list[str]] = {}
        todo = [("", self.root)]
        while todo:
            prefix, folder = todo.pop()
            for name, node in (folder.children or {}).items():
                path = f"{prefix}{name}"
                found[path] = node
                if node.children is not None:
                    todo.append((f"{path}/", node))
                elif node.entry.kind == "file":
                    names.setdefault(node.inode, []).append(path)
        first = {min(group): group for group in names.values() if len(group) > 1}
        twins = {path: twin for twin, group in first.items() for path in group}
        return {path: node.entry._replace(twin=twins.get(path, "")) for path, node in sorted(found.items())}


class WrongLayersError(ValueError):
    """The layers are others than the image's config says."""


def merge(layers: Iterable[IO[bytes]], diff_ids: Sequence[str] | None = None) -> Tree:
    """The files of an image of ``layers``, the lowest first, which can seek.

    ``diff_ids`` are the digests that the image's config has for them, uncompressed: what was read is held against them.

    Raises ``ValueError``, ``OSError``, ``EOFError`` or :class:`tarfile.TarError` for layers that can't be read or make
    no sense, and :class:`WrongLayersError` for others than the config says.
    """
    merged = _Merge()
    try:
        found = [f"sha256:{merged.put(layer)}" for layer in layers]
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"the compression of layer {merged.number} is damaged: {error}") from error
    if diff_ids is not None and found != list(diff_ids):
        number = next((n for n, pair in enumerate(zip(found, diff_ids, strict=False)) if pair[0] != pair[1]), None)
        raise WrongLayersError(
            f"it has {len(found)} layers, and its config names {len(diff_ids)}"
            if number is None
            else f"layer {number + 1} is not the one that its config names: uncompressed it is {found[number]}, "
            f"and should be {diff_ids[number]}"
        )
    return merged.tree()


def find(tree: Tree, path: str) -> str | None:
    """Where ``path`` leads to in ``tree``, through symbolic links; None where there is nothing."""
    todo, way = path.split("/")[::-1], list[str]()
    for _ in range(_MOST_LINKS * 10):
        if not todo:
            return "/".join(way) or "."
        name = todo.pop()
        if name == "..":
            way = way[:-1]
        elif name not in {"", "."}:
            entry = tree.get("/".join([*way, name]))
            if entry is None:
                return None
            if entry.kind == "link":
                way = [] if entry.target.startswith("/") else way
                todo += entry.target.split("/")[::-1]
            else:
                way.append(name)
    return None


def hash_of(stream: IO[bytes], size: int, head: bytes = b"") -> str:
    """The SHA-256, in hex, of ``head`` and the next ``size`` bytes of ``stream``.

    Raises ``EOFError`` where there are fewer.
    """
    digest = hashlib.sha256(head)
    while size:
        chunk = stream.read(min(size, CHUNK))
        if not chunk:
            raise EOFError(f"{size} bytes are missing at the end")
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def save(path: Path, listing: Listing) -> None:
    """Write ``listing`` to the file ``path``."""
    with gzip.GzipFile(path, mode="wb", compresslevel=1, mtime=0) as packed:
        head = {"format": _FORMAT, "config": listing.config, "entries": len(listing.tree)}
        packed.write(json.dumps(head).encode() + b"\n")
        for name, entry in listing.tree.items():
            packed.write(json.dumps([name, *entry]).encode() + b"\n")


def load(path: Path) -> Listing:
    """The listing in the file ``path``; raises :class:`SifproofError` where it is not whole, or another version's."""
    try:
        with gzip.open(path) as packed:
            head = json.loads(packed.readline())
            if head["format"] != _FORMAT:
                raise ValueError(f"format {head['format']}")
            tree = {name: Entry(*values) for name, *values in map(json.loads, packed)}
        if len(tree) != head["entries"]:
            raise ValueError(f"{len(tree)} of {head['entries']} entries")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise SifproofError(
            f"The list of the image's files in {path} can't be read",
            why=str(error),
            todo="remove it: the next run makes it again",
        ) from error
    return Listing(head["config"], tree)


class _Hashed(io.RawIOBase):
    """What a stream holds, hashed as it is read."""

    def __init__(self, stream: IO[bytes] | io.BufferedIOBase) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._stream.read(size)
        self._hash.update(chunk)
        return chunk

    def finish(self) -> str:
        """Read what is left, such as what fills the last block of a tar; the sha256 of it all."""
        while self.read(CHUNK):
            pass
        return self._hash.hexdigest()


def _unpacked(layer: IO[bytes]) -> _Hashed:
    head = layer.read(8)
    layer.seek(0)
    opener = next((opener for magic, opener in _UNPACKERS.items() if head.startswith(magic)), None)
    return _Hashed(opener(layer) if opener else layer)


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    mode, owner = member.mode & 0o7777, _owner(member)
    if member.isdir():
        return Entry("directory", mode, owner)
    if member.issym():
        return Entry("link", None, owner, target=member.linkname)
    if member.isdev() and not member.isfifo():
        return Entry("device", mode, owner)
    if member.isfifo():
        return Entry("fifo", mode, owner)
    stream = tar.extractfile(member)
    if stream is None:
        raise ValueError(f"{member.name!r} is of a type that no file has: {member.type!r}")
    capable = _CAPABILITIES in member.pax_headers
    return Entry("file", mode, owner, member.size, hash_of(stream, member.size), capabilities=capable)


def _owner(member: tarfile.TarInfo) -> str:
    return f"{member.uid}:{member.gid}"


def _clean(name: str) -> str:
    """``name`` relative to the root, without detours; empty for the root itself."""
    return posixpath.normpath(f"/{name}").lstrip("/")
