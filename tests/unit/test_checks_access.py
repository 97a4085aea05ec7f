"""What a stranger gets from a server, what counts as an attempt, and who has to act: without a sandbox."""

import json
import os
import shutil
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from sifproof import config
from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.subject import Placement
from sifproof.checks.isolation import access, scripts
from sifproof.checks.isolation.planted import Said
from sifproof.errors import Fault
from sifproof.sandbox import tokens
from sifproof.sandbox.client import Result

SECRET = "what-slot-0-keeps"
FORGED = ("X-Forwarded-For", "X-Real-IP", "Forwarded")
NEEDED = ("cat", "cut", "head", "id", "sed", "sort", "timeout", "tr")
"""What every image and node has, for the script itself."""


class Slot0:
    """Slot 0 of a server that strangers ask: what they wrote is there."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def slot(self) -> str:
        return "slot_0"

    def bash(self, _: str) -> Result:
        return Result(success=True, output="\n".join([*self.names, "looked"]))


class Open(BaseHTTPRequestHandler):
    """Does what anybody asks, as far as the script can tell."""

    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        text = json.dumps(self.answer(body)).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_PATCH = do_GET = do_POST  # noqa: N815

    def answer(self, body: object) -> object:
        given = dict.fromkeys((self.headers["Authorization"], *(n for n in FORGED if n in self.headers)))
        self.server.asked += [(self.command, self.path, header) for header in given]  # type: ignore[attr-defined]
        command = body.get("args", {}).get("command", "") if isinstance(body, dict) else ""
        if command:
            self.server.slot.names.append(command.rpartition(" ")[2])  # type: ignore[attr-defined]
        return {"success": True, "output": SECRET if command else ""}

    def log_message(self, *_: object) -> None:
        pass


class Polite(Open):
    """Refuses with 200, as the protocol does for tools that fail."""

    def answer(self, _: object) -> object:
        return {"success": False, "error": "who are you? the file is not for you"}


class Closed(Open):
    status = 401

    def answer(self, _: object) -> object:
        return {"success": False, "error": "who are you?"}


@pytest.fixture
def listening(request):
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    server.slot, server.asked = Slot0(), []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(folder: Path, slot: object, port: int, *programs: str, host: str = "127.0.0.1") -> tuple[access.Victim, Said]:
    """What a stranger says who has these programs."""
    for name in (*NEEDED, *programs):
        if not (folder / name).exists():
            # Not what a PATH has by the name of python3, which may be a script that looks for one.
            (folder / name).symlink_to(Path(sys.executable).resolve() if name == "python3" else shutil.which(name))
    victim = access.Victim(slot, "kept", SECRET)  # type: ignore[arg-type]
    script = victim.script("w", [(host, port)])
    done = subprocess.run(
        [shutil.which("sh"), "-c", script], env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )
    return victim, Said(done.stdout, "end", done.stderr)


PROGRAMS = [name for name in ("bash", "python3", "curl", "wget") if shutil.which(name)]


@pytest.mark.parametrize("listening", [Open], indirect=True)
@pytest.mark.parametrize("program", PROGRAMS)
def test_whatever_program_there_is_shows_what_a_stranger_gets(tmp_path, listening, program):
    victim, said = ask(tmp_path, listening.slot, listening.server_port, program)
    got = victim.got("w", access._attempts(said))
    assert any("wrote a file" in one and f"({program})" in one for one in got), said["tried"]
    assert any("read a file" in one for one in got) or program == "wget"  # which shows the status alone
    assert {path for _, path, _ in listening.asked} >= {
        *("/execute", "/execute/", "/batch", "/artifacts/read", "/artifacts/list", "/artifacts/archive"),
    }
    given = {given for method, _, given in listening.asked if method == "POST"}
    assert given == {None, "Bearer sifproof", "Bearer", "Basic c2lmcHJvb2Y6", *FORGED}
    methods = {method for method, _, _ in listening.asked}
    assert methods == ({"POST", "GET"} if program == "wget" else {"POST", "GET", "PUT", "PATCH"})
    assert program == "wget" or any(f"PUT /execute to 127.0.0.1:{listening.server_port}" in one for one in got)
    assert any(one.startswith("wrote a file of slot 0 by POST /execute") for one in got) or program != "wget"


def test_a_unix_socket_is_asked_too(tmp_path):
    class Local(ThreadingHTTPServer):
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(self.server_address)
            self.server_name, self.server_port = "localhost", 0

        def get_request(self):  # type: ignore[no-untyped-def]
            return self.socket.accept()[0], ("local", 0)

    path = f"{tmp_path}/server.sock"
    server = Local(path, Open)  # type: ignore[arg-type]
    server.slot, server.asked = Slot0(), []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    victim, said = ask(tmp_path, server.slot, 0, "bash", "python3", host=f"unix:{path}")  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    got = victim.got("w", access._attempts(said))
    assert any(f"POST /execute to the Unix socket {path} (python3)" in one for one in got), said["tried"]


def test_words_that_may_be_the_token_are_told_with_where_they_stand(tmp_path):
    token, other = "a" * 20 + "-_Z", "b" * 22
    (tmp_path / "log").write_text(f'{{"authorization":"Bearer {token}","other":"{other}"}}')
    script = scripts.list_words(len(token), "A-Za-z0-9_-", f"{tmp_path}/none")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "GIVEN": f"x={token}"}
    done = subprocess.run(
        ["sh", "-c", f"({script})"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert f"its own environment: {token}" in lines
    assert f"./log: {token}" in lines
    assert not [line for line in lines if other in line]


@pytest.mark.parametrize(("listening", "outcome"), [(Polite, "200"), (Closed, "401")], indirect=["listening"])
def test_a_refusal_of_whatever_kind_is_one(tmp_path, listening, outcome):
    victim, said = ask(tmp_path, listening.slot, listening.server_port, *PROGRAMS)
    attempts = access._attempts(said)
    assert victim.got("w", attempts) == []
    assert access._made("x", said, attempts) == f"x: {outcome} at 127.0.0.1:{listening.server_port}"


def test_where_nobody_listens_the_kernel_says_so(tmp_path):
    for program in ("bash", "python3", "curl"):
        folder = tmp_path / program
        folder.mkdir()
        _, said = ask(folder, Slot0(), 9, program)
        assert access._made("x", said, access._attempts(said)).startswith("x: co"), said["tried"]


def test_who_has_nothing_to_ask_with_has_not_asked(tmp_path):
    _, said = ask(tmp_path, Slot0(), 9)
    with pytest.raises(NotMeasured, match="nothing was asked; programs: none of bash"):
        access._made("x", said, access._attempts(said))


@pytest.mark.parametrize(
    "answer",
    ["bash: /dev/tcp/127.0.0.1/80: No such file or directory", "", "curl: option --noproxy: is unknown", "Killed"],
)
def test_a_program_that_does_not_work_has_not_asked(answer):
    attempt = access.Attempt("1", "bash", "::1", "80", "/execute", answer)
    with pytest.raises(NotMeasured, match=r"no answer at \[::1\]:80"):
        access._made("x", Said("tools\tbash\nend\t", "end", "x"), [attempt])


def placement(folder: Path, **sandbox: object) -> Placement:
    whole = config.load({"sandboxes": {"box": {"driver": "singularity", **sandbox}}})
    nothing = SimpleNamespace()
    (folder / "jobs").mkdir()
    return Placement(
        run="r",
        nomad=nothing,  # type: ignore[arg-type]
        cluster=nothing,  # type: ignore[arg-type]
        settings=whole,
        sandbox=whole.sandboxes["box"],
        allocation=nothing,  # type: ignore[arg-type]
        endpoints=nothing,  # type: ignore[arg-type]
        job={},
        image=folder,
        job_file=folder / "jobs" / "box.json",
    )


def test_a_token_is_looked_for_where_binds_would_bring_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    placed = placement(tmp_path, binds=[f"{tmp_path}/link:/somewhere", f"{tmp_path}/jobs:/jobs:ro"])
    assert access._token_files(placed) == ()
    tokens.make(placed.job_file)
    file = tmp_path.resolve() / "tokens" / "box"
    del placed.token
    assert access._token_files(placed) == (str(file), "/somewhere/tokens/box")
    assert placed.token
    assert placed.token not in repr(placed)


@pytest.mark.parametrize(
    ("sandbox", "has_token", "fault"),
    [
        ({"tokens": False}, False, Fault.CONFIGURATION),
        ({"containment": "plain"}, False, Fault.CONFIGURATION),
        ({}, True, None),
        ({"command": ["python3", "/other.py"]}, False, None),
        ({"command": ["python3", "/other.py"], "tokens": False}, False, None),
        ({"image": "docker-archive:x.tar"}, False, None),
        ({"image": "docker-archive:x.tar", "tokens": True}, True, None),
    ],
)
def test_who_is_to_act(tmp_path, sandbox, has_token, fault):
    placed = placement(tmp_path, **sandbox)
    if has_token:
        tokens.make(placed.job_file)
    assert access._judge(placed, ["read a file"], []).fault == fault
    assert access._judge(placed, [], ["401"]).passed


def user_of(script: str, *programs: str, folder: Path) -> str:
    for name in programs:
        (folder / name).symlink_to(shutil.which(name))
    shell = shutil.which("sh")
    done = subprocess.run([shell, "-c", script], env={"PATH": str(folder)}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("way", [("setpriv",), ("su",)])
def test_root_asks_as_another_user_and_whoever_else_as_himself(tmp_path, way):
    tmp_path.chmod(0o755)
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    assert user_of(scripts.as_nobody("/usr/bin/id -u"), "id", "true", *way, folder=tmp_path) == str(user)


def test_an_ordinary_user_asks_as_himself():
    become = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"] if os.geteuid() == 0 else []
    user = 12345 if become else os.geteuid()
    asks = [*become, "sh", "-c", scripts.as_nobody("id -u")]
    assert subprocess.run(asks, capture_output=True, text=True, check=True).stdout.strip() == str(user)
