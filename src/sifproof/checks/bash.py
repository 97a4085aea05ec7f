"""The ``bash`` tool gives back what the command did, and leaves nothing of it behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from sifproof.checks.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.server import Server, nonce
from sifproof.config import DRIVERS
from sifproof.errors import SifproofError
from sifproof.sandbox.client import Result

OUTPUT_LIMIT = 50_000
"""Characters of each stream that an answer holds."""

LONG_COMMAND_BYTES = 100_000


@check(
    "bash.output",
    "What a command writes to standard output is `output`, and the call succeeds.",
    why="Agents act on what they read.",
    todo="Run the same command by hand in the container.",
)
def output(server: Server) -> Finding:
    word = nonce()
    result = server.bash(f"echo {word}; echo 'a  b'; printf 'no newline'")
    return expect(result.success and result.output.strip() == f"{word}\na  b\nno newline", result)


@check(
    "bash.stderr",
    "What a command writes to standard error is in `output` after a line `[stderr]`, and not lost when it fails.",
    why="Compilers and interpreters say what is wrong on standard error.",
    todo="Look at how the server joins the two streams.",
)
def stderr(server: Server) -> Finding:
    good = server.bash("echo out; echo err >&2")
    lines = [line.strip() for line in good.output.strip().splitlines() if line.strip()]
    bad = server.bash("echo why-it-failed >&2; exit 3")
    return expect(
        good.success and lines == ["out", "[stderr]", "err"] and "why-it-failed" in bad.output + bad.error,
        f"{good}; and of a failing command: {bad}",
    )


@check(
    "bash.output-whole",
    f"Output of up to {OUTPUT_LIMIT:,} characters in each stream comes whole, counted in characters and not in bytes.",
    why="A test's report that loses its end without need hides what failed.",
    todo="Look at what the server counts before it cuts, and at how much it reads of a pipe.",
)
def output_whole(server: Server) -> Finding:
    result = server.bash(f"{_fill('ä', OUTPUT_LIMIT)}; {_fill('x', OUTPUT_LIMIT)} >&2")
    out, _, err = result.output.partition("\n[stderr]\n")
    return expect(
        result.success and out == "ä" * OUTPUT_LIMIT and err == "x" * OUTPUT_LIMIT,
        f"of {OUTPUT_LIMIT:,} two-byte characters and as many letters on standard error came "
        f"{out.count('ä'):,} and {err.count('x'):,}, and {len(result.output):,} characters in all",
    )


@check(
    "bash.output-limit",
    f"Of a longer output the first {OUTPUT_LIMIT:,} characters of each stream come, each with a line that says so.",
    why="Output without a limit fills the memory of server and agent; output cut in silence is taken for the whole.",
    todo=f"Cut each stream after {OUTPUT_LIMIT:,} characters and add a line behind each that was cut.",
)
def output_limit(server: Server) -> Finding:
    result = server.bash(f"{_fill('x', OUTPUT_LIMIT + 1)}; {_fill('y', OUTPUT_LIMIT + 1)} >&2")
    out, _, err = result.output.partition("\n[stderr]\n")
    seen = []
    for text, letter in ((out, "x"), (err, "y")):
        notice = text.lstrip(letter)
        seen.append((len(text) - len(notice), notice.strip()))
    return expect(
        result.success and all(kept == OUTPUT_LIMIT and notice for kept, notice in seen),
        f"of {OUTPUT_LIMIT + 1:,} characters of standard output {seen[0][0]:,} came, with {seen[0][1]!r:.80}; "
        f"of as many of standard error {seen[1][0]:,}, with {seen[1][1]!r:.80}",
    )


def _fill(letter: str, count: int) -> str:
    """A command that prints ``letter`` so many times, with what every shell has."""
    return f"printf '%0{count}d' 0 | sed 's/0/{letter}/g'"


@check(
    "bash.output-bytes",
    "Output that is no UTF-8 does not break the answer: it is text, with the rest of the output in it.",
    why="One `cat` of a binary file would otherwise end the call with an error, or the client that reads it.",
    todo='Decode output with `errors="replace"`.',
)
def output_bytes(server: Server) -> Finding:
    # Bytes that never occur, the beginning of a character without its end, half a surrogate pair, and a zero byte.
    wild = r"printf 'begin \377\376 \342\202 \355\240\200 \000 end'"
    result = server.bash(f"{wild}; {wild} >&2")
    out, _, err = result.output.partition("\n[stderr]\n")
    kept = all(text.startswith("begin") and text.strip().endswith("end") for text in (out, err))
    try:
        result.output.encode()
        text = True
    except UnicodeEncodeError:
        text = False
    return expect(
        result.success and kept and text, f"{result}{'' if text else '; it holds half characters, which are no text'}"
    )


@check(
    "bash.exit-code",
    "A command that fails is `success: false` with its own exit code, one that ends well is not.",
    why="A swallowed exit code turns a failing test suite into a reward.",
    todo="Look for a pipe or a wrapper in the server that ends with an exit code of its own.",
)
def exit_code(server: Server) -> Finding:
    seen = {code: server.bash(f"exit {code}") for code in (0, 1, 7, 255)}
    seen[127] = server.bash("no-such-command-anywhere")
    seen[137] = server.bash("sh -c 'kill -9 $$'; exit $?")  # in its own name space the shell itself may be spared
    wrong = [
        f"exit {code}: {result}"
        for code, result in seen.items()
        if result.success is not (code == 0)
        or (code == 137 and result.exit_code not in (137, -9))
        or (code not in (0, 137) and (result.exit_code != code or f"Exit code: {code}" not in result.error))
    ]
    return expect(not wrong, "; ".join(wrong) or "0, 1, 7, 255, 127 (missing command) and 137 (killed) as they are")


@check(
    "bash.stdin",
    "Standard input is empty: a command that reads it ends at once.",
    why="A command that asks a question would otherwise hold its slot until the time-out.",
    todo="Start commands with `/dev/null` as their standard input.",
)
def stdin(server: Server) -> Finding:
    result = Result(success=False)
    # A loaded node gets a second, longer look before it is a failure.
    for seconds in (1.0, 8.0):
        result = server.bash("cat; echo ended", timeout_s=seconds)
        if result.success:
            break
    return expect(result.success and result.output.strip() == "ended", result)


_LONG_S = 9
"""How long a command sleeps whose end nobody must wait for: a loaded node answers sooner, and the client, which gives
up when ten seconds have passed since the time-out, waits longer."""


@check(
    "bash.timeout",
    "A command that exceeds its `timeout` is ended, says so, and its slot works again.",
    why="One endless command would otherwise take a slot for good.",
    todo="Look at how the server waits for a command, and at what it does when the time is over.",
    waits_s=0.3,
)
def timeout(server: Server) -> Finding:
    start = time.monotonic()
    result = server.bash(f"sleep {_LONG_S}; echo late", timeout_s=0.3)
    seconds = time.monotonic() - start
    after = server.bash("echo usable")
    return expect(
        not result.success
        and result.metadata.get("timeout") is True
        and result.exit_code == -1
        and "timed out" in result.error
        and seconds < _LONG_S
        and after.output.strip() == "usable",
        f"{result}, metadata {result.metadata} after {seconds:.1f} s (timeout 0.3 s); afterwards: {after}",
    )


_LOOKED_S = 0.4
"""How long children are given to write once more."""


@dataclass(frozen=True)
class _Children:
    """Children of a command that go on writing a file each, and what can be seen of them afterwards."""

    word: str

    @property
    def start(self) -> str:
        """Starts one of each kind. They end by themselves after ten seconds, or where they are told to."""
        go_on = f"i=0; while test ! -e {self.word}.stop && test $i -lt 200; do "
        go_on += f"echo >> {self.word}.$0; i=$((i+1)); sleep 0.05; done"
        return "\n".join(
            [
                f"loop='{go_on}'",
                "exec 3>&1 4>&2 >/dev/null 2>&1",
                'sh -c "$loop" child &',
                '(trap "" TERM HUP INT; exec sh -c "$loop" deaf-to-SIGTERM) &',
                '( (sh -c "$loop" orphan &) & )',
                'set -m; sh -c "$loop" other-group & set +m',
                "if command -v setsid; then (setsid sh -c \"trap '' TERM HUP; $loop\" daemon &) fi",
                "exec 1>&3 2>&4 3>&- 4>&-",
            ]
        )

    @property
    def wait(self) -> str:
        """Waits until each of them has written, and says so."""
        kinds = " && ".join(
            f"test -s {self.word}.{kind}" for kind in ("child", "deaf-to-SIGTERM", "orphan", "other-group")
        )
        daemon = f"{{ test -s {self.word}.daemon || ! command -v setsid; }}"
        return f"while ! {{ {kinds} && {daemon}; }} > /dev/null; do sleep 0.02; done; : > {self.word}.started"

    @property
    def go_on(self) -> str:
        """Writes as the children do, for five seconds; what comes afterwards leaves a file, too."""
        started = f"test -e {self.word}.started"
        loop = f"while {started} && test $i -lt 100; do echo >> {self.word}.shell; i=$((i+1)); sleep 0.05; done"
        return f"i=0; {loop}; {started} && : > {self.word}.late"

    def look(self, server: Server) -> tuple[set[str], set[str]]:
        """Which had begun, and which go on; afterwards nothing is left of them."""
        sizes = f"wc -c {self.word}.*"
        result = server.bash(f"{sizes}; echo then; sleep {_LOOKED_S}; {sizes}; : > {self.word}.stop")
        before, _, after = result.output.partition("then\n")
        first, second = (self._sizes(text) for text in (before, after))
        alive = {kind for kind in first if second.get(kind, 0) > first[kind]}
        server.bash(f"{'sleep 0.3; ' if alive else ''}rm -f {self.word}.*")
        return set(first), alive

    def _sizes(self, text: str) -> dict[str, int]:
        rows = [line.split() for line in text.splitlines()]
        return {
            row[1].removeprefix(f"{self.word}."): int(row[0])
            for row in rows
            if len(row) == 2 and row[0].isdigit() and row[1].startswith(self.word)
        }


@check(
    "bash.timeout-tree",
    "A time-out ends all that the command started: in other process groups and sessions, orphaned, or deaf to SIGTERM.",
    why="What outlives its time-out takes the node's processors and changes the workspace under the next command.",
    todo="Run commands in a PID name space or under a subreaper, and end the whole tree with SIGKILL; a process group "
    "is not enough.",
    waits_s=0.5 + _LOOKED_S,
)
def timeout_tree(server: Server) -> Finding:
    waited_s = 0.0
    # A loaded node that has not started them all by then gets a second, longer time.
    for seconds in (0.5, 4.0):
        children = _Children(nonce())
        result = server.bash(
            f"{children.start}\ntrap '' TERM\n{children.wait}\n{children.go_on}",
            timeout_s=seconds,
        )
        began, alive = children.look(server)
        waited_s += seconds + _LOOKED_S
        if "started" in began or alive:
            return expect(
                not alive and "late" not in began,
                f"{result}; still running afterwards: {', '.join(sorted(alive)) or 'none'} of {_kinds(began)}",
                waited_s=waited_s,
            )
    raise NotMeasured(f"nothing is there of what the command wrote within 4 s: {result}")


@check(
    "bash.background",
    "What a command leaves in the background ends with its call; where `/health` declares "
    '`background_children: "kept"`, it lives on instead.',
    why="What outlives its call takes the node's processors and changes the workspace under the next command.",
    todo="Run commands in a PID name space or under a subreaper, and end what is left when the command has ended; a "
    "server that keeps it on purpose has to declare it.",
    waits_s=_LOOKED_S,
)
def background(server: Server) -> Finding:
    kept = server.client.health().get("background_children") == "kept"
    children = _Children(nonce())
    result = server.bash(f"{children.start}\n{children.wait}")
    began, alive = children.look(server)
    if "started" not in began:
        raise NotMeasured(f"nothing is there of what the command wrote: {result}")
    return expect(
        result.success and bool(alive) is kept,
        f"{result}; {'declared as kept; ' if kept else ''}"
        f"still running afterwards: {', '.join(sorted(alive)) or 'none'} of {_kinds(began)}",
    )


def _kinds(began: set[str]) -> str:
    return ", ".join(sorted(began - {"started", "late"})) or "none"


@check(
    "bash.background-output",
    "A call ends with its command, though a child in the background still holds the output open.",
    why="An agent that starts a service with `&` would wait for it until the time-out.",
    todo="Wait for the command and not for the end of its output; end or leave what still holds the pipe.",
)
def background_output(server: Server) -> Finding:
    start = time.monotonic()
    result = server.bash(f"sleep {_LONG_S} & echo now")
    seconds = time.monotonic() - start
    return expect(
        result.success and result.output.strip() == "now" and seconds < _LONG_S,
        f"{result} after {seconds:.2f} s; the child sleeps for {_LONG_S} s",
    )


@check(
    "bash.unicode",
    "Text beyond ASCII goes in and comes out unchanged.",
    why="A container without a UTF-8 locale breaks names, diffs and test output.",
    todo="Set `LANG=C.UTF-8` in the image.",
)
def unicode(server: Server) -> Finding:
    text = "Grüße, Καλημέρα, 日本語, 🧪, a\u0301"
    result = server.bash(f"printf '%s' '{text}'")
    return expect(result.success and result.output == text, result)


@check(
    "bash.quoting",
    "A command reaches the shell as it was sent: quotes, dollars, backslashes and newlines.",
    why="A wrapper that quotes wrongly changes commands in silence.",
    todo="Pass the command as one argument of `bash -c`, without a second shell.",
)
def quoting(server: Server) -> Finding:
    result = server.bash("x='a \"b\" $c'\nprintf '%s|' \"$x\" '\\n' \"$(echo $((6*7)))\" `echo tick` <<'E'\nignored\nE")
    return expect(result.success and result.output == 'a "b" $c|\\n|42|tick|', result)


@check(
    "bash.long-command",
    f"A command of {LONG_COMMAND_BYTES // 1000} kB runs as it was sent.",
    why="Agents write whole files with one command.",
    todo="Look for a limit in the server, and for a second quoting that makes the command longer than an argument may "
    "be (128 KiB); hand long commands over in a file.",
)
def long_command(server: Server) -> Finding:
    word = nonce()
    head, tail = "wc -c <<'E'\n", f"\nE\necho {word}"
    # Quotes and dollars in it, which a second quoting would multiply.
    text = ('it\'s "$5" ' * LONG_COMMAND_BYTES)[: LONG_COMMAND_BYTES - len(head) - len(tail)]
    result = server.bash(head + text + tail)
    return expect(
        result.success and result.output.split() == [str(len(text) + 1), word],
        f"{result}; {len(text) + 1} and {word} expected",
    )


@check(
    "bash.workdir",
    "A command starts in its slot's workspace, can write there, and finds it as the last command left it.",
    why="Agents work with relative paths over many calls.",
    todo="Look at the working directory of the server's commands and at the mount of the workspace.",
)
def workdir(server: Server) -> Finding:
    word = nonce()
    written = server.bash(f"mkdir {word} && echo {word} > {word}/{word}")
    seen = server.bash(f"cat {word}/{word}; rm -rf {word}")
    away = server.bash("cd / && pwd && true")
    back = server.bash("pwd")
    return expect(
        written.success and seen.output.strip() == word and away.output.strip() == "/" and back.output.strip() != "/",
        f"wrote: {written}; next call read: {seen}; after `cd /` the next call is in {back.output!r}",
    )


@check(
    "bash.slots-own-files",
    "What a command writes in the workspace of one slot is not in the workspace of another.",
    why="Slots serve different agents; shared workspaces mix their work.",
    todo="Look at how the server maps slots to directories.",
)
def slots_own_files(server: Server) -> Finding:
    name = nonce()
    server.slot(1)
    written = server.bash(f"echo mine > {name}")
    seen = server.bash("ls -A", slot=1)
    server.bash(f"rm -f {name}")
    return expect(
        written.success and seen.success and name not in seen.output.split(),
        f"wrote: {written}; the other slot: {seen}",
    )


@check(
    "bash.tmp-kept",
    "What a command leaves in `/tmp` is there for the slot's next command.",
    why="Agents and build tools put there what a later call uses, and find it on every other machine.",
    todo="Give each slot a `/tmp` that lives as long as what is in its workspace, not as long as a call.",
    advisory=dict.fromkeys(
        DRIVERS, "the protocol does not say that `/tmp` stays, and servers make it new for each call"
    ),
)
def tmp_kept(server: Server) -> Finding:
    name = nonce()
    left = server.bash(f"echo {name} > /tmp/{name}")
    if not left.success:
        raise NotApplicable(f"a command can't write to /tmp: {left}")
    seen = server.bash(f"cat /tmp/{name} && rm -f /tmp/{name}")
    return expect(seen.output.strip() == name, f"a file that the command before left there: {seen}")


SPAN = "read a b < /proc/uptime; sleep {seconds}; read c d < /proc/uptime; echo $a $c"
"""Prints when the command began and ended, by the node's one clock, to 10 ms."""


