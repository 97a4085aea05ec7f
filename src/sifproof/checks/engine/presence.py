"""Whether what is to be looked at is still there: what ended a sandbox in the middle of its run, and whose doing.

Nobody knows that at once. Nomad calls a node down when its heartbeat is late, and hears of a task's end a moment
afterwards. So where a server does not answer, everyone who may know is asked in turn: Nomad for the allocation and for
the node, the node's agent, and the node itself for the server's process. What none of them tells is not known, and is
never said to be the image's.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import SIGBUS, SIGKILL

from sifproof.errors import Fault, SifproofError
from sifproof.nomad.allocations import Allocation, Event, parse_allocation
from sifproof.nomad.client import Client, UnreachableError
from sifproof.nomad.node import signals
from sifproof.nomad.node.oom import killed_for_memory, kills
from sifproof.nomad.node.script import Node
from sifproof.nomad.restart import last_start_ns
from sifproof.nomad.submit import death_of, failure_of, out_of_memory, unplanned_end, was_killed
from sifproof.sandbox.client import SandboxClient, ServerError

_NOMAD_BACK_S = 15.0
"""How long Nomad may be away: servers elect a leader in less."""

_TOLD_S = 6.0
"""How long Nomad may take to know that a task has ended whose port is closed."""

_HANGS_S = 30.0
"""How long a server that takes connections may leave all of them without an answer."""

_AGENT_S = 5.0
"""How long the agent of a node may take to answer through Nomad."""

_CONNECT_S = 2.0
_HEALTH_S = 2.0
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Loss:
    """What ended the looking at an allocation. ``died``: the server itself, by what it or its job is like."""

    error: SifproofError
    died: bool


class Lost(Exception):  # noqa: N818 - an outcome, not an error
    """Raised in the middle of a check by a request that can't be answered any more. Not to be caught by a check."""


