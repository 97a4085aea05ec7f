"""The process that owns a local agent: ``python -m sifproof.nomad.agent.supervisor ORDER``, run by :mod:`.local`.

It leaves the session of its caller, so that Ctrl-C does not reach it, and holds none of the caller's pipes, so that
whoever reads those sees them end. It waits for one of three events, without a clock: the run's outermost process has
ended, the agent has ended, or somebody asks it to end (SIGTERM). Then it clears everything away.

Should it be killed itself, the kernel tells the agent (PR_SET_PDEATHSIG), which ends its tasks and then itself; the
next start clears away the directory.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any

from sifproof import locks
from sifproof.errors import SifproofError
from sifproof.nomad.ports import MARK, META_STATIC_PORTS, Block, claim_block

# What takes half a second to import is imported where it is needed: the agent starts meanwhile.

_PR_SET_PDEATHSIG = 1
_STARTS = 3
_AGENT_ENDS_S = 20.0
_TASKS_END_S = 15.0
_UNMOUNTED_S = 3.0


def main(order: dict[str, Any]) -> None:
    """Fork away from the caller, then supervise as ``order`` (made by :func:`.local.start`) says."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    home = Path(order["home"])
    # Locked before it has its name: nobody may find it free and take the directory for abandoned.
    unnamed = home / f"lock.{os.getpid()}"
    with locks.waited_for(unnamed):
        unnamed.write_text(f"{os.getpid()} {locks.machine()}", encoding="ascii")
        unnamed.rename(home / "lock")
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with Path(order["log"]).open("ab", buffering=0) as log:
            supervise(home, order, log)


def supervise(home: Path, order: dict[str, Any], log: IO[bytes]) -> None:
    """Start the agent, say over the pipe that it is ready, wait for the end of the run, clear away."""
    asked, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    state: dict[str, Any] = {}
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    agent: subprocess.Popen[bytes] | None = None
    try:
        agent, block = start_agent(home, order, log, state)
        with os.fdopen(order["ready"], "w") as ready:
            ready.write(json.dumps(state))
        with_agent = os.pidfd_open(agent.pid)
        poll = select.poll()
        for descriptor in (asked, order["watched"], with_agent):
            poll.register(descriptor, select.POLLIN)
        events = {descriptor for descriptor, _ in poll.poll()}
        why = "the run has ended" if order["watched"] in events else "asked to end"
        say(log, "the agent has ended by itself" if with_agent in events else why)
        block.lock.close()
    except Exception as error:
        say(log, f"{type(error).__name__}: {error}")
        try:
            with os.fdopen(order["ready"], "w") as ready:
                ready.write(json.dumps({"error": str(error)}))
        except OSError:
            pass  # it was ready, and has said so
    finally:
        end(home, agent, state, log)


