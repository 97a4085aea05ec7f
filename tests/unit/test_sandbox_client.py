"""The client against servers that answer anything but what the protocol says."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from checkout import wait_until

from sifproof.errors import Fault, SifproofError
from sifproof.sandbox import SandboxClient, ServerError, SlotPool
from sifproof.sandbox import client as client_module

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def says(body: object, status: int = 200) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    return answer


GOOD = {"success": True, "output": "x", "error": "", "execution_id": None, "metadata": {}}


def test_a_call_goes_out_as_the_protocol_says() -> None:
    seen: list[object] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append((handler.command, handler.path, json.loads(body)))
        says(GOOD)(handler, body)

    with server(answer) as url:
        result = SandboxClient(url).bash("slot_1", "ls", timeout_s=3, allow_network=False)
    assert (result.output, result.exit_code) == ("x", 0)
    assert seen == [
        (
            "POST",
            "/execute",
            {"slot_id": "slot_1", "tool": "bash", "args": {"command": "ls", "allow_network": False}, "timeout": 3},
        )
    ]


def test_the_streams_of_a_command_are_there_where_the_server_tells_them() -> None:
    for told, seen in (({}, (None, None)), ({"stdout": "  x\n", "stderr": ""}, ("  x\n", ""))):
        with server(says(GOOD | told)) as url:
            result = SandboxClient(url).bash("slot_0", "true")
            assert (result.output, result.stdout, result.stderr) == ("x", *seen)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(b"<html>"), "not JSON"),
        (says(b"[" * 100_000), "not JSON"),
        (says([1, 2]), "no result"),
        (says({"success": "yes"}), "`success`"),
        (says({**GOOD, "output": 7}), "`output`"),
        (says({}, 500), "HTTP 500"),
        (says({}, 302), "HTTP 302"),
        (lambda handler, _: handler.wfile.write(b"no http at all\r\n\r\n"), "no answer"),
        (lambda handler, _: handler.connection.close(), "no answer"),
    ],
)
def test_a_wrong_answer_is_told_not_raised_through(answer: Answer, said: str) -> None:
    with server(answer) as url, pytest.raises(ServerError, match=said):
        SandboxClient(url).bash("slot_0", "true")


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 100_000)

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b" " * 65536)
        except OSError:
            pass

    with server(answer) as url, pytest.raises(ServerError, match="exceeds 100000 bytes"):
        SandboxClient(url).health()


def test_a_server_that_never_answers_is_given_up() -> None:
    done = threading.Event()
    with server(lambda handler, _: done.wait(60) and None) as url:
        try:
            with pytest.raises(ServerError, match="no answer within 1 s"):
                SandboxClient(url, timeout_s=1, grace_s=0.0).health()
        finally:
            done.set()


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (b"", "no answer within"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", "no answer within"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "still coming"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n", "still coming"),
    ],
)
def test_a_server_that_drips_wins_no_time(before: bytes, said: str) -> None:
    over = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.wfile.write(before)
        # A client that each byte gives more time sees another end than the one below.
        for _ in range(300):
            if over.wait(0.1):
                return
            handler.wfile.write(b" " if before else b"H")

    with server(answer) as url:
        try:
            with pytest.raises(ServerError, match=said):
                SandboxClient(url, timeout_s=1.5, grace_s=0.0).health()
        finally:
            over.set()


def test_a_server_that_does_not_read_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ServerError, match="no answer within 1 s"):
            SandboxClient(url, timeout_s=1, grace_s=0.0).request("POST", "/execute", raw=b" " * 20_000_000)


def test_an_answer_that_is_cut_short_is_none() -> None:
    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}")

    with server(answer) as url, pytest.raises(ServerError, match="IncompleteRead"):
        SandboxClient(url).health()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_refusal_is_read_though_the_body_was_not_taken(at_once: bool) -> None:
    over = threading.Event()

    def refuse(listening: socket.socket) -> None:
        taken, _ = listening.accept()
        with taken:
            taken.recv(1000)
            taken.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}")
            if at_once:
                return  # what was not read makes the kernel break the connection
            taken.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(ConnectionError):
                while not over.wait(0.01):
                    taken.recv(1 << 20)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=refuse, args=(listening,))
        thread.start()
        try:
            assert SandboxClient(url).request("POST", "/execute", raw=b" " * 20_000_000) == (413, b"{}")
        finally:
            over.set()
            thread.join()


def test_a_connection_is_used_again_and_made_anew_where_the_server_closed_it() -> None:
    ports: list[int] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.protocol_version = "HTTP/1.1"
        ports.append(handler.client_address[1])
        says({})(handler, body)
        # The third closes without a word of it.
        handler.close_connection = len(ports) == 3

    with server(answer) as url:
        client = SandboxClient(url)
        for _ in range(3):
            client.health()
        connection = client._local.connection
        wait_until(lambda: client_module._readable(connection.sock))
        client.health()
        connection.close()
    assert len(set(ports[:3])) == 1
    assert len(ports) == 4 and ports[3] != ports[0]


@pytest.mark.parametrize("url", ["https://127.0.0.1", "127.0.0.1:8080", "http://:0", "http://a:99999"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match="no URL of a sandbox server"):
        SandboxClient(url).health()


def test_nobody_listens() -> None:
    with server(says({})) as url:
        pass
    with pytest.raises(ServerError, match="refused"):
        SandboxClient(url).health()


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with server(says({"status": "ok"})) as url:
        assert SandboxClient(url).health() == {"status": "ok"}


def slots_server(resets: list[str], *, broken: str = "") -> Answer:
    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if handler.path == "/slots":
            says({"slots": [{"slot_id": f"slot_{i}"} for i in range(2)]})(handler, body)
            return
        slot = json.loads(body)["slot_id"]
        resets.append(slot)
        says({**GOOD, "success": slot != broken, "error": "disk full"})(handler, body)

    return answer


def test_the_pool_hands_out_each_slot_once_and_empties_it_afterwards() -> None:
    resets: list[str] = []
    with server(slots_server(resets)) as url:
        pool = SlotPool([SandboxClient(url)])
        assert pool.size == 2
        with pool.slot() as one, pool.slot() as two:
            assert {one.slot_id, two.slot_id} == {"slot_0", "slot_1"}
            with pytest.raises(SifproofError, match="No slot came free"), pool.slot(within_s=0.05):
                pass
        assert sorted(resets) == ["slot_0", "slot_1"]
        with pool.slot() as again:
            assert again.slot_id in ("slot_0", "slot_1")


def test_a_slot_that_cannot_be_emptied_is_lost_not_handed_on() -> None:
    with server(slots_server([], broken="slot_0")) as url:
        pool = SlotPool([SandboxClient(url)])
        for _ in range(3):
            with pool.slot():
                pass
        assert [(slot.slot_id, str(error)) for slot, error in pool.lost] == [
            ("slot_0", "POST /reset failed: disk full.")
        ]


def test_slots_of_two_servers_take_turns() -> None:
    with server(slots_server([])) as one, server(slots_server([])) as two:
        pool = SlotPool([SandboxClient(one), SandboxClient(two)])
        with pool.slot() as first, pool.slot() as second:
            assert {first.client.url, second.client.url} == {one, two}


TOKEN = "a-token-that-nobody-else-has"


def test_every_request_carries_the_token_and_a_clone_has_it_too() -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append(handler.headers["Authorization"])
        says(GOOD)(handler, body)

    with server(answer) as url:
        client = SandboxClient(url, token=TOKEN)
        client.health()
        client.clone(timeout_s=1).bash("slot_0", "true")
        SandboxClient(url).health()
        with client.begin("GET", "/health", b"\r\n") as begun:  # one that a check may break off
            begun.recv(1)
    assert seen == [f"Bearer {TOKEN}", f"Bearer {TOKEN}", None, f"Bearer {TOKEN}"]


def echo(status: int) -> Answer:
    """A server that shows what it was sent, as some do that are told to help who writes them."""

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        says({"error": str(handler.headers), "output": 5}, status)(handler, body)

    return answer


@pytest.mark.parametrize("status", [200, 401, 500])
def test_no_message_shows_the_token(status: int) -> None:
    with server(echo(status)) as url:
        client = SandboxClient(url, token=TOKEN)
        with pytest.raises(ServerError) as error:
            client.bash("slot_0", "true")
        assert TOKEN.encode() not in client.request("GET", "/health")[1]
    assert TOKEN not in f"{error.value} {error.value!r} {client!r} {SlotPool([])!r}"


def test_nor_does_a_first_line_that_is_no_http() -> None:
    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.wfile.write(handler.headers["Authorization"].encode() + b"\r\n")

    with server(answer) as url, pytest.raises(ServerError) as error:
        SandboxClient(url, token=TOKEN).health()
    assert "Bearer <token>" in str(error.value)


def test_who_is_refused_learns_what_is_lacking() -> None:
    with server(says({}, 401)) as url:
        with pytest.raises(ServerError, match="Give the client the token") as error:
            SandboxClient(url).slots()
        assert (error.value.status, error.value.fault) == (401, Fault.CONFIGURATION)
        # That of the job is refused: it was given to the server.
        with pytest.raises(ServerError) as error:
            SandboxClient(url, token=TOKEN).slots()
        assert (error.value.todo, error.value.fault) == ("", Fault.IMAGE)


@pytest.mark.parametrize("token", ["", "two words", "line\nX-Other: 1", "tökens"])
def test_what_can_t_be_a_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match=r"^a token has visible ASCII characters alone, one at least$"):
        SandboxClient("http://127.0.0.1:1", token=token)


def test_a_short_token_is_left_alone_where_it_is_a_word_of_an_answer() -> None:
    with server(says({"status": "ok"})) as url:
        assert SandboxClient(url, token="ok").health() == {"status": "ok"}
