#!/usr/bin/env python3
"""Runs a command with a Docker engine: ``tools/docker_engine.py -- COMMAND…`` sets DOCKER_HOST for it.

An engine that answers already is used as it is. Else, as root, a private one is started from ``.tools/debian/docker``,
and it is gone when the command is: its processes, containers, mounts, bridge and control groups, however the command or
this program ended. ``--private`` starts one in any case. It touches no rule of the firewall and nothing in /etc: ports
are published by Docker's proxy process, and containers have no way out but to this machine. Images are kept in
``.tools/docker`` for the next time.
"""

import argparse
import contextlib
import ctypes
import fcntl
import ipaddress
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from sifproof import host_tools, locks, variables  # noqa: E402
from sifproof.errors import SifproofError  # noqa: E402

_START_LIMIT_S = 60
_STOP_LIMIT_S = 20
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SIOCBRADDBR, _SIOCBRDELBR, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS = 0x89A0, 0x89A1, 0x8916, 0x891C, 0x8914
_IFF_UP = 1
_READY = b"ready"
_PASSING = "passing."


def main() -> int:
    """Run the command; its exit code is this program's."""
    parser = argparse.ArgumentParser(description="Run a command with a Docker engine.")
    parser.add_argument("--private", action="store_true", help="start an engine even where one answers already")
    parser.add_argument("--possible", action="store_true", help="run nothing, and fail at once where none can be had")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND…")
    options = parser.parse_args()
    if options.possible:
        _require_possible()
        return 0
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given")
    if not options.private and (answering := _answering()):
        print(f"Docker engine: the one that answers at {answering}", file=sys.stderr)
        return _run(command, dict(os.environ))
    with _private_engine() as host:
        print(f"Docker engine: a private one at {host}", file=sys.stderr)
        return _run(command, os.environ | {"DOCKER_HOST": host})


def _require_possible() -> None:
    """Raise where no engine answers this user and he can't start one; without a client nobody knows before set-up."""
    unknown = host_tools.find("docker") is None and (
        os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists()
    )
    if os.geteuid() != 0 and not unknown and not _answering():
        raise _needs_root()


def _needs_root() -> SifproofError:
    return SifproofError(
        "no Docker engine answers, and a private one can't be started",
        why="that needs root",
        todo="run this as root, or start Docker and let DOCKER_HOST name it",
    )


def _answering() -> str:
    """The address of an engine that answers this user; empty where there is none."""
    client = host_tools.find("docker")
    if not client:
        return ""
    asked = subprocess.run(
        [str(client.path), "version", "--format", "{{.Client.Context}} {{.Server.Version}}"],
        capture_output=True,
        text=True,
        check=False,
        env=host_tools.environment("docker"),
    )
    return (os.environ.get("DOCKER_HOST") or "its usual place") if asked.returncode == 0 else ""


def _run(command: list[str], callers: dict[str, str]) -> int:
    # Held back until there is a process to pass them on to.
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        _die_with_parent()

    process = subprocess.Popen(command, env=callers, preexec_fn=in_child)  # noqa: PLW1509 (no threads)

    def pass_on(number: int, _frame: object) -> None:
        # Ctrl-C on a terminal reaches the command without our help, and twice would mean something else to it.
        if number != signal.SIGINT or not _on_terminal():
            process.send_signal(number)

    for number in signals:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _on_terminal() -> bool:
    try:
        with Path("/dev/tty").open() as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _private_engine() -> Iterator[str]:
    """Start an engine; its DOCKER_HOST. It ends with the context, or with this process."""
    bundle = host_tools.root() / "debian" / "docker"
    if os.geteuid() != 0:
        raise _needs_root()
    if not bundle.is_dir():
        raise SifproofError(f"{bundle} is missing", todo="run `python3 tools/setup.py --docker`")
    # The keeper holds the other ends: it learns of our end, whatever that is, and we of the engine's readiness.
    told, tell = os.pipe()
    alive, life = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(told)
        os.close(life)
        code = 1
        try:
            _Keeper(bundle, alive, tell).keep()
            code = 0
        except SifproofError as error:
            os.write(tell, str(error).encode())
        finally:
            os._exit(code)
    os.close(tell)
    os.close(alive)
    try:
        answer = os.read(told, 4096)
        os.close(told)
        if not answer.startswith(_READY):
            raise SifproofError(answer.decode() or "the Docker engine's keeper ended without a word")
        yield answer.removeprefix(_READY).decode()
    finally:
        os.close(life)
        while True:
            try:
                os.waitpid(keeper, 0)
                break
            except ChildProcessError:
                break


