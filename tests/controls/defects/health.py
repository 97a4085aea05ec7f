"""Who answers, and how it says that it is well."""

import signal
import sys
import tempfile

from defects import ANSWERED, is_call, turns_red


@turns_red("health.ready", plain=True, health=True)
def never_listens(arguments):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


@turns_red("health.identity", "files.in-allocation")
def data_elsewhere(arguments):
    arguments[arguments.index("--data-dir") + 1] = tempfile.mkdtemp()


@turns_red("health.identity")
async def every_write_lost(path, call, go):
    return ANSWERED if is_call(call, "write_file") else await go(call)


@turns_red("health.status", plain=True)
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
