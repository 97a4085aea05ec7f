"""``isolation.slot.*``: a slot sees and reaches nothing of another slot of its server.

Slot 0 keeps something, a file, a process, a variable, and slot 1 tries to get at it meanwhile, under a name that was
never used before. How slots are kept apart is the server's affair.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from time import monotonic

from sifproof.checks.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.server import Server, nonce
from sifproof.errors import Fault, SifproofError
from sifproof.sandbox.client import Result

_HOLD_S = 0.6
_LONG_HOLD_S = 5.0
"""Where the first hold was over before the other slot had looked: a busy node."""
_TAKEN_UP_WITHIN_S = 10.0
_LEAD_S = 0.1
_WAITS_S = _HOLD_S + _LEAD_S

_NOW = "{ read at rest < /proc/uptime; echo @$at; }"
"""Prints a time by the node's one clock, to 10 ms, on a line of its own."""

NO_NAMESPACES = (
    "the slots of a container in Docker's default profile can be kept apart by their users alone, not by namespaces; "
    "`nested_sandboxes: true` gives them namespaces"
)
_NEEDED = "for tool in cat grep head ls sleep tail wc; do command -v $tool >/dev/null || exit 127; done"
"""A check that lacks its tools in the image must not pass for it."""

GIVEN_BY = ("nested_sandboxes", "privileged")
"""Settings of a docker sandbox with which bubblewrap works inside."""


@dataclass
class _Seen:
    """What the two slots answered. Times are those that :data:`_NOW` printed."""

    held: Result
    tried: Result

    def __str__(self) -> str:
        return f"slot 0: {self.held}; slot 1: {self.tried}"


def _times(result: Result) -> list[float]:
    times = []
    for line in result.output.splitlines():
        if line.startswith("@"):
            try:
                times.append(float(line[1:]))
            except ValueError:
                continue
    return times


def _lines(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.strip() and not line.startswith("@")]


def _beside(server: Server, keep: str, attempt: str, *, after: str = ":") -> _Seen:
    """What slot 1 answers to ``attempt`` while slot 0 is between ``keep`` and ``after``, one command of its."""
    server.slot(1)
    for seconds in (_HOLD_S, _LONG_HOLD_S):
        hold = f"{_NOW}\n{keep}\nsleep {seconds}\n{_NOW}\n{after}"
        with ThreadPoolExecutor(1) as caller:
            holding = caller.submit(server.bash, hold)
            _await_taken_up(server, holding)
            tried = server.bash(f"{_NEEDED}\nsleep {_LEAD_S}\n{_NOW}\n{attempt}\n{_NOW}", slot=1)
            held = holding.result()
        kept, attempted = _times(held), _times(tried)
        if not held.success:  # it was ended, perhaps by the other
            return _Seen(held, tried)
        if len(attempted) < 2:
            raise NotMeasured(f"the attempt of slot 1 could not be made: {tried}")
        if len(kept) == 2 and kept[0] <= attempted[0] and attempted[1] <= kept[1]:
            return _Seen(held, tried)
    raise NotMeasured(f"two slots could not be had at work at the same time within {_LONG_HOLD_S:g} s: {held}; {tried}")


def _await_taken_up(server: Server, holding: Future[Result]) -> None:
    """Return when slot 0 executes, or has done so already."""
    end = monotonic() + _TAKEN_UP_WITHIN_S
    while not holding.done() and monotonic() < end:
        states = {entry.get("slot_id"): entry.get("state") for entry in server.client.slots()}
        if states.get(server.slot()) == "executing":
            return


def _unsaid(word: str) -> str:
    """A basic regular expression that matches ``word`` and not itself: who looks for it must not find himself."""
    return f"[{word[0]}]{word[1:]}"


def _ways_to_workspace(server: Server) -> list[str]:
    """Paths by which slot 0's workspace might be reached, as words of a shell; the last are patterns."""
    data = str(server.client.health().get("data_dir") or "/data")
    name = server.slot()
    told = [str(e.get("workspace_dir")) for e in server.client.slots() if e.get("slot_id") == name]
    paths = list(dict.fromkeys([*told, f"{data}/{name}", f"/data/{name}", f"/alloc/data/{name}", f"../{name}"]))
    ways = [shlex.quote(path) for path in paths]
    inside = [f"/proc/[0-9]*/root{shlex.quote(path)}" for path in [*paths, "/workspace"] if path.startswith("/")]
    return [*ways, "/proc/[0-9]*/cwd", *inside]


