"""The sandbox server, driven as a client drives it: its own process, real HTTP, real containment.

Every test of a behaviour that must not depend on the containment runs in each containment that this machine allows;
what bubblewrap adds inside Apptainer is tested in tests/integration/test_reference_image.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import pytest
import requests
import yaml
from checkout import children

T = TypeVar("T")

SERVER = Path(__file__).resolve().parents[2] / "sandbox" / "sandbox_server.py"
DESCRIPTION = Path(__file__).resolve().parents[2] / "src" / "sifproof" / "checks" / "protocol" / "protocol.yaml"
LIMIT_BYTES = 100_000
LIMIT_CHARACTERS = 50_000
SLOTS = 4


class Server:
    """A running server and a client of it."""

    def __init__(self, data_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in stop)
        sizes = ("--slots", str(SLOTS), "--data-dir", str(data_dir))
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), "--port", "0", "--host", "127.0.0.1", *sizes, *arguments],
            stderr=self.log,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {}),
        )
        self.url = eventually(self._address)
        self.session = requests.Session()
        self.used: set[str] = set()

    def read_log(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def _address(self) -> str | None:
        text = self.read_log()
        assert self.process.poll() is None, text
        return text.rpartition("listening on ")[2].strip() if "listening on" in text and text.endswith("\n") else None

    def get(self, path: str) -> Any:
        return self.session.get(self.url + path, timeout=120).json()

    def post(self, path: str, body: Any) -> requests.Response:
        for call in body if isinstance(body, list) else [body]:
            self.used.add(call.get("slot_id"))
        # A connection per request: tests call from several threads. Whatever holds an answer up longer than this holds
        # it up until the end of what a test started, which is no end.
        return requests.post(self.url + path, json=body, timeout=120)

    def execute(self, tool: str, slot: str = "slot_0", timeout: float = 60, **args: Any) -> dict[str, Any]:
        answer = self.post("/execute", {"slot_id": slot, "tool": tool, "args": args, "timeout": timeout})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def bash(self, command: str, **more: Any) -> dict[str, Any]:
        return self.execute("bash", command=command, **more)

    def shell(self, command: str, **more: Any) -> dict[str, Any]:
        return self.execute("bash_stateful", command=command, **more)

    def workspace(self, slot: str = "slot_0") -> Path:
        return self.data_dir / "slots" / slot

    def children(self) -> list[int]:
        return children(self.process.pid)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(60) == 0
        self.session.close()
        self.log.close()


def eventually(probe: Callable[[], T | None], within_s: float = 60) -> T:
    """The first thing that ``probe`` finds."""
    deadline = time.monotonic() + within_s
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"nothing within {within_s} s"
        time.sleep(0.01)


def running(marker: str) -> list[int]:
    """Ids of the processes whose name (first argument) is ``marker``, wherever they run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[0] == marker.encode():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def marker() -> str:
    return f"marker-{uuid.uuid4().hex}"


def bubblewrap_works() -> bool:
    bwrap = shutil.which("bwrap")
    command = [
        bwrap,
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "true",
    ]
    return bool(bwrap) and subprocess.run(command, capture_output=True, check=False).returncode == 0


CONTAINMENTS = [
    *(["bubblewrap"] if bubblewrap_works() else []),
    *(["user"] if os.geteuid() == 0 else []),
    "none",
]
NEEDS = {"bubblewrap": "a bubblewrap that works", "user": "root"}


@pytest.fixture(scope="module")
def path_without_bwrap() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for directory in os.environ["PATH"].split(os.pathsep):
            if not os.access(directory, os.R_OK | os.X_OK):
                continue
            for program in Path(directory).iterdir():
                link = Path(folder, program.name)
                if program.name != "bwrap" and not link.is_symlink():
                    link.symlink_to(program)
        yield folder


@pytest.fixture(scope="module")
def start(path_without_bwrap: str) -> Callable[..., Any]:
    @contextmanager
    def started(
        containment: str, *arguments: str, env: dict[str, str] | None = None, data_dir: Path | None = None
    ) -> Iterator[Server]:
        """In a data directory of its own, or in one that is left behind."""
        env = env or {}
        if containment != "bubblewrap":
            env = {"PATH": path_without_bwrap} | env
        if containment == "none":
            arguments = (*arguments, "--one-user")
        with open_to_all() if data_dir is None else nullcontext(data_dir) as folder:
            server = Server(folder, *arguments, env=env)
            try:
                yield server
            finally:
                server.stop()

    return started


