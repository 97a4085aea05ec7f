"""What a SIF says about itself: its header, read directly, and its labels, read by Apptainer.

The header is that of SIF version 1: a 32-byte launch line, magic (10), version (3), architecture (3), UUID (16), then
eight little-endian 64-bit numbers: created, modified, free and total descriptors, and offset and size of the
descriptors and of the data.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import NamedTuple

from spython.utils import run_command

from sifproof import tools
from sifproof.errors import Fault, SifproofError

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_MAGIC = b"SIF_MAGIC\0"
# GOARCH names by the two digits that the format gives them.
_ARCHITECTURES = {
    b"01": "386", b"02": "amd64", b"03": "arm", b"04": "arm64", b"05": "ppc64", b"06": "ppc64le",
    b"07": "mips", b"08": "mipsle", b"09": "mips64", b"10": "mips64le", b"11": "s390x", b"12": "riscv64",
}  # fmt: skip


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


def read_labels(path: Path) -> dict[str, str]:
    """The labels of the SIF at ``path``, by `apptainer inspect`; empty where it has none or can't be inspected.

    By spython's ``run_command`` rather than its ``Client.inspect``: that one runs whatever is called `singularity` on
    PATH, which need not be the Apptainer that was chosen, or be there at all.
    """
    try:
        result = run_command(
            [str(tools.require("apptainer").path), "inspect", "--json", "--labels", str(path)],
            sudo=False,
            quiet=True,
            environ=tools.environment(),
        )
        labels = json.loads(result["message"][0])["data"]["attributes"]["labels"]
        return {str(name): str(value) for name, value in labels.items()}
    # None at all, a warning in front of it, another version's form: labels are for people, nothing depends on them.
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _truncated(path: Path, expected: int, size: int) -> SifproofError:
    return SifproofError(
        f"The SIF {path} is cut short",
        why=f"its header speaks of {expected} bytes, the file has {size}",
        todo="copy or build it again",
        fault=Fault.CONFIGURATION,
    )
