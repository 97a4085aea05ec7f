"""The session of ``bash_stateful``, an optional tool: what it keeps from call to call, and what it must not hand on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sifproof.checks.bubblewrap import network_kept_or_refused
from sifproof.checks.registry import Finding, NotApplicable, check, expect
from sifproof.checks.server import Server, nonce
from sifproof.sandbox.client import Result, ServerError

_ENDS_S = 8.0
"""The time-out of a command that ends at once: where it takes that long, it waits for something that never comes."""

_LONG_S = 9
"""How long a command sleeps that is to meet its time-out."""


class _Session:
    """The session of one slot."""

    def __init__(self, server: Server, slot: int) -> None:
        self._client, self._slot = server.client, server.slot(slot)

    def run(self, command: str, *, timeout_s: float = _ENDS_S, **flags: bool) -> Result:
        """A command in it."""
        return self._client.execute(self._slot, "bash_stateful", {"command": command, **flags}, timeout_s=timeout_s)

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
    return expect(
        first.success and _lines(first) == [word, "a  b"] and second.success and _lines(second) == [long, long],
        _all(first, second),
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
    "stateful.state",
    "A session keeps its directory, variables, exported ones too, and functions from call to call.",
    why="That is what it is there for: agents activate an environment once, and change directory once.",
    todo="Run all commands of a session in one shell, and not each in a subshell of it.",
)
def state(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        made = session.run(
            f'mkdir -p {word}/deep && cd {word}/deep; own={word}; export given={word}; tell() {{ echo "tell $1"; }}'
        )
        kept = session.run('pwd; echo "$own"; bash -c \'echo "$given"\'; tell more')
    lines = _lines(kept)
    return expect(
        made.success
        and kept.success
        and bool(lines)
        and lines[0].endswith(f"/{word}/deep")
        and lines[1:] == [word, word, "tell more"],
        _all(made, kept),
    )


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
        seen = {code: session.run(f"(exit {code})") for code in (0, 1, 7, 124, 130, 255)}
        seen[127] = session.run("no-such-command-anywhere")
        kept = session.run('echo "$kept"')
    wrong = [
        f"exit {code}: {result}"
        for code, result in seen.items()
        if result.success is not (code == 0) or result.exit_code != code or result.metadata.get("timeout")
    ]
    if not begun.success or _lines(kept) != [word]:
        wrong.append(f"a variable from before: {_all(begun, kept)}")
    return expect(not wrong, "; ".join(wrong) or f"{', '.join(map(str, seen))} as they are")


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
            session.run('read -r line; echo "[$line]"'),
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
    "stateful.exit",
    "`exit` ends the session, and the call with it; the next call has a new one, which knows nothing of the old.",
    why="Scripts that agents source end with `exit`; a call that waits for a shell that is gone takes all of its time.",
    todo="Wait for the end of the shell as well as for the end of the command.",
)
def exits(server: Server) -> Finding:
    with _session(server) as session:
        word = nonce()
        results = [
            session.run(f"kept={word}; echo {word}"),
            session.run("exit 3"),
            session.run('echo "[$kept]"'),
        ]
    ended = results[1]
    return expect(
        _lines(results[0]) == [word]
        and not ended.metadata.get("timeout")
        and "timed out" not in ended.error
        and _lines(results[2]) == ["[]"],
        _all(*results),
    )


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
            cut = session.run(f"echo {word}; sleep {_LONG_S}; echo late", timeout_s=seconds)
            after = session.run("echo usable")
            waited += seconds
            if _lines(cut) == [word]:
                break
    return expect(
        not cut.success
        and cut.metadata.get("timeout") is True
        and "timed out" in cut.error
        and _lines(cut) == [word]
        and _lines(after) == ["usable"],
        f"{cut}, metadata {cut.metadata}; afterwards: {after}",
        waited_s=waited,
    )


_HABITS = {
    "IFS": "IFS=0123456789",
    "set -x": "set -x",
    "set -u": "set -u",
    "set -o pipefail": "set -f -o pipefail",
    "a function named like a builtin": "builtin() { :; }; printf() { :; }; command() { :; }",
    "a trap": "trap ': traced' DEBUG; trap ': failed' ERR; trap ': left' EXIT",
    "a prompt": "PS1='mine> ' PS4='mine> ' PROMPT_COMMAND='echo mine'",
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
    "stateful.slots-apart",
    "The sessions of two slots know nothing of each other, and the end of one is not that of the other.",
    why="The slots of one server belong to different agents.",
    todo="Keep one shell for each slot.",
)
def slots_apart(server: Server) -> Finding:
    with _session(server, 0) as one, _session(server, 1) as other:
        word = nonce()
        made = one.run(f"kept={word}; mkdir {word}; cd {word}")
        seen = other.run('echo "[$kept]"; pwd')
        other.run("exit 1")
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