@contextmanager
def open_to_all() -> Iterator[Path]:
    """A directory as Nomad makes those of an allocation; not pytest's tmp_path, which no other user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-server-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module", params=CONTAINMENTS)
def containment(request: pytest.FixtureRequest) -> str:
    assert request.param in CONTAINMENTS, f"it needs {NEEDS[request.param]}, which is not there"
    return request.param


@pytest.fixture(scope="module")
def shared(start: Callable[..., Any], containment: str) -> Iterator[Server]:
    with start(containment, env={"SOME_API_KEY": "withheld", "NOMAD_TOKEN": "withheld", "HARMLESS": "kept"}) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    """The server with its slots emptied."""
    slots = shared.used & {f"slot_{number}" for number in range(SLOTS)}
    for slot in slots:
        assert shared.post("/reset", {"slot_id": slot}).json()["success"]
    shared.used.clear()
    return shared


class TestState:
    def test_health(self, server: Server, containment: str) -> None:
        assert server.get("/health") == {
            "status": "ok",
            "slots": SLOTS,
            "available": SLOTS,
            "executing": 0,
            "data_dir": str(server.data_dir),
            "bwrap_available": containment == "bubblewrap",
            "stateful_dir": str(server.data_dir / ".state"),
            "containment": containment,
        }

    def test_slots(self, server: Server) -> None:
        slots = server.get("/slots")["slots"]
        assert [slot["slot_id"] for slot in slots] == [f"slot_{i}" for i in range(SLOTS)]
        for slot in slots:
            assert slot["state"] == "available"
            assert slot["current_execution_id"] is None
            assert slot["workspace_dir"] == str(server.workspace(slot["slot_id"]))
            assert Path(slot["workspace_dir"]).is_dir()

    def test_an_execution_is_seen_while_it_runs(self, server: Server) -> None:
        body = {"slot_id": "slot_1", "tool": "bash", "execution_id": "here"}
        body["args"] = {"command": "until [ -e go ]; do sleep 0.02; done"}
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(server.post, "/execute", body)
            eventually(lambda: server.get("/health")["executing"] == 1)
            assert server.get("/health")["available"] == SLOTS - 1
            slot = server.get("/slots")["slots"][1]
            assert (slot["state"], slot["current_execution_id"]) == ("executing", "here")
            (server.workspace("slot_1") / "go").touch()
            assert answer.result().json()["execution_id"] == "here"
        assert server.get("/slots")["slots"][1]["state"] == "available"


class TestBash:
    def test_success(self, server: Server, containment: str) -> None:
        assert server.bash("echo '  hello '") == {
            "success": True,
            "output": "hello",
            "error": "",
            "execution_id": None,
            "metadata": {"exit_code": 0, "sandboxed": containment == "bubblewrap"},
            "stdout": "  hello \n",
            "stderr": "",
        }

    @pytest.mark.parametrize(
        ("command", "output"),
        [
            ("echo out; echo err >&2", "out\n[stderr]\nerr"),
            ("echo err >&2", "err"),
            ("true", ""),
            ("printf 'gr\\xc3\\xbc\\xc3\\x9f \\xf0\\x9f\\x8e\\x89'", "grüß 🎉"),
            ("printf 'a\\xff\\xfeb'", "a\ufffd\ufffdb"),
            ("cat; echo end", "end"),
            ("yes | head -1; echo ${PIPESTATUS[0]}", "y\n141"),
        ],
    )
    def test_output(self, server: Server, command: str, output: str) -> None:
        result = server.bash(command)
        assert (result["success"], result["output"]) == (True, output)

    @pytest.mark.parametrize(
        ("command", "code"), [("exit 3", 3), ("nosuchcommand", 127), ("kill -9 $$", 137), ("if", 2)]
    )
    def test_exit_code(self, server: Server, command: str, code: int) -> None:
        result = server.bash(command)
        assert not result["success"]
        assert result["error"] == f"Exit code: {code}"
        assert result["metadata"]["exit_code"] == code

    def test_works_in_the_workspace(self, server: Server, containment: str) -> None:
        where = "/workspace" if containment == "bubblewrap" else str(server.workspace())
        assert server.bash('pwd; cd; pwd; echo here > "$TMPDIR/x"; echo there > x')["output"] == f"{where}\n{where}"
        assert (server.workspace() / "x").read_text() == "there\n"
        assert server.bash('cat "$TMPDIR/x" x')["output"] == "here\nthere"

    def test_streams_are_cut_each(self, server: Server) -> None:
        result = server.bash("printf 'é%.0s' {1..50001}; printf 'e%.0s' {1..50000} >&2")
        out, err = result["output"].split("\n[stderr]\n")
        assert out == "é" * LIMIT_CHARACTERS + "\n[cut at 50,000 characters]"
        assert err == "e" * LIMIT_CHARACTERS

    @pytest.mark.parametrize("tool", ["bash", "bash_stateful"])
    def test_streams_come_as_they_are_beside_the_output(self, server: Server, tool: str) -> None:
        program = "    def f():\n        return 1\n\n"
        result = server.execute(tool, command=f"printf '{program}'; printf '\\t warning  ' >&2; (exit 3)")
        assert (result["stdout"], result["stderr"]) == (program, "\t warning  ")
        assert result["output"] == f"{program.strip()}\n[stderr]\nwarning"
        assert result["error"] == "Exit code: 3"
        nothing = server.execute(tool, command="sleep 1000", timeout=0.1)
        assert (nothing["stdout"], nothing["stderr"]) == ("", "")
        assert "stdout" not in server.execute("read_file", path="nowhere")

    def test_streams_as_they_are_are_cut_too(self, server: Server) -> None:
        result = server.bash("printf ' %.0s' {1..50001}; printf '\n%.0s' {1..50000} >&2")
        assert result["stdout"] == " " * LIMIT_CHARACTERS + "\n[cut at 50,000 characters]"
        assert result["stderr"] == "\n" * LIMIT_CHARACTERS
        assert result["output"] == ""

    def test_endless_output_takes_no_memory(self, server: Server) -> None:
        def resident_kib() -> int:
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0])

        server.bash("head -c 1000000 /dev/zero | tr '\\0' x")
        before = resident_kib()
        assert server.bash("head -c 300000000 /dev/zero | tr '\\0' x")["output"].endswith("characters]")
        assert resident_kib() - before < 20_000

    @pytest.mark.parametrize("size", [100_000, 131_071, 131_072, 1_000_000])
    def test_long_commands(self, server: Server, size: int) -> None:
        command = "echo $# ${#x}; exit 7 #"
        result = server.bash(command + "x" * (size - len(command)))
        assert (result["output"], result["error"]) == ("0 0", "Exit code: 7")

    def test_environment_holds_no_credentials(self, server: Server) -> None:
        assert server.bash("echo ${SOME_API_KEY-none} ${NOMAD_TOKEN-none} $HARMLESS")["output"] == "none none kept"

    def test_what_cannot_be_run(self, server: Server) -> None:
        for args in ({}, {"command": 5}, {"command": "a\0b"}, {"command": "true", "allow_network": "yes"}):
            result = server.post("/execute", {"slot_id": "slot_0", "tool": "bash", "args": args}).json()
            assert not result["success"]
            assert "command" in result["error"] or "allow_network" in result["error"]

    def test_a_sandbox_that_is_required_is_there_or_refused(self, server: Server, containment: str) -> None:
        for wish in ({"require_sandbox": True}, {"allow_network": False}):
            for tool in ("bash", "bash_stateful"):
                result = server.execute(tool, command="touch ran; echo ran", **wish)
                if containment == "bubblewrap":
                    assert result["output"] == "ran"
                    assert result["metadata"]["sandboxed"] is True
                    server.post("/reset", {"slot_id": "slot_0"})
                else:
                    assert not result["success"]
                    assert "sandbox" in result["error"] or "network" in result["error"]
                    assert not (server.workspace() / "ran").exists()


# Each leaves a process that is out of reach of a signal to the command's process group.
ESCAPES = {
    "background": "(exec -a {0} sleep 1000) & disown",
    "session": "setsid bash -c 'exec -a {0} sleep 1000' >/dev/null 2>&1 &",
    "daemon": "(setsid bash -c '(exec -a {0} sleep 1000) & ' &) >/dev/null 2>&1 </dev/null",
    "holds the output": "(exec -a {0} sleep 1000) &",
    "deaf": "(trap '' TERM INT HUP; exec -a {0} sleep 1000) &",
}


class TestEnd:
    @pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
    def test_nothing_outlives_its_command(self, server: Server, escape: str) -> None:
        name = marker()
        command = escape.format(name) + "\nuntil grep -aqs '^" + name + "' /proc/[0-9]*/cmdline; do :; done; echo seen"
        result = server.bash(command)
        assert running(name) == []
        assert (result["success"], result["output"]) == (True, "seen")

    @pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
    def test_nothing_outlives_a_time_out(self, server: Server, escape: str) -> None:
        name = marker()
        result = server.bash(f"echo before; {escape.format(name)}\n exec -a {name} sleep 1000", timeout=2)
        assert running(name) == []
        assert result["output"] == "before"
        assert result["error"] == "Command timed out after 2s"
        assert result["metadata"]["timeout"] is True
        assert result["metadata"]["exit_code"] == -1
        assert server.bash("echo next")["output"] == "next"

    @pytest.mark.parametrize("tool", ["bash", "bash_stateful"])
    def test_a_time_out_at_any_moment_of_the_start_ends_it(self, server: Server, tool: str) -> None:
        name = marker()
        for milliseconds in range(1, 31, 2):
            result = server.execute(tool, command=f"exec -a {name} sleep 1000", timeout=milliseconds / 1000)
            assert running(name) == []
            assert result["metadata"]["timeout"] is True
            assert result["output"] == ""
            assert server.execute(tool, command="echo next")["output"] == "next"
            server.post("/reset", {"slot_id": "slot_0"})
        assert server.read_log().count("failed") == 0

    def test_the_server_is_not_what_the_kernel_ends_first(self, server: Server) -> None:
        def score(pid: int | str) -> int:
            return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

        own = score("self")
        seen = set()
        with ThreadPoolExecutor() as threads:
            started = threads.submit(lambda: [server.bash("cat /proc/self/oom_score_adj") for _ in range(20)])
            while not started.done():
                seen.add(score(server.process.pid))
        assert seen == {own}
        assert {result["output"] for result in started.result()} == {"1000"}
        assert server.shell("cat /proc/self/oom_score_adj")["output"] == "1000"

    def test_a_full_pipe_does_not_hold_up_a_time_out(self, server: Server) -> None:
        result = server.bash("yes & yes >&2 & yes", timeout=0.5)
        assert result["metadata"]["timeout"] is True

    def test_a_client_that_hangs_up_while_sending_is_no_error_of_the_server(self, server: Server) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert server.bash("echo next")["output"] == "next"
        assert "failed" not in server.read_log()

    @pytest.mark.parametrize("tool", ["bash", "bash_stateful"])
    def test_a_client_that_hangs_up_ends_its_command(self, server: Server, tool: str) -> None:
        name = marker()
        command = f"(setsid bash -c 'exec -a {name} sleep 1000' &); exec -a {name} sleep 1000"
        body = json.dumps({"slot_id": "slot_2", "tool": tool, "args": {"command": command}})
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            server.used.add("slot_2")
            client.sendall(f"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            eventually(lambda: len(running(name)) == 2)
        eventually(lambda: not running(name))
        eventually(lambda: server.get("/slots")["slots"][2]["state"] == "available")
        assert server.execute(tool, "slot_2", command="echo next")["output"] == "next"

    def test_no_zombie_stays(self, server: Server) -> None:
        for _ in range(10):
            server.bash("(setsid sleep 1000 &); (sleep 1000 &); kill -9 $$")
            server.bash("sleep 1000", timeout=0.05)
        eventually(lambda: not server.children())


class TestTurns:
    def test_tools_of_one_slot_run_in_series_and_in_order(self, server: Server) -> None:
        def call(command: str) -> dict[str, Any]:
            return {"slot_id": "slot_0", "tool": "bash", "args": {"command": command}}

        first = "echo 1 >> log; until [ -e go ]; do sleep 0.02; done; echo 2 >> log"
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(server.post, "/batch", [call(first), call("echo 3 >> log"), call("cat log")])
            log = server.workspace() / "log"
            eventually(lambda: log.exists() and log.read_text())
            assert server.get("/health")["executing"] == 1
            assert log.read_text() == "1\n"
            (server.workspace() / "go").touch()
            assert answer.result().json()[2]["output"] == "1\n2\n3"

    def test_slots_run_at_the_same_time(self, server: Server) -> None:
        command = "touch here; until [ -e go ]; do sleep 0.02; done; echo ${PWD##*/}"
        calls = [{"slot_id": f"slot_{i}", "tool": "bash", "args": {"command": command}} for i in range(SLOTS)]
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(server.post, "/batch", calls)
            eventually(lambda: all((server.workspace(f"slot_{i}") / "here").exists() for i in range(SLOTS)))
            assert server.get("/health")["executing"] == SLOTS
            for i in range(SLOTS):
                (server.workspace(f"slot_{i}") / "go").touch()
            assert all(result["success"] for result in answer.result().json())

    def test_batch_answers_in_order(self, server: Server) -> None:
        calls = [
            {"slot_id": "slot_0", "tool": "bash", "args": {"command": "sleep 0.2; echo a"}, "execution_id": "first"},
            {"slot_id": "slot_9", "tool": "bash", "args": {"command": "true"}, "execution_id": "second"},
            {"slot_id": "slot_1", "tool": "nothing", "args": {}},
            {"slot_id": "slot_1", "tool": "bash", "args": {"command": "exit 4"}},
        ]
        answer = server.post("/batch", calls)
        assert answer.status_code == 200
        results = answer.json()
        assert [r["execution_id"] for r in results] == ["first", "second", None, None]
        assert [r["error"] for r in results] == ["", "Unknown slot: slot_9", "Unknown tool: nothing", "Exit code: 4"]
        assert server.post("/batch", []).json() == []


@pytest.mark.parametrize("containment", CONTAINMENTS[:1], indirect=True)
class TestFiles:
    def test_round_trip(self, server: Server) -> None:
        content = "grüß\n\tGott 🎉\r\n\0end"
        written = server.execute("write_file", path="a/b/c.txt", content=content)
        size = len(content.encode())
        assert (written["success"], written["metadata"]) == (True, {"size": size})
        assert str(size) in written["output"]
        read = server.execute("read_file", path="a/b/c.txt")
        assert (read["success"], read["output"], read["metadata"]) == (True, content, {"size": size})
        assert server.bash("wc -c < a/b/c.txt; echo more >> a/b/c.txt; touch a/b/d")["output"] == str(size)
        assert server.execute("read_file", path="./a//b/../b/c.txt")["output"] == content + "more\n"

    def test_overwriting_keeps_the_mode(self, server: Server) -> None:
        server.bash("echo long long long > run; chmod 750 run")
        assert server.execute("write_file", path="run", content="echo short")["success"]
        assert server.bash("./run; stat -c %a run; ls -A")["output"] == "short\n750\nrun"

    def test_limits_are_bytes(self, server: Server) -> None:
        assert server.execute("write_file", path="x", content="é" * (LIMIT_BYTES // 2))["success"]
        assert server.execute("read_file", path="x")["metadata"]["size"] == LIMIT_BYTES
        refused = server.execute("write_file", path="x", content="é" * (LIMIT_BYTES // 2) + "x")
        assert refused["error"].startswith("Content too large: 100001 bytes")
        assert (server.workspace() / "x").stat().st_size == LIMIT_BYTES
        server.bash("printf x >> x; truncate -s 1T sparse")
        for path in ("x", "sparse"):
            assert server.execute("read_file", path=path)["error"].startswith(f"File too large: {path}")

    def test_empty_and_not_text(self, server: Server) -> None:
        assert server.execute("write_file", path="empty", content="")["metadata"]["size"] == 0
        assert server.execute("read_file", path="empty")["output"] == ""
        server.bash("printf 'a\\xffb' > bytes")
        assert server.execute("read_file", path="bytes")["output"] == "a\ufffdb"

    def test_what_is_not_there_or_no_file(self, server: Server) -> None:
        server.bash("mkdir d; mkfifo fifo; echo x > file")
        assert server.execute("read_file", path="nowhere")["error"] == "File not found: nowhere"
        assert server.execute("read_file", path="file/x")["error"] == "File not found: file/x"
        for path in ("d", "fifo", ".", "d/.."):
            assert server.execute("read_file", path=path)["error"] == f"Not a file: {path}"
            assert server.execute("write_file", path=path, content="x")["error"] == f"Not a file: {path}"
        assert "name too long" in server.execute("write_file", path="x" * 300, content="x")["error"].lower()
        for args in ({}, {"path": 5}, {"path": "x", "content": None}):
            for tool in ("read_file", "write_file") if args.get("path") != "x" else ("write_file",):
                assert not server.execute(tool, **args)["success"]

    @pytest.mark.parametrize("tool", ["read_file", "write_file"])
    @pytest.mark.parametrize(
        "path",
        [
            "../slot_1/secret",
            "a/../../slot_1/secret",
            "/etc/passwd",
            "out/secret",
            "deep/link",
            "up/x",
            "a\0b",
            "..",
            "/",
        ],
    )
    def test_nothing_outside_is_reached(self, server: Server, tool: str, path: str) -> None:
        secret = server.workspace("slot_1") / "secret"
        secret.write_text("secret")
        server.bash(f"ln -s {secret.parent} out; mkdir deep; ln -s ../../slot_1/secret deep/link; ln -s .. up")
        more = {"content": "changed"} if tool == "write_file" else {}
        result = server.execute(tool, path=path, **more)
        assert (result["success"], result["output"]) == (False, "")
        assert result["error"] == "Access denied: path outside workspace"
        assert secret.read_text() == "secret"

    def test_links_that_stay_inside_are_followed(self, server: Server) -> None:
        server.bash(
            'mkdir d; echo x > d/f; ln -s d e; ln -s e/f g; ln -s "$PWD/d/f" h; ln -s loop loop; ln -s new dangling'
        )
        for path in ("e/f", "g", "h", "e/../d/f"):
            assert server.execute("read_file", path=path)["output"] == "x\n"
        assert server.execute("write_file", path="dangling", content="made")["success"]
        assert server.bash("cat new; [ -L dangling ]")["output"] == "made"
        assert "Too many levels" in server.execute("read_file", path="loop")["error"]
        absolute = server.bash("echo $PWD/g")["output"]
        assert server.execute("read_file", path=absolute)["output"] == "x\n"

    def test_a_link_that_changes_meanwhile_leads_nowhere(self, server: Server) -> None:
        secret = server.workspace("slot_1") / "f"
        secret.write_text("secret")
        server.bash("mkdir a b; echo own > a/f; ln -s a l")
        flip = f"ln -s {secret.parent} m; until [ -e go ]; do mv -T l k; mv -T m l; mv -T l m; mv -T k l; done"
        with ThreadPoolExecutor() as threads:
            flipping = threads.submit(server.bash, flip, timeout=100)
            seen = set()
            for _ in range(300):
                answer = server.post("/artifacts/read", {"slot_id": "slot_0", "path": "l/f", "encoding": "text"})
                seen.add(answer.json().get("content", answer.status_code))
            (server.workspace() / "go").touch()
            assert flipping.result()["success"]
        assert "secret" not in seen
        assert "own\n" in seen
        assert seen <= {"own\n", 403, 404}


@pytest.mark.parametrize("containment", CONTAINMENTS[:1], indirect=True)
class TestArtifacts:
    def test_read(self, server: Server) -> None:
        server.bash("mkdir d; printf 'gr\\xc3\\xbc\\xc3\\x9f' > d/x.txt")
        data = "grüß".encode()
        answer = server.post("/artifacts/read", {"slot_id": "slot_0", "path": "d/x.txt", "encoding": "text"})
        assert answer.json() == {
            "success": True,
            "content": "grüß",
            "encoding": "text",
            "truncated": False,
            "bytes": 6,
            "file_size": 6,
            "path": "d/x.txt",
            "mime": "text/plain",
            "sha256": None,
        }
        body = {"slot_id": "slot_0", "path": "d/x.txt", "encoding": "base64", "max_bytes": 3, "include_sha256": True}
        cut = server.post("/artifacts/read", body).json()
        assert base64.b64decode(cut["content"]) == data[:3]
        assert (cut["truncated"], cut["bytes"], cut["file_size"]) == (True, 3, 6)
        assert cut["sha256"] == hashlib.sha256(data).hexdigest()
        # A character that is cut in two is left out rather than replaced.
        assert server.post("/artifacts/read", body | {"encoding": "text"}).json()["content"] == "gr"

    def test_list(self, server: Server) -> None:
        server.bash("mkdir -p d/e; echo x > d/f; ln -s / link; touch -d @1000 old; mkfifo d/e/p")
        top = server.post("/artifacts/list", {"slot_id": "slot_0"}).json()
        assert (top["success"], top["truncated"]) == (True, False)
        assert [(e["path"], e["is_dir"]) for e in top["entries"]] == [("d", True), ("link", False), ("old", False)]
        assert (top["entries"][2]["mtime"], top["entries"][2]["size"]) == (1000, 0)
        body = {"slot_id": "slot_0", "path": "d", "recursive": True}
        below = server.post("/artifacts/list", body).json()
        assert [e["path"] for e in below["entries"]] == ["d/e", "d/e/p", "d/f"]
        cut = server.post("/artifacts/list", body | {"max_entries": 2}).json()
        assert ([e["path"] for e in cut["entries"]], cut["truncated"]) == (["d/e", "d/e/p"], True)

    def test_a_deep_tree_is_cut(self, server: Server) -> None:
        server.bash("mkdir -p $(printf 'd/%.0s' {1..500})")
        deep = server.post("/artifacts/list", {"slot_id": "slot_0", "recursive": True}).json()
        assert deep["truncated"] is True
        assert len(deep["entries"]) > 50
        assert server.post("/artifacts/archive", {"slot_id": "slot_0"}).status_code == 413

    def test_archive(self, server: Server) -> None:
        server.bash("mkdir -p d/empty; echo x > d/f; chmod 640 d/f; ln -s f d/l; mkfifo d/p; echo y > other")
        answer = server.post("/artifacts/archive", {"slot_id": "slot_0", "path": "d"}).json()
        data = base64.b64decode(answer.pop("content"))
        assert answer == {
            "success": True,
            "encoding": "base64",
            "format": "tar.gz",
            "bytes": len(data),
            "entry_count": 3,
        }
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert tar.getnames() == ["d/empty", "d/f", "d/l"]
            assert tar.extractfile("d/f").read() == b"x\n"
            assert tar.getmember("d/f").mode == 0o640
            assert tar.getmember("d/l").linkname == "f"

    def test_archive_limits(self, server: Server) -> None:
        server.bash("head -c 100000 /dev/urandom > a; echo > b; truncate -s 1T c")
        body = {"slot_id": "slot_0"}
        assert server.post("/artifacts/archive", body).status_code == 413
        server.bash("rm c")
        assert server.post("/artifacts/archive", body).status_code == 200
        assert server.post("/artifacts/archive", body | {"max_entries": 1}).status_code == 413
        assert server.post("/artifacts/archive", body | {"max_bytes": 50_000}).status_code == 413

    @pytest.mark.parametrize(
        ("endpoint", "body", "status"),
        [
            ("read", {"path": "../slot_1/x"}, 403),
            ("read", {"path": "out"}, 403),
            ("read", {"path": "nowhere"}, 404),
            ("read", {"path": "x", "slot_id": "slot_9"}, 404),
            ("read", {"path": "d"}, 400),
            ("read", {"path": "p"}, 400),
            ("read", {"path": "x", "encoding": "latin-1"}, 400),
            ("read", {"path": "x", "max_bytes": -1}, 400),
            ("read", {"path": "x", "max_bytes": "1"}, 400),
            ("read", {}, 400),
            ("list", {"path": ".."}, 403),
            ("list", {"path": "nowhere"}, 404),
            ("list", {"path": "x"}, 400),
            ("list", {"recursive": "yes"}, 400),
            ("list", {"slot_id": None}, 400),
            ("archive", {"path": "out"}, 403),
            ("archive", {"path": "nowhere"}, 404),
            ("archive", {"path": "p"}, 400),
            ("archive", {"format": "zip"}, 400),
        ],
    )
    def test_what_is_refused(self, server: Server, endpoint: str, body: dict[str, Any], status: int) -> None:
        server.bash("echo x > x; mkdir d; mkfifo p; ln -s /etc/passwd out")
        answer = server.post(f"/artifacts/{endpoint}", {"slot_id": "slot_0"} | body)
        assert answer.status_code == status, answer.text
        assert answer.json()["success"] is False
        assert answer.json()["error"]


class TestReset:
    def test_empties_the_slot_and_no_other(self, server: Server) -> None:
        server.bash(
            'mkdir -p .hidden a/b; touch a/b/c .x; chmod 500 a/b a; ln -s / root; echo > "$TMPDIR/t"; mkdir a/.. -p'
        )
        server.bash("mkdir -p $(printf 'd/%.0s' {1..1500}); mkfifo p", slot="slot_0")
        server.bash("touch stays", slot="slot_1")
        result = server.post("/reset", {"slot_id": "slot_0"}).json()
        assert (result["success"], result["error"]) == (True, "")
        assert list(server.workspace().iterdir()) == []
        assert server.bash('ls -A "$TMPDIR"')["output"] == ""
        assert (server.workspace("slot_1") / "stays").exists()

    def test_waits_for_its_turn(self, server: Server) -> None:
        with ThreadPoolExecutor() as threads:
            running = threads.submit(server.bash, "touch a; until [ -e go ]; do sleep 0.02; done; ls")
            eventually((server.workspace() / "a").exists)
            reset = threads.submit(server.post, "/reset", {"slot_id": "slot_0"})
            (server.workspace() / "go").touch()
            assert running.result()["output"] == "a\ngo"
            assert reset.result().json()["success"]

    def test_unknown_slot(self, server: Server) -> None:
        answer = server.post("/reset", {"slot_id": "slot_9"})
        assert (answer.status_code, answer.json()["error"]) == (200, "Unknown slot: slot_9")
        assert server.post("/reset", {}).status_code == 400

    def test_makes_its_directories_as_new(self, server: Server) -> None:
        def looked_at() -> list[str]:
            return [f"{Path(d).stat().st_mode:o}" for d in directories] + [str(os.listxattr(d)) for d in directories]

        directories = server.workspace(), server.data_dir / ".state" / "slot_0"
        before = looked_at()
        server.bash('chmod 2555 . && chmod 1500 "$TMPDIR"')
        for directory in directories:
            with suppress(OSError):  # where the file system has none
                os.setxattr(directory, "user.left", b"behind")
        assert server.post("/reset", {"slot_id": "slot_0"}).json()["success"]
        assert looked_at() == before

    @pytest.mark.parametrize("containment", [c for c in CONTAINMENTS if c != "none"], indirect=True)
    def test_empties_what_all_slots_can_write_to(self, server: Server) -> None:
        name = marker()
        leave = (
            f"for d in /tmp /var/tmp /dev/shm; do mkdir $d/{name}-$1 && touch $d/{name}-$1/f && chmod 500 $d/{name}-$1;"
            f" touch $d/{name}-$1.f; ln -s / $d/{name}-$1.l; done 2>/dev/null; ls -d /tmp/*{name}* | wc -l"
        )
        for slot in ("slot_0", "slot_1"):
            assert int(server.bash(f"set {slot}; {leave}", slot=slot)["output"]) >= 3
        assert server.post("/reset", {"slot_id": "slot_0"}).json()["success"]
        see = f"find /tmp /var/tmp /dev/shm -name '{name}-slot_*' 2>/dev/null"
        assert "slot_0" not in server.bash(see)["output"]
        assert "slot_1" in server.bash(see, slot="slot_1")["output"]

    def test_follows_no_link(self, server: Server) -> None:
        server.bash("mkdir d; touch d/f; chmod 500 d", slot="slot_1")
        other = server.workspace("slot_1")
        server.bash(f'mkdir a; ln -s {other} l; ln -s {other}/d a/l; ln -s ../slot_1 m; ln -s {other} "$TMPDIR/l"')
        assert server.post("/reset", {"slot_id": "slot_0"}).json()["success"]
        assert stat.S_IMODE((other / "d").stat().st_mode) == 0o500
        assert (other / "d" / "f").exists()


class TestShell:
    def test_lives_on(self, server: Server) -> None:
        first = server.shell("mkdir -p d; cd d; x=5; f() { echo f$x; }; shopt -s nullglob; set -- 1 2")
        assert first["metadata"]["shell_started"] is True
        second = server.shell("pwd; f; echo $# >&2")
        assert second["output"].splitlines()[0].endswith("/d")
        assert second["output"].splitlines()[1:] == ["f5", "[stderr]", "2"]
        assert second["metadata"]["shell_started"] is False
        assert server.shell("echo ${x-none}", slot="slot_1")["output"] == "none"
        assert server.bash("echo ${x-none}")["output"] == "none"

    @pytest.mark.parametrize(
        ("command", "output", "code"),
        [
            ("false", "", 1),
            ("(exit 9)", "", 9),
            ("cat; echo end", "end", 0),
            ("break; continue; echo on", "on", 0),
            ("printf 'no newline'", "no newline", 0),
            ("echo 'quo'\"'\"'te'", "quo'te", 0),
            ("cat <<EOF\nhere\nEOF", "here", 0),
            ("read x; echo $?", "1", 0),
            ("# nothing", "", 0),
        ],
    )
    def test_results(self, server: Server, command: str, output: str, code: int) -> None:
        server.shell("true")
        result = server.shell(command)
        assert (result["success"], result["metadata"]["exit_code"]) == (code == 0, code)
        if not output.startswith("on"):
            assert result["output"] == output
        assert result["metadata"]["shell_ended"] is False
        assert server.shell("echo next")["output"] == "next"

    def test_long_commands_and_output(self, server: Server) -> None:
        assert server.shell(f"x='{'y' * 300_000}'; echo ${{#x}}")["output"] == "300000"
        assert server.shell("printf 'z%.0s' {1..60000}")["output"].endswith("\n[cut at 50,000 characters]")
        assert server.shell("echo ${#x}")["output"] == "300000"

    @pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("set -e; false", 1), ("kill -9 $$", 137)])
    def test_a_shell_that_ends_is_replaced(self, server: Server, command: str, code: int) -> None:
        server.shell("x=5")
        result = server.shell(command)
        assert result["error"] == f"Exit code: {code}"
        assert result["metadata"]["shell_ended"] is True
        fresh = server.shell("echo ${x-none}")
        assert (fresh["output"], fresh["metadata"]["shell_started"]) == ("none", True)

    @pytest.mark.parametrize(
        "command",
        [
            "IFS=0123456789",
            "set -x -v -e -u -k -f -C -m",
            "set -o posix",
            "builtin() { echo mine; }; echo() { command echo; }; enable -n printf command",
            "shopt -s expand_aliases; alias eval=false builtin=false",
            "set -T; trap 'echo mine; echo mine >&2' DEBUG; trap 'echo mine' ERR RETURN EXIT; false",
            "exec <&- >&- 2>&-",
            "exec </etc/passwd >log 2>&1",
            "exec 250>&- 251>&-",
            "PROMPT_COMMAND='echo mine'; PS4='mine '; TMOUT=1; unset PATH IFS; readonly PS4 IFS",
            "echo 'no end",
            "[[",
            "umask 777; cd /; set -- 1 2",
        ],
    )
    def test_what_a_command_does_to_its_shell_does_not_reach_its_keeper(self, server: Server, command: str) -> None:
        server.shell("true")
        server.shell(command)
        server.shell("{ trap - DEBUG ERR; set +xvC; unalias -a; unset -f echo builtin; unset x; } >/dev/null 2>&1")
        result = server.shell("echo next")
        assert (result["output"], result["metadata"]["shell_started"]) == ("next", False)
        assert server.shell("(exit 9)")["metadata"]["exit_code"] == 9

    @pytest.mark.parametrize("option", ["x", "v"])
    def test_a_trace_shows_the_command_alone(self, server: Server, option: str) -> None:
        server.shell(f"set -{option}")
        assert server.shell("echo next")["stderr"].lstrip("+ ") == "echo next\n"

    @pytest.mark.parametrize(
        "command",
        [
            "eval() { :; }",
            "enable -n eval",
            "set -n",
            "set -r",
            "shopt -s extdebug; trap false DEBUG",
            "for i in {3..30} {3..30}; do read -r -t 0.01 -u $i x; done",
        ],
    )
    def test_a_shell_that_tells_nothing_any_more_is_ended_at_once(self, server: Server, command: str) -> None:
        server.shell("true", slot="slot_1")
        result = server.shell(f"x=5; echo before; {command}")
        assert (result["stdout"], result["metadata"]["exit_code"]) == ("before\n", -1)
        assert "does not tell" in result["error"]
        assert "timeout" not in result["metadata"]
        assert server.shell("echo ${x-none}")["output"] == "none"
        assert server.shell("true", slot="slot_1")["metadata"]["shell_started"] is False

    def test_no_exit_code_can_be_forged(self, server: Server) -> None:
        forge = "for f in /proc/$1/fd/* {3..300}; do { echo 0 > $f || echo 0 >&$f; } 2>/dev/null; done; exit 5"
        result = server.shell(f"echo {shlex.quote(forge)} > forge; bash forge $$")
        assert result["error"] == "Exit code: 5"
        # The shell itself can write to its keeper: nonsense, which is passed over.
        result = server.shell("for i in {3..30}; do echo 0 >&$i; echo 1 2 3 >&$i; done 2>/dev/null; (exit 6)")
        assert result["error"] == "Exit code: 6"
        assert server.shell("ls /proc/self/fd")["output"].split() == ["0", "1", "2", "3"]  # the last is of ls

    def test_a_time_out_ends_it_and_says_so(self, server: Server) -> None:
        name = marker()
        server.shell("x=5")
        result = server.shell(f"echo before; (setsid bash -c 'exec -a {name} sleep 1000' &); sleep 1000", timeout=2)
        assert running(name) == []
        assert result["error"].startswith("Command timed out after 2s")
        assert "state is lost" in result["error"]
        assert (result["output"], result["metadata"]["timeout"]) == ("before", True)
        assert server.shell("echo ${x-none}")["output"] == "none"

    def test_reset_ends_it(self, server: Server) -> None:
        name = marker()
        server.shell(f"x=5; (exec -a {name} sleep 1000) & cd /")
        eventually(lambda: running(name))
        server.post("/reset", {"slot_id": "slot_0"})
        assert running(name) == []
        assert server.shell("echo ${x-none}")["output"] == "none"

    def test_a_shell_that_stopped_reading_times_out(self, server: Server) -> None:
        # It is stopped when it has told the end of this command, and not before.
        server.shell("(until [ -e go ]; do sleep 0.02; done; kill -STOP $$; touch stopped) & ")
        (server.workspace() / "go").touch()
        eventually((server.workspace() / "stopped").exists)
        assert server.shell(": " + "x" * 300_000, timeout=0.5)["metadata"]["timeout"] is True
        assert server.shell("echo next")["output"] == "next"


BAD_BODIES: dict[str, tuple[str, Any]] = {
    "nothing": ("/execute", b""),
    "no JSON": ("/execute", b"{"),
    "not UTF-8": ("/execute", b'{"slot_id": "\xff"}'),
    "NaN": ("/execute", b'{"slot_id": "slot_0", "tool": "bash", "args": {}, "timeout": NaN}'),
    "too deep": ("/execute", b"[" * 100_000),
    "long number": ("/execute", b"1" * 5_000),
    "a list": ("/execute", []),
    "null": ("/execute", None),
    "no slot": ("/execute", {"tool": "bash", "args": {"command": "true"}}),
    "slot is a number": ("/execute", {"slot_id": 0, "tool": "bash", "args": {}}),
    "lone surrogate": ("/execute", b'{"slot_id": "\\ud800", "tool": "bash", "args": {}}'),
    "no tool": ("/execute", {"slot_id": "slot_0", "args": {}}),
    "args is a list": ("/execute", {"slot_id": "slot_0", "tool": "bash", "args": []}),
    "execution id is a number": ("/execute", {"slot_id": "slot_0", "tool": "bash", "execution_id": 5}),
    **{
        f"time-out {value}": ("/execute", {"slot_id": "slot_0", "tool": "bash", "args": {}, "timeout": value})
        for value in (0, -1, "5", True, 1e12, [])
    },
    "infinite time-out": ("/execute", b'{"slot_id": "slot_0", "tool": "bash", "args": {}, "timeout": 1e999}'),
    "batch of no list": ("/batch", {}),
    "batch with a bad item": ("/batch", [{"slot_id": "slot_0", "tool": "bash", "args": {}}, 5]),
    "reset without slot": ("/reset", {}),
}


@pytest.mark.parametrize("containment", CONTAINMENTS[:1], indirect=True)
class TestRequests:
    @pytest.mark.parametrize(("path", "body"), BAD_BODIES.values(), ids=BAD_BODIES)
    def test_bad_bodies(self, server: Server, path: str, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body)
        answer = requests.post(server.url + path, data=data, timeout=120)
        assert answer.status_code == 400, answer.text
        assert answer.json()["success"] is False
        assert answer.json()["error"]

    def test_too_large(self, server: Server) -> None:
        answer = requests.post(server.url + "/execute", data=b" " * (33 * 2**20), timeout=120)
        assert answer.status_code == 413
        assert answer.json()["success"] is False

    def test_unknown_addresses_and_methods(self, server: Server) -> None:
        assert requests.get(server.url + "/nowhere", timeout=120).status_code == 404
        answer = requests.get(server.url + "/execute", timeout=120)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
        assert answer.json()["success"] is False

    @pytest.mark.parametrize("tool", ["nothing", "tmux", "", "__class__"])
    def test_unknown_tools(self, server: Server, tool: str) -> None:
        assert server.execute(tool)["error"] == f"Unknown tool: {tool}"

    def test_unknown_slots(self, server: Server) -> None:
        for slot in ("slot_99", "", "../slot_0"):
            result = server.execute("bash", slot, command="true")
            assert (result["success"], result["error"]) == (False, f"Unknown slot: {slot}")

    def test_what_is_left_out_has_its_default(self, server: Server) -> None:
        body = {"slot_id": "slot_0", "tool": "bash", "args": {"command": "echo x"}, "timeout": None}
        assert server.post("/execute", body | {"execution_id": None}).json()["output"] == "x"


class TestIsolation:
    def test_slots_do_not_reach_each_other(self, server: Server, containment: str) -> None:
        server.bash('echo secret > s; echo secret > "$TMPDIR/s"; chmod 666 s "$TMPDIR/s"', slot="slot_1")
        for path in (server.workspace("slot_1"), server.data_dir / ".state" / "slot_1"):
            result = server.bash(f"cat {path}/s; echo changed > {path}/s; ls {path}")
            if containment != "none":
                assert "secret" not in result["output"].replace("slot_1", "")
                assert not result["success"]
                assert (path / "s").read_text() == "secret\n"

    def test_tmpdir_is_the_slots_own(self, server: Server) -> None:
        server.bash('echo x > "$TMPDIR/x"')
        assert server.bash('cat "$TMPDIR/x"')["output"] == "x"
        assert server.bash('ls "$TMPDIR"', slot="slot_1")["output"] == ""

    @pytest.mark.parametrize("containment", ["bubblewrap"], indirect=True)
    def test_bubblewrap(self, server: Server) -> None:
        assert server.bash("echo x > /tmp/x; ls /tmp")["output"] == "x"
        assert server.bash("ls /tmp", slot="slot_1")["output"] == ""
        for path in ("/x", "/etc/x", "/usr/x", "/workspace/../x"):
            assert "Read-only file system" in server.bash(f"touch {path}")["output"]
        assert server.bash("ls -A /run /sys 2>/dev/null")["output"] in ("", "/run:")
        assert int(server.bash("ls -d /proc/[0-9]* | wc -l")["output"]) < 6
        devices = {"full", "null", "random", "urandom", "zero", "tty", "ptmx", "console"}
        assert set(server.bash("find /dev -type c -printf '%f\\n'")["output"].split()) <= devices
        assert server.bash("grep CapEff /proc/self/status")["output"].split()[1] == "0" * 16
        port = server.url.rpartition(":")[2]
        connect = f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected"
        assert server.bash(connect)["output"] == "connected"
        assert "connected" not in server.bash(connect, allow_network=False)["output"]
        server.shell("true")
        assert "reset the slot first" in server.shell("true", allow_network=False)["error"]

    @pytest.mark.parametrize("containment", ["user"], indirect=True)
    def test_user(self, server: Server) -> None:
        one, other = (server.bash("id -u", slot=slot)["output"] for slot in ("slot_0", "slot_1"))
        assert len({one, other, "0"}) == 3
        server.execute("write_file", path="d/e", content="x")
        assert server.bash("echo y >> d/e; cat d/e; touch d/f")["output"] == "xy"
        assert not server.bash("touch /etc/x")["success"]
        # The user of a Nomad client, who is none of the slots', can show the files.
        assert stat.S_IMODE(server.workspace().stat().st_mode) == 0o705


# What a command may do to its slot's directory, and, where nothing holds it, to what lies around it.
HOSTILE = {
    "closed": 'chmod 000 "$here"',
    "closed with its /tmp": 'chmod 000 "$TMPDIR" "$here"',
    "closed from above": 'chmod 000 "$here" "$here/.." "$TMPDIR/.."',
    "moved away": 'mv "$here" "$here.moved"',
    "a link in its place": 'mv "$here" "$here.moved"; ln -s "$decoy" "$here"',
    "a file in its place": 'mv "$here" "$here.moved"; echo x > "$here"',
    "another slot's in its place": 'mv "$here" "$here.moved"; mv "${here%/*}/slot_1" "$here"',
    "a link in the place of all": 'mv "${here%/*}" "${here%/*}.moved"; ln -s "$decoy" "${here%/*}"',
    "a link in the place of its /tmp": 'rm -rf "$TMPDIR"; ln -s "$decoy" "$TMPDIR"',
    "removed": 'rm -rf "$here"',
    "all removed": 'rm -rf "${here%/*}"; rm -rf "${TMPDIR%/*}"',
}


@pytest.fixture(scope="module")
def decoy() -> Iterator[Path]:
    """A directory of the machine's, such as /etc."""
    with open_to_all() as folder:
        (folder / "passwd").write_text("secret")
        (folder / "slot_0").mkdir()
        folder.chmod(0o755)
        yield folder


