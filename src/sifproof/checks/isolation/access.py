"""``isolation.slot.server`` and ``isolation.host.strangers``: who has not the job's token gets nothing of its server.

Strangers ask the server by its own protocol for what slot 0 has, and to write there. What counts is what came of it,
seen in slot 0: a server that answers 401, one that a stranger can't reach and a slot without network are all the same.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sifproof.checks.engine.job_copies import second_job, start
from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Placement, Server, nonce
from sifproof.checks.isolation import scripts
from sifproof.checks.isolation.planted import Said
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.node import signals
from sifproof.nomad.node.script import ProbeError
from sifproof.sandbox import tokens
from sifproof.sandbox.client import LEAST_SECRET, Result

_TIMEOUT_S = 120.0
"""Each request that nobody answers takes three seconds."""

_ANSWERED = re.compile(r"^HTTP/[0-9.]+ (\d{3})")
_REFUSED = re.compile(
    "connection refused|network is unreachable|no route to host|operation not permitted|permission denied"
    "|address family not supported|cannot assign requested address|connection reset|could ?n.t connect",
    re.IGNORECASE,
)
"""What the kernel says of a connection that was really asked for, as programs write it."""

_TODO = (
    "Let the server ask its clients for a token, as `sandbox/` does (`--token-sha256`), and say `tokens: true` in the "
    "config; or close its port to all but its clients; docs/how-to/own-image.md has more ways. Let it judge each "
    "request by its token alone, whatever its path, its method and where it says that it comes from. Where a slot "
    "reads the token itself, take the run's folder out of `binds`, and see what the server hands to commands and "
    "writes down."
)


@dataclass(frozen=True)
class Attempt:
    """One request of a stranger, and what he got."""

    number: str
    program: str
    host: str
    port: str
    path: str
    answer: str

    @property
    def at(self) -> str:
        """Where it went."""
        if self.host.startswith("unix:"):
            return f"the Unix socket {self.host.removeprefix('unix:')}"
        if ":" not in self.host:
            return f"{self.host}:{self.port}"
        address, percent, scope = self.host.partition("%")
        return f"[{ipaddress.IPv6Address(address)}{percent}{scope}]:{self.port}"

    @property
    def request(self) -> str:
        """What was asked, and where."""
        path, disguised, disguise = self.path.rstrip(")").partition("(")
        how = disguise.replace("_", " ")
        method, how = (how.removeprefix("by "), "") if how.startswith("by ") else ("POST", how)
        return f"{method} {path} to {self.at}" + (f" with {how}" if disguised and how else "")

    @property
    def outcome(self) -> str:
        """The status of the answer, or what the kernel said; empty where nothing shows that anything was asked."""
        if answered := _ANSWERED.search(self.answer):
            return answered[1]
        refused = _REFUSED.search(self.answer)
        return refused[0].lower() if refused else ""


@dataclass(frozen=True)
class Victim:
    """What slot 0 has: a file of its own, and room for what strangers write."""

    server: Server
    file: str
    secret: str

    def body(self, tool: str = "bash", **args: str) -> dict[str, object]:
        """A call of ``tool`` in slot 0; without ``args`` a command that reads the file and writes a new one."""
        given = args or {"command": f"cat {self.file}; echo written > @NEW@"}
        return {"slot_id": self.server.slot(), "tool": tool, "args": given}

    def script(
        self,
        who: str,
        targets: list[tuple[str, int]],
        *,
        own_port: int | None = None,
        gateway_port: int | None = None,
        few: bool = False,
        token_files: tuple[str, ...] = (),
    ) -> str:
        """What a stranger runs, whom ``who``, a word, tells from others."""
        slot = {"slot_id": self.server.slot()}
        others = [
            ("/batch", [self.body()]),
            ("/execute", self.body("bash_stateful")),
            ("/execute", self.body("read_file", path=self.file)),
            ("/execute", self.body("write_file", path="@NEW@", content="written")),
            ("/artifacts/read", {**slot, "path": self.file, "encoding": "text"}),
            ("/artifacts/list", {**slot, "path": "."}),
            ("/artifacts/archive", {**slot, "path": "."}),
        ]
        return scripts.use(
            targets=targets,
            own_port=own_port,
            gateway_port=gateway_port,
            first=json.dumps(self.body()),
            others=[(path, json.dumps(body)) for path, body in others],
            download=f"/artifacts/read?slot_id={self.server.slot()}&path={self.file}",
            new=f"{self.file}.{who}",
            few=few,
            token_files=token_files,
        )

    def got(self, who: str, attempts: list[Attempt]) -> list[str]:
        """What the stranger ``who`` got at, in words."""
        there = self.server.bash(f"ls -d {self.file}.{who}.* 2>/dev/null; echo looked").output.split()
        if "looked" not in there:
            raise NotMeasured(f"slot 0 can't say what a stranger has written there: {there}")
        found: dict[tuple[str, str], list[str]] = {}
        for one in attempts:
            did = [
                *(["read a file"] if self.secret in one.answer else []),
                *(["wrote a file"] if f"{self.file}.{who}.{one.number}" in there else []),
                *(["saw the files"] if one.path in ("/artifacts/list", "/artifacts/archive") and _given(one) else []),
            ]
            if did:
                found.setdefault((" and ".join(did), one.request), []).append(one.program)
        return [
            f"{did} of slot 0 by {request} ({', '.join(dict.fromkeys(programs))})"
            for (did, request), programs in found.items()
        ]


def _given(one: Attempt) -> bool:
    return one.outcome == "200" and bool(re.search(r'"success": ?true', one.answer))


@contextlib.contextmanager
def _victim(server: Server) -> Iterator[Victim]:
    victim = Victim(server, nonce(), nonce())
    written = server.write(victim.file, victim.secret)
    if not written.success:
        raise NotMeasured(f"slot 0 can't keep a file: {written}")
    try:
        yield victim
    finally:
        server.bash(f"rm -f {victim.file} {victim.file}.*")


def _attempts(said: Said) -> list[Attempt]:
    return [Attempt(*[*line.split(" ", 5), ""][:6]) for line in said["tried"]]


def _made(who: str, said: Said, attempts: list[Attempt]) -> str:
    """What became of the attempts of ``who``; raises :class:`NotMeasured` where none was really made."""
    outcomes: dict[str, str] = {}
    for one in attempts:
        # Not every program says what it was told.
        outcomes[one.at] = outcomes.get(one.at) or one.outcome
    places: dict[str, list[str]] = {}
    for at, outcome in outcomes.items():
        places.setdefault(outcome or "no answer", []).append(at)
    became = "; ".join(
        f"{outcome} at {at[0]}" + (f" and {len(at) - 1} more" if at[1:] else "") for outcome, at in places.items()
    )
    if not any(outcomes.values()):
        programs = said.one("tools").strip() or "none of bash, python3, curl, nc, wget is there"
        raise NotMeasured(f"{who} could not try: {became or 'nothing was asked'}; programs: {programs}")
    return f"{who}: {became}"


def _judge(placed: Placement, got: list[str], saw: list[str], fault: Fault | None = None) -> Finding:
    """The finding; the config is at fault where its job gives no token to a server that would ask for one."""
    finding = expect(not got, "; ".join(got[:4]) or "; ".join(saw))
    if placed.token is None and placed.sandbox.has_reference_server:
        fault = fault or Fault.CONFIGURATION
    return replace(finding, fault=fault) if got else finding


def _where(placed: Placement) -> list[tuple[str, int]]:
    """Where the server may be reached from its node and its container."""
    inside, given = placed.port_inside, placed.allocation
    return [("127.0.0.1", inside), ("::1", inside), (given.address, given.port)]


@dataclass(frozen=True)
class Elsewhere:
    """Where the server listens beside its port, as its container names it; or why that is not known."""

    ports: tuple[int, ...] = ()
    sockets: tuple[str, ...] = ()
    unknown: str = ""

    def at(self, *hosts: str) -> list[tuple[str, int]]:
        """Each of the ports at each of the hosts, and the sockets."""
        return [(host, port) for port in self.ports for host in hosts] + [(f"unix:{path}", 0) for path in self.sockets]


_MOST_ELSEWHERE = 4


def _elsewhere(placed: Placement) -> Elsewhere:
    """What listens beside the server's port belongs to the server: what listens in a slot has not its environment."""
    try:
        found = signals.find_listening(placed.node, placed.allocation.id)
    except SifproofError as reason:
        return Elsewhere(unknown=f"whether it listens elsewhere could not be seen: {reason}")
    ports = [port for port in found.ports if port != placed.port_inside]
    sockets = [path for path in found.sockets if re.fullmatch(r"@?[\w./:-]+", path)]
    return Elsewhere(tuple(ports[:_MOST_ELSEWHERE]), tuple(sockets[:_MOST_ELSEWHERE]))


