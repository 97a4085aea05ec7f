"""Reading manifests, configs and layers straight from OCI layouts and archives: no tool, and nothing is unpacked.

Docker archives are what `docker save` writes (a ``manifest.json`` that lists images); OCI layouts follow the OCI image
layout specification (an ``index.json``, which may point to further indexes, one entry per platform).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from sifproof.errors import Fault, SifproofError
from sifproof.image.source import Kind, Source
from sifproof.image.tree import Listing, merge

_REFERENCE_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
# Manifests and configs are some kilobytes; a blob beyond this is none.
_JSON_LIMIT = 16 * 1024 * 1024
_ZSTD = b"\x28\xb5\x2f\xfd"


class Manifest(NamedTuple):
    """One image of an archive or a layout."""

    digest: str
    """Of the manifest as it lies there; empty for Docker archives, which have none."""
    config: bytes
    layer_bytes: int
    """Size of all layers as they lie there."""
    raw_layers: bool
    """Whether no layer is compressed."""
    position: int
    """Among the images of a Docker archive, from 0; 0 in others."""
    only: bool
    """Whether it is the only image there, and needs no reference to be found."""
    layers: tuple[str, ...]
    """Names of the layers' files there, lowest first."""


def read(source: Source, architecture: str) -> Manifest:
    """The image that ``source`` names in its archive or layout; of several platforms that of ``architecture``.

    Raises:
        SifproofError: (configuration) the archive can't be read, is none, or does not hold that image.
    """
    with _judged(source), _open(source) as files:
        return _read(source, files, architecture)


def read_listing(source: Source, architecture: str) -> Listing:
    """Config and files of the image that ``source`` names, as :func:`read` finds it; reads every layer once.

    Raises:
        SifproofError: (configuration) as :func:`read`, or a layer can't be read, or is another than the config says.
        CompressionError: a layer is compressed with zstd, which this Python does not know.
    """
    with _judged(source), _open(source) as files:
        image = _read(source, files, architecture)
        config = json.loads(image.config)
        return Listing(config, merge(_layers(files, image.layers), config["rootfs"]["diff_ids"]))


class CompressionError(Exception):
    """A layer is compressed in a way that can't be read here."""


def _layers(files: _Files, names: Iterable[str]) -> Iterator[IO[bytes]]:
    for name in names:
        with files.open(name) as stream:
            if stream.read(len(_ZSTD)) == _ZSTD:
                raise CompressionError(name)
            stream.seek(0)
            yield stream


def _read(source: Source, files: _Files, architecture: str) -> Manifest:
    if source.kind is Kind.DOCKER_ARCHIVE:
        return _docker_image(source, files)
    return _oci_image(source, files, architecture)


