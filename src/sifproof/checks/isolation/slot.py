"""``isolation.slot.*``: a slot sees and reaches nothing of another slot of its server.

Slot 0 keeps something, a file, a process, a variable, and slot 1 tries to get at it meanwhile, under a name that was
never used before. How slots are kept apart is the server's affair.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import PurePosixPath
from time import monotonic

from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.isolation import promises
from sifproof.errors import Fault, SifproofError
from sifproof.sandbox.client import Result

_HOLD_S = 0.6
_LONG_HOLD_S = 5.0
"""Where the first hold had not begun when the other slot looked, or was over: a busy node."""
_TAKEN_UP_WITHIN_S = 10.0
_LEAD_S = 0.1
_LONG_LEAD_S = 1.0
WAITS_S = _HOLD_S + _LEAD_S

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
class Seen:
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


def beside(
    server: Server, keep: str, attempt: str, *, after: str = ":", call: Callable[[str], Result] | None = None
) -> Seen:
    """What slot 1 answers to ``attempt`` while slot 0 is between ``keep`` and ``after``, one command of its.

    ``call`` gives slot 1 a command, by the tool `bash` where nothing else is said.
    """
    call = call or partial(server.bash, slot=1)
    server.slot(1)
    for seconds, lead in ((_HOLD_S, _LEAD_S), (_LONG_HOLD_S, _LONG_LEAD_S)):
        hold = f"{keep}\n{_NOW}\nsleep {seconds}\n{_NOW}\n{after}"
        with ThreadPoolExecutor(1) as caller:
            holding = caller.submit(server.bash, hold)
            _await_taken_up(server, holding)
            tried = call(f"{_NEEDED}\nsleep {lead}\n{_NOW}\n{attempt}\n{_NOW}")
            held = holding.result()
        kept, attempted = _times(held), _times(tried)
        if not held.success:  # it was ended, perhaps by the other
            return Seen(held, tried)
        if len(attempted) < 2:
            raise NotMeasured(f"the attempt of slot 1 could not be made: {tried}")
        if len(kept) == 2 and kept[0] <= attempted[0] and attempted[1] <= kept[1]:
            return Seen(held, tried)
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
    # What a server opened and did not close in its commands: the workspace, or a directory that it lies in.
    parts = PurePosixPath(paths[0]).parts
    below = ["/".join(parts[start:]) for start in range(1, len(parts))]
    opened = ["/proc/self/fd/[0-9]*", *(f"/proc/self/fd/[0-9]*/{shlex.quote(path)}" for path in below)]
    return [*ways, "/proc/[0-9]*/cwd", *inside, *opened]


@check(
    "isolation.slot.files-read",
    "A file in one slot's workspace can't be seen or read from another slot: not by its path, not through "
    "`/proc/*/root`, `/proc/*/cwd` or an open directory that the command inherits, not by a link and not through the "
    "file tools.",
    why="Slots serve different agents: one would read the other's work, and the tests it is judged by.",
    todo="Run each slot's commands in a mount namespace of their own, or as a user of their own.",
    waits_s=WAITS_S,
)
def files_read(server: Server) -> Finding:
    name, secret = nonce(), nonce()
    ways = _ways_to_workspace(server)
    try:
        seen = beside(server, f"echo {secret} > {name}", _attempt_to_read(ways, name), after=f"cat {name}")
        tools = _read_by_tools(server, ways, name, secret)
    finally:
        server.bash(f"rm -f {name}")
    reached = _reached(seen.tried, secret)
    if secret not in _lines(seen.held):
        raise NotMeasured(f"slot 0 could not keep the file: {seen.held}")
    return expect(not reached and not tools, "; ".join([*reached, *tools]) or f"not to be had by {len(ways)} ways")


def _attempt_to_read(ways: list[str], name: str) -> str:
    attempt = f'for d in {" ".join(ways)}; do if cat "$d/{name}" || test -e "$d/{name}"; then echo "by $d"; fi; done'
    return f"({attempt}) 2>/dev/null"


def _reached(tried: Result, secret: str) -> list[str]:
    return [line for line in _lines(tried) if line.startswith("by ") or secret in line]


def _read_by_tools(server: Server, ways: list[str], name: str, secret: str) -> list[str]:
    """How slot 1 gets the file ``name`` of slot 0 by ``read_file``."""
    link, found = nonce(), []
    try:
        for way in ways:
            if "*" in way:
                continue
            path = f"{shlex.split(way)[0]}/{name}"
            server.bash(f"ln -sfn {shlex.quote(path)} {link}", slot=1)
            for asked in (path, link):
                answer = server.read(asked, slot=1)
                if answer.success or secret in str(answer):
                    found.append(f"read_file {asked}")
    finally:
        server.bash(f"rm -f {link}", slot=1)
    return found


@dataclass(frozen=True)
class LockedIn:
    """How the commands of a server are locked in: which slots say that they are sandboxed, and what slot 1 reaches."""

    sandboxed: set[str]
    reached: list[str]
    holds: frozenset[promises.Promise] = frozenset()

    @classmethod
    def seen(cls, server: Server, slots: Sequence[int]) -> LockedIn:
        """As it is now, for ``slots`` and between the first two."""
        said = {server.slot(slot): server.bash(":", slot=slot) for slot in slots}
        sandboxed = {slot for slot, result in said.items() if result.metadata.get("sandboxed") is True}
        if server.slots < 2:
            return cls(sandboxed, [], promises.held(server, slots))
        name, secret = nonce(), nonce()
        ways = _ways_to_workspace(server)
        try:
            kept = server.write(name, secret)
            if not kept.success:
                raise NotMeasured(f"slot 0 could not keep a file: {kept}")
            tried = server.bash(f"{_NEEDED}\n{_attempt_to_read(ways, name)}; echo tried", slot=1)
            if "tried" not in _lines(tried):
                raise NotMeasured(f"the attempt of slot 1 could not be made: {tried}")
            reached = [*_reached(tried, secret), *_read_by_tools(server, ways, name, secret)]
            return cls(sandboxed, reached, promises.held(server, slots))
        finally:
            server.bash(f"rm -f {name}")

    def still(self, now: LockedIn) -> Finding:
        """Whether it is ``now`` as it was; raises :class:`NotApplicable` where nothing was locked in."""
        problems = [f"a command of {slot} is not sandboxed any more" for slot in sorted(self.sandboxed - now.sandboxed)]
        problems += [] if self.reached else [f"slot 1 reads slot 0's file: {way}" for way in now.reached]
        problems += promises.lost(self.holds, now.holds)
        if not problems and not self.sandboxed and self.reached:
            raise NotApplicable(f"slot 1 could read slot 0's file before, too: {self.reached[0]}")
        reads = "what it did before" if self.reached else "nothing"
        saw = f"{len(now.sandboxed)} slots sandboxed, {len(self.sandboxed)} before; slot 1 reads {reads} of slot 0"
        saw += f"; all {len(self.holds)} that held of commands still hold" if self.holds else ""
        return expect(not problems, "; ".join(problems) or saw)


@check(
    "isolation.slot.files-written",
    "From one slot nothing can be written, changed or removed in another slot's workspace, by whatever path.",
    why="One agent would spoil another's work, or plant code that it runs.",
    todo="Run each slot's commands in a mount namespace of their own, or as a user of their own.",
    waits_s=WAITS_S,
)
def files_written(server: Server) -> Finding:
    name, new, secret, link = nonce(), nonce(), nonce(), nonce()
    ways = _ways_to_workspace(server)
    attempt = f'for d in {" ".join(ways)}; do echo spoilt > "$d/{new}"; echo spoilt > "$d/{name}"; rm -f "$d/{name}"; '
    attempt += f"done 2>/dev/null; rm -f {name} {new}"
    folder = shlex.split(ways[0])[0]
    try:
        seen = beside(server, f"echo {secret} > {name}", attempt, after=f"cat {name}; ls -A")
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


TEMPORARY = "/tmp /var/tmp /dev/shm /dev/mqueue /run /run/lock"  # noqa: S108
"""Directories that every program may write to, on most systems."""

CACHES = (
    '/root /root/.cache /home /var/cache "$HOME" "$HOME/.cache" "${XDG_CACHE_HOME:-/root/.cache}" "${TMPDIR:-/tmp}"'
)
"""Directories where programs keep what they want to find again, as words of a shell."""

_OF_THE_ALLOCATION = "/alloc/data /alloc/tmp /alloc/logs /local"
"""Where Nomad's docker driver mounts what every user may write to."""


