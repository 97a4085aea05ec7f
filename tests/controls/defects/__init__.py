"""The reference server with one known defect: ``python3 defects NAME`` and the server's own arguments.

Started in the folder of the server. A defect is a function of a few lines in the module of the suite whose check it is
the control of. Its docstring says what is wrong, in a sentence that goes into ``docs/explanation/controls.md``.

* a coroutine stands between client and server: it gets the path, the body of the request and ``go``, which asks the
  server, and returns the answer: JSON, or a ``web.Response`` of its own. A body that is no JSON object, such as a
  batch, passes it by, unless it asks for ``anything``;
* any other function gets the server's arguments before it starts, and may change them in place.

It runs inside the image too: the standard library is all there is.
"""

import contextvars
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Defect:
    """``red`` are the checks that fail on it, the one that it is the control of first; ``elsewhere`` those of suites
    that are about something else, and fail for it all the same.

    ``plain`` and ``health`` say whether it would be noticed without the gate, see ``naive.py``.
    """

    plant: Callable[..., Any]
    red: tuple[str, ...]
    plain: bool = False
    health: bool = False
    anything: bool = False
    nomad: bool = False
    """Whether only a check of a sandbox under Nomad sees it: it is tried there, see ``test_bash_files_defects.py``."""
    docker: bool = False
    """Whether it is one of servers in Docker's default profile: it is tried there alone."""
    elsewhere: tuple[str, ...] = ()
    flaky: tuple[str, ...] = ()
    """Those of ``red`` that pass when they are tried again."""
    not_measured: tuple[str, ...] = ()
    """The checks that can't look at what they are about, beside those that a guard of ``red`` keeps from looking."""
    by_chance: tuple[str, ...] = ()
    """The checks that see it now and then: no proof of anything, whatever they say."""


@dataclass(frozen=True)
class Way:
    """What another server does, and may: near a defect, and none. The checks of ``suites`` stay green on it."""

    plant: Callable[..., Any]
    suites: tuple[str, ...]
    anything: bool = False


DEFECTS: dict[str, Defect] = {}

WAYS: dict[str, Way] = {}

ANSWERED = {"success": True, "output": "", "error": "", "metadata": {}}


class InternalError(Exception):
    """Planted: the server answers with 500."""


def turns_red(*red: str, **more: Any):
    """Register the defect below; the arguments are those of :class:`Defect`."""

    def register(plant):
        DEFECTS[plant.__name__.replace("_", "-")] = Defect(plant, red, **more)
        return plant

    return register


def stays_green(*suites: str, **more: Any):
    """Register the way below, that of a server which is right; the arguments are those of :class:`Way`."""

    def register(plant):
        WAYS[plant.__name__.replace("_", "-")] = Way(plant, suites, **more)
        return plant

    return register


def is_call(call: dict, tool: str) -> bool:
    return call.get("tool") == tool


def failure(error: str) -> dict:
    return {"success": False, "output": "", "error": error, "metadata": {}}


def open_locks(when: Callable[[], bool]) -> None:
    """Slots whose lock lets everybody in where ``when`` says so, which has to stay the same for all of a request."""
    import asyncio

    from slotserver import slots

    class Lock(asyncio.Lock):
        async def acquire(self):
            return when() or await super().acquire()

        def release(self):
            if not when():
                super().release()

    slots.asyncio = type("asyncio", (), {**vars(asyncio), "Lock": Lock})


def no_locks_for(*tools: str) -> None:
    """Calls of these tools do not wait for what runs in their slot."""
    from slotserver import api

    execute = api.Api.execute
    one_of_them = contextvars.ContextVar("one_of_them", default=False)

    async def told(self, request):
        one_of_them.set(json.loads(await request.read() or b"{}").get("tool") in tools)
        return await execute(self, request)

    api.Api.execute = told
    open_locks(one_of_them.get)


def refusal(status: int, **answer: Any):
    """An answer with a status of its own: ``answer``, or what the server says where it refuses."""
    from aiohttp import web

    return web.json_response(answer or {"success": False, "error": "refused"}, status=status)


def load() -> dict[str, Defect]:
    """Every defect by its name."""
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            importlib.import_module(f"{__name__}.{module.name}")
    return DEFECTS
