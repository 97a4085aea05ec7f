"""The ``bash`` tool."""

import asyncio
import contextlib
import itertools
import os
import re
import subprocess
from pathlib import Path

from defects import failure, is_call, turns_red

BUSY: dict[str, int] = {}
RUNNING: set[str] = set()
LEFT: set[asyncio.Task] = set()
STREAMS = "\n[stderr]\n"
IN_BACKGROUND = re.compile("&$", re.MULTILINE)


@turns_red("bash.output")
async def spaces_joined(path, call, go):
    """Two spaces of a command's output come as one."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = answer["output"].replace("  ", " ")
    return answer


@turns_red("bash.stderr", "bash.output-whole", "bash.output-limit", "bash.output-bytes")
async def stderr_lost(path, call, go):
    """What a command writes to standard error is thrown away."""
    if is_call(call, "bash"):
        call["args"]["command"] = "exec 2>/dev/null\n" + call["args"]["command"]
    return await go(call)


@turns_red("bash.output-whole")
async def bytes_of_output_counted(path, call, go):
    """Output is cut after 50,000 bytes, not characters."""
    answer = await go(call)
    if is_call(call, "bash"):
        streams = [stream.encode() for stream in answer["output"].split(STREAMS)]
        if not all(stream.isascii() for stream in streams):
            answer["output"] = STREAMS.join(stream[:50_000].decode(errors="ignore") for stream in streams)
    return answer


@turns_red("bash.output-whole")
async def output_cut_early(path, call, go):
    """Standard error is cut one character before its limit."""
    answer = await go(call)
    out, found, err = answer.get("output", "").partition(STREAMS)
    if is_call(call, "bash") and found and len(err) == 50_000:
        answer["output"] = f"{out}{STREAMS}{err[:-1]}"
    return answer


@turns_red("bash.output-limit")
async def cut_in_silence(path, call, go):
    """Output beyond the limit is dropped without a word."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = re.sub(r"\n\[cut at .*\]", "", answer["output"])
    return answer


@turns_red("bash.output-limit")
def output_without_limit(arguments):
    """Output comes whole, however long it is."""
    from slotserver import slots, tools

    tools.MAX_OUTPUT_CHARACTERS = 10**9
    slots._OUTPUT_LIMIT_BYTES = 10**9


@turns_red("bash.output-bytes")
async def undecodable_output_is_an_error(path, call, go):
    """A command whose output is no UTF-8 fails."""
    answer = await go(call)
    if is_call(call, "bash") and "\ufffd" in answer["output"]:
        return failure("'utf-8' codec can't decode byte 0xff in position 6: invalid start byte")
    return answer


