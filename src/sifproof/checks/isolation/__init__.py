"""A sandbox sees and reaches nothing of the node and nothing of another slot."""

from sifproof.checks.isolation import host, slot

__all__ = ["host", "slot"]
