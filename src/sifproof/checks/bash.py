"""The ``bash`` tool gives back what the command did, and leaves nothing of it behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

from sifproof.checks.engine.census import Census, count
from sifproof.checks.engine.children import Children
from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.config import DRIVERS
from sifproof.errors import Fault, SifproofError
from sifproof.sandbox.client import Result

OUTPUT_LIMIT = 50_000
"""Characters of each stream that an answer holds."""

LONG_COMMAND_BYTES = 100_000


@check(
    "bash.output",
    "What a command writes to standard output is `output`, and the call succeeds; where the answer has a field "
    "`stdout`, it stands there with the white space at both ends and every line's end.",
    why="Agents act on what they read.",
    todo="Run the same command by hand in the container.",
)
def output(server: Server) -> Finding:
    word = nonce()
    result = server.bash(
        f"echo '    indented'; echo {word}; printf 'a  b\\tc\\r\\nof Windows\\n'; printf 'no newline'; echo; echo"
    )
    written = f"    indented\n{word}\na  b\tc\r\nof Windows\nno newline\n\n"
    whole = result.stdout is None or (result.stdout, result.stderr or "") == (written, "")
    # What reads as text takes the ends of lines of Windows for those of Unix.
    alike = result.output.replace("\r\n", "\n").strip() == written.replace("\r\n", "\n").strip()
    return expect(
        result.success and alike and whole,
        result if whole else f"stdout={result.stdout!r}, stderr={result.stderr!r}",
    )


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
    result = server.bash(f"{fill('ä', OUTPUT_LIMIT)}; {fill('x', OUTPUT_LIMIT)} >&2")
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
    # Ends that differ, so that the last characters can't pass for the first.
    written = {letter: f"begin{letter * OUTPUT_LIMIT}end" for letter in "xy"}
    out, err = (f"printf begin; {fill(letter, OUTPUT_LIMIT)}; printf end" for letter in "xy")
    result = server.bash(f"{out}; {{ {err}; }} >&2")
    streams = zip("xy", result.output.split("\n[stderr]\n", 1), strict=False)
    seen, kept = [], 0
    for letter, text in streams:
        pairs = enumerate(zip(text, written[letter], strict=False))
        same = next((index for index, (came, wrote) in pairs if came != wrote), min(len(text), len(written[letter])))
        # The line that says so may begin as what was left out does, and is never just that.
        notice = text[OUTPUT_LIMIT:]
        kept += same >= OUTPUT_LIMIT and bool(notice.strip()) and notice != written[letter][OUTPUT_LIMIT:]
        seen.append(f"the first {same:,}, then {text[same:].strip()!r:.80}")
    return expect(
        result.success and kept == 2,
        f"of {len(written['x']):,} characters of standard output, and of as many of standard error: {'; '.join(seen)}",
    )


def fill(letter: str, count: int) -> str:
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
    seen = {code: server.bash(f"exit {code}") for code in (0, 1, 7, 124, 130, 255)}
    seen[127] = server.bash("no-such-command-anywhere")
    seen[137] = server.bash("sh -c 'kill -9 $$'; exit $?")  # in its own name space the shell itself may be spared
    wrong = [
        f"exit {code}: {result}"
        for code, result in seen.items()
        if result.success is not (code == 0)
        or (code == 137 and result.exit_code not in (137, -9))
        or (code not in (0, 137) and (result.exit_code != code or f"Exit code: {code}" not in result.error))
        or result.metadata.get("timeout")
    ]
    return expect(
        not wrong, "; ".join(wrong) or "0, 1, 7, 124, 130, 255, 127 (missing command) and 137 (killed) as they are"
    )


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
    "A command that exceeds its `timeout` is ended, says so with what it wrote until then, and its slot works again.",
    why="One endless command would otherwise take a slot for good; what it wrote tells where it hung.",
    todo="Look at how the server waits for a command, and at what it does when the time is over.",
    waits_s=0.3,
)
def timeout(server: Server) -> Finding:
    saw, waited_s = "", 0.0
    # A loaded node, where the command has not written anything by then, gets a second, longer look.
    for limit_s in (0.3, 3.0):
        name = nonce()
        start = time.monotonic()
        result = server.bash(
            f"echo before; echo beside >&2; : > {name}; sleep {_LONG_S + limit_s}; echo late", timeout_s=limit_s
        )
        seconds = time.monotonic() - start
        wrote, after = server.remove(name), server.bash("echo usable")
        waited_s += limit_s
        kept = "before" in result.output and "beside" in result.output + result.error
        saw = (
            f"{result}, metadata {result.metadata} after {seconds:.1f} s (timeout {limit_s:g} s); "
            f"{'all of it' if kept else 'not all'} that it wrote is there; afterwards: {after}"
        )
        ended = (
            not result.success
            and result.metadata.get("timeout") is True
            and result.exit_code == -1
            and "timed out" in result.error
            and "late" not in result.output
            and seconds < _LONG_S + limit_s
            and after.output.strip() == "usable"
        )
        if wrote or not ended:
            return expect(ended and kept, saw, waited_s=waited_s)
    raise NotMeasured(f"nothing is there of what the command wrote within {limit_s:g} s: {saw}")


@check(
    "bash.timeout-tree",
    "A time-out ends all that the command started: in other process groups and sessions, orphaned, or deaf to SIGTERM.",
    why="What outlives its time-out takes the node's processors and changes the workspace under the next command.",
    todo="Run commands in a PID name space or under a subreaper, and end the whole tree with SIGKILL; a process group "
    "is not enough.",
    waits_s=0.5,
)
def timeout_tree(server: Server) -> Finding:
    waited_s = 0.0
    # A loaded node that has not started them all by then gets a second, longer time.
    for seconds in (0.5, 4.0):
        children = Children(nonce())
        result = server.bash(f"{children.start}\ntrap '' TERM\n{children.wait}\n{children.go_on}", timeout_s=seconds)
        began, alive = children.look(server)
        waited_s += seconds
        if "shell" in began or alive:
            return expect(
                not alive,
                f"{result}; still there afterwards: {', '.join(sorted(alive)) or 'none'} of {_told_kinds(began)}",
                waited_s=waited_s,
            )
    raise NotMeasured(f"nothing is there of what the command wrote within 4 s: {result}")


_SHORT_S = tuple(milliseconds / 1000 for milliseconds in range(1, 17))
_TURNS_IN_TIME = 40
"""A command that has gone round so often, with a pause of 0.05 s each time, was not ended within two seconds."""


@check(
    "bash.short-timeout",
    "A time-out of a few milliseconds ends what it started, at whatever moment of its start, and its slot works again.",
    why="What is ended while its sandbox is still being made may have no parent yet to end with, and runs on unseen.",
    todo="When a command is ended, look for what has been started of it by then, and wait until that is gone.",
    waits_s=0.3,
)
def short_timeout(server: Server) -> Finding:
    word = nonce()
    wrong = []
    for number, seconds in enumerate(_SHORT_S):
        turns = f"n=0; while test $n -lt 200; do echo >> {word}.{number}; n=$((n+1)); sleep 0.05; done"
        cut = server.bash(turns, timeout_s=seconds)
        if cut.success or cut.metadata.get("timeout") is not True:
            wrong.append(f"after {seconds * 1000:g} ms: {cut}")
    look = f"for f in {word}.*; do test -e $f && wc -l $f; done"
    after = server.bash(f"{look}; echo later; sleep 0.3; {look}; rm -f {word}.*")
    first, _, later = after.output.strip().partition("later")
    if not after.success or first.split() != later.split():
        wrong.append(f"they go on: {first.split()}, and 0.3 s later {later.split()}; {after}")
    if long := [turns for turns in first.split()[::2] if int(turns) > _TURNS_IN_TIME]:
        wrong.append(f"went on for {', '.join(long)} turns of 0.05 s")
    return expect(not wrong, "; ".join(wrong) or f"{len(_SHORT_S)} time-outs of 1 to 16 ms")


@check(
    "bash.fresh",
    "Each command of `bash` starts anew: the variables, functions and options of the one before, and where it went, "
    "are forgotten.",
    why="A variable that stays behind changes what the next command does, and nobody sees why.",
    todo="Start a shell for each command, with an environment that is made for it.",
)
def fresh(server: Server) -> Finding:
    word = nonce()
    home = server.bash("pwd")
    made = server.bash(
        f"export sifproof_word={word}; sifproof_own={word}; sifproof_tell() {{ echo {word}; }}; "
        f"mkdir {word} && cd {word} && umask 000 && set -f"
    )
    after = server.bash(
        'echo "[$sifproof_word$sifproof_own]"; type sifproof_tell >/dev/null 2>&1 && echo function; '
        f"case $- in *f*) echo option;; esac; pwd; rmdir {word}"
    )
    return expect(
        made.success and after.success and after.output.strip().splitlines() == ["[]", home.output.strip()],
        f"before: {home}; {made}; after: {after}",
    )


@check(
    "bash.background",
    "What a command leaves in the background ends with its call; where `/health` declares "
    '`background_children: "kept"`, it lives on instead.',
    why="What outlives its call takes the node's processors and changes the workspace under the next command.",
    todo="Run commands in a PID name space or under a subreaper, and end what is left when the command has ended; a "
    "server that keeps it on purpose has to declare it.",
)
def background(server: Server) -> Finding:
    kept = server.client.health().get("background_children") == "kept"
    children = Children(nonce())
    result = server.bash(f"{children.start}\n{children.wait}")
    began, alive = children.look(server, kept=kept)
    if "shell" not in began:
        raise NotMeasured(f"nothing is there of what the command wrote: {result}")
    return expect(
        result.success and bool(alive) is kept,
        f"{result}; {'declared as kept; ' if kept else ''}"
        f"still there afterwards: {', '.join(sorted(alive)) or 'none'} of {_told_kinds(began)}",
    )


def _told_kinds(began: set[str]) -> str:
    return ", ".join(sorted(began)) or "none"


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


OPEN_FILES, FILE_BYTES = 256, 64 * 2**20
"""What a command may have open, and write to one file: far less than any build needs."""

ADDRESS_SPACE_BYTES = 4 * 2**30
"""What node, Java, Go and numpy reserve before they begin; it is no memory."""

_SURROUNDINGS = """\
echo "open $(ulimit -n)"; echo "size $(ulimit -f)"; echo "space $(ulimit -v)"
s=ä; echo "letters ${#s}"
for f in /proc/$$/fd/*; do
  to=$(readlink "$f"); echo "fd ${f##*/} $to"; inode=${to#socket:[}
  test "$inode" = "$to" || echo "tcp $to" $(grep -hsF " ${inode%]} " /proc/net/tcp /proc/net/tcp6)
