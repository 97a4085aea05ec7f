"""What goes wrong on nodes goes wrong here: on a twin of the sandbox, which nobody uses."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sifproof.checks.engine.job_copies import second_job, start
from sifproof.checks.engine.readiness import answers
from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect, measured
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.engine.suite import server_of
from sifproof.checks.isolation.slot import LockedIn
from sifproof.checks.persistence import SLOTS_LOOKED_AT, Kept, looked_at, lost, write_files
from sifproof.checks.reset import close, has_own_tmp, opened_in_the_end
from sifproof.config import DRIVERS
from sifproof.errors import Fault, SifproofError
from sifproof.nomad import job_copy
from sifproof.nomad.agent import extra_client
from sifproof.nomad.allocations import Allocation, get_job_allocations, parse_allocation
from sifproof.nomad.client import NotFoundError
from sifproof.nomad.node import leftovers, signals
from sifproof.nomad.node.script import ProbeError
from sifproof.nomad.restart import last_start_ns, wait_started_again
from sifproof.nomad.submit import failure_of, last_words, wait_for_allocations
from sifproof.sandbox.client import SandboxClient, ServerError

_ANSWERS_S = 1.0
"""How long a stopped server is waited for."""

_CHECKED_S = 10.0
"""How long Nomad may take to see what has become of a server that it checks."""

_NOTICED_S = 10.0
"""How long Nomad may take to say that it has started a task again, whose server answers already."""

_WORKS_S = 10.0
"""How long a command may take that does nothing."""

_TAKEN_S = 20.0
"""How long a server may take at least to find that its port is taken; longer where it may to be ready."""

_TRIES = 4
"""How often it is tried whether two servers share a port: each misses it one time in two."""

_LOGGED_S = 10.0
"""How long Nomad may take to write down the last words of a server."""

_IN_USE = re.compile(r"(address|port)\b[^|]{0,200}\bin use|EADDRINUSE|already allocated", re.IGNORECASE)

_BACK_S = 60.0
"""How long an agent may take to have its allocations back."""

_MIB = 1 << 20


def _twin(server: Server) -> Server:
    """The twin that is killed and stopped."""
    placed = server.placed
    job = second_job(server, node_id=placed.allocation.node_id)
    job_copy.let_nomad_check(job)
    return server.share("twin", lambda: start(server, job, _kept(server)))


def _kept(server: Server) -> contextlib.ExitStack:
    """What the checks of the twin that is killed and stopped share: closed by the check after them.

    A node needs room for one twin at a time, and no more.
    """
    return server.share("kept", lambda: server.keep.enter_context(contextlib.ExitStack()))


def _second(server: Server) -> extra_client.SecondClient:
    """A second Nomad client of the run's own agent, started."""
    placed = server.placed
    home = Path(placed.cluster.directory)
    return server.share("second", lambda: server.keep.enter_context(extra_client.started(placed.nomad, home)))


@dataclasses.dataclass(frozen=True)
class Killed:
    """What was written before the server was killed, whether it answered afterwards, and did its work at once."""

    server: Server
    files: list[Kept]
    answered: Finding
    locked_in: Finding | NotMeasured
    worked: str = "it did not answer"
    """Why a command did not work as soon as `/health` answered, before or afterwards; nothing where it did."""


def _kill(server: Server) -> Killed:
    calls = _calls(server)
    there = _twin(server)
    first = _first_call(there, calls)
    try:
        before = LockedIn.seen(there, looked_at(there))
    except NotMeasured as error:
        reason = error  # its own name ends here
        seen = _kill_closed(there, calls, lambda: reason)
    else:
        seen = _kill_closed(there, calls, lambda: before.still(LockedIn.seen(there, looked_at(there))))
    return dataclasses.replace(seen, worked=first or seen.worked)


def _kill_closed(there: Server, calls: list[str], look: Callable[[], Finding | NotMeasured]) -> Killed:
    """Kill it while the first and the last slot are closed, on which a server may try what it can do; then ``look``."""
    # Of two or one another has to be left for commands, see `_not_working`.
    closed = (0, there.slots - 1) if there.slots > 2 else (0,)
    with contextlib.ExitStack() as opened:
        for slot in closed:
            opened.enter_context(opened_in_the_end(there, slot))
        files = write_files(there)
        # Asked of all of them first: a command opens its slot again.
        for slot, own_tmp in [(slot, has_own_tmp(there, slot)) for slot in closed]:
            there.bash(close(own_tmp=own_tmp), slot=slot)
        answered, worked = _kill_server(there, calls)
        locked_in: Finding | NotMeasured = NotMeasured(f"the server did not come back: {answered.saw}")
        if answered.passed:
            try:
                locked_in = look()
            except NotMeasured as reason:
                locked_in = reason
    return Killed(there, files, answered, locked_in, worked)


