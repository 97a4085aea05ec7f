"""How long it takes, with limits where the config gives some.

The way from submission to the first healthy answer is told in phases that add up to the whole. Each is measured by one
clock alone, so that clocks that differ between node, server and this machine shift nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sifproof.checks.engine.policy import amount
from sifproof.checks.engine.registry import Finding, NotMeasured, check, expect, measured
from sifproof.checks.engine.subject import Server
from sifproof.errors import Fault, SifproofError
from sifproof.sandbox.client import Result

WARM_UP = 5
SAMPLES = 60
"""Calls whose time is taken; a p95 of fewer than 50 is no more than the slowest but one."""

_FEWEST = 50
_WITHIN_S = 20.0
_WINDOW_S = 1.0
_CALLERS = 32


@check(
    "performance.submit-to-healthy",
    "From the submission of the job to the first healthy answer it takes no longer than the limit of the config.",
    why="So long does whoever asks for a sandbox wait for it.",
    todo="See which of `performance.place`, `.start` and `.ready` takes the time.",
    blames=Fault.INFRASTRUCTURE,
    unit="s",
    limit_judges=True,
)
def submit_to_healthy(server: Server) -> Finding:
    found = _phase(_healthy(server), "from submission to the first healthy answer, by the clock of this machine")
    try:
        placing, starting, rest = _phases(server)
    except NotMeasured:
        return found
    return replace(found, fault=Fault.IMAGE) if rest >= max(placing, starting) else found


@check(
    "performance.place",
    "From the submission of the job to its placement on a node Nomad takes no longer than the limit of the config.",
    why="A scheduler under load makes every sandbox late, whatever the image is like.",
    todo="Look at the load of Nomad's servers, and at what else is submitted at that time.",
    blames=Fault.INFRASTRUCTURE,
    unit="s",
    limit_judges=True,
)
def place(server: Server) -> Finding:
    return _phase(_placed(server), "from the job's SubmitTime to the allocation's CreateTime, by Nomad's servers")


@check(
    "performance.start",
    "From the allocation's arrival on its node to a started task it takes no longer than the limit of the config.",
    why="What a node does first, such as fetching an image or checking its sum, every sandbox waits for.",
    todo="Look at the events of the allocation (`nomad alloc status`), and put the image where the node reads it fast.",
    blames=Fault.INFRASTRUCTURE,
    unit="s",
    limit_judges=True,
)
def start(server: Server) -> Finding:
    return _phase(_started(server), "from the task's event Received to Started, by the node")


@check(
    "performance.ready",
    "From a started task to the first healthy answer, with what Nomad needs to hand the allocation to its node, it "
    "takes no longer than the limit of the config.",
    why="Mounting the image and starting the server is the part that a maintainer can make faster.",
    todo="Start the image by hand with the command of the rendered job and `python -X importtime`; try a conversion "
    "with another compression.",
    unit="s",
    limit_judges=True,
)
def ready(server: Server) -> Finding:
    placing, starting, rest = _phases(server)
    whole = placing + starting + rest
    return _phase(rest, f"are what {placing:.3f} s to place and {starting:.3f} s to start leave of {whole:.3f} s")


@check(
    "performance.exec-p50",
    "Half of all calls of `bash` with the command `true` on one slot take no longer than the limit of the config.",
    why="An agent makes thousands of calls; what each costs beside its command adds up to hours.",
    todo="Look at what the server does around a command: a container, a shell, a log for each call.",
    unit="s",
    limit_judges=True,
)
def exec_p50(server: Server) -> Finding:
    taken = _times(server)
    return measured(statistics.median(taken), _summary(taken))


@check(
    "performance.exec-p95",
    "19 of 20 calls of `bash` with the command `true` on one slot take no longer than the limit of the config.",
    why="A step of an agent waits for its slowest call.",
    todo="Look at what the server does beside calls, such as cleaning up and logging, and at the load of the node.",
    unit="s",
    limit_judges=True,
)
def exec_p95(server: Server) -> Finding:
    taken = _times(server)
    return measured(statistics.quantiles(taken, n=20, method="inclusive")[-1], _summary(taken))


@check(
    "performance.throughput",
    f"All slots, up to {_CALLERS} at a time, carry out as many calls of `bash` with the command `true` as the limit of "
    "the config demands.",
    why="Slots are sold by the number; a server that gets slower with each makes them a promise.",
    todo="Look for a lock over all slots, for the number of worker threads, and at `cpu` in the config.",
    unit="/s",
    at_least=True,
    limit_judges=True,
)
def throughput(server: Server) -> Finding:
    slots = _idle(server)
    callers = min(len(slots), _CALLERS)
    with ThreadPoolExecutor(callers) as pool:
        cold = list(pool.map(lambda slot: server.bash("true", slot=slot), slots))
        begin = time.monotonic()

        def call(number: int) -> list[Result]:
            own: list[int] = slots[number::callers]
            results: list[Result] = []
            # Longer on a machine that is too busy for enough of them, and not for ever.
            while (spent := time.monotonic() - begin) < _WINDOW_S or (
                len(results) * callers < _FEWEST and spent < _WITHIN_S
            ):
                results.append(server.bash("true", slot=own[len(results) % len(own)]))
            return results

        warm = [result for results in pool.map(call, range(callers)) for result in results]
        seconds = time.monotonic() - begin
    if failed := [result for result in (*cold, *warm) if not result.success]:
        return expect(False, f"{len(failed)} of {len(cold) + len(warm)} calls failed: {failed[0]}")
    if len(warm) < _FEWEST:
        raise NotMeasured(f"only {len(warm)} calls ended in {seconds:.1f} s: too few to tell")
    saw = f"{len(warm)} calls of {len(slots)} slots in {seconds:.2f} s, {callers} at a time"
    return measured(len(warm) / seconds, saw)


def _phase(seconds: float, which: str) -> Finding:
    return measured(seconds, f"{amount(seconds, 's')} {which}")


def _idle(server: Server) -> list[int]:
    """The slots that are not kept busy by a call of an earlier suite that could not be ended."""
    idle = server.idle()
    if not idle:
        raise NotMeasured("every slot is still executing something")
    return idle


def _times(server: Server) -> list[float]:
    """Seconds that each of :data:`SAMPLES` calls on one slot took, one after another."""
    slot = _idle(server)[0]
    for _ in range(WARM_UP):
        _call(server, slot)
    begin = time.monotonic()
    taken: list[float] = []
    while len(taken) < SAMPLES and time.monotonic() < begin + _WITHIN_S:
        taken.append(_call(server, slot))
    if len(taken) < _FEWEST:
        raise NotMeasured(f"only {len(taken)} calls ended in {_WITHIN_S:g} s: too few to tell")
    return taken


def _call(server: Server, slot: int) -> float:
    begin = time.perf_counter()
    result = server.bash("true", slot=slot)
    seconds = time.perf_counter() - begin
    if not result.success:
        raise SifproofError("`true` failed", why=str(result), fault=Fault.IMAGE)
    return seconds


def _summary(taken: Sequence[float]) -> str:
    low, middle, high = (f"{value * 1000:.1f}" for value in (min(taken), statistics.median(taken), max(taken)))
    return f"{len(taken)} calls: {low} ms the fastest, {middle} ms the median, {high} ms the slowest"


def _healthy(server: Server) -> float:
    """Seconds from submission to the first healthy answer, which the gate itself has waited for."""
    placed = server.placed
    seconds = placed.endpoints.healthy_s.get(placed.allocation.id)
    if seconds is None:
        raise NotMeasured("the server gave no healthy answer in time; see health.ready")
    return seconds


def _phases(server: Server) -> tuple[float, float, float]:
    """Seconds to place, to start, and from there to the first healthy answer."""
    whole, placing, starting = _healthy(server), _placed(server), _started(server)
    rest = whole - placing - starting
    if rest < 0:
        raise NotMeasured(
            f"{placing:.3f} s to place and {starting:.3f} s to start are more than the whole {whole:.3f} s"
        )
    return placing, starting, rest


def _placed(server: Server) -> float:
    """Seconds from submission to placement; both stamps are of Nomad's leading server."""
    placed = server.placed
    job = placed.nomad.get("job", placed.allocation.job_id)
    return _between("SubmitTime", int(job.get("SubmitTime") or 0), "CreateTime", placed.allocation.created_ns)


def _started(server: Server) -> float:
    """Seconds from arrival on the node to a started task; both stamps are of the node."""
    allocation = server.placed.allocation
    received, begun = (allocation.time_ns(event) or 0 for event in ("Received", "Started"))
    return _between("Received", received, "Started", begun)


def _between(first: str, begin_ns: int, last: str, end_ns: int) -> float:
    if not begin_ns or not end_ns:
        raise NotMeasured(f"Nomad gives no {last if begin_ns else first}")
    if end_ns < begin_ns:
        raise NotMeasured(f"{last} is {(begin_ns - end_ns) / 1e9:.3f} s before {first}: the clock was set meanwhile")
    return (end_ns - begin_ns) / 1e9