done"""


Run = Callable[[str], Result]


def _surroundings(server: Server, run: Run | None = None) -> list[list[str]]:
    """What a command finds itself in, line by line; asked once for all checks, or anew where ``run`` runs it."""
    result = run(_SURROUNDINGS) if run else server.share("surroundings", lambda: server.bash(_SURROUNDINGS))
    lines = [line.split() for line in result.output.splitlines() if line.strip()]
    if not any(words[0] == "letters" for words in lines):
        raise NotMeasured(f"a command can't tell what it finds itself in: {result}")
    return lines


def _limits(server: Server, *wanted: tuple[str, int, int], run: Run | None = None) -> Finding:
    """Whether each limit, by its name in :data:`_SURROUNDINGS`, in a unit of so many bytes, is as much as wanted."""
    told = {words[0]: words[1] for words in _surroundings(server, run) if len(words) == 2}
    low = [
        f"{name}: {int(told[name]) * unit:,}, {least:,} expected"
        for name, unit, least in wanted
        if told.get(name, "").isdigit() and int(told[name]) * unit < least
    ]
    if not low:
        return expect(True, ", ".join(f"{name}: {told.get(name, 'not told')}" for name, _, _ in wanted))
    # Who starts the agent may have set them: the image is not to blame for what its node hands down.
    by_node = server.placement is not None and _limits_of_node(server, *wanted)
    return replace(
        expect(False, f"{'; '.join(low)}{'; the node sets it' if by_node else ''}"),
        fault=Fault.INFRASTRUCTURE if by_node else None,
    )


def _limits_of_node(server: Server, *wanted: tuple[str, int, int]) -> bool:
    """Whether what the node's Nomad client starts has a limit that is too low itself."""
    try:
        said = server.placed.node.run('echo "open $(ulimit -n)"; echo "size $(ulimit -f)"; echo "space $(ulimit -v)"')
    except SifproofError:
        return False
    told = dict(line.split() for line in said.splitlines() if len(line.split()) == 2)
    return any(told.get(name, "").isdigit() and int(told[name]) * unit < least for name, unit, least in wanted)


