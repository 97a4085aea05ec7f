"""What identifies the content of an image, by the cheapest way its source allows.

The digest of an image is that of its *config*: it names every layer (``rootfs.diff_ids``) and every setting, so it
changes with each, and it does not change with compression or transport. An engine with the containerd image store
identifies images by their manifest instead; that changes whenever the content does, which is all that is asked of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sifproof import host_tools
from sifproof.errors import Fault, SifproofError
from sifproof.image import archive, daemon, platforms, sif
from sifproof.image.platforms import Platform
from sifproof.image.process import ToolFailure, capture
from sifproof.image.source import Kind, Source, host_architecture, require_file
from sifproof.records import write_atomically

_ANSWERS_WITHIN_S = 120.0
"""A registry, with all that skopeo tries again."""


class ImageConfig(BaseModel):
    """What an image says about how it wants to be run."""

    model_config = ConfigDict(extra="forbid")

    entrypoint: list[str] = Field(default_factory=list, description="command that every start begins with")
    cmd: list[str] = Field(default_factory=list, description="default arguments of the entrypoint")
    env_keys: list[str] = Field(
        default_factory=list, description="names of the environment variables; their values may be secrets"
    )
    workdir: str = Field(default="", description="directory that the command starts in")
    user: str = Field(default="", description="user that the command runs as")
    ports: list[str] = Field(default_factory=list, description="ports the image declares, such as 8080/tcp")
    labels: dict[str, str] = Field(default_factory=dict, description="labels of the image")

    @classmethod
    def of(cls, config: dict[str, Any]) -> ImageConfig:
        """From the ``config`` member of an OCI image config."""
        return cls(
            entrypoint=config.get("Entrypoint") or [],
            cmd=config.get("Cmd") or [],
            env_keys=[e.partition("=")[0] for e in config.get("Env") or []],
            workdir=config.get("WorkingDir") or "",
            user=config.get("User") or "",
            ports=sorted(config.get("ExposedPorts") or {}),
            labels=config.get("Labels") or {},
        )


class SourceDigest(BaseModel):
    """The identity of the image at a source."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(description="sha256:… of the image's config; of the whole file for a SIF")
    manifest_digest: str = Field(default="", description="sha256:… of its manifest; empty where it has none")
    architecture: str = Field(description="its processor, as GOARCH names it; empty where it does not say")
    os: str = Field(default="", description="its system, as GOOS names it; empty where it does not say")
    layers: list[str] = Field(default_factory=list, description="digests of the uncompressed layers, lowest first")
    layer_bytes: int = Field(default=0, description="size of all layers as the source holds them")
    raw_layers: bool = Field(default=False, description="whether the source holds every layer uncompressed")
    config: ImageConfig = Field(default_factory=ImageConfig, description="how the image wants to be run")


def digest(source: Source, cache: Path | None = None) -> SourceDigest:
    """Identify the image at ``source``; of several platforms this machine's.

    Args:
        source: of any kind.
        cache: directory that remembers the digests of files by path, inode, size and times; needed for a .sif only.

    Raises:
        SifproofError: (configuration) there is no such image; (infrastructure) a registry does not answer, or a tool
            is missing.
    """
    require_file(source)
    if source.kind is Kind.SIF:
        header = sif.read_header(source.path)
        return SourceDigest(digest=f"sha256:{file_digest(source.path, cache)}", architecture=header.architecture)
    if source.kind is Kind.DOCKER_DAEMON:
        found = daemon.inspect(source.location)
        return SourceDigest(
            digest=found.id,
            architecture=found.platform.architecture,
            os=found.platform.system,
            layers=found.layers,
            layer_bytes=found.size_bytes,
            raw_layers=True,
            config=ImageConfig.of(found.config),
        )
    if source.kind is Kind.REGISTRY:
        return _registry_digest(source)
    image = archive.read(source, host_architecture())
    return _of_config(
        source,
        image.config,
        manifest_digest=image.digest,
        layer_bytes=image.layer_bytes,
        raw_layers=image.raw_layers,
    )


