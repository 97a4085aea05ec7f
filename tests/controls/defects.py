"""The reference server with one known defect: ``python3 defects.py NAME`` and the server's own arguments.

Started in the folder of the server. A defect is a function of a few lines below, with the checks that it must turn red:

* a coroutine stands between client and server: it gets the path, the body of the request and ``go``, which asks the
  server, and returns the answer;
* any other function gets the server's arguments before it starts, and may change them in place.
"""

import asyncio
import inspect
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Defect:
    """``red`` are the checks that fail on it, the one that it is the control of first."""

    plant: Callable[..., Any]
    red: tuple[str, ...]


DEFECTS: dict[str, Defect] = {}


def turns_red(*red: str):
    def register(plant):
        DEFECTS[plant.__name__.replace("_", "-")] = Defect(plant, red)
        return plant

    return register


CHILDREN: dict[str, str] = {}
BUSY: dict[str, int] = {}
ANSWERED = {"success": True, "output": "", "error": "", "metadata": {}}


def is_call(call: dict, tool: str) -> bool:
    return call.get("tool") == tool


# -- health ------------------------------------------------------------------------------------------------------------


@turns_red("health.ready")
def never_listens(arguments):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


@turns_red("health.identity", "files.in-allocation")
def data_elsewhere(arguments):
    arguments[arguments.index("--data-dir") + 1] = tempfile.mkdtemp()


@turns_red("health.identity")
async def every_write_lost(path, call, go):
    return ANSWERED if is_call(call, "write_file") else await go(call)


@turns_red("health.status")
async def no_status(path, call, go):
    answer = await go(call)
    answer.pop("status", None)
    return answer


@turns_red("health.slots", "health.slot-list", "health.idle", "health.busy", "bash.parallel")
def wrong_slot_count(arguments):
    place = arguments.index("--slots") + 1
    arguments[place] = str(int(arguments[place]) - 1)


@turns_red("health.idle")
async def slot_never_released(path, call, go):
    answer = await go(call)
    if path == "/health":
        answer["available"] -= 1
        answer["executing"] += 1
    return answer


@turns_red("health.busy")
async def always_idle(path, call, go):
    answer = await go(call)
    return answer | {"available": answer["slots"], "executing": 0} if path == "/health" else answer


@turns_red("health.slot-list")
async def slot_listed_twice(path, call, go):
    answer = await go(call)
    return {"slots": [*answer["slots"][:-1], answer["slots"][0]]} if path == "/slots" else answer


# -- bash --------------------------------------------------------------------------------------------------------------


@turns_red("bash.output")
async def spaces_joined(path, call, go):
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = answer["output"].replace("  ", " ")
    return answer


@turns_red("bash.stderr")
async def stderr_lost(path, call, go):
    if is_call(call, "bash"):
        call["args"]["command"] = "exec 2>/dev/null\n" + call["args"]["command"]
    return await go(call)


@turns_red("bash.exit-code")
async def swallowed_exit_code(path, call, go):
    answer = await go(call)
    if is_call(call, "bash") and answer["metadata"].get("exit_code", -1) > 0:
        answer |= {"success": True, "error": "", "metadata": answer["metadata"] | {"exit_code": 0}}
    return answer


@turns_red("bash.timeout")
async def timeout_not_told(path, call, go):
    answer = await go(call)
    if answer.get("metadata", {}).pop("timeout", False):
        answer |= {"success": True, "error": ""}
    return answer


@turns_red("bash.timeout")
async def children_survive_the_timeout(path, call, go):
    answer = await go(call)
    if answer.get("metadata", {}).get("timeout"):
        # In the time of the next calls, as a child that was left would.
        name = next(word for word in call["args"]["command"].split() if word.startswith("alive-")).rstrip(";")
        CHILDREN[call["slot_id"]] = name.rstrip(";")
    elif is_call(call, "bash") and (name := CHILDREN.pop(call["slot_id"], "")):
        command = (
            f"(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do date >> {name}; sleep 0.05; done) & {call['args']['command']}"
        )
        return await go(call | {"args": {"command": command}})
    return answer


@turns_red("bash.serial")
async def swallows_what_comes_at_once(path, call, go):
    if is_call(call, "bash") and call["args"]["command"].startswith("read a b"):
        BUSY[call["slot_id"]] = BUSY.get(call["slot_id"], 0) + 1
        try:
            answer = await go(call)
        finally:
            BUSY[call["slot_id"]] -= 1
        return answer | {"output": ""} if BUSY[call["slot_id"]] else answer
    return await go(call)


@turns_red("bash.unicode")
async def ascii_only(path, call, go):
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = answer["output"].encode("ascii", "replace").decode()
    return answer


@turns_red("bash.quoting")
async def second_shell(path, call, go):
    if is_call(call, "bash"):
        call["args"]["command"] = call["args"]["command"].replace("\\", "\\\\")
    return await go(call)


