"""Who is asked for a sandbox that does not answer, and what their words come to."""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import pytest
from test_nomad_allocations import RAW

from sifproof.checks.engine import presence
from sifproof.checks.engine.presence import Lost, Watch
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.allocations import parse_allocation
from sifproof.nomad.client import ForbiddenError, NotFoundError, UnreachableError
from sifproof.nomad.node.oom import Kill, killed_for_memory, kills
from sifproof.nomad.node.script import ProbeError

KERNEL = "oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/nomad/0ba30273.server,task=squashfuse_ll,pid=7,uid=0"


class Nomad:
    """A cluster that says what it is told to say; exceptions are raised."""

    def __init__(self, status="running", events=("Started",), node="ready", reach=None, **details):
        self.status, self.events, self.node, self.reach_says, self.details = status, events, node, reach, details
        self.port = 0

    def get(self, *path):
        said = self.status if path[0] == "allocation" else self.node
        if isinstance(said, Exception):
            raise said
        if path[0] == "node":
            return {"ID": "n", "Status": said}
        events = [
            {"Type": kind, "Time": time, "Message": "", "Details": self.details if kind == "Terminated" else {}}
            for time, kind in enumerate(self.events, 1)
        ]
        ports = [{"Label": "http", "Value": self.port, "HostIP": "127.0.0.1"}]
        return {
            **RAW,
            "ClientStatus": said,
            "AllocatedResources": {"Shared": {"Ports": ports}},
            "TaskStates": {"server": {"Failed": said == "failed", "Events": events}},
        }

    def reach(self, node_id, *, within_s):
        if self.reach_says:
            raise self.reach_says

    def logs(self, allocation, task, stream, tail):
        return ""

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    for name in ("_NOMAD_BACK_S", "_TOLD_S", "_HANGS_S", "_PAUSE_S"):
        monkeypatch.setattr(presence, name, 0.0)
    monkeypatch.setattr(presence, "_HEALTH_S", 0.1)


@pytest.fixture
def closed():
    """A port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def mute():
    """A port on which connections are taken, and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def watch(nomad, port=9) -> Watch:
    nomad.port = port
    began = Nomad()
    began.port = port
    return Watch(lambda: nomad, parse_allocation(began.get("allocation", "a")), port=port, run="r")


def lost(nomad, port):
    """What an unanswered request comes to."""
    watching = watch(nomad, port)
    with pytest.raises(Lost) as caught:
        watching.unanswered()
    loss = watching.look()
    assert str(caught.value) == str(loss.error)
    return loss


def probe(monkeypatch, *, lives=None, kernel=None, killed=()):
    """What scripts on the node find: the server's processes, and the kernel's line; exceptions are raised."""

    def answer(said):
        def find(*_):
            if isinstance(said, Exception):
                raise said
            return said

        return find

    monkeypatch.setattr(presence.signals, "find_server", answer(lives))
    monkeypatch.setattr(presence, "killed_for_memory", answer(kernel))
    monkeypatch.setattr(presence, "kills", answer(killed))


def test_what_answers_again_is_not_lost():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(1000):
                        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        watch(Nomad(), listening.getsockname()[1]).unanswered()
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("nomad", "says"),
    [
        (Nomad(UnreachableError("Nomad can't be reached")), "Nomad can't be reached"),
        (Nomad(NotFoundError("Nomad has no allocation")), "has no allocation"),
        (Nomad(ForbiddenError("Nomad does not permit it")), "does not permit it"),
        (Nomad("lost"), "Nomad lost allocation"),
        (Nomad("unknown"), "Nomad lost allocation"),
        (Nomad(node="down"), "Nomad lost node node1: it is down"),
        (Nomad(node="disconnected"), "it is disconnected"),
        (Nomad(reach=UnreachableError("x", why="No path to node")), "does not answer: No path to node"),
        (Nomad(node=UnreachableError("Nomad is away")), "Nomad is away"),
    ],
)
def test_what_is_out_of_reach_is_the_infrastructures(closed, nomad, says):
    loss = lost(nomad, closed)
    assert says in str(loss.error)
    assert (loss.died, loss.error.fault) == (False, Fault.INFRASTRUCTURE)


@pytest.mark.parametrize(
    ("lives", "says", "died"),
    [
        ([], "listens no more", True),
        ([7], "can't be reached from here", False),
        (ProbeError("No script could be run"), "whether it lives can't be seen", False),
    ],
)
def test_a_closed_port_is_the_images_where_its_node_says_so_too(closed, monkeypatch, lives, says, died):
    probe(monkeypatch, lives=lives)
    loss = lost(Nomad(), closed)
    assert says in str(loss.error)
    assert loss.died is died
    assert loss.error.fault is (Fault.IMAGE if died else Fault.INFRASTRUCTURE)


def test_a_server_that_takes_connections_and_says_nothing_hangs(mute, monkeypatch):
    probe(monkeypatch, lives=[7])
    loss = lost(Nomad(), mute)
    assert "hangs" in str(loss.error)
    assert (loss.died, loss.error.fault) == (True, Fault.IMAGE)


