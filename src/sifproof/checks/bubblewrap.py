"""Commands are locked into namespaces of their own, and a server that can't do so says so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from urllib.parse import urlsplit

from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.isolation.slot import GIVEN_BY, WAITS_S, look_for_process
from sifproof.nomad.job import DOCKER_PORT
from sifproof.sandbox.client import Result

DEFAULT_PROFILE = (
    "Docker's default seccomp profile forbids the namespaces that bubblewrap is made of; `nested_sandboxes: true` "
    "allows them"
)
WORKSPACE = "/workspace"


def _call(server: Server, command: str, *, slot: int = 0, **options: bool) -> Result:
    return server.client.bash(server.slot(slot), command, **options)


def _claims(result: Result) -> bool:
    return result.metadata.get("sandboxed") is True


def _said(result: Result) -> str:
    return f"{result}, metadata.sandboxed={result.metadata.get('sandboxed')!r}"


@check(
    "bubblewrap.available",
    "The server can make sandboxes with bubblewrap, and says so in `/health` (`bwrap_available`).",
    why="A server that can't goes on without them: slots then lie open to each other.",
    todo="Read the server's log. Is bwrap in the image, and does `sifproof doctor` find that one user namespace can be "
    "made inside another? In Apptainer it takes `--bind /dev/full` too, which sifproof puts into each job.",
    advisory={"docker": DEFAULT_PROFILE},
    given_by=GIVEN_BY,
)
def available(server: Server) -> Finding:
    health = server.client.health()
    if "bwrap_available" not in health:
        result = _call(server, ":")
        return expect(_claims(result), f"`/health` has no bwrap_available; of a command: {_said(result)}")
    return expect(health["bwrap_available"] is True, f"bwrap_available: {health['bwrap_available']!r}")


@check(
    "bubblewrap.used",
    "A plain `bash` call runs in a sandbox, and says so: `metadata.sandboxed` is true.",
    why="bubblewrap that is there and not used protects nobody.",
    todo="Look at what the server falls back to, and why; its log may say.",
    advisory={"docker": DEFAULT_PROFILE},
    given_by=GIVEN_BY,
)
def used(server: Server) -> Finding:
    result = _call(server, ":")
    return expect(result.success and _claims(result), _said(result))


@check(
    "bubblewrap.workspace",
    f"A command that is said to be sandboxed starts in `{WORKSPACE}`.",
    why="Agents are told that path, and write it into files and commands.",
    todo=f"Bind the slot's workspace at `{WORKSPACE}`, and start commands there.",
)
def workspace(server: Server) -> Finding:
    result = _call(server, "pwd")
    _only_where_claimed(result)
    return expect(result.success and result.output.strip() == WORKSPACE, _said(result))


_SERVER = "command -v grep >/dev/null || exit 127; grep -ls '[-]-data-dir' /proc/[0-9]*/cmdline"
"""Prints the processes that were started as the job starts the server; grep(1) itself is none of them."""


def _processes_of_others(server: Server, call: Callable[[str], Result]) -> list[str]:
    """What a command of slot 1 sees of a process of slot 0, where there are two: a server may go by any name."""
    return look_for_process(server, "cmdline", call) if server.slots > 1 else []


@check(
    "bubblewrap.private-processes",
    "A command that is said to be sandboxed has processes of its own: it sees neither the server's nor another slot's.",
    why="`sandboxed: true` is what callers rely on when they run code that they do not trust.",
    todo="Run bwrap with `--unshare-pid` and `--proc /proc`, and say `sandboxed` of such commands alone.",
    waits_s=WAITS_S,
)
def private_processes(server: Server) -> Finding:
    result = _call(server, f"{_SERVER}; ls -d /proc/[0-9]* | wc -l")
    _only_where_claimed(result)
    *seen, count = result.output.split() or ["no answer"]
    if not count.isdigit() or int(count) == 0:
        raise NotMeasured(f"the command's /proc shows nothing: {_said(result)}")
    if seen:
        return expect(False, f"it sees the server as {', '.join(seen)}")
    others = _processes_of_others(server, lambda command: _call(server, command, slot=1))
    saw = f"it sees {count} processes"
    return expect(not others, f"{saw}, and one of another slot's as {', '.join(others)}" if others else saw)


def _only_where_claimed(result: Result) -> None:
    if not _claims(result):
        raise NotApplicable(f"the server does not say of its commands that they are sandboxed: {_said(result)}")


_OWN = "/proc /dev /tmp /run /sys /var/tmp /var/run /var/lock"
"""Directories that a sandbox may have of its own. What slots share there is for ``isolation.slot.tmp``."""


@check(
    "bubblewrap.only-workspace-writable",
    "What a command that is said to be sandboxed writes outside of its workspace and its `/tmp` is gone with it.",
    why="A command could otherwise change the programs that every later command runs.",
    todo="Bind everything but the workspace read-only in the sandbox.",
)
def only_workspace_writable(server: Server) -> Finding:
    _only_where_claimed(_call(server, ":"))  # elsewhere it would stay
    name = nonce()
    data = shlex.quote(str(server.client.health().get("data_dir") or "/data"))
    # What any image has at its top; deeper down is, as a rule, the same file system.
    every = f'for d in / /*/ /usr/*/ /etc/*/ /var/*/ "$HOME/" {data}/ {data}/*/; do f="$d"{name}'
    own = "|".join(f"{path}/*" for path in _OWN.split())
    elsewhere = f'case $d in {own}) continue;; esac; if test "$d" -ef .; then continue; fi'
    wrote = _call(server, f'{every}; {elsewhere}; echo x > "$f"; done 2>/dev/null; echo x > {name} && echo workspace')
    left = _call(server, f'{every}; {elsewhere}; if test -e "$f"; then echo "$d"; rm -f "$f"; fi; done 2>/dev/null; :')
    _call(server, f"rm -f {name}")
    if "workspace" not in wrote.output.split():
        return expect(False, f"the workspace itself can't be written: {_said(wrote)}")
    found = left.output.splitlines()
    return expect(left.success and not found, f"written to {', '.join(found)}" if found else "the workspace alone")


@check(
    "bubblewrap.require-sandbox",
    "`require_sandbox: true` is kept or refused: the command runs in a sandbox, or does not run at all.",
    why="Callers set it for code that must not run unprotected; a silent fallback runs it all the same.",
    todo="Let the server refuse the call where it can't make a sandbox.",
    waits_s=WAITS_S,
)
def required(server: Server) -> Finding:
    return _kept_or_refused(server, "bash", "require_sandbox")


@check(
    "bubblewrap.require-stateful-sandbox",
    "`require_stateful_sandbox: true` of `bash_stateful` is kept or refused, where the server has that tool.",
    why="A shell that lives on outside of a sandbox is unprotected for as long as it lives.",
    todo="Let the server refuse the call where it can't make a sandbox.",
    waits_s=WAITS_S,
)
def required_stateful(server: Server) -> Finding:
    known = server.client.execute(server.slot(), "bash_stateful", {"command": ":"})
    if "Unknown tool" in known.error:
        raise NotApplicable("the server has no tool `bash_stateful`, which is optional")
    try:
        return _kept_or_refused(server, "bash_stateful", "require_stateful_sandbox")
    finally:
        for slot in range(min(server.slots, 2)):
            server.client.execute(server.slot(slot), "bash_stateful", {"command": "exit"})


def _kept_or_refused(server: Server, tool: str, flag: str) -> Finding:
    name = nonce()

    def call(command: str, slot: int = 1) -> Result:
        return server.client.execute(server.slot(slot), tool, {"command": command, flag: True})

    result = call(f"echo ran > {name}; {_SERVER}; :", 0)
    ran = _call(server, f"rm {name}").success
    if not ran:
        return expect(not result.success and bool(result.error), f"refused: {_said(result)}")
    if not result.success or not _claims(result):
        return expect(False, f"it ran: {_said(result)}")
    # An answer may be a screen that shows the command, too: it has a pattern in its place.
    if seen := [word for word in result.output.split() if re.fullmatch(r"/proc/\d+/cmdline", word)]:
        return expect(False, f"it ran: {_said(result)}; it sees the server as {', '.join(seen)}")
    others = _processes_of_others(server, call)
    saw = f"; it sees a process of another slot as {', '.join(others)}" if others else ""
    return expect(not others, f"it ran: {_said(result)}{saw}")


@check(
    "bubblewrap.no-network",
    "`allow_network: false` is kept or refused: the command reaches no port, not even the server's own, or does not "
    "run at all.",
    why="Callers cut the network so that code can't send away what it sees, nor call the server it runs under.",
    todo="Run bwrap with `--unshare-net`, and let the server refuse the call where it can't.",
)
def no_network(server: Server) -> Finding:
    return network_kept_or_refused(server, lambda command, **flags: _call(server, command, **flags))


def network_kept_or_refused(server: Server, call: Callable[..., Result]) -> Finding:
    """What ``allow_network=False`` does to a command of slot 0 that ``call`` runs: it takes the command and flags."""
    name, probe = nonce(), _connections(server)
    with_network = call(probe)
    without = call(f"echo ran > {name}; {probe}", allow_network=False)
    if not _call(server, f"rm {name}").success:
        return expect(not without.success and bool(without.error), f"refused: {without}")
    # How the network is cut is the server's affair: a name space of its own is one way of several.
    reached, still = _words(with_network, "open"), _words(without, "open")
    if still:
        return expect(False, f"it ran, and reached {', '.join(still)}")
    if reached:
        return expect(without.success, f"it ran, and could not reach {', '.join(reached)} any more: {without}")
    empty = set(_words(without, "in")) - set(_words(with_network, "in"))
    if not empty or _words(without, "route"):
        raise NotMeasured(f"no connection could be had, with network neither: {with_network}")
    return expect(without.success, f"it ran, in an empty network of its own: {without}")


def _connections(server: Server) -> str:
    """A shell script that prints which of the server's ports it reaches, in which network it is, and its routes."""
    url = urlsplit(server.client.url)
    targets = [(url.hostname or "127.0.0.1", url.port), ("127.0.0.1", url.port)]
    if server.driver == "docker":
        port = server.placed.sandbox.port
        targets.append(("127.0.0.1", port if isinstance(port, int) else DOCKER_PORT))
    # A connection by IPv6 gets to a server that listens by IPv4 alone, too; who cuts one may have forgotten the other.
    targets += [(f"::ffff:{host}", port) for host, port in targets if host.count(".") == 3]
    # Of bash alone; another shell finds no such file.
    lines = [
        f"(exec 3<>/dev/tcp/{host}/{port}) 2>/dev/null && echo open {host}:{port}"
        for host, port in dict.fromkeys(targets)
        if port
    ]
    lines.append('echo "in $(readlink /proc/self/ns/net)"')
    lines.append('while read -r _ to _; do echo "route $to"; done < /proc/net/route')
    return "\n".join([*lines, ":"])


def _words(result: Result, about: str) -> list[str]:
    """Second words of the lines that begin with ``about``."""
    lines = [line.split() for line in result.output.splitlines()]
    return [words[1] for words in lines if len(words) > 1 and words[0] == about and words[1] != "Destination"]