@check(
    "bash.limits",
    f"A command may have {OPEN_FILES} files open, and write one of {FILE_BYTES >> 20} MiB.",
    why="Builds, tests and downloads do both; what fails then blames the disk or the program.",
    todo="Look for `RLIMIT_NOFILE` and `RLIMIT_FSIZE` in the server, and at `ulimit -a` of who starts it.",
)
def limits(server: Server) -> Finding:
    return limits_of(server)


def limits_of(server: Server, run: Run | None = None) -> Finding:
    """Whether a command may have enough files open, and write a large one; one of `bash`, or one that ``run`` runs."""
    # POSIX counts files in blocks of 512 bytes, bash in those of 1024.
    return _limits(server, ("open", 1, OPEN_FILES), ("size", 1024, FILE_BYTES), run=run)


@check(
    "bash.address-space",
    f"A command may reserve {ADDRESS_SPACE_BYTES >> 30} GiB of address space.",
    why="node, Java, Go and numpy reserve more than they ever use, and do not start without it.",
    todo="Limit memory by a control group or `RLIMIT_DATA` instead of `RLIMIT_AS`.",
    advisory=dict.fromkeys(DRIVERS, "a server may keep commands from taking memory in this way, on purpose"),
)
def address_space(server: Server) -> Finding:
    return _limits(server, ("space", 1024, ADDRESS_SPACE_BYTES))


