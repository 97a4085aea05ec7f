"""What the stages of a run hand on about Nomad: the cluster, and the allocations of each sandbox."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from sifproof import config
from sifproof.nomad.address import is_loopback, without_password
from sifproof.nomad.agent import local
from sifproof.nomad.allocations import Allocation
from sifproof.nomad.client import Client, connect


class Cluster(BaseModel):
    """The Nomad of a run: ``nomad.json``. Holds no token and no password."""

    model_config = ConfigDict(extra="forbid")

    address: str
    version: str
    local: bool = Field(description="whether the run started the agent itself, on this machine")
    directory: str = Field("", description="of a local agent: its token lies there")

    def is_here(self, settings: config.Nomad) -> bool:
        """Whether its nodes are this machine: started by the run, or, reached over loopback, all of this host's name.

        Loopback alone says nothing: it may be the end of a tunnel.
        """
        if self.local:
            return True
        if not is_loopback(urlsplit(self.address).hostname or ""):
            return False
        with self.connect(settings) as client:
            ready = [node["ID"] for node in client.get("nodes") if node["Status"] == "ready"]
            return bool(ready) and all(
                client.get("node", node)["Attributes"].get("unique.hostname") == socket.gethostname() for node in ready
            )

    def connect(self, settings: config.Nomad) -> Client:
        """A client of it; a local agent takes its own token, and nothing of the environment's.

        Raises :class:`~sifproof.errors.SifproofError` where the local agent has ended.
        """
        if self.local:
            return local.connect_to(self.address, Path(self.directory))
        # A password in the address is never written down: it comes from where the run has it from, each time.
        given = settings.effective_address()
        address = given if without_password(given.rstrip("/")) == self.address else self.address
        return connect(address, namespace=settings.namespace, region=settings.region)


class Endpoints(BaseModel):
    """The running allocations of a sandbox: ``endpoints/<sandbox>.json``."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    allocations: list[Allocation]
    seconds: dict[str, float] = Field(description="seconds per phase, from submission to a started task")
    healthy_s: dict[str, float] = Field(
        default={}, description="seconds from submission to the first healthy answer, by allocation, where it was seen"
    )