def _shared_places(server: Server) -> str:
    """Where a slot might meet another, as words of a shell. What the config binds is shared on purpose."""
    bound = {bind.split(":")[1] for bind in server.placement.sandbox.binds} if server.placement else set()
    data = shlex.quote(str(server.client.health().get("data_dir") or "/data"))
    return " ".join([*(w for w in f"{TEMPORARY} {CACHES} {_OF_THE_ALLOCATION}".split() if w not in bound), data])


def _left_in_tmp(server: Server, name: str, secret: str) -> tuple[list[str], Seen]:
    """The directories that slot 0 can leave a file in, and what slot 1 saw, changed and removed of it there."""
    places = _shared_places(server)

    def each(do: str) -> str:
        """``do`` with each directory that is not the slot's workspace; without a process that may be refused."""
        there = '[ -d "$d" ] && ! [ "$d" -ef . ]'
        return f'for d in {places}; do f="$d/{name}"; if {there}; then {do}; fi; done 2>/dev/null'

    # One directory may have several names: all is looked at before any of it is changed, by either slot.
    keep = each(f'if echo {secret} > "$f"; then echo "left $d"; fi')
    look = each('if test -e "$f"; then echo "name $d"; if cat "$f"; then echo "text $d"; fi; fi')
    # Where the server keeps what is a slot's /tmp, by its own name.
    data = shlex.quote(str(server.client.health().get("data_dir") or "/data"))
    look += (
        f"\nfind {data} -mindepth 2 -maxdepth 3 -name {name} 2>/dev/null | while read -r f; do "
        'if cat "$f"; then echo "text ${f%/*}"; fi; done 2>/dev/null'
    )
    spoil = each('echo spoilt > "$f"; rm -f "$f"')
    after = each(f'if test "$(cat "$f")" = {secret}; then echo "whole $d"; fi')
    remove = each('rm -f "$f"')
    seen = beside(server, keep, f"{look}\n{spoil}", after=f"{after}\n{remove}")
    if not seen.held.success:
        raise NotMeasured(f"slot 0 could not look after its files: {seen.held}")
    left = list(dict.fromkeys(_of(seen.held, "left")))
    if not left:
        raise NotApplicable(f"a command can write to none of {TEMPORARY}, and to no cache")
    return left, seen


