"""The one exception that reaches a person, and who is at fault for it.

Standard library only: set-up uses it before any dependency is installed.
"""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """Who has to act. The value is what reports show; ``exit_code`` is what ``sifproof run`` exits with."""

    IMAGE = "image"
    CONFIGURATION = "configuration"
    INFRASTRUCTURE = "infrastructure"
    INCOMPLETE = "incomplete"

    @property
    def exit_code(self) -> int:
        """1 image, 2 configuration, 3 infrastructure, 4 incomplete."""
        return {"image": 1, "configuration": 2, "infrastructure": 3, "incomplete": 4}[self.value]


class SifproofError(Exception):
    """A fault told in words: what happened and to what, why, and what to do next.

    ``str(error)`` is the whole text, fit to be shown to a person without a traceback.
    """

    def __init__(self, what: str, *, why: str = "", todo: str = "", fault: Fault = Fault.INFRASTRUCTURE) -> None:
        self.what = what
        self.why = why
        self.todo = todo
        self.fault = fault
        super().__init__(what, why, todo, fault)

    def __str__(self) -> str:
        lines = "\n" in self.why
        text = self.what.rstrip(".")
        if self.why:
            text += ":\n" + self.why.strip("\n") if lines else f": {self.why.strip().rstrip('.')}."
        else:
            text += "."
        if self.todo:
            first = self.todo.partition(" ")[0]
            todo = self.todo[0].upper() + self.todo[1:] if first.isalpha() else self.todo
            text += ("\n" if lines else " ") + todo.rstrip(".") + "."
        return text
