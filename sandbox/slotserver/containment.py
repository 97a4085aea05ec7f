"""What a command is locked into, and which of it this machine allows.

Tried when the server starts, by really running a command, best first:

``bubblewrap``  name spaces of its own: a read-only root, only the slot's workspace (at /workspace) and the slot's /tmp
                writable, no other slot's files, private process ids, no network where that is asked for.
``user``        where the server is root but name spaces are forbidden (Docker's default profile): each slot's commands
                run as a user of that slot alone, so that no slot can touch the files or processes of another. /tmp is
                shared; what a command makes there is closed to the group, which is the other slots' users.
``none``        the server's own user, in the workspace directory.

In each of them a command's whole process tree ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import directories
from .directories import FIRST_SLOT_USER, SLOT_GROUP, STATE_DIRECTORY, WORKSPACES_DIRECTORY
from .process import Process, Reaper

SANDBOX_WORKSPACE = "/workspace"
_SUPERVISOR = str(Path(__file__).with_name("supervisor.py"))
_PROBE_TIMEOUT_S = 10.0
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel: not that of a container
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_BY_STRENGTH = ("none", "user", "bubblewrap")
_RECORD = "containment"
# Top-level directories that the sandbox has of its own, or not at all: /run and /sys tell about the host.
_OWN_TOP_LEVEL = {"proc", "dev", "tmp", "run", "sys", SANDBOX_WORKSPACE[1:], "lost+found"}
_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/run/lock")  # noqa: S108
# Directories of the allocation, as Nomad's docker driver mounts them.
_NOMAD_DIRECTORIES = ("NOMAD_ALLOC_DIR", "NOMAD_TASK_DIR", "NOMAD_SECRETS_DIR")
# Credentials in the server's environment are not for the commands that run in it.
_WITHHELD = re.compile(r"^(NOMAD|VAULT|CONSUL|AWS)_|TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_?KEY", re.IGNORECASE)


class WeakerError(Exception):
    """Commands would be locked in less than they were before."""


@dataclass(frozen=True)
class Place:
    """Where the commands of one slot run."""

    slot_id: str
    index: int
    workspace: Path
    tmp: Path

    @classmethod
    def of_slot(cls, data: Path, index: int) -> Place:
        """That of the slot ``index``."""
        name = f"slot_{index}"
        return cls(name, index, data / WORKSPACES_DIRECTORY / name, data / STATE_DIRECTORY / name)


class Containment:
    """One way to lock commands in."""

    name: str
    sandboxed = False
    can_cut_network = False

    def argv(self, place: Place, command: Sequence[str], *, network: bool, report_fd: int) -> list[str]:
        """The command line that runs ``command`` in ``place`` and reports to ``report_fd`` as bwrap(1) does."""
        raise NotImplementedError

    def environment(self, place: Place) -> dict[str, str]:
        """The environment of a command."""
        kept = {name: value for name, value in os.environ.items() if not _WITHHELD.search(name)}
        defaults = {"PATH": os.defpath, "LANG": "C.UTF-8"}
        return defaults | kept | self._own_environment(place)

    def _own_environment(self, place: Place) -> dict[str, str]:
        return {"HOME": str(place.workspace), "PWD": str(place.workspace), "TMPDIR": str(place.tmp)}

    def owner(self, place: Place) -> tuple[int, int]:
        """User and group that commands run as and that the slot's files belong to; -1 where it is the server's own."""
        return -1, -1

    def shared(self) -> tuple[str, ...]:
        """Directories to which the commands of all slots may write, and where the owner of a file tells whose it is."""
        return ()

    def prepare(self, place: Place, *, as_new: bool = False) -> None:
        """See that the slot's directories are there and its own, as far as this containment can. Raises OSError.

        ``as_new`` takes away what a command set for them: modes and access lists.
        """
        for directory in (place.workspace, place.tmp):
            with directories.opened(directory, self.owner(place), as_new=as_new):
                pass

    @contextlib.contextmanager
    def workspace(self, place: Place) -> Iterator[int]:
        """A descriptor of the slot's workspace, which is there and its own. Raises OSError."""
        with directories.opened(place.workspace, self.owner(place)) as descriptor:
            yield descriptor


