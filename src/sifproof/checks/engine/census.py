"""What a sandbox's processes hold, as its node counts them: processes, descriptors, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Server
from sifproof.errors import SifproofError


@dataclass(frozen=True)
class Census:
    """The allocation's processes by name, and how many descriptors they hold open together."""

    processes: Counter[str]
    descriptors: int
    anonymous: Mapping[str, int] = field(default_factory=dict)
    """Memory of each process, in bytes, but for what lies in files."""
    peak: Mapping[str, int] = field(default_factory=dict)
    """The most memory that each process has had."""

    def grown(self, before: Census, what: Literal["anonymous", "peak"]) -> int:
        """By how many bytes the processes that were there before are larger now; the peak by the sizes that were."""
        then, now = before.anonymous if what == "anonymous" else before.peak, getattr(self, what)
        return sum(now[pid] - then[pid] for pid in now.keys() & then.keys())


_OWN = "grep -ls 'NOMAD_ALLOC_ID={allocation}' [0-9]*/environ; grep -ls '{allocation}' [0-9]*/cgroup"
"""Which processes of /proc Nomad gave its variable or control group; a container has neither."""

_LOOK = (
    # Where a directory can't be read, or is empty, the pattern stays as it is.
    'for p in [0-9]*; do set -- "$p"/fd/*; if [ -h "$1" ]; then echo "$p/fds:$#"; '
    'elif [ -d "$p" ] && [ ! -r "$p/fd" ]; then echo "$p/hidden:"; fi; done\n'
    "grep -s -e ^PPid: -e ^Name: -e ^State: -e ^RssAnon: -e ^VmHWM: [0-9]*/status; :"
)


def count(server: Server, *, forget_peaks: bool = False) -> Census:
    """What there is of the allocation's processes now; raises :class:`NotMeasured` where that can't be seen.

    With ``forget_peaks`` each process's peak is what it has now, where the node's user may have it so.
    """
    own = _OWN.format(allocation=server.placed.allocation.id)
    forget = f"for f in $({own}); do echo 5 > ${{f%%/*}}/clear_refs; done 2>/dev/null\n" if forget_peaks else ""
    try:
        answer = server.placed.node.run(f"cd /proc\n{forget}{own}\n{_LOOK}")
    except SifproofError as error:
        raise NotMeasured(f"the node's processes could not be counted: {error}") from None
    return _census_of(answer)


def _census_of(answer: str) -> Census:
    of_task: set[str] = set()
    hidden: set[str] = set()
    told: dict[str, dict[str, str]] = {}
    """What each process says of itself, by name."""
    for line in answer.splitlines():
        pid, _, rest = line.partition("/")
        what, _, value = rest.partition(":")
        if what in ("environ", "cgroup"):
            of_task.add(pid)
        elif what == "hidden":
            hidden.add(pid)
        elif what == "fds":
            told.setdefault(pid, {})["fds"] = value
        elif what == "status":
            name, _, word = value.partition(":")
            told.setdefault(pid, {})[name] = word.strip()
    parents = {pid: words["PPid"] for pid, words in told.items() if "PPid" in words}
    # All below them are the task's, too.
    while below := {pid for pid, parent in parents.items() if parent in of_task} - of_task:
        of_task |= below
    if not of_task:
        raise NotMeasured("the user of the node's Nomad client may not see the processes of the task")
    ours = {pid: told[pid] for pid in of_task & parents.keys()}
    hidden -= {pid for pid, words in ours.items() if words.get("State", "").startswith("Z")}  # it has none
    # A set-uid program that starts the container hides its own from everyone, not those of what it starts.
    if unseen := (hidden & ours.keys()) - set(parents.values()):
        names = ", ".join(sorted({ours[pid].get("Name", "?") for pid in unseen}))
        raise NotMeasured(f"the user of the node's Nomad client may not see the file descriptors of {names}")

    def sizes(name: str) -> dict[str, int]:
        return {pid: int(words[name].split()[0]) * 1024 for pid, words in ours.items() if name in words}

    return Census(
        processes=Counter(words.get("Name", "?") for words in ours.values()),
        descriptors=sum(int(words.get("fds", 0)) for words in ours.values()),
        anonymous=sizes("RssAnon"),
        peak=sizes("VmHWM"),
    )