@check(
    "isolation.slot.files-read",
    "A file in one slot's workspace can't be seen or read from another slot: not by its path, not through "
    "`/proc/*/root` or `/proc/*/cwd`, not by a link and not through the file tools.",
    why="Slots serve different agents: one would read the other's work, and the tests it is judged by.",
    todo="Run each slot's commands in a mount namespace of their own, or as a user of their own.",
    waits_s=_WAITS_S,
)
def files_read(server: Server) -> Finding:
    name, secret, link = nonce(), nonce(), nonce()
    ways = _ways_to_workspace(server)
    attempt = f'for d in {" ".join(ways)}; do if cat "$d/{name}" || test -e "$d/{name}"; then echo "by $d"; fi; done'
    tools = []

    def by_tools() -> None:
        for way in ways:
            if "*" in way:
                continue
            path = f"{shlex.split(way)[0]}/{name}"
            server.bash(f"ln -sfn {shlex.quote(path)} {link}", slot=1)
            for asked in (path, link):
                answer = server.read(asked, slot=1)
                if answer.success or secret in str(answer):
                    tools.append(f"read_file {asked}")

    try:
        seen = _beside(server, f"echo {secret} > {name}", f"({attempt}) 2>/dev/null", after=f"cat {name}")
        by_tools()
    finally:
        server.bash(f"rm -f {name}")
        server.bash(f"rm -f {link}", slot=1)
    reached = [line for line in _lines(seen.tried) if line.startswith("by ") or secret in line]
    if secret not in _lines(seen.held):
        raise NotMeasured(f"slot 0 could not keep the file: {seen.held}")
    return expect(not reached and not tools, "; ".join([*reached, *tools]) or f"not to be had by {len(ways)} ways")


@check(
    "isolation.slot.files-written",
    "From one slot nothing can be written, changed or removed in another slot's workspace, by whatever path.",
    why="One agent would spoil another's work, or plant code that it runs.",
    todo="Run each slot's commands in a mount namespace of their own, or as a user of their own.",
    waits_s=_WAITS_S,
)
def files_written(server: Server) -> Finding:
    name, new, secret, link = nonce(), nonce(), nonce(), nonce()
    ways = _ways_to_workspace(server)
    attempt = f'for d in {" ".join(ways)}; do echo spoilt > "$d/{new}"; echo spoilt > "$d/{name}"; rm -f "$d/{name}"; '
    attempt += f"done 2>/dev/null; rm -f {name} {new}"
    folder = shlex.split(ways[0])[0]
    try:
        seen = _beside(server, f"echo {secret} > {name}", attempt, after=f"cat {name}; ls -A")
        server.bash(f"ln -sfn {shlex.quote(folder)} {link}", slot=1)
        for path in (f"{folder}/{new}", f"../{server.slot()}/{new}", f"{link}/{new}"):
            server.write(path, "spoilt", slot=1)
        there = server.bash(f"cat {name}; ls -A")
    finally:
        server.bash(f"rm -f {name} {new}")
        server.bash(f"rm -f {name} {new} {link}", slot=1)
    found = [*_lines(seen.held), *_lines(there)]
    problems = [
        *(["the file was changed or removed"] if found.count(secret) != 2 else []),
        *(["a file of the other slot's is there"] if new in found else []),
    ]
    return expect(seen.held.success and not problems, "; ".join(problems) or f"nothing was reached by {len(ways)} ways")


_SHARED = "/tmp /var/tmp /dev/shm /dev/mqueue /run /run/lock"  # noqa: S108
"""Directories that every program may write to, on most systems."""


def _left_in_tmp(server: Server, name: str, secret: str) -> tuple[list[str], _Seen]:
    """The directories that slot 0 can leave a file in, and what slot 1 saw, changed and removed of it there."""
    keep = f'for d in {_SHARED}; do if echo {secret} > "$d/{name}"; then echo "left $d"; fi; done 2>/dev/null'
    # Removed last, and its own too, where it could make one.
    attempt = (
        f'for d in {_SHARED}; do f="$d/{name}"; '
        'if test -e "$f"; then echo "name $d"; if cat "$f"; then echo "text $d"; fi; fi; '
        'echo spoilt > "$f"; rm -f "$f"; done 2>/dev/null'
    )
    after = (
        f'for d in {_SHARED}; do f="$d/{name}"; if test "$(cat "$f")" = {secret}; then echo "whole $d"; fi; '
        'rm -f "$f"; done 2>/dev/null'
    )
    seen = _beside(server, keep, attempt, after=after)
    if not seen.held.success:
        raise NotMeasured(f"slot 0 could not look after its files: {seen.held}")
    left = _of(seen.held, "left")
    if not left:
        raise NotApplicable(f"a command can write to none of {_SHARED}")
    return left, seen