class _Keeper:
    """The process that starts the engine, waits for the end of the one who asked for it, and clears all away."""

    def __init__(self, bundle: Path, alive: int, tell: int) -> None:
        self._bundle, self._alive, self._tell = bundle, alive, tell

    def keep(self) -> None:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        base = Path("/run") if os.access("/run", os.W_OK) else Path(tempfile.gettempdir())
        _sweep(base)
        # Short: the path of a socket may have 108 characters, and the engine puts some of its own below this one.
        folder = Path(tempfile.mkdtemp(prefix="sifproof-docker.", dir=base))
        with locks.waited_for(folder / "lock"):
            self._folder, self._name = folder, f"sif{folder.suffix[1:9]}"
            try:
                with _data_root() as data:
                    self._live(data)
            finally:
                _clear(folder)

    def _live(self, data: Path) -> None:
        subnet = _make_bridge(self._name)
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notices.bind(str(self._folder / "notify"))
        engine = self._start(data, subnet)
        try:
            self._await_ready(engine, notices)
            os.write(self._tell, _READY + f"unix://{self._folder}/docker.sock".encode())
            os.close(self._tell)
            # Until the one who asked is gone (its end of the pipe closes), or the engine is.
            ended = os.pidfd_open(engine.pid)
            select.select([self._alive, ended], [], [])
        finally:
            _end(engine)

    def _start(self, data: Path, subnet: str) -> subprocess.Popen[bytes]:
        folder, programs = self._folder, self._bundle / "usr"
        (folder / "daemon.json").write_text("{}")
        options = [
            *("--host", f"unix://{folder}/docker.sock", "--data-root", str(data), "--exec-root", f"{folder}/exec"),
            *("--pidfile", f"{folder}/pid", "--config-file", f"{folder}/daemon.json", "--group", "root"),
            *("--bridge", self._name, "--fixed-cidr", subnet),
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            *("--userland-proxy-path", f"{programs}/sbin/docker-proxy", "--init-path", f"{programs}/bin/tini-static"),
            *("--cgroup-parent", f"/{self._name}", "--shutdown-timeout", "3"),
        ]
        # A mount namespace of its own: what the engine mounts goes with it. Mounts of the machine still come
        # through, as Nomad's into a task's folder must. containerd has one fixed folder, which another engine
        # may be using.
        script = 'mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec "$@"'
        environment = variables.of("dockerd")
        environment["PATH"] = f"{programs}/sbin:{programs}/bin:{environment['PATH']}:/usr/sbin:/sbin"
        environment["NOTIFY_SOCKET"] = str(folder / "notify")
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--propagation",
                    "slave",
                    "sh",
                    "-c",
                    script,
                    "sh",
                    f"{programs}/sbin/dockerd",
                    *options,
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (no threads)
            )

    def _await_ready(self, engine: subprocess.Popen[bytes], notices: socket.socket) -> None:
        ended = os.pidfd_open(engine.pid)
        limit = time.monotonic() + _START_LIMIT_S
        while (left := limit - time.monotonic()) > 0:
            readable, _, _ = select.select([notices, ended, self._alive], [], [], left)
            if notices in readable and b"READY=1" in notices.recv(4096):
                return
            if ended in readable or self._alive in readable:
                break
        last = (self._folder / "log").read_text(errors="replace").splitlines()[-5:]
        raise SifproofError(
            "the private Docker engine did not start",
            why="it wrote\n    " + "\n    ".join(last),
            todo="run this without Docker, or start an engine and let DOCKER_HOST name it",
        )


