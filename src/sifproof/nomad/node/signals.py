"""Signals to the processes of an allocation's server, on its node, from a script that runs there.

They are found as the kernel knows them: by ``NOMAD_ALLOC_ID`` in their environment, which every job of a sandbox gives
its server, and by the socket that they listen on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from sifproof.nomad.job import validate_id
from sifproof.nomad.node.script import Node

Who = Literal["listening", "others"]
"""Those that listen on the server's port; or the container's other processes, but for its first."""

_FIND = """\
listening= others=
depth=$(awk '$1 == "NSpid:" {{ print NF }}' /proc/self/status)
for file in $(grep -l NOMAD_ALLOC_ID={allocation} /proc/[0-9]*/environ 2>/dev/null); do
  process=${{file%/environ}} found=
  for socket in $(awk '$4 == "0A" && $2 ~ /:{port:04X}$/ {{ print $10 }}' \
      "$process/net/tcp" "$process/net/tcp6" 2>/dev/null); do
    if ls -l "$process/fd" 2>/dev/null | grep -q "socket:\\[$socket\\]"; then found=1; fi
  done
  if [ "$found" ]; then listening="$listening ${{process#/proc/}}"; continue; fi
  if awk '$1 == "NSpid:" {{ exit !(NF > '"${{depth:-99}}"' && $NF > 1) }}' "$process/status" 2>/dev/null; then
    others="$others ${{process#/proc/}}"
  fi
done
"""
_READY = "signalled"


def _find(allocation: str, port: int) -> str:
    return _FIND.format(allocation=validate_id(allocation, "allocation id"), port=port)


def kill_server(node: Node, allocation: str, port: int) -> list[int]:
    """Send SIGKILL to the processes of ``allocation`` that listen on ``port``, as the container sees it.

    Their process ids; none where the node's user can't see them. Raises
    :class:`~sifproof.nomad.node.script.ProbeError` where the node can't be reached or runs no scripts.
    """
    script = _find(allocation, port) + '[ -z "$listening" ] || kill -KILL $listening\necho $listening'
    return [int(word) for word in node.run(script).split()]


def find_server(node: Node, allocation: str, port: int) -> list[int]:
    """The processes that :func:`kill_server` would kill; the same errors."""
    return [int(word) for word in node.run(_find(allocation, port) + "echo $listening").split()]


class Listening(NamedTuple):
    """Where processes of an allocation listen, as its container names it."""

    ports: list[int]
    sockets: list[str]
    """Unix sockets; an abstract one has ``@`` before its name."""


def find_listening(node: Node, allocation: str) -> Listening:
    """Where processes of ``allocation`` listen that have its id; the errors of :func:`kill_server`."""
    found = Listening([], [])
    for line in node.run(_LISTENING.format(allocation=validate_id(allocation, "allocation id"))).splitlines():
        kind, _, where = line.partition(" ")
        if kind == "tcp" and int(where, 16) not in found.ports:
            found.ports.append(int(where, 16))
        elif kind == "unix" and where not in found.sockets:
            found.sockets.append(where)
    return found


_LISTENING = """\
for file in $(grep -l NOMAD_ALLOC_ID={allocation} /proc/[0-9]*/environ 2>/dev/null); do
  process=${{file%/environ}}
  own=" $(ls -l "$process/fd" 2>/dev/null | sed -n 's/.* socket:\\[\\([0-9]*\\)\\]$/\\1/p' | tr '\\n' ' ')"
  awk -v own="$own" '$4 == "0A" && index(own, " " $10 " ") {{ n = split($2, part, ":"); print "tcp " part[n] }}' \
    "$process/net/tcp" "$process/net/tcp6" 2>/dev/null
  awk -v own="$own" '$4 == "00010000" && index(own, " " $7 " ") && $8 != "" {{ print "unix " $8 }}' \
    "$process/net/unix" 2>/dev/null
done
exit 0
"""


class Found(NamedTuple):
    """Process ids of an allocation's server."""

    stopped: list[int]
    others: int
    """How many processes of the other kind there are."""


@contextmanager
def stopped(node: Node, allocation: str, port: int, who: Who) -> Iterator[Found]:
    """Processes of ``allocation`` stopped by SIGSTOP until the block ends; errors are those of :func:`kill_server`."""
    rest = "others" if who == "listening" else "listening"
    script = (
        f"trap 'kill -CONT ${who} 2>/dev/null; exit 0' TERM\n"
        + _find(allocation, port)
        + f'[ -z "${who}" ] || kill -STOP ${who}\necho ${who}\nset -- ${rest}\necho $#\necho {_READY}\n'
        # A shell runs its trap when the command that it waits for has ended, or at once in `wait`.
        f"sleep 60 & wait\nkill -CONT ${who} 2>/dev/null"
    )
    with node.hold(script, ready=_READY) as said:
        pids, others = said.splitlines()
        yield Found([int(word) for word in pids.split()], int(others))


class Scores(NamedTuple):
    """``oom_score_adj`` of processes: the higher, the sooner the kernel ends one when memory runs out."""

    server: list[int]
    above: list[int]
    """Of the container's processes that started the server's."""
    image: list[int]
    """Of the FUSE programs that serve the container's image."""
    command: list[int]


def scores(node: Node, allocation: str, port: int, word: str) -> Scores:
    """Those of the processes of ``allocation``, and of those that have ``word`` in their arguments, which are ended.

    Errors are those of :func:`kill_server`.
    """
    script = _find(allocation, port) + _SCORES.format(allocation=validate_id(allocation), word=f"[{word[0]}]{word[1:]}")
    found = Scores([], [], [], [])
    for line in node.run(script).splitlines():
        kind, _, score = line.partition(" ")
        getattr(found, kind).append(int(score))
    return found


_SCORES = """\
score() {{ read -r score < "$2/oom_score_adj" && echo "$1 $score"; }}
# The next process above that the job gave its environment: those of Apptainer between them have another.
above() {{
  above=$1
  for level in 1 2 3 4 5 6; do
    above=$(awk '$1 == "PPid:" {{ print $2 }}' "/proc/$above/status" 2>/dev/null)
    [ "${{above:-1}}" -gt 1 ] || return 1
    if grep -qs NOMAD_ALLOC_ID={allocation} "/proc/$above/environ"; then return 0; fi
  done
  return 1
}}
for process in $listening; do
  score server "/proc/$process"
  if above "$process"; then score above "/proc/$above"; fi
done
for file in $(grep -ls fuse /proc/[0-9]*/comm); do
  process=${{file%/comm}}
  if grep -qs NOMAD_ALLOC_ID={allocation} "$process/environ" || above "${{process#/proc/}}"; then
    score image "$process"
  fi
done
for file in $(grep -lsa {word} /proc/[0-9]*/cmdline); do
  score command "${{file%/cmdline}}"
  commands="$commands $(basename "${{file%/cmdline}}")"
done
[ -z "$commands" ] || kill -KILL $commands 2>/dev/null
exit 0
"""
