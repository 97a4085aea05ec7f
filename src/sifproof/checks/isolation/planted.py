"""Markers planted on the node and looked for in a sandbox, and the other way round: what ``isolation.host`` judges by.

All of it is done once for an allocation: a script on the node plants, a command in the first slot looks around and
leaves marks of its own, a script on the node looks for those, and what was planted is cleared away
(:mod:`.scripts`). No secret of the node leaves it: the values of its environment are compared by salted checksums.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

from sifproof import documents
from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.isolation import scripts
from sifproof.errors import SifproofError
from sifproof.image import daemon
from sifproof.image.provenance import Provenance
from sifproof.image.records import LoadedImage
from sifproof.nomad.job import TASK

_ORDINARY = re.compile(scripts.ORDINARY)


class Said:
    """What a script printed, by the word that each line begins with.

    Raises :class:`NotMeasured` where there is no line ``end``: nothing seen is then nothing looked at.
    """

    def __init__(self, text: str, end: str, who: str) -> None:
        self._lines: dict[str, list[str]] = {}
        for line in text.splitlines():
            word, _, rest = line.partition("\t")
            self._lines.setdefault(word, []).append(rest)
        if end not in self._lines:
            raise NotMeasured(f"{who} did not come to its end: {text.strip()[-300:]!r}")

    def __getitem__(self, word: str) -> list[str]:
        return self._lines.get(word, [])

    def one(self, word: str) -> str:
        """The rest of the first line with ``word``; empty where there is none."""
        return next(iter(self[word]), "")

    def named(self, word: str, name: str) -> list[str]:
        """What follows ``name`` in the lines with ``word``."""
        return [rest.partition(" ")[2] for rest in self[word] if rest.partition(" ")[0] == name]


@dataclass
class Planted:
    """What was planted for one allocation, and what was seen of it."""

    inside: Said
    """What the slot says."""
    _node: Said | None
    """What the script that planted says, and …"""
    _after: Said | None
    """… the one that looked for the sandbox's marks."""
    _nothing: str
    """Why these are missing."""
    _later: Said | NotMeasured
    """What a later command of the slot says."""
    hex: str
    _variables: dict[str, list[str]] | NotMeasured = field(repr=False)
    _own_names: frozenset[str] | None = None
    """The variables that the image and the config set; None where the image's are not known."""

    @property
    def node(self) -> Said:
        """What is on the node; raises :class:`NotMeasured` where no script could be run there."""
        if self._node is None or self._after is None:
            raise NotMeasured(f"nothing could be planted on the node: {self._nothing}")
        if not self.inside["own"]:
            raise NotMeasured("the search in the slot does not find what was planted in its own workspace")
        return self._node

    @property
    def after(self) -> Said:
        """What the sandbox left on the node."""
        if not self.node or self._after is None or not self._after.named("arrived", "own"):
            raise NotMeasured("the search on the node does not find what the slot left in its own workspace")
        return self._after

    @property
    def later(self) -> Said:
        """What a command after :attr:`inside` found of what that left in the slot."""
        if isinstance(self._later, NotMeasured):
            raise self._later
        return self._later

    def leaked(self) -> tuple[list[str], int]:
        """Names of the node's variables whose values the slot sees, and how many of the node's could be told apart."""
        sums: dict[str, list[str]] = {}
        for kind in ("variable", "ordinary"):
            for line in self.node[kind]:
                checksum, _, name = line.partition(" ")
                if kind == "variable" or (self._own_names is not None and name not in self._own_names):
                    sums.setdefault(checksum, []).append(name)
        if not self.node.one("environment"):
            raise NotMeasured("the node has no sha256sum or no grep, to compare secrets by")
        if isinstance(self._variables, NotMeasured):
            raise self._variables
        found = [
            name if name in names else f"{name} (the value of {names[0]})"
            for value, seen in self._variables.items()
            for name in seen
            if (names := sums.get(_checksum(self.hex, name, value)))
        ]
        return sorted(set(found)), len(sums)


def is_ordinary(value: str) -> bool:
    """Whether two machines may have ``value`` in common by chance, so that it alone tells nothing of a leak."""
    # By bytes, as the node's grep(1) has it.
    return bool(_ORDINARY.fullmatch(value.encode("utf-8", "surrogateescape").decode("latin-1")))


def _checksum(salt: str, name: str, value: str) -> str:
    """What a variable is known by: its value, and its name too where the value is an ordinary one."""
    kept = value.encode("utf-8", "surrogateescape")[: scripts.VALUE_BYTES]
    with_name = f"{name}=" if is_ordinary(value) else ""
    return hashlib.sha256((salt + with_name).encode("utf-8", "surrogateescape") + kept).hexdigest()


