"""Look: run ``look.sh`` on this machine, or on the nodes of a cluster, and judge what it tells."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import IO

from sifproof import config, host_tools
from sifproof.doctor.facts import Facts, parse
from sifproof.doctor.findings import SKEW_S, Case, Finding, Image, by_weight, judge
from sifproof.doctor.findings import drivers as driver_findings
from sifproof.doctor.record import CLUSTER, Doctor, Look
from sifproof.errors import Fault, SifproofError
from sifproof.image import engine, source
from sifproof.nomad.agent import local
from sifproof.nomad.client import Client, connect
from sifproof.nomad.cluster import Cluster
from sifproof.nomad.node.script import Answer, run_on_nodes
from sifproof.nomad.nodes import NOMAD_DRIVER, Driver, Node, read_nodes
from sifproof.run import Run

# Room for several things that hang for ten seconds each; where all is well, it takes two on a busy machine.
_HERE_WITHIN_S = 60.0
_NODES_WITHIN_S = 60.0
_ENDS_WITHIN_S = 10.0
"""It clears away what it made before it ends; what does not heed SIGTERM has a second until it is killed."""


@dataclass(frozen=True)
class Questions:
    """What is asked of every machine alike: the config in numbers and paths."""

    programs: tuple[str, ...]
    images: tuple[Image, ...]
    ports: tuple[int, ...]

    @classmethod
    def of(cls, settings: config.Settings) -> Questions:
        """What ``settings`` make one ask."""
        sandboxes = {n: s for n, s in settings.selected().items() if s.driver == "singularity"}
        paths: dict[str, list[str]] = {}
        for name, sandbox in sandboxes.items():
            if sandbox.image == config.REFERENCE:
                continue
            image = source.parse(sandbox.image)
            if image.kind is source.Kind.SIF:
                # As the job will name it.
                paths.setdefault(str(image.path.resolve()), []).append(name)
        return cls(
            programs=tuple(dict.fromkeys(s.apptainer for s in sandboxes.values())),
            images=tuple(Image(path, tuple(names)) for path, names in paths.items()),
            ports=tuple(dict.fromkeys(s.port for s in sandboxes.values() if isinstance(s.port, int))),
        )


@cache
def _script() -> str:
    lines = files(__package__).joinpath("look.sh").read_text(encoding="utf-8").splitlines(keepends=True)
    # It travels with every job: without what only its readers need.
    return "".join(line for line in lines if not line.lstrip().startswith("#"))


def script(questions: Questions, *, alloc: str = "", tmp: str = "/tmp", shared: str = "", word: str = "") -> str:  # noqa: S108
    """What to run on a machine: ``look.sh`` with ``questions`` before it."""
    values = {
        "programs": "\n".join(questions.programs),
        "images": "\n".join(image.path for image in questions.images),
        "ports": " ".join(map(str, questions.ports)),
        "alloc": alloc,
        "tmp": tmp,
        "shared": shared,
        "word": word,
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + _script()


class Here:
    """The look at this machine, begun: it goes on while the caller does other work."""

    def __init__(self, settings: config.Settings, *, needed: Sequence[str] = ()) -> None:
        self._settings = settings
        self._questions = Questions.of(settings)
        self._needed = needed
        # Without a cluster the sandboxes run here, under an agent with these programs.
        self._runs = not settings.nomad.effective_address()
        text = script(
            self._questions,
            alloc=str(local.DIRECTORY),
            tmp=settings.conversion.tmpdir or os.environ.get("TMPDIR") or tempfile.gettempdir(),
        )
        self._began = time.monotonic()
        # A file takes whatever it prints, however long nobody reads.
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", text],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.DEVNULL,
            env=local.handed_on(),  # what the tasks of a local agent would get
            start_new_session=True,  # so that it can be ended with all that it started
        )

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self) -> Look:
        """What was seen, once it was."""
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(_HERE_WITHIN_S - (time.monotonic() - self._began), 0.1))
        finally:
            self.close()
        seconds = time.monotonic() - self._began
        sandboxes = self._settings.selected()
        drivers = {"raw_exec": Driver(detected=True, healthy=True, description="")}
        if self._runs and any(s.driver == "docker" for s in sandboxes.values()):
            answers = engine.engine_version() is not None
            words = "" if answers else "no Docker engine answers"
            drivers["docker"] = Driver(detected=answers, healthy=answers, description=words)
        case = Case(
            parse(self._text),
            sandboxes,
            runs=self._runs,
            images=self._questions.images,
            drivers=drivers,
            address="127.0.0.1",
        )
        findings = by_weight([*_tools(self._needed), *judge(case)])
        return Look(machine=socket.gethostname(), seconds=round(seconds, 3), facts=case.facts, findings=findings)

    def close(self) -> None:
        """End it, whether it has come to its end or not."""
        if self._process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                # Not its group: timeout(1) gives each program that the script waits for one of its own.
                for pid in _session(self._process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                # Nothing ends what the kernel itself holds on to.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_ENDS_WITHIN_S)
        if not self._said.closed:
            self._said.seek(0)
            self._text = self._said.read().decode("utf-8", "replace")
            self._said.close()


def _session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return found


def _tools(needed: Sequence[str]) -> Iterator[Finding]:
    """Programs that a run calls on this machine; Apptainer itself is tried, not only found."""
    for name in needed:
        if name != "apptainer" and host_tools.find(name) is None:
            need = host_tools.NEEDS[name]
            yield Finding(
                id=f"tool.{name}",
                severity="blocks",
                what=f"{name} {need.minimum} or later was not found",
                why=f"{need.why[0].upper()}{need.why[1:]}.",
                mend="make setup",
            )


def nodes(client: Client, settings: config.Settings, *, run: str, images: Path | None = None) -> list[Look]:
    """What was seen on each node of the cluster, one :class:`Look` each, and one of the cluster where it lacks some.

    Nodes that take no job, or none of raw_exec, are judged by what Nomad says of them. ``images`` is the folder that
    takes the SIFs: whether the nodes see it is tried. ``run`` is the id of the run that looks.

    Raises :class:`~sifproof.errors.SifproofError` where Nomad can't be asked.
    """
    began = time.monotonic()
    questions = Questions.of(settings)
    known = read_nodes(client)
    begin = time.time()
    with _shared(images) as (shared, word):
        text = script(questions, shared=shared, word=word)
        try:
            answers = {a.node_id: a for a in run_on_nodes(client, text, run=run, timeout_s=_NODES_WITHIN_S)}
        except SifproofError as error:
            able = [node for node in known if _takes(node, "raw_exec")]
            answers = {node.id: Answer(node.id, node.name, fault=str(error)) for node in able}
    seconds = round(time.monotonic() - began, 3)
    looks = []
    for node in sorted(known, key=lambda node: node.name):
        sandboxes = {n: s for n, s in settings.selected().items() if s.datacenter == node.datacenter}
        peers = [n for n in known if n.datacenter == node.datacenter and n.id != node.id]
        case = Case(
            Facts(complete=False),
            # Those of other datacenters still say what is worth knowing of it.
            sandboxes or settings.selected(),
            builds=False,
            images=questions.images,
            shared=shared,
            drivers=node.drivers,
            elsewhere=frozenset(d for d in NOMAD_DRIVER.values() if any(_takes(peer, d) for peer in peers)),
        )
        facts, findings = _of_node(client, node, answers.get(node.id), case, begin)
        if not sandboxes:
            findings = [_lighter(finding) for finding in findings]
        looks.append(
            Look(
                machine=node.name,
                node=node.id,
                datacenter=node.datacenter,
                seconds=seconds,
                facts=facts,
                findings=by_weight(findings),
            )
        )
    whole = [*_datacenters(known, settings), *_server_clock(answers.values(), begin)]
    if whole:
        looks.insert(0, Look(machine=CLUSTER, seconds=seconds, findings=by_weight(whole)))
    return looks


def cluster(way: Callable[[], Client], settings: config.Settings, *, run: str, images: Path | None) -> list[Look]:
    """As :func:`nodes`; where Nomad can't be asked, one :class:`Look` that says so.

    Raises :class:`~sifproof.errors.SifproofError` where the configuration is to blame.
    """
    try:
        with way() as client:
            return nodes(client, settings, run=run, images=images)
    except SifproofError as error:
        if error.fault is Fault.CONFIGURATION:
            raise
        blocking = Finding(
            id="cluster",
            severity="blocks",
            what=error.what,
            why=error.why or "Nothing is placed without it, and no node was looked at.",
            mend=error.todo or "nomad server members && nomad node status  # with the same NOMAD_ADDR and NOMAD_TOKEN",
            words=r"Nomad (at \S+ |cluster at |can't be reached)",
        )
        return [Look(machine=CLUSTER, seconds=0.0, findings=[blocking])]


def everything(settings: config.Settings, *, run: str, images: Path | None, needed: Sequence[str]) -> Doctor:
    """What is seen on this machine and, where the config or the environment names a cluster, on its nodes.

    Raises :class:`~sifproof.errors.SifproofError` where the configuration is to blame.
    """
    with Here(settings, needed=needed) as here:
        address, given = settings.nomad.effective_address(), settings.nomad
        looks = []
        if address:
            way = partial(connect, address, namespace=given.namespace, region=given.region)
            looks = cluster(way, settings, run=run, images=images)
        return Doctor(looks=[here.look(), *looks])


def nodes_of(of: Cluster, settings: config.Settings, run: Run) -> list[Look]:
    """As :func:`cluster`, for the cluster of a run. The doctor's own faults are findings too: a run goes on."""
    try:
        return cluster(lambda: of.connect(settings.nomad), settings, run=run.id, images=run.images)
    except Exception as error:
        traceback.print_exc()
        unseen = Finding(
            id="cluster",
            severity="degrades",
            what=f"The nodes were not looked at: {type(error).__name__}: {error}",
            why="What they lack is not told beside the failures that it explains.",
            mend="sifproof doctor  # a fault of the doctor's own: its traceback is in the log of the stage",
        )
        return [Look(machine=CLUSTER, seconds=0.0, findings=[unseen])]