def _kill_server(there: Server, calls: list[str]) -> tuple[Finding, str]:
    """Kill it and wait until it is there again: a measurement of that, or what came of it; and how it then worked."""
    placed = there.placed
    before = last_start_ns(parse_allocation(placed.nomad.get("allocation", placed.allocation.id)))
    begin = time.monotonic()
    try:
        killed = signals.kill_server(placed.node, placed.allocation.id, there.placed.port_inside)
    except ProbeError as error:
        raise NotMeasured(f"the server could not be killed: {error}") from None
    if not killed:
        raise NotMeasured("the server's process could not be found on the node by the user of its Nomad client")
    answered, seconds, how = answers(there), time.monotonic() - begin, ""
    worked = _first_call(there, calls) if answered.passed else Killed.worked
    try:
        after = wait_started_again(placed.nomad, placed.allocation.id, before, _NOTICED_S)
    except SifproofError as error:
        if not answered.passed:
            lost = expect(False, f"{answered.saw} {error}")
            return dataclasses.replace(lost, fault=error.fault), worked
        if not set(signals.find_server(placed.node, placed.allocation.id, there.placed.port_inside)) - set(killed):
            raise
        after, how = placed.allocation, "; its own supervisor started it again, and Nomad did not have to"
    if (after.address, after.port) != (placed.allocation.address, placed.allocation.port):
        answered = expect(False, f"it was at {placed.allocation.url}, Nomad now says {after.url}")
    elif answered.passed:
        answered = measured(
            seconds, f"{seconds:.2f} s after the order to kill it `/health` answered at {after.url}{how}"
        )
    return answered, worked


def _first_call(there: Server, calls: list[str]) -> str:
    """Why one of ``calls`` does not work now; nothing where all do. What comes after finds them working, if it can."""
    slots = looked_at(there)
    # Not in the first and the last, whose directories may be closed, where there are others.
    slots = slots[1:-1] or slots[-1:]
    tried = [(name, slot, _not_working(there, name, slot)) for slot in slots for name in calls]
    failed = [(name, slot) for name, slot, said in tried if said]
    end = time.monotonic() + there.ready_within_s
    while any(_not_working(there, name, slot) for name, slot in failed) and time.monotonic() < end:
        time.sleep(0.1)
    return next((f"{name} in {there.slot(slot)}: {said}" for name, slot, said in tried if said), "")


def _calls(server: Server) -> list[str]:
    """The calls that work on a server which has run for a while. Another may have no `bash_stateful`."""
    return [name for name in _CALLS if name == "bash" or not _not_working(server, name, 0)]


def _by_bash(there: Server, slot: int, word: str) -> object:
    return there.bash(f"echo {word}", slot=slot)


def _by_shell(there: Server, slot: int, word: str) -> object:
    # In two steps, for an answer may be a whole screen, with the command on it.
    there.client.execute(there.slot(slot), "bash_stateful", {"command": f"echo {word} > {word}"})
    return there.bash(f"cat {word} && rm {word}", slot=slot)


def _by_files(there: Server, slot: int, word: str) -> object:
    written, read = there.write(word, word, slot=slot), there.read(word, slot=slot)
    there.bash(f"rm -f {word}", slot=slot)
    return read if written.success else written


def _by_batch(there: Server, slot: int, word: str) -> object:
    call = {"slot_id": there.slot(slot), "tool": "bash", "args": {"command": f"echo {word}"}}
    return there.client.batch([call])[0]


_CALLS: dict[str, Callable[[Server, int, str], object]] = {
    "bash": _by_bash,
    "bash_stateful": _by_shell,
    "write_file": _by_files,
    "batch": _by_batch,
}


def _not_working(there: Server, name: str, slot: int) -> str:
    word = nonce()
    try:
        result = _CALLS[name](there, slot, word)
    except SifproofError as error:
        return str(error)
    return "" if getattr(result, "output", "").strip() == word else str(result)


