"""What the stages of a run hand on about images, beside :class:`~sifproof.image.provenance.Provenance`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sifproof.image.daemon import EngineTag
from sifproof.image.digest import SourceDigest


class SourceImage(BaseModel):
    """The image of a sandbox as it was found: ``sources/<sandbox>.json``."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="the image, as the config names it or as the reference image was built")
    digest: SourceDigest


class LoadedImage(BaseModel):
    """The image of a docker sandbox in the engine: ``images/<sandbox>.json``."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="where it was loaded from")
    digest: str = Field(description="sha256:… of its config")
    name: str = Field(description="name and tag in the engine")
    id: str = Field(description="what the engine calls it by: it can't be given to another image")
    layers: list[str] = Field(description="digests of the uncompressed layers of the source, lowest first")
    seconds: dict[str, float] = Field(description="seconds per step")

    @classmethod
    def of(cls, source: str, identity: SourceDigest, loaded: EngineTag, seconds: dict[str, float]) -> LoadedImage:
        """The image of that ``identity``, which was ``loaded`` from ``source``."""
        return cls(
            source=source,
            digest=identity.digest,
            name=loaded.name,
            id=loaded.id,
            layers=identity.layers,
            seconds=seconds,
        )
