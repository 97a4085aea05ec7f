"""Whatever a client sends, the server answers as documented and stays healthy."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sifproof.checks.engine.registry import Finding, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.protocol.generated import Request, make_requests
from sifproof.errors import SifproofError
from sifproof.sandbox.client import Result, ServerError

_POSTS = ("/execute", "/batch", "/reset", "/artifacts/read", "/artifacts/list", "/artifacts/archive")

_LARGE_BYTES = 10 * 2**20


def _judge(server: Server, wrong: Iterable[str], saw: str) -> Finding:
    """Nothing may be wrong, and the server has to be healthy and do its work afterwards."""
    word = nonce()
    problems = list(wrong)
    try:
        health = server.client.health()
        worked = server.bash(f"echo {word}")
        # A server that never says how it is has failed `health.status`.
        if health.get("status", "ok") != "ok" or worked.output.strip() != word:
            problems.append(f"afterwards: /health says {health.get('status')!r}; a command: {worked}")
    except SifproofError as error:
        problems.append(f"afterwards: {error}")
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return expect(not problems, "; ".join(problems[:5]) + more or f"{saw}; healthy afterwards")


def _ask(server: Server, path: str, body: object = None, *, method: str = "POST", raw: bytes | None = None) -> Any:
    """Status and answer; the answer is decoded where it is JSON."""
    status, answer = server.client.request(method, path, body, raw=raw, timeout_s=10)
    try:
        return status, json.loads(answer)
    except (ValueError, RecursionError):
        return status, answer[:200].decode("utf-8", "replace")


def _refused(status: int, answer: object) -> bool:
    """Whether it says no: by its status, or as a result that did not succeed."""
    return 400 <= status < 500 or (status == 200 and isinstance(answer, dict) and answer.get("success") is False)


def _told(path: str, sent: object, status: int, answer: object) -> str:
    return f"{path} {json.dumps(sent)[:120]}: HTTP {status} {json.dumps(answer)[:160]}"


@check(
    "protocol.bad-json",
    "A body that is not JSON is answered with 400 by `/execute` and `/batch`, and refused with a 4xx by all others.",
    why="A client with a fault must learn that the fault is its own.",
    todo="Catch the parser's errors, that of too deep nesting too, and answer 400.",
)
def bad_json(server: Server) -> Finding:
    bodies = (b"", b"{", b"nonsense", b'{"slot_id": "slot_0",}', b"\xff\xfe\x00", b'"' + b"\x00" * 10, b"[" * 50_000)
    wrong = []
    for path in _POSTS:
        for body in bodies:
            status, answer = _ask(server, path, raw=body)
            if not (status == 400 or (path not in _POSTS[:2] and 400 <= status < 500)):
                wrong.append(f"{path} {body[:30]!r}: HTTP {status} {json.dumps(answer)[:160]}")
    return _judge(server, wrong, f"{len(bodies)} bodies refused by {len(_POSTS)} calls")


def _call(server: Server, tool: object = "bash", **args: object) -> dict[str, Any]:
    return {"slot_id": server.slot(), "tool": tool, "args": args}


def _wrong_unless_refused(server: Server, requests: Iterable[tuple[str, object]]) -> list[str]:
    wrong = []
    for path, body in requests:
        status, answer = _ask(server, path, raw=json.dumps(body).encode())
        if not _refused(status, answer):
            wrong.append(_told(path, body, status, answer))
    return wrong


@check(
    "protocol.missing-fields",
    "A request that lacks a field it needs is refused: with a 4xx, or with a result that says so.",
    why="An internal error hides the client's mistake, and a success pretends that something was done.",
    todo="Look at each field before it is used.",
)
def missing_fields(server: Server) -> Finding:
    slot, name = server.slot(), nonce()
    requests: list[tuple[str, object]] = [
        ("/execute", {}),
        ("/execute", {"tool": "bash", "args": {"command": "true"}}),
        ("/execute", {"slot_id": slot, "args": {"command": "true"}}),
        ("/execute", {"slot_id": slot, "tool": "bash"}),
        ("/execute", _call(server)),
        ("/execute", _call(server, "read_file")),
        ("/execute", _call(server, "write_file", path=name)),
        ("/execute", _call(server, "write_file", content="x")),
        ("/reset", {}),
        ("/artifacts/read", {"slot_id": slot}),
        *((path, {"path": "."}) for path in _POSTS[3:]),
    ]
    wrong = _wrong_unless_refused(server, requests)
    server.bash(f"rm -f {name}")
    return _judge(server, wrong, f"{len(requests)} requests refused")


@check(
    "protocol.wrong-types",
    "A request with a field of a wrong type is refused: with a 4xx, or with a result that says so.",
    why="A client that sends a list for a text must learn it, not fell the server.",
    todo="Look at the type of each field before it is used; lists and objects can't be keys of a table of slots.",
)
def wrong_types(server: Server) -> Finding:
    name, bash = nonce(), _call(server, command="true")
    here = {"slot_id": server.slot(), "path": "."}
    read, write = _call(server, "read_file"), _call(server, "write_file")
    refused: list[tuple[str, object]] = [
        *_each("/execute", bash, "slot_id", True, *_NO_TEXT),
        *_each("/execute", bash, "tool", False, ["bash"], *_NO_TEXT),
        *_each("/execute", bash, "args", 5, "true", ["true"], True),
        *_each("/execute", bash, "args", *({"command": value} for value in (True, ["true"], *_NO_TEXT))),
        *_each("/execute", read, "args", *({"path": value} for value in _NO_TEXT)),
        *_each("/execute", write, "args", *({"path": value, "content": "x"} for value in _NO_TEXT)),
        *_each("/execute", write, "args", *({"path": name, "content": value} for value in _NO_TEXT)),
        *_each("/reset", {}, "slot_id", *_NO_TEXT),
        *((path, body) for path in ("/execute", "/reset") for body in _NO_OBJECT),
        *_each("/artifacts/read", here, "encoding", ["text"], 5),
        *_each("/artifacts/archive", here, "format", ["tar.gz"], 5),
    ]
    for path in _POSTS[3:]:
        refused += [(path, body) for body in _NO_OBJECT]
        refused += [*_each(path, here, "slot_id", *_NO_TEXT), *_each(path, here, "path", 5, ["x"], {})]
    # Of these the protocol does not say whether a server has to refuse them or may pass over them.
    open_to_either: list[tuple[str, object]] = [
        *_each("/execute", bash, "timeout", "soon", [], {}, True, -1, 0),
        *_each("/execute", bash, "execution_id", 5, [], {}),
        *(("/batch", [body]) for body in (*_NO_OBJECT, {}, {"slot_id": []}, bash | {"tool": {}})),
        *_each("/artifacts/list", here, "recursive", "perhaps", 5, []),
        *_each("/artifacts/list", here, "max_entries", "many", -1, [], 1.5),
        *_each("/artifacts/archive", here, "max_bytes", "many", -1, {}),
    ]
    wrong = _wrong_unless_refused(server, refused)
    for path, body in open_to_either:
        status, answer = _ask(server, path, body)
        if not (status == 200 or 400 <= status < 500):
            wrong.append(_told(path, body, status, answer))
    server.bash(f"rm -f {name}")
    return _judge(server, wrong, f"{len(refused)} requests refused, {len(open_to_either)} refused or passed over")


_NO_TEXT: tuple[Any, ...] = (5, None, ["slot_0"], {})
_NO_OBJECT: tuple[Any, ...] = (5, None, "text", [])


def _each(path: str, body: dict[str, Any], key: str, *values: Any) -> list[tuple[str, object]]:
    """Requests with each of ``values`` as ``key`` of ``body``."""
    return [(path, body | {key: value}) for value in values]


@check(
    "protocol.odd-text",
    "Text that no path or command can hold, a zero byte or half a character, and paths that are too long are answered "
    "with a result or a 4xx.",
    why="Agents send what a model made up; an internal error, or no answer, stops their loop.",
    todo="Catch what the system says of such names, and of text that can't be encoded.",
)
def odd_text(server: Server) -> Finding:
    odd = ("a\0b", "\ud800", "x" * 300, "x/" * 5000, "\n", "~", "$HOME", "%00", "\u202e", "-")
    requests: list[tuple[str, dict[str, Any]]] = []
    for text in odd:
        requests += [("/execute", _call(server, "read_file", path=text))]
        requests += [(path, {"slot_id": server.slot(), "path": text}) for path in _POSTS[3:]]
    folder = nonce()
    for text in odd[:2]:
        requests += [
            ("/execute", _call(server, command=f"true {text}")),
            ("/execute", _call(server, "write_file", path=f"{folder}/{text}", content="x")),
            ("/execute", _call(server, "write_file", path=f"{folder}/file", content=text)),
            ("/execute", _call(server, f"no-such-tool{text}")),
            ("/execute", _call(server, command="true") | {"slot_id": text}),
            ("/execute", _call(server, command="true") | {"execution_id": text}),
            ("/reset", {"slot_id": f"no-such-slot{text}"}),
        ]
    wrong = []
    for path, body in requests:
        try:
            status, answer = _ask(server, path, body)
        except ServerError as error:
            wrong.append(f"{path} {json.dumps(body)[:120]}: {error}")
            continue
        answered = status == 200 and isinstance(answer, dict) and isinstance(answer.get("success"), bool)
        if not (answered or 400 <= status < 500):
            wrong.append(_told(path, body, status, answer))
    server.bash(f"rm -rf {folder}")
    return _judge(server, wrong, f"{len(requests)} requests answered")


@check(
    "protocol.unknown-slot",
    "`/execute`, `/batch` and `/reset` of a slot that does not exist are answered with 200 and a result that says "
    "`Unknown slot`.",
    why="A client has to tell a wrong slot from a command that failed.",
    todo="Look the slot up among those that there are.",
)
def unknown_slot(server: Server) -> Finding:
    calls = [
        {"slot_id": slot, "tool": tool, "args": {"command": "true", "path": "x", "content": "x"}}
        for slot in (f"slot_{server.slots}", "slot_999999", "no-such-slot", "slot_-1", "SLOT_0", "0")
        for tool in ("bash", "read_file", "write_file")
    ]
    client = server.client
    results = [(call, client.execute(call["slot_id"], call["tool"], call["args"])) for call in calls]  # type: ignore[arg-type]
    results += zip(calls, client.batch(calls), strict=True)
    # A server that takes it for a path must not be led to remove what lies beside its workspaces.
    results += [({"reset": slot}, client.reset(slot)) for slot in ("slot_999999", "no-such-slot")]
    return _judge(server, _without(results, "Unknown slot"), f"{len(results)} times `Unknown slot`")


@check(
    "protocol.unknown-tool",
    "A call of a tool that does not exist is answered with 200 and a result that says `Unknown tool`.",
    why="Tools are optional; a client finds out by asking which of them a server has.",
    todo="Look the tool up in a table of tools, not among the names of the program.",
)
def unknown_tool(server: Server) -> Finding:
    tools = ("no-such-tool", "Bash", "__init__", "__class__", "execute", "bash ")
    calls = [_call(server, tool, command="true", path="x", content="x") for tool in tools]
    results = [(call, server.client.execute(server.slot(), call["tool"], call["args"])) for call in calls]
    results += zip(calls, server.client.batch(calls), strict=True)
    return _judge(server, _without(results, "Unknown tool"), f"{len(results)} times `Unknown tool`")


def _without(results: Iterable[tuple[object, Result]], word: str) -> list[str]:
    """The results that are no failure which says ``word``."""
    return [f"{call}: {result}" for call, result in results if result.success or word not in result.error]


@check(
    "protocol.execution-id",
    "The `execution_id` of a call is that of its result, also where the call fails.",
    why="Clients file logs and traces under it.",
    todo="Copy the call's `execution_id` into each result, those of errors too.",
)
def execution_id(server: Server) -> Finding:
    calls = [
        _call(server, command="true"),
        _call(server, command="exit 3"),
        _call(server, "no-such-tool"),
        _call(server) | {"slot_id": "no-such-slot"},
    ]
    wrong = []
    for call in calls:
        body = call | {"execution_id": nonce()}
        status, answer = _ask(server, "/execute", body)
        if not isinstance(answer, dict) or answer.get("execution_id") != body["execution_id"]:
            wrong.append(_told("/execute", body, status, answer))
    return _judge(server, wrong, f"{len(calls)} results with the id of their call")


@check(
    "protocol.wrong-method",
    "An address or a method that the protocol does not have is answered with a 4xx.",
    why="A client that asks for what there is not must not take the answer for one.",
    todo="Let the web framework answer 404 and 405.",
)
def wrong_method(server: Server) -> Finding:
    requests = [
        *(("GET", path) for path in _POSTS),
        *(("POST", path) for path in ("/health", "/slots")),
        *(("GET", path) for path in ("/no-such", "/health/x", "/artifacts", "/artifacts/..%2f..%2fetc", "/%00")),
        *(("POST", path) for path in ("/no-such", "/artifacts/write")),
    ]
    wrong = []
    for method, path in requests:
        status, answer = _ask(server, path, {} if method != "GET" else None, method=method)
        if not 400 <= status < 500:
            wrong.append(f"{method} {path}: HTTP {status} {json.dumps(answer)[:160]}")
    return _judge(server, wrong, f"{len(requests)} requests refused")


@check(
    "protocol.large-body",
    "A body of 10 MB, a file's content or no JSON at all, is refused, and nothing of it is written.",
    why="One oversized request must neither fell the server nor leave half a file.",
    todo="Look at the size before anything else, and answer 413 or `Content too large`.",
)
def large_body(server: Server) -> Finding:
    name = nonce()
    content = json.dumps(_call(server, "write_file", path=name, content="x" * _LARGE_BYTES)).encode()
    wrong = []
    for what, body in (("write_file", content), ("no JSON", b"x" * _LARGE_BYTES)):
        status, answer = _ask(server, "/execute", raw=body)
        if not _refused(status, answer):
            wrong.append(f"{what} of {len(body)} bytes: HTTP {status} {json.dumps(answer)[:200]}")
    if server.remove(name):
        wrong.append("a file is there")
    return _judge(server, wrong, "both refused")


@check(
    "protocol.hang-up-sending",
    "A client that hangs up in the middle of its request does no harm, whether it closes its connection or breaks it, "
    "and nothing is done of a request that did not come whole.",
    why="Clients are killed, and networks fail.",
    todo="Look at what becomes of a request whose body does not come, and of the connection.",
    waits_s=0.1,
)
def hang_up_sending(server: Server) -> Finding:
    name = nonce()
    whole = json.dumps(_call(server, command=f": > {name}")).encode()
    with_length = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    parts = [
        b"Content-Le",
        with_length % 100_000,
        with_length % len(whole) + whole[:-1],
        # The whole of a command, of a body that goes on.
        with_length % 100_000 + whole,
    ]
    for part in parts:
        for reset in (True, False):
            connection = server.client.begin("POST", "/execute", part)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
    # Two calls, for the slot does one after another: what was taken on before the first is done before the second.
    server.bash("sleep 0.1")
    wrong = ["a command was run whose request did not come whole"] if server.remove(name) else []
    return _judge(server, wrong, f"{len(parts)} requests broken off, each in two ways")


_FREED_WITHIN_S = 5.0
"""How long after its command ended a slot may still be busy on a loaded node; its time-out comes later."""


@check(
    "protocol.hang-up-waiting",
    "A client that hangs up while its command runs frees the slot for the next, when the command has ended at the "
    "latest, and holds no other slot up.",
    why="A slot that waits for a client who is gone is lost.",
    todo="Release the slot when the command ends or is cancelled, whether or not somebody waits for the answer.",
    waits_s=1.0,
)
def hang_up_waiting(server: Server) -> Finding:
    saw, ran, waited_s = "", False, 0.0
    # By the clock of the node, and a loaded one gets a second, longer look.
    for seconds in (1.0, 5.0):
        name = nonce()
        call = _call(server, command=f": > {name}; sleep {seconds}") | {"timeout": seconds + 2 * _FREED_WITHIN_S}
        begun = _now(server)
        server.hang_up_on(call, name)
        held_up = passed = 0.0
        # Until the command has ended: the server may notice later that nobody waits for it.
        while server.slots > 1 and passed < seconds:
            before, passed = passed, _now(server, slot=1) - begun
            held_up = max(held_up, passed - before)
        after = _now(server) - begun
        ran = server.remove(name)
        waited_s += seconds
        saw = (
            f"while a command of {seconds:g} s went on, another slot ran one after {held_up:.2f} s at most; "
            f"its own ran the next {after:.2f} s after its begin"
        )
        if ran and held_up < seconds and after < seconds + _FREED_WITHIN_S:
            return replace(_judge(server, [], saw), waited_s=waited_s)
    if not ran:
        raise NotMeasured(f"nothing is there of the command that was hung up on: {saw}")
    return replace(_judge(server, [saw], ""), waited_s=waited_s)


def _now(server: Server, *, slot: int = 0) -> float:
    """When a command ran in a slot, in seconds by the node's clock; infinity where it did not."""
    result = server.bash("read a b < /proc/uptime; echo $a", slot=slot)
    try:
        return float(result.output)
    except ValueError:
        return float("inf")