@turns_red("bash.output-bytes")
async def undecodable_output_in_surrogates(path, call, go):
    """Bytes that are no UTF-8 come as halves of surrogate pairs, which no other program takes for text."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = answer["output"].replace("\ufffd", "\udcff")
    return answer


@turns_red("bash.exit-code")
async def swallowed_exit_code(path, call, go):
    """A command that fails is told as one that ended well."""
    answer = await go(call)
    if is_call(call, "bash") and answer["metadata"].get("exit_code", -1) > 0:
        answer |= {"success": True, "error": "", "metadata": answer["metadata"] | {"exit_code": 0}}
    return answer


@turns_red("bash.stdin")
async def stdin_stays_open(path, call, go):
    """Commands inherit a standard input that nobody writes to and nobody closes."""
    if is_call(call, "bash"):
        call["args"]["command"] = "exec < <(exec sleep 60 2>&-)\n" + call["args"]["command"]
    return await go(call)


@turns_red("bash.timeout")
async def timeout_not_told(path, call, go):
    """A command that was ended by its time-out is told as one that ended well."""
    answer = await go(call)
    if answer.get("metadata", {}).pop("timeout", False):
        answer |= {"success": True, "error": ""}
    return answer


@turns_red("bash.timeout", "bash.timeout-tree")
async def no_timeout(path, call, go):
    """The time-out of a call is ignored."""
    return await go(call | {"timeout": 30.0} if is_call(call, "bash") else call)


@turns_red("bash.timeout-tree")
async def children_survive_the_timeout(path, call, go):
    """A time-out ends the shell alone; what it started lives on."""
    answer = await go(call)
    if answer.get("metadata", {}).get("timeout"):
        await live_on(call, go, "sifproof-*.[!s]*")
    return answer


@turns_red("bash.timeout-tree")
async def daemons_survive_the_timeout(path, call, go):
    """A time-out ends the process group alone; a child in a session of its own lives on."""
    answer = await go(call)
    if answer.get("metadata", {}).get("timeout"):
        await live_on(call, go, "sifproof-*.daemon")
    return answer


@turns_red("bash.background")
async def background_children_live_on(path, call, go):
    """What a command leaves in the background outlives its call."""
    answer = await go(call)
    if is_call(call, "bash") and answer["success"] and IN_BACKGROUND.search(call["args"]["command"]):
        await live_on(call, go, "sifproof-*.[!s]*")
    return answer


@turns_red("bash.background")
async def daemons_outlive_their_call(path, call, go):
    """The end of a call ends its process group alone; a child in a session of its own outlives it."""
    answer = await go(call)
    if is_call(call, "bash") and answer["success"] and IN_BACKGROUND.search(call["args"]["command"]):
        await live_on(call, go, "sifproof-*.daemon")
    return answer


@turns_red("bash.background")
async def keeping_children_declared_in_vain(path, call, go):
    """`/health` declares that background children are kept, and they are ended."""
    answer = await go(call)
    return answer | {"background_children": "kept"} if path == "/health" else answer


async def live_on(call, go, pattern):
    """Go on writing where the children of ``call`` wrote, as those do that are left."""
    slots = (await go({}, "/slots"))["slots"]
    (folder,) = (Path(slot["workspace_dir"]) for slot in slots if slot["slot_id"] == call["slot_id"])
    left = list(folder.glob(pattern))

    async def write():
        for _ in range(40):
            for file in left:
                with contextlib.suppress(OSError):
                    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
                    os.write(descriptor, b"\n")
                    os.close(descriptor)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(write())
    LEFT.add(task)
    task.add_done_callback(LEFT.discard)


@turns_red("bash.background-output")
async def waits_for_the_end_of_output(path, call, go):
    """A call lasts until its output is closed, by children in the background too."""
    if is_call(call, "bash") and " & " in call["args"]["command"] and "/dev/null" not in call["args"]["command"]:
        call["args"]["command"] += "; wait"
    return await go(call)


@turns_red("bash.serial")
async def swallows_what_comes_at_once(path, call, go):
    """A command that comes while its slot is busy is answered without its output."""
    if is_call(call, "bash") and call["args"]["command"].startswith("read a b"):
        BUSY[call["slot_id"]] = BUSY.get(call["slot_id"], 0) + 1
        try:
            answer = await go(call)
        finally:
            BUSY[call["slot_id"]] -= 1
        return answer | {"output": ""} if BUSY[call["slot_id"]] else answer
    return await go(call)


@turns_red("bash.unicode", "bash.output-whole")
async def ascii_only(path, call, go):
    """Letters beyond ASCII come back as question marks."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = answer["output"].encode("ascii", "replace").decode()
    return answer


@turns_red("bash.quoting")
async def second_shell(path, call, go):
    """Backslashes reach the shell twice, as through a second quoting."""
    if is_call(call, "bash"):
        call["args"]["command"] = call["args"]["command"].replace("\\", "\\\\")
    return await go(call)


@turns_red("bash.long-command")
async def long_command_refused(path, call, go):
    """A command of more than 64 KiB does not start."""
    if is_call(call, "bash") and len(call["args"]["command"].encode()) > 65_536:
        return failure("[Errno 7] Argument list too long: 'bash'")
    return await go(call)


@turns_red("bash.workdir")
async def new_folder_for_each_command(path, call, go):
    """Each command starts in a new directory instead of its slot's workspace."""
    if is_call(call, "bash"):
        call["args"]["command"] = "cd $(mktemp -d)\n" + call["args"]["command"]
    return await go(call)


@turns_red("bash.slots-own-files", "bash.parallel")
async def one_workspace_for_all(path, call, go):
    """Commands of all slots run in the workspace of the first."""
    if is_call(call, "bash"):
        call["slot_id"] = "slot_0"
    return await go(call)


ONE_AT_A_TIME = asyncio.Lock()


@turns_red("bash.parallel")
async def one_at_a_time(path, call, go):
    """A lock over all slots lets one command run at a time."""
    if not is_call(call, "bash"):
        return await go(call)
    async with ONE_AT_A_TIME:
        return await go(call)


@turns_red("bash.serial")
async def two_tools_in_one_slot(path, call, go):
    """A slot has no lock: a command that finds it busy runs all the same."""
    if not is_call(call, "bash") or call["slot_id"] != "slot_0":
        return await go(call)
    if RUNNING:
        return await go(call | {"slot_id": "slot_1"})
    RUNNING.add("slot_0")
    try:
        return await go(call)
    finally:
        RUNNING.clear()


@turns_red("bash.leaks", nomad=True)
async def a_descriptor_for_each_call(path, call, go):
    """Each command leaves an open file behind in the server."""
    if is_call(call, "bash"):
        os.open(os.devnull, os.O_RDONLY)
    return await go(call)


CALLS = itertools.count()


@turns_red("bash.leaks", nomad=True)
async def a_process_for_each_fifth_call(path, call, go):
    """Each fifth command leaves a process behind."""
    if is_call(call, "bash") and next(CALLS) % 5 == 0:
        subprocess.Popen(["sleep", "120"], stdin=subprocess.DEVNULL)
    return await go(call)