def span(result: Result) -> tuple[float, float]:
    """Begin and end that a :data:`SPAN` command printed; (inf, -inf), which overlaps nothing, where it failed."""
    words = result.output.split()
    try:
        return float(words[0]), float(words[1])
    except (IndexError, ValueError):
        return float("inf"), float("-inf")


def all_at_once(server: Server, run: Callable[[str], Iterable[Result]]) -> Finding:
    """Whether ``run``, which is given a command and runs it once in each slot, runs it in all of them at once."""
    saw, waited_s = "", 0.0
    # Intervals taken inside the commands, not a wall clock outside: a loaded node can only make the first look fail.
    for seconds in (0.3, 3.0):
        spans = [span(result) for result in run(SPAN.format(seconds=seconds))]
        saw = f"{server.slots} commands of {seconds} s, begun and ended at (s): {_told(spans)}"
        waited_s += seconds
        if max(begin for begin, _ in spans) < min(end for _, end in spans):
            return expect(True, saw, waited_s=waited_s)
    return expect(False, saw, waited_s=waited_s)


def one_after_another(results: Iterable[Result], sent: str) -> Finding:
    """Whether commands of one slot that were ``sent`` together ran one after another."""
    spans = sorted(span(result) for result in results)
    apart = all(begin < end for begin, end in spans) and all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    return expect(apart, f"{len(spans)} commands {sent} to one slot, begun and ended at (s): {_told(spans)}")


