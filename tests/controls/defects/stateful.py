"""The sessions of ``bash_stateful``."""

import asyncio
import re
from collections import defaultdict

from defects import InternalError, failure, is_call, no_locks_for, turns_red
from defects.bash import inherit_the_listening_socket, leave_children

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
    "stateful.in-turn",
    "stateful.long-output",
    "stateful.quoting",
    "stateful.slots-apart",
    "stateful.state",
    "stateful.stdin",
    "stateful.syntax",
    "stateful.timeout",
)


@turns_red("stateful.output", "stateful.own-output", "stateful.hang-up", *OF_EACH_OUTPUT, "stateful.short-timeout")
async def prompt_in_the_output(path, call, go):
    """The shell's prompt stands at the end of each command's output."""
    answer = await go(call)
    if is_call(call, "bash_stateful"):
        answer["output"] += "\n$"
    return answer


@turns_red("stateful.output", "stateful.timeout")
async def stderr_of_sessions_lost(path, call, go):
    """What a session's command writes to standard error is thrown away."""
    answer = await go(call)
    if is_call(call, "bash_stateful"):
        answer["output"] = answer["output"].partition("[stderr]")[0]
    return answer


@turns_red("stateful.own-output", "stateful.output", *OF_EACH_OUTPUT, "stateful.short-timeout")
async def output_comes_one_call_late(path, call, go):
    """A session's command is answered with what the one before printed."""
    answer = await go(call)
    if path == "/reset":
        LAST.pop(call["slot_id"], None)
    if is_call(call, "bash_stateful"):
        before, LAST[call["slot_id"]] = LAST.get(call["slot_id"]), answer["output"]
        answer["output"] = answer["output"] if before is None else before
    return answer


@turns_red("stateful.state", "stateful.exit-code", "stateful.exit-tree", "stateful.habits", "stateful.slots-apart")
def each_command_in_a_subshell(arguments):
    """A session runs each command in a subshell, so that directory and variables are forgotten."""
    lines_of_the_keeper("", RUN.replace("\\eval {command}", "( \\eval {command} )"), REPORT)


@turns_red("stateful.state")
async def functions_forgotten(path, call, go):
    """A session forgets its functions."""
    if is_call(call, "bash_stateful"):
        call["args"]["command"] = f"{{ unset -f tell; }} 2>/dev/null\n{call['args']['command']}"
    return await go(call)


@turns_red(
    "stateful.exit-code",
    "stateful.habits",
    "stateful.long-output",
    "stateful.exit",
    "stateful.syntax",
    elsewhere=("reset.closed",),
)
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


@turns_red("stateful.here-document", "stateful.exit-code")
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


@turns_red("stateful.output", "stateful.quoting")
async def last_line_without_a_break_lost(path, call, go):
    """A session's answer is made of whole lines: what a command prints after the last line break is lost."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["stdout"].rstrip("\n") == answer["stdout"] != "":
        answer["output"] = answer["stdout"].rpartition("\n")[0]
    return answer


@turns_red("stateful.output")
async def line_ends_of_a_terminal(path, call, go):
    """The lines of a session's output end with a carriage return, as a terminal has it."""
    answer = await go(call)
    if is_call(call, "bash_stateful"):
        answer["output"] = answer["output"].replace("\n", "\r\n")
    return answer


@turns_red("stateful.output")
async def empty_lines_of_sessions_lost(path, call, go):
    """Empty lines are missing in a session's output."""
    answer = await go(call)
    if is_call(call, "bash_stateful"):
        answer["output"] = "\n".join(filter(None, answer["output"].split("\n")))
    return answer


@turns_red("stateful.output")
async def sessions_fail_on_wild_bytes(path, call, go):
    """A session's output that is no UTF-8 makes the call fail."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and "\ufffd" in answer["output"]:
        raise InternalError("'utf-8' codec can't decode byte")
    return answer


@turns_red("stateful.long-output")
def output_read_at_the_end(arguments):
    """What a session's command prints is read when it has ended: one that prints more than a pipe holds never ends."""
    from slotserver import shell

    begin = shell.Shell.__init__

    def unread(self, *args, **more):
        begin(self, *args, **more)
        for pipe in (self.process.stdout, self.process.stderr):
            asyncio.get_running_loop().remove_reader(pipe._reading_end)

    shell.Shell.__init__ = unread