def _shown_token(server: Server, slot: str, tool: str, options: dict[str, bool]) -> list[str]:
    """Where slot 1 can read the job's token, which the client does not show."""
    token = server.placed.token
    if not token or len(token) < LEAST_SECRET:
        return []
    characters = "A-Za-z0-9_-" if re.fullmatch("[A-Za-z0-9_-]+", token) else "!-~"
    data = str(server.client.health().get("data_dir") or "/data")
    script = scripts.list_words(len(token), characters, data)
    seen = server.client.execute(slot, tool, {"command": f"(\n{script}\n)", **options}, timeout_s=_TIMEOUT_S)
    return list(dict.fromkeys(line.partition(":")[0] for line in seen.output.splitlines() if "<token>" in line))


def _token_files(placed: Placement) -> tuple[str, ...]:
    """Paths by which a slot might reach the job's token: that on this machine, and what ``binds`` make of it."""
    if not placed.token or not placed.job_file:
        return ()
    file = PurePosixPath(tokens.path_for(placed.job_file).resolve())
    found = [str(file)]
    for bind in placed.sandbox.binds:
        outside, inside = bind.split(":")[:2]
        real = Path(outside).resolve()
        if file.is_relative_to(real):
            found.append(str(PurePosixPath(inside) / file.relative_to(real)))
    return tuple(dict.fromkeys(found))