def file_digest(path: Path, cache: Path | None = None) -> str:
    """The SHA-256 of the file at ``path``, in hex; remembered in the directory ``cache``.

    What is remembered counts only while path, inode, size, and times of content and of status are the same.
    """
    status = path.stat()
    name = str(path.resolve())
    identity = [name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memory = None
    if cache is not None:
        memory = cache / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            if known["identity"] == identity:
                return str(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    with path.open("rb") as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
    # A file changed again within the clock's grain would keep its times: such a young one is not remembered.
    if memory is not None and time.time_ns() - status.st_ctime_ns > 1_000_000_000:
        write_atomically(memory, json.dumps({"identity": identity, "sha256": value}))
    return value


def _registry_digest(source: Source) -> SourceDigest:
    if host_tools.find("skopeo") is None:
        raise SifproofError(
            f"Cannot ask the registry about {source}",
            why="the command `skopeo` is missing",
            todo="install skopeo, or name an image of another kind, such as docker-archive:PATH",
        )
    registry = _Registry(source)
    try:
        manifest = capture("skopeo", "inspect", "--raw", str(source), timeout_s=_ANSWERS_WITHIN_S)
        name = digest_of(manifest)
        if "manifests" in json.loads(manifest):
            found = platforms.candidates(json.loads(manifest)["manifests"], registry)
            name = platforms.choose(source, found, host_architecture()).digest
            manifest = registry.manifest(name)
        told = json.loads(manifest)
        # By its digest, not by the tag again: a push in between would give the config of another image.
        config = registry.config(name, told)
        layers = told["layers"]
        archive.require_layers(source, len(layers), config)
    except ToolFailure as failure:
        raise registry_error(source, failure) from failure
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SifproofError(
            f"The image {source} can't be read",
            why=f"what the registry has is no image of today's kinds ({error or type(error).__name__})",
            todo="push it anew with docker, buildah or skopeo of today",
            fault=Fault.CONFIGURATION,
        ) from error
    return _of_config(
        source,
        config,
        manifest_digest=name,
        layer_bytes=sum(layer.get("size", 0) for layer in layers),
        raw_layers=False,
    )


class _Registry:
    """Manifests and configs of the repository of an image."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def manifest(self, digest: str) -> bytes:
        try:
            content = capture("skopeo", "inspect", "--raw", by_digest(self.source, digest), timeout_s=_ANSWERS_WITHIN_S)
        except ToolFailure as failure:
            if _is_missing(failure):
                raise KeyError(digest) from failure
            raise
        if not archive.matches(content, digest):
            raise ValueError(f"the content of {digest} is another")
        return content

    def config(self, digest: str, _: dict[str, Any]) -> bytes:
        return capture(
            "skopeo", "inspect", "--config", "--raw", by_digest(self.source, digest), timeout_s=_ANSWERS_WITHIN_S
        )


def _is_missing(failure: ToolFailure) -> bool:
    said = failure.output.lower()
    return any(word in said for word in ("manifest unknown", "name unknown", "not found", "no image found"))


def registry_error(source: Source, failure: ToolFailure) -> SifproofError:
    """What a failed talk with the registry of ``source`` means."""
    said = failure.output.lower()
    if any(word in said for word in ("unauthorized", "authentication required", "denied", "status 401")):
        why, todo, fault = (
            "the registry refuses access",
            "look at the name; for a private image log in (`skopeo login HOST`)",
            Fault.CONFIGURATION,
        )
    elif _is_missing(failure):
        why, todo, fault = "the registry has no such image", "look at name and tag", Fault.CONFIGURATION
    else:
        why, todo, fault = failure.last_words, "look at the network, then run again", Fault.INFRASTRUCTURE
    return SifproofError(f"The image {source} can't be had", why=why, todo=todo, fault=fault)


def by_digest(source: Source, manifest_digest: str) -> str:
    """The image of the registry ``source`` with that manifest, as skopeo and Apptainer call it, whatever its tag is."""
    path, slash, name = source.location.partition("@")[0].rpartition("/")
    return f"docker://{path}{slash}{name.partition(':')[0]}@{manifest_digest}"


def require_unchanged(source: Source, identity: SourceDigest, cache: Path | None = None) -> None:
    """Prove that ``source`` still is the image that was identified, once it has been read.

    Raises:
        SifproofError: (infrastructure) it is another one, or none any more; as :func:`digest`.
    """
    try:
        now = digest(source, cache).digest
    except SifproofError as error:
        if error.fault is not Fault.CONFIGURATION:
            raise
        now = f"none ({error.why})" if error.why else "none"
    if now != identity.digest:
        raise changed(source, identity, now)


def changed(source: Source, identity: SourceDigest, now: str) -> SifproofError:
    """What it means that ``source`` is ``now`` another image than the one of that ``identity``."""
    return SifproofError(
        f"The image {source} changed while it was fetched",
        why=f"it was {identity.digest} and is now {now}",
        todo="run again",
    )


def digest_of(content: bytes) -> str:
    """The digest of ``content``, as manifests write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _of_config(source: Source, text: bytes, **fields: Any) -> SourceDigest:
    try:
        config = json.loads(text)
        return SourceDigest(
            digest=digest_of(text),
            architecture=Platform.of(config).architecture,
            os=Platform.of(config).system,
            layers=config["rootfs"]["diff_ids"],
            config=ImageConfig.of(config.get("config") or {}),
            **fields,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SifproofError(
            f"The image {source} can't be read",
            why="what should be its config is none (an artifact, perhaps, and no image)",
            todo="name an image made by docker, buildah or the like",
            fault=Fault.CONFIGURATION,
        ) from error
