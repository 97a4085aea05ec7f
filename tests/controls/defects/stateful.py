"""The sessions of ``bash_stateful``."""

import asyncio

from defects import is_call, turns_red

LAST: dict[str, str] = {}


def lines_of_the_keeper(begin: str, command: str, report: str) -> None:
    """Sessions whose commands are run by these lines."""
    from slotserver import shell

    shell._CALL = f"{begin}{command}\n\n{report}\n\n"


RUN = "{{ \\eval {command} </dev/null >&250 2>&251; }} >/dev/null 2>&1"
REPORT = "! {{ \\eval \"[[ 0 -eq '$? {token}' ]]\"; }} >/dev/null 2>&0"


OF_EACH_OUTPUT = (
    "stateful.exit",
    "stateful.exit-code",
    "stateful.habits",
    "stateful.here-document",
    "stateful.slots-apart",
    "stateful.state",
    "stateful.stdin",
    "stateful.timeout",
)


@turns_red("stateful.output", "stateful.own-output", *OF_EACH_OUTPUT)
async def prompt_in_the_output(path, call, go):
    """The shell's prompt stands at the end of each command's output."""
    answer = await go(call)
    if is_call(call, "bash_stateful"):
        answer["output"] += "\n$"
    return answer


@turns_red("stateful.output")
async def stderr_of_sessions_lost(path, call, go):
    """What a session's command writes to standard error is thrown away."""
    answer = await go(call)
    if is_call(call, "bash_stateful"):
        answer["output"] = answer["output"].partition("[stderr]")[0]
    return answer


@turns_red("stateful.own-output", "stateful.output", *OF_EACH_OUTPUT)
async def output_comes_one_call_late(path, call, go):
    """A session's command is answered with what the one before printed."""
    answer = await go(call)
    if path == "/reset":
        LAST.pop(call["slot_id"], None)
    if is_call(call, "bash_stateful"):
        before, LAST[call["slot_id"]] = LAST.get(call["slot_id"]), answer["output"]
        answer["output"] = answer["output"] if before is None else before
    return answer


@turns_red("stateful.state", "stateful.exit-code", "stateful.habits", "stateful.slots-apart")
def each_command_in_a_subshell(arguments):
    """A session runs each command in a subshell, so that directory and variables are forgotten."""
    lines_of_the_keeper("", RUN.replace("\\eval {command}", "( \\eval {command} )"), REPORT)


@turns_red("stateful.state")
async def functions_forgotten(path, call, go):
    """A session forgets its functions."""
    if is_call(call, "bash_stateful"):
        call["args"]["command"] = f"{{ unset -f tell; }} 2>/dev/null\n{call['args']['command']}"
    return await go(call)


@turns_red("stateful.exit-code", "stateful.habits")
async def exit_codes_of_sessions_swallowed(path, call, go):
    """A session's command that fails is told as one that ended well."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["metadata"].get("exit_code", -1) > 0:
        answer |= {"success": True, "error": "", "metadata": answer["metadata"] | {"exit_code": 0}}
    return answer


@turns_red("stateful.exit-code")
async def exit_124_of_a_session_is_a_time_out(path, call, go):
    """A session's command that exits with 124 is told as one that timed out."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["metadata"].get("exit_code") == 124:
        answer["metadata"] |= {"exit_code": -1, "timeout": True}
    return answer


@turns_red("stateful.stdin")
def commands_read_what_the_shell_reads(arguments):
    """A session's commands have the input that their shell reads its commands from: one that reads eats the next."""
    lines_of_the_keeper("", RUN.replace(" </dev/null", ""), REPORT)


@turns_red("stateful.here-document")
def commands_within_braces(arguments):
    """A session's command is put between braces on a line: a here-document does not find its end."""
    from slotserver import shell

    lines_of_the_keeper("", RUN.replace("\\eval {command}", "{{ {command}; }}"), REPORT)
    shell._quoted = str


@turns_red("stateful.exit")
def end_of_a_session_unnoticed(arguments):
    """`exit` in a session is not noticed: the call waits until its time-out."""
    from slotserver import shell

    run = shell.Shell.run

    async def wait_on(self, command):
        code = await run(self, command)
        if code is None:
            await asyncio.sleep(3600)
        return code

    shell.Shell.run = wait_on


@turns_red("stateful.timeout")
async def output_before_a_time_out_lost(path, call, go):
    """What a session's command printed before its time was over is thrown away."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["metadata"].get("timeout"):
        answer["output"] = ""
    return answer


@turns_red("stateful.habits")
def exit_code_through_the_sessions_ifs(arguments):
    """The exit code of a session's command is a word that the session's IFS takes apart."""
    lines_of_the_keeper("", RUN, "builtin echo $? {token} >&0")


@turns_red("stateful.habits")
async def trace_of_the_keeper_shown(path, call, go):
    """`set -x` in a session shows what the server itself runs in its shell."""
    if is_call(call, "bash_stateful"):
        call["args"]["command"] += "\nkeeper=$?; (exit $keeper)"
    return await go(call)


@turns_red("stateful.no-network")
async def sessions_keep_the_network(path, call, go):
    """`bash_stateful` takes `allow_network: false` and ignores it."""
    if is_call(call, "bash_stateful"):
        call["args"].pop("allow_network", None)
    return await go(call)


@turns_red("stateful.slots-apart")
async def one_session_for_all(path, call, go):
    """All slots share one session."""
    if is_call(call, "bash_stateful"):
        call["slot_id"] = "slot_0"
    return await go(call)
