"""A Nomad agent of one run: server and client on loopback, gone with the run whatever way that ends.

:func:`start` hands the agent to a supervisor (:mod:`.supervisor`), a process of its own session that watches the run's
outermost process and clears everything away when that has ended. The agent gets a directory under ``.tools/agents/``,
named after the run::

    lock          held by the supervisor as long as it lives: a directory whose lock is free belongs to nobody, unless
                  another machine made it; its process id, and that machine
    state.json    address, process ids
    token         what its API asks for; for the eyes of this user alone
    agent.json    what is added to nomad-singularity.hcl; holds a key, so for this user alone too
    tls/          certificate for the port that Nomad's servers and clients use among themselves
    data/         Nomad's: allocations and state
    second-…/     the same of a client beside it, while there is one (see :mod:`sifproof.nomad.agent.extra_client`)

Its API runs any program as the agent's user, outside all containers, and loopback is open to every user of the machine
and to what runs in a contained sandbox. So it answers to that token alone, and the ports for Nomad's servers to that
certificate and that key. The supervisor makes them.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sifproof import host_tools, locks
from sifproof.checkout import ROOT
from sifproof.errors import Fault, SifproofError
from sifproof.image.process import tail
from sifproof.nomad.client import Client, connect
from sifproof.nomad.job import validate_id
from sifproof.nomad.node import leftovers

CONFIGURATION = ROOT / "nomad-singularity.hcl"
DIRECTORY = ROOT / ".tools" / "agents"
"""Not in the folder of set-up's tools where that is elsewhere: it may be another user's, or shared by checkouts."""

SECOND = "second-"
"""Begins the name of the directory of a second client, in that of the agent."""

_CGROUPS = Path("/sys/fs/cgroup")
_LOG_BYTES = 65536
_READY_S = 60.0
_GONE_S = 120.0
_LONGEST_TMPDIR = 70
"""Nomad makes Unix sockets in TMPDIR; the path of one has 107 characters at most."""

# All that the agent, and so a task, gets of the environment of the run: no token can be in it.
_HANDED_ON = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "DOCKER_HOST",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "XDG_RUNTIME_DIR",
)


# Secrets that are none: what a sandbox sees of them (isolation.host.environment), it would see of true ones. Apptainer
# takes what follows APPTAINERENV_ for the name of a variable inside, whatever it is told to leave outside. They begin
# as true ones do.
_PLANTED = {
    "SIFPROOF_PLANTED_TOKEN": "hf_",
    "APPTAINERENV_SIFPROOF_PLANTED": "ghp_",
    "SINGULARITYENV_SIFPROOF_PLANTED": "",
}


class LocalAgent(BaseModel):
    """A local agent that is ready."""

    model_config = ConfigDict(frozen=True)

    run: str
    address: str = Field(description="URL of its API, on loopback")
    directory: Path
    supervisor: int = Field(description="process id of the supervisor")
    agent: int = Field(description="process id of the agent")
    ready_s: float = Field(description="seconds from start to ready")

    def connect(self) -> Client:
        """A client of it; settings for another cluster in the environment don't count."""
        return connect_to(self.address, self.directory)


def connect_to(address: str, directory: Path, namespace: str | None = None) -> Client:
    """A client of the local agent at ``address``, with the token that lies in its ``directory``.

    Raises :class:`SifproofError` where the agent has ended.
    """
    try:
        token = (directory / "token").read_text(encoding="ascii")
    except OSError as error:
        raise SifproofError(
            f"The local Nomad agent of run {directory.name} is not there",
            why=f"its token can't be read: {error.strerror}",
            todo="read nomad-agent.log in the run's folder",
        ) from None
    return connect(address, token=token, namespace=namespace, environment={}, own=True)


