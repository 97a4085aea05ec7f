"""Reading manifests, configs and layers straight from OCI layouts and archives: no tool, and nothing is unpacked.

Docker archives are what `docker save` writes (a ``manifest.json`` that lists images); OCI layouts follow the OCI image
layout specification (an ``index.json``, which may point to further indexes, one entry per platform).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from sifproof.errors import Fault, SifproofError
from sifproof.image import platforms
from sifproof.image.platforms import Candidate, Platform
from sifproof.image.source import Kind, Source
from sifproof.image.tree import Listing, WrongLayersError, merge

_REFERENCE_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
# Manifests and configs are some kilobytes; a blob beyond this is none.
_JSON_LIMIT = 16 * 1024 * 1024
_SMALL = 256 * 1024
ZSTD = b"\x28\xb5\x2f\xfd"
_ALGORITHMS = {"sha256", "sha384", "sha512"}


class Layer(NamedTuple):
    """One layer of an image."""

    name: str
    """Of its file in the archive or layout."""
    digest: str
    """As its manifest has it; empty in a Docker archive, which names none."""


class Manifest(NamedTuple):
    """One image of an archive or a layout."""

    digest: str
    """Of the manifest as it lies there; empty for Docker archives, which have none."""
    config: bytes
    layer_bytes: int
    """Size of all layers as they lie there."""
    raw_layers: bool
    """Whether no layer is compressed."""
    layers: tuple[Layer, ...]
    """Lowest first; as many as its config names."""


@contextmanager
def opened(source: Source, architecture: str) -> Iterator[tuple[Files, Manifest]]:
    """The image that ``source`` names in its archive or layout, of several platforms that of ``architecture``, and the
    files there.

    Raises:
        SifproofError: (configuration) the archive can't be read, is none, or does not hold that image; (image) it does
            not have the layers that its config names.
    """
    with ExitStack() as stack:
        with _judged(source):
            files = stack.enter_context(_open(source))
            image = _read(source, files, architecture)
        yield files, image


def read(source: Source, architecture: str) -> Manifest:
    """The image that ``source`` names, as :func:`opened` finds it."""
    with opened(source, architecture) as (_, image):
        return image


def read_listing(source: Source, architecture: str) -> Listing:
    """Config and files of the image that ``source`` names, as :func:`opened` finds it; reads every layer once.

    Raises:
        SifproofError: as :func:`opened`; (configuration) a layer can't be read; (image) one is another than the config
            says.
        CompressionError: a layer is compressed with zstd, which this Python does not know.
    """
    with _judged(source), opened(source, architecture) as (files, image):
        config = json.loads(image.config)
        try:
            return Listing(config, merge(_layers(files, image.layers), config["rootfs"]["diff_ids"]))
        except WrongLayersError as error:
            raise SifproofError(
                f"The image {source} is damaged", why=str(error), todo="pull it or build it anew", fault=Fault.IMAGE
            ) from error


class CompressionError(Exception):
    """A layer is compressed in a way that can't be read here."""


def _layers(files: Files, layers: Iterable[Layer]) -> Iterator[IO[bytes]]:
    for layer in layers:
        with files.open(layer.name) as stream:
            if stream.read(len(ZSTD)) == ZSTD:
                raise CompressionError(layer.name)
            stream.seek(0)
            yield stream


def _read(source: Source, files: Files, architecture: str) -> Manifest:
    if source.kind is Kind.DOCKER_ARCHIVE:
        return _docker_image(source, files, architecture)
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


