"""``isolation.slot.first-to-go``: whom the kernel ends when memory runs out, told by the scores that it goes by.

Memory is not really filled: where a node sets no limit, that would be the node's own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sifproof.checks.engine.registry import Finding, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.errors import SifproofError
from sifproof.nomad.node import signals

_LONGER_S = 60.0
"""Than the script on the node takes, which ends the command."""


@check(
    "isolation.slot.first-to-go",
    "When memory runs out, the kernel would end a command of a slot no later than the server and what serves its "
    "image: its `oom_score_adj` is at least as high as theirs, and the server's is not raised by it.",
    why="One agent's compiler that takes too much would end the work of all slots; a server whose image is gone dies "
    "of SIGBUS at its next step.",
    todo="Raise `/proc/self/oom_score_adj` in the command's own process, between fork and exec, never in the server's.",
)
def first_to_go(server: Server) -> Finding:
    placed, word = server.placed, nonce()
    # Whoever marks himself by starting a shell bears the mark afterwards.
    server.client.execute(server.slot(), "bash_stateful", {"command": "exit"})
    with ThreadPoolExecutor(1) as caller:
        running = caller.submit(server.bash, f"sh -c 'sleep {_LONGER_S:g}; :' {word}", timeout_s=_LONGER_S)
        server.wait_until_busy(within_s=10)
        try:
            found = signals.scores(placed.node, placed.allocation.id, placed.port_inside, word)
            running.result()
        except SifproofError as error:
            raise NotMeasured(f"the node can't be asked: {error}") from None
    if not found.server or not found.command:
        raise NotMeasured("the user of the node's Nomad client does not see the server's processes or the command's")
    first = min(found.command)
    saw = f"oom_score_adj of the server {_said(found.server)}, of the command {_said(found.command)}"
    saw += f", of what serves the image {_said(found.image)}" if found.image else ""
    problems = [
        *(["the server goes before the command"] if max(found.server) > first else []),
        *(["what serves the image goes before the command"] if max(found.image, default=first) > first else []),
        *(
            [f"the server's is above that of what started it, {_said(found.above)}"]
            if found.above and max(found.server) > max(found.above)
            else []
        ),
    ]
    return expect(not problems, "; ".join([*problems, saw]))


def _said(scores: list[int]) -> str:
    return " and ".join(map(str, sorted(set(scores))))