@turns_red("bash.workdir")
async def new_folder_for_each_command(path, call, go):
    if is_call(call, "bash"):
        call["args"]["command"] = "cd $(mktemp -d)\n" + call["args"]["command"]
    return await go(call)


@turns_red("bash.slots-own-files", "bash.parallel")
async def one_workspace_for_all(path, call, go):
    if is_call(call, "bash"):
        call["slot_id"] = "slot_0"
    return await go(call)


ONE_AT_A_TIME = asyncio.Lock()


@turns_red("bash.parallel")
async def one_at_a_time(path, call, go):
    if not is_call(call, "bash"):
        return await go(call)
    async with ONE_AT_A_TIME:
        return await go(call)


@turns_red("bash.serial")
async def two_tools_in_one_slot(path, call, go):
    # As if the slot had no lock: a command that finds its slot busy runs all the same.
    if is_call(call, "bash") and call["slot_id"] == "slot_0":
        (first, *_) = (await go({}, "/slots"))["slots"]
        if first["state"] == "executing":
            call["slot_id"] = "slot_1"
    return await go(call)


# -- files -------------------------------------------------------------------------------------------------------------


@turns_red("files.roundtrip")
async def line_ends_changed(path, call, go):
    if is_call(call, "write_file"):
        call["args"]["content"] = call["args"]["content"].replace("\r\n", "\n")
    return await go(call)


@turns_red("files.size")
async def characters_counted(path, call, go):
    answer = await go(call)
    if is_call(call, "write_file") and answer["success"]:
        answer["metadata"]["size"] = len(call["args"]["content"])
    return answer


@turns_red("files.parents")
async def no_parents_made(path, call, go):
    if is_call(call, "write_file") and "/a/b/" in call["args"]["path"]:
        return failure(f"File not found: {call['args']['path']}")
    return await go(call)


WRITTEN: set[tuple[str, str]] = set()


@turns_red("files.overwrite")
async def lost_write(path, call, go):
    # The first write of a file is kept. The next ones are answered, and lost.
    if is_call(call, "write_file"):
        target = (call["slot_id"], call["args"]["path"])
        if target in WRITTEN:
            return ANSWERED
        WRITTEN.add(target)
    return await go(call)


@turns_red("files.empty")
async def empty_is_missing(path, call, go):
    if is_call(call, "write_file") and not call["args"]["content"]:
        return failure("content is missing")
    return await go(call)


@turns_red("files.unicode")
async def names_in_ascii(path, call, go):
    if is_call(call, "write_file") and not call["args"]["path"].isascii():
        return failure("the name can't be encoded")
    return await go(call)


@turns_red("files.missing")
async def missing_is_empty(path, call, go):
    answer = await go(call)
    return answer | {"success": True, "error": ""} if "File not found" in str(answer.get("error")) else answer


@turns_red("files.directory")
async def directory_is_empty_file(path, call, go):
    answer = await go(call)
    return answer | {"success": True, "error": ""} if "Not a file" in str(answer.get("error")) else answer


@turns_red("files.outside")
async def open_to_the_outside(path, call, go):
    target = call.get("args", {}).get("path", "")
    if is_call(call, "read_file") and target.startswith("/"):
        with open(target) as stream:  # noqa: PTH123
            return {"success": True, "output": stream.read(), "error": "", "metadata": {}}
    return await go(call)


@turns_red("files.outside")
async def follows_links(path, call, go):
    target = call.get("args", {}).get("path", "")
    if is_call(call, "read_file") and target.endswith("/file"):
        with open("/etc/passwd") as stream:  # noqa: PTH123
            return {"success": True, "output": stream.read(), "error": "", "metadata": {}}
    return await go(call)


@turns_red("files.seen-by-bash", "files.empty", "files.in-allocation")
async def files_apart_from_bash(path, call, go):
    # What `write_file` wrote, `read_file` finds, and nobody else.
    target = call.get("args", {}).get("path", "")
    if (
        is_call(call, "write_file")
        and target.isascii()
        and not target.startswith(("/", "..", "d/"))
        and "/folder/" not in target
    ):
        APART.add(target)
    if target in APART:
        call["args"]["path"] = f".apart/{target}"
    return await go(call)


APART: set[str] = set()


def failure(error: str) -> dict:
    return {"success": False, "output": "", "error": error, "metadata": {}}


def main() -> None:
    name = sys.argv.pop(1)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    defect = DEFECTS[name].plant if name in DEFECTS else None
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
            async def go(body, path=request.path):
                request._read_bytes = json.dumps(body).encode()
                answer = await (handler(request) if path == request.path else handlers[path](request))
                return json.loads(answer.body)

            body = await request.json() if request.method == "POST" else {}
            return web.json_response(await defect(request.path, body, go))

        if inspect.iscoroutinefunction(defect):
            app.middlewares.insert(0, between)
        return app

    Api.application = planted
    sandbox_server.main()


if __name__ == "__main__":
    main()