def _takes(node: Node, driver: str) -> bool:
    state = node.drivers.get(driver)
    return node.usable and state is not None and state.detected and state.healthy


def _lighter(finding: Finding) -> Finding:
    """A finding on a node on which no sandbox of the config is placed: it blocks nothing."""
    return finding.model_copy(update={"severity": "degrades"}) if finding.severity == "blocks" else finding


def _of_node(
    client: Client, node: Node, answer: Answer | None, case: Case, begin: float
) -> tuple[Facts | None, list[Finding]]:
    """Facts and findings on ``node``; ``case`` is what is known of it without ``answer``."""
    if not node.usable:
        finding = Finding(
            id="node",
            severity="degrades",
            what=f"The node is {node.state}",
            why="Nomad places nothing there, and it was not looked at.",
            mend=node.mend,
            words=r"no ready and eligible node|Nomad lost|Nomad places nothing on",
        )
        return None, [finding]
    if answer is None or not answer.output:
        return None, [*driver_findings(case), *([] if answer is None else [_unseen(answer, case)])]
    facts = parse(answer.output)
    attributes = client.get("node", node.id).get("Attributes") or {}
    address = str(attributes.get("unique.network.ip-address", ""))
    return facts, judge(replace(case, facts=facts, address=address, between=(begin, answer.at)))