def _of(result: Result, word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in _lines(result) if line.startswith(f"{word} ")]


@check(
    "isolation.slot.tmp",
    "What a slot leaves in `/tmp`, `/var/tmp`, `/dev/shm` and the like can't be read, changed or removed by another.",
    why="Compilers, test runners and agents put sources, sockets and keys there.",
    todo="Give each slot a `/tmp` of its own; without namespaces, a user of its own and a umask that shuts the others "
    "out.",
    waits_s=_WAITS_S,
)
def tmp(server: Server) -> Finding:
    name, secret = nonce(), nonce()
    left, seen = _left_in_tmp(server, name, secret)
    whole, read = _of(seen.held, "whole"), _of(seen.tried, "text")
    problems = [*(f"read in {d}" for d in read), *(f"changed or removed in {d}" for d in left if d not in whole)]
    return expect(not problems, "; ".join(problems) or f"left alone in {', '.join(left)}")


@check(
    "isolation.slot.tmp-own",
    "Each slot has a `/tmp` of its own: a name that one uses there is not there for another.",
    why="Two agents that run the same build script would meet at the same lock or socket, and the second fail.",
    todo="Run commands under bubblewrap, with a `/tmp` and a `/dev/shm` for each slot.",
    advisory={"docker": NO_NAMESPACES},
    given_by=GIVEN_BY,
    waits_s=_WAITS_S,
)
def tmp_own(server: Server) -> Finding:
    left, seen = _left_in_tmp(server, nonce(), nonce())
    names = _of(seen.tried, "name")
    return expect(not names, f"slot 1 sees it in {', '.join(names)}" if names else f"not there in {', '.join(left)}")


def _process(word: str) -> str:
    """A shell line that starts a process, known by ``word`` in its arguments and its environment."""
    return f"sifproof_mark={word} sh -c 'sleep 30; :' {word} & child=$!"


_ITS_END = 'if kill -0 $child; then echo alive; fi; kill $child; wait $child 2>/dev/null; echo "end $?"'


def _look_for_process(server: Server, file: str) -> _Seen:
    """What slot 1 finds in ``file`` of every process, while one of slot 0 has a word there that slot 0 finds itself."""
    word = nonce()
    look = f"grep -ls {_unsaid(word)} /proc/[0-9]*/{file}"
    # By what grep prints: it ends with 2 where one of the files can't be read, whatever it found.
    seen = _beside(server, _process(word), look, after=f'if [ "$({look})" ]; then echo found; fi; {_ITS_END}')
    if seen.held.success and "found" not in _lines(seen.held):
        raise NotMeasured(f"slot 0 does not find its own process in this way: {seen.held}")
    return seen


@check(
    "isolation.slot.processes",
    "A command of one slot does not see the processes of another.",
    why="Command lines hold paths, prompts and keys.",
    todo="Run commands in a PID namespace with a `/proc` of its own.",
    advisory={"docker": NO_NAMESPACES},
    given_by=GIVEN_BY,
    waits_s=_WAITS_S,
)
def processes_seen(server: Server) -> Finding:
    seen = _look_for_process(server, "cmdline")
    found = _lines(seen.tried)
    return expect(
        seen.held.success and not found,
        f"slot 1 sees {', '.join(found)}" if found else f"not among what slot 1 sees; slot 0: {seen.held}",
    )