_planted: dict[int, Planted | SifproofError | NotMeasured] = {}


def planted(server: Server) -> Planted:
    """What was planted for ``server``, and seen: done at the first call, and remembered until its suite is over.

    Raises what the slot's look around raised, each time.
    """
    if id(server) not in _planted:
        server.keep.callback(_planted.pop, id(server), None)
        try:
            _planted[id(server)] = _plant(server)
        except (SifproofError, NotMeasured) as error:
            _planted[id(server)] = error
    found = _planted[id(server)]
    if isinstance(found, Exception):
        raise found
    return found


def _plant(server: Server) -> Planted:
    hex = secrets.token_hex(12)
    node = inside = after = None
    nothing = ""
    try:
        placed = server.placed
        script = scripts.plant(
            hex, allocation=placed.allocation.id, task=placed.allocation.task or TASK, workspace=server.workspace()
        )
        with placed.node.hold(script, ready=scripts.PLANTED) as said:
            node = Said(f"{said}\n{scripts.PLANTED}", scripts.PLANTED, "the script that plants markers on the node")
            inside = _look_around(server, hex, node)
            looked = placed.node.run(
                scripts.look_after(
                    hex,
                    [place.rpartition("/")[0] for place in node["place"]],
                    workspace=node.one("workspace"),
                    signalled=node.one("signalled"),
                )
            )
            after = Said(looked, "end", "the script that looks for the sandbox's marks on the node")
    except (SifproofError, NotMeasured) as error:
        nothing = str(error)
    try:
        if inside is None:
            inside = _look_around(server, hex, None)
    finally:
        places = [place.partition("/")[1:] for place in node["place"]] if node else []
        folders = ["".join(path).rpartition("/")[0] for path in places]
        folders += [path.rpartition("/")[0] for path in inside["wrote"]] if inside else []
        later = _clear(server, hex, folders, inside["writable-root"] if inside else [])
    return Planted(inside, node, after, nothing, later, hex, look_at_environment(server), _own_names(server))


def _own_names(server: Server) -> frozenset[str] | None:
    """The variables that the server's image and config set; None where it is not known which the image does."""
    try:
        placed = server.placed
        if server.driver == "docker":
            variables = daemon.inspect(documents.read(placed.image, LoadedImage).id).config.get("Env")
            names = [str(one).partition("=")[0] for one in variables] if isinstance(variables, list) else []
        else:
            made = documents.read(placed.image, Provenance)
            if not made.key:  # a SIF made elsewhere
                return None
            names = made.image.env_keys
    except (SifproofError, NotMeasured):
        return None
    return frozenset([*names, *placed.sandbox.environment])


def _clear(server: Server, hex: str, folders: list[str], roots: list[str]) -> Said | NotMeasured:
    """What a command says that removes the marks which the look around left."""
    try:
        result = server.bash(scripts.clear(hex, folders, roots))
        return Said(result.output, "end", f"the command that removes marks in the slot ({result})")
    except SifproofError as error:
        return NotMeasured(str(error))
    except NotMeasured as error:
        return error


def _look_around(server: Server, hex: str, node: Said | None) -> Said:
    """What the slot sees, and writes on the way."""
    look = scripts.look(
        hex,
        places=node["place"] if node else [],
        own=node.one("own") if node else "",
        process=node.one("process") if node else "",
        shm=node.one("shm") if node else "",
        block=node.one("block") if node else "",
    )
    result = server.bash(look)
    return Said(result.output, "end", f"the command that looks around in the slot ({result})")


def look_at_environment(server: Server) -> dict[str, list[str]] | NotMeasured:
    """The names under which the slot sees each value, but for those that the config gives it."""
    own = nonce()
    try:
        result = server.bash(scripts.look_at_environment(own))
        Said(result.output, "end", f"the command that prints the slot's environment ({result.error})")
    except (SifproofError, NotMeasured) as error:
        return NotMeasured(str(error))
    if len(result.output.encode()) >= scripts.ENVIRONMENT_BYTES:
        return NotMeasured("the slot sees more variables than a command may print: those of other processes too?")
    if own not in [line.partition("=")[2] for line in result.output.splitlines()]:
        return NotMeasured(f"the search for variables in the slot does not find one of its own: {result}")
    given = {own, *(server.placement.sandbox.environment.values() if server.placement else ())}
    found: dict[str, list[str]] = {}
    for line in result.output.splitlines():
        name, equals, value = line.partition("=")
        if not equals:
            name, value = "a line", line
        if value not in given:
            found.setdefault(value, []).append(name)
    return found
