"""The session of ``bash_stateful``, an optional tool: what it keeps from call to call, and what it must not hand on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sifproof.checks.bash import (
    FILE_BYTES,
    LONG_COMMAND_BYTES,
    OPEN_FILES,
    OUTPUT_LIMIT,
    descriptors_of,
    fill,
    limits_of,
)
from sifproof.checks.bubblewrap import network_kept_or_refused
from sifproof.checks.engine.children import Children
from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.sandbox.client import Result, ServerError

_ENDS_S = 8.0
"""The time-out of a command that ends at once: where it takes that long, it waits for something that never comes."""

_LONG_S = 9
"""How long a command sleeps that is to meet its time-out."""


class _Session:
    """The session of one slot."""

    def __init__(self, server: Server, slot: int) -> None:
        self._server, self._number = server, slot
        self._client, self._slot = server.client, server.slot(slot)

    def run(self, command: str, *, timeout_s: float = _ENDS_S, **flags: bool) -> Result:
        """A command in it."""
        return self._client.execute(self._slot, "bash_stateful", {"command": command, **flags}, timeout_s=timeout_s)

    def hang_up_on(self, command: str, name: str) -> None:
        """A command in it, whose client is gone when it has made the file ``name``."""
        call = {"slot_id": self._slot, "tool": "bash_stateful", "args": {"command": command}, "timeout": _ENDS_S}
        self._server.hang_up_on(call, name, slot=self._number)

    def renew(self) -> None:
        """A reset: the next command begins a session."""
        self._client.reset(self._slot)


@contextlib.contextmanager
def _session(server: Server, slot: int = 0) -> Iterator[_Session]:
    """A new session, gone afterwards; not applicable where the server has none."""
    session = _Session(server, slot)
    if not server.share("stateful", lambda: "Unknown tool" not in session.run(":").error):
        raise NotApplicable("the server has no tool `bash_stateful`, which is optional")
    session.renew()
    try:
        yield session
    finally:
        # Where a reset leaves it, what was set in it must not meet the checks after this one.
        with contextlib.suppress(ServerError):
            session.run("exit", timeout_s=2.0)
        session.renew()


def _lines(result: Result) -> list[str]:
    """What a command printed, line by line; how its two streams are joined is for `bash.stderr`."""
    return [line for line in result.output.strip().splitlines() if line.strip() not in ("", "[stderr]")]


def _all(*results: Result) -> str:
    return "; then: ".join(map(str, results))


@check(
    "stateful.output",
    "What a command of `bash_stateful` writes to standard output and standard error is in `output`, and nothing else "
    "is: no prompt, no echo of the command.",
    why="Agents act on what they read; what a terminal adds to it breaks what they parse.",
    todo="Run a bash without a terminal, or take what the terminal adds off again.",
)
def output(server: Server) -> Finding:
    with _session(server) as session:
        word, long = nonce(), "y" * 9_000
        first = session.run(f"echo {word}; echo 'a  b' >&2")
        second = session.run(f"printf '%s\\n' {long} {long}")
        # A byte that is no UTF-8, and no line break at the end. An empty line is the command's, a carriage return not.
        third = session.run(f"printf '{word}\\n\\n\\377 end'")
    last = third.output.strip().split("\n")
    return expect(
        first.success
        and _lines(first) == [word, "a  b"]
        and second.success
        and _lines(second) == [long, long]
        and third.success
        and last[:-1] == [word, ""]
        and last[-1].endswith(" end"),
        _all(first, second, third),
    )


@check(
    "stateful.long-output",
    f"A command of `bash_stateful` that prints more than an answer holds goes on to its end; the first "
    f"{OUTPUT_LIMIT:,} characters come whole, with its exit code, and nothing of it comes with the next answer.",
    why="A build that prints much would otherwise wait for a reader until its time-out.",
    todo="Read a command's output while it runs, and throw away what is more than an answer holds.",
)
def long_output(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        long = session.run(f"{fill('x', 6 * OUTPUT_LIMIT)}; echo; echo {word} > {word}; (exit 7)", timeout_s=30.0)
        after = session.run(f"cat {word}")
    came = len(long.output) - len(long.output.lstrip("x"))
    return expect(
        came >= OUTPUT_LIMIT and long.exit_code == 7 and not long.metadata.get("timeout") and _lines(after) == [word],
        f"of {6 * OUTPUT_LIMIT:,} characters the first {came:,} came: {_all(long, after)}",
    )


@check(
    "stateful.own-output",
    "Each call of `bash_stateful` answers with the output of its own command, not with that of the one before.",
    why="An agent that reads the last answer once more takes a failure for a success.",
    todo="Read what a command printed up to its end before the call is answered.",
)
def own_output(server: Server) -> Finding:
    with _session(server) as session:
        words = [nonce() for _ in range(4)]
        # One prints in its last moment, one nothing at all.
        commands = [f"echo {words[0]}", f"sleep 0.1; echo {words[1]} >&2", ":", f"echo {words[3]}"]
        results = [session.run(command) for command in commands]
    seen = [_lines(result) for result in results]
    return expect(seen == [[words[0]], [words[1]], [], [words[3]]], _all(*results))


@check(
    "stateful.hang-up",
    "After a client that hangs up on a command of `bash_stateful`, the next call works, and is answered with the "
    "output of its own command.",
    why="Clients are killed, and their calls time out; what the lost command printed is then taken for the next one's.",
    todo="End the command when its client is gone, or wait for its end and throw away what it printed.",
    waits_s=0.5,
)
def hang_up(server: Server) -> Finding:
    saw, waited_s = "", 0.0
    # A loaded node, where the command has not begun by then, gets a second, longer look.
    for seconds in (0.5, 3.0):
        with _session(server) as session:
            word = nonce()
            session.hang_up_on(f": > {word}; echo begun; sleep {seconds}; echo late; (exit 7)", word)
            after = session.run(f"echo {word}")
            ran = server.remove(word)
        waited_s += seconds
        saw = f"after one that was hung up on: {after}"
        if not after.success or _lines(after) != [word] or ran:
            return expect(after.success and _lines(after) == [word], saw, waited_s=waited_s)
    raise NotMeasured(f"nothing is there of the command that was hung up on; {saw}")


@check(
    "stateful.in-turn",
    "A call of `bash_stateful` waits for the command that runs in its slot, and every other tool for it.",
    why="Tools of one slot run one at a time: else each answer holds what another's command printed.",
    todo="Take the slot's lock for the session, too.",
    waits_s=0.3,
)
def in_turn(server: Server) -> Finding:
    waited_s = 0.0
    # Told by what the file holds, not by a clock; a slow client gets a second, longer look.
    for seconds in (0.3, 3.0):
        with _session(server) as session, ThreadPoolExecutor(4) as callers:
            name = nonce()
            running = callers.submit(
                session.run, f"echo half > {name}; sleep {seconds}; echo whole > {name}; echo {name}"
            )
            # By a call that waits for nobody, or for the command, which is as well.
            look = {"slot_id": server.slot(), "path": name}
            while not running.done() and server.client.request("POST", "/artifacts/read", look)[0] != 200:
                time.sleep(0.01)
            others = {
                "the session": callers.submit(session.run, f"cat {name}"),
                "bash": callers.submit(server.bash, f"cat {name}"),
                "read_file": callers.submit(server.read, name),
            }
            first, seen = running.result(), {tool: call.result() for tool, call in others.items()}
        waited_s += seconds
        told = "; ".join(f"{tool}: {result}" for tool, result in seen.items())
        saw = f"a command printed: {first}; what it wrote, seen meanwhile by {told}"
        told_early = any(
            word in f"{result.output} {result.error}".lower()
            for result in seen.values()
            for word in ("no such file", "not found")
        )
        if not told_early:
            waited = all(_lines(result) == ["whole"] for result in seen.values())
            return expect(waited and _lines(first) == [name], saw, waited_s=waited_s)
    # They came before it.
    raise NotMeasured(f"the calls did not come while the command ran: {saw}")


@check(
    "stateful.state",
    "A session keeps its directory, variables, exported ones too, and functions from call to call, whatever other "
    "tools are used between them.",
    why="That is what it is there for: agents activate an environment once, and change directory once.",
    todo="Run all commands of a session in one shell, and not each in a subshell of it.",
)
def state(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        made = session.run(
            f'mkdir -p {word}/deep && cd {word}/deep; own={word}; export given={word}; tell() {{ echo "tell $1"; }}'
        )
        others = [server.bash(":"), server.write(f"{word}/file", word), server.read(f"{word}/file")]
        kept = session.run('pwd; echo "$own"; bash -c \'echo "$given"\'; tell more')
    lines = _lines(kept)
    return expect(
        made.success
        and kept.success
        and bool(lines)
        and lines[0].endswith(f"/{word}/deep")
        and lines[1:] == [word, word, "tell more"],
        f"{_all(made, kept)}; the tools between: {_all(*others)}",
    )


_CODES = (
    *((f"(exit {code})", code) for code in (0, 1, 7, 124, 130, 255)),
    ("no-such-command-anywhere", 127),
    # What it prints says nothing of how it ended, nor how it is written.
    ("echo fine; echo fine >&2; (exit 7)", 7),
    ("echo wrong >&2", 0),
    ("(exit 7)\n", 7),
    ("(exit 7) # why", 7),
    ("(exit 7) | true", 0),
    ("true && false || (exit 7)", 7),
)
"""Commands, and how each ends."""


@check(
    "stateful.exit-code",
    "A command of `bash_stateful` that fails is `success: false` with its own exit code, one that ends well is not, "
    "and neither ends the session.",
    why="A swallowed exit code turns a failing test suite into a reward.",
    todo="Take the exit code before the shell runs anything else.",
)
def exit_code(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        begun = session.run(f"kept={word}")
        seen = [(command, code, session.run(command)) for command, code in _CODES]
        kept = session.run('echo "$kept"')
    wrong = [
        f"{command!r} for {code}: {result}"
        for command, code, result in seen
        if result.success is not (code == 0)
        or result.exit_code != code
        or result.metadata.get("timeout")
        or not (result.success or result.error.strip())
    ]
    if not begun.success or _lines(kept) != [word]:
        wrong.append(f"a variable from before: {_all(begun, kept)}")
    return expect(not wrong, "; ".join(wrong) or f"{', '.join(str(code) for _, code in _CODES)} as they are")


@check(
    "stateful.syntax",
    "A command that bash can't read, or not to its end, is a failure at once, and the next call works.",
    why="A forgotten quote would otherwise take all of its time, or be run together with the next command.",
    todo="Hand the command to `eval` in quotes, so that what it lacks is not read from what comes after it.",
)
def syntax(server: Server) -> Finding:
    wrong = []
    for command in ("if true; then", "echo 'open", "echo )", "cat <<'END'\nopen"):
        with _session(server) as session:
            word = nonce()
            results = [session.run(command), session.run(f"echo {word}")]
        # Of a here-document without its end bash says so, and takes it for one.
        failed = not results[0].success or "<<" in command
        if not failed or results[0].metadata.get("timeout") or _lines(results[1]) != [word]:
            wrong.append(f"{command!r}: {_all(*results)}")
    return expect(not wrong, "; ".join(wrong) or "each failed at once")


@check(
    "stateful.stdin",
    "Standard input of a session's commands is empty: one that reads it ends at once, and takes no later command for "
    "its input.",
    why="`cat`, `ssh` or `read` would otherwise wait until the time-out, or eat the next command.",
    todo="Give each command `/dev/null` as standard input, and not what the shell reads its commands from.",
)
def stdin(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        results = [
            session.run("cat; echo ended"),
            session.run('read -r line; echo "[$line]"\ncat'),
            session.run(f"echo {word}"),
        ]
    return expect([_lines(result) for result in results] == [["ended"], ["[]"], [word]], _all(*results))


@check(
    "stateful.here-document",
    "Here-documents work in a session, also as the last thing of a command.",
    why="Agents write files with them.",
    todo="End a command with a line break, or hand it to `eval` in quotes.",
)
def here_document(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        results = [
            session.run(f"cat <<'END'\nfirst \"line\"\n  {word}\nEND"),
            session.run(f"cat <<END > {word}\nin a file\nEND\ncat {word}"),
            session.run(f"echo {word}"),
        ]
    seen = [[line.strip() for line in _lines(result)] for result in results]
    return expect(seen == [['first "line"', word], ["in a file"], [word]], _all(*results))


@check(
    "stateful.quoting",
    f"A command reaches a session as it was sent: quotes, dollars, backslashes, tabs, letters beyond ASCII, and "
    f"{LONG_COMMAND_BYTES // 1000} kB of it.",
    why="Agents write whole files with one command; what is changed on the way is a file that nobody wrote.",
    todo="Hand the command to `eval` in single quotes, and to the shell by a pipe or socket that takes all of it.",
)
def quoting(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        first = session.run(
            "x='a \"b\" $c'\nprintf '%s|' \"$x\" '\\n' '\\\\' 'a\tü日' \"$(echo $((6*7)))\" `echo tick`"
        )
        head, tail = "wc -c <<'E'\n", f"\nE\necho {word}"
        # In lines longer than a terminal takes; quotes and dollars in them, which a second quoting would multiply.
        line = 'it\'s "$5" ' * 900 + "\n"
        text = (line * (LONG_COMMAND_BYTES // len(line) + 1))[: LONG_COMMAND_BYTES - len(head) - len(tail)]
        long = session.run(head + text + tail)
    return expect(
        first.success
        and first.output.strip() == 'a "b" $c|\\n|\\\\|a\tü日|42|tick|'
        and long.success
        and long.output.split() == [str(len(text) + 1), word],
        f"{_all(first, long)}; {len(text) + 1} and {word} expected of the last",
    )


@check(
    "stateful.exit",
    "`exit` ends the session, and the call with it, also where it leaves something in the background; so does the end "
    "of a program that took the shell's place (`exec`). The answer has what was printed, and is no success where the "
    "exit code is not 0; the next call has a new session, which knows nothing of the old.",
    why="Scripts that agents source end with `exit`; a call that waits for a shell that is gone takes all of its time, "
    "and `exit 1` that is told as a success is a reward for nothing.",
    todo="Wait for the end of the shell as well as for the end of the command, and take the shell's exit code for it.",
)
def exits(server: Server) -> Finding:
    for how, code in (("exit 3", 3), ("sleep 30 & exit 4", 4), ("exec sh -c 'exit 5'", 5)):
        with _session(server) as session:
            word = nonce()
            results = [
                session.run(f"kept={word}; echo {word}"),
                session.run(f"echo {word}; {how}"),
                session.run('echo "[$kept]"'),
            ]
        begun, ended, after = results
        if (
            (_lines(begun), _lines(after)) != ([word], ["[]"])
            or word not in _lines(ended)
            or ended.metadata.get("timeout")
            or "timed out" in ended.error
            # The shell's end may have taken the code with it; then it is none of another.
            or ended.exit_code not in (code, -1, None)
        ):
            return expect(False, f"{how}: {_all(*results)}")
    return expect(True, "each ended with its session")


@check(
    "stateful.timeout",
    "A command of `bash_stateful` that exceeds its `timeout` is ended, says so, what it had printed is there, and the "
    "next call works.",
    why="What a command said before it hung is how one finds out why.",
    todo="Answer with what has been read when the time is over, and begin a new session where the old one can't go on.",
    waits_s=0.7,
)
def timeout(server: Server) -> Finding:
    cut, after, waited = Result(success=True), Result(success=False), 0.0
    with _session(server) as session:
        word = nonce()
        # A loaded node gets a second, longer look before it is a failure.
        for seconds in (0.7, 5.0):
            cut = session.run(f"echo {word}; echo {word} >&2; sleep {_LONG_S}; echo late", timeout_s=seconds)
            after = session.run("echo usable")
            waited += seconds
            if _lines(cut) == [word, word]:
                break
    return expect(
        not cut.success
        and cut.metadata.get("timeout") is True
        and "timed out" in cut.error
        and _lines(cut) == [word, word]
        and _lines(after) == ["usable"],
        f"{cut}, metadata {cut.metadata}; afterwards: {after}",
        waited_s=waited,
    )


@check(
    "stateful.exit-tree",
    "What a session left in the background ends with `exit`, in other process groups and sessions too; where `/health` "
    'declares `background_children: "kept"`, it lives on instead.',
    why="What outlives its session takes the node's processors and changes the workspace under the next.",
    todo="End what the session's shell started when it has ended, by a PID name space or under a subreaper.",
)
def exit_tree(server: Server) -> Finding:
    kept = server.client.health().get("background_children") == "kept"
    children = Children(nonce())
    with _session(server) as session:
        result = session.run(f"{children.start}\n{children.wait}\nexit", timeout_s=30.0)
        began, alive = children.look(server, kept=kept)
    if "shell" not in began:
        raise NotMeasured(f"nothing is there of what the command wrote: {result}")
    return expect(
        bool(alive) is kept,
        f"{result}; {'declared as kept; ' if kept else ''}"
        f"still there afterwards: {', '.join(sorted(alive)) or 'none'} of {', '.join(sorted(began))}",
    )


@check(
    "stateful.short-timeout",
    "A time-out of a few milliseconds ends a session's command, at whatever moment of the session's start, and the "
    "next call works.",
    why="A session that is given up while it is being made may be neither there nor gone, and its slot is lost.",
    todo="Begin a new session where the old one did not come up, and hold the slot until what was started is gone.",
)
def short_timeout(server: Server) -> Finding:
    wrong = []
    with _session(server) as session:
        for milliseconds in range(1, 17, 3):
            session.renew()
            word = nonce()
            cut = session.run(f"sleep {_LONG_S}", timeout_s=milliseconds / 1000)
            after = session.run(f"echo {word}")
            if cut.success or cut.metadata.get("timeout") is not True or _lines(after) != [word]:
                wrong.append(f"after {milliseconds} ms: {_all(cut, after)}")
                break  # each may take as long as its command
    return expect(not wrong, "; ".join(wrong) or "time-outs of 1 to 16 ms")


@check(
    "stateful.timeout-tree",
    "A time-out ends all that the session's command started: a loop of the shell itself, and what is in other process "
    "groups and sessions, or deaf to SIGTERM.",
    why="What outlives its time-out takes the node's processors and changes the workspace under the next command.",
    todo="End the session's shell and all below it with SIGKILL, by a PID name space or under a subreaper.",
    waits_s=0.5,
)
def timeout_tree(server: Server) -> Finding:
    waited_s = 0.0
    # A loaded node that has not started them all by then gets a second, longer time.
    for seconds in (0.5, 4.0):
        children = Children(nonce())
        with _session(server) as session:
            # In a part of the shell that is not in the background, so that where the session goes on none of it may.
            lines = f"{children.start}\ntrap '' TERM INT HUP\n{children.wait}\n{children.go_on}"
            result = session.run(f"(\n{lines}\n)", timeout_s=seconds)
            began, alive = children.look(server)
        waited_s += seconds
        if "shell" in began or alive:
            return expect(
                not alive,
                f"{result}; still there afterwards: {', '.join(sorted(alive)) or 'none'} of {', '.join(sorted(began))}",
                waited_s=waited_s,
            )
    raise NotMeasured(f"nothing is there of what the command wrote within 4 s: {result}")


_HABITS = {
    "IFS": "IFS=0123456789",
    "set -x": "set -x",
    "set -u": "set -u",
    "set -o pipefail": "set -f -o pipefail",
    "a function named like a builtin": "builtin() { :; }; printf() { :; }; command() { :; }",
    "a trap": "trap ': traced' DEBUG; trap ': failed' ERR; trap ': left' EXIT",
    "a prompt": "PS1='mine> ' PS4='mine> ' PROMPT_COMMAND='echo mine'",
    "a directory that is gone": "mkdir gone && cd gone && rmdir ../gone",
    "an alias": "shopt -s expand_aliases; alias builtin=false eval=false",
}
"""What scripts set in the shell that they are sourced into, and leave so."""


@check(
    "stateful.habits",
    "A session goes on to work whatever a command has set in it: "
    + ", ".join(f"`{h}`" for h in ("IFS", "set -x"))
    + ", traps, functions named like builtins. Output and exit codes are those of the commands.",
    why="A sourced script leaves such things behind; a server whose own lines stumble over them loses the session.",
    todo="Keep what the server runs in the shell apart from what commands have made of it.",
)
def habits(server: Server) -> Finding:
    wrong = []
    for name, command in _HABITS.items():
        with _session(server) as session:
            word = nonce()
            results = [session.run(f"kept={word}\n{command}"), session.run('echo "$kept"'), session.run("(exit 7)")]
        # A trace shows the command; what else it shows is the server's own.
        own = [line for line in _lines(results[1]) if word not in line and ": traced" not in line]
        if not results[0].success or word not in _lines(results[1]) or own or results[2].exit_code != 7:
            wrong.append(f"{name}: {_all(*results)}")
    return expect(not wrong, "; ".join(wrong) or f"tried: {', '.join(_HABITS)}")


@check(
    "stateful.no-network",
    "`allow_network: false` is kept or refused by `bash_stateful` as well.",
    why="Callers cut the network so that code can't send away what it sees, nor call the server it runs under.",
    todo="Start the session's shell without network, and refuse the call where there is one with it.",
)
def no_network(server: Server) -> Finding:
    with _session(server) as session:

        def call(command: str, **flags: bool) -> Result:
            session.renew()
            return session.run(command, timeout_s=30.0, **flags)

        return network_kept_or_refused(server, call)


@check(
    "stateful.own-state",
    "What a session has exported, and where it went, is not what a command of `bash` in its slot finds.",
    why="A variable of one shell that turns up in another changes what it does, and nobody sees why.",
    todo="Start a shell for each command of `bash`, with an environment that is made for it.",
)
def own_state(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        home = server.bash("pwd")
        made = session.run(f"export sifproof_word={word}; mkdir {word} && cd {word}")
        seen = server.bash('echo "[$sifproof_word]"; pwd')
    return expect(made.success and _lines(seen) == ["[]", *_lines(home)], _all(home, made, seen))


@check(
    "stateful.limits",
    f"A command of a session may have {OPEN_FILES} files open, and write one of {FILE_BYTES >> 20} MiB.",
    why="Builds, tests and downloads do both; what fails then blames the disk or the program.",
    todo="Look for `RLIMIT_NOFILE` and `RLIMIT_FSIZE` where the session's shell is started.",
)
def limits(server: Server) -> Finding:
    with _session(server) as session:
        return limits_of(server, session.run)


@check(
    "stateful.descriptors",
    "A session's commands inherit no connection of the server's, nor the socket that it listens on.",
    why="One that accepts on it answers in the server's place, to clients of every slot.",
    todo="Open sockets with `O_CLOEXEC`, and close what the session's shell does not need before it starts.",
)
def descriptors(server: Server) -> Finding:
    with _session(server) as session:
        return descriptors_of(server, session.run)


@check(
    "stateful.slots-apart",
    "The sessions of two slots know nothing of each other, and the end of one, by `exit`, a time-out or a reset, is "
    "not that of the other.",
    why="The slots of one server belong to different agents.",
    todo="Keep one shell for each slot.",
)
def slots_apart(server: Server) -> Finding:
    with _session(server, 0) as one, _session(server, 1) as other:
        word = nonce()
        made = one.run(f"kept={word}; mkdir {word}; cd {word}")
        seen = other.run('echo "[$kept]"; pwd')
        other.run("exit 1")
        other.run(f"sleep {_LONG_S}", timeout_s=0.1)
        other.renew()
        kept = one.run('echo "$kept"')
    lines = _lines(seen)
    return expect(
        made.success and len(lines) == 2 and lines[0] == "[]" and word not in lines[1] and _lines(kept) == [word],
        f"of the other slot: {seen}; of its own, when the other's has ended: {kept}",
    )


@check(
    "stateful.reset",
    "A reset ends the session: the next one has no variable and no function of it, and begins in the workspace.",
    why="The next agent must find neither the work nor the tricks of the last one.",
    todo="End the slot's shell in a reset, and wait for its end.",
)
def reset(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        home = session.run("pwd")
        made = session.run(f"kept={word}; tell() {{ echo {word}; }}; mkdir {word}; cd {word}; pwd")
        session.renew()
        after = session.run('echo "[$kept]"; type tell >/dev/null 2>&1 && echo tell; pwd')
    return expect(
        made.success and after.success and bool(_lines(home)) and _lines(after) == ["[]", *_lines(home)],
        f"before: {_all(home, made)}; after a reset: {after}",
    )