@check(
    "bash.descriptors",
    "A command inherits no connection of the server's, nor the socket that it listens on.",
    why="One that accepts on it answers in the server's place, to clients of every slot.",
    todo="Open sockets with `O_CLOEXEC`, and close what a command does not need before it starts.",
)
def descriptors(server: Server) -> Finding:
    return descriptors_of(server)


def descriptors_of(server: Server, run: Run | None = None) -> Finding:
    """Whether a command holds a TCP connection when it starts; one of `bash`, or one that ``run`` runs."""
    lines = _surroundings(server, run)
    held = [words for words in lines if words[0] == "fd" and len(words) == 3]
    if not held:
        raise NotApplicable("a command does not see its own descriptors in /proc")
    # The kernel's table: number, local and remote address, state.
    tcp = {words[1]: words[3:6] for words in lines if words[0] == "tcp" and len(words) > 5}
    leaked = [
        f"{number}: a TCP socket at {tcp[what][0]}{', which listens' if tcp[what][2] == '0A' else ''}"
        for _, number, what in held
        if what in tcp
    ]
    return expect(not leaked, "; ".join(leaked) or f"none of {len(held)} descriptors is a connection")


@check(
    "bash.localhost",
    "The name `localhost` is known to a command.",
    why="Tests start a server and ask it under that name.",
    todo="Give commands an `/etc/hosts` with `127.0.0.1 localhost`.",
    advisory=dict.fromkeys(DRIVERS, "the protocol does not promise it, and Apptainer takes the file from the image"),
)
def localhost(server: Server) -> Finding:
    by_name, by_address = (
        server.bash(f"(exec 3<>/dev/tcp/{host}/1) 2>&1 || :", timeout_s=20.0) for host in ("localhost", "127.0.0.1")
    )
    # Told by what bash does, which has no word for it that is not translated: a name that is found is connected to.
    reached = [not result.output.strip() or "connect" in result.output for result in (by_name, by_address)]
    if not reached[1]:
        raise NotApplicable(f"a command has no way to try a connection: {by_address}")
    return expect(reached[0], f"a connection to it: {by_name.output.strip() or 'made'}")


@check(
    "bash.locale",
    "Commands count characters, not bytes: their locale is one of UTF-8.",
    why="Programs refuse names and text beyond ASCII in a locale that does not know them.",
    todo="Set `LANG=C.UTF-8` in the image, and let the server pass it on.",
    advisory=dict.fromkeys(DRIVERS, "what locale commands run in is the server's to choose"),
)
def locale(server: Server) -> Finding:
    (letters,) = (words[1] for words in _surroundings(server) if words[0] == "letters")
    return expect(letters == "1", f"bash counts {letters} in the letter ä")


_START_UP = (".bash_profile", ".bashrc")


@check(
    "bash.start-up",
    "What one command writes into `.bash_profile` or `.bashrc` is not run by the next.",
    why="A repository's own dot files would otherwise run in every command, and change its output and its PATH.",
    todo="Start commands as `bash -c`, which is no login shell, and with something else than a socket as their input.",
    advisory=dict.fromkeys(DRIVERS, "a server may start login shells on purpose"),
)
def start_up(server: Server) -> Finding:
    word = nonce()
    made = server.bash(
        f'for f in {" ".join(_START_UP)}; do test -e ~/$f || {{ echo "echo {word}" > ~/$f && echo "made $f"; }}; done'
    )
    names = [name for name in _START_UP if f"made {name}" in made.output]
    try:
        if not names:
            raise NotApplicable(f"no such file can be made: {made}")
        seen = server.bash("echo command")
        return expect(seen.success and word not in seen.output, f"with {' and '.join(names)} in its home: {seen}")
    finally:
        if names:
            server.bash(f"cd && rm -f {' '.join(names)}")


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

