"""How a SIF is to be made, how it was made, and the store that keeps both together.

The store is a directory: ``<key>.sif``, ``<key>.json`` (a :class:`Provenance`) and ``<key>.tree.gz`` (the files of the
image, see :mod:`sifproof.image.tree`) beside it, and dot-directories for locks and for digests of files. The key names
everything that decides what is in the SIF.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sifproof.config import Conversion
from sifproof.image.digest import ImageConfig, SourceDigest, file_digest
from sifproof.records import write_atomically

_RECIPE = 3
"""Part of every key: to be raised when the same input is to give another SIF, or what is there is not to be trusted.

2: no setting of the caller's counts. 3: the layers are those that the config names, also when they are unpacked.
"""


class ConversionSettings(Conversion):
    """How images are converted: what the config says, and what only tests and benchmarks change."""

    memory: Path | None = Field(
        default=Path("/dev/shm"),  # noqa: S108 (where Linux has its tmpfs; each use makes a private directory)
        description="tmpfs to work in where it holds the image and no tmpdir is given; null: never",
    )
    timeout_s: float = Field(default=3600, gt=0, description="seconds that one step may take")

    @classmethod
    def of(cls, settings: Conversion | None) -> ConversionSettings:
        """From what the config says; the defaults where it says nothing."""
        if isinstance(settings, cls):
            return settings
        return cls() if settings is None else cls.model_validate(settings.model_dump())

    @property
    def mksquashfs_arguments(self) -> str:
        """What mksquashfs is told."""
        return f"-comp {self.compression} -Xcompression-level {self.level}"


class Provenance(BaseModel):
    """Where a SIF comes from and how it was made."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="the image it was made from")
    digest: str = Field(description="sha256:… of the source's image config; of the file where the source is a SIF")
    manifest_digest: str = Field(default="", description="sha256:… of the source's manifest, where it has one")
    architecture: str = Field(description="processor that it is made for, as GOARCH names it")
    key: str = Field(default="", description="name in the store; empty where the source is a SIF")
    sif: str = Field(description="path of the SIF")
    sha256: str = Field(description="of the SIF, in hex")
    size_bytes: int = Field(description="of the SIF")
    tree: str = Field(default="", description="path of the list of the image's files; empty where there is none")
    created: str = Field(description="when it was converted, UTC, ISO 8601; empty where the source is a SIF")
    versions: dict[str, str] = Field(default_factory=dict, description="version of each tool that took part")
    arguments: list[str] = Field(default_factory=list, description="command lines that made it, in order")
    seconds: dict[str, float] = Field(default_factory=dict, description="seconds per step, and in total")
    worked_in: str = Field(default="", description="memory or disk: where the image was unpacked")
    fallbacks: list[str] = Field(default_factory=list, description="what was not done the fast way, and why")
    image: ImageConfig = Field(default_factory=ImageConfig, description="how the source image wants to be run")
    labels: dict[str, str] = Field(default_factory=dict, description="labels of the SIF, as Apptainer shows them")
    reused: bool = Field(default=False, description="whether it lay in the store already")


class SifStore:
    """The directory that SIFs are kept in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests = path / ".digests"

    def key(self, source: SourceDigest, versions: dict[str, str], settings: ConversionSettings) -> str:
        """The name of the SIF of ``source``: the same for the same content, tools and arguments, else another."""
        # Root keeps owners and files that an ordinary user can't read.
        decides = [
            _RECIPE, source.digest, versions["apptainer"], versions["mksquashfs"], settings.mksquashfs_arguments,
            "root" if os.geteuid() == 0 else "user",
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]

    def sif(self, key: str) -> Path:
        """Path of the SIF of that key."""
        return self.path / f"{key}.sif"

    def record(self, key: str) -> Path:
        """Path of its provenance."""
        return self.path / f"{key}.json"

    def tree(self, key: str) -> Path:
        """Path of the list of the files of the image that it is made of."""
        return self.path / f"{key}.tree.gz"

    def lock(self, key: str) -> Path:
        """Path of the lock that whoever makes it holds."""
        return self.path / ".locks" / key

    def find(self, key: str) -> tuple[Provenance | None, str]:
        """The provenance of a sound SIF of that key; else None, and what is wrong where something is there."""
        sif, record = self.sif(key), self.record(key)
        if not sif.exists():
            return None, "its SIF is gone" if record.exists() else ""
        try:
            provenance = Provenance.model_validate_json(record.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None, "its provenance is missing or can't be read"
        if sif.stat().st_size != provenance.size_bytes:
            return None, f"it has {sif.stat().st_size} bytes instead of {provenance.size_bytes}"
        if file_digest(sif, self.digests) != provenance.sha256:
            return None, "its content is not what was stored"
        return provenance, ""

    def put(self, made: Path, provenance: Provenance, files: Path | None = None) -> None:
        """Move the SIF ``made`` and the list of the image's ``files`` to their names, and write the provenance.

        Both lie in the same file system.
        """
        if files:
            files.replace(self.tree(provenance.key))
        made.replace(self.sif(provenance.key))
        write_atomically(self.record(provenance.key), provenance.model_dump_json(indent=2) + "\n")