def _told(spans: Iterable[tuple[float, float]]) -> str:
    return ", ".join(f"{begin:.2f}-{end:.2f}" for begin, end in spans)


@check(
    "bash.parallel",
    "Commands of different slots run at the same time, all slots at once.",
    why="A server that runs them one after another makes N slots as slow as one.",
    todo="Look for a lock over all slots, or a thread pool smaller than the number of slots.",
    waits_s=0.3,
)
def parallel(server: Server) -> Finding:
    server.slot(1)
    with ThreadPoolExecutor(server.slots) as callers:
        return all_at_once(
            server, lambda command: callers.map(lambda index: server.bash(command, slot=index), range(server.slots))
        )


@check(
    "bash.serial",
    "Commands of one slot run one after another, however they are sent.",
    why="Two tools at once in one workspace corrupt each other's work.",
    todo="Look at the server's lock per slot.",
    waits_s=0.6,
)
def serial(server: Server) -> Finding:
    command = SPAN.format(seconds=0.2)
    with ThreadPoolExecutor(3) as callers:
        return one_after_another(callers.map(lambda _: server.bash(command), range(3)), "sent at once")


LEAK_CALLS = 200

LEAK_MARGIN = 5
"""How many processes or descriptors more are no leak: of connections that were just closed. Workers and pools that are
started late may be more, once: then as many calls are made again."""