@check(
    "resilience.killed",
    "A server whose process is killed (SIGKILL) is started again, by Nomad or by a supervisor of its own, and answers "
    "at the same endpoint within `nomad.ready_within_s`.",
    why="The kernel kills what uses too much memory; a shell or a lock file in the way keeps it down until someone "
    "looks.",
    todo="See that nothing around the server outlives it, and that it starts where it did not end well before.",
    waits_s=1.25 * job_copy.RESTART_DELAY_S,
    unit="s",
    once=True,
)
def killed(server: Server) -> Finding:
    if server.placed.cluster.local:
        # It takes its time to be ready: for the last check of the suite, which tells what is wrong with it.
        with contextlib.suppress(SifproofError):
            _second(server)
    return server.share("killed", lambda: _kill(server)).answered


@check(
    "resilience.killed-data",
    "What was written before the server was killed is there after it was started again.",
    why="Work that was answered with success is not lost by a crash.",
    todo="Look for writes that stay in the server's memory, and for a server that empties its directories at the "
    "start.",
    once=True,
)
def killed_data(server: Server) -> Finding:
    after = _killed(server)
    wrong = lost(after.server, after.files)
    return expect(not wrong, "; ".join(wrong) or f"{len(after.files)} files as they were written")


def _killed(server: Server) -> Killed:
    try:
        after = server.share("killed", lambda: _kill(server))
    except SifproofError as error:
        raise NotMeasured(f"the server did not come back: {error}") from None
    if not after.answered.passed:
        raise NotMeasured(f"the server did not come back: {after.answered.saw}")
    return after


@check(
    "resilience.killed-isolation",
    "After the server was killed and started again, commands are locked in as before, as after a restart, also where "
    "slots had closed their own directories and `/tmp` (`chmod 000 .`) meanwhile.",
    why="A server that tries at its start, in a slot's directory, what it can do, finds there what a command made of "
    "it: one agent would take all slots their sandboxes.",
    todo="Try it in a directory that no command can reach, and end, or refuse commands, rather than do with less.",
    once=True,
)
def killed_isolation(server: Server) -> Finding:
    locked_in = _killed(server).locked_in
    if isinstance(locked_in, NotMeasured):
        raise locked_in
    return locked_in


@check(
    "resilience.first-call",
    "As soon as `/health` answers after a start, calls work: a command, a file, a batch, and a shell that lives on "
    "where there is one.",
    why="Schedulers send work at the first healthy answer; what fails then is lost, or tried again elsewhere.",
    todo="Listen, or say `ok`, only when the slots are set up.",
    once=True,
)
def first_call(server: Server) -> Finding:
    try:
        after = server.share("killed", lambda: _kill(server))
    except SifproofError as error:
        raise NotMeasured(f"the server did not come back: {error}") from None
    if not after.answered.passed:
        raise NotMeasured(f"the server did not come back: {after.answered.saw}")
    return expect(not after.worked, after.worked or "a command worked right after the first healthy answer")


@check(
    "resilience.stopped",
    "While the server's process hangs (SIGSTOP), `/health` does not answer, and Nomad's own check of it fails; while "
    "another process of the server hangs, `/health` does not say that all is well unless commands work; afterwards it "
    "serves on.",
    why="Schedulers ask `/health` alone: one that answers for a server that hangs sends agents into it.",
    todo="Answer `/health` from the process that does the work, or have it ask that process.",
    waits_s=_ANSWERS_S + 2 * job_copy.CHECKED_EVERY_S,
    once=True,
)
def stopped(server: Server) -> Finding:
    there = _twin(server)
    placed = there.placed
    probe = there.client.clone(timeout_s=_ANSWERS_S, grace_s=0)
    place = (placed.node, placed.allocation.id, there.placed.port_inside)
    try:
        if checked := _checked_otherwise(there, "success"):
            raise NotMeasured(f"Nomad's own check of `/health` does not pass on a server that answers: {checked}")
        with signals.stopped(*place, "listening") as found:
            if not found.stopped:
                raise NotMeasured("the server's process could not be found by the user of the node's Nomad client")
            health = _says(probe)
            saw = f"with the {len(found.stopped)} that listen on its port stopped: {health}"
            if not isinstance(health, ServerError):
                return expect(False, saw)
            if checked := _checked_otherwise(there, "failure"):
                return expect(False, f"{saw}; Nomad's own check says {checked}")
            saw += "; Nomad's own check fails"
        if found.others:
            with signals.stopped(*place, "others") as found:
                health = _says(probe)
                saw += f"; with its {len(found.stopped)} other processes stopped: {health}"
                if not isinstance(health, ServerError) and (unable := _unable(there)):
                    return expect(False, f"{saw}, and a command: {unable}")
    except ProbeError as error:
        raise NotMeasured(f"the server could not be stopped: {error}") from None
    except SifproofError as error:
        raise NotMeasured(f"Nomad's own check of `/health` could not be looked at: {error}") from None
    answered = answers(there)
    unable = _unable(there)
    return expect(answered.passed and not unable, f"{saw}; afterwards {unable or 'a command works'}")


