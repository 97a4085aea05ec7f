"""The ``bash`` tool gives back what the command did."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from sifproof.checks.registry import Finding, check, expect
from sifproof.checks.server import Server, nonce
from sifproof.sandbox.client import Result


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
    "bash.exit-code",
    "A command that fails is `success: false` with its own exit code, one that ends well is not.",
    why="A swallowed exit code turns a failing test suite into a reward.",
    todo="Look for a pipe or a wrapper in the server that ends with an exit code of its own.",
)
def exit_code(server: Server) -> Finding:
    seen = {code: server.bash(f"exit {code}") for code in (0, 1, 7, 255)}
    seen[127] = server.bash("no-such-command-anywhere")
    seen[137] = server.bash("kill -9 $$")
    wrong = [
        f"exit {code}: {result}"
        for code, result in seen.items()
        if result.success is not (code == 0)
        or (code == 137 and result.exit_code not in (137, -9))
        or (code not in (0, 137) and (result.exit_code != code or f"Exit code: {code}" not in result.error))
    ]
    return expect(not wrong, "; ".join(wrong) or "0, 1, 7, 255, 127 (missing command) and 137 (killed) as they are")


@check(
    "bash.timeout",
    "A command that exceeds its `timeout` is ended with all it started, says so, and its slot works again.",
    why="One endless command would otherwise take a slot for good.",
    todo="Look at how the server ends a command: the whole process group has to go.",
)
def timeout(server: Server) -> Finding:
    alive, start = f"alive-{nonce()}", time.monotonic()
    # What is left of it would go on writing.
    result = server.bash(f"(while :; do date >> {alive}; sleep 0.05; done) & sleep 60", timeout_s=0.5)
    seconds = time.monotonic() - start
    size = f"$(cat {alive} 2>/dev/null | wc -c)"
    after = server.bash(f"echo usable; a={size}; sleep 0.4; test $a = {size} || echo a child goes on")
    return expect(
        not result.success
        and result.metadata.get("timeout") is True
        and result.exit_code == -1
        and "timed out" in result.error
        and seconds < 10
        and after.output.strip() == "usable",
        f"{result}, metadata {result.metadata} after {seconds:.1f} s (timeout 0.5 s); afterwards: {after}",
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
    "bash.workdir",
    "A command starts in its slot's workspace, can write there, and finds it as the last command left it.",
    why="Agents work with relative paths over many calls.",
    todo="Look at the working directory of the server's commands and at the mount of the workspace.",
)
def workdir(server: Server) -> Finding:
    word = nonce()
    written = server.bash(f"mkdir -p d && echo {word} > d/{word}")
    seen = server.bash(f"cat d/{word}; rm -rf d")
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


_SPAN = "read a b < /proc/uptime; sleep {seconds}; read c d < /proc/uptime; echo $a $c"
"""Prints when the command began and ended, by the node's one clock, to 10 ms."""


def _span(result: Result) -> tuple[float, float]:
    """Begin and end that a :data:`_SPAN` command printed; (inf, -inf), which overlaps nothing, where it failed."""
    words = result.output.split()
    try:
        return float(words[0]), float(words[1])
    except (IndexError, ValueError):
        return float("inf"), float("-inf")


@check(
    "bash.parallel",
    "Commands of different slots run at the same time, all slots at once.",
    why="A server that runs them one after another makes N slots as slow as one.",
    todo="Look for a lock over all slots, or a thread pool smaller than the number of slots.",
)
def parallel(server: Server) -> Finding:
    server.slot(1)
    saw = ""
    # Intervals taken inside the commands, not a wall clock outside: a loaded node can only make the first look fail.
    for seconds in (0.3, 3.0):
        command = _SPAN.format(seconds=seconds)
        with ThreadPoolExecutor(server.slots) as callers:
            results = list(callers.map(lambda index: server.bash(command, slot=index), range(server.slots)))  # noqa: B023
        spans = [_span(result) for result in results]
        together = max(begin for begin, _ in spans) < min(end for _, end in spans)
        saw = f"{server.slots} commands of {seconds} s, begun and ended at (s): " + ", ".join(
            f"{begin:.2f}-{end:.2f}" for begin, end in spans
        )
        if together:
            return expect(True, saw)
    return expect(False, saw)


@check(
    "bash.serial",
    "Commands of one slot run one after another, however they are sent.",
    why="Two tools at once in one workspace corrupt each other's work.",
    todo="Look at the server's lock per slot.",
)
def serial(server: Server) -> Finding:
    command = _SPAN.format(seconds=0.2)
    with ThreadPoolExecutor(3) as callers:
        results = list(callers.map(lambda _: server.bash(command), range(3)))
    spans = sorted(_span(result) for result in results)
    apart = all(begin < end for begin, end in spans) and all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    return expect(
        apart,
        "3 commands sent at once to one slot, begun and ended at (s): "
        + ", ".join(f"{begin:.2f}-{end:.2f}" for begin, end in spans),
    )