def seen_of(folder: Path) -> list[tuple[Any, ...]]:
    return sorted(
        (p.name, p.stat().st_mode, p.stat().st_uid, p.stat().st_ctime_ns) for p in (folder, *folder.iterdir())
    )


AS_ANY_USER = """
import json, os, shutil, sys
from pathlib import Path
from slotserver import directories
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
data, level, act, decoy = json.loads(sys.argv[1])
workspace, target = Path(data, "slots", "slot_0"), Path(data, level)
for _ in range(2):
    with directories.opened(workspace, (-1, -1)) as descriptor:
        assert os.path.samefile(directories.path_of(descriptor), workspace)
        (workspace / "f").touch()
    if act == "closed":
        target.chmod(0)
    else:
        shutil.rmtree(target)
    if act == "link":
        target.symlink_to(decoy)
    elif act == "file":
        target.touch()
with directories.opened(workspace, (-1, -1)):
    assert os.listdir(workspace) == (["f"] if act == "closed" else [])
"""


class TestHostile:
    @pytest.mark.parametrize("act", HOSTILE.values(), ids=HOSTILE)
    def test_a_slot_bears_what_its_user_does_to_its_directory(
        self, server: Server, containment: str, decoy: Path, act: str
    ) -> None:
        before = seen_of(decoy)
        server.bash("echo of slot 1 > own", slot="slot_1")
        server.bash(f"here=$(pwd -P) decoy={decoy}; cd /; {act}; :")
        after = server.bash("echo hi > f; cat f; cat own passwd 2>/dev/null; :")
        assert after["output"] == "hi" or (containment == "none" and after["output"] == "hi\nof slot 1")
        if containment != "none":
            assert (server.workspace("slot_1") / "own").exists()
        assert server.execute("write_file", path="d/g", content="x")["success"]
        assert not server.execute("read_file", path="passwd")["success"]
        assert server.post("/artifacts/read", {"slot_id": "slot_0", "path": "passwd"}).status_code == 404
        assert server.post("/reset", {"slot_id": "slot_0"}).json()["success"]
        assert server.bash("ls -A; touch f; echo > $TMPDIR/f; ls")["output"] == "f"
        assert server.bash("echo on > f; cat f", slot="slot_1")["output"] == "on"
        assert seen_of(decoy) == before

    @pytest.mark.parametrize(
        ("level", "act"),
        [
            *((level, act) for level in ("slots/slot_0", "slots") for act in ("closed", "gone", "link", "file")),
            (".", "closed"),
            (".", "gone"),
        ],
    )
    def test_directories_are_opened_as_any_user(self, decoy: Path, level: str, act: str) -> None:
        """Root enters what is closed: here they are an ordinary user's."""
        with open_to_all() as above:
            given, before = json.dumps([str(above / "data"), level, act, str(decoy)]), seen_of(decoy)
            subprocess.run([sys.executable, "-c", AS_ANY_USER, given], cwd=SERVER.parent, check=True)
            assert seen_of(decoy) == before

    @pytest.mark.parametrize("containment", ["user"], indirect=True)
    def test_what_nomad_gave_is_closed_to_users_of_slots(self, start: Callable[..., Any], containment: str) -> None:
        with open_to_all() as allocation, open_to_all() as local:
            data = allocation / "data"
            for folder in (data, allocation / "logs"):
                folder.mkdir()
                folder.chmod(0o777)
            env = {"NOMAD_ALLOC_DIR": str(allocation), "NOMAD_TASK_DIR": str(local)}
            with start(containment, env=env, data_dir=data) as server:
                assert server.bash("pwd; cd $OLDPWD; cd ~; touch f; ls")["output"].endswith("slot_0\nf")
                for folder in (allocation, data, allocation / "logs", local):
                    refused = server.bash(
                        f"touch {folder}/x; mv {data} {data}.x; mv {data}/slots {data}/x; ls {folder}"
                    )
                    assert refused["output"].count("Permission denied") == 4, refused
                    assert folder.stat().st_mode & 0o707 == 0o707  # nobody else lost a right
                assert sorted(path.name for path in allocation.iterdir()) == ["data", "logs"]

    def test_no_stranger_moves_what_is_the_servers(self, server: Server) -> None:
        """In a directory that Nomad made writable for every user of the node."""
        mode = server.data_dir.stat().st_mode
        assert (mode & 0o007, mode & stat.S_ISVTX) == (0o007, stat.S_ISVTX)


