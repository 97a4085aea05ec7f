"""Who answers, and how it says that it is well."""

import contextvars
import os
import signal
import sys
import tempfile

from defects import ANSWERED, is_call, turns_red
from defects.files import real


@turns_red("health.ready", plain=True, health=True)
def never_listens(arguments):
    """The server starts and never listens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


@turns_red("health.identity")
def data_elsewhere(arguments):
    """The workspaces lie in a directory of the server's own, out of the allocation."""
    arguments[arguments.index("--data-dir") + 1] = tempfile.mkdtemp()


@turns_red("health.identity")
async def every_write_lost(path, call, go):
    """Each write is answered as done, and lost."""
    return ANSWERED if is_call(call, "write_file") else await go(call)


@turns_red("health.identity", nomad=True)
async def hidden_files_grow(path, call, go):
    """A hidden file that is written is 1 TB long afterwards, nearly all of it a hole."""
    answer = await go(call)
    if is_call(call, "write_file") and call["args"]["path"].startswith("."):
        os.truncate(await real(call, go), 10**12)
    return answer


@turns_red("health.status", plain=True, elsewhere=("protocol.described",))
async def no_status(path, call, go):
    """`/health` has no `status`."""
    answer = await go(call)
    answer.pop("status", None)
    return answer


@turns_red(
    "health.slots",
    "health.slot-list",
    "health.idle",
    "health.busy",
    "bash.parallel",
    elsewhere=(
        "batch.failure",
        "batch.order",
        "batch.parallel",
        "protocol.described",
        "batch.size",
    ),
    not_measured=(
        "reset.closed",
        "files.fifo",
        "reset.tmp",
    ),
)
def wrong_slot_count(arguments):
    """The server has one slot fewer than the config asks for."""
    place = arguments.index("--slots") + 1
    arguments[place] = str(int(arguments[place]) - 1)


@turns_red("health.idle")
async def slot_never_released(path, call, go):
    """One slot counts as executing for ever."""
    answer = await go(call)
    if path == "/health":
        answer["available"] -= 1
        answer["executing"] += 1
    return answer


@turns_red("health.busy")
async def always_idle(path, call, go):
    """`/health` counts every slot as available, whatever runs."""
    answer = await go(call)
    return answer | {"available": answer["slots"], "executing": 0} if path == "/health" else answer


@turns_red("health.slot-list")
async def slot_listed_twice(path, call, go):
    """`/slots` lists the first slot twice and the last not at all."""
    answer = await go(call)
    return {"slots": [*answer["slots"][:-1], answer["slots"][0]]} if path == "/slots" else answer


@turns_red("health.current-call")
async def slots_do_not_say_what_they_do(path, call, go):
    """`/slots` names no call, whatever runs."""
    answer = await go(call)
    for slot in answer.get("slots", ()) if path == "/slots" else ():
        slot["current_execution_id"] = None
    return answer


@turns_red("health.current-call")
async def last_call_named_for_ever(path, call, go):
    """`/slots` goes on naming a call that has ended."""
    if path == "/execute" and call.get("execution_id"):
        LAST[call["slot_id"]] = call["execution_id"]
    answer = await go(call)
    for slot in answer.get("slots", ()) if path == "/slots" else ():
        slot["current_execution_id"] = slot["current_execution_id"] or LAST.get(slot["slot_id"])
    return answer


LAST: dict[str, str] = {}


@turns_red("health.current-call")
def calls_named_before_their_turn(arguments):
    """`/slots` names the call that came last, though it still waits for the one that runs."""
    from slotserver import slots

    in_turn = slots._in_turn

    async def named(slot, work, execution_id):
        slot.execution_id = execution_id
        return await in_turn(slot, work, execution_id)

    slots._in_turn = named


@turns_red("health.current-call")
def each_end_ends_every_name(arguments):
    """At the end of a call `/slots` forgets the calls of all slots."""
    from slotserver import slots

    in_turn, known = slots._in_turn, set()

    async def forgetting(slot, work, execution_id):
        known.add(slot)
        try:
            return await in_turn(slot, work, execution_id)
        finally:
            for other in known:
                other.execution_id = None

    slots._in_turn = forgetting


@turns_red("health.current-call")
def calls_of_batches_without_a_name(arguments):
    """`/slots` does not name the calls of a batch."""
    from slotserver import api, slots

    batch, in_turn = api.Api.batch, slots._in_turn
    in_batch = contextvars.ContextVar("in_batch", default=False)

    async def told(self, request):
        in_batch.set(True)
        return await batch(self, request)

    async def unnamed(slot, work, execution_id):
        return await in_turn(slot, work, None if in_batch.get() else execution_id)

    api.Api.batch, slots._in_turn = told, unnamed
