"""Whether a server is ready: it answers ``/health``, and Nomad says that it lives."""

from __future__ import annotations

import threading
import time

from sifproof.checks.engine.registry import Finding, at_most
from sifproof.checks.engine.subject import Server
from sifproof.sandbox.client import ServerError

_PAUSE_S = 0.02
"""Between two tries of a server that does not listen yet: there is no event to wait for from outside."""

_ASK_NOMAD_S = 0.5
"""How often Nomad is asked meanwhile whether the task has ended."""


def answers(server: Server, within_s: float | None = None) -> Finding:
    """Whether ``/health`` answers within ``within_s``, ``nomad.ready_within_s`` where that is None, from now on.

    Raises :class:`SifproofError` as soon as Nomad knows that the allocation has ended.
    """
    within_s = server.ready_within_s if within_s is None else within_s
    start = time.monotonic()
    asked = start
    pause = threading.Event()  # nobody sets it
    while True:
        try:
            with server.silence_expected():
                server.client.health()
            return at_most(time.monotonic() - start, within_s, "s")
        except ServerError as error:
            now = time.monotonic()
            if now - start > within_s:
                return Finding(False, str(error), now - start, "s", within_s)
        if now - asked > _ASK_NOMAD_S:
            asked = now
            server.ask_nomad()
        pause.wait(_PAUSE_S)
