"""``/batch`` does many calls at once and keeps their order."""

from __future__ import annotations

import json
from typing import Any

from sifproof.checks.bash import SPAN, all_at_once, one_after_another
from sifproof.checks.engine.registry import Finding, check, expect
from sifproof.checks.engine.subject import Server, nonce


def _bash(server: Server, command: str, *, slot: int = 0, **more: Any) -> dict[str, Any]:
    """A call of ``bash`` as a batch holds it; ``more`` are other keys of it."""
    return {"slot_id": server.slot(slot), "tool": "bash", "args": {"command": command}, **more}


@check(
    "batch.order",
    "The results of a batch come in the order of its calls, one for each, whichever ends first.",
    why="Clients match results to calls by their place in the list.",
    todo="Gather the results by the index of their calls, not as they come in.",
    waits_s=0.3,
)
def order(server: Server) -> Finding:
    words = [nonce() for _ in range(2 * server.slots)]
    # The first call takes longest, so that whoever collects results as they come in has them the wrong way round.
    calls = [
        _bash(server, f"sleep {0.3 if index == 0 else 0}; echo {word}", slot=index % server.slots, execution_id=word)
        for index, word in enumerate(words)
    ]
    results = server.client.batch(calls)
    outputs = [result.output.strip() for result in results]
    ids = [result.execution_id for result in results]
    none = server.client.batch([])
    wrong = [
        f"result {index}: {result}, execution_id {result.execution_id!r}"
        for index, result in enumerate(results)
        if not result.success or outputs[index] != words[index] or ids[index] != words[index]
    ]
    return expect(not wrong and none == [], "; ".join(wrong[:3]) or f"{len(words)} results as the calls")


@check(
    "batch.parallel",
    "The calls of a batch to different slots run at the same time, all slots at once.",
    why="A batch is sent to save time; one call after another makes it as slow as none.",
    todo="Start all calls before waiting for the first.",
    waits_s=0.3,
)
def parallel(server: Server) -> Finding:
    server.slot(1)
    return all_at_once(
        server,
        lambda command: server.client.batch([_bash(server, command, slot=index) for index in range(server.slots)]),
    )


@check(
    "batch.serial",
    "The calls of a batch to one slot run one after another.",
    why="Two tools at once in one workspace corrupt each other's work.",
    todo="Take the slot's lock for each call of a batch.",
    waits_s=0.3,
)
def serial(server: Server) -> Finding:
    calls = [_bash(server, SPAN.format(seconds=0.1))] * 3
    return one_after_another(server.client.batch(calls), "in one batch")


@check(
    "batch.failure",
    "A call of a batch that fails, exceeds its time-out, or names an unknown slot or tool has a result that says so, "
    "and the others are done.",
    why="One bad call in a hundred must not cost the work of the others.",
    todo="Turn each call's failure into its own result.",
    waits_s=0.2,
)
def failure(server: Server) -> Finding:
    word, name = nonce(), nonce()
    calls = [
        _bash(server, f"echo {word}"),
        _bash(server, "exit 3"),
        {"slot_id": "no-such-slot", "tool": "bash", "args": {"command": "true"}},
        {"slot_id": server.slot(), "tool": "no-such-tool", "args": {}},
        {"slot_id": server.slot(), "tool": "read_file", "args": {"path": name}},
        _bash(server, "sleep 30", timeout=0.2),
        {"slot_id": server.slot(-1), "tool": "write_file", "args": {"path": name, "content": word}},
    ]
    good, *bad, written = server.client.batch(calls)
    there = server.bash(f"cat {name}; rm -f {name}", slot=-1)
    kept = good.success and good.output.strip() == word and written.success and there.output.strip() == word
    told = [result.error for result in bad]
    right = not any(result.success for result in bad) and all(
        part in error
        for part, error in zip(
            ("Exit code: 3", "Unknown slot", "Unknown tool", "not found", "timed out"), told, strict=True
        )
    )
    return expect(kept and right, f"errors: {told}; the calls around them: {good}; {written}")


BATCH_CALLS = 200
"""As many as the deployed system's clients put into one batch by default."""


@check(
    "batch.size",
    f"A batch of {BATCH_CALLS} calls is done, with a result for each.",
    why="Clients gather what their agents ask for within some milliseconds: as many calls as there are agents.",
    todo="Look for a limit of the calls of a batch, and for what is opened or started for each of them at once.",
)
def size(server: Server) -> Finding:
    name = nonce()
    # Of a tool that costs next to nothing.
    calls = [
        {
            "slot_id": server.slot(number % server.slots),
            "tool": "read_file",
            "args": {"path": name},
            "execution_id": f"{name}-{number}",
        }
        for number in range(BATCH_CALLS)
    ]
    results = server.client.batch(calls)
    wrong = [
        f"result {number}: {result}, execution_id {result.execution_id!r}"
        for number, (call, result) in enumerate(zip(calls, results, strict=True))
        if result.execution_id != call["execution_id"] or "not found" not in result.error.lower()
    ]
    return expect(not wrong, "; ".join(wrong[:3]) or f"{len(results)} results as the calls")


@check(
    "batch.not-a-list",
    "A batch whose body is no list is answered with 400, and nothing of it is done.",
    why="A single call sent to the wrong address must not be half understood.",
    todo="Look at the type of the body before its content.",
)
def not_a_list(server: Server) -> Finding:
    name = nonce()
    bodies = [_bash(server, f": > {name}"), {}, {"0": _bash(server, f": > {name}")}, "text", 5, True, None]
    seen = {
        json.dumps(body)[:60]: server.client.request("POST", "/batch", raw=json.dumps(body).encode())[0]
        for body in bodies
    }
    there = server.remove(name)
    wrong = {body: status for body, status in seen.items() if status != 400}
    return expect(
        not wrong and not there,
        f"{'; '.join(f'{body}: HTTP {status}' for body, status in (wrong or seen).items())}"
        f"{'; the call in it was made' if there else ''}",
    )
