"""The ``bash`` tool."""

import asyncio

from defects import is_call, turns_red

CHILDREN: dict[str, str] = {}
BUSY: dict[str, int] = {}


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