def _says(probe: SandboxClient) -> dict[str, object] | ServerError:
    try:
        return probe.health()
    except ServerError as error:
        return error


def _checked_otherwise(there: Server, wanted: str) -> str:
    """What Nomad's own check of ``/health`` says that does not come to say ``wanted``; empty where it does."""
    end = time.monotonic() + _CHECKED_S
    while True:
        status, output = there.placed.nomad.checks(there.placed.allocation.id).get(job_copy.CHECK, ("nothing", ""))
        if status == wanted:
            return ""
        if time.monotonic() > end:
            return f"{status} {output[:200]!r}"
        time.sleep(0.1)  # what a check finds, no event tells


def _unable(there: Server) -> str:
    """Why a command does not work; empty where it does."""
    word = nonce()
    try:
        result = there.client.clone(timeout_s=_WORKS_S, grace_s=0).bash(there.slot(), f"echo {word}")
    except ServerError as error:
        return str(error)
    return "" if result.output.strip() == word else str(result)


@check(
    "resilience.port-taken",
    "Where another process holds its port, the server says in its log that the address is in use, and ends or tries "
    "again; it does not answer beside the other.",
    why="A server that starts all the same shares its agents with a stranger; a mute one looks like a slow start.",
    todo="Let the server end with the error of its bind, or log it; don't set SO_REUSEPORT.",
    drivers=("singularity",),
    once=True,
)
def port_taken(server: Server) -> Finding:
    placed = server.placed
    nomad, port = placed.nomad, placed.allocation.port
    # A server that Nomad knows of, on a port of which it does not: that of the sandbox itself.
    job = second_job(server, node_id=placed.allocation.node_id, restarts=False)
    try:
        job_copy.listen_on(job, port)
    except job_copy.NoTwinError as error:
        raise NotApplicable(str(error)) from None
    _kept(server).close()
    _require_held(server)
    with contextlib.ExitStack() as keep:
        try:
            keep.enter_context(job_copy.submitted(nomad, job))
            allocation = _begun(server, job["Job"]["ID"])
        except SifproofError as error:
            raise NotMeasured(f"a server to find its port taken did not start: {error}") from None
        there = dataclasses.replace(placed, job=job, allocation=allocation.model_copy(update={"port": port}))
        try:
            passed, saw = _beside(server_of(there))
        except ServerError as error:
            passed, saw = False, f"the server that held it does not answer any more: {error}"
        except SifproofError as error:
            raise NotMeasured(f"what a server whose port is taken does could not be seen: {error}") from None
        if not passed:
            _require_held(server)
        return expect(passed, f"port {port} taken: {saw}")


def _begun(server: Server, job_id: str) -> Allocation:
    """The allocation of ``job_id``, whose server runs, or has run; else :class:`SifproofError` is raised."""
    nomad, within_s = server.placed.nomad, server.placed.settings.nomad.placed_within_s
    try:
        return wait_for_allocations(nomad, job_id, 1, within_s)[0]
    except SifproofError:
        ended = [one for one in get_job_allocations(nomad, job_id) if last_start_ns(one)]
        if not ended:
            raise
        return ended[0]


def _beside(there: Server) -> tuple[bool, str]:
    """Whether a server whose port is taken says so, and does nothing else; and what was seen of it."""
    nomad, allocation = there.placed.nomad, there.placed.allocation
    within_s = max(_TAKEN_S, there.ready_within_s)
    end, index, ended = time.monotonic() + within_s, 0, None
    while True:
        if _shares(there):
            return False, "the server listens on it beside the one that holds it, and gets part of what is sent to it"
        words = [last_words(nomad, allocation, stream) for stream in ("stderr", "stdout")]
        if said := next((text for text in words if _IN_USE.search(text)), ""):
            return True, f"the last words of the server were: {said}"
        if time.monotonic() > end:
            if ended and ended.fault is Fault.INFRASTRUCTURE:
                raise ended  # the node's doing: it says nothing of the server
            did = str(ended or f"the server neither listens nor ends within {within_s:g} s")
            return False, f"{did} It wrote no word of it: {' | '.join(filter(None, words)) or 'nothing at all'}"
        raw, index = nomad.wait_for_change("allocation", allocation.id, index=index, wait_s=0.3)
        if not ended and (ended := failure_of(nomad, parse_allocation(raw))):
            end = time.monotonic() + _LOGGED_S