class Files(Protocol):
    """The files of an archive or a layout, by their names there."""

    def __enter__(self) -> Files: ...
    def __exit__(self, *_: object) -> None: ...

    def read(self, name: str) -> bytes:
        """The content of a small file; ``KeyError`` where there is none, as in the others."""

    def size(self, name: str) -> int:
        """Its size in bytes."""

    def open(self, name: str) -> IO[bytes]:
        """Its content."""


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
        self.members: dict[str, tarfile.TarInfo] = {}
        self.small: dict[str, bytes] = {}
        room = _JSON_LIMIT
        for member in self.tar:
            name = member.name.removeprefix("./")
            self.members[name] = member
            self.small.pop(name, None)
            # In a compressed archive the way back leads through all of it again.
            if member.isreg() and member.size <= min(_SMALL, room):
                self.small[name] = self.open(name).read()
                room -= member.size

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
        return self.small[name] if name in self.small else self.open(name).read(_JSON_LIMIT)

    def size(self, name: str) -> int:
        return self.members[name].size


def _open(source: Source) -> Files:
    return _Directory(source.path) if source.kind is Kind.OCI else _Tar(source.path)


def _reason(path: Path, error: Exception) -> str:
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(len(ZSTD)) == ZSTD:
                return "it is compressed with zstd; unpack it with `zstd -d` first"
    if isinstance(error, tarfile.ReadError) and "unexpected end" not in str(error):
        return "it is no tar archive"
    return (getattr(error, "strerror", None) or str(error)) or type(error).__name__


def _docker_image(source: Source, files: Files, architecture: str) -> Manifest:
    images: list[dict[str, Any]] = json.loads(files.read("manifest.json"))
    if source.reference.startswith("@") and source.reference[1:].isdigit():
        chosen = images[int(source.reference[1:]) :][:1]
    elif source.reference:
        chosen = [i for i in images if any(_same(source.reference, tag) for tag in i.get("RepoTags") or [])]
    else:
        chosen = images
    entries = []
    for image in chosen:
        made_for = Platform.of_config(files.read(image["Config"]))
        names = tuple(image.get("RepoTags") or [f"@{images.index(image)}"])
        entries.append(_Entry(names, [Candidate(image["Config"], made_for)], alone=True))
    every = [tag for image in images for tag in image.get("RepoTags") or []]
    name = _the_one(source, entries, every, architecture)
    image = next(image for image in chosen if image["Config"] == name)
    config = files.read(name)
    require_layers(source, len(image["Layers"]), config)
    _require_twin(source, files, config)
    return Manifest(
        digest="",
        config=config,
        layer_bytes=sum(files.size(layer) for layer in image["Layers"]),
        raw_layers=True,
        layers=tuple(Layer(name, "") for name in image["Layers"]),
    )


def _require_twin(source: Source, files: Files, config: bytes) -> None:
    """Today's `docker save` writes an OCI layout beside: what stands there of the same image must not belie it."""
    try:
        index = json.loads(files.read("index.json"))
    except KeyError:
        return
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    reader = _Blobs(files)
    for candidate in platforms.candidates(index["manifests"], reader):
        try:
            manifest = json.loads(reader.manifest(candidate.digest))
        except KeyError:
            continue
        if manifest["config"]["digest"] == digest:
            require_layers(source, len(manifest["layers"]), config)


def _oci_image(source: Source, files: Files, architecture: str) -> Manifest:
    listed: list[dict[str, Any]] = json.loads(files.read("index.json"))["manifests"]
    chosen = [e for e in listed if not source.reference or source.reference in _names(e)]
    reader = _Blobs(files)
    entries = []
    for entry in chosen:
        held = platforms.candidates([entry], reader)
        entries.append(_Entry(_names(entry), held, alone=[c.digest for c in held] == [entry["digest"]]))
    every = [name for e in listed for name in _names(e)[:1]]
    return of_manifest(source, files, _the_one(source, entries, every, architecture))


def of_manifest(source: Source, files: Files, digest: str) -> Manifest:
    """The image of an OCI layout that has the manifest of that ``digest``; raises as :func:`opened`."""
    reader = _Blobs(files)
    manifest = json.loads(reader.manifest(digest))
    config = reader.config(digest, manifest)
    layers = manifest["layers"]
    require_layers(source, len(layers), config)
    return Manifest(
        digest=digest,
        config=config,
        layer_bytes=sum(files.size(blob_name(layer["digest"])) for layer in layers),
        raw_layers=all(layer["mediaType"].endswith(".tar") for layer in layers),
        layers=tuple(Layer(blob_name(layer["digest"]), layer["digest"]) for layer in layers),
    )


