"""What a census of a task's processes counts, and what it says where it can't."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkout import wait_until

from sifproof.checks.engine.census import count
from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Server, nonce

AS_A_USER = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []


def start(line: str, allocation: str = "") -> subprocess.Popen[str]:
    """A shell of an ordinary user; that of ``allocation``, where it is given."""
    variables = {"PATH": os.environ["PATH"], **({"NOMAD_ALLOC_ID": allocation} if allocation else {})}
    pipe = subprocess.PIPE
    return subprocess.Popen([*AS_A_USER, "sh", "-c", line], env=variables, stdin=pipe, stdout=pipe, text=True)


def a_server(allocation: str) -> Server:
    """The subject of a check, of whose node only what a script prints there is needed."""
    node = SimpleNamespace(run=lambda script: start(script).communicate()[0])
    placed = SimpleNamespace(allocation=SimpleNamespace(id=allocation), node=node)
    return Server(None, 1, 1, None, None, placement=placed)


def children(pid: int) -> list[tuple[str, str]]:
    """Name and state of the children of ``pid``."""
    stats = [Path(f"/proc/{child}/stat") for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    found = [re.fullmatch(r"\d+ \((.*)\) (.).*", stat.read_text(), re.DOTALL) for stat in stats]
    return [(match[1], match[2]) for match in found]


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """`cat` that may be run and not read: what its process has open, the kernel then shows to root alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # pytest's own is closed to others
    shutil.copy(shutil.which("cat"), folder / "secret")
    (folder / "secret").chmod(0o111)
    yield folder / "secret"
    shutil.rmtree(folder)


def test_descriptors_are_counted_and_a_zombie_has_none() -> None:
    allocation = nonce()
    # What the shell becomes does not ask how its child ended.
    with start("env true & exec cat", allocation) as task:
        wait_until(lambda: children(task.pid) == [("true", "Z")])
        counted = count(a_server(allocation))
        task.communicate()
    assert counted.processes == {"cat": 1, "true": 1}
    assert counted.descriptors == 3


def test_descriptors_that_can_not_be_seen_are_not_counted_as_few(unreadable: Path) -> None:
    allocation = nonce()
    with start(f"exec 3<&0; {unreadable} <&3 & wait", allocation) as task:
        wait_until(lambda: [name for name, _ in children(task.pid)] == ["secret"])
        with pytest.raises(NotMeasured, match="may not see the file descriptors of secret"):
            count(a_server(allocation))
        task.communicate()