def _of(result: Result, word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in _lines(result) if line.startswith(f"{word} ")]


@check(
    "isolation.slot.tmp",
    "What a slot leaves in `/tmp`, `/var/tmp`, `/dev/shm` and the like, in caches and in the allocation's directories "
    "can't be read, changed or removed by another.",
    why="Compilers, test runners and agents put sources, sockets and keys there; what one leaves in a cache, another "
    "installs.",
    todo="Give each slot a `/tmp` of its own; without namespaces, a user of its own and a umask that shuts the others "
    "out.",
    waits_s=WAITS_S,
)
def tmp(server: Server) -> Finding:
    name, secret = nonce(), nonce()
    left, seen = _left_in_tmp(server, name, secret)
    whole, read = _of(seen.held, "whole"), list(dict.fromkeys(_of(seen.tried, "text")))
    problems = [*(f"read in {d}" for d in read), *(f"changed or removed in {d}" for d in left if d not in whole)]
    return expect(not problems, "; ".join(problems) or f"left alone in {', '.join(left)}")


@check(
    "isolation.slot.tmp-own",
    "Each slot has a `/tmp` of its own: a name that one uses there is not there for another.",
    why="Two agents that run the same build script would meet at the same lock or socket, and the second fail.",
    todo="Run commands under bubblewrap, with a `/tmp` and a `/dev/shm` for each slot.",
    advisory={"docker": NO_NAMESPACES},
    given_by=GIVEN_BY,
    waits_s=WAITS_S,
)
def tmp_own(server: Server) -> Finding:
    left, seen = _left_in_tmp(server, nonce(), nonce())
    names = list(dict.fromkeys(_of(seen.tried, "name")))
    return expect(not names, f"slot 1 sees it in {', '.join(names)}" if names else f"not there in {', '.join(left)}")