@contextmanager
def _judged(source: Source) -> Iterator[None]:
    """Whatever can be wrong with an archive, as the error of a configuration that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing = isinstance(error, KeyError)
        raise SifproofError(
            f"The image {source} can't be read",
            why=f"it holds no {error.args[0]}" if missing else _reason(source.path, error),
            todo=_MADE_BY[source.kind],
            fault=Fault.CONFIGURATION,
        ) from error


_MADE_BY = {
    Kind.DOCKER_ARCHIVE: "name a file as `docker save` writes it; for other archives there is oci-archive:",
    Kind.OCI_ARCHIVE: "name a tar file of an OCI layout, as `buildah push … oci-archive:FILE` writes it; "
    "for archives of `docker save` there is docker-archive:",
    Kind.OCI: "name the directory of an OCI layout, as `skopeo copy … oci:DIRECTORY` writes it",
}


class _Files(Protocol):
    def __enter__(self) -> _Files: ...
    def __exit__(self, *_: object) -> None: ...
    def read(self, name: str) -> bytes: ...
    def size(self, name: str) -> int: ...
    def open(self, name: str) -> IO[bytes]: ...


class _Directory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Directory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def open(self, name: str) -> IO[bytes]:
        try:
            return (self.path / name).open("rb")
        except FileNotFoundError:
            raise KeyError(name) from None

    def read(self, name: str) -> bytes:
        with self.open(name) as stream:
            return stream.read(_JSON_LIMIT)

    def size(self, name: str) -> int:
        try:
            return (self.path / name).stat().st_size
        except FileNotFoundError:
            raise KeyError(name) from None


class _Tar:
    def __init__(self, path: Path) -> None:
        self.tar = tarfile.open(path, "r:*")  # noqa: SIM115 (closed by __exit__)
        self.members = {m.name.removeprefix("./"): m for m in self.tar}

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *_: object) -> None:
        self.tar.close()

    def open(self, name: str) -> IO[bytes]:
        stream = self.tar.extractfile(self.members[name])
        if stream is None:
            raise KeyError(name)
        return stream

    def read(self, name: str) -> bytes:
        return self.open(name).read(_JSON_LIMIT)

    def size(self, name: str) -> int:
        return self.members[name].size


def _open(source: Source) -> _Files:
    return _Directory(source.path) if source.kind is Kind.OCI else _Tar(source.path)


def _reason(path: Path, error: Exception) -> str:
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(len(_ZSTD)) == _ZSTD:
                return "it is compressed with zstd; unpack it with `zstd -d` first"
    if isinstance(error, tarfile.ReadError) and "unexpected end" not in str(error):
        return "it is no tar archive"
    return (getattr(error, "strerror", None) or str(error)) or type(error).__name__


def _docker_image(source: Source, files: _Files) -> Manifest:
    images: list[dict[str, Any]] = json.loads(files.read("manifest.json"))
    tags = [tag for image in images for tag in image.get("RepoTags") or []]
    if source.reference.startswith("@") and source.reference[1:].isdigit():
        chosen = images[int(source.reference[1:]) :][:1]
    elif source.reference:
        chosen = [i for i in images if any(_same(source.reference, tag) for tag in i.get("RepoTags") or [])]
    else:
        chosen = images
    image = _the_one(source, chosen, tags)
    return Manifest(
        digest="",
        config=files.read(image["Config"]),
        layer_bytes=sum(files.size(layer) for layer in image["Layers"]),
        raw_layers=True,
        position=images.index(image),
        only=len(images) == 1,
        layers=tuple(image["Layers"]),
    )


def _oci_image(source: Source, files: _Files, architecture: str) -> Manifest:
    entries: list[dict[str, Any]] = json.loads(files.read("index.json"))["manifests"]
    names = [n for e in entries if (n := _name(e))]
    chosen = entries
    if source.reference:
        chosen = [e for e in entries if source.reference == _name(e)]
    descriptor = _the_one(source, chosen, names)
    only = len(entries) == 1
    manifest = json.loads(_blob(files, descriptor["digest"]))
    digest = descriptor["digest"]
    while "manifests" in manifest:
        only = False
        digest = platform_digest(source, manifest, architecture)
        manifest = json.loads(_blob(files, digest))
    return Manifest(
        digest=digest,
        config=_blob(files, manifest["config"]["digest"]),
        layer_bytes=sum(files.size(_blob_name(layer["digest"])) for layer in manifest["layers"]),
        raw_layers=all(layer["mediaType"].endswith(".tar") for layer in manifest["layers"]),
        position=0,
        only=only,
        layers=tuple(_blob_name(layer["digest"]) for layer in manifest["layers"]),
    )


def platform_digest(source: Source, index: dict[str, Any], architecture: str) -> str:
    """Which manifest of an image index is for ``architecture``.

    Raises:
        SifproofError: (configuration) none is.
    """
    platforms = {_architecture(e): e["digest"] for e in index["manifests"] if _architecture(e) != "unknown"}
    if architecture not in platforms:
        raise SifproofError(
            f"The image {source} can't run here",
            why=f"it is made for {', '.join(sorted(platforms)) or 'no platform'}, not for {architecture}",
            todo=f"name an image that is made for {architecture}",
            fault=Fault.CONFIGURATION,
        )
    return str(platforms[architecture])


def _the_one(source: Source, chosen: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(names) or "no names"
    example = f"{source.kind}:{source.location}:{names[0]}" if names else ""
    raise SifproofError(
        f"The image {source} can't be told apart" if chosen else f"The image {source} does not exist",
        why=f"it holds {len(chosen)} images ({listed})" if chosen else f"it holds {listed}",
        todo=f"name one of them, as in {example}" if example else "name an archive that holds one image",
        fault=Fault.CONFIGURATION,
    )


def _same(one: str, other: str) -> bool:
    """Whether two names mean one image: some tools write the registry's host in front, some leave it out."""
    (host, name), (other_host, other_name) = _split(one), _split(other)
    return name == other_name and (host == other_host or not (host and other_host))


def _split(reference: str) -> tuple[str, str]:
    """Host (empty where there is none) and name with tag."""
    host, slash, name = reference.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, name = "", reference
    name = name.removeprefix("library/")
    return host, name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _name(descriptor: dict[str, Any]) -> str:
    annotations = descriptor.get("annotations") or {}
    return next((annotations[n] for n in _REFERENCE_NAMES if n in annotations), "")


def _architecture(descriptor: dict[str, Any]) -> str:
    return str((descriptor.get("platform") or {}).get("architecture", "unknown"))


def _blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if not (algorithm.isalnum() and value.isalnum()):
        raise ValueError(f"{digest!r} is no digest")
    return f"blobs/{algorithm}/{value}"


def _blob(files: _Files, digest: str) -> bytes:
    content = files.read(_blob_name(digest))
    if digest.startswith("sha256:") and hashlib.sha256(content).hexdigest() != digest.removeprefix("sha256:"):
        raise ValueError(f"the content of {digest} is damaged")
    return content