def test_a_way_that_leads_nowhere_is_the_networks(monkeypatch):
    def nowhere(*_):
        raise OSError(113, "No route to host")

    monkeypatch.setattr(presence.socket, "create_connection", nowhere)
    for lives in ([7], []):
        probe(monkeypatch, lives=lives)
        loss = lost(Nomad(), 9)
        assert "can't be reached from here" in str(loss.error)
        assert (loss.died, loss.error.fault) == (False, Fault.INFRASTRUCTURE)


@pytest.mark.parametrize(
    ("code", "kernel", "fault", "says"),
    [
        ("3", None, Fault.IMAGE, "exit code 3"),
        ("137", KERNEL, Fault.CONFIGURATION, "the kernel killed squashfuse_ll of it"),
        ("135", KERNEL, Fault.CONFIGURATION, "Raise memory"),
        ("135", "", Fault.INFRASTRUCTURE, "exit code 135"),
        ("137", "", Fault.INFRASTRUCTURE, "Nomad does not know by whom"),
        ("137", ProbeError("refused"), Fault.INFRASTRUCTURE, "is not known"),
        ("135", ProbeError("refused"), Fault.INFRASTRUCTURE, "is not known"),
    ],
)
def test_what_ended_a_server_says_who_has_to_act(monkeypatch, code, kernel, fault, says):
    probe(monkeypatch, kernel=kernel)
    for status, again in (("failed", False), ("running", True)):
        loss = watch(Nomad(status, ("Started", "Terminated"), exit_code=code)).look()
        assert loss.error.fault is fault
        assert loss.died is (fault is not Fault.INFRASTRUCTURE)
        assert says in str(loss.error)
        assert ("Nomad started it again" in str(loss.error)) is again


def test_a_restart_that_was_asked_for_and_an_end_before_it_was_watched_are_no_loss():
    asked = ("Started", "Restart Signaled", "Terminated", "Restarting", "Started")
    assert watch(Nomad("running", asked, exit_code="0")).look(True) is None
    before = Nomad("running", ("Terminated", "Restarting", "Started"))
    watching = Watch(lambda: before, parse_allocation(before.get("allocation", "a")), port=9, run="r")
    assert watching.look(True) is None


def test_silence_that_is_expected_asks_nobody():
    watching = watch(Nomad(SifproofError("asked")))
    with watching.silence_expected():
        watching.unanswered()
    with pytest.raises(Lost):
        watching.unanswered()


def test_the_node_is_asked_where_something_went_wrong_and_only_then():
    watching = watch(Nomad(node="down"))
    assert watching.look() is None
    assert "it is down" in str(watching.look(True).error)
    # What was lost stays lost.
    assert watching.look() is watching.look_at_node()
    watching.close()


def test_a_server_that_hangs_for_want_of_memory_is_the_configurations(monkeypatch, mute):
    probe(monkeypatch, lives=[1], killed=[Kill("tail", 500.0), Kill("bwrap", -1.0)])
    loss = lost(Nomad(), mute)
    assert (loss.error.fault, loss.died) == (Fault.CONFIGURATION, True)
    assert "killed bwrap of allocation" in str(loss.error) and "Raise memory" in str(loss.error)


@pytest.mark.parametrize("killed", [[], [Kill("bwrap", 1e4)], ProbeError("not allowed")])
def test_a_server_that_hangs_while_nobody_was_killed_for_memory_is_the_images(monkeypatch, mute, killed):
    probe(monkeypatch, lives=[1], killed=killed)
    assert lost(Nomad(), mute).error.fault is Fault.IMAGE


LOG = f"""\
[ 1000.000000] {KERNEL}
[ 1234.567890] oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/nomad/0ba30273.server,task=bwrap,pid=8,uid=0
"""
TWO = [Kill("squashfuse_ll", pytest.approx(240.0)), Kill("bwrap", pytest.approx(5.43211))]


@pytest.mark.parametrize(
    ("log", "expected", "last"),
    [
        (LOG, TWO, "task=bwrap,pid=8,uid=0"),
        (LOG.replace("0ba30273", "other"), [], ""),
        (LOG.replace("[ 1234.567890] ", ""), TWO[:1], "task=bwrap,pid=8,uid=0"),
        ("[ 1.000000] Linux", [], ""),
    ],
)
def test_whom_the_kernel_killed_and_when(tmp_path, monkeypatch, log, expected, last):
    (tmp_path / "dmesg").write_text("#!/bin/sh\ncat <<'END'\n" + log + "END\n")
    (tmp_path / "cut").write_text("#!/bin/sh\necho 1240.00\n")
    for tool in ("dmesg", "cut"):
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    class Here:
        def run(self, script):
            return subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout

    assert kills(Here(), "0ba30273") == expected
    assert killed_for_memory(Here(), "0ba30273").endswith(last) and bool(killed_for_memory(Here(), "0ba30273")) == bool(
        last
    )