def _process(word: str) -> str:
    """A shell line that starts a process, known by ``word`` in its arguments and its environment."""
    return f"sifproof_mark={word} sh -c 'sleep 30; :' {word} & child=$!"


_ITS_END = 'if kill -0 $child; then echo alive; fi; kill $child; wait $child 2>/dev/null; echo "end $?"'


def look_for_process(server: Server, file: str, call: Callable[[str], Result] | None = None) -> list[str]:
    """What slot 1 finds in ``file`` of every process, while one of slot 0 has a word there that slot 0 finds itself."""
    word = nonce()
    look = f"grep -ls {_unsaid(word)} /proc/[0-9]*/{file}"
    # By what grep prints: it ends with 2 where one of the files can't be read, whatever it found.
    seen = beside(server, _process(word), look, call=call, after=f'if [ "$({look})" ]; then echo found; fi; {_ITS_END}')
    # On a screen there is the command, too, which has a pattern in its place.
    found = [line for line in _lines(seen.tried) if re.fullmatch(rf"/proc/\d+/{file}", line)]
    if not found and "found" not in _lines(seen.held):
        raise NotMeasured(f"slot 0 does not find its own process in this way: {seen.held}")
    return found


@check(
    "isolation.slot.processes",
    "A command of one slot does not see the processes of another.",
    why="Command lines hold paths, prompts and keys.",
    todo="Run commands in a PID namespace with a `/proc` of its own.",
    advisory={"docker": NO_NAMESPACES},
    given_by=GIVEN_BY,
    waits_s=WAITS_S,
)
def processes_seen(server: Server) -> Finding:
    found = look_for_process(server, "cmdline")
    return expect(not found, f"slot 1 sees {', '.join(found)}" if found else "not among what slot 1 sees")


@check(
    "isolation.slot.signals",
    "A command of one slot can't send a signal to a process of another.",
    why="`pkill python` in one slot would end the work of all.",
    todo="Run commands in a PID namespace, or as a user of each slot's own.",
    waits_s=WAITS_S,
)
def processes_signalled(server: Server) -> Finding:
    word = nonce()
    attempt = (
        f"for f in $(grep -ls {_unsaid(word)} /proc/[0-9]*/cmdline /proc/[0-9]*/environ); do "
        'p=${f#/proc/}; p=${p%%/*}; if kill -TERM "$p"; then echo "signalled $p"; fi; done 2>/dev/null'
    )
    seen = beside(server, _process(word), attempt, after=_ITS_END)
    signalled = _of(seen.tried, "signalled")
    unhurt = seen.held.success and "alive" in _lines(seen.held)
    saw = f"slot 1 could signal {', '.join(signalled)}" if signalled else "no process of slot 0 took a signal"
    return expect(unhurt and not signalled, saw if unhurt else f"{saw}; slot 0: {seen.held}")


@check(
    "isolation.slot.environment",
    "A command of one slot can't read the environment of another's processes in `/proc/*/environ`.",
    why="Keys and tokens are handed to commands in variables.",
    todo="Run commands in a PID namespace, or as a user of each slot's own.",
    waits_s=WAITS_S,
)
def environ(server: Server) -> Finding:
    found = look_for_process(server, "environ")
    return expect(not found, f"slot 1 reads {', '.join(found)}" if found else "not among what slot 1 can read")