def start_agent(
    home: Path, order: dict[str, Any], log: IO[bytes], state: dict[str, Any]
) -> tuple[subprocess.Popen[bytes], Block]:
    """The agent, ready, and its claim on ports; ``state`` becomes a :class:`sifproof.nomad.agent.local.LocalAgent`."""
    began = time.monotonic()
    tls = make_certificate(home, order["nomad"], log)
    for attempt in range(1, _STARTS + 1):
        # A new one each time: where another process took the port, it may have been told the last one.
        token = str(uuid.uuid4())
        write_private(home / "token", token)
        block = claim_block()
        http, rpc, serf = block.agent
        additions = {
            "name": f"sifproof-{order['run']}",
            "data_dir": str(home / "data"),
            "bind_addr": "127.0.0.1",
            "ports": {"http": http, "rpc": rpc, "serf": serf},
            "client": {
                "min_dynamic_port": block.dynamic[0],
                "max_dynamic_port": block.dynamic[1],
                "meta": {META_STATIC_PORTS: f"{block.static[0]}-{block.static[1]}"},
            },
            "acl": {"enabled": True},
            "tls": tls,
            # Of the talk between servers: nobody without it joins.
            "server": {"encrypt": base64.b64encode(secrets.token_bytes(32)).decode()},
        }
        written = home / "agent.json"
        write_private(written, json.dumps(additions, indent=2))
        agent = subprocess.Popen(
            [order["nomad"], "agent", "-dev", f"-config={order['configuration']}", f"-config={written}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            # Whatever the agent starts inherits this, and can be found by it.
            env={**handed_down(), MARK: f"{home}/"},
            start_new_session=True,
            preexec_fn=die_with_supervisor,  # noqa: PLW1509 - one thread
        )
        state |= {
            "run": order["run"],
            "address": f"http://127.0.0.1:{http}",
            "directory": str(home),
            "supervisor": os.getpid(),
            "agent": agent.pid,
            "ready_s": 0.0,
        }
        write_state(home, state)
        try:
            wait_ready(agent, state["address"], token, order["ready_s"])
        except ChildProcessError:
            block.lock.close()
            if attempt == _STARTS or not lost_a_port(Path(order["log"])):
                raise
            say(log, "another process took one of the agent's ports: once more, with others")
            continue
        except BaseException:
            agent.kill()
            agent.wait()
            raise
        state["ready_s"] = round(time.monotonic() - began, 3)
        write_state(home, state)
        return agent, block
    raise AssertionError("unreachable")


def handed_down() -> dict[str, str]:
    """This process's environment, which :mod:`.local` made for the agent, without what only Python needs."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def write_state(home: Path, state: dict[str, Any]) -> None:
    """Leave ``state`` for others who look for the agent, and for whoever clears away after this process."""

    from sifproof.records import write_atomically  # noqa: PLC0415

    write_atomically(home / "state.json", json.dumps({**state, "tmpdir": os.environ.get("TMPDIR", "")}))


def write_private(file: Path, text: str) -> None:
    """Write ``text`` to ``file``, which this user alone can read."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(text, encoding="utf-8")


def make_certificate(home: Path, nomad: str, log: IO[bytes]) -> dict[str, Any]:
    """The agent's ``tls`` settings, with an authority and a certificate of its own, made in a tenth of a second.

    Access control guards the HTTP API. On the port beside it, Nomad's servers take each other's word for everything,
    unless they have to show a certificate.
    """
    folder = home / "tls"
    folder.mkdir(mode=0o700)
    for what in (["ca", "create"], ["cert", "create", "-server"]):
        subprocess.run(
            [nomad, "tls", *what], cwd=folder, stdout=subprocess.DEVNULL, stderr=log, check=True, env=handed_down()
        )
    return {
        "rpc": True,
        "verify_server_hostname": True,
        "ca_file": str(folder / "nomad-agent-ca.pem"),
        "cert_file": str(folder / "global-server-nomad.pem"),
        "key_file": str(folder / "global-server-nomad-key.pem"),
    }


def die_with_supervisor() -> None:
    """In the child: ask the kernel for SIGINT when the supervisor dies, which ends a ``-dev`` agent's tasks too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() == 1:  # it has died already
        os._exit(1)


def wait_ready(agent: subprocess.Popen[bytes], address: str, token: str, deadline_s: float) -> None:
    """Wait until ``agent`` heeds ``token`` and has a node that takes tasks.

    Raises ``ChildProcessError`` where it ends instead, and ``PermissionError`` where its access control was set up by
    somebody else: until it has its first token, an agent takes one from anybody.
    """
    from sifproof.nomad.client import RejectedError, connect  # noqa: PLC0415
    from sifproof.nomad.nodes import wait_for_node_ready  # noqa: PLC0415

    end_by = time.monotonic() + deadline_s
    bootstrapped = False
    while True:
        try:
            agent.wait(0.02)
        except subprocess.TimeoutExpired:
            pass
        else:
            raise ChildProcessError(f"the agent ended with exit code {agent.returncode}")
        try:
            with connect(address, token=token, environment={}) as client:
                if not bootstrapped:
                    client.bootstrap(token)
                    bootstrapped = True
                wait_for_node_ready(client, min(1.0, deadline_s))
                return
        except RejectedError as error:
            raise PermissionError(f"another process was first to give the agent a token: {error}") from None
        except SifproofError as error:
            if time.monotonic() > end_by:
                raise TimeoutError(f"not ready after {deadline_s:g} s: {error}") from None


def lost_a_port(log: Path) -> bool:
    """Whether the agent ended because a port was taken between the claim and its own bind."""
    with log.open("rb") as stream:
        stream.seek(max(log.stat().st_size - 4000, 0))
        return b"address already in use" in stream.read(4000)


def end(home: Path, agent: subprocess.Popen[bytes] | None, state: dict[str, Any], log: IO[bytes]) -> None:
    """Stop the jobs, wait for their processes, stop the agent, clear away the rest."""
    from sifproof.nomad.agent import local  # noqa: PLC0415
    from sifproof.nomad.node import leftovers  # noqa: PLC0415

    if agent is not None and agent.poll() is None:
        # In this order: an agent that stops while a task goes down leaves its logmon and executor for good.
        try:
            local.end_second_clients(home)
            purge_jobs(state["address"], home)
            left = leftovers.wait_none(lambda: local.processes(home), _TASKS_END_S)
            for process in left:
                say(log, f"still there {_TASKS_END_S:g} s after its job was purged: {process}")
            # The last thing Nomad does for an allocation that it forgets.
            leftovers.wait_unmounted(f"{home}/", _UNMOUNTED_S)
        except Exception as error:
            say(log, f"the jobs could not be purged: {error}")
        agent.send_signal(signal.SIGINT)
        try:
            agent.wait(_AGENT_ENDS_S)
        except subprocess.TimeoutExpired:
            say(log, f"the agent did not end in {_AGENT_ENDS_S:g} s: killed")
            agent.kill()
            agent.wait()
    for leftover in local.clear(home):
        say(log, f"cleared away: {leftover}")


def purge_jobs(address: str, home: Path) -> None:
    """Stop and forget every job of the agent at ``address`` whose directory is ``home``."""

    from sifproof.nomad.agent.local import connect_to  # noqa: PLC0415

    with connect_to(address, home, namespace="*") as client:
        jobs = client.get("jobs")
    for job in jobs:
        with connect_to(address, home, namespace=job.get("Namespace") or "default") as client:
            client.deregister(job["ID"], purge=True)


def say(log: IO[bytes], text: str) -> None:
    """A line in the log, beside the agent's own."""
    log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} sifproof: {text}\n".encode())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
