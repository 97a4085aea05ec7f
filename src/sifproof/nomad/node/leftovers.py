"""What is left of an allocation, or of an agent, on this machine: processes, mounts and Docker containers.

A process belongs to an allocation when the kernel says so by any of: its environment, its control group, its working
directory, its root, an open file, or a mount made from the allocation's directory. A process can shed some of these,
seldom all. Command lines don't count, nor do variables that Nomad doesn't set: whoever watches a log names the
allocation too.

Reads ``/proc``. An ordinary user sees what runs as the same user; the processes of others are passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.image.daemon import ANSWERS_WITHIN_S
from sifproof.nomad.ports import MARK

_PROC = Path("/proc")
_REMOVED_WITHIN_S = 60.0

_VARIABLES = (b"NOMAD_", b"HOME=", f"{MARK}=".encode())


class Process(BaseModel):
    """A process that belongs to what was looked for."""

    model_config = ConfigDict(frozen=True)

    pid: int
    command: str = Field(description="its command line")
    by: str = Field(description="what gave it away: environment, cgroup, cwd, root, file, mount or child")
    program: str = Field(
        "",
        description="name of the file that it runs, which it can't choose as it does its command line; "
        "`-` in a container, where files have any name; empty where it can't be read",
    )

    def __str__(self) -> str:
        return f"{self.pid} {self.command} ({self.by})"

    @property
    def is_nomad(self) -> bool:
        """Whether it is one of the helpers that Nomad keeps beside a task (logmon, executor, docker_logger)."""
        return self._name == "nomad" and len(self.command.split()) > 1

    @property
    def is_agent(self) -> bool:
        """Whether it is a Nomad agent."""
        return self.is_nomad and self.command.split()[1] == "agent"

    @property
    def is_fuse(self) -> bool:
        """Whether it is a program that Apptainer mounts file systems by."""
        return self._name in FUSE_HELPERS

    @property
    def _name(self) -> str:
        return self.program or self.command.partition(" ")[0].rpartition("/")[2]


FUSE_HELPERS = frozenset({"squashfuse_ll", "squashfuse", "squashfuse3", "fuse-overlayfs", "fuse2fs", "gocryptfs"})
ANY = frozenset({"environment", "cgroup", "cwd", "root", "file", "mount"})
OWN = frozenset({"environment", "cgroup", "mount"})
"""What Nomad and the job give a process, and a person who only looks at the files does not have."""


def find_processes(needles: Collection[str], by: Collection[str] = ANY) -> dict[str, list[Process]]:
    """The processes that belong to each of ``needles``: ids of allocations, or paths of directories with a slash.

    Those that show one of the traces ``by``, and their descendants: ``squashfuse_ll`` shows none. Left out are this
    process and its ancestors, and Nomad agents.
    """
    found: dict[str, dict[int, Process]] = {needle: {} for needle in needles}
    wanted = {needle: os.fsencode(needle) for needle in needles}
    skip = set(_lineage())
    own_mounts = _namespace(os.getpid())
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in skip:
            continue
        pid = int(entry.name)
        parents[pid] = _parent(pid)
        process: Process | None = None
        for kind, trace in _traces(entry, own_mounts):
            for needle, raw in wanted.items():
                if kind not in by or raw not in trace or pid in found[needle]:
                    continue
                process = process or _process(pid, kind)
                if not process.is_agent:
                    found[needle][pid] = process.model_copy(update={"by": kind})
    for several in found.values():
        added = True
        while added:
            added = False
            for pid, parent in parents.items():
                if parent in several and pid not in several:
                    several[pid] = _process(pid, "child")
                    added = True
    return {needle: list(several.values()) for needle, several in found.items()}


def _parent(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _lineage() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        pid = _parent(pid)


def _traces(process: Path, own_mounts: str) -> Iterator[tuple[str, bytes]]:
    """What the kernel knows of ``process``, cheapest first; nothing for one that has ended or is another user's."""
    with contextlib.suppress(OSError):
        for variable in (process / "environ").read_bytes().split(b"\0"):
            if variable.startswith(_VARIABLES):
                yield "environment", variable
    with contextlib.suppress(OSError):
        yield "cgroup", (process / "cgroup").read_bytes()
    for by in ("cwd", "root"):
        with contextlib.suppress(OSError):
            yield by, os.fsencode((process / by).readlink())
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield "file", os.fsencode(descriptor.readlink())
    # Only a mount *of* the directory counts (fourth field): every copy of this machine's mount table, in whatever
    # container, names the directories that were mounted *on* when it was made.
    if _namespace(int(process.name)) not in ("", own_mounts):
        with contextlib.suppress(OSError):
            for line in (process / "mountinfo").read_bytes().splitlines():
                yield "mount", os.fsencode(unescape(line.split(b" ")[3]))


def _namespace(pid: int) -> str:
    try:
        return str((_PROC / str(pid) / "ns" / "mnt").readlink())
    except OSError:
        return ""


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        text = " ".join(w.decode("utf-8", "replace") for w in words)
        return text[:300] or f"[{(process / 'comm').read_text().strip()}]"
    except OSError:
        return "[ended]"


