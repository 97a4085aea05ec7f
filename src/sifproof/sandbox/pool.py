"""A pool over the slots of many servers, for programs that hand work to whichever slot is free."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sifproof.errors import SifproofError
from sifproof.sandbox.client import Result, SandboxClient, ServerError


@dataclass(frozen=True)
class Slot:
    """One slot of one server."""

    client: SandboxClient
    slot_id: str

    def bash(self, command: str, *, timeout_s: float | None = None, **options: bool) -> Result:
        """Run ``command`` in this slot."""
        return self.client.bash(self.slot_id, command, timeout_s=timeout_s, **options)

    def read_file(self, path: str) -> Result:
        """Read ``path`` in this slot's workspace."""
        return self.client.read_file(self.slot_id, path)

    def write_file(self, path: str, content: str) -> Result:
        """Write ``path`` in this slot's workspace."""
        return self.client.write_file(self.slot_id, path, content)


class SlotPool:
    """All slots of ``clients``, one user at a time each. Threads may share it.

    A slot is emptied (``/reset``) when it comes back, so that the next user finds none of the last one's work. One
    whose server can't empty it is taken out; :attr:`lost` tells which and why.
    """

    def __init__(self, clients: Iterable[SandboxClient]) -> None:
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self.lost: list[tuple[Slot, ServerError]] = []
        self.size = 0
        # One slot of each server in turn, so that light work spreads over the servers.
        waiting = [iter([Slot(client, str(slot["slot_id"])) for slot in client.slots()]) for client in clients]
        while waiting:
            for slots in list(waiting):
                slot = next(slots, None)
                if slot is None:
                    waiting.remove(slots)
                else:
                    self._free.put(slot)
                    self.size += 1

    @contextmanager
    def slot(self, *, within_s: float = 60.0) -> Iterator[Slot]:
        """A free slot, for the length of the ``with`` block; raises :class:`SifproofError` where none comes free."""
        deadline = time.monotonic() + within_s
        try:
            slot = self._free.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise SifproofError(
                f"No slot came free within {within_s:g} s",
                why=f"{self.size - len(self.lost)} are in use, {len(self.lost)} were lost",
                todo="Raise `slots` or `count`, or wait longer",
            ) from None
        try:
            yield slot
        finally:
            try:
                result = slot.client.reset(slot.slot_id)
                if not result.success:
                    raise ServerError("POST /reset failed", why=result.error)
                self._free.put(slot)
            except ServerError as error:
                self.lost.append((slot, error))