LEAK_BYTES = 40_000
"""How much more memory for each call is no leak."""


@dataclass(frozen=True)
class _Round:
    """:data:`LEAK_CALLS` commands, and what there was before and after them."""

    failed: int
    before: Census
    after: Census

    @property
    def processes(self) -> int:
        return self.after.processes.total() - self.before.processes.total()

    @property
    def descriptors(self) -> int:
        return self.after.descriptors - self.before.descriptors

    @property
    def memory_bytes(self) -> int:
        return self.after.grown(self.before, "anonymous")

    @property
    def nothing_left(self) -> bool:
        return self.processes <= LEAK_MARGIN and self.descriptors <= LEAK_MARGIN

    @property
    def no_memory_kept(self) -> bool:
        return self.memory_bytes <= LEAK_CALLS * LEAK_BYTES

    def __str__(self) -> str:
        more = ", ".join(
            f"{count} {name}" for name, count in (self.after.processes - self.before.processes).most_common(3)
        )
        return (
            f"{self.failed} of {LEAK_CALLS} calls failed; processes {self.processes:+d}{f' ({more})' if more else ''}, "
            f"descriptors {self.descriptors:+d}, of {self.before.processes.total()} and {self.before.descriptors}; "
            f"memory {self.memory_bytes / LEAK_CALLS:+,.0f} bytes a call."
        )


def _rounds(server: Server) -> list[_Round]:
    """One round; two where the first left something behind."""
    slots = [str(slot.get("slot_id")) for slot in server.client.slots()][:8]
    calls = [slots[number % len(slots)] for number in range(LEAK_CALLS)]
    made: list[_Round] = []
    before = count(server)
    while len(made) < 2:
        with ThreadPoolExecutor(len(slots)) as callers:
            results = list(callers.map(lambda slot: server.client.bash(slot, "true"), calls))
        after = count(server)
        made.append(_Round(sum(not result.success for result in results), before, after))
        if made[-1].failed or (made[-1].nothing_left and made[-1].no_memory_kept):
            break
        before = after
    return made


@check(
    "bash.leaks",
    f"{LEAK_CALLS} commands in a row leave no process and no file descriptor behind, as the node counts them.",
    why="A server that leaks with every call fails after a day, when it can open and start nothing any more.",
    todo="Look at what the server holds (`ls -l /proc/<pid>/fd`, `ps --forest`): pipes that it does not close, "
    "children that it does not collect.",
    once=True,
)
def leaks(server: Server) -> Finding:
    rounds = server.share("rounds", lambda: _rounds(server))
    kept = not any(made.failed for made in rounds) and any(made.nothing_left for made in rounds)
    return expect(kept, " ".join(map(str, rounds)))


@check(
    "bash.leaks-memory",
    f"{LEAK_CALLS} commands in a row leave the server no larger than before, but for {LEAK_BYTES // 1000} kB each.",
    why="A server that keeps something of every call takes the node's memory in some days.",
    todo="Look for a history, a cache or a log in memory that nothing clears.",
    advisory=dict.fromkeys(DRIVERS, "a runtime that collects its garbage late may grow for a while at first"),
    once=True,
)
def leaks_memory(server: Server) -> Finding:
    rounds = server.share("rounds", lambda: _rounds(server))
    return expect(any(made.no_memory_kept for made in rounds), " ".join(map(str, rounds)))


OUTPUT_BYTES = 128 * 2**20
"""What a command prints to see whether the server keeps it: harmless, and far more than an answer holds. An
eighth of the job's memory where that is less: who keeps it has several copies of it."""


@check(
    "bash.output-memory",
    f"A command that prints up to {OUTPUT_BYTES >> 20} MiB never makes the server larger by as much.",
    why="One `cat` of a large file would otherwise end the server, and all slots with it, for lack of memory.",
    todo="Keep what an answer holds while reading a command's output, and throw the rest away as it comes.",
)
def output_memory(server: Server) -> Finding:
    size = server.at_most_of_memory(OUTPUT_BYTES, 8)
    before = count(server, forget_peaks=True)
    result = server.bash(f"head -c {size} /dev/zero | tr '\\0' x")
    grown = count(server).grown(before, "peak")
    if not result.success:
        return expect(False, result)
    return expect(
        grown < size // 2,
        f"of {size >> 20} MiB, at its largest it had {grown / 2**20:,.0f} MiB more than before: {result}",
    )