@check(
    "bash.leaks",
    f"{LEAK_CALLS} commands in a row leave no process and no file descriptor behind, as the node counts them.",
    why="A server that leaks with every call fails after a day, when it can open and start nothing any more.",
    todo="Look at what the server holds (`ls -l /proc/<pid>/fd`, `ps --forest`): pipes that it does not close, "
    "children that it does not collect.",
)
def leaks(server: Server) -> Finding:
    slots = [str(slot.get("slot_id")) for slot in server.client.slots()][:8]
    calls = [slots[number % len(slots)] for number in range(LEAK_CALLS)]
    before, saw = _census(server), ""
    for _ in range(2):
        with ThreadPoolExecutor(len(slots)) as callers:
            results = list(callers.map(lambda slot: server.client.bash(slot, "true"), calls))
        failed = [result for result in results if not result.success]
        after = _census(server)
        processes = after.processes.total() - before.processes.total()
        descriptors = after.descriptors - before.descriptors
        more = ", ".join(f"{count} {name}" for name, count in (after.processes - before.processes).most_common(3))
        saw += (
            f"{len(failed)} of {LEAK_CALLS} calls failed; processes {processes:+d}{f' ({more})' if more else ''}, "
            f"descriptors {descriptors:+d}, of {before.processes.total()} and {before.descriptors}. "
        )
        kept = processes <= LEAK_MARGIN and descriptors <= LEAK_MARGIN
        if failed or kept:
            return expect(not failed, saw.strip())
        before = after
    return expect(False, saw.strip())


