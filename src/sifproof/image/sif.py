"""What a SIF says about itself: header and list of parts, read directly, and its labels, read by Apptainer.

The header is that of SIF version 1: a 32-byte launch line, magic (10), version (3), architecture (3), UUID (16), then
eight little-endian 64-bit numbers: created, modified, free and total descriptors, and offset and size of the
descriptors and of the data. A descriptor has type (4), whether it is used (1), id, group and link (4 each), then
64-bit offset, size and five more, a name (128) and what depends on the type (384): of a partition file system, use (4
each) and architecture.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spython.utils import run_command

from sifproof import host_tools
from sifproof.errors import Fault, SifproofError

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_MAGIC = b"SIF_MAGIC\0"
# GOARCH names by the two digits that the format gives them.
_ARCHITECTURES = {
    b"01": "386", b"02": "amd64", b"03": "arm", b"04": "arm64", b"05": "ppc64", b"06": "ppc64le",
    b"07": "mips", b"08": "mipsle", b"09": "mips64", b"10": "mips64le", b"11": "s390x", b"12": "riscv64",
}  # fmt: skip


_DESCRIPTOR = struct.Struct("<i?3I7q128s384s")
_PARTITION, _GENERIC_JSON = 0x4004, 0x4006
_SQUASHFS, _PRIMARY = 1, 2
_MOST_DESCRIPTORS = 10_000
_JSON_LIMIT = 16 * 1024 * 1024


class SifHeader(NamedTuple):
    """The part of a SIF's header that sifproof uses."""

    architecture: str
    """GOARCH name, such as amd64; empty where the SIF names none."""


def read_header(path: Path) -> SifHeader:
    """Read the header of the SIF at ``path`` and check that the file is whole.

    Raises:
        SifproofError: (configuration) the file can't be read, is no SIF, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_HEADER.size)
    except OSError as error:
        raise SifproofError(
            f"Cannot read the image {path}", why=error.strerror or str(error), fault=Fault.CONFIGURATION
        ) from error
    if head[32 : 32 + len(_MAGIC)] != _MAGIC:
        raise SifproofError(
            f"{path} is no SIF",
            why='it lacks the word "SIF_MAGIC" that every SIF has at byte 32',
            todo="name a file that `apptainer build` made; prefix an archive with docker-archive: or oci-archive:",
            fault=Fault.CONFIGURATION,
        )
    if len(head) < _HEADER.size:
        raise _truncated(path, _HEADER.size, size)
    fields = _HEADER.unpack(head)
    end = fields[-2] + fields[-1]
    if size < end:
        raise _truncated(path, end, size)
    return SifHeader(architecture=_ARCHITECTURES.get(fields[3].rstrip(b"\0"), ""))


class FileSystem(NamedTuple):
    """Where the root file system lies in a SIF."""

    offset: int
    architecture: str
    """GOARCH name; empty where the SIF names none."""


def read_file_system(path: Path) -> FileSystem:
    """The squashfs of the SIF at ``path``; raises :class:`SifproofError` (configuration) where it holds none."""
    for kind, offset, _, _, extra in _descriptors(path):
        system, use = struct.unpack_from("<2i", extra)
        if kind == _PARTITION and (system, use) == (_SQUASHFS, _PRIMARY):
            return FileSystem(offset, _ARCHITECTURES.get(extra[8:11].rstrip(b"\0"), ""))
    raise SifproofError(
        f"{path} holds no squashfs",
        why="it has no part of that kind",
        todo="convert it anew",
        fault=Fault.CONFIGURATION,
    )


def read_oci_config(path: Path) -> dict[str, Any]:
    """The settings of the OCI image that the SIF at ``path`` was made of, as it keeps them; empty where it does not."""
    for kind, offset, size, name, _ in _descriptors(path):
        if kind == _GENERIC_JSON and name == "oci-config.json" and size <= _JSON_LIMIT:
            with path.open("rb") as stream:
                stream.seek(offset)
                try:
                    found = json.loads(stream.read(size))
                except ValueError:
                    return {}
                return found if isinstance(found, dict) else {}
    return {}


def _descriptors(path: Path) -> Iterator[tuple[int, int, int, str, bytes]]:
    """Type, offset, size, name and the rest of each part."""
    read_header(path)
    with path.open("rb") as stream:
        fields = _HEADER.unpack(stream.read(_HEADER.size))
        total, begin = fields[8], fields[9]
        stream.seek(begin)
        for _ in range(min(total, _MOST_DESCRIPTORS)):
            raw = stream.read(_DESCRIPTOR.size)
            if len(raw) < _DESCRIPTOR.size:
                return
            kind, used, _, _, _, offset, size, *_, name, extra = _DESCRIPTOR.unpack(raw)
            if used:
                yield kind, offset, size, name.rstrip(b"\0").decode(errors="replace"), extra


def read_labels(path: Path) -> dict[str, str]:
    """The labels of the SIF at ``path``, by `apptainer inspect`; empty where it has none or can't be inspected."""
    labels = _inspected(path, "labels")
    return {str(name): str(value) for name, value in labels.items()} if isinstance(labels, dict) else {}


def read_runscript(path: Path) -> str:
    """What `apptainer run` starts of the SIF at ``path``; empty where it has none or can't be inspected."""
    script = _inspected(path, "runscript")
    return script if isinstance(script, str) else ""


def _inspected(path: Path, what: str) -> object:
    """What `apptainer inspect` tells; None where it tells nothing.

    By spython's ``run_command`` rather than its ``Client.inspect``: that one runs whatever is called `singularity` on
    PATH, which need not be the Apptainer that was chosen, or be there at all.
    """
    try:
        result = run_command(
            [str(host_tools.require("apptainer").path), "inspect", "--json", f"--{what}", str(path)],
            sudo=False,
            quiet=True,
            environ=host_tools.environment("apptainer"),
        )
        return json.loads(result["message"][0])["data"]["attributes"][what]
    # None at all, a warning in front of it, another version's form.
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _truncated(path: Path, expected: int, size: int) -> SifproofError:
    return SifproofError(
        f"The SIF {path} is cut short",
        why=f"its header speaks of {expected} bytes, the file has {size}",
        todo="copy or build it again",
        fault=Fault.CONFIGURATION,
    )
