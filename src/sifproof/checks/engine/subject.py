"""The subject of the suites that look at a running server: one allocation, seen from outside."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from sifproof import config
from sifproof.checks.engine.registry import NotApplicable, NotMeasured
from sifproof.nomad.allocations import Allocation
from sifproof.nomad.client import Client
from sifproof.nomad.cluster import Cluster, Endpoints
from sifproof.nomad.deployed_job import port_label_of, ports, task_of
from sifproof.nomad.node.script import Node
from sifproof.nomad.teardown import AllocationEnd
from sifproof.sandbox import tokens
from sifproof.sandbox.client import Result, SandboxClient, ServerError

T = TypeVar("T")


@dataclass
class Placement:
    """Where a server runs, for the checks that look past what it answers."""

    run: str
    nomad: Client
    cluster: Cluster
    settings: config.Settings
    sandbox: config.Sandbox
    allocation: Allocation
    endpoints: Endpoints
    job: Mapping[str, Any] = field(repr=False)
    """As it was submitted: ``{"Job": {…}}``."""
    image: Path
    """The file that conversion or loading wrote: provenance, or the image in the Docker engine."""
    job_file: Path | None = None
    """Where the job was rendered to: its token lies beside it."""

    @cached_property
    def token(self) -> str | None:
        """What the job's servers ask of their clients, where they do."""
        return tokens.read(self.job_file) if self.job_file else None

    @property
    def port_inside(self) -> int:
        """The port that its server listens on, as its container sees it."""
        group, label = self.job["Job"]["TaskGroups"][0], port_label_of(self.job)
        inside = [port.get("To") for _, _, port in ports(group, task_of(self.job)) if port.get("Label") == label]
        return int(next(filter(None, inside), self.allocation.port))

    @cached_property
    def node(self) -> Node:
        """The allocation's node, as its Nomad client's user sees it."""
        return Node(self.nomad, self.allocation.node_id, self.allocation.node_name, run=self.run)


@dataclass
class Server:
    """One allocation's server.

    ``read_allocation_file`` reads a path below the allocation's data directory through Nomad, never through the
    server; it raises :class:`~sifproof.errors.SifproofError` where there is no such file. ``ask_nomad`` raises one
    where Nomad knows that the allocation does not run, with the reason.
    """

    client: SandboxClient
    slots: int
    ready_within_s: float
    read_allocation_file: Callable[[str], bytes]
    ask_nomad: Callable[[], None]
    driver: str = "singularity"
    silence_expected: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False)
    """While such a block runs, a request without an answer is no news of what became of the server."""
    placement: Placement | None = None
    keep: ExitStack = field(default_factory=ExitStack, repr=False)
    """What checks of a suite share and somebody has to end: closed when the suite is over on this allocation."""
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def placed(self) -> Placement:
        """Where it runs; a check that needs it is ``not-measured`` on a server that Nomad did not start."""
        if self.placement is None:
            raise NotMeasured("the server does not run under Nomad")
        return self.placement

    def at_most_of_memory(self, size: int, part: int) -> int:
        """``size`` bytes, or the ``part``-th of the memory that the job reserves where that is less."""
        return size if self.placement is None else min(size, self.placement.sandbox.memory * 2**20 // part)

    def share(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` returns, made once for all checks of the suite; where it raised, the same is raised again."""
        if name not in self._shared:
            try:
                self._shared[name] = make()
            except Exception as error:
                self._shared[name] = error
        if isinstance(self._shared[name], Exception):
            raise self._shared[name]
        return cast(T, self._shared[name])

    def slot(self, index: int = 0) -> str:
        """Id of the slot ``index`` counted from either end; not applicable where the config gives too few."""
        try:
            return f"slot_{range(self.slots)[index]}"
        except IndexError:
            raise NotApplicable(f"needs {index + 1} slots, the sandbox has {self.slots}") from None

    def idle(self) -> list[int]:
        """Numbers of the slots that are not said to be executing: a call that never returns keeps its slot."""
        busy = {entry.get("slot_id") for entry in self.client.slots() if entry.get("state") == "executing"}
        return [index for index in range(self.slots) if self.slot(index) not in busy]

    def bash(self, command: str, *, slot: int = 0, timeout_s: float = 30.0) -> Result:
        """Run ``command`` in a slot."""
        return self.client.bash(self.slot(slot), command, timeout_s=timeout_s)

    def write(self, path: str, content: str, *, slot: int = 0) -> Result:
        """Write a file in a slot."""
        return self.client.write_file(self.slot(slot), path, content)

    def read(self, path: str, *, slot: int = 0) -> Result:
        """Read a file in a slot."""
        return self.client.read_file(self.slot(slot), path)

    def remove(self, name: str, *, slot: int = 0) -> bool:
        """Remove a file of a slot's workspace; whether it was there, which no exit code is asked for."""
        result = self.bash(f"test -e {name} && rm {name} && echo removed", slot=slot)
        return result.output.strip() == "removed"

    def wait_until_busy(self, slot: int = 0, *, within_s: float = 1.0) -> None:
        """Wait until a command runs in a slot, as the server says; ``within_s`` at most, for one that does not say."""
        name, end = self.slot(slot), time.monotonic() + within_s
        while time.monotonic() < end:
            if any(e.get("slot_id") == name and e.get("state") == "executing" for e in self.client.slots()):
                return
            time.sleep(0.01)

    def hang_up_on(self, call: Mapping[str, Any], name: str, *, slot: int = 0) -> None:
        """Send ``call``, wait until its command has made the file ``name`` in the slot's workspace, and hang up.

        After a second at the latest: a server may have held the call back. Raises OSError where it takes no connection.
        """
        body = json.dumps(call).encode()
        head = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        # Asked by a call that waits for no command; of a server where it does, no answer is waited for.
        client, look = self.client.clone(timeout_s=0.5, grace_s=0.0), {"slot_id": self.slot(slot), "path": name}
        end = time.monotonic() + 1.0
        with self.client.begin("POST", "/execute", head + body), suppress(ServerError):
            while time.monotonic() < end and client.request("POST", "/artifacts/read", look)[0] != 200:
                time.sleep(0.01)

    def read_slot_file(self, path: str, *, slot: int = 0) -> bytes:
        """A file of a slot's workspace, read through Nomad."""
        return self.read_allocation_file(f"{self.workspace(slot)}/{path}")

    def workspace(self, slot: int = 0) -> str:
        """A slot's workspace relative to the server's data directory, as the server names both; `slot_N` by default."""
        name = self.slot(slot)
        data = PurePosixPath(str(self.client.health().get("data_dir", "")))
        for entry in self.client.slots():
            folder = PurePosixPath(str(entry.get("workspace_dir", "")))
            inside = folder != data and folder.is_relative_to(data) and ".." not in folder.parts
            if entry.get("slot_id") == name and inside:
                return str(folder.relative_to(data))
        return name


def nonce() -> str:
    """A word that nothing else in the world can answer with by chance."""
    return f"sifproof-{secrets.token_hex(12)}"


@dataclass(frozen=True)
class Ended:
    """What became of one allocation, and of its job."""

    allocation: AllocationEnd
    purged: bool
    stopped_within_s: float
    driver: str = "singularity"