def start(
    run: str,
    directory: Path,
    watch_pid: int,
    *,
    log: Path | None = None,
    configuration: Path = CONFIGURATION,
) -> LocalAgent:
    """Start an agent for ``run`` under ``directory``, to live as long as process ``watch_pid``.

    Returns when it is ready. ``log`` takes the log of the agent (``<directory>/<run>.log`` where absent) and outlives
    it. A second call for the same run returns the agent that is there. What dead supervisors left under ``directory``
    is cleared away first.

    Raises :class:`SifproofError`, with the last lines of the log, where the agent does not become ready.
    """
    validate_id(run, "run id")
    directory = directory.resolve()
    if any(c in str(directory) for c in ":,"):
        raise SifproofError(
            f"The folder {directory} can't hold a Nomad agent",
            why="its path has a colon or a comma, which bind mounts can't name",
            todo="move the checkout",
            fault=Fault.CONFIGURATION,
        )
    if not configuration.is_file():
        raise SifproofError(f"The agent configuration {configuration} is missing", fault=Fault.CONFIGURATION)
    nomad = host_tools.require("nomad").path
    directory.mkdir(parents=True, exist_ok=True)
    sweep(directory)
    home = directory / run
    running = find(run, directory)
    if running:
        return running
    # Opened here, while the caller knows the process: its number can't come to mean another one later. And before there
    # is a directory, which would stay where that process has ended already.
    try:
        watched = os.pidfd_open(watch_pid)
    except OSError as error:
        raise SifproofError(f"Process {watch_pid} can't be watched", why=str(error)) from None
    home.mkdir(mode=0o711, exist_ok=True)
    log = log or directory / f"{run}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    order = {
        "run": run,
        "home": str(home),
        "nomad": str(nomad),
        "configuration": str(configuration.resolve()),
        "log": str(log.resolve()),
        "watched": watched,
        "ready": writer,
        "ready_s": _READY_S,
    }
    try:
        with log.open("ab") as stream:
            # It forks and returns at once: the supervisor is nobody's child, so nobody has to wait for it.
            subprocess.run(
                [sys.executable, "-P", "-m", "sifproof.nomad.agent.supervisor", json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=(watched, writer),
                env={**_environment(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                check=False,
            )
    finally:
        os.close(writer)
        os.close(watched)
        with os.fdopen(reader, encoding="utf-8") as answer:
            said = answer.read()  # ends when the supervisor says it, or dies
    if not said:
        raise SifproofError("The supervisor of the local Nomad agent died", todo=f"read {log}")
    told = json.loads(said)
    if "error" in told:
        raise SifproofError("The local Nomad agent did not start", why=told["error"] + _tail(log), todo=f"read {log}")
    return LocalAgent.model_validate(told)


def handed_on() -> dict[str, str]:
    """What an agent gets of this process's environment."""
    given = {**os.environ, **host_tools.environment()}
    return {name: given[name] for name in _HANDED_ON if given.get(name)}


def _environment(home: Path) -> dict[str, str]:
    temporary = home / "tmp"
    if len(str(temporary)) > _LONGEST_TMPDIR:
        temporary = Path(tempfile.mkdtemp(prefix="sifproof-"))
    else:
        temporary.mkdir(exist_ok=True)
    planted = {
        name: kind + "".join(secrets.choice(string.ascii_letters) for _ in range(36)) for name, kind in _PLANTED.items()
    }
    return {**handed_on(), **planted, "TMPDIR": str(temporary)}


def _tail(log: Path, lines: int = 8) -> str:
    try:
        with log.open("rb") as stream:
            text = tail(stream, _LOG_BYTES).splitlines()
    except OSError:
        return ""
    return "".join(f"\n  {line.strip()}" for line in text[-lines:])


def find(run: str, directory: Path = DIRECTORY) -> LocalAgent | None:
    """The agent of ``run``, if its supervisor lives and it is ready."""
    home = directory.resolve() / run
    if not home.is_dir() or not is_locked(home):
        return None
    try:
        agent = LocalAgent.model_validate_json((home / "state.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    return agent if agent.ready_s else None


def stop(run: str, directory: Path = DIRECTORY) -> None:
    """End the agent of ``run``, its jobs and its directory, and return when they are gone. None is no error.

    Raises :class:`SifproofError` where something of it is still there after two minutes.
    """
    home = directory.resolve() / validate_id(run, "run id")
    end = time.monotonic() + _GONE_S
    supervisor = _supervisor(home)
    if supervisor is not None:
        with _pidfd(supervisor) as descriptor:
            if descriptor is not None and is_locked(home):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                leftovers.wait_ended([descriptor], end - time.monotonic())
    sweep(directory.resolve())
    if home.exists() and not is_locked(home):
        # Interrupted before there was a supervisor; one that is on its way ends without the directory.
        clear(home)
    if home.exists():
        raise SifproofError(
            f"The local Nomad agent of run {run} is still there after {_GONE_S:g} s",
            why=f"supervisor {supervisor} in {home}",
            todo="look at its processes, end them, and remove the folder",
        )


def _supervisor(home: Path) -> int | None:
    """Its process, where that is one of this machine."""
    pid, made_by = _owner(home)
    return int(pid) if pid and made_by == locks.machine() else None


def _owner(home: Path) -> tuple[str, str]:
    """Process id and machine of the supervisor of ``home``, as its lock names them; empty where it does not."""
    try:
        pid, made_by = (home / "lock").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "", ""
    return pid, made_by


@contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(home: Path) -> bool:
    """Whether a supervisor lives that owns ``home``, or may live on another machine."""
    try:
        # Shared: two who ask at once are no supervisor to each other.
        held = locks.take(home / "lock", wait=False, shared=True, make=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True
    if held is None:
        return True
    with held:
        return locks.may_live(_owner(home)[1], home)


def sweep(directory: Path = DIRECTORY) -> list[str]:
    """Clear away what dead supervisors left under ``directory``; the runs that were theirs."""
    swept = []
    for home in sorted(_paths(directory.resolve(), "*")):
        with contextlib.suppress(FileNotFoundError):  # another run has ended meanwhile
            # Without a lock file a start is on its way, or was killed in its first moments: an hour tells which.
            if not (home / "lock").exists() and time.time() - home.stat().st_mtime < 3600:
                continue
            if home.is_dir() and not is_locked(home):
                clear(home)
                swept.append(home.name)
    return swept


def _paths(folder: Path, pattern: str) -> list[Path]:
    """What of ``pattern`` is in ``folder``. Unlike ``Path.glob``, this takes no harm where a folder goes meanwhile."""
    return [folder / name for name in glob.glob(pattern, root_dir=folder)]  # noqa: PTH207


def processes(home: Path) -> list[leftovers.Process]:
    """The processes that the agent of ``home`` started, those of its tasks among them.

    Not those that only look at its files: these may be a person's.
    """
    ids = [path.name for path in _allocations(home)]
    found = leftovers.find_processes([f"{home}/", *ids], leftovers.OWN)
    return list({p.pid: p for several in found.values() for p in several}.values())


def _allocations(home: Path) -> list[Path]:
    """The directories of the allocations of the agent at ``home`` and of its second clients, or of such a client."""
    return [path for place in ("data/", f"{SECOND}*/", "") for path in _paths(home, f"{place}alloc/*")]


def end_second_clients(home: Path) -> None:
    """End the clients that :mod:`.extra_client` started beside the agent of ``home``, with their tasks."""
    for place in _paths(home, f"{SECOND}*"):
        end_second_client(place)


def end_second_client(place: Path) -> None:
    """End what is left of a second client with its directory at ``place``, and of its tasks.

    For when it can't be told to stop its tasks any more.
    """
    with contextlib.suppress(FileNotFoundError):
        leftovers.end_processes(_agent(place, (place / "pid").read_text(encoding="ascii")), 0)
    _end(lambda: processes(place))
    _unmount(place)


def clear(home: Path) -> list[str]:
    """End every process that belongs to ``home``, undo its mounts, remove it; what was found, in words."""
    found: list[str] = []
    docker = host_tools.find("docker")
    if docker:
        # No engine here: no container here either, or none that could be removed.
        with contextlib.suppress(SifproofError):
            for allocation in _allocations(home):
                for container in leftovers.find_containers(allocation.name, str(docker.path)):
                    found.append(f"container {container}")
                    leftovers.remove_container(container, str(docker.path))
    found += _end(lambda: [*_agents(home), *processes(home)])
    found += [f"mount {point}" for point in _unmount(home)]
    for allocation in _allocations(home):
        for group in _paths(_CGROUPS, f"*/nomad/{allocation.name}.*"):
            with contextlib.suppress(OSError):
                group.rmdir()
    temporary = _temporary(home)
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)
    left = leftovers.find_mounts(f"{home}/")
    if left:  # what lies behind it may be anybody's
        return [*found, f"nothing, of the files: {', '.join(left)} can't be unmounted"]
    shutil.rmtree(home, ignore_errors=True)
    return found


def _unmount(folder: Path) -> list[str]:
    """Undo the mounts in ``folder``, and those of what is in it; where they were."""
    points = leftovers.find_mounts(f"{folder}/")
    for point in points:
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False, env=host_tools.environment())
    return points


def _end(find: Callable[[], list[leftovers.Process]]) -> list[str]:
    """End what ``find`` finds until that is nothing; what was found, in words."""
    found: list[str] = []
    for _ in range(10):  # a process may start another before it is ended
        left = find()
        if not left:
            break
        found += [str(p) for p in left]
        # Nomad's helpers go by themselves when their task has ended.
        leftovers.end_processes([p for p in left if not p.is_nomad] or left, 5)
    return found


def _agents(home: Path) -> list[leftovers.Process]:
    """The agent of ``home``, if its supervisor was killed and it has not ended yet, and its second clients."""
    agents: list[leftovers.Process] = []
    for place in _paths(home, f"{SECOND}*"):
        with contextlib.suppress(OSError):  # its own end removes it
            agents += _agent(home, (place / "pid").read_text(encoding="ascii"))
    with contextlib.suppress(OSError, ValueError, KeyError):
        state = json.loads((home / "state.json").read_text(encoding="utf-8"))
        agents += _agent(home, state["agent"])
    return agents


def _agent(home: Path, pid: int | str) -> list[leftovers.Process]:
    """The process ``pid``, if it is an agent with its files in ``home``."""
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (OSError, ValueError):
        return []
    return [leftovers.Process(pid=int(pid), command=command, by="command")] if f"{home}/" in command else []


def _temporary(home: Path) -> Path | None:
    """The agent's TMPDIR where it isn't in ``home``."""
    try:
        path = Path(json.loads((home / "state.json").read_text(encoding="utf-8"))["tmpdir"])
    except (OSError, ValueError, KeyError):
        return None
    return None if path.is_relative_to(home) else path
