"""Each check of a running server turns red on its own defect, and all are green without one."""

import contextlib
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import defects
import naive
import pytest
from checkout import ROOT, wait_until
from placed import could_not_look

from sifproof.checks.engine import registry
from sifproof.checks.engine.runner import Context, blocked_by, run_checks
from sifproof.checks.engine.subject import Server
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.client import NotFoundError
from sifproof.nomad.ports import claim_block
from sifproof.records import Verdict, Word
from sifproof.sandbox.client import SandboxClient

SLOTS = 3
HEALTHY = "none"
DEFECTS = {name: defect for name, defect in defects.load().items() if not defect.nomad}
UNCONTAINED = {"reset.tmp"}
"""What a server can't give that runs all commands as its own user: on a machine without bubblewrap."""
SUITES = ("health", "bash", "stateful", "files", "artifacts", "batch", "reset", "protocol")


@contextlib.contextmanager
def server(defect: str, port: int, folder: Path):
    """A server with the defect, started outside of Nomad; its directory is where Nomad would show it."""
    data = folder / "data"
    data.mkdir(parents=True)

    def read(path: str) -> bytes:
        try:
            return (data / path).read_bytes()
        except OSError as error:
            raise NotFoundError(str(error)) from None

    where = ["--host", "127.0.0.1", "--port", str(port), "--slots", str(SLOTS), "--data-dir", str(data), "--one-user"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("defects"), defect, *where],
            cwd=ROOT / "sandbox",
            stdout=log,
            stderr=log,
        )
    try:
        yield Server(
            client=SandboxClient(f"http://127.0.0.1:{port}"),
            slots=SLOTS,
            ready_within_s=2 if defect == "never-listens" else 60,
            read_allocation_file=read,
            ask_nomad=lambda: None,
        )
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Seen:
    """What was seen on one defect: verdicts by check, and why others than the gate would have stopped; or nothing."""

    verdicts: dict[str, Verdict]
    script_stops: str
    probe_fails: str

    def found(self, word: Word) -> set[str]:
        """The checks with that verdict."""
        return {check for check, verdict in self.verdicts.items() if verdict.verdict == word}

    def without(self, checks: Iterable[str]) -> "Seen":
        """The same, but for what ``checks`` said."""
        return replace(self, verdicts={check: v for check, v in self.verdicts.items() if check not in checks})

    @property
    def unmeasured(self) -> set[str]:
        """The checks that found nothing out, but those that a guard which failed kept from looking."""
        guards = [self.verdicts[check] for check in self.found("fail") if registry.load()[check].guards]
        kept = {blocked_by(guard) for guard in guards}
        return {
            check
            for check in self.found("not-measured")
            if could_not_look(self.verdicts[check]) and self.verdicts[check].message not in kept
        }


def look(defect: str, suites: set[str], port: int, folder: Path) -> Seen:
    """The verdict of each check of ``suites``, and what would have been noticed without them."""
    with server(defect, port, folder) as subject:
        if defect != "never-listens":
            wait_until(lambda: answers(subject))
        found: dict[str, Verdict] = {}
        context, known = Context("controls", defect, "singularity"), registry.load()
        for suite in filter(suites.__contains__, SUITES):
            # As in a run: what a guarding check found holds for the suites after it.
            guards = (blocked_by(v) for v in found.values() if known[v.check].guards and v.verdict != "pass")
            for verdict in run_checks(registry.of_suite(suite), subject, context, blocked=next(guards, "")):
                found[verdict.check] = verdict
        return Seen(found, naive.script_stops(subject.client.url), naive.probe_fails(subject.client.url))


def answers(subject: Server) -> bool:
    with contextlib.suppress(SifproofError):
        return bool(subject.client.health())
    return False


@pytest.fixture(scope="module")
def seen(tmp_path_factory, pytestconfig):
    """The verdicts on each defect: several at a time, for most of it is waiting."""
    folder = tmp_path_factory.mktemp("defects")  # here: threads must not be the first to ask for one
    every = pytestconfig.getoption("every_suite", default=False)
    block = claim_block()
    ports: SimpleQueue[int] = SimpleQueue()
    for port in range(block.first, block.first + 100):
        ports.put(port)

    def suites(name: str) -> set[str]:
        if name in defects.WAYS:
            return set(defects.WAYS[name].suites)
        named = {check.partition(".")[0] for check in DEFECTS[name].red} if name in DEFECTS else set()
        return set(SUITES) if every or not named else named

    def begin(name: str) -> Seen:
        port = ports.get()
        try:
            (folder / name).mkdir()
            return look(name, suites(name), port, folder / name)
        finally:
            ports.put(port)

    with ThreadPoolExecutor(4) as workers:
        # In the order in which the tests ask for them.
        yield {name: workers.submit(begin, name) for name in [HEALTHY, *defects.WAYS, *DEFECTS]}
    block.lock.close()


def test_all_green_without_a_defect(seen):
    assert not seen[HEALTHY].result().script_stops
    found = seen[HEALTHY].result().verdicts
    assert found.keys() == {check for check in registry.load() if check.partition(".")[0] in SUITES}
    assert seen[HEALTHY].result().found("fail") <= UNCONTAINED
    others = [v for v in found.values() if v.verdict != "pass" and v.check not in UNCONTAINED]
    # Outside of bubblewrap commands of root's have root's rights.
    elsewhere = ("does not run under Nomad", "no mode keeps a command from a file here")
    assert [verdict for verdict in others if not any(word in verdict.message for word in elsewhere)] == []


@pytest.mark.parametrize("name", defects.WAYS)
def test_stays_green_on_what_other_servers_do(seen, name):
    found = seen[name].result().verdicts
    assert found
    healthy = seen[HEALTHY].result().verdicts
    worse = {check: f"{v.verdict}: {v.message}" for check, v in found.items() if v.verdict != healthy[check].verdict}
    assert worse == {}


@pytest.mark.parametrize("name", DEFECTS)
def test_turns_its_own_checks_red(seen, name):
    defect = DEFECTS[name]
    found = seen[name].result().without(defect.by_chance)
    healthy = seen[HEALTHY].result()
    elsewhere = (*defect.elsewhere, *healthy.found("fail"))
    expected = {*defect.red, *(check for check in elsewhere if check in found.verdicts)}
    others = {check: found.verdicts[check].message for check in found.found("fail") - expected}
    assert (others, expected - found.found("fail")) == ({}, set(defect.flaky))
    assert found.found("flaky") == set(defect.flaky)
    unclear = found.unmeasured - healthy.unmeasured - set(defect.not_measured)
    assert {check: found.verdicts[check].message for check in unclear} == {}


@pytest.mark.parametrize("name", DEFECTS)
def test_what_would_have_been_noticed_without_the_gate(seen, name):
    found, defect = seen[name].result(), DEFECTS[name]
    assert (bool(found.script_stops), bool(found.probe_fails)) == (defect.plain, defect.health), found


def test_a_server_that_loses_what_is_written_is_not_taken_for_a_stranger(seen):
    assert seen["every-write-lost"].result().verdicts["health.identity"].fault == Fault.IMAGE
    assert seen["data-elsewhere"].result().verdicts["health.identity"].fault == Fault.INFRASTRUCTURE


def test_every_check_of_a_server_has_a_control():
    red = {check for defect in defects.load().values() for check in defect.red}
    assert {check for check in registry.load() if check.partition(".")[0] in SUITES} <= red