def _program(process: Path) -> str:
    with contextlib.suppress(OSError):
        name = (process / "exe").readlink().name.removesuffix(" (deleted)")
        return name if os.path.samestat((process / "root").stat(), Path("/").stat()) else "-"
    return ""


def _process(pid: int, by: str) -> Process:
    entry = _PROC / str(pid)
    return Process(pid=pid, command=_command(entry), by=by, program=_program(entry))


def find_mounts(needle: str) -> list[str]:
    """The mount points on this machine that ``needle`` occurs in, or whose source it occurs in; innermost first."""
    points = []
    for line in (_PROC / "self" / "mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        _, _, _, root, point, *_ = before.split(b" ")
        if any(needle in unescape(field) for field in (root, point, *after.split(b" ")[1:2])):
            points.append(unescape(point))
    return sorted(points, key=len, reverse=True)


def unescape(field: bytes) -> str:
    """A path as it is, from mountinfo, which writes white space and backslashes as octal numbers."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda number: bytes([int(number[1], 8)]), field))


def find_containers(allocation: str, docker: str) -> list[str]:
    """The Docker containers, running or not, that Nomad made for ``allocation``: id, name and state of each.

    ``docker`` is the path of the command-line client. Raises :class:`SifproofError` where the engine does not tell.
    """
    try:
        asked = subprocess.run(
            [
                docker,
                "ps",
                "--all",
                "--no-trunc",
                "--filter",
                f"label=com.hashicorp.nomad.alloc_id={allocation}",
                "--format",
                "{{json .}}",
            ],
            capture_output=True,
            text=True,
            timeout=ANSWERS_WITHIN_S,
            check=False,
            env=host_tools.environment("docker"),
        )
    except subprocess.TimeoutExpired:
        raise SifproofError(f"The Docker engine did not answer in {ANSWERS_WITHIN_S:g} s") from None
    if asked.returncode:
        raise SifproofError("The Docker engine did not answer", why=" ".join(asked.stderr.split()))
    containers = [json.loads(line) for line in asked.stdout.splitlines() if line.strip()]
    return [f"{c['ID'][:12]} {c['Names']} ({c['State']})" for c in containers]


def remove_container(container: str, docker: str) -> None:
    """End and remove ``container``, as :func:`find_containers` names it.

    Raises :class:`SifproofError` where the engine does not come to an end with it.
    """
    command = [docker, "rm", "--force", container.partition(" ")[0]]
    try:
        environment = host_tools.environment("docker")
        subprocess.run(command, capture_output=True, timeout=_REMOVED_WITHIN_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise SifproofError(f"The Docker engine did not remove {container} in {_REMOVED_WITHIN_S:g} s") from None


def open_pidfds(pids: Collection[int]) -> dict[int, int]:
    """A pidfd for each of ``pids`` that still runs, by pid. The caller closes them."""
    opened = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            opened[pid] = os.pidfd_open(pid)
    return opened


def wait_ended(pidfds: Collection[int], deadline_s: float) -> bool:
    """Wait until the processes of ``pidfds`` have ended; whether they all have within ``deadline_s`` seconds."""
    end = time.monotonic() + deadline_s
    waiting = set(pidfds)
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        events = poll.poll(max(end - time.monotonic(), 0) * 1000)
        if not events:
            return False
        for descriptor, _ in events:
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    return True


def wait_none(find: Callable[[], Sequence[Process]], deadline_s: float) -> list[Process]:
    """Wait until ``find`` finds no process; those that are still there after ``deadline_s`` seconds.

    It looks again after every process it found has ended, since one may have started another.
    """
    end = time.monotonic() + deadline_s
    while True:
        found = list(find())
        left = end - time.monotonic()
        if not found or left <= 0:
            return found
        pidfds = open_pidfds([p.pid for p in found])
        try:
            wait_ended(pidfds.values(), left)
        finally:
            for descriptor in pidfds.values():
                os.close(descriptor)


def wait_unmounted(needle: str, deadline_s: float) -> list[str]:
    """Wait until nothing is mounted any more that ``needle`` occurs in; what still is after ``deadline_s`` seconds."""
    end = time.monotonic() + deadline_s
    with (_PROC / "self" / "mountinfo").open("rb") as table:
        poll = select.poll()
        # The kernel flags the table when it changes.
        poll.register(table, select.POLLERR | select.POLLPRI)
        while found := find_mounts(needle):
            left = end - time.monotonic()
            if left <= 0:
                return found
            poll.poll(left * 1000)
    return []


def end_processes(processes: Collection[Process], grace_s: float) -> None:
    """End ``processes``: SIGTERM, then SIGKILL to those that are left after ``grace_s`` seconds."""
    pidfds = open_pidfds([p.pid for p in processes])
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for descriptor in pidfds.values():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(descriptor, number)
            if wait_ended(pidfds.values(), grace_s):
                return
    finally:
        for descriptor in pidfds.values():
            os.close(descriptor)
