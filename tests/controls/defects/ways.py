"""What other servers do, and may: no check turns red on any of it."""

import asyncio
import itertools
import os
import signal

from defects import failure, is_call, refusal, stays_green
from defects.artifacts import repacked
from defects.bash import leave_children


@stays_green("artifacts")
async def list_of_a_file_is_the_file(path, call, go):
    """Listing a file gives an entry for it."""
    answer = await go(call)
    if path == "/artifacts/list" and "Not a directory" in str(answer.get("error")):
        folder, _, name = call["path"].rpartition("/")
        entries = (await go(call | {"path": folder or "."}))["entries"]
        mine = [entry for entry in entries if entry["path"].rpartition("/")[2] == name]
        return refusal(200, success=True, entries=mine, truncated=False)
    return answer


@stays_green("artifacts")
async def names_from_the_data_directory(path, call, go):
    """The names in an archive begin with that of the slot, and with a dot."""

    def change(member):
        member.name = f"./{call['slot_id']}/{member.name}"
        return True

    return await repacked(await go(call), change)


COLUMNS, ROWS = 120, 40


@stays_green("reset")
async def a_screen_for_an_answer(path, call, go):
    """`bash_stateful` runs in a terminal, and answers with what it shows: prompt, command and output."""
    answer = await go(call)
    return answer | {"output": screen(call["args"]["command"], answer["output"])} if is_stateful(call) else answer


def is_stateful(call) -> bool:
    return is_call(call, "bash_stateful")


def screen(command: str, output: str) -> str:
    """What a terminal shows when ``command`` has printed ``output``."""
    text = f"agent@sandbox:/workspace$ {command}\n{output}\nagent@sandbox:/workspace$ "
    rows = [line[at : at + COLUMNS] for line in text.split("\n") for at in range(0, max(len(line), 1), COLUMNS)]
    return "\n".join(rows[-ROWS:])


@stays_green("bash", "files", "artifacts")
async def more_is_told(path, call, go):
    """Results tell more than the protocol asks for."""
    answer = await go(call)
    told = {"bash": {"network_isolated": False}, "bash_stateful": {"stateful": True}}
    told |= {tool: {"path": call.get("args", {}).get("path")} for tool in ("read_file", "write_file")}
    return answer | {"metadata": answer["metadata"] | told[call["tool"]]} if path == "/execute" else answer


@stays_green("bash")
async def stripped_output_alone(path, call, go):
    """Results hold `output`, and neither `stdout` nor `stderr`."""
    answer = await go(call)
    return {key: value for key, value in answer.items() if key not in ("stdout", "stderr")}


@stays_green("files", "protocol")
async def no_zero_bytes_in_text(path, call, go):
    """Writing refuses content with a zero byte in it."""
    if is_call(call, "write_file") and "\0" in call["args"]["content"]:
        return failure("Text holds no zero byte")
    return await go(call)


@stays_green("files")
async def opened_anew_and_written_at_once(path, call, go):
    """Writing empties the file and fills it by one write, so that whoever reads just then sees an empty one."""
    answer = await go(call)
    if path == "/artifacts/read" and answer.get("content") and next(READS) % 3 == 0:
        return answer | {"content": "", "bytes": 0, "file_size": 0}
    return answer


READS = itertools.count()


TASKS: set[asyncio.Future] = set()


@stays_green("bash")
def children_end_a_moment_later(arguments):
    """A call is answered when its command has ended, and what that left is looked for every 0.3 s, and ended."""
    from slotserver.process import Reaper
    from slotserver.supervisor import descendants, signal_all

    install = Reaper.install
    leave_children("end", "all")

    def with_rounds(self):
        async def rounds():
            while True:
                await asyncio.sleep(0.3)
                left = descendants({os.getpid()}) - self._started - descendants(self._started)
                signal_all(left, signal.SIGKILL)

        install(self)
        TASKS.add(asyncio.ensure_future(rounds()))

    Reaper.install = with_rounds


@stays_green("stateful")
def calls_without_a_client_go_on(arguments):
    """A command goes on to its end when its client has hung up; its answer is thrown away, and the next waits."""
    from slotserver import api

    async def to_its_end(request, work):
        return await asyncio.shield(work)

    api._unless_hung_up = to_its_end