# Each moves directories about, in a shell that knows "$own", slot 1's, "$other", slot 0's, and "$n", a new name.
_MOVES = {
    "a link in its place": ('mv "$own" "$own.$n" && ln -s "$other" "$own"', "put_back"),
    "the other's in its place": (
        'mv "$own" "$own.$n" && mv "$other" "$own"',
        'if [ -d "$own.$n" ] && ! [ -e "$other" ]; then mv "$own" "$other"; fi; put_back',
    ),
    "links in the place of what holds both": (
        'own=${own%/*}; mv "$own" "$own.$n" && mkdir "$own" && ln -s "$own.$n/${other##*/}" "$own/$mine"',
        "own=${own%/*}; put_back",
    ),
}
# What was made in its place meanwhile, by the server too, goes.
_PUT_BACK = (
    'put_back() { if [ -d "$own.$n" ]; then mv "$own" "$own.$n.made"; mv "$own.$n" "$own"; rm -rf "$own.$n.made"; fi; }'
)


@check(
    "isolation.slot.moved",
    "A slot that moves its own directory away, or puts a link or another slot's directory into its place, reaches no "
    "file of another slot by it, and works on afterwards.",
    why="Where a command may write beside its workspace, the server's next call would work in whatever bears its name: "
    "another agent's files, or `/etc`.",
    todo="Keep the slots' directories in one that only the server can write to (Nomad makes `alloc/data` writable for "
    "everybody), and open them without following links.",
)
def moved(server: Server) -> Finding:
    server.slot(1)
    told = {str(entry.get("slot_id")): str(entry.get("workspace_dir")) for entry in server.client.slots()}
    own, other = (told.get(server.slot(number), "") for number in (1, 0))
    name, new, secret, aside = nonce(), nonce(), nonce(), nonce()
    if not server.write(name, secret).success:
        raise NotMeasured("slot 0 could not keep a file")
    known = f"own={shlex.quote(own)}; other={shlex.quote(other)}; mine=${{own##*/}}; n={aside}; cd /\n{_PUT_BACK}"
    problems, done = [], []
    try:
        for way, (move, back) in _MOVES.items():
            if way.startswith("links") and own.rpartition("/")[0] != other.rpartition("/")[0]:
                continue
            made = server.bash(f"({known}\n{move}) 2>/dev/null && echo done", slot=1)
            try:
                if made.output.strip() == "done":
                    done.append(way)
                seen = server.bash(f"cat {name}; echo spoilt > {new}", slot=1)
                answers = [str(seen), str(server.read(name, slot=1))]
                server.write(f"{new}.w", "spoilt", slot=1)
            finally:
                server.bash(f"({known}\n{back}) 2>/dev/null; rm -f {new} {new}.w", slot=1)
            if any(secret in answer for answer in answers):
                problems.append(f"{way}: slot 1 reads slot 0's file")
            there = server.bash(f"cat {name}; ls -A")
            if secret not in there.output or new in there.output:
                problems.append(f"{way}: in slot 0 afterwards {there}")
            works = server.bash(f"echo {name}", slot=1)
            if works.output.strip() != name:
                problems.append(f"{way}: slot 1 afterwards: {works}")
    finally:
        server.bash(f"rm -f {name} {new} {new}.w")
    could = f"slot 1 could put {', and '.join(done)}" if done else "slot 1 could move nothing"
    return expect(not problems, "; ".join(problems) or f"{could}; it reached nothing of slot 0")


# --- exhaustion: one slot takes what it can get, within bounds that no node minds, and another must go on working

_PEAK_S = 0.5
_LONG_PEAK_S = 5.0
_GREED_TIMEOUT_S = 20.0
_FORKS_WITHIN_S = 5.0
"""bash(1) tries a fork that is refused again and again, for 15 s."""
FORKS = 300
DISK_BYTES = 64 * 2**20
MEMORY_BYTES = 512 * 2**20

_REFUSALS = re.compile(
    "resource temporarily unavailable|cannot allocate memory|out of memory|memory exhausted|cannot fork|can't fork|"
    "no space left|quota exceeded|file too large|file size limit|killed|ended with 137",
    re.IGNORECASE,
)
_SIGNALS = {signal + sign for signal in (9, 25) for sign in (128, -2 * signal)}
"""Exit codes of what the kernel ended: by SIGKILL for the memory it took, by SIGXFSZ for the size of a file."""


