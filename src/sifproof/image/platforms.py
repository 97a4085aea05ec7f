"""Which image is meant where several stand under one name, one for each platform.

The choice is that of the tools that run images: Linux alone, the processor of this machine, and of its variants the one
that this machine can run for sure (arm64/v8 is arm64, amd64/v1 is amd64; arm/v6 does for arm/v7). Where two fit equally
well the first counts. Whoever reads, copies or loads an image does so by the digest that was chosen here, so that no
tool chooses again.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sifproof.errors import Fault, SifproofError

SYSTEM = "linux"
_MANIFESTS = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
# An artifact (a chart, a signature) has another, or the empty one.
_CONFIGS = {
    None,
    "",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_ATTESTATION = ("vnd.docker.reference.type", "attestation-manifest")
_NAMES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm", "armel": "arm"}
# Another way to say what is meant anyway.
_VARIANTS = {("amd64", "v1"): "", ("arm64", "v8"): "", ("arm", ""): "v7"}
# Builders make one index in another. Digests make no loops, but one that can't be verified may lie.
_DEEPEST = 8
_MOST = 1000


class Platform(NamedTuple):
    """What an image is made for, in the words that this project uses; what it does not say is empty."""

    system: str = ""
    architecture: str = ""
    variant: str = ""

    @classmethod
    def of(cls, marks: object) -> Platform:
        """From the ``platform`` of an entry, or from an image's config, which says it in the same words."""
        if not isinstance(marks, dict):
            return cls()
        system, architecture, variant = (
            value.lower() if isinstance(value := marks.get(key), str) else ""
            for key in ("os", "architecture", "variant")
        )
        variant = f"v{variant}" if variant.isdigit() else variant
        if not variant and architecture == "armel":
            variant = "v6"
        architecture = _NAMES.get(architecture, architecture)
        return cls(system, architecture, _VARIANTS.get((architecture, variant), variant))

    @classmethod
    def of_config(cls, text: bytes) -> Platform:
        """From an image's config; that it is none is told where it is read for more than this."""
        try:
            return cls.of(json.loads(text))
        except ValueError:
            return cls()

    def __str__(self) -> str:
        return "/".join(filter(None, (self.system or SYSTEM, self.architecture or "no processor named", self.variant)))


class Candidate(NamedTuple):
    """An image that an index leads to."""

    digest: str
    platform: Platform


class Reader(Protocol):
    """Where manifests and configs come from."""

    def manifest(self, digest: str) -> bytes:
        """The manifest or index of that digest; raises ``KeyError`` where it is not there."""

    def config(self, digest: str, manifest: dict[str, Any]) -> bytes:
        """The config of the image that has the ``manifest`` of that ``digest``."""


@dataclass
class _Search:
    reader: Reader
    found: list[Candidate] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def walk(self, entries: Iterable[dict[str, Any]], depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise ValueError(f"its indexes lie more than {_DEEPEST} deep in one another")
        for entry in entries:
            digest, marks = entry["digest"], Platform.of(entry.get("platform"))
            if digest in self.seen or marks.architecture == "unknown" or _attests(entry):
                continue
            self.seen.add(digest)
            if len(self.seen) > _MOST:
                raise ValueError(f"its index leads to more than {_MOST} others")
            if entry.get("mediaType") in _MANIFESTS and marks.system and marks.architecture:
                self.found.append(Candidate(digest, marks))
                continue
            try:
                manifest = json.loads(self.reader.manifest(digest))
            except KeyError:  # an engine lists every platform, and saves those that it has
                continue
            if "manifests" in manifest:
                self.walk(manifest["manifests"], depth + 1)
            elif "config" in manifest and manifest["config"].get("mediaType") in _CONFIGS:
                own = Platform.of_config(self.reader.config(digest, manifest))
                told = marks if marks.architecture else own
                self.found.append(Candidate(digest, told._replace(system=marks.system or own.system)))


def candidates(entries: Iterable[dict[str, Any]], reader: Reader) -> list[Candidate]:
    """The images that ``entries`` of an index lead to, in order; what is none, such as an attestation, is left out."""
    search = _Search(reader)
    search.walk(entries)
    return search.found


def rank(made_for: Platform, architecture: str) -> int | None:
    """How well an image fits this machine, 0 the best; None where it does not.

    One that does not say its processor comes last: nothing speaks against it.
    """
    wanted = _variants(architecture)
    if made_for.system not in {"", SYSTEM}:
        return None
    if not made_for.architecture:
        return len(wanted)
    if made_for.architecture != architecture or made_for.variant not in wanted:
        return None
    return wanted.index(made_for.variant)


def best(found: Sequence[Candidate], architecture: str) -> list[Candidate]:
    """Those of ``found`` that fit best; the first counts, unless it matters that there are several."""
    ranks = [rank(candidate.platform, architecture) for candidate in found]
    least = min((number for number in ranks if number is not None), default=None)
    return [c for c, number in zip(found, ranks, strict=True) if least is not None and number == least]


def choose(source: object, found: Sequence[Candidate], architecture: str) -> Candidate:
    """The one of ``found``, the images of one name, that is for ``architecture``; ``source`` is what they are called.

    Raises:
        SifproofError: (configuration) none is.
    """
    fitting = best(found, architecture)
    if fitting:
        return fitting[0]
    there = sorted({str(candidate.platform) for candidate in found})
    wanted = f"{SYSTEM}/{architecture}"
    todo = f"name an image that is made for {wanted}"
    variants = [c.platform.variant for c in found if (c.platform.system or SYSTEM, c.platform.architecture) == (
        SYSTEM, architecture)]  # fmt: skip
    if variants:
        todo += (
            f"; or, if every node can run {variants[0]}, the copy that `skopeo copy --override-variant {variants[0]}` "
            "makes of it"
        )
    raise SifproofError(
        f"The image {source} can't run here",
        why=f"it is made for {', '.join(there)}, not for {wanted}" if there else "no image is in it",
        todo=todo,
        fault=Fault.CONFIGURATION,
    )


def _attests(entry: dict[str, Any]) -> bool:
    key, value = _ATTESTATION
    return (entry.get("annotations") or {}).get(key) == value


def _variants(architecture: str) -> list[str]:
    """The variants of ``architecture`` that run here, the best first; empty is the one that needs no word."""
    if architecture != "arm":
        return [""]
    machine = platform.machine()
    newest = int(machine[4]) if machine.startswith("armv") and machine[4:5].isdigit() else 7
    return [f"v{number}" for number in range(newest, 4, -1)]