@turns_red("stateful.hang-up")
def sessions_outlive_their_callers(arguments):
    """A client that hangs up leaves its command running in the session: the next call has the output of both."""
    from slotserver import shell, tools

    run, end, left = tools.TOOLS["bash_stateful"], shell.Shell.end, set()

    async def noticed(slot, args, timeout_s):
        before = slot.shell
        try:
            return await run(slot, args, timeout_s)
        except asyncio.CancelledError:
            slot.shell = before or next(iter(left), None)
            raise
        finally:
            left.clear()

    async def end_unless_cancelled(self):
        if asyncio.current_task().cancelling():
            left.add(self)
        else:
            await end(self)

    shell.Shell.end = end_unless_cancelled
    tools.TOOLS["bash_stateful"] = noticed


@turns_red(
    "stateful.in-turn",
    elsewhere=(
        "protocol.not-described",
        "protocol.large-body",
        "protocol.bad-json",
        "protocol.wrong-types",
    ),
)
def sessions_have_a_lock_of_their_own(arguments):
    """Commands of `bash_stateful` run one after another, and beside the other tools of their slot."""
    from slotserver import tools

    run, locks = tools.TOOLS["bash_stateful"], defaultdict(asyncio.Lock)

    async def in_turn(slot, args, timeout_s):
        async with locks[slot]:
            return await run(slot, args, timeout_s)

    tools.TOOLS["bash_stateful"] = in_turn
    no_locks_for("bash_stateful")


@turns_red("stateful.state")
async def sessions_end_with_other_tools(path, call, go):
    """A slot's session ends when another tool is used in the slot."""
    if call.get("tool") in ("bash", "read_file", "write_file"):
        ended = {"slot_id": call["slot_id"], "tool": "bash_stateful", "args": {"command": "exit"}}
        await go(ended)
    return await go(call)


@turns_red("stateful.exit-code", "stateful.long-output")
async def a_session_that_prints_succeeds(path, call, go):
    """A session's command that prints something is told as one that ended well."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["stdout"] and not answer["metadata"]["shell_ended"]:
        answer |= {"success": True, "error": ""}
    return answer


@turns_red("stateful.exit-code")
async def comment_hides_the_exit_code(path, call, go):
    """What asks for the exit code of a session's command stands on its last line, where a comment hides it."""
    if is_call(call, "bash_stateful") and re.search(r" #[^\n]*$", call["args"]["command"]):
        await go(call)
        return failure("Command timed out") | {"metadata": {"exit_code": -1, "timeout": True}}
    return await go(call)


@turns_red("stateful.exit-code", "stateful.habits")
async def sessions_with_pipefail(path, call, go):
    """A session's commands run under an option of the server's: a pipeline fails where any part of it does."""
    if is_call(call, "bash_stateful"):
        call["args"]["command"] = f"set -o pipefail\n{call['args']['command']}"
    return await go(call)


@turns_red("stateful.syntax")
async def error_of_syntax_is_no_failure(path, call, go):
    """A command that a session can't read is told as one that ended well."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and re.search("syntax error|unexpected EOF", answer["stderr"]):
        answer |= {"success": True, "error": "", "metadata": answer["metadata"] | {"exit_code": 0}}
    return answer


@turns_red("stateful.syntax")
async def open_quote_waits_for_its_end(path, call, go):
    """A session's command that lacks its end waits for it, until the time-out."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and re.search("unexpected (EOF|end of file)", answer["stderr"]):
        return failure("Command timed out") | {"metadata": {"exit_code": -1, "timeout": True}}
    return answer


@turns_red("stateful.quoting")
async def sessions_take_half_of_backslashes(path, call, go):
    """Of two backslashes in a session's command one arrives."""
    if is_call(call, "bash_stateful"):
        call["args"]["command"] = call["args"]["command"].replace("\\\\", "\\")
    return await go(call)


