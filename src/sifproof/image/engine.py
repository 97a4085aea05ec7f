"""The same image for the Docker engine: what a sandbox under the docker driver runs."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from sifproof import tools
from sifproof.config import Conversion
from sifproof.errors import Fault, SifproofError
from sifproof.image import convert, daemon, process, scratch
from sifproof.image.digest import SourceDigest, digest, registry_error, require_unchanged
from sifproof.image.process import ToolFailure, capture
from sifproof.image.provenance import ConversionSettings
from sifproof.image.source import Kind, Source

logger = logging.getLogger(__name__)


def engine_version(timeout_s: float = daemon.ANSWERS_WITHIN_S) -> str | None:
    """Version of the Docker engine that answers; None where no `docker` is, or no engine answers in time."""
    if tools.find("docker") is None:
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
) -> str:
    """Make sure that the Docker engine has the image of ``source``; returns the tag that it has there.

    The tag is ``sifproof/<name>:<digest>``, the digest's first twelve digits: where the engine has it, nothing is done.
    No other tag of the engine is touched.

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
    tag = f"sifproof/{_component(name)}:{identity.digest.removeprefix('sha256:')[:12]}"
    if daemon.has(tag):
        logger.info("The Docker engine has %s as %s", source, tag)
        return tag
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
    logger.info("Loading %s into the Docker engine as %s", source, tag)
    try:
        if source.kind is Kind.DOCKER_DAEMON:
            process.run("docker", ["tag", identity.digest, tag], log=log, timeout_s=how.timeout_s)
            return tag
        places = convert.places(how)
        scratch.sweep(p.path for p in places)
        place = scratch.choose(places, convert.need_bytes(source, identity))[0]
        with scratch.directory(place.path) as (work, _):
            archive = work / "image.tar"
            process.run(
                "skopeo",
                [
                    "--insecure-policy",
                    "copy",
                    convert.transport(source, identity),
                    f"docker-archive:{archive}:{tag}",
                ],
                log=log,
                timeout_s=how.timeout_s,
                environment={"TMPDIR": str(work)},
            )
            if source.is_file:
                require_unchanged(source, identity)
            process.run(
                "docker",
                ["load", "--input", str(archive)],
                log=log,
                timeout_s=how.timeout_s,
            )
    except ToolFailure as failure:
        require_unchanged(source, identity)
        if failure.name == "skopeo" and source.kind is Kind.REGISTRY:
            raise registry_error(source, failure) from failure
        raise convert.verdict_on(
            failure, f"The image {source} can't be loaded into the Docker engine", log
        ) from failure
    return tag


def _component(name: str) -> str:
    """``name`` as a repository of an image may be called."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "image"