@dataclass(frozen=True)
class _Census:
    """The allocation's processes by name, and how many descriptors they hold open together."""

    processes: Counter[str]
    descriptors: int


def _census(server: Server) -> _Census:
    allocation = server.placed.allocation.id
    # The task's processes are those that Nomad gave its variable or control group, and all below them: a container
    # has neither.
    script = (
        "cd /proc\n"
        f"grep -ls 'NOMAD_ALLOC_ID={allocation}' [0-9]*/environ; grep -ls '{allocation}' [0-9]*/cgroup\n"
        # Where a directory can't be read, or is empty, the pattern stays as it is.
        'for p in [0-9]*; do set -- "$p"/fd/*; if [ -h "$1" ]; then echo "$p/fds:$#"; '
        'elif [ -d "$p" ] && [ ! -r "$p/fd" ]; then echo "$p/hidden:"; fi; done\n'
        "grep -s -e ^PPid: -e ^Name: -e ^State: [0-9]*/status; :"
    )
    try:
        answer = server.placed.node.run(script)
    except SifproofError as error:
        raise NotMeasured(f"the node's processes could not be counted: {error}") from None
    names: dict[str, str] = {}
    parents: dict[str, str] = {}
    descriptors: dict[str, int] = {}
    hidden: set[str] = set()
    ours: set[str] = set()
    for line in answer.splitlines():
        pid, _, rest = line.partition("/")
        what, _, value = rest.partition(":")
        if what in ("environ", "cgroup"):
            ours.add(pid)
        elif what == "fds":
            descriptors[pid] = int(value)
        elif what == "hidden":
            hidden.add(pid)
        elif value.startswith("Name:"):
            names[pid] = value.removeprefix("Name:").strip()
        elif value.startswith("PPid:"):
            parents[pid] = value.removeprefix("PPid:").strip()
        elif value.startswith("State:") and value.split()[1] == "Z":
            hidden.discard(pid)  # it has none
    while below := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= below
    if not ours:
        raise NotMeasured("the user of the node's Nomad client may not see the processes of the task")
    # A set-uid program that starts the container hides its own from everyone, not those of what it starts.
    if unseen := (hidden & ours & parents.keys()) - set(parents.values()):
        told = ", ".join(sorted({names.get(pid, "?") for pid in unseen}))
        raise NotMeasured(f"the user of the node's Nomad client may not see the file descriptors of {told}")
    return _Census(
        Counter(names.get(pid, "?") for pid in ours if pid in parents), sum(descriptors.get(pid, 0) for pid in ours)
    )
