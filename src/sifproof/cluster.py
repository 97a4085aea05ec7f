"""What the stages of a run hand on about Nomad: the cluster, and the allocations of each sandbox."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from sifproof import config
from sifproof.nomad import local
from sifproof.nomad.allocations import Allocation
from sifproof.nomad.client import Client, connect, is_loopback


class Cluster(BaseModel):
    """The Nomad of a run: ``nomad.json``. Holds no token."""

    model_config = ConfigDict(extra="forbid")

    address: str
    version: str
    local: bool = Field(description="whether the run started the agent itself, on this machine")
    directory: str = Field("", description="of a local agent: its token lies there")

    def is_here(self) -> bool:
        """Whether its agent runs on this machine: started by the run, or reached over loopback."""
        return self.local or is_loopback(urlsplit(self.address).hostname or "")

    def connect(self, settings: config.Nomad) -> Client:
        """A client of it; a local agent takes its own token, and nothing of the environment's.

        Raises :class:`~sifproof.errors.SifproofError` where the local agent has ended.
        """
        if self.local:
            return local.connect_to(self.address, Path(self.directory))
        return connect(self.address, namespace=settings.namespace, region=settings.region)


class Endpoints(BaseModel):
    """The running allocations of a sandbox: ``endpoints/<sandbox>.json``."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    allocations: list[Allocation]
    seconds: dict[str, float] = Field(description="seconds per phase, from submission to a started task")
