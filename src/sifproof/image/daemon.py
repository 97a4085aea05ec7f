"""The images of the Docker engine, through the `docker` command.

The command knows DOCKER_HOST, contexts, TLS and ssh, and speaks whatever version of the API the engine speaks; skopeo's
own docker-daemon transport is too old for today's engines in some distributions.
"""

from __future__ import annotations

import difflib
import json
from typing import NamedTuple

from sifproof import host_tools
from sifproof.errors import Fault, SifproofError
from sifproof.image.platforms import Platform
from sifproof.image.process import ToolFailure, capture

ANSWERS_WITHIN_S = 30.0
"""A busy engine is an engine: what is decided must not depend on the load. A missing one refuses at once."""


class EngineImage(NamedTuple):
    """An image as the engine knows it."""

    id: str
    platform: Platform
    size_bytes: int
    config: dict[str, object]
    """The engine's ``Config``: the same names as in an OCI image's config."""
    layers: list[str]


class EngineTag(NamedTuple):
    """An image of the engine."""

    name: str
    """Name and tag."""
    id: str
    """What the engine calls it by, whatever becomes of the tag; it was seen to be the image that was meant."""


def inspect(name: str) -> EngineImage:
    """The engine's image ``name``.

    Raises:
        SifproofError: (configuration) there is no engine, or it has no such image.
    """
    require_engine(f"docker-daemon:{name}")
    found = find(name)
    if found is None:
        raise SifproofError(
            f"The image docker-daemon:{name} does not exist",
            why=f"the Docker engine has no such image{_similar(name)}",
            todo=f"build or `docker pull {name}`, or name another one",
            fault=Fault.CONFIGURATION,
        )
    return found


def find(name: str) -> EngineImage | None:
    """The engine's image ``name``; None where it has none of that name.

    Raises:
        SifproofError: the engine does not tell.
    """
    try:
        found = json.loads(capture("docker", "image", "inspect", name))[0]
    except ToolFailure as failure:
        if "no such image" in failure.output.lower():
            return None
        raise SifproofError(f"The Docker engine can't show the image {name}", why=failure.last_words) from failure
    return EngineImage(
        id=found["Id"],
        platform=Platform.of({"os": found.get("Os"), "architecture": found.get("Architecture")}),
        size_bytes=found.get("Size", 0),
        config=found.get("Config") or {},
        layers=(found.get("RootFS") or {}).get("Layers") or [],
    )


def require_engine(wanted_for: str) -> str:
    """The version of the engine.

    Raises:
        SifproofError: (configuration) none answers.
    """
    why = "the command `docker` is missing"
    if host_tools.find("docker") is not None:
        try:
            return (
                capture("docker", "version", "--format", "{{.Server.Version}}", timeout_s=ANSWERS_WITHIN_S)
                .decode()
                .strip()
            )
        except ToolFailure as failure:
            why = failure.last_words
    raise SifproofError(
        f"No Docker engine answers, and {wanted_for} needs one",
        why=why,
        todo="start the engine or set DOCKER_HOST; or name an image of another kind, such as docker-archive:PATH",
        fault=Fault.CONFIGURATION,
    )


def _similar(name: str) -> str:
    names = capture("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").decode().split()
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"; similar ones: {', '.join(close)}" if close else ""