def _shares(there: Server) -> bool:
    """Whether some of what is sent to the port arrives at this server, though another holds it."""
    return any(_arrives(there) for _ in range(_TRIES))


def _arrives(there: Server) -> bool:
    """Whether what is sent to the port now arrives at this server."""
    # Of two that listen on one port, the kernel picks one for each connection.
    fresh, name = dataclasses.replace(there, client=there.client.clone()), f".{nonce()}"
    written = fresh.write(name, name)
    if not written.success:
        raise SifproofError("The server that holds the port can't write", why=str(written))
    try:
        fresh.read_slot_file(name)
        return True
    except NotFoundError:
        return False
    finally:
        fresh.bash(f"rm -f {name}")


def _require_held(server: Server) -> None:
    """Not measured where the sandbox's own server does not hold its port: what else listens there shares nothing."""
    try:
        server.ask_nomad()
        held = any(_arrives(server) for _ in range(2 * _TRIES))
    except SifproofError as error:
        raise NotMeasured(f"the server that was to hold the port does not: {error}") from None
    if not held:
        raise NotMeasured("the server that was to hold the port does not: nothing that is sent there arrives at it")


@check(
    "resilience.disk-full",
    f"On a full disk, `write_file` and `bash` fail and say so, in {SLOTS_LOOKED_AT}, `/health` answers, and when space "
    "is freed writing works again.",
    why="A write that is answered with success and lost is found out when the work is gone.",
    todo="Look for errors of write, fsync and close that the server drops.",
    once=True,
)
def disk_full(server: Server) -> Finding:
    return server.share("filled", lambda: _fill_disk(server)).finding


def _fill_disk(server: Server) -> Filled:
    placed = server.placed
    job = second_job(server, node_id=placed.allocation.node_id)
    job_copy.give_small_disk(job)
    _kept(server).close()
    with contextlib.ExitStack() as keep:
        return _filled(start(server, job, keep))


@dataclasses.dataclass(frozen=True)
class Filled:
    """What was seen on a full disk, and of a file whose new content did not fit on it."""

    finding: Finding
    replaced: Finding


@check(
    "resilience.disk-full-kept",
    "What was in a file is still there when `write_file` fails on a full disk.",
    why="A failed edit must not cost the work that was to be edited.",
    todo="Write to a temporary file beside it, and rename that when all of it is written.",
    advisory=dict.fromkeys(DRIVERS, "a server may write files in place, so that links to them and their owners stay"),
    once=True,
)
def disk_full_kept(server: Server) -> Finding:
    try:
        return server.share("filled", lambda: _fill_disk(server)).replaced
    except SifproofError as error:
        raise NotMeasured(f"there was no full disk to look at: {error}") from None


def _filled(there: Server) -> Filled:
    word, fill, slots = nonce(), nonce(), looked_at(there)
    kept = there.write(word, word)
    old = f"{word}-old"
    there.write(old, word)
    space = there.bash("df -Pk .")
    columns = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s", space.output)
    if not columns:
        raise NotMeasured(f"`df` in the sandbox does not tell how large its disk is: {space}")
    free = int(columns[1]) << 10
    if free > 512 * _MIB:
        raise NotMeasured(f"the small file system of the node has {free // _MIB} MiB free: too large to be filled")
    full = there.bash(f"dd if=/dev/zero of={fill} bs=65536 count={free // 65536 + 64}", timeout_s=120)
    # To the last byte: what a page or a block still holds would be a write that works.
    there.bash(f"while echo {word} >> {fill}; do :; done 2>/dev/null", timeout_s=120)
    wrong = [f"filling it by bash: {full}"] if full.success or not full.exit_code else []
    for slot in slots:
        # Files of their own: to write one anew that takes up space may free it first.
        written = there.write(f"{fill}.w", word * 1000, slot=slot)
        if written.success or not written.error:
            wrong.append(f"write_file in slot {slot}: {written}")
        ran = there.bash(f"echo {word * 1000} > {fill}.b", slot=slot)
        if ran.success or not ran.exit_code:
            wrong.append(f"bash in slot {slot}: {ran}")
    there.client.health()
    before = there.read(word)
    replaced = there.write(old, word * 1000)
    left = there.read(old).output
    kept_old = left == (word * 1000 if replaced.success else word)
    for slot in slots:
        there.bash(f"rm -f {fill} {fill}.*", slot=slot)
    again = there.write(fill, word)
    seen = there.bash(f"cat {fill}")
    if not kept.success or before.output != word:
        wrong.append(f"a file from before it was full: {before}")
    if not again.success or seen.output.strip() != word:
        wrong.append(f"after space was freed, wrote: {again}; read: {seen}")
    saw = f"{free // _MIB} MiB filled: {full.error}; {written.error}; {ran.error}"
    return Filled(
        expect(not wrong, "; ".join(wrong) or saw),
        expect(kept_old, f"written anew: {replaced}; afterwards it holds {len(left)} characters of {len(word)}"),
    )


