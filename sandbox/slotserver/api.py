"""The HTTP endpoints. Every answer is JSON; an error outside of a tool is ``{"success": false, "error": …}``."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from aiohttp import HttpVersion11, web

from . import artifacts
from .access import Access
from .artifacts import ArtifactError
from .directories import STATE_DIRECTORY
from .protocol import MAX_BODY_BYTES, BadFieldError, Call, Fields
from .slots import Slots

# aiohttp tells handlers of a client that hung up in some versions only, so it is looked after here.
_HANG_UP_NOTICED_WITHIN_S = 0.2

_log = logging.getLogger(__name__)


class StrangerError(Exception):
    """A request from somebody who may not use the server."""


class Api:
    """The endpoints over the slots of one server, for those whom ``access`` allows."""

    def __init__(self, slots: Slots, data_dir: Path, access: Access) -> None:
        self._slots = slots
        self._data_dir = data_dir
        self._access = access

    def application(self) -> web.Application:
        """The aiohttp application that answers them."""
        app = web.Application(middlewares=[_errors_as_json, self._guard], client_max_size=MAX_BODY_BYTES)
        calls = {
            "/execute": self.execute,
            "/batch": self.batch,
            "/reset": self.reset,
            "/artifacts/read": self._artifact(artifacts.read),
            "/artifacts/list": self._artifact(artifacts.list_entries),
            "/artifacts/archive": self._artifact(artifacts.archive),
        }
        app.add_routes(web.post(path, call, expect_handler=self._expect) for path, call in calls.items())
        app.add_routes([web.get("/health", self.health), web.get("/slots", self.slots)])
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse who may not use the server, before the body of the request is read."""
        if not self._access.allows(request):
            if (request.method, request.path) != ("GET", "/health"):
                raise StrangerError
            return web.json_response({"status": "ok"})
        return await handler(request)

    async def _expect(self, request: web.Request) -> None:
        """Ask for the body where the client holds it back until then; of a stranger none is wanted."""
        if request.version != HttpVersion11 or not self._access.allows(request):
            return
        if request.headers["Expect"].lower() != "100-continue":
            raise web.HTTPExpectationFailed
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # that was not yet the answer

    async def health(self, _: web.Request) -> web.Response:
        """GET /health."""
        executing = sum(slot.executing for slot in self._slots)
        return web.json_response(
            {
                "status": "ok",
                "slots": len(self._slots),
                "available": len(self._slots) - executing,
                "executing": executing,
                "data_dir": str(self._data_dir),
                "bwrap_available": self._slots.containment.sandboxed,
                "stateful_dir": str(self._data_dir / STATE_DIRECTORY),
                "containment": self._slots.containment.name,
            }
        )

    async def slots(self, _: web.Request) -> web.Response:
        """GET /slots."""
        return web.json_response(
            {
                "slots": [
                    {
                        "slot_id": slot.place.slot_id,
                        "state": "executing" if slot.executing else "available",
                        "workspace_dir": str(slot.place.workspace),
                        "current_execution_id": slot.execution_id,
                    }
                    for slot in self._slots
                ]
            }
        )

    async def execute(self, request: web.Request) -> web.Response:
        """POST /execute."""
        call = Call.of(await _json_body(request))
        result = await _unless_hung_up(request, self._slots.execute(call))
        return web.json_response(result.as_json())

    async def batch(self, request: web.Request) -> web.Response:
        """POST /batch. One call that can't be read refuses the whole list, before any of it runs."""
        body = await _json_body(request)
        if not isinstance(body, list):
            raise BadFieldError("The body must be a JSON list")
        calls = [Call.of(item, said=f"Item {number}") for number, item in enumerate(body)]

        async def run() -> list[dict[str, Any]]:
            results = await asyncio.gather(*(self._slots.execute(call) for call in calls))
            return [result.as_json() for result in results]

        return web.json_response(await _unless_hung_up(request, run()))

    async def reset(self, request: web.Request) -> web.Response:
        """POST /reset."""
        slot_id = Fields(await _json_body(request)).text("slot_id")
        result = await _unless_hung_up(request, self._slots.reset(slot_id))
        return web.json_response(result.as_json())

    def _artifact(self, work: Callable[..., artifacts.Answer]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            fields = Fields(await _json_body(request))
            slot_id = fields.text("slot_id")
            slot = self._slots.get(slot_id)
            if slot is None:
                raise ArtifactError(404, f"Unknown slot: {slot_id}")
            return web.json_response(await self._slots.in_thread(artifacts.answer, work, slot.workspace, fields))

        return handle


async def _json_body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadFieldError(f"The body is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


async def _unless_hung_up(request: web.Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Do the work, and cancel it when the client that waits for it is gone."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_HANG_UP_NOTICED_WITHIN_S)
            if request.transport is None or request.transport.is_closing():
                task.cancel()
        return await task
    finally:
        task.cancel()


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    headers = {}
    try:
        return await handler(request)
    except StrangerError:
        status, message = 401, "A token of this server's is needed, as Authorization: Bearer TOKEN"
        headers = {"WWW-Authenticate": "Bearer"}
    except BadFieldError as error:
        status, message = 400, str(error)
    except ArtifactError as error:
        status, message = error.status, str(error)
    except ConnectionError:
        status, message = 400, "The client hung up"  # nobody reads it
    except web.HTTPException as error:
        status, message = error.status, error.reason
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        status, message = 500, "Internal error; the server's log tells more"
    return web.json_response({"success": False, "error": message}, status=status, headers=headers)
