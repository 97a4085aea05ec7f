"""A sandbox sees and reaches nothing of the node and nothing of another slot."""

from sifproof.checks.isolation import access, host, memory, slot

# What of them ends the server comes last: the checks run in the order in which they are imported.
__all__ = ["access", "host", "memory", "slot"]
