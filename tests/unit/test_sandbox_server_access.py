"""Who may use the sandbox server: nobody without a token, where it was started with the hash of one."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import wait_until

from sifproof.sandbox import SandboxClient, SlotPool

SERVER = Path(__file__).resolve().parents[2] / "sandbox" / "sandbox_server.py"
TOKEN, SECOND = "the-token-of-the-job", "another-of-its-tokens"
BASH = {"slot_id": "slot_0", "tool": "bash", "args": {"command": "echo ran > ran"}}
ARTIFACT = {"slot_id": "slot_0", "path": "."}
CALLS = {
    "slots": ("GET", "/slots", None),
    "execute": ("POST", "/execute", BASH),
    "read_file": ("POST", "/execute", {**BASH, "tool": "read_file", "args": {"path": "file"}}),
    "write_file": ("POST", "/execute", {**BASH, "tool": "write_file", "args": {"path": "ran", "content": ""}}),
    "bash_stateful": ("POST", "/execute", {**BASH, "tool": "bash_stateful"}),
    "batch": ("POST", "/batch", [BASH, BASH]),
    "reset": ("POST", "/reset", {"slot_id": "slot_0"}),
    "artifacts read": ("POST", "/artifacts/read", {"slot_id": "slot_0", "path": "file"}),
    "artifacts list": ("POST", "/artifacts/list", ARTIFACT),
    "artifacts archive": ("POST", "/artifacts/archive", ARTIFACT),
    "no such path": ("GET", "/nowhere", None),
    "no such method": ("GET", "/execute", None),
    "method of another kind": ("OPTIONS", "*", None),
    "health by HEAD": ("HEAD", "/health", None),
    "health by POST": ("POST", "/health", {}),
    "health by OPTIONS": ("OPTIONS", "/health", None),
    "below health": ("GET", "/health/slots", None),
    "beside health": ("GET", "/health/../slots", None),
    "health with a slash": ("GET", "/health/", None),
    "health twice": ("GET", "//health", None),
    "no JSON": ("POST", "/execute", b"{"),
}
HEADERS = {
    "none": [],
    "wrong": ["Bearer the-token-of-the-jab"],
    "a part": ["Bearer the-token-of-the"],
    "more": ["Bearer the-token-of-the-job1"],
    "empty": [""],
    "scheme alone": ["Bearer"],
    "empty token": ["Bearer "],
    "token alone": [TOKEN],
    "another scheme": [f"Basic {TOKEN}"],
    "a list": [f"Bearer wrong, Bearer {TOKEN}"],
    "right after wrong": ["Bearer wrong", f"Bearer {TOKEN}"],
    "wrong after right": [f"Bearer {TOKEN}", "Bearer wrong"],
    "right twice": [f"Bearer {TOKEN}", f"Bearer {TOKEN}"],
    "quoted": [f'Bearer "{TOKEN}"'],
    "the hash itself": [f"Bearer {hashlib.sha256(TOKEN.encode()).hexdigest()}"],
    "bytes": ["Bearer \xff\xfe"],
}
RIGHT = {
    "plain": f"Bearer {TOKEN}",
    "second": f"Bearer {SECOND}",
    "lower case": f"bearer {TOKEN}",
    "upper case": f"BEARER {TOKEN}",
    "spaces": f"Bearer   {TOKEN}  ",
}


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def start(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    where = ["--host", "127.0.0.1", "--port", "0", "--slots", "2", "--one-user"]
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, str(SERVER), *where, *arguments], stdout=stream, stderr=stream)


class Running:
    """A server that asks for one of two tokens, and its data directory with a file in slot 0."""

    def __init__(self, folder: Path, port: int) -> None:
        self.workspace = folder / "slots" / "slot_0"
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ask(
        self, method: str, path: str, body: object = None, headers: list[str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        connection.putrequest(method, path)
        connection.putheader("Content-Length", str(len(data)))
        for value in headers or []:
            connection.putheader("Authorization", value.encode("latin-1"))
        connection.endheaders(data)
        answer = connection.getresponse()
        told = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return told


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        hashes = ["--token-sha256", sha256(SECOND), "--token-sha256", sha256(TOKEN).upper()]
        process = start("--data-dir", f"{folder}/data", *hashes, log=log)
        try:
            wait_until(lambda: log.read_text().endswith("\n") and "listening on" in log.read_text(), 60)
            running = Running(Path(folder) / "data", int(log.read_text().rpartition(":")[2]))
            (running.workspace / "file").write_text("secret")
            yield running
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.mark.parametrize(("method", "path", "body"), CALLS.values(), ids=CALLS)
def test_every_call_but_health_is_401_without_a_token(guarded: Running, method: str, path: str, body: object) -> None:
    status, headers, answer = guarded.ask(method, path, body)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    if method != "HEAD":
        assert json.loads(answer)["success"] is False
    assert sorted(one.name for one in guarded.workspace.iterdir()) == ["file"]


@pytest.mark.parametrize("given", HEADERS.values(), ids=HEADERS)
def test_what_is_no_token_of_the_server_opens_nothing(guarded: Running, given: list[str]) -> None:
    assert guarded.ask("POST", "/execute", BASH, given)[0] == 401
    assert guarded.ask("GET", "/health", None, given)[::2] == (200, b'{"status": "ok"}')
    assert not (guarded.workspace / "ran").exists()


@pytest.mark.parametrize("given", RIGHT.values(), ids=RIGHT)
def test_a_right_token_opens_all(guarded: Running, given: str) -> None:
    assert guarded.ask("GET", "/slots", None, [given])[0] == 200
    health = json.loads(guarded.ask("GET", "/health", None, [given])[2])
    assert (health["slots"], health["data_dir"]) == (2, str(guarded.workspace.parents[1]))
    assert guarded.ask("GET", "/nowhere", None, [given])[0] == 404


def test_the_answer_comes_before_the_body_does(guarded: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=60)
    connection.putrequest("POST", "/execute")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(("token", "first"), [(TOKEN, b"100 Continue"), ("wrong", b"401 Unauthorized")])
def test_a_body_that_is_held_back_is_asked_of_no_stranger(guarded: Running, token: str, first: bytes) -> None:
    body = json.dumps({"slot_id": "slot_1", "tool": "bash", "args": {"command": "true"}}).encode()
    lines = f"POST /execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), 60) as connection:
        connection.sendall(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 " + first)
        if token == TOKEN:
            connection.sendall(body)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_each_request_of_a_connection_is_looked_at(guarded: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=60)
    seen = []
    for token in (TOKEN, None, TOKEN, "wrong"):
        connection.request("GET", "/slots", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        answer.read()
        seen.append(answer.status)
    connection.close()
    assert seen == [200, 401, 200, 401]


def test_the_client_and_its_pool_work_with_it(guarded: Running) -> None:
    client = SandboxClient(guarded.url, token=TOKEN)
    pool = SlotPool([client])
    with pool.slot() as slot:
        assert slot.bash("echo hello").output.strip() == "hello"
    assert (pool.size, pool.lost) == (2, [])
    (guarded.workspace / "file").write_text("secret")  # the pool has emptied the slot


def test_a_command_sees_neither_token_nor_hash_in_its_environment(guarded: Running) -> None:
    client = SandboxClient(guarded.url, token=TOKEN)
    for tool in ("bash", "bash_stateful"):
        seen = client.execute("slot_1", tool, {"command": "env"}).output
        assert "PATH=" in seen
        for word in (TOKEN, SECOND, sha256(TOKEN), sha256(SECOND)):
            assert word not in seen.lower()


@pytest.mark.parametrize(
    "hashes",
    [[""], [TOKEN], [sha256(TOKEN)[1:]], [sha256(TOKEN) + "\n"], ["g" * 64], [sha256(TOKEN), "short"], ["٣" * 64]],
)
def test_what_is_no_hash_is_wrong_usage_and_is_not_shown(hashes: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = [word for one in hashes for word in ("--token-sha256", one)]
    assert start("--data-dir", str(tmp_path), *options, log=log).wait(60) == 2
    assert "64 hexadecimal digits are expected" in log.read_text()
    assert TOKEN not in log.read_text()
