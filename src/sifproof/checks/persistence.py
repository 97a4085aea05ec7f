"""What was written is in the allocation's directory, and stays."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from shlex import quote

from sifproof.checks.engine.readiness import answers
from sifproof.checks.engine.registry import Finding, NotMeasured, check, expect, measured
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.isolation.slot import LockedIn
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.allocations import parse_allocation
from sifproof.nomad.client import ForbiddenError, NotFoundError
from sifproof.nomad.restart import last_start_ns, wait_started_again

_SLOTS = 8
SLOTS_LOOKED_AT = f"every slot (of more than {_SLOTS}, the first {_SLOTS - 1} and the last)"


def looked_at(server: Server) -> list[int]:
    """Numbers of the slots that :data:`SLOTS_LOOKED_AT` names."""
    every = range(server.slots)
    return list(every) if len(every) <= _SLOTS else [*every[: _SLOTS - 1], every[-1]]


@dataclass(frozen=True)
class Kept:
    """A file that was written: in which slot, by which tool, where, with which word in it."""

    slot: int
    tool: str
    path: str
    word: str

    def __str__(self) -> str:
        return f"what {self.tool} wrote in slot {self.slot}"


def write_files(server: Server) -> list[Kept]:
    """A file by ``write_file`` in each slot that is looked at, and one by ``bash``; removed when the suite is over.

    Raises :class:`SifproofError` where the server says that it can't.
    """
    folder = nonce()
    files = []
    for slot in looked_at(server):
        server.keep.callback(_remove, server, folder, slot)
        for tool in ("write_file", "bash"):
            kept = Kept(slot, tool, f"{folder}/{tool}/file", nonce())
            if tool == "write_file":
                written = server.write(kept.path, kept.word, slot=slot)
            else:
                written = server.bash(
                    f"mkdir -p {folder}/{tool} && printf %s {kept.word} > {quote(kept.path)}", slot=slot
                )
            if not written.success:
                raise SifproofError(f"A file could not be written by {tool}", why=str(written), fault=Fault.IMAGE)
            files.append(kept)
    return files


def _remove(server: Server, folder: str, slot: int) -> None:
    with contextlib.suppress(SifproofError):
        server.bash(f"rm -rf -- {folder}", slot=slot)


def lost(server: Server, files: list[Kept]) -> list[str]:
    """Which of ``files`` are not there for ``read_file`` or ``bash`` as they were written."""
    wrong = []
    for kept in files:
        read, seen = server.read(kept.path, slot=kept.slot), server.bash(f"cat {quote(kept.path)}", slot=kept.slot)
        for by, result in (("read_file", read), ("bash", seen)):
            if not result.success or result.output.strip() != kept.word:
                wrong.append(f"{kept} is not there for {by}: {result}")
    return wrong


def _not_through_nomad(server: Server, kept: Kept) -> list[str]:
    try:
        content = server.read_slot_file(kept.path, slot=kept.slot)
    except NotFoundError:
        return [f"{kept} is not in the allocation's directory"]
    return [] if content == kept.word.encode() else [f"of {kept} Nomad shows {content[:80]!r}"]


@check(
    "persistence.in-allocation",
    f"What `write_file` and `bash` write, in {SLOTS_LOOKED_AT}, is in the allocation's directory, read through Nomad.",
    why="Results are collected from there; what lies in the container's own file system goes with it.",
    todo="Look at `--data-dir`, at the binds, and at which file system each slot's workspace is on.",
)
def in_allocation(server: Server) -> Finding:
    files = write_files(server)
    wrong = [text for kept in files for text in _not_through_nomad(server, kept)]
    return expect(not wrong, "; ".join(wrong) or f"{len(files)} files, by both tools, as they were written")


@dataclass(frozen=True)
class Restarted:
    """What was written before the restart, and whether the server answered afterwards."""

    files: list[Kept]
    answered: Finding
    before: LockedIn | NotMeasured


def _seen(server: Server) -> LockedIn | NotMeasured:
    """How commands are locked in, or why that can't be told."""
    try:
        return LockedIn.seen(server, looked_at(server))
    except NotMeasured as reason:
        return reason


def _restart(server: Server) -> Restarted:
    placed = server.placed
    nomad, allocation = placed.nomad, placed.allocation
    before = last_start_ns(parse_allocation(nomad.get("allocation", allocation.id)))
    files, locked_in = write_files(server), _seen(server)
    begin = time.monotonic()
    try:
        nomad.restart(allocation.id, allocation.task)
    except ForbiddenError as error:
        raise NotMeasured(
            "the task could not be restarted, because the token lacks `alloc-lifecycle` in the namespace; give it "
            f"that, or make the checks after a restart advisory ({error.why})"
        ) from None
    answered = answers(server)
    seconds = time.monotonic() - begin
    after = wait_started_again(nomad, allocation.id, before, server.ready_within_s)
    if (after.address, after.port) != (allocation.address, allocation.port):
        answered = expect(False, f"it was at {allocation.url}, Nomad now says {after.url}")
    elif answered.passed:
        answered = measured(seconds, f"{seconds:.2f} s until `/health` answered at {after.url}")
    return Restarted(files, answered, locked_in)


@check(
    "persistence.restart",
    "After Nomad restarted its task, the server answers again at the same endpoint.",
    why="Operators restart tasks; agents go on talking to the address that they know.",
    todo="Start the server by hand on a data directory that it has worked in before; read the task's stderr.",
    unit="s",
    once=True,
)
def restart(server: Server) -> Finding:
    return server.share("restart", lambda: _restart(server)).answered


@check(
    "persistence.after-restart",
    "What was written before a restart of the task is there after it, for `read_file` and `bash`, and can be removed.",
    why="A restart must not cost an agent its work.",
    todo="Look for a workspace on a tmpfs or an overlay, and for a server that empties its directories at the start.",
    once=True,
)
def after_restart(server: Server) -> Finding:
    restarted = _restarted(server)
    wrong = lost(server, restarted.files)
    for kept in restarted.files if not wrong else []:
        removed = server.bash(f"rm {quote(kept.path)}", slot=kept.slot)
        if not removed.success:
            wrong.append(f"{kept} can't be removed: {removed}")
    return expect(not wrong, "; ".join(wrong) or f"{len(restarted.files)} files as they were written")


def _restarted(server: Server) -> Restarted:
    try:
        restarted = server.share("restart", lambda: _restart(server))
    except SifproofError as error:
        raise NotMeasured(f"the server did not come back: {error}") from None
    if not restarted.answered.passed:
        raise NotMeasured(f"the server did not come back: {restarted.answered.saw}")
    return restarted


@check(
    "persistence.isolation",
    "After a restart of the task commands are locked in as before, by whichever tool: what was sandboxed is, what had "
    "no network has none, what could not be seen or written to still can't, a slot reads no file of another that it "
    "could not read before, and the token is asked for.",
    why="What a server tries at its start may fail the next time: it goes on without its sandboxes, and nobody knows.",
    todo="Let the server end, or refuse commands, where it can't lock them in as it did before.",
    once=True,
)
def isolation(server: Server) -> Finding:
    restarted = _restarted(server)
    if isinstance(restarted.before, NotMeasured):
        raise restarted.before
    return restarted.before.still(LockedIn.seen(server, looked_at(server)))