def _unseen(answer: Answer, case: Case) -> Finding:
    wanted = list(case.of("singularity"))
    return Finding(
        id="node",
        severity="blocks" if wanted and "raw_exec" not in case.elsewhere else "degrades",
        what=f"The node could not be looked at: {answer.fault}",
        why="What keeps a short script from running there keeps a sandbox from it too.",
        mend=f"nomad node status {answer.node_id}  # what it has to give; and on the node, journalctl -u nomad",
        sandboxes=wanted,
        checks=["health.*"],
        words=r"Nomad lost|the node stopped answering|did not run within",
    )


def _datacenters(known: Sequence[Node], settings: config.Settings) -> Iterator[Finding]:
    there = {node.datacenter for node in known}
    for datacenter in dict.fromkeys(s.datacenter for s in settings.selected().values()):
        if datacenter not in there:
            names = [name for name, s in settings.selected().items() if s.datacenter == datacenter]
            yield Finding(
                id="datacenter",
                severity="blocks",
                what=f"The cluster has no node in datacenter {datacenter}",
                why=f"Its nodes are in {', '.join(sorted(there)) or 'none'}.",
                mend="set `datacenter` of the sandboxes to one of them",
                sandboxes=names,
                words=rf"datacenter {re.escape(datacenter)}\b|no ready and eligible node",
            )


def _server_clock(answers: Iterable[Answer], begin: float) -> Iterator[Finding]:
    """The clock of Nomad's servers against this machine's: by it the first of a job's times is stamped."""
    for answer in answers:
        if answer.created_s:
            skew = min(answer.created_s - begin, 0.0) + max(answer.created_s - answer.at, 0.0)
            if abs(skew) > SKEW_S:
                yield Finding(
                    id="clock",
                    severity="degrades",
                    what=f"The clock of Nomad's servers is {abs(skew):.1f} s "
                    f"{'ahead of' if skew > 0 else 'behind'} that of this machine",
                    why="Times that Nomad stamps on different machines are compared.",
                    mend="timedatectl set-ntp true  # or: chronyc makestep",
                    checks=["performance.*", "resilience.*"],
                )
            return


@contextmanager
def _shared(folder: Path | None) -> Iterator[tuple[str, str]]:
    """A file in ``folder`` with a word in it, for the nodes to read; nothing where it can't be written."""
    word = f"sifproof-{secrets.token_hex(8)}"
    path = None
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            fresh = folder.resolve() / f".{word}"
            fresh.write_text(f"{word}\n", encoding="ascii")
            path = fresh
    try:
        yield (str(path), word) if path else ("", "")
    finally:
        if path:
            path.unlink(missing_ok=True)