class TestAfterARestart:
    def test_a_slot_that_was_closed_changes_nothing(self, start: Callable[..., Any], containment: str) -> None:
        with open_to_all() as data:
            with start(containment, data_dir=data) as server:
                server.bash("echo secret > secret", slot="slot_1")
                server.bash("chmod 000 . $TMPDIR")
                server.process.kill()
                server.process.wait()
                server.process.returncode = 0
            assert stat.S_IMODE((data / "slots" / "slot_0").stat().st_mode) & 0o700 == 0
            with start(containment, data_dir=data) as server:
                assert server.get("/health")["containment"] == containment
                path = server.workspace("slot_1") / "secret"
                assert ("secret\n" in server.bash(f"cat {path}")["output"] + "\n") == (containment == "none")
                assert server.bash("cat secret", slot="slot_1")["output"] == "secret"
                assert sorted(path.name for path in (data / ".state").iterdir()) == [
                    "containment",
                    *(f"slot_{number}" for number in range(SLOTS)),
                ]

    @pytest.mark.parametrize("containment", [c for c in CONTAINMENTS if c != "none"], indirect=True)
    def test_a_server_that_can_lock_in_less_does_not_start(self, start: Callable[..., Any], containment: str) -> None:
        with open_to_all() as data:
            with start(containment, data_dir=data):
                pass
            with pytest.raises(AssertionError) as ended, start("none", data_dir=data):
                pass
            assert f"were locked in by '{containment}', and now only 'none' works" in str(ended.value)
            assert "--allow-weaker" in str(ended.value)
            with start("none", "--allow-weaker", data_dir=data) as server:
                assert server.get("/health")["containment"] == "none"
            for better in ("none", containment):
                with start(better, data_dir=data) as server:
                    assert server.get("/health")["containment"] == better
                    assert server.bash("echo > f; cat f")["success"]

    def test_a_data_directory_that_was_not_there_is_hidden_too(
        self, start: Callable[..., Any], containment: str
    ) -> None:
        with open_to_all() as above, start(containment, data_dir=above / "new" / "data") as server:
            server.bash("echo secret > f; chmod 666 f", slot="slot_1")
            seen = server.bash(f"cat {server.workspace('slot_1')}/f")
            assert seen["success"] == (containment == "none")