class Watch:
    """Watches over one allocation while it is looked at. May be asked by several threads.

    ``connect`` makes a connection to Nomad of its own, ``port`` is the server's as its container sees it.
    """

    def __init__(self, connect: Callable[[], Client], allocation: Allocation, *, port: int, run: str) -> None:
        self._connect = connect
        self._allocation = allocation
        self._port = port
        self._run = run
        self._began_ns = last_start_ns(allocation)
        self._since = time.monotonic()
        self._client: Client | None = None
        self._lock = threading.RLock()
        self._expected = 0
        self._loss: Loss | None = None

    def close(self) -> None:
        """Close its connection."""
        if self._client:
            self._client.close()

    @contextmanager
    def silence_expected(self) -> Iterator[None]:
        """While the block runs, a request without an answer is no news: somebody ended the server on purpose."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1

    def look(self, thorough: bool = False) -> Loss | None:
        """What Nomad knows to have ended the allocation, or to have ended its task once.

        ``thorough``: the node and its agent are asked too, for something did not go as it should.
        """
        with self._lock:
            self._loss = self._loss or self._asked() or (self._unreached() if thorough else None)
            return self._loss

    def look_at_node(self) -> Loss | None:
        """What keeps the node from being asked: of an allocation that has been ended."""
        with self._lock:
            self._loss = self._loss or self._unreached()
            return self._loss

    def kills(self) -> list[tuple[float, str]]:
        """When the kernel killed processes of the allocation at the limit of its job (monotonic clock); and which.

        Only since it is watched, and where the kernel's log can be read.
        """
        with self._lock:
            try:
                seen = kills(self._node(), self._allocation.id)
            except SifproofError:
                return []
        now = time.monotonic()
        return [(now - kill.age_s, kill.task) for kill in seen if now - kill.age_s > self._since]

    def starved(self, task: str) -> SifproofError:
        """That the kernel killed ``task``, which does nothing for its image's sake."""
        return SifproofError(
            f"The kernel killed {task or 'a process'} of allocation {self._allocation.id[:8]} on node "
            f"{self._allocation.node_name}",
            why="its server and what runs there used more than the memory reserved for it",
            todo="raise memory",
            fault=Fault.CONFIGURATION,
        )

    def unanswered(self) -> None:
        """To be called where a request got no answer; raises :class:`Lost` where none will."""
        if self._expected:
            return
        with self._lock:
            self._loss = self._loss or self._silent()
            if self._loss:
                raise Lost(str(self._loss.error))

    # -- whom it asks ----------------------------------------------------------------------------------------------

    def _nomad(self) -> Client:
        self._client = self._client or self._connect()
        return self._client

    def _node(self) -> Node:
        return Node(self._nomad(), self._allocation.node_id, self._allocation.node_name, run=self._run)

    def _asked(self) -> Loss | None:
        """What Nomad says of the allocation; where it does not answer, it is waited for."""
        end = time.monotonic() + _NOMAD_BACK_S
        while True:
            try:
                nomad = self._nomad()
                return self._ended(nomad, parse_allocation(nomad.get("allocation", self._allocation.id)))
            except UnreachableError as error:
                if time.monotonic() > end:
                    return Loss(error, died=False)
                time.sleep(_PAUSE_S)  # what can't be reached tells nobody that it is back
            except SifproofError as error:
                return Loss(error, died=False)

    def _ended(self, nomad: Client, allocation: Allocation) -> Loss | None:
        """What ended ``allocation``, or its task once since it was placed."""
        death = unplanned_end(allocation, self._began_ns)
        if death and allocation.client_status not in ("lost", "unknown"):
            error: SifproofError | None = self._death(nomad, allocation, death)
            if error and allocation.client_status in ("pending", "running"):
                error.why += "; Nomad started it again, and what it had in memory is gone"
        else:
            error = failure_of(nomad, allocation)
        return Loss(error, died=error.fault is not Fault.INFRASTRUCTURE) if error else None

    def _death(self, nomad: Client, allocation: Allocation, event: Event) -> SifproofError:
        """As :func:`death_of`; where it was a signal that want of memory ends in, the node's kernel is asked.

        It kills whatever process it chooses. Without the one that mounts its image, a server dies of SIGBUS.
        """
        told = death_of(nomad, allocation, event)
        if told.fault is Fault.CONFIGURATION or not was_killed(event, SIGKILL, SIGBUS):
            return told
        try:
            line = killed_for_memory(self._node(), allocation.id)
        except SifproofError as error:
            told.fault = Fault.INFRASTRUCTURE
            told.why += f"; whether it was for want of memory is not known, for the kernel's log can't be read: {error}"
            return told
        if line:
            task = re.search(r"task=([^,]+)", line)
            return out_of_memory(allocation, f"the kernel killed {task[1] if task else 'a process'} of it; {told.why}")
        return told

    def _unreached(self) -> Loss | None:
        """What keeps Nomad from the node, if anything does for long."""
        end = time.monotonic() + _NOMAD_BACK_S
        while isinstance(error := self._node_gone(), UnreachableError) and time.monotonic() < end:
            time.sleep(_PAUSE_S)  # an agent that starts again tells nobody
        return Loss(error, died=False) if error else None

    def _node_gone(self) -> SifproofError | None:
        """What Nomad says of a node that is not there; or that its agent does not answer."""
        name = self._allocation.node_name
        try:
            nomad = self._nomad()
            status = str(nomad.get("node", self._allocation.node_id).get("Status"))
        except SifproofError as error:
            return error if isinstance(error, UnreachableError) else None
        if status != "ready":
            return SifproofError(
                f"Nomad lost node {name}",
                why=f"it is {status}: it stopped answering",
                todo="look at the node and at the log of its Nomad client",
            )
        try:
            nomad.reach(self._allocation.node_id, within_s=_AGENT_S)
        except UnreachableError as error:
            return UnreachableError(
                f"The Nomad client of node {name} does not answer",
                why=error.why or error.what,
                todo="look at the node, at its network, and at the log of its Nomad client",
            )
        except SifproofError:
            return None  # it answered
        return None

    def _silent(self) -> Loss | None:
        """What keeps the server from answering; nothing where it answers again."""
        began = time.monotonic()
        while True:
            if loss := self._asked():
                return loss
            silence = _silence_of(self._allocation)
            if silence is None:
                return None
            if time.monotonic() - began > (_HANGS_S if silence.connected else _TOLD_S):
                return self._why_silent(silence)
            time.sleep(_PAUSE_S)  # nothing tells that it listens again

    def _why_silent(self, silence: _Silence) -> Loss:
        """Why a server does not answer that Nomad takes to be running."""
        where = f"allocation {self._allocation.id[:8]} on node {self._allocation.node_name}"
        if gone := self._node_gone():
            return Loss(gone, died=False)
        try:
            lives = bool(signals.find_server(self._node(), self._allocation.id, self._port))
        except SifproofError as error:
            unknown = SifproofError(
                f"The server of {where} does not answer, and whether it lives can't be seen",
                why=f"{silence.words}; {error}",
                todo="look for the server's process on the node",
            )
            return self._asked() or Loss(unknown, died=False)
        if loss := self._asked():
            return loss
        if (silence.connected or (silence.refused and not lives)) and (killed := self.kills()):
            return Loss(self.starved(killed[-1][1]), died=True)
        if silence.connected or (silence.refused and not lives):
            mute = SifproofError(
                f"The server of {where} {'hangs' if silence.connected else 'listens no more'}",
                why=f"{silence.words}; as far as Nomad knows its task runs",
                todo="read the task's stderr in the run's folder",
                fault=Fault.IMAGE,
            )
            return Loss(mute, died=True)
        cut_off = SifproofError(
            f"The server of {where} can't be reached from here",
            why=f"{silence.words}; on its node {'it listens' if lives else 'no process of it was seen'}",
            todo="look at the network between this machine and the node, and at its firewall",
        )
        return Loss(cut_off, died=False)


@dataclass(frozen=True)
class _Silence:
    """How a server does not answer: whether it took the connection, or whether the node refused it."""

    words: str
    connected: bool = False
    refused: bool = False


def _silence_of(allocation: Allocation) -> _Silence | None:
    """How the server of ``allocation`` does not answer now; ``None`` where it does."""
    try:
        socket.create_connection((allocation.address, allocation.port), _CONNECT_S).close()
    except ConnectionRefusedError as error:
        return _Silence(f"its port is closed ({error})", refused=True)
    except OSError as error:
        return _Silence(f"no connection to its port ({error})")
    try:
        SandboxClient(allocation.url, timeout_s=_HEALTH_S, grace_s=0).health()
    except ServerError as error:
        return _Silence(str(error), connected=True) if error.status is None else None
    return None