_GENERATED = 10
"""Requests that are made for each call of the protocol, right ones and wrong ones."""

_SENDING_S = 60.0
"""No more of them are sent when this has passed: enough for all, but on a server that hardly answers."""


def _known(server: Server, folder: str) -> dict[str, list[Any]]:
    """Calls, by their path, of which every server of the protocol makes a result that is a success."""
    slot = server.slot(-1)
    calls = [
        {"slot_id": slot, "tool": "bash", "args": {"command": "echo some text"}},
        {"slot_id": slot, "tool": "write_file", "args": {"path": f"{folder}/made", "content": "text"}},
        {"slot_id": slot, "tool": "read_file", "args": {"path": f"{folder}/file"}},
    ]
    artifacts = {f"/artifacts/{call}": [{"slot_id": slot, "path": folder}] for call in ("list", "archive")}
    read = [{"slot_id": slot, "path": f"{folder}/file", "encoding": encoding} for encoding in ("text", "base64")]
    return {"/execute": calls, "/batch": [calls, []], "/artifacts/read": read, **artifacts}


def _send_generated(server: Server, *, valid: bool) -> Finding:
    folder = "sifproof-generated"
    words = {
        "SlotId": (server.slot(-1), "no-such-slot"),
        "Tool": ("bash", "read_file", "write_file", "no-such-tool"),
        "Command": ("exit 3", "echo some text", "true"),
        "Path": (f"{folder}/file", folder, f"{folder}/none", f"{folder}/made/ü"),
    }
    requests = make_requests(valid=valid, count=_GENERATED, words=words, known=_known(server, folder) if valid else {})
    # A reset of the slot last: it takes away what the others look at.
    requests.sort(key=lambda request: request.path == "/reset")
    server.bash(f"mkdir -p {folder} && echo text > {folder}/file", slot=-1)
    wrong, sent, end = [], 0, time.monotonic() + _SENDING_S
    try:
        for request in requests:
            if time.monotonic() > end:
                break
            sent += 1
            try:
                status, answer = server.client.request(request.method, request.path, raw=request.body, timeout_s=10)
            except ServerError as error:
                wrong.append(f"{request}: {error}")
                break  # each such takes as long as its time-out
            if problem := _problem(request, status, answer):
                wrong.append(f"{request}: HTTP {status} {answer[:160].decode('utf-8', 'replace')!r}: {problem}")
    finally:
        server.bash(f"rm -rf {folder}", slot=-1)
    finding = _judge(server, wrong, f"{sent} requests sent")
    if finding.passed and sent < len(requests):
        raise NotMeasured(f"only {sent} of {len(requests)} requests were answered within {_SENDING_S:g} s")
    return finding


def _problem(request: Request, status: int, answer: bytes) -> str:
    if status != 200 and not 400 <= status < 500:
        return "neither 200 nor a 4xx"
    if request.known and status != 200:
        return "refused, though it is a request of the protocol"
    return request.mismatch(status, answer)


@check(
    "protocol.described",
    "Requests made from the protocol's description are answered as it describes: status, and type and presence of "
    "every key.",
    why="Clients are written by the protocol, not by one server.",
    todo="Send the request that is named to `/execute` and its siblings, and compare the answer with the protocol.",
)
def described(server: Server) -> Finding:
    return _send_generated(server, valid=True)


@check(
    "protocol.not-described",
    "Requests made to break the protocol's description are answered with a 4xx, or with 200 and what is described.",
    why="Nobody thinks of every wrong request; what is made at random finds the rest.",
    todo="Send the request that is named, and look for the exception in the server's log.",
)
def not_described(server: Server) -> Finding:
    return _send_generated(server, valid=False)
