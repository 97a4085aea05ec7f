"""``/batch``."""

import asyncio
import contextvars

from defects import failure, open_locks, refusal, turns_red


def is_batch(path, calls):
    """Whether it is one of several calls."""
    return path == "/batch" and isinstance(calls, list) and len(calls) > 1


@turns_red("batch.order", "batch.failure", "batch.size", anything=True)
async def results_as_they_come_in(path, calls, go):
    """The results of a batch come in the order in which its calls ended."""
    if not is_batch(path, calls):
        return await go(calls)
    running = [asyncio.ensure_future(go(call, "/execute")) for call in calls]
    return [await ended for ended in asyncio.as_completed(running)]


@turns_red("batch.parallel", anything=True)
async def batch_one_after_another(path, calls, go):
    """The calls of a batch are done one after another."""
    return [await go(call, "/execute") for call in calls] if is_batch(path, calls) else await go(calls)


IN_BATCH = contextvars.ContextVar("IN_BATCH", default=False)


@turns_red("batch.serial", elsewhere=("health.current-call",))
def batch_passes_the_lock_by(arguments):
    """The calls of a batch to one slot run at the same time."""
    from slotserver.api import Api

    batch = Api.batch

    async def without_locks(self, request):
        IN_BATCH.set(True)
        return await batch(self, request)

    Api.batch = without_locks
    open_locks(IN_BATCH.get)


@turns_red("batch.failure", anything=True)
async def failed_command_ends_the_batch(path, calls, go):
    """The calls after one whose command failed are not done."""
    answer = await go(calls)
    if path == "/batch" and isinstance(answer, list):
        failed = [index for index, result in enumerate(answer) if "Exit code" in result["error"]]
        for index in range(failed[0] + 1 if failed else len(answer), len(answer)):
            answer[index] = failure("not done") | {"execution_id": answer[index]["execution_id"]}
    return answer


@turns_red("batch.size", anything=True)
async def a_hundred_calls_at_most(path, calls, go):
    """A batch of more than a hundred calls is refused."""
    return refusal(413) if path == "/batch" and isinstance(calls, list) and len(calls) > 100 else await go(calls)


@turns_red("batch.not-a-list", anything=True)
async def single_call_is_a_batch(path, calls, go):
    """A single call sent to `/batch` is done, as if it were a list of one."""
    return await go([calls] if path == "/batch" and isinstance(calls, dict) else calls)