def require_layers(source: Source, number: int, config: bytes) -> None:
    """Hold the ``number`` of layers that a manifest lists against its ``config``.

    Raises:
        SifproofError: (image) they are not as many.
    """
    try:
        named = len(json.loads(config)["rootfs"]["diff_ids"])
    except (ValueError, LookupError, TypeError):
        return  # no config of an image, which is told where it is read
    if number != named:
        raise SifproofError(
            f"The image {source} is not whole",
            why=f"its manifest lists {number} layers, and its config names {named}",
            todo="pull it or build it anew: some versions of `docker save` write such archives",
            fault=Fault.IMAGE,
        )


class _Blobs:
    """Manifests and configs of an OCI layout, each held against its digest."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def manifest(self, digest: str) -> bytes:
        return _blob(self.files, digest)

    def config(self, _: str, manifest: dict[str, Any]) -> bytes:
        return _blob(self.files, manifest["config"]["digest"])


class _Entry(NamedTuple):
    """What an archive or a layout lists: one image, or an index of several."""

    names: tuple[str, ...]
    held: list[Candidate]
    alone: bool
    """Whether it is an image, and no index."""


def _the_one(source: Source, entries: Sequence[_Entry], every: list[str], architecture: str) -> str:
    """The digest of the image that ``source`` means among ``entries``; ``every`` is all names that are there."""
    if not entries:
        raise SifproofError(
            f"The image {source} does not exist",
            why=f"it holds {', '.join(every) or 'no names'}",
            todo=_example(source, every) if every else f"name {source.kind}:{source.location} alone",
            fault=Fault.CONFIGURATION,
        )
    held = [candidate for entry in entries for candidate in entry.held]
    if all(entry.alone for entry in entries) and len({candidate.digest for candidate in held}) == 1:
        return held[0].digest  # nothing is to be chosen: who wants this variant may have it
    # The first image of an index counts; of images side by side none is the first.
    meant = platforms.best([c for e in entries for c in platforms.best(e.held, architecture)[:1]], architecture)
    if len({candidate.digest for candidate in meant}) > 1:
        named = [entry.names[:1] for entry in entries if set(entry.held) & set(meant)]
        once = [name for names in named for name in names if named.count(names) == 1]
        raise SifproofError(
            f"The image {source} can't be told apart",
            why=f"it holds {len(named)} images ({', '.join(every) or 'no names'})",
            todo=_example(source, once),
            fault=Fault.CONFIGURATION,
        )
    return platforms.choose(source, meant or held, architecture).digest


def _example(source: Source, names: Sequence[str]) -> str:
    if not names:
        return "name an archive or a layout that holds one image"
    return f"name one of them, as in {source.kind}:{source.location}:{names[0]}"


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


def _names(descriptor: dict[str, Any]) -> tuple[str, ...]:
    annotations = descriptor.get("annotations") or {}
    return tuple(dict.fromkeys(annotations[n] for n in _REFERENCE_NAMES if n in annotations))


def blob_name(digest: str) -> str:
    """The name of the file of that ``digest`` in an OCI layout."""
    algorithm, _, value = digest.partition(":")
    if not (algorithm.isalnum() and value.isalnum()):
        raise ValueError(f"{digest!r} is no digest")
    return f"blobs/{algorithm}/{value}"


def _blob(files: Files, digest: str) -> bytes:
    content = files.read(blob_name(digest))
    if not matches(content, digest):
        raise ValueError(f"the content of {digest} is damaged")
    return content


def matches(content: bytes, digest: str) -> bool:
    """Whether ``content`` has that ``digest``; one of another kind than is in use is believed."""
    algorithm, _, value = digest.partition(":")
    return algorithm not in _ALGORITHMS or hashlib.new(algorithm, content).hexdigest() == value