_CALLS: dict[str, tuple[str, dict[str, bool]]] = {
    "bash": ("bash", {}),
    "bash with require_sandbox": ("bash", {"require_sandbox": True}),
    "bash_stateful": ("bash_stateful", {}),
}
"""How slot 1 can be given a command. A server may refuse the second and not have the third."""


@check(
    "isolation.slot.server",
    "A command of one slot can't use the server against another: not at the loopback, the node's or the container's "
    "own addresses, in IPv4 or IPv6, nor at another port or socket of the server's, by whichever tool it runs. It "
    "can't read the job's token either.",
    why="Whoever reaches the port may work in every slot, and commands with network do: by one request an agent reads "
    "and changes another's work, past every sandbox.",
    todo=_TODO,
    once=True,
)
def server_port(server: Server) -> Finding:
    placed = server.placed
    slot = server.slot(1)
    got: list[str] = []
    saw: list[str] = []
    reset = ""
    elsewhere = _elsewhere(placed)
    with _victim(server) as victim:
        for number, (name, (tool, options)) in enumerate(_CALLS.items()):
            script = victim.script(
                str(number),
                [*_where(placed), *elsewhere.at("127.0.0.1")],
                own_port=placed.port_inside,
                gateway_port=placed.allocation.port if server.driver == "docker" else None,
                few=number > 0,
                token_files=_token_files(placed),
            )
            # In a shell of its own: that of bash_stateful lives on.
            args = {"command": f"(\n{script}\n)", **options}
            result = server.client.execute(slot, tool, args, timeout_s=_TIMEOUT_S)
            if number and not result.success and not result.output.strip() and not result.metadata.get("timeout"):
                saw.append(f"{name}: {result.error}")
                continue
            shown = _shown_token(server, slot, tool, options)
            if tool == "bash_stateful":
                server.client.execute(slot, tool, {"command": "exit"})
            if shown:
                return _judge(placed, [f"{name}: slot 1 can read the job's token: {', '.join(shown)}"], [])
            said = Said(result.output, "end", f"the command that asks the server ({result})")
            if said["token"]:
                read = f"slot 1 can read the job's token: {', '.join(said['token'])}"
                return _judge(placed, [read], [], Fault.CONFIGURATION)
            attempts = _attempts(said)
            if said.one("way") and not reset:
                program, host, port = said.one("way").split(" ")
                reset = scripts.send(program, host, port, "/reset", json.dumps({"slot_id": server.slot()}))
            got += [f"{name}: slot 1 {what}" for what in victim.got(str(number), attempts)]
            if not got:
                saw.append(_made(name, said, attempts))
        if reset and not got:
            answer = server.client.bash(slot, reset, timeout_s=_TIMEOUT_S)
            if not _kept(victim):
                got.append(f"slot 1 emptied slot 0 by POST /reset: {answer}")
    return _judge(placed, got, [*saw, *filter(None, [elsewhere.unknown])])