@turns_red("stateful.quoting", "stateful.output")
async def lines_of_a_terminal_cut(path, call, go):
    """Of a line of a session's command 4095 bytes arrive, as many as a terminal takes."""
    if is_call(call, "bash_stateful"):
        call["args"]["command"] = "\n".join(line[:4095] for line in call["args"]["command"].split("\n"))
    return await go(call)


@turns_red("stateful.exit", elsewhere=("reset.closed",))
async def exit_of_a_session_is_a_success(path, call, go):
    """The exit code with which a session ends is lost: `exit 1` is told as a success."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["metadata"].get("shell_ended") and answer["metadata"]["exit_code"] > 0:
        answer |= {"success": True, "error": "", "metadata": answer["metadata"] | {"exit_code": 0}}
    return answer


@turns_red("stateful.exit")
async def last_words_of_a_session_lost(path, call, go):
    """What a command printed before it ended its session is thrown away."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["metadata"].get("shell_ended") and "timeout" not in answer["metadata"]:
        answer["output"] = ""
    return answer


@turns_red("stateful.exit")
def only_the_word_exit_ends_a_session(arguments):
    """The end of a session is noticed where a command says `exit`, and nowhere else."""
    from slotserver import shell

    run = shell.Shell.run

    async def wait_on(self, command):
        code = await run(self, command)
        if code is None and "exit" not in command.replace("sh -c 'exit", ""):
            await asyncio.sleep(3600)
        return code

    shell.Shell.run = wait_on


SHELL = ("bash", "--norc")


@turns_red("stateful.exit-tree", elsewhere=("reset.tmp",))
def what_sessions_leave_lives_on(arguments):
    """What a session left in the background lives on when `exit` has ended it."""
    leave_children("end", "all", SHELL)


@turns_red(
    "stateful.timeout-tree",
    elsewhere=(
        "reset.processes",
        "reset.tmp",
    ),
)
def time_outs_end_the_shell_alone(arguments):
    """A time-out ends a session's shell, and nothing that its command has started."""
    leave_children("timeout", "all", SHELL)


@turns_red("stateful.own-state")
async def exports_of_sessions_in_every_command(path, call, go):
    """What a session exports is there for the commands of `bash` in its slot."""
    kept = "$TMPDIR/.exports"
    if is_call(call, "bash_stateful"):
        end = f"{{ keeper=$?; export -p | grep sifproof_ > {kept}; (exit $keeper); }} 2>/dev/null"
        call["args"]["command"] += f"\n{end}" if "sifproof_word" in call["args"]["command"] else ""
    elif is_call(call, "bash"):
        call["args"]["command"] = f"if test -f {kept}; then . {kept}; fi\n{call['args']['command']}"
    return await go(call)


@turns_red("stateful.limits")
async def sessions_with_few_files(path, call, go):
    """A command of a session may have no more than 64 files open."""
    if is_call(call, "bash_stateful") and "ulimit -n" in call["args"]["command"]:
        call["args"]["command"] = f"ulimit -n 64\n{call['args']['command']}"
    return await go(call)


@turns_red("stateful.descriptors")
def sessions_inherit_the_listening_socket(arguments):
    """The commands of a session inherit the socket that the server listens on."""
    inherit_the_listening_socket(lambda command: (*command,) == SHELL)


@turns_red("stateful.short-timeout")
async def short_time_outs_of_sessions_forgotten(path, call, go):
    """A time-out of less than 10 ms is none to a session."""
    return await go(call | {"timeout": 30.0} if is_call(call, "bash_stateful") and call["timeout"] < 0.01 else call)


@turns_red("stateful.timeout")
async def error_output_before_a_time_out_lost(path, call, go):
    """What a session's command wrote to standard error before its time was over is thrown away."""
    answer = await go(call)
    if is_call(call, "bash_stateful") and answer["metadata"].get("timeout"):
        answer["output"] = answer["stdout"].strip()
    return answer


@turns_red("stateful.slots-apart")
def reset_ends_all_sessions(arguments):
    """A reset of one slot ends the sessions of all."""
    from slotserver.slots import Slot

    reset, known = Slot.reset, set()

    async def reset_all(self):
        known.add(self)
        for slot in known:
            if slot.shell and not slot.executing:
                await slot.shell.end()
                slot.shell = None
        return await reset(self)

    Slot.reset = reset_all
