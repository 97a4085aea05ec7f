"""The job is gone when it is told to go, and nothing of it stays on the node."""

from __future__ import annotations

from collections.abc import Sequence

from sifproof.checks.engine.registry import Finding, NotMeasured, check, expect
from sifproof.checks.engine.subject import Ended
from sifproof.errors import Fault


def _within(seconds: float | None, ended: Ended, what: str, seen: str = "") -> Finding:
    limit = ended.stopped_within_s
    if seconds is None:
        return Finding(False, f"{what} not within {limit:g} s" + (f": {seen}" if seen else ""), limit, "s", limit)
    return Finding(seconds <= limit, f"{what} after {seconds:.3f} s", round(seconds, 4), "s", limit)


def _none_left(ended: Ended, left: Sequence[object]) -> Finding:
    if not ended.allocation.looked_at:
        raise NotMeasured(f"node {ended.allocation.node} could not be looked at: {ended.allocation.unseen}")
    return expect(not left, "left on the node: " + "; ".join(map(str, left)) if left else "none left on the node")


@check(
    "teardown.port-closed",
    "Within `nomad.stopped_within_s` of the request to stop, nothing accepts connections on the port any more.",
    why="A static port that stays open keeps the next job from starting.",
    todo="See what listens on that port of that node (`ss -ltnp`); look at how the server treats SIGTERM.",
)
def port_closed(ended: Ended) -> Finding:
    return _within(ended.allocation.port_closed_s, ended, "the port was closed", ended.allocation.port_seen)


@check(
    "teardown.port-reusable",
    "When Nomad says that the allocation has ended, another server can listen on its port.",
    why="Nomad gives a static port to the next job at once, which ends when it can't have it.",
    todo="See what holds that port of that node (`ss -tnap`), and if nothing does, what has a mute socket there.",
    # A server of the image that stays turns other checks red too.
    blames=Fault.INFRASTRUCTURE,
)
def port_reusable(ended: Ended) -> Finding:
    if ended.allocation.port_untried:
        raise NotMeasured(f"it could not be tried: {ended.allocation.port_untried}")
    taken = ended.allocation.port_taken
    return expect(not taken, f"listening on {ended.allocation.endpoint}: {taken}" if taken else "it could be had again")


@check(
    "teardown.stopped",
    "Within `nomad.stopped_within_s` of the request to stop, Nomad says that the allocation has ended.",
    why="Its memory and its port are reserved until then.",
    todo="Look at how the server treats SIGTERM, and at the task's events in the run's folder.",
)
def stopped(ended: Ended) -> Finding:
    return _within(ended.allocation.terminal_s, ended, f"Nomad said `{ended.allocation.client_status}`")


@check(
    "teardown.graceful",
    "The server ends on SIGTERM; it need not be killed.",
    why="A killed server can't finish its writes, and helpers such as squashfuse_ll outlive a killed Apptainer.",
    todo="Handle SIGTERM in the server; as the container's first process it has no default handler.",
)
def graceful(ended: Ended) -> Finding:
    if ended.allocation.terminal_s is None:
        raise NotMeasured("Nomad did not say that the allocation has ended")
    if ended.allocation.killed is None:
        raise NotMeasured("Nomad missed how the task ended, and it took as long as one that is killed")
    code = ended.allocation.exit_code
    saw = (
        "it ended before Nomad would have killed it; Nomad missed its exit code"
        if code is None
        else f"exit code {code}"
    )
    return expect(not ended.allocation.killed, saw)


@check(
    "teardown.processes",
    "No process of the allocation is left on the node.",
    why="Orphans hold the SIF open and their memory, and no health check sees them.",
    todo="Look for processes that leave the container's tree, and for a missing `exec` in the job's shell line.",
)
def processes(ended: Ended) -> Finding:
    # Nomad's own helpers end a moment later, with the agent's knowledge of the allocation.
    left = [p for p in ended.allocation.processes if not p.is_nomad]
    # Those that mount for Apptainer are the next check's.
    return _none_left(ended, [p for p in left if not p.is_fuse or ended.driver != "singularity"])


@check(
    "teardown.fuse",
    "No FUSE program that mounted the image or an overlay of it is left on the node.",
    why="Each keeps the SIF open and its memory for good, one with every stop; no health check sees them.",
    todo="Look for a killed Apptainer and for a missing `exec` in the job's shell line; `pgrep -a squashfuse`.",
    drivers=("singularity",),
)
def fuse(ended: Ended) -> Finding:
    return _none_left(ended, [p for p in ended.allocation.processes if p.is_fuse])


@check(
    "teardown.mounts",
    "No mount of the allocation and no container of it is left on the node.",
    why="A FUSE mount that stays keeps the node's directory busy, and Nomad can't collect it.",
    todo="`grep <allocation> /proc/mounts`, `fusermount -u`, `docker ps -a`; see what holds them.",
)
def mounts(ended: Ended) -> Finding:
    finding = _none_left(ended, [*ended.allocation.mounts, *ended.allocation.containers])
    if finding.passed and ended.allocation.containers_unseen:
        raise NotMeasured(f"its containers could not be looked at: {ended.allocation.containers_unseen}")
    return finding


@check(
    "teardown.purged",
    "Nomad has forgotten the job.",
    why="A job that stays known is restarted or counted against quotas.",
    todo="`nomad job stop -purge <job>`; see that the token has `submit-job`.",
    blames=Fault.INFRASTRUCTURE,
)
def purged(ended: Ended) -> Finding:
    return expect(ended.purged, "the job is purged" if ended.purged else "Nomad still knows the job")