@dataclass
class Greed:
    """What came of it: ``greedy`` is the answer of slot 0, ``trouble`` what went wrong for slot 1 meanwhile."""

    greedy: Result | None = None
    calls: int = 0
    during: int = 0
    trouble: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether slot 0 could take all that it tried to, as the command itself says."""
        return self.greedy is not None and self.greedy.success and "took all" in _lines(self.greedy)

    @property
    def refused(self) -> str:
        """The last words of slot 0 where they say that it met a limit, or its exit code does."""
        if self.greedy is None:
            return ""
        said = [*_lines(self.greedy), *([self.greedy.error] if self.greedy.error else [])]
        words = [line for line in said if _REFUSALS.search(line)]
        if not words and self.greedy.exit_code in _SIGNALS:
            words = [str(self.greedy)]
        return words[-1][:200] if words else ""

    def finding(self, all_of_it: str, taken: str, limits: str) -> Finding:
        """Green where slot 1 worked all the time, while slot 0 took ``all_of_it``, or ``taken`` until it was refused.

        Raises :class:`NotMeasured` where it took nothing: slot 1 then had nothing to bear. ``limits`` are of the node.
        """
        if self.whole:
            what = f"slot 0 {all_of_it} and met no limit"
        elif self.refused:
            what = f"slot 0 {taken or 'was stopped'}, and met a limit: {self.refused}"
        elif taken:
            what = f"slot 0 {taken} and no more: {_said(self.greedy)}"
        else:
            what = f"slot 0 could take nothing: {_said(self.greedy)}"
        if self.trouble:
            return expect(False, f"{what}; meanwhile: {'; '.join(self.trouble[:3])}; {limits}")
        if not (self.whole or taken or self.refused):
            raise NotMeasured(what)
        height = f", {self.during} of them at the height of it" if self.whole else ""
        return expect(True, f"{what}; {self.calls} calls of slot 1 answered{height}; {limits}")


def _greedy(
    server: Server, take: Callable[[str], str], work: Callable[[], Result], *, within_s: float = _GREED_TIMEOUT_S
) -> Greed:
    """Let slot 0 ``take`` what it can, while slot 1 does its ``work`` over and over.

    ``take`` makes a command of the lines by which it holds what it took for a moment; it prints ``took all`` where it
    could. It may fail, or be ended, after ``within_s`` seconds at the latest: it may have met a limit. ``work`` prints
    a time (:data:`_NOW`) and nothing else.
    """
    server.slot(1)
    for seconds in (_PEAK_S, _LONG_PEAK_S):
        outcome = Greed()
        hold = f"{_NOW}\nsleep {seconds}\n{_NOW}"
        command = f"{_NEEDED}\n{take(hold)}"
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


# Of a process and of every control group above it, in either version of them.
_LIMITS = r"""
limits() { # the number of a process
    while IFS=: read -r _ kinds path; do
        top=/sys/fs/cgroup${kinds:+/$kinds}
        case $path in *..*) path= ;; esac
        folder=$top${path%/}
        while :; do
            for file in pids.max memory.max memory.limit_in_bytes; do
                if { read -r value < "$folder/$file"; } 2>/dev/null; then echo "$file $value"; fi
            done
            [ "$folder" != "$top" ] || break
            folder=${folder%/*}
        done
    done < "/proc/$1/cgroup"
    while read -r line; do
        case $line in
            'Max processes '*) echo "RLIMIT_NPROC ${line#Max processes}" ;;
            'Max file size '*) echo "RLIMIT_FSIZE ${line#Max file size}" ;;
            'Max address space '*) echo "RLIMIT_AS ${line#Max address space}" ;;
        esac
    done < "/proc/$1/limits"
}
"""
_LOOKED_AT_S = 8


@dataclass(frozen=True)
class Limits:
    """What the node allows a command of slot 0."""

    least: dict[str, int | None]
    """The least of each kind; None where it is read to be none."""
    free: int | None
    """What the file system, or a quota of its own, leaves to the workspace, in bytes."""
    nothing: str
    """Why the node could not be asked, whose control groups a slot may not see."""

    def of(self, what: str, *names: str, unit: int = 1) -> str:
        """What is known of the limits ``names`` to ``what``, in a sentence."""
        known = {name: self.least[name] for name in names if name in self.least}
        said = ", ".join(f"{name} {'unlimited' if v is None else f'{v // unit:,}'}" for name, v in known.items())
        if any(value is not None for value in known.values()):
            return f"the node's limits to {what}: {said}"
        if self.nothing or not known:
            return f"what the node allows of {what} could not be read ({'; '.join(filter(None, (said, self.nothing)))})"
        return f"the node sets no limit to {what} ({said}): what more than this would do was not tried"


def _limits(server: Server) -> Limits:
    """The limits that hold for a command of slot 0, as far as slot and node tell them; read once."""
    return server.share("limits of slot 0", lambda: _read_limits(server))


def _read_limits(server: Server) -> Limits:
    word, nothing = nonce(), ""
    # Ended by who looks at it from the node, or by itself.
    command = f"{_LIMITS}\nlimits self\ndf -Pk . | tail -n 1\nsh -c 'sleep {_LOOKED_AT_S}; :' {word}\n:"
    look = f"""{_LIMITS}
        tries=0
        until [ "$tries" = 40 ]; do
            for file in $(grep -ls {_unsaid(word)} /proc/[0-9]*/cmdline); do
                if tr '\\0' '\\n' < "$file" | grep -qx {_unsaid(word)}; then
                    pid=${{file#/proc/}} pid=${{pid%/*}}
                    limits "$pid"
                    echo seen
                    kill "$pid"
                    break 2
                fi
            done
            sleep 0.05
            tries=$((tries + 1))
        done"""
    outside = ""
    with ThreadPoolExecutor(1) as caller:
        held = caller.submit(server.bash, command)
        try:
            _await_taken_up(server, held)
            outside = server.placed.node.run(look)
        except (SifproofError, NotMeasured) as error:
            nothing = str(error)
        inside = held.result().output
    if not nothing and "seen" not in outside.splitlines():
        nothing = "the user of the node's Nomad client does not see the slot's processes"
    free: int | None = None
    least: dict[str, int | None] = {} if nothing else {"pids.max": None, "memory.max": None}
    for line in f"{outside}\n{inside}".splitlines():
        name, value, *more = [*line.split(), "", ""]
        name = "memory.max" if name == "memory.limit_in_bytes" else name
        if name in ("pids.max", "memory.max", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_AS"):
            # Version 1 of control groups has a number of nineteen digits for none.
            number = int(value) if value.isdigit() and int(value) < 2**60 else None
            known = least.get(name)
            least[name] = number if known is None else min(known, known if number is None else number)
        elif len(more) > 4 and value.isdigit() and more[1].isdigit():  # of df
            free = int(more[1]) * 1024
    return Limits(least, free, nothing)


@check(
    "isolation.slot.forks",
    f"While one slot starts {FORKS} processes, or as many as it may, another slot's commands run.",
    why="One fork bomb, or a `make -j`, would otherwise stop every agent of the container.",
    todo="Limit the processes of each slot, and let the job's own limit (`pids_limit`, `ulimit -u`) hold all slots'.",
    waits_s=_PEAK_S,
)
def forks(server: Server) -> Finding:
    limits, name = _limits(server), nonce()
    # The processes end by themselves whatever happens to the rest.
    start = f"sleep {_GREED_TIMEOUT_S:g} & i=$((i+1)); echo $i > {name}"
    outcome = _greedy(
        server,
        lambda hold: f"i=0; while test $i -lt {FORKS}; do {start}; done; echo took all\n{hold}\nkill $(jobs -p)",
        lambda: server.bash(f"echo a | cat | cat >/dev/null && {_NOW}", slot=1),
        within_s=_FORKS_WITHIN_S,
    )
    after = server.bash(f"cat {name}; rm -f {name}")
    if not after.success:
        outcome.trouble.append(f"slot 0 afterwards: {after}")
    started = _number(after)
    return outcome.finding(
        f"started {FORKS} processes",
        f"started {started} processes" if started else "",
        limits.of("processes", "pids.max", "RLIMIT_NPROC"),
    )


def _number(result: Result | None, word: str = "") -> int:
    """The last number that stands on a line by itself after ``word``; 0 where there is none."""
    lines = [line.removeprefix(word).strip() for line in _lines(result)] if result else []
    return next((int(line) for line in reversed(lines) if line.isdigit()), 0)


@check(
    "isolation.slot.disk",
    f"While one slot writes {DISK_BYTES // 2**20} MiB, or as much as it may, another slot can write.",
    why="One core dump or endless log would otherwise fail every agent's next write.",
    todo="Give each slot a quota, or the allocation a disk that holds what all slots may write.",
    blames=Fault.INFRASTRUCTURE,
    waits_s=_PEAK_S,
)
def disk(server: Server) -> Finding:
    limits = _limits(server)
    name, own = nonce(), nonce()
    numbers = count()

    def work() -> Result:
        # A new file each time: one that is written again takes the room that it had.
        new = f"{own}.{next(numbers)}"
        return server.bash(f"head -c 65536 /dev/zero > {new} && test $(wc -c < {new}) -eq 65536 && {_NOW}", slot=1)

    size = f"n=$(wc -c < {name}); if test $n -eq {DISK_BYTES}; then echo took all; fi"
    try:
        outcome = _greedy(server, lambda hold: f"head -c {DISK_BYTES} /dev/zero > {name}; {size}\n{hold}", work)
    finally:
        after = server.bash(f"wc -c < {name}; rm -f {name}")
        server.bash(f"rm -f {own}.*", slot=1)
    wrote = _number(after)
    room = f" but the room of its file system, {limits.free // 2**20:,} MiB" if limits.free is not None else ""
    return outcome.finding(
        f"wrote {DISK_BYTES // 2**20} MiB",
        f"wrote {wrote / 2**20:.3g} MiB" if wrote else "",
        limits.of(f"what a slot writes{room}", "RLIMIT_FSIZE", unit=2**20),
    )


# Last: where it fails, there may be no server any more.
@check(
    "isolation.slot.memory",
    "While one slot takes as much memory as the job asks for, or as it may, another slot's commands run, and the "
    f"server lives. (The check takes {MEMORY_BYTES // 2**20} MiB at most.)",
    why="The kernel ends what it likes when memory runs out: the server, and with it every agent's work.",
    todo="Let commands be ended before the server (`oom_score_adj`), or limit the memory of each slot.",
    waits_s=_PEAK_S,
    once=True,
    takes_memory=True,
)
def memory(server: Server) -> Finding:
    limits = _limits(server)
    reserved = server.placement.sandbox.memory * 2**20 if server.placement else DISK_BYTES
    most = min(reserved, MEMORY_BYTES)

    def take(hold: str) -> str:
        # tail(1) keeps all that it may have to print, and prints nothing before it has it.
        first = "n=$(dd bs=1 count=1 2>/dev/null | wc -c)"
        rest = f"n=$((n + $(wc -c))); echo took $n; if test $n -eq {most}; then echo took all; fi"
        return (
            "command -v dd >/dev/null || exit 127\n"
            f"head -c {most} /dev/zero | {{ tail -c {most}; echo tail ended with $? >&2; }} "
            f"| {{ {first}\n{hold}\n{rest}\n}}"
        )

    outcome = _greedy(server, take, lambda: server.bash(_NOW, slot=1))
    took = _number(outcome.greedy, "took")
    return outcome.finding(
        f"took {most // 2**20} MiB",
        f"took {took / 2**20:.3g} MiB" if took else "",
        limits.of("memory, in MiB", "memory.max", "RLIMIT_AS", unit=2**20),
    )
