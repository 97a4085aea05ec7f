"""The server is up, is what the config says, and is the allocation's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sifproof.checks.engine.readiness import answers
from sifproof.checks.engine.registry import Finding, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.client import NotFoundError
from sifproof.nomad.node.signals import find_server


@check(
    "health.ready",
    "`GET /health` answers 200 within `nomad.ready_within_s` of the first try, made as soon as Nomad runs the task.",
    why="Nomad calls a task running as soon as its process is; work sent before the server listens is lost.",
    todo="Read the task's stderr in the run's folder; start the image by hand with the command of the rendered job.",
    guards=True,
)
def ready(server: Server) -> Finding:
    placement = server.placement
    if placement is None or placement.allocation.id in placement.endpoints.healthy_s:
        return answers(server)
    # It was asked for that long already, since its task was placed.
    now = answers(server, 1.0)
    return expect(
        False, f"no healthy answer within {server.ready_within_s:g} s; now {'there is one' if now.passed else now.saw}"
    )


@check(
    "health.identity",
    "The server that answers on the endpoint is this allocation: a nonce written through it is in the allocation's "
    "directory, read through Nomad.",
    why="A process that Nomad does not know can hold the static port and answer every check in the server's place.",
    todo="See what listens on that port of that node (`ss -ltnp`), end it or give the sandbox another port. Where it "
    "is the allocation's own server, write a file through it by hand, and look for it below `--data-dir`.",
    blames=Fault.INFRASTRUCTURE,
    guards=True,
)
def identity(server: Server) -> Finding:
    name, content = f".{nonce()}", nonce()
    written = server.write(name, content)
    if not written.success:
        return _unproven(server, f"the nonce could not be written through the server: {written.error}")
    try:
        seen = server.read_slot_file(name)
    except NotFoundError as error:
        # A server that found its port taken has ended, and Nomad knows why.
        server.ask_nomad()
        back = server.read(name)
        if not back.success or back.output != content:
            raise SifproofError(
                "The server loses what is written",
                why=f"it said that the nonce was written, then: {back}",
                fault=Fault.IMAGE,
            ) from None
        return _unproven(
            server,
            "another server answers on this endpoint: what is written through it does not arrive in the "
            f"allocation's directory ({error})",
            own="what is written through the server does not arrive in the directory that its job gives it "
            f"({error}): see what it makes of `--data-dir`",
        )
    finally:
        server.bash(f"rm -f -- {name}")
    if seen == content.encode():
        return expect(True, "the nonce came back through Nomad")
    # Nobody else knows the name: it is the allocation's own server that wrote something else.
    return replace(expect(False, f"the allocation's file holds other bytes: {seen[:80]!r}"), fault=Fault.IMAGE)


def _unproven(server: Server, saw: str, *, own: str = "") -> Finding:
    """That nothing proves whose server answers; where the node shows the allocation's own listen, it is the image's.

    ``own`` is what is to be said then, in place of ``saw``.
    """
    try:
        placed = server.placed
        listens = bool(find_server(placed.node, placed.allocation.id, placed.port_inside))
    except (NotMeasured, SifproofError):
        listens = False
    if not listens:
        return expect(False, saw)
    told = f"{own or saw}; on its node the allocation's own process listens on the port"
    return replace(expect(False, told), fault=Fault.IMAGE)


@check(
    "health.status",
    '`/health` says `status` "ok" and gives `slots`, `available`, `executing` and `data_dir`.',
    why="Schedulers and people look at this answer alone.",
    todo="Compare the server's answer with the protocol's description of `/health`.",
)
def status(server: Server) -> Finding:
    answer = server.client.health()
    kinds = {"slots": int, "available": int, "executing": int, "data_dir": str}
    wrong = [f"{key}={answer.get(key)!r}" for key, kind in kinds.items() if type(answer.get(key)) is not kind]
    if answer.get("status") != "ok":
        wrong.insert(0, f"status={answer.get('status')!r}")
    return expect(not wrong, "not as required: " + ", ".join(wrong) if wrong else answer)


@check(
    "health.slots",
    "`/health` reports as many slots as the config asks for.",
    why="A server with fewer slots refuses work that the scheduler hands it; with more it oversubscribes the node.",
    todo="Look at how the server reads `--slots`, and at the command in the rendered job.",
)
def slots(server: Server) -> Finding:
    seen = server.client.health().get("slots")
    return expect(seen == server.slots, f"{seen!r} slots, {server.slots} configured")


@check(
    "health.idle",
    "An idle server has every slot available and none executing.",
    why="A slot that counts as busy without work is lost to the scheduler for good.",
    todo="Look for slots that the server does not release after a call.",
)
def idle(server: Server) -> Finding:
    answer = server.client.health()
    return expect(
        (answer.get("available"), answer.get("executing")) == (server.slots, 0),
        f"available {answer.get('available')!r}, executing {answer.get('executing')!r} of {server.slots}",
    )


@check(
    "health.busy",
    "While a command runs, `/health` counts its slot as executing and no longer as available.",
    why="Schedulers send work to slots that are said to be available.",
    todo="Look at when the server changes a slot's state.",
    waits_s=0.3,
)
def busy(server: Server) -> Finding:
    wanted = (server.slots - 1, 1)
    seen: list[tuple[object, object]] = []
    waited_s = 0.0
    # Long enough on a quiet machine; a loaded one gets a second, longer look before it is a failure.
    for seconds in (0.3, 3.0):
        with ThreadPoolExecutor(1) as worker:
            command = worker.submit(server.bash, f"sleep {seconds}")
            while not command.done():
                answer = server.client.health()
                seen.append((answer.get("available"), answer.get("executing")))
        command.result()
        waited_s += seconds
        if wanted in seen:
            break
    states = ", ".join(sorted({f"{available!r}/{executing!r}" for available, executing in seen}))
    saw = f"available/executing seen during a command: {states}; {wanted[0]}/1 required"
    return expect(wanted in seen, saw, waited_s=waited_s)


@check(
    "health.slot-list",
    "`/slots` lists `slot_0` to `slot_N-1`, each once, each with a workspace of its own and a known state.",
    why="Clients address slots by these ids.",
    todo="Compare the server's answer with the protocol's description of `/slots`.",
)
def slot_list(server: Server) -> Finding:
    entries = server.client.slots()
    ids = [entry.get("slot_id") for entry in entries]
    folders = [entry.get("workspace_dir") for entry in entries]
    wrong = []
    if sorted(map(str, ids)) != sorted(f"slot_{index}" for index in range(server.slots)):
        wrong.append(f"ids {ids!r}")
    if not all(isinstance(folder, str) and folder for folder in folders) or len(set(map(str, folders))) != len(ids):
        wrong.append(f"workspaces {folders!r}")
    states = {entry.get("state") for entry in entries}
    if not states <= {"available", "executing"}:
        wrong.append(f"states {sorted(map(str, states))}")
    return expect(not wrong, "; ".join(wrong) or f"{len(ids)} slots")


@check(
    "health.current-call",
    "While a call runs, one of a batch too, `/slots` names it by its `execution_id` as its slot's "
    "`current_execution_id`, and no other: none that waits for its turn, and it to its end, whatever ends elsewhere.",
    why="Who looks for a call that hangs finds its slot by it.",
    todo="Set the slot's `current_execution_id` when its call begins, and clear it when it ends.",
    waits_s=0.6,
)
def current_call(server: Server) -> Finding:
    seen: set[str] = set()
    waited_s = 0.0
    # A loaded machine gets a second, longer look before it is a failure.
    for seconds in (0.3, 3.0):
        word, slot = nonce(), server.slot()
        call = {"command": f"sleep {seconds}; : > {word}"}
        # It waits for its turn, and comes in the other way.
        behind = {"slot_id": slot, "tool": "bash", "args": {"command": f"sleep {seconds}"}, "execution_id": f"{word}-2"}
        look = {"slot_id": slot, "path": word}
        with ThreadPoolExecutor(2) as worker:
            running = worker.submit(server.client.execute, slot, "bash", call, execution_id=word)
            while not running.done() and "the call" not in seen:
                seen |= {_named(entry, slot, word) for entry in server.client.slots()}
            waiting = worker.submit(server.client.batch, [behind])
            while not waiting.done():
                # A call elsewhere, which begins and ends meanwhile.
                if server.slots > 1:
                    server.client.execute(server.slot(1), "read_file", {"path": word})
                named = {_named(entry, slot, word, f"{word}-2") for entry in server.client.slots()}
                # What the first leaves at its end tells whether it was still running when that was asked.
                ended = server.client.request("POST", "/artifacts/read", look)[0] == 200
                if running.done():
                    ended |= not running.result().success  # it may not have come to that
                elif not ended and "the call" in seen and "the call" not in named:
                    named.add("no longer the call while it ran")
                seen |= {f"{what} before its turn" if what == "the next" and not ended else what for what in named}
        after = {entry.get("current_execution_id") for entry in server.client.slots()}
        server.remove(word)
        waited_s += 2 * seconds
        if {"the call", "the next"} <= seen:
            break
    return expect(
        seen <= {"the call", "the next", "nothing"} and {"the call", "the next"} <= seen and after == {None},
        f"named while they ran: {', '.join(sorted(seen))}; afterwards: {after}",
        waited_s=waited_s,
    )


def _named(entry: dict[str, object], slot: str, word: str, behind: str = "") -> str:
    """What a slot says that it executes, while ``word`` runs in ``slot``, and ``behind`` after it."""
    current = entry.get("current_execution_id")
    if current is None:
        return "nothing"
    if (current, entry.get("slot_id")) == (behind, slot):
        return "the next"
    return "the call" if (current, entry.get("slot_id")) == (word, slot) else f"{current!r} by {entry.get('slot_id')}"