@contextlib.contextmanager
def _data_root() -> Iterator[Path]:
    """The folder for images: the checkout's, or one for the moment where another engine holds that."""
    folder = host_tools.root() / "docker"
    folder.mkdir(parents=True, exist_ok=True)
    made_by = folder / "machine"
    lock = locks.take(folder / "lock", wait=False)
    if lock is None or (made_by.exists() and locks.may_live(made_by.read_text(), folder / "data")):
        with _passing(folder) as data:
            yield data
        return
    with lock:
        made_by.write_text(locks.machine())
        # Containers of an engine that was killed are of no use to anyone; images are.
        shutil.rmtree(folder / "data" / "containers", ignore_errors=True)
        for other in folder.glob(f"{_PASSING}*"):
            if locks.may_live(other.name.removeprefix(_PASSING).partition(".")[0], other):
                continue
            held = _lock(other)
            if held is not None:  # its engine is gone
                shutil.rmtree(other, ignore_errors=True)
                held.close()
        yield folder / "data"


@contextlib.contextmanager
def _passing(folder: Path) -> Iterator[Path]:
    """A folder in ``folder`` that goes with the context; locked, so that nobody takes it for left behind."""
    held = None
    while held is None:
        data = Path(tempfile.mkdtemp(prefix=f"{_PASSING}{locks.machine()}.", dir=folder))
        held = _lock(data)
    try:
        yield data
    finally:
        shutil.rmtree(data, ignore_errors=True)
        held.close()


def _lock(folder: Path) -> locks.Lock | None:
    """The lock of ``folder``; None where another process has it, or has removed the folder."""
    try:
        held = locks.take(folder, wait=False, make=False)
    except FileNotFoundError:
        return None
    if held is not None and not folder.exists():
        held.close()
        return None
    return held


def _end(engine: subprocess.Popen[bytes]) -> None:
    """Ask the engine to stop; then end all that ever came from it, which the kernel hands to this process."""
    engine.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        engine.wait(_STOP_LIMIT_S)
    while children := _descendants(os.getpid()):
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it ends at any moment, and so does each of its threads
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *_descendants(child)]
    return found


def _clear(folder: Path) -> None:
    """Remove what the engine of ``folder`` leaves on the machine."""
    name = f"sif{folder.suffix[1:9]}"
    _remove_bridge(name)
    for base in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")):
        group = base / name
        if group.is_dir():
            for inner in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    inner.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
    shutil.rmtree(folder, ignore_errors=True)
    for emptied in ("docker/plugins", "docker", "containerd"):  # made by any engine; left alone where one is in use
        with contextlib.suppress(OSError):
            Path("/run", emptied).rmdir()


def _sweep(base: Path) -> None:
    """Clear away after engines whose keeper was killed: nobody holds their lock."""
    for folder in base.glob("sifproof-docker.*"):
        with contextlib.suppress(OSError):
            held = locks.take(folder / "lock", wait=False)
            if held is not None:
                with held:
                    _clear(folder)


def _make_bridge(name: str) -> str:
    """A bridge with the first address of a subnet that no route of this machine covers; the subnet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCBRADDBR, name.encode() + b"\0")
        for subnet in ipaddress.ip_network("10.213.0.0/16").subnets(new_prefix=24):
            if any(subnet.overlaps(taken) for taken in _routes()):
                continue
            address = next(iter(subnet.hosts()))
            for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, subnet.netmask)):
                place = struct.pack("16sH2s4s8x", name.encode(), socket.AF_INET, b"", value.packed)
                fcntl.ioctl(control, request, place)
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), _IFF_UP))
            return str(subnet)
    raise SifproofError("no free subnet for the Docker engine's bridge", why="all of 10.213.0.0/16 is routed already")


def _remove_bridge(name: str) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), 0))
        fcntl.ioctl(control, _SIOCBRDELBR, name.encode() + b"\0")


def _routes() -> Iterator[ipaddress.IPv4Network]:
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        words = line.split()
        destination, mask = (struct.pack("<L", int(words[i], 16)) for i in (1, 7))
        if any(mask):
            yield ipaddress.IPv4Network((destination, str(ipaddress.IPv4Address(mask))))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SifproofError as error:
        sys.exit(str(error))
