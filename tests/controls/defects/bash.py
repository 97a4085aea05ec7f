"""The ``bash`` tool."""

import asyncio
import itertools
import os
import re
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from defects import failure, is_call, open_locks, turns_red
from defects.isolation_slot import in_bubblewrap

STREAMS = "\n[stderr]\n"


@turns_red("bash.output", elsewhere=("files.odd-names",))
async def spaces_joined(path, call, go):
    """Two spaces of a command's output come as one."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = answer["output"].replace("  ", " ")
    return answer


@turns_red("bash.output", elsewhere=("files.odd-names",))
async def tabs_expanded(path, call, go):
    """A tab of a command's output comes as spaces."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer |= {name: answer[name].expandtabs() for name in ("output", "stdout") if answer.get(name)}
    return answer


@turns_red("bash.output")
async def carriage_returns_dropped(path, call, go):
    """Carriage returns are taken out of what a command printed."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer |= {name: answer[name].replace("\r", "") for name in ("output", "stdout") if answer.get(name)}
    return answer


@turns_red("bash.output")
async def indent_of_the_first_line_lost(path, call, go):
    """`stdout` is stripped as `output` is: the first line loses its indent."""
    answer = await go(call)
    if is_call(call, "bash") and "stdout" in answer:
        answer["stdout"] = answer["stdout"].strip()
    return answer


@turns_red("bash.stderr", "bash.output-whole", "bash.output-limit", "bash.output-bytes", "bash.timeout")
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


@turns_red("bash.output-limit")
async def the_last_of_the_output(path, call, go):
    """Of an output that is too long the last characters come instead of the first, with a line that says so."""
    answer = await go(call)
    if is_call(call, "bash") and "[cut at" in answer["output"]:
        # What the limit cut off is not here any more: the command prints it again, for its end alone.
        again = {"args": {"command": f"{{ {call['args']['command']}\n}} 2>/dev/null | tail -c 50000"}}
        answer["output"] = (await go(call | again))["output"] + "\n[cut: the beginning]"
    return answer


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


@turns_red("bash.exit-code", elsewhere=("reset.closed",))
async def swallowed_exit_code(path, call, go):
    """A command that fails is told as one that ended well."""
    answer = await go(call)
    if is_call(call, "bash") and answer["metadata"].get("exit_code", -1) > 0:
        answer |= {"success": True, "error": "", "metadata": answer["metadata"] | {"exit_code": 0}}
    return answer


@turns_red("bash.exit-code")
async def exit_124_is_a_time_out(path, call, go):
    """A command that exits with 124 is told as one that timed out."""
    answer = await go(call)
    if is_call(call, "bash") and answer["metadata"].get("exit_code") == 124:
        answer["metadata"] |= {"exit_code": -1, "timeout": True}
        answer["error"] = "Command timed out after 30s"
    return answer


@turns_red("bash.exit-code")
async def exit_over_128_is_a_signal(path, call, go):
    """An exit code over 128 is taken for a signal, and told as minus its number."""
    answer = await go(call)
    if is_call(call, "bash") and 128 < (code := answer["metadata"].get("exit_code", 0)) < 160:
        answer["metadata"]["exit_code"] = 128 - code
        answer["error"] = f"Exit code: {128 - code}"
    return answer


@turns_red("bash.fresh")
async def exports_stay(path, call, go):
    """What a command exports is there for the next one of its slot."""
    if is_call(call, "bash"):
        kept = "/tmp/.environment.$(id -u)"
        head = f"if test -f {kept}; then . {kept}; fi; trap 'export -p | grep sifproof_ > {kept}' EXIT\n"
        call["args"]["command"] = head + call["args"]["command"]
    return await go(call)


@turns_red("bash.fresh")
async def functions_stay(path, call, go):
    """A function that a command defines is there for the next one of its slot."""
    if is_call(call, "bash"):
        kept = "/tmp/.functions.$(id -u)"
        head = f"if test -f {kept}; then . {kept}; fi; trap 'declare -f sifproof_tell > {kept}' EXIT\n"
        call["args"]["command"] = head + call["args"]["command"]
    return await go(call)


@turns_red("bash.short-timeout")
async def short_time_outs_rounded_up(path, call, go):
    """A time-out of less than 0.1 s is taken for one of three seconds."""
    return await go(call | {"timeout": 3.0} if call.get("timeout", 30.0) < 0.1 else call)


@turns_red("bash.stdin")
async def stdin_stays_open(path, call, go):
    """Commands inherit a standard input that nobody writes to and nobody closes."""
    if is_call(call, "bash"):
        call["args"]["command"] = "exec < <(exec sleep 60 2>&-)\n" + call["args"]["command"]
    return await go(call)


@turns_red(
    "bash.timeout",
    "bash.short-timeout",
    elsewhere=(
        "stateful.short-timeout",
        "stateful.timeout",
    ),
)
async def timeout_not_told(path, call, go):
    """A command that was ended by its time-out is told as one that ended well."""
    answer = await go(call)
    if answer.get("metadata", {}).pop("timeout", False):
        answer |= {"success": True, "error": ""}
    return answer


@turns_red("bash.timeout", elsewhere=("stateful.timeout",))
async def words_before_the_timeout_lost(path, call, go):
    """What a command printed before its time-out is thrown away."""
    answer = await go(call)
    return answer | {"output": ""} if answer.get("metadata", {}).get("timeout") else answer


# What its command started may end by itself, before the look for it.
@turns_red("bash.timeout", "bash.short-timeout", by_chance=("bash.timeout-tree",))
async def no_timeout(path, call, go):
    """The time-out of a call is ignored."""
    return await go(call | {"timeout": 30.0} if is_call(call, "bash") else call)


@turns_red(
    "bash.timeout-tree",
    elsewhere=(
        "reset.processes",
        "reset.tmp",
        "stateful.timeout-tree",
    ),
    by_chance=("bash.short-timeout",),
)
def children_survive_the_timeout(arguments):
    """A time-out ends the shell alone; what it started lives on."""
    leave_children("timeout", "all")


@turns_red(
    "bash.timeout-tree",
    elsewhere=(
        "reset.tmp",
        "stateful.timeout-tree",
    ),
)
def daemons_survive_the_timeout(arguments):
    """A time-out ends the process group alone; a child in a group or a session of its own lives on."""
    leave_children("timeout", "daemons")


@turns_red(
    "bash.background",
    elsewhere=(
        "reset.processes",
        "reset.tmp",
        "stateful.exit-tree",
    ),
)
def background_children_live_on(arguments):
    """What a command leaves in the background outlives its call."""
    leave_children("end", "all")


@turns_red(
    "bash.background",
    elsewhere=(
        "reset.tmp",
        "stateful.exit-tree",
    ),
)
def daemons_outlive_their_call(arguments):
    """The end of a call ends its process group alone; a child in a group or a session of its own outlives it."""
    leave_children("end", "daemons")


@turns_red(
    "bash.background",
    "bash.background-output",
    elsewhere=(
        "reset.processes",
        "reset.tmp",
        "stateful.exit-tree",
    ),
)
def only_who_holds_the_output_is_waited_for(arguments):
    """A call ends when its output is closed, and children that have closed theirs are left to live on."""
    leave_children("end", "all")
    waits_for_the_end_of_output(arguments)


def leave_children(when: str, whom: str, of: tuple[str, ...] = ()) -> None:
    """Commands run under a supervisor that leaves children behind, and not in bubblewrap, which can't; all commands,
    or those that are the program ``of``.
    """
    from slotserver import containment, process

    from defects.isolation_slot import without_bubblewrap

    argv = containment.Supervised.argv
    leaves = str(Path(__file__).parents[1] / "leaves_children.py")

    def leaving(self, *given, **more):
        python, *options, supervisor, report, user = (line := argv(self, *given, **more))[:6]
        if of and (*line[6:],) != of:
            return line
        return [python, *options, leaves, when, whom, str(Path(supervisor).parent), report, user, *line[6:]]

    async def end_none(self):
        """What a supervisor left is what is looked for."""

    containment.Supervised.argv = leaving
    without_bubblewrap()
    process.Reaper.end_strays = end_none


@turns_red("bash.background", elsewhere=("stateful.exit-tree",))
async def keeping_children_declared_in_vain(path, call, go):
    """`/health` declares that background children are kept, and they are ended."""
    answer = await go(call)
    return answer | {"background_children": "kept"} if path == "/health" else answer


@turns_red("bash.background-output")
def waits_for_the_end_of_output(arguments):
    """A call lasts until its output is closed, by children in the background too."""
    from slotserver.slots import Slot

    start = Slot.start

    def read_to_the_end(self, command, **options):
        if "stdin" not in options:  # as the shell of `bash_stateful` has one
            command = ["bash", "-c", '"$@" | cat; exit "${PIPESTATUS[0]}"', "bash", *command]
        return start(self, command, **options)

    Slot.start = read_to_the_end


async def under(line: str, call, go):
    """The answer where ``line`` comes before each command."""
    if is_call(call, "bash"):
        call["args"]["command"] = f"{line}\n{call['args']['command']}"
    return await go(call)


@turns_red("bash.limits")
async def hardly_any_open_files(path, call, go):
    """A command may have 50 files open."""
    return await under("ulimit -n 50", call, go)


@turns_red("bash.limits", not_measured=("artifacts.archive-meanwhile",))
async def no_large_files(path, call, go):
    """A command may write files of 4 MiB."""
    return await under("ulimit -f 4096", call, go)


@turns_red("bash.address-space")
async def address_space_for_memory(path, call, go):
    """Memory is limited by the address space that a command may have, 512 MiB."""
    return await under("ulimit -v 524288", call, go)


def inherit_the_listening_socket(of: Callable[[Sequence[str]], bool]) -> None:
    """Commands for which ``of`` says so inherit the socket that the server listens on."""
    from slotserver.slots import Slot

    start = Slot.start

    def listens(descriptor: int) -> bool:
        try:
            found = socket.socket(fileno=descriptor)
        except OSError:
            return False
        try:
            return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        finally:
            found.detach()

    def with_it(self, command, *, pass_fds=(), **options):
        held = filter(listens, (int(entry.name) for entry in Path("/proc/self/fd").iterdir() if of(command)))
        return start(self, command, pass_fds=(*pass_fds, *held), **options)

    Slot.start = with_it


@turns_red("bash.descriptors")
def listening_socket_inherited(arguments):
    """Commands of `bash` inherit the socket that the server listens on."""
    inherit_the_listening_socket(lambda command: "-c" in command)


@turns_red("bash.localhost", nomad=True)
def localhost_unknown(arguments):
    """A command finds an empty `/etc/hosts`."""
    in_bubblewrap(
        lambda words, place: [
            *words[: words.index("--remount-ro")],
            *(word for path in ("hosts", "nsswitch.conf") for word in ("--ro-bind", os.devnull, f"/etc/{path}")),
            *words[words.index("--remount-ro") :],
        ]
    )


@turns_red("bash.locale")
async def locale_of_ascii(path, call, go):
    """Commands run in the POSIX locale."""
    return await under("export LC_ALL=POSIX", call, go)


@turns_red("bash.start-up")
async def start_up_files_run(path, call, go):
    """Each command begins with the start-up files in its home."""
    return await under('for file in ~/.bash_profile ~/.bashrc; do test ! -f "$file" || . "$file"; done', call, go)


@turns_red("bash.unicode", "bash.output-whole")
async def ascii_only(path, call, go):
    """Letters beyond ASCII come back as question marks."""
    answer = await go(call)
    if is_call(call, "bash"):
        answer["output"] = answer["output"].encode("ascii", "replace").decode()
    return answer


@turns_red(
    "bash.quoting",
    "bash.output",
    elsewhere=(
        "artifacts.archive",
        "artifacts.read-base64",
        "artifacts.sha256",
    ),
)
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


@turns_red(
    "bash.workdir",
    "bash.fresh",
    elsewhere=(
        "artifacts.archive",
        "artifacts.archive-limit",
        "artifacts.list",
        "artifacts.list-limit",
        "artifacts.list-recursive",
        "artifacts.outside",
        "artifacts.read-base64",
        "artifacts.read-no-text",
        "artifacts.sha256",
        "artifacts.truncated",
        "artifacts.wrong-kind",
        "batch.failure",
        "files.directory",
        "files.empty",
        "files.limit-in-bytes",
        "files.odd-names",
        "files.outside-directory-link",
        "files.outside-file-link",
        "files.read-limit",
        "files.seen-by-bash",
        "files.write-limit",
        "protocol.described",
        "reset.only-that-slot",
        "stateful.own-state",
        "files.overwrite",
        "artifacts.archive-times",
        "artifacts.archive-meanwhile",
        "stateful.no-network",
        "files.modes",
        "files.shown-path",
        "files.mode-kept",
        "health.current-call",
        "files.inner-link",
    ),
    not_measured=(
        "bash.background",
        "bash.timeout",
        "bash.timeout-tree",
        "stateful.hang-up",
        "files.in-turn",
        "protocol.hang-up-waiting",
        "stateful.timeout-tree",
        "stateful.in-turn",
        "stateful.exit-tree",
    ),
)
async def new_folder_for_each_command(path, call, go):
    """Each command starts in a new directory instead of its slot's workspace."""
    if is_call(call, "bash"):
        call["args"]["command"] = "cd $(mktemp -d)\n" + call["args"]["command"]
    return await go(call)


