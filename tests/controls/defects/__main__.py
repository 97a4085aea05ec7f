"""Starts the server with the defect, see the package."""

import inspect
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from defects import WAYS, InternalError, load


def main() -> None:
    name = sys.argv.pop(1)
    defects = load() | WAYS
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    defect = defects[name].plant if name in defects else None
    plants_anything = name in defects and defects[name].anything
    if defect and not inspect.iscoroutinefunction(defect):
        defect(sys.argv)
    import sandbox_server
    from aiohttp import web
    from slotserver.api import Api

    application = Api.application

    def planted(self):
        app = application(self)
        handlers = {route.resource.canonical: route.handler for route in app.router.routes()}

        @web.middleware
        async def between(request, handler):
            status, came, last = 200, await request.read(), None

            async def go(body, path=request.path):
                nonlocal status, last
                request._read_bytes = json.dumps(body).encode()
                if path != request.path:
                    return json.loads((await handlers[path](request)).body)
                last = await handler(request)
                status = last.status
                return json.loads(last.body)

            try:
                body = json.loads(came or b"{}")
            except (ValueError, RecursionError):
                return await handler(request)
            if not isinstance(body, dict) and not plants_anything:
                return await handler(request)
            try:
                answer = await defect(request.path, body, go)
            except InternalError:
                raise
            except Exception:
                # A request that is none of those the defect is about, or an answer.
                if last is None:
                    request._read_bytes = came
                    last = await handler(request)
                return last
            return answer if isinstance(answer, web.Response) else web.json_response(answer, status=status)

        if inspect.iscoroutinefunction(defect):
            app.middlewares.insert(0, between)
        return app

    Api.application = planted
    sandbox_server.main()


if __name__ == "__main__":
    main()
