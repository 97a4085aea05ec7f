"""Every control of the project: one defect, planted where it says, and exactly the checks that it turns red.

The matrix in ``docs/explanation/controls.md`` is made of these, and a test holds each required check to having one.
Defects of the server are in ``defects/``; those of the job, the image, the node and of what is left behind are
registered by the test that plants them, when it is imported.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any, Literal

import defects

Kind = Literal["server", "job", "image", "sif", "node", "leftover", "end"]


@dataclass(frozen=True)
class Control:
    """One defect. ``red`` are the checks that fail on it, the one that it is the control of first; ``elsewhere`` those
    of suites that are about something else.
    """

    name: str
    kind: Kind
    red: tuple[str, ...]
    sentence: str
    """What is wrong, for the matrix."""
    plain: bool = False
    """Whether a run that prints results and asserts nothing would stop on it: no answer, or not one of the protocol."""
    health: bool = False
    """Whether a deployment that only asks ``/health`` for 200 would notice it."""
    elsewhere: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    """The checks that find nothing out with it in the way."""
    module: str = ""
    """Which registered it."""

    @property
    def served(self) -> bool:
        """Whether a server answers with the defect in it: it is then seen what would have been noticed of it."""
        return self.kind not in ("sif", "end")


CONTROLS: dict[str, Control] = {}


def control(name: str, kind: Kind, *red: str, sentence: str, **more: Any) -> Control:
    """Register a control and return it; the arguments are those of :class:`Control`."""
    if name in CONTROLS:
        raise ValueError(f"two controls are called {name}")
    CONTROLS[name] = Control(name, kind, red, sentence, module=sys._getframe(1).f_globals["__name__"], **more)
    return CONTROLS[name]


for _name, _defect in defects.load().items():
    control(
        _name,
        "server",
        *_defect.red,
        elsewhere=_defect.elsewhere,
        not_measured=_defect.not_measured,
        sentence=inspect.getdoc(_defect.plant) or _name.replace("-", " "),
        plain=_defect.plain,
        health=_defect.health,
    )
