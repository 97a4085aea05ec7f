"""What a server makes of requests that nobody should send."""

import asyncio
import json
import time

from defects import is_call, refusal, turns_red


@turns_red("protocol.bad-json")
def deep_nesting_is_an_error(arguments):
    """A body whose lists lie too deep in each other is an internal error."""
    from slotserver import api

    loads = json.loads

    def without_an_answer(*given, **more):
        try:
            return loads(*given, **more)
        except RecursionError:
            raise RuntimeError("too deep") from None

    api.json = type("json", (), {"loads": staticmethod(without_an_answer)})


@turns_red("protocol.missing-fields", elsewhere=("files.refused-write",))
async def missing_content_is_empty(path, call, go):
    """`write_file` without content empties the file."""
    if is_call(call, "write_file") and isinstance(call.get("args"), dict):
        call["args"].setdefault("content", "")
    return await go(call)


@turns_red("protocol.wrong-types")
async def numbers_are_text(path, call, go):
    """A number as the content of a file is written as text."""
    if is_call(call, "write_file") and isinstance(call.get("args"), dict):
        content = call["args"].get("content")
        if isinstance(content, int):
            call["args"]["content"] = str(content)
    return await go(call)


@turns_red("protocol.odd-text")
async def half_a_character_is_an_error(path, call, go):
    """Text that UTF-8 can't hold is an internal error."""
    return refusal(500) if "\\ud800" in json.dumps(call) else await go(call)


@turns_red("protocol.unknown-slot")
async def slots_in_any_case(path, call, go):
    """`SLOT_0` is taken for `slot_0`."""
    if isinstance(call.get("slot_id"), str):
        call["slot_id"] = call["slot_id"].lower()
    return await go(call)


@turns_red("protocol.unknown-slot")
async def one_slot_more_than_there_are(path, call, go):
    """The slot after the last is the last, too."""
    if isinstance(call.get("slot_id"), str):
        slots = (await go({}, "/slots"))["slots"]
        if call["slot_id"] == f"slot_{len(slots)}":
            call["slot_id"] = slots[-1]["slot_id"]
    return await go(call)


@turns_red("protocol.unknown-tool")
async def tools_in_any_case(path, call, go):
    """`Bash` is taken for `bash`."""
    if isinstance(call.get("tool"), str):
        call["tool"] = call["tool"].lower()
    return await go(call)


@turns_red("protocol.execution-id")
async def failures_without_an_id(path, call, go):
    """The result of a call that failed does not say which call it was."""
    answer = await go(call)
    if path == "/execute" and not answer["success"] and "execution_id" in answer:
        answer["execution_id"] = None
    return answer


@turns_red("protocol.wrong-method")
async def every_address_answers(path, call, go):
    """An address that there is not is answered with 200."""
    known = ("/health", "/slots", "/execute", "/batch", "/reset")
    return await go(call) if path in known or path.startswith("/artifacts/") else {"success": True}


@turns_red("protocol.large-body")
async def large_body_is_an_error(path, call, go):
    """A body of more than a megabyte is an internal error."""
    return refusal(500) if len(json.dumps(call)) > 2**20 else await go(call)


@turns_red("protocol.hang-up-sending")
def what_came_is_done(arguments):
    """A request that was broken off is done, as far as it came."""
    from slotserver import api

    json_body = api._json_body

    async def as_far_as_it_came(request):
        came = b""
        try:
            async for chunk in request.content.iter_any():
                came += chunk
        except ConnectionError:
            pass
        request._read_bytes = came
        return await json_body(request)

    api._json_body = as_far_as_it_came
    api._HANG_UP_NOTICED_WITHIN_S = 10  # else it would end the command at once


@turns_red("protocol.hang-up-waiting", not_measured=("stateful.hang-up",))
def next_client_gets_the_answer(arguments):
    """The result of a command whose client hung up is given to the next client of the slot."""
    from slotserver.protocol import Result
    from slotserver.slots import Slots

    run = Slots._run
    kept = []

    async def with_what_was_kept(self, slot, work, execution_id=None):
        if slot in kept:
            kept.remove(slot)
            return Result(True)
        try:
            return await run(self, slot, work, execution_id)
        except asyncio.CancelledError:
            kept.append(slot)
            raise

    Slots._run = with_what_was_kept


@turns_red("protocol.hang-up-waiting", elsewhere=("stateful.hang-up",))
def hang_up_stops_the_server(arguments):
    """A client that hangs up makes the server wait, and do nothing else, for eight seconds."""
    from slotserver.slots import Slots

    run = Slots._run

    async def then_nothing(*given):
        try:
            return await run(*given)
        except asyncio.CancelledError:
            time.sleep(8)
            raise

    Slots._run = then_nothing


@turns_red("protocol.hang-up-waiting")
def slot_kept_after_a_hang_up(arguments):
    """The slot of a client that hung up stays busy for twelve seconds more."""
    from slotserver.process import uninterrupted
    from slotserver.slots import Slots

    run = Slots._run

    async def keeping(self, slot, work, execution_id=None):
        async def kept():
            try:
                return await work()
            except asyncio.CancelledError:
                await uninterrupted(asyncio.sleep(12))
                raise

        return await run(self, slot, kept, execution_id)

    Slots._run = keeping


@turns_red("protocol.described", elsewhere=("files.size",))
async def results_without_metadata(path, call, go):
    """The result of a call that succeeds has no `metadata`."""
    answer = await go(call)
    if path == "/execute" and answer["success"]:
        answer.pop("metadata", None)
    return answer


@turns_red("protocol.described")
async def files_without_a_kind(path, call, go):
    """What is read lacks its MIME type."""
    answer = await go(call)
    if path == "/artifacts/read":
        answer.pop("mime", None)
    return answer


@turns_red("protocol.not-described", "protocol.wrong-types")
async def limit_below_one_is_an_error(path, call, go):
    """A list or an archive with a limit below one is an internal error."""
    limits = [call.get(name) for name in ("max_bytes", "max_entries")]
    return refusal(500) if any(isinstance(limit, int) and limit < 1 for limit in limits) else await go(call)