class TestProcess:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_ends_at_once_and_with_everything(self, start: Callable[..., Any], containment: str, number: int) -> None:
        name = marker()
        with start(containment) as server, ThreadPoolExecutor() as threads:
            escape = f"(setsid bash -c 'exec -a {name} sleep 1000' &)"
            server.shell(escape, slot="slot_1")
            runs = {"slot_id": "slot_0", "tool": "bash", "args": {"command": f"{escape}; exec -a {name} sleep 1000"}}
            waits = {"slot_id": "slot_0", "tool": "bash", "args": {"command": "true"}}
            answer = threads.submit(server.post, "/batch", [runs, waits])
            eventually(lambda: len(running(name)) == 3)
            server.process.send_signal(number)
            assert server.process.wait(60) == 0
            assert running(name) == []
            assert [result["error"] for result in answer.result().json()] == ["The server is stopping"] * 2
            with pytest.raises(requests.ConnectionError):
                requests.get(server.url + "/health", timeout=5)

    def test_nothing_outlives_a_killed_server(self, start: Callable[..., Any], containment: str) -> None:
        name = marker()
        with start(containment) as server, ThreadPoolExecutor() as threads:
            call = threads.submit(
                server.bash, f"(setsid bash -c 'exec -a {name} sleep 1000' &); exec -a {name} sleep 1000"
            )
            eventually(lambda: len(running(name)) == 2)
            server.process.kill()
            eventually(lambda: not running(name))
            assert isinstance(call.exception(), requests.ConnectionError)
            server.process.wait()
            server.process.returncode = 0

    def test_a_supervisor_that_is_killed_or_stopped(self, start: Callable[..., Any]) -> None:
        with start("none") as server:
            for kill in ("KILL", "STOP"):
                name = marker()
                result = server.bash(
                    f"(setsid bash -c 'exec -a {name} sleep 1000' &); kill -{kill} $PPID; sleep 1000", timeout=1
                )
                assert not result["success"]
                assert running(name) == []
            assert server.bash("echo next")["output"] == "next"
            eventually(lambda: not server.children())

    def test_the_data_dir_that_is_given_wins(self, start: Callable[..., Any], tmp_path: Path) -> None:
        with start("none", env={"NOMAD_ALLOC_DIR": str(tmp_path)}) as server:
            assert server.get("/health")["data_dir"] == str(server.data_dir)
            assert list(tmp_path.iterdir()) == []

    def test_nomads_directory_is_the_default(self, tmp_path: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), "--port", "0", "--host", "127.0.0.1", "--slots", "1"],
            env=os.environ | {"NOMAD_ALLOC_DIR": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        with process.stderr as log:
            assert any("listening" in line for line in log)
            process.terminate()
            assert process.wait(60) == 0
        assert (tmp_path / "data" / "slots" / "slot_0").is_dir()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--slots", "0"], "0"),
            (["--slots", "x"], "x"),
            (["--port", "65536"], "65536"),
            (["--nonsense"], "nonsense"),
        ],
    )
    def test_a_wrong_command_line(self, arguments: list[str], said: str) -> None:
        ended = subprocess.run([sys.executable, str(SERVER), *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert said in ended.stderr

    def test_a_port_that_is_taken_and_a_directory_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            for more in (["--port", port, "--data-dir", str(tmp_path)], ["--data-dir", str(tmp_path / "file")]):
                ended = subprocess.run(
                    [sys.executable, str(SERVER), "--host", "127.0.0.1", *more],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert ended.returncode == 1
                assert "Traceback" not in ended.stderr
                assert port in ended.stderr or "file" in ended.stderr


@pytest.mark.parametrize("containment", CONTAINMENTS[:1], indirect=True)
class TestDescription:
    """The protocol's description says what the server does, and what it refuses it refuses in words."""

    SLOT = {"slot_id": "slot_0"}  # noqa: RUF012
    EXCHANGES = (
        ("get", "/health", None),
        ("get", "/slots", None),
        ("post", "/execute", SLOT | {"tool": "bash", "args": {"command": "echo x > x"}}),
        ("post", "/execute", {}),
        ("post", "/batch", [SLOT | {"tool": "nothing"}]),
        ("post", "/batch", {}),
        ("post", "/reset", {"slot_id": "slot_1"}),
        ("post", "/reset", {}),
        ("post", "/artifacts/read", SLOT | {"path": "x", "include_sha256": True}),
        ("post", "/artifacts/read", SLOT | {"path": ".."}),
        ("post", "/artifacts/list", SLOT),
        ("post", "/artifacts/list", SLOT | {"path": "nowhere"}),
        ("post", "/artifacts/archive", SLOT),
        ("post", "/artifacts/archive", SLOT | {"max_entries": 0}),
    )

    def test_answers_are_as_described(self, server: Server) -> None:
        description = yaml.safe_load(DESCRIPTION.read_text())
        for method, path, body in self.EXCHANGES:
            answer = requests.request(method, server.url + path, json=body, timeout=120)
            answers = description["paths"][path][method]["responses"]
            if answer.status_code != 200:
                assert "4XX" in answers
                assert answer.status_code < 500
                assert answer.json()["success"] is False
                assert answer.json()["error"]
                continue
            described = answers["200"]
            if "$ref" in described:
                described = description["components"]["responses"][described["$ref"].rpartition("/")[2]]
            schema = described["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), schema | {"components": description["components"]})

    def test_every_address_is_described_and_tried(self, server: Server) -> None:
        description = yaml.safe_load(DESCRIPTION.read_text())
        described = {(method, path) for path, methods in description["paths"].items() for method in methods}
        assert described == {(method, path) for method, path, _ in self.EXCHANGES}