@check(
    "isolation.slot.signals",
    "A command of one slot can't send a signal to a process of another.",
    why="`pkill python` in one slot would end the work of all.",
    todo="Run commands in a PID namespace, or as a user of each slot's own.",
    waits_s=_WAITS_S,
)
def processes_signalled(server: Server) -> Finding:
    word = nonce()
    attempt = (
        f"for f in $(grep -ls {_unsaid(word)} /proc/[0-9]*/cmdline /proc/[0-9]*/environ); do "
        'p=${f#/proc/}; p=${p%%/*}; if kill -TERM "$p"; then echo "signalled $p"; fi; done 2>/dev/null'
    )
    seen = _beside(server, _process(word), attempt, after=_ITS_END)
    signalled = _of(seen.tried, "signalled")
    unhurt = seen.held.success and "alive" in _lines(seen.held)
    saw = f"slot 1 could signal {', '.join(signalled)}" if signalled else "no process of slot 0 took a signal"
    return expect(unhurt and not signalled, saw if unhurt else f"{saw}; slot 0: {seen.held}")


@check(
    "isolation.slot.environment",
    "A command of one slot can't read the environment of another's processes in `/proc/*/environ`.",
    why="Keys and tokens are handed to commands in variables.",
    todo="Run commands in a PID namespace, or as a user of each slot's own.",
    waits_s=_WAITS_S,
)
def environ(server: Server) -> Finding:
    seen = _look_for_process(server, "environ")
    found = _lines(seen.tried)
    return expect(
        seen.held.success and not found,
        f"slot 1 reads {', '.join(found)}" if found else f"not among what slot 1 can read; slot 0: {seen.held}",
    )


# --- exhaustion: one slot takes what it can get, within bounds that no node minds, and another must go on working

_PEAK_S = 0.5
_LONG_PEAK_S = 5.0
_GREED_TIMEOUT_S = 20.0
_FORKS_WITHIN_S = 5.0
"""bash(1) tries a fork that is refused again and again, for 15 s."""
FORKS = 300
DISK_BYTES = 64 * 2**20
MEMORY_BYTES = 512 * 2**20


@dataclass
class _Greed:
    """What came of it: ``greedy`` is the answer of slot 0, ``trouble`` what went wrong for slot 1 meanwhile."""

    greedy: Result | None = None
    calls: int = 0
    during: int = 0
    trouble: list[str] = field(default_factory=list)

    def finding(self, what: str) -> Finding:
        """Green where slot 1 worked all the time."""
        word = f"{what}; {self.calls} calls of slot 1 answered, {self.during} of them at the height of it"
        return expect(not self.trouble, f"{what}; meanwhile: {'; '.join(self.trouble[:3])}" if self.trouble else word)


def _greedy(
    server: Server, take: str, give_back: str, work: Callable[[], Result], *, within_s: float = _GREED_TIMEOUT_S
) -> _Greed:
    """Let slot 0 ``take``, hold it a moment and ``give_back``, while slot 1 does its ``work`` over and over.

    ``take`` may fail, or be ended, after ``within_s`` seconds at the latest: then it met a limit. ``work`` prints a
    time (:data:`_NOW`) and nothing else.
    """
    server.slot(1)
    for seconds in (_PEAK_S, _LONG_PEAK_S):
        outcome = _Greed()
        command = f"{_NEEDED}\n{take}\n{_NOW}\nsleep {seconds}\n{_NOW}\n{give_back}"
        times: list[float] = []
        with ThreadPoolExecutor(1) as caller:
            taking = caller.submit(server.bash, command, timeout_s=within_s + seconds)
            _await_taken_up(server, taking)
            over = False
            while not over:
                over = taking.done()  # once more when it is over: the server is still there
                outcome.calls += 1
                try:
                    if server.client.health().get("status") != "ok":
                        outcome.trouble.append("/health does not say ok")
                    answer = work()
                    times += _times(answer)
                    # A shell that may not fork says so, tries again, and succeeds when the other's time is over.
                    if not answer.success or _lines(answer):
                        outcome.trouble.append(str(answer))
                except SifproofError as error:
                    outcome.trouble.append(str(error))
                if len(outcome.trouble) > 3:
                    break
            try:
                outcome.greedy = taking.result()
            except SifproofError as error:
                outcome.trouble.append(f"slot 0: {error}")
        if outcome.greedy and outcome.greedy.exit_code == 127:
            raise NotMeasured(f"the image lacks a tool that this takes: {outcome.greedy}")
        if outcome.trouble or outcome.greedy is None or not outcome.greedy.success:
            return outcome
        height = _times(outcome.greedy)
        outcome.during = sum(len(height) == 2 and height[0] <= at <= height[1] for at in times)
        if outcome.during:
            return outcome
    raise NotMeasured(f"slot 1 could not be looked at while slot 0 took what it could: {outcome.greedy}")


