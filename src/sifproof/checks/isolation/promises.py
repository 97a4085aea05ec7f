"""What holds of the commands of a server, in sentences: what held before it was started anew has to hold afterwards.

Each is seen from inside, whatever the server says of itself. What does not hold is no defect here: other checks require
what has to, and no more than what a server gave is taken away from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Server, nonce
from sifproof.sandbox.client import Result, SandboxClient

_TRIES = 3
"""How often it is looked whether two commands have a first process each: two may begin within one tick of the clock."""

_TEMPORARY = '"${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm'
_FOLDERS = "/ /etc /usr /usr/bin /usr/local/bin /opt /home /root /var /data"

# By the shell alone, and into a file: an answer may be a whole screen.
_LOOK = rf"""(
while read -r key value; do
    case $key in CapEff:) echo "capabilities $value" ;; Uid:) set -- $value; echo "user $2" ;; esac
done < /proc/self/status
while read -r device destination _; do
    case $device in Iface | lo) ;; *) echo "network $device $destination" ;; esac
done < /proc/net/route
while read -r address _ _ _ _ device; do
    case $device in lo) ;; *) echo "network $device $address" ;; esac
done < /proc/net/if_inet6
for folder in {_FOLDERS}; do if [ -d "$folder" ] && ! [ -w "$folder" ]; then echo "closed $folder"; fi; done
if read -r stat < /proc/1/stat; then
    set -- ${{stat##*)}}
    echo "first ${{20}} $(readlink /proc/1/ns/pid)"
fi
echo end
) > @FILE@ 2> /dev/null"""

_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "bash": ("bash", {}),
    "bash with require_sandbox": ("bash", {"require_sandbox": True}),
    "bash without allow_network": ("bash", {"allow_network": False}),
    "bash_stateful": ("bash_stateful", {}),
}


Promise = tuple[str, str]
"""Of whom, and what holds of him."""


def held(server: Server, slots: Sequence[int]) -> frozenset[Promise]:
    """What holds now in the first, the second and the last of ``slots``.

    Raises :class:`NotMeasured` where that can't be seen.
    """
    holds: set[Promise] = set()
    looked_at = list(dict.fromkeys([*slots[:2], slots[-1]]))
    for slot in looked_at:
        for name, (tool, options) in _CALLS.items():
            who = f"{name} in {server.slot(slot)}"
            holds |= {(who, what) for what in _of_command(server, slot, tool, options)}
    for of, by in zip(looked_at, [*looked_at[1:], looked_at[0]], strict=True):
        if of != by:
            where = [f"does not find what {server.slot(of)} leaves in {folder}" for folder in _apart(server, of, by)]
            holds |= {(server.slot(by), what) for what in where}
    if server.placement and server.placement.token:
        status, _ = SandboxClient(server.client.url).request("GET", "/slots")
        holds |= {("the server", "asks for the token")} if status == 401 else set()
    return frozenset(holds)


def lost(before: Iterable[Promise], now: Iterable[Promise]) -> list[str]:
    """What held ``before`` and does not ``now``, in sentences. Who is refused now loses nothing by it."""
    refused = {who for who, what in now if what == _REFUSED}
    gone = {(who, what) for who, what in set(before) - set(now) if who not in refused and what != _REFUSED}
    # What was refused before, and is done now, has to be done as it was asked for.
    done = {who for who, what in before if what == _REFUSED} - refused
    gone |= {(who, _AS_ASKED) for who in done if (who, _AS_ASKED) not in now}
    return [f"not any more: {who} {what}" for who, what in sorted(gone)]


_REFUSED = "is refused"
_AS_ASKED = "does what it is asked for"


def _of_command(server: Server, slot: int, tool: str, options: dict[str, Any]) -> list[str]:
    if not (first := _looked(server, slot, tool, options)):
        return [_REFUSED]
    said, seen = first
    sandboxed, cut = said.metadata.get("sandboxed") is True, "network" not in seen
    holds = [f"can't write to {folder}" for folder in seen.get("closed", [])]
    holds += [_AS_ASKED] if not options or (sandboxed if "require_sandbox" in options else cut) else []
    holds += ["is sandboxed"] if sandboxed else []
    holds += ["has no network"] if cut else []
    holds += ["has no capability"] if seen.get("capabilities") and not seen["capabilities"][0].strip("0") else []
    holds += ["does not run as root"] if seen.get("user") and seen["user"] != ["0"] else []
    for _ in range(_TRIES):
        again = _looked(server, slot, tool, options)
        if again and "first" in seen and "first" in again[1] and again[1]["first"] != seen["first"]:
            return [*holds, "has processes of its own"]
    return holds


Saw = dict[str, list[str]]
"""What a command saw around itself, by kind."""


def _looked(server: Server, slot: int, tool: str, options: dict[str, Any]) -> tuple[Result, Saw] | None:
    """The answer, and what a command saw around itself; None where it was refused."""
    file = nonce()
    result = server.client.execute(server.slot(slot), tool, {"command": _LOOK.replace("@FILE@", file), **options})
    if tool == "bash_stateful":
        # The next one is to be another shell.
        server.client.execute(server.slot(slot), tool, {"command": "exit"})
    text = server.bash(f"cat {file} && rm -f {file}", slot=slot).output
    seen: Saw = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        seen.setdefault(kind, []).append(rest)
    if "end" in seen:
        return result, seen
    if result.success:
        raise NotMeasured(f"how a command is locked in could not be seen: {result}; {text[:200]}")
    return None


def _apart(server: Server, of: int, by: int) -> list[str]:
    """In which temporary directories the slot ``by`` does not find what the slot ``of`` leaves."""
    name = nonce()
    each = f'for d in {_TEMPORARY}; do f="$d/{name}"'
    try:
        left = server.bash(f'{each}; : > "$f"; done 2>/dev/null; echo left', slot=of)
        seen = server.bash(f'{each}; if ! [ -e "$f" ]; then echo "apart $d"; fi; done; echo looked', slot=by)
    finally:
        server.bash(f'{each}; rm -f "$f"; done 2>/dev/null', slot=of)
    if "left" not in left.output or "looked" not in seen.output:
        raise NotMeasured(f"whether slots meet in /tmp could not be seen: {left}; {seen}")
    found = dict.fromkeys(re.findall(r"^apart (/(?:tmp|var/tmp|dev/shm))$", seen.output, re.MULTILINE))
    return list(found)