class Bubblewrap(Containment):
    """Name spaces made by bwrap(1)."""

    name = "bubblewrap"
    sandboxed = True

    def __init__(self, program: str, data_dir: Path) -> None:
        self._program = program
        self._root = _read_only_root(hidden=[data_dir, *_allocation_directories()])

    def argv(self, place: Place, command: Sequence[str], *, network: bool, report_fd: int) -> list[str]:
        """See Containment."""
        return [
            self._program,
            *("--json-status-fd", str(report_fd), "--die-with-parent", "--new-session"),
            *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL"),
            *(() if network else ("--unshare-net",)),
            *self._root,
            # Where the server is the machine's root, so is a command, to whom the kernel's settings are open for
            # writing, without any capability: a core_pattern is a program that the kernel runs outside.
            *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev", "--tmpfs", "/run"),
            *("--bind", str(place.tmp), "/tmp"),  # noqa: S108
            *("--bind", str(place.workspace), SANDBOX_WORKSPACE, "--remount-ro", "/"),
            *("--chdir", SANDBOX_WORKSPACE, "--", *command),
        ]

    def _own_environment(self, place: Place) -> dict[str, str]:
        return {"HOME": SANDBOX_WORKSPACE, "PWD": SANDBOX_WORKSPACE, "TMPDIR": "/tmp"}  # noqa: S108 (the slot's own)


class Supervised(Containment):
    """No name spaces: a process tree that ends with the command, in the workspace, as a user of the slot's or not."""

    def __init__(self, *, user_per_slot: bool) -> None:
        self.name = "user" if user_per_slot else "none"
        self._user_per_slot = user_per_slot

    def owner(self, place: Place) -> tuple[int, int]:
        """See Containment."""
        return (FIRST_SLOT_USER + place.index, SLOT_GROUP) if self._user_per_slot else (-1, -1)

    def shared(self) -> tuple[str, ...]:
        """See Containment. Of files of one user for all nobody knows which slot's they are, nor whether of any."""
        return _SHARED if self._user_per_slot else ()

    def argv(self, place: Place, command: Sequence[str], *, network: bool, report_fd: int) -> list[str]:
        """See Containment."""
        user, group = self.owner(place)
        return [sys.executable, "-I", "-S", _SUPERVISOR, str(report_fd), f"{user}:{group}", *command]


async def choose(reaper: Reaper, data: Path, slots: int, *, user_per_slot: bool) -> tuple[Containment, str]:
    """The best containment that works here, and why no better one does (empty for the best).

    ``data`` is the data directory, which no sandbox may see. It is tried in directories made for it there, and as a
    user beyond those of the ``slots``: commands may have done what they like with theirs. Raises OSError where the
    directories can't be made.
    """
    name = f"probe-{secrets.token_hex(4)}"
    place = Place(name, slots, data / STATE_DIRECTORY / name, data / STATE_DIRECTORY / f"{name}-tmp")
    try:
        return await _best(reaper, place, data, user_per_slot=user_per_slot)
    finally:
        for directory in (place.workspace, place.tmp):
            shutil.rmtree(directory, ignore_errors=True)


async def _best(reaper: Reaper, place: Place, data: Path, *, user_per_slot: bool) -> tuple[Containment, str]:
    program = shutil.which("bwrap")
    if program is None:
        why_not = "bubblewrap: bwrap is not on PATH"
    else:
        bubblewrap = Bubblewrap(program, data)
        problem = await _problem(reaper, bubblewrap, place)
        if problem and _unmask_proc():
            problem = await _problem(reaper, bubblewrap, place)
        if not problem:
            problem = await _problem(reaper, bubblewrap, place, network=False)
            bubblewrap.can_cut_network = not problem
            return bubblewrap, f"no sandbox without network: {problem}" if problem else ""
        why_not = f"bubblewrap: {problem}"
    if user_per_slot and os.geteuid() == 0:
        by_user = Supervised(user_per_slot=True)
        problem = await _problem(reaper, by_user, place)
        if not problem:
            return by_user, "; ".join([why_not, *directories.close_to_slots(data, _allocation_directories())])
        why_not += f"; a user per slot: {problem}"
    return Supervised(user_per_slot=False), why_not


