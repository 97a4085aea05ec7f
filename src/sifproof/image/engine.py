"""The same image for the Docker engine: what a sandbox under the docker driver runs."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from sifproof import host_tools
from sifproof.config import Conversion
from sifproof.errors import Fault, SifproofError
from sifproof.image import archive, convert, daemon, layout, process, scratch
from sifproof.image.daemon import EngineTag
from sifproof.image.digest import SourceDigest, digest, digest_of, registry_error, require_unchanged
from sifproof.image.process import ToolFailure, capture
from sifproof.image.provenance import ConversionSettings
from sifproof.image.source import Kind, Source, host_architecture, require_platform

logger = logging.getLogger(__name__)


def engine_version(timeout_s: float = daemon.ANSWERS_WITHIN_S) -> str | None:
    """Version of the Docker engine that answers; None where no `docker` is, or no engine answers in time."""
    if host_tools.find("docker") is None:
        return None
    try:
        answer = capture("docker", "version", "--format", "{{.Server.Version}}", timeout_s=timeout_s)
    except ToolFailure:
        return None
    return answer.decode().strip() or None


def load_into_engine(
    source: Source,
    name: str,
    *,
    log: Path | None = None,
    settings: Conversion | None = None,
    identity: SourceDigest | None = None,
) -> EngineTag:
    """Make sure that the Docker engine has the image of ``source``; returns what it is there.

    The tag is ``sifproof/<name>:<digest>``, the digest's first twelve digits: where the engine has it, and it is that
    image, nothing is done. No other tag of the engine is touched.

    Args:
        source: of any kind but a SIF.
        name: of the sandbox.
        log: file that gets the output of all tools, appended; none to keep it only for the message of a failure.
        settings: where to work, as in a conversion.
        identity: what ``source`` was found to be; the engine gets that image and no other. None: what it is now.

    Raises:
        SifproofError: (configuration) no engine answers, there is no such image, or it is a SIF; (image) the engine
            does not take it; (infrastructure) it changed meanwhile, a disk is full, a tool is missing, a registry does
            not answer.
    """
    if source.kind is Kind.SIF:
        raise SifproofError(
            f"The docker driver can't run {source}",
            why="a SIF holds no image that a Docker engine could load",
            todo="name the image that the SIF was made from, or choose the driver singularity",
            fault=Fault.CONFIGURATION,
        )
    daemon.require_engine(str(source))
    how = ConversionSettings.of(settings)
    identity = identity or digest(source)
    require_platform(source, identity.architecture, identity.os)
    tag = f"sifproof/{_component(name)}:{identity.digest.removeprefix('sha256:')[:12]}"
    places = convert.places(how)
    scratch.sweep(p.path for p in places)
    place = scratch.choose(places, convert.need_bytes(source, identity))[0]
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)

    def run(step: str, tool: str, arguments: list[str], *, environment: dict[str, str] | None = None) -> None:
        process.run(tool, arguments, log=log, timeout_s=how.timeout_s, environment=environment)

    with scratch.directory(place.path) as (work, _):
        if there := _is_of(tag, identity, work, run):
            logger.info("The Docker engine has %s as %s", source, tag)
            return EngineTag(tag, there)
        logger.info("Loading %s into the Docker engine as %s", source, tag)
        try:
            if source.kind is Kind.DOCKER_DAEMON:
                run("tag", "docker", ["tag", identity.digest, tag])
            else:
                made = layout.lay_out(source, identity, work, run)
                archived = work / "image.tar"
                copy = ["--insecure-policy", "copy", f"oci:{made}", f"docker-archive:{archived}:{tag}"]
                run("copy", "skopeo", copy, environment={"TMPDIR": str(work)})
                run("load", "docker", ["load", "--input", str(archived)])
            there = _is_of(tag, identity, work, run)
        except ToolFailure as failure:
            if source.kind is Kind.DOCKER_DAEMON:
                require_unchanged(source, identity)
            if failure.name == "skopeo" and source.kind is Kind.REGISTRY:
                raise registry_error(source, failure) from failure
            raise convert.verdict_on(
                failure, f"The image {source} can't be loaded into the Docker engine", log
            ) from failure
        except OSError as error:
            raise SifproofError(f"Cannot load {source} by way of {place.path}", why=str(error)) from error
    if not there:
        raise SifproofError(
            f"The Docker engine has another image as {tag}",
            why=f"what was loaded there is {identity.digest}",
            todo="see who else gives that tag; run again",
        )
    return EngineTag(tag, there)


def _is_of(tag: str, identity: SourceDigest, work: Path, run: layout.Run) -> str:
    """The id of the engine's image ``tag`` where that is the one of ``identity``, else nothing.

    Anyone may have given the tag to another image: it proves nothing.
    """
    found = daemon.find(tag)
    if found is None or found.layers != identity.layers:
        return ""
    if found.id == identity.digest:
        return found.id
    # Most engines call an image by its config; of one that does so by its manifest, the config has to be looked at.
    saved = work / "there.tar"
    run("save", "docker", ["save", "--output", str(saved), found.id])
    held = archive.read(Source(kind=Kind.DOCKER_ARCHIVE, location=str(saved)), host_architecture())
    saved.unlink()
    return found.id if digest_of(held.config) == identity.digest else ""


def _component(name: str) -> str:
    """``name`` as a repository of an image may be called."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "image"
