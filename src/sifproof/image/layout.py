"""One image on its own: the OCI layout that Apptainer builds from, and that an engine's archive is made of.

Tools choose among several images by rules of their own, and each by others. So the one that was identified is laid out
alone, whatever it came from: its config byte for byte, its layers as they are, each held against its digest.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

from sifproof.errors import Fault, SifproofError
from sifproof.image import archive
from sifproof.image.archive import Files, Layer
from sifproof.image.digest import SourceDigest, by_digest, changed, digest_of
from sifproof.image.source import Kind, Source, host_architecture
from sifproof.image.tree import CHUNK

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SUFFIXES = {b"\x1f\x8b": "+gzip", archive.ZSTD: "+zstd"}
# There is no word for these.
_UNPACKERS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Run(Protocol):
    """What runs a tool, its output kept."""

    def __call__(
        self, step: str, tool: str, arguments: list[str], /, *, environment: dict[str, str] | None = None
    ) -> None:
        """Raises :class:`~sifproof.image.process.ToolFailure`."""


def lay_out(source: Source, identity: SourceDigest, work: Path, run: Run) -> Path:
    """A layout below the directory ``work`` that holds the image of that ``identity`` and nothing else.

    Raises:
        SifproofError: (infrastructure) the source is another image by now; (image) it is damaged; as :func:`digest`.
        ToolFailure: the image can't be fetched.
        OSError: it can't be written.
    """
    layout = work / "layout"
    with ExitStack() as stack:
        try:
            files, image = stack.enter_context(
                archive.opened(_at_hand(source, identity, work, run), host_architecture())
            )
        except SifproofError as error:
            if error.fault is not Fault.CONFIGURATION or not source.is_file:
                raise
            raise changed(source, identity, f"none ({error.why})") from error
        if not _is(identity, image.config, source):
            raise changed(source, identity, digest_of(image.config))
        _write(source, layout, image.config, files, image.layers)
    (work / "image.tar").unlink(missing_ok=True)
    shutil.rmtree(work / "fetched", ignore_errors=True)
    return layout


def _at_hand(source: Source, identity: SourceDigest, work: Path, run: Run) -> Source:
    """The image of that ``identity`` as files."""
    if source.kind is Kind.DOCKER_DAEMON:
        saved = work / "image.tar"
        run("save", "docker", ["save", "--output", str(saved), identity.digest])
        return Source(kind=Kind.DOCKER_ARCHIVE, location=str(saved))
    if source.kind is Kind.REGISTRY:
        # As a plain directory: to a layout skopeo would write the config anew where the registry has Docker's types.
        fetched = work / "fetched"
        copy = ["--insecure-policy", "copy", by_digest(source, identity.manifest_digest), f"dir:{fetched}"]
        run("copy", "skopeo", copy, environment={"TMPDIR": str(work)})
        return _as_layout(fetched, identity.manifest_digest)
    return source


def _as_layout(fetched: Path, manifest_digest: str) -> Source:
    """What skopeo wrote to the directory ``fetched``, whose files are named by their digests, as a layout."""
    blobs = fetched / "blobs"
    blobs.mkdir()
    (blobs / "sha256").symlink_to(fetched.absolute())
    (fetched / "manifest.json").rename(blobs / "sha256" / manifest_digest.removeprefix("sha256:"))
    (fetched / "index.json").write_text(json.dumps({"manifests": [{"digest": manifest_digest}]}))
    return Source(kind=Kind.OCI, location=str(fetched))


def _is(identity: SourceDigest, config: bytes, source: Source) -> bool:
    if source.kind is Kind.DOCKER_DAEMON and digest_of(config) != identity.digest:
        # An engine that names images by their manifests: this one it gave by that name.
        named: list[str] = json.loads(config)["rootfs"]["diff_ids"]
        return named == identity.layers
    return digest_of(config) == identity.digest


def _write(source: Source, layout: Path, config: bytes, files: Files, layers: tuple[Layer, ...]) -> None:
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    copied = []
    for layer, diff_id in zip(layers, json.loads(config)["rootfs"]["diff_ids"], strict=True):
        try:
            copied.append(_layer(files, layer, diff_id, blobs))
        except (_DamageError, KeyError) as error:  # a link in an archive that leads nowhere is found when it is opened
            what = "it is not there" if isinstance(error, KeyError) else str(error)
            raise SifproofError(
                f"The image {source} is damaged",
                why=f"layer {len(copied) + 1} of {len(layers)}: {what}",
                todo="pull it or build it anew",
                fault=Fault.IMAGE,
            ) from error
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _put(blobs, config, _CONFIG),
        "layers": copied,
    }
    listed = _put(blobs, json.dumps(manifest).encode(), _MANIFEST)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))


def _put(blobs: Path, content: bytes, media: str) -> dict[str, Any]:
    digest = digest_of(content)
    (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": media, "digest": digest, "size": len(content)}


class _DamageError(Exception):
    """A layer can't be read, or is another than it should be."""


def _layer(files: Files, layer: Layer, diff_id: str, blobs: Path) -> dict[str, Any]:
    """Bring a layer to ``blobs``; what the manifest says of it."""
    with files.open(layer.name) as stream:
        head = stream.read(8)
        stream.seek(0)
        unpack = next((opener for magic, opener in _UNPACKERS.items() if head.startswith(magic)), None)
        suffix = next((name for magic, name in _SUFFIXES.items() if head.startswith(magic)), "")
        path, found, size = blobs / "copied", hashlib.sha256(), 0
        with path.open("wb") as made:
            for chunk in _chunks(unpack(stream) if unpack else stream):
                found.update(chunk)
                size += made.write(chunk)
    digest = f"sha256:{found.hexdigest()}"
    expected = layer.digest if suffix else diff_id
    if expected.startswith("sha256:") and digest != expected:
        raise _DamageError(f"it is {digest}, and should be {expected}")
    path.rename(blobs / found.hexdigest())
    return {"mediaType": f"{_LAYER}{suffix}", "digest": digest, "size": size}


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            chunk = stream.read(CHUNK)
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise _DamageError(str(error)) from error
        if not chunk:
            return
        yield chunk