def hold_to(data: Path, chosen: Containment, why_not: str, *, weaker: bool) -> None:
    """Note down what commands are locked into in this data directory, unless they were better locked in before.

    Then WeakerError is raised, but where ``weaker`` says that it may be: whoever was promised a sandbox would go on
    without one after a restart, and nobody would know. Raises OSError.
    """
    with directories.state(data) as state:
        before = _read(state, _RECORD)
        if not weaker and _strength(chosen.name) < _strength(before):
            raise WeakerError(
                f"the commands of {data} were locked in by {before!r}, and now only {chosen.name!r} works ({why_not}); "
                "mend that, or let them be locked in less with --allow-weaker"
            )
        if before != chosen.name:
            _replace(state, _RECORD, chosen.name)


def _strength(name: str) -> int:
    return _BY_STRENGTH.index(name) if name in _BY_STRENGTH else 0


def _read(directory: int, name: str) -> str:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return ""
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(64).decode(errors="replace")


def _replace(directory: int, name: str, text: str) -> None:
    temporary = f".{name}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o644, dir_fd=directory), "w") as stream:
        stream.write(text)
    os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def _unmask_proc() -> bool:
    """Mount a whole /proc over one that the container's engine has laid masks on; whether there is one now.

    The kernel lets no user namespace have a /proc that shows more than the one outside of it. In Docker that takes
    CAP_SYS_ADMIN, and a seccomp and an AppArmor profile that let it be used. Nowhere but in a container.
    """
    try:
        mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
        if "/proc/sys" not in mounts or Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE:
            return False
        return ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", _NOSUID_NODEV_NOEXEC, None) == 0
    except OSError:
        return False


async def _problem(reaper: Reaper, containment: Containment, place: Place, *, network: bool = True) -> str:
    """Run a command that writes into the workspace and reads /proc; returns why it failed."""
    script = 'test -r /proc/self/stat && probe=$(mktemp -p "$PWD") && rm -- "$probe"'
    try:
        containment.prepare(place)
        with containment.workspace(place) as workspace:
            process = Process(
                reaper,
                lambda fd: containment.argv(place, ["bash", "-c", script], network=network, report_fd=fd),
                cwd=str(directories.path_of(workspace)),
                env=containment.environment(place),
                output_limit=4096,
            )
    except OSError as error:
        return str(error)
    async with process:
        try:
            code = await asyncio.wait_for(process.wait(), _PROBE_TIMEOUT_S)
        except TimeoutError:
            return f"no end after {_PROBE_TIMEOUT_S:g} s"
    if code == 0:
        return ""
    said = process.stderr.take()[0].decode(errors="replace").strip()
    return said or f"exit code {code}"


def _allocation_directories() -> list[Path]:
    return [Path(os.environ[name]) for name in _NOMAD_DIRECTORIES if os.environ.get(name)]


def _read_only_root(hidden: list[Path]) -> list[str]:
    """bwrap's arguments for a root with everything that is in ours, read-only, but for what is hidden.

    Top-level entries one by one, rather than the root as a whole, so that /workspace need not exist in the image.
    """
    concealed = {path.resolve() for path in hidden if path.is_dir()}
    arguments: list[str] = []
    with os.scandir("/") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name in _OWN_TOP_LEVEL or Path(entry.path) in concealed:
                continue
            if entry.is_symlink():
                arguments += ["--symlink", str(Path(entry.path).readlink()), entry.path]
            elif entry.is_dir() or entry.is_file():
                arguments += ["--ro-bind-try", entry.path, entry.path]
    for path in sorted(concealed):
        if len(path.parts) > 2 and path.parts[1] not in _OWN_TOP_LEVEL:
            arguments += ["--tmpfs", str(path)]
    return arguments
