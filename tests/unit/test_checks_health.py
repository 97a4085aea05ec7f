"""Who is to blame where nothing proves whose server answers."""

from types import SimpleNamespace

import pytest

from sifproof.checks import health
from sifproof.checks.engine.registry import NotMeasured
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.client import NotFoundError
from sifproof.nomad.node.script import ProbeError
from sifproof.sandbox.client import Result

NO_FILE = NotFoundError("Nomad has no file")


class Server:
    """One whose writes succeed or not, and whose file is ``held`` by the allocation's directory."""

    def __init__(self, *, writes=True, held=NO_FILE):
        self.writes, self.held, self.content = writes, held, ""
        self.placed = SimpleNamespace(node=None, allocation=SimpleNamespace(id="1a2b"), port_inside=8080)

    def write(self, _, content):
        self.content = content
        return Result(success=self.writes, error="" if self.writes else "no room")

    def read(self, _):
        return Result(success=True, output=self.content)

    def read_slot_file(self, _):
        if isinstance(self.held, Exception):
            raise self.held
        return self.held

    def bash(self, _):
        return Result(success=True)

    def ask_nomad(self):
        pass


def seen(monkeypatch, listening):
    """Have the node show these processes of the allocation's that listen."""

    def find(*_):
        if isinstance(listening, Exception):
            raise listening
        return listening

    monkeypatch.setattr(health, "find_server", find)


@pytest.mark.parametrize("broken", [{"writes": False}, {}], ids=["writes nothing", "writes elsewhere"])
def test_a_server_that_listens_in_its_allocation_is_no_stranger(monkeypatch, broken):
    seen(monkeypatch, [4711])
    found = health.identity(Server(**broken))
    assert (found.passed, found.fault) == (False, Fault.IMAGE)
    assert "own process listens" in found.saw and "another server" not in found.saw


@pytest.mark.parametrize("listening", [[], ProbeError("no way to the node"), SifproofError("x"), NotMeasured("x")])
@pytest.mark.parametrize("broken", [{"writes": False}, {}], ids=["writes nothing", "writes elsewhere"])
def test_where_the_node_does_not_show_it_no_image_is_to_blame(monkeypatch, broken, listening):
    seen(monkeypatch, listening)
    found = health.identity(Server(**broken))
    assert (found.passed, found.fault) == (False, None)


def test_who_writes_other_bytes_under_a_name_that_nobody_else_knows_is_no_stranger(monkeypatch):
    seen(monkeypatch, [])
    found = health.identity(Server(held=b"other"))
    assert (found.passed, found.fault) == (False, Fault.IMAGE)
    assert "b'other'" in found.saw