def _kept(victim: Victim) -> bool:
    """Whether slot 0 has its file still."""
    seen = victim.server.bash(f"if test -e {victim.file}; then echo kept; else echo gone; fi")
    if seen.output.strip() not in ("kept", "gone"):
        raise NotMeasured(f"slot 0 can't say whether it has its file still: {seen}")
    return seen.output.strip() == "kept"


@check(
    "isolation.host.strangers",
    "Another user of the node can't use the server, nor can another sandbox on it.",
    why="Nodes are shared: whoever has an account there, or a sandbox of his own, would run commands as every agent.",
    todo=_TODO,
    once=True,
)
def strangers(server: Server) -> Finding:
    placed = server.placed
    docker = server.driver == "docker"
    # In Docker the container's own are reached from the node and from its neighbours.
    addresses = _addresses(server) if docker else []
    elsewhere = _elsewhere(placed)
    inside = [(address, port) for address in addresses for port in (placed.port_inside, *elsewhere.ports)]
    beside = [] if docker else elsewhere.at("127.0.0.1", placed.allocation.address)
    published = (placed.allocation.address, placed.allocation.port)
    got: list[str] = []
    saw: list[str] = []
    missing: list[str] = []
    with _victim(server) as victim:
        try:
            loopback = [("127.0.0.1", placed.allocation.port), ("::1", placed.allocation.port)]
            script = victim.script("n", [published, *loopback, *inside, *beside], own_port=placed.allocation.port)
            printed = placed.node.run(scripts.as_nobody(script), timeout_s=_TIMEOUT_S)
            said = Said(printed, "end", "the script that asks the server from the node")
            who = f"user {said.one('user')} of the node"
            attempts = _attempts(said)
            got += [f"{who} {what}" for what in victim.got("n", attempts)]
            saw.append(_made(who, said, attempts))
        except (ProbeError, NotMeasured) as reason:
            missing.append(str(reason))
        try:
            with contextlib.ExitStack() as keep:
                there = start(server, second_job(server, node_id=placed.allocation.node_id, restarts=False), keep)
                script = victim.script(
                    "s",
                    [published, *inside] if docker else [*_where(placed), *beside],
                    own_port=None if docker else placed.allocation.port,
                    gateway_port=placed.allocation.port if docker else None,
                )
                result = there.bash(script, timeout_s=_TIMEOUT_S)
                said = Said(result.output, "end", f"the command that asks the server from another sandbox ({result})")
                attempts = _attempts(said)
                got += [f"another sandbox {what}" for what in victim.got("s", attempts)]
                saw += [_made("another sandbox", said, attempts), *filter(None, [elsewhere.unknown])]
        except NotApplicable as reason:
            # A job that can't run twice is one under Apptainer: a neighbour has the network of the node's users.
            saw.append(str(reason))
        except NotMeasured as reason:
            missing.append(str(reason))
        except SifproofError as reason:
            missing.append(f"another sandbox could not be looked at from: {reason}")
    if missing and not got:
        raise NotMeasured("; ".join([*missing, *saw]))
    return _judge(placed, got, saw)


def _addresses(server: Server) -> list[str]:
    """The addresses of the server's container by which others reach it."""
    result: Result = server.bash(scripts.list_addresses())
    found = [one for one in dict.fromkeys(result.output.split()) if re.fullmatch(r"(?!127\.|fe80)[0-9a-f.:]+", one)]
    return found[: scripts.ADDRESSES]
