"""A server answers the protocol's requests, and refuses others, as ``protocol.yaml`` describes it."""

from sifproof.checks.protocol import answers

__all__ = ["answers"]