@check(
    "resilience.agent",
    "While the node's Nomad agent is dead (SIGKILL) the server works on; when the agent is back it has the allocation "
    "again, with the same process and data, and can stop it, or Nomad says what became of it.",
    why="Agents are restarted for updates under running sandboxes; one that forgets its tasks leaves them for ever.",
    todo="See what ties the server to the agent's life (control groups, a parent that it watches), and read the "
    "allocation's events.",
    blames=Fault.INFRASTRUCTURE,
    waits_s=extra_client.FIRST_HEARTBEAT_S,
    once=True,
)
def agent(server: Server) -> Finding:
    placed = server.placed
    if not placed.cluster.local:
        raise NotApplicable("the cluster is not this run's own: nobody kills agents that others use")
    _kept(server).close()
    with contextlib.ExitStack() as keep:
        try:
            client = _second(server)
            client.wait_ready()
        except SifproofError as error:
            raise NotMeasured(f"there is no agent to be killed: {error}") from None
        there = start(server, second_job(server, datacenter=client.datacenter), keep)
        files = write_files(there)
        held = keep.enter_context(_held(there.placed.allocation.id))
        client.kill()
        if unable := _unable(there):
            return expect(False, f"with the agent killed, a command: {unable}")
        began = time.monotonic()
        client.start()
        if away := _away(there, files[0], client):
            return expect(False, f"the agent was started again, and does not have the allocation back: {away}")
        seconds = time.monotonic() - began
        before, now = (
            there.placed.allocation,
            parse_allocation(placed.nomad.get("allocation", there.placed.allocation.id)),
        )
        if now.client_status != "running" or last_start_ns(now) != last_start_ns(before):
            gone = leftovers.wait_ended(held, placed.settings.nomad.stopped_within_s)
            told = "; ".join(f"{e.type}: {e.message}" for e in now.events[-3:])
            return expect(gone, f"Nomad says: {told}; the old server {'has ended' if gone else 'still runs'}")
        wrong = lost(there, files)
        if held and leftovers.wait_ended(held, 0):
            wrong.append("its processes are not those from before")
        placed.nomad.deregister(there.placed.job["Job"]["ID"], purge=False)
        if not leftovers.wait_ended(held, placed.settings.nomad.stopped_within_s):
            wrong.append(f"told to stop it, Nomad did not within {placed.settings.nomad.stopped_within_s:g} s")
    same = f"the same {len(held)} processes" if held else "the same server, whose processes can't be seen from here,"
    return expect(not wrong, "; ".join(wrong) or f"{same} with their data, {seconds:.1f} s after the agent's start")


@contextlib.contextmanager
def _held(allocation: str) -> Iterator[list[int]]:
    """Descriptors of the processes of an allocation on this machine: they go on meaning these."""
    seen = leftovers.find_processes([allocation])[allocation]
    opened = leftovers.open_pidfds([process.pid for process in seen if not process.is_nomad])
    try:
        yield list(opened.values())
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _away(there: Server, kept: Kept, client: extra_client.SecondClient) -> str:
    """Wait until Nomad reads a file of the allocation from its agent again; why it does not, empty where it does."""
    path = f"{there.workspace(kept.slot)}/{kept.path}"
    end = time.monotonic() + _BACK_S
    while True:
        try:
            there.read_allocation_file(path)
            return ""
        except SifproofError as error:
            if time.monotonic() > end:
                return str(error)
        client.check_runs()
        time.sleep(0.05)  # what an agent knows again, no event tells