def _said(result: Result | None) -> str:
    """The last words of what the greedy command said."""
    lines: Iterable[str] = _lines(result) if result else []
    words = [line for line in lines if line != "[stderr]"]
    return "; ".join([*words[-1:], *([result.error] if result and result.error else [])]) or "no answer"


@check(
    "isolation.slot.forks",
    f"While one slot starts processes without end, another slot's commands run. (The check itself starts {FORKS} at "
    "most.)",
    why="One fork bomb, or a `make -j`, would otherwise stop every agent of the container.",
    todo="Limit the processes of each slot, and let the job's own limit (`pids_limit`, `ulimit -u`) hold all slots'.",
    waits_s=_PEAK_S,
)
def forks(server: Server) -> Finding:
    # The processes end by themselves whatever happens to the rest.
    take = f"i=0; while test $i -lt {FORKS}; do sleep {_GREED_TIMEOUT_S:g} & i=$((i+1)); done; echo started $i"
    outcome = _greedy(
        server,
        take,
        "kill $(jobs -p)",
        lambda: server.bash(f"echo a | cat | cat >/dev/null && {_NOW}", slot=1),
        within_s=_FORKS_WITHIN_S,
    )
    after = server.bash(":")
    if not after.success:
        outcome.trouble.append(f"slot 0 afterwards: {after}")
    met = outcome.greedy and outcome.greedy.success
    limit = f"{FORKS} processes and no limit met" if met else f"a limit was met: {_said(outcome.greedy)}"
    return outcome.finding(f"slot 0: {limit}")


@check(
    "isolation.slot.disk",
    "While one slot fills the disk as far as it may, another slot can write. (The check itself writes "
    f"{DISK_BYTES // 2**20} MiB at most.)",
    why="One core dump or endless log would otherwise fail every agent's next write.",
    todo="Give each slot a quota, or the allocation a disk that holds what all slots may write.",
    blames=Fault.INFRASTRUCTURE,
    waits_s=_PEAK_S,
)
def disk(server: Server) -> Finding:
    name, own = nonce(), nonce()
    numbers = count()

    def work() -> Result:
        # A new file each time: one that is written again takes the room that it had.
        new = f"{own}.{next(numbers)}"
        return server.bash(f"head -c 65536 /dev/zero > {new} && test $(wc -c < {new}) -eq 65536 && {_NOW}", slot=1)

    take = f"head -c {DISK_BYTES} /dev/zero > {name}; wc -c < {name}"
    try:
        outcome = _greedy(server, take, f"rm -f {name}", work)
    finally:
        server.bash(f"rm -f {name}")
        server.bash(f"rm -f {own}.*", slot=1)
    full = outcome.greedy is not None and str(DISK_BYTES) in [line.strip() for line in _lines(outcome.greedy)]
    limit = f"wrote {DISK_BYTES // 2**20} MiB and met no limit" if full else f"met a limit: {_said(outcome.greedy)}"
    return outcome.finding(f"slot 0 {limit}")


# Last: where it fails, there may be no server any more.
@check(
    "isolation.slot.memory",
    "While one slot takes all the memory that the job has, another slot's commands run, and the server lives. (The "
    f"check itself takes {MEMORY_BYTES // 2**20} MiB at most.)",
    why="The kernel ends what it likes when memory runs out: the server, and with it every agent's work.",
    todo="Let commands be ended before the server (`oom_score_adj`), or limit the memory of each slot.",
    waits_s=_PEAK_S,
    once=True,
)
def memory(server: Server) -> Finding:
    reserved = server.placement.sandbox.memory * 2**20 if server.placement else DISK_BYTES
    most = min(reserved, MEMORY_BYTES)
    # tail(1) keeps all that it may have to print.
    take = f"head -c {most} /dev/zero | tail -c {most} | (sleep {_PEAK_S}; wc -c)"
    outcome = _greedy(server, take, ":", lambda: server.bash(_NOW, slot=1))
    took = outcome.greedy is not None and str(most) in [line.strip() for line in _lines(outcome.greedy)]
    limit = f"took {most // 2**20} MiB and met no limit" if took else f"was stopped before {most // 2**20} MiB"
    return outcome.finding(f"slot 0 {limit}")
