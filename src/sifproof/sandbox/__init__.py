"""Talking to sandbox servers: :class:`SandboxClient` to one, :class:`SlotPool` over the slots of many."""

from sifproof.sandbox.client import Result, SandboxClient, ServerError
from sifproof.sandbox.pool import Slot, SlotPool

__all__ = ["Result", "SandboxClient", "ServerError", "Slot", "SlotPool"]
