"""``/batch``."""

import asyncio

from defects import failure, is_call, turns_red


def commands(path, calls):
    """The commands of a batch; empty for anything else."""
    if path != "/batch" or not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return []
    return [call["args"].get("command", "") for call in calls if is_call(call, "bash") and "args" in call]


@turns_red("batch.order", "batch.failure", anything=True)
async def results_as_they_come_in(path, calls, go):
    """The results of a batch come in the order in which its calls ended."""
    if not any("sleep" in command for command in commands(path, calls)):
        return await go(calls)
    running = [asyncio.ensure_future(go(call, "/execute")) for call in calls]
    return [await ended for ended in asyncio.as_completed(running)]


@turns_red("batch.parallel", anything=True)
async def batch_one_after_another(path, calls, go):
    """The calls of a batch are done one after another."""
    if not any(command.startswith("read a b") for command in commands(path, calls)):
        return await go(calls)
    return [await go(call, "/execute") for call in calls]


@turns_red("batch.serial", anything=True)
async def batch_passes_the_lock_by(path, calls, go):
    """The calls of a batch to one slot run at the same time."""
    if any(command.startswith("read a b") for command in commands(path, calls)):
        calls = [call | {"slot_id": f"slot_{index}"} for index, call in enumerate(calls)]
    return await go(calls)


@turns_red("batch.failure", anything=True)
async def failed_command_ends_the_batch(path, calls, go):
    """The calls after one whose command failed are not done."""
    answer = await go(calls)
    if path == "/batch" and isinstance(answer, list):
        failed = [index for index, result in enumerate(answer) if "Exit code" in result["error"]]
        for index in range(failed[0] + 1 if failed else len(answer), len(answer)):
            answer[index] = failure("not done") | {"execution_id": answer[index]["execution_id"]}
    return answer


@turns_red("batch.not-a-list", anything=True)
async def single_call_is_a_batch(path, calls, go):
    """A single call sent to `/batch` is done, as if it were a list of one."""
    return await go([calls] if path == "/batch" and isinstance(calls, dict) else calls)