@turns_red(
    "bash.slots-own-files",
    "bash.parallel",
    elsewhere=(
        "batch.failure",
        "protocol.described",
        "protocol.missing-fields",
        "protocol.unknown-slot",
        "protocol.wrong-types",
        "reset.only-that-slot",
        "reset.closed",
        "reset.tmp",
    ),
)
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


@turns_red(
    "bash.serial",
    "batch.serial",
    elsewhere=(
        "files.in-turn",
        "stateful.in-turn",
        "stateful.hang-up",
        "health.current-call",
    ),
)
def two_tools_in_one_slot(arguments):
    """A slot has no lock: a command that finds it busy runs all the same."""
    open_locks(lambda: True)


@turns_red("bash.leaks", nomad=True)
async def a_descriptor_for_each_call(path, call, go):
    """Each command leaves an open file behind in the server."""
    if is_call(call, "bash"):
        os.open(os.devnull, os.O_RDONLY)
    return await go(call)


@turns_red("bash.tmp-kept", nomad=True)
def tmp_for_each_call(arguments):
    """`/tmp` is new with each call: what a command left there is gone for the next."""
    from defects.isolation_slot import in_bubblewrap

    def change(words, place):
        at = words.index("--bind")
        assert words[at + 1] == str(place.tmp)
        return [*words[:at], "--tmpfs", *words[at + 2 :]]

    in_bubblewrap(change)


CALLS = itertools.count()


@turns_red("bash.leaks", nomad=True)
async def a_process_for_each_fifth_call(path, call, go):
    """Each fifth command leaves a process behind."""
    if is_call(call, "bash") and next(CALLS) % 5 == 0:
        subprocess.Popen(["sleep", "120"], stdin=subprocess.DEVNULL)
    return await go(call)


HISTORY: list[bytes] = []


@turns_red("bash.leaks-memory", nomad=True)
async def a_history_of_each_call(path, call, go):
    """The server keeps something of every call, 60 kB."""
    if is_call(call, "bash"):
        HISTORY.append(os.urandom(60_000))
    return await go(call)


@turns_red("bash.output-memory", nomad=True)
def output_kept_before_it_is_cut(arguments):
    """All of a command's output is kept until it ends, and cut then."""
    from slotserver import slots

    slots._OUTPUT_LIMIT_BYTES = 10**9
