"""Restarts of a task where it runs: asked for, or Nomad's own after a crash."""

from __future__ import annotations

import time

from sifproof.errors import Fault, SifproofError
from sifproof.nomad.allocations import Allocation, parse_allocation
from sifproof.nomad.client import BLOCK_S, Client
from sifproof.nomad.submit import check_alive


def last_start_ns(allocation: Allocation) -> int:
    """When its task was started last, by the clock of the node; 0 for one that never was."""
    return max((event.time_ns for event in allocation.events if event.type == "Started"), default=0)


def wait_started_again(client: Client, allocation_id: str, after_ns: int, deadline_s: float) -> Allocation:
    """The allocation, once Nomad says that its task was started later than ``after_ns`` (:func:`last_start_ns`).

    Raises :class:`SifproofError` as soon as Nomad knows that it won't be, and after ``deadline_s`` seconds.
    """
    end = time.monotonic() + deadline_s
    index = 0
    while True:
        wait_s = min(BLOCK_S, max(end - time.monotonic(), 0.05))
        raw, index = client.wait_for_change("allocation", allocation_id, index=index, wait_s=wait_s)
        allocation = parse_allocation(raw)
        if last_start_ns(allocation) > after_ns:
            return allocation
        check_alive(client, [allocation])
        if time.monotonic() >= end:
            last = allocation.events[-1] if allocation.events else None
            raise SifproofError(
                f"Nomad did not start the task of allocation {allocation.id[:8]} again",
                why=f"it is {allocation.client_status}" + (f"; last event {last.type}: {last.message}" if last else ""),
                todo="look at the task's processes on the node: what Nomad started has not ended",
                # As far as Nomad knows it runs: something else of the image goes on.
                fault=Fault.IMAGE if last and last.type == "Started" else Fault.INFRASTRUCTURE,
            )
