"""A second sandbox server, written from the protocol alone: nothing of it is shared with ``sandbox/``.

The gate must judge it as it judges the reference server. One thread a request, the standard library and bubblewrap.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import io
import json
import mimetypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORKSPACE = "/workspace"
"""What commands call theirs."""
MOST_OUTPUT = 50_000
MOST_FILE = 100_000
MOST_BODY = 64_000_000
MOST_PROCESSES = 256
MOST_MEMORY_KIB = 1 << 16


LIMITED = f"""echo 1000 > /proc/self/oom_score_adj
ulimit -u {MOST_PROCESSES} -d {MOST_MEMORY_KIB}
exec bash "$0"
"""


class RefusedError(Exception):
    """An answer other than 200, or a tool that failed."""

    def __init__(self, status, error):
        super().__init__(error)
        self.status = status


class Slot:
    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.lock = threading.Lock()
        self.running = None
        self.open()

    def open(self):
        """A command may have closed its directory."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)

    def inside(self, path, outside=403):
        """The real path that ``path`` names in the workspace."""
        if not isinstance(path, str):
            raise RefusedError(400, "path: a string is expected")
        if "\0" in path:
            raise RefusedError(400, "path: it holds a NUL")
        top = self.folder.resolve()
        if path == WORKSPACE or path.startswith(f"{WORKSPACE}/"):
            path = f".{path.removeprefix(WORKSPACE)}"
        try:
            found = (top / path).resolve()
        except (OSError, RuntimeError):
            raise RefusedError(outside, "Access denied: path outside workspace") from None
        except UnicodeEncodeError:
            raise RefusedError(400, "path: no file can be called so") from None
        if found != top and top not in found.parents:
            raise RefusedError(outside, "Access denied: path outside workspace")
        return found


class Tools:
    """What a slot can be asked to do; each returns output and metadata, or raises ``RefusedError``."""

    def __init__(self, data):
        self.data = data

    def bash(self, slot, args, timeout):
        command = text_of(args, "command")
        if "\0" in command:
            raise RefusedError(200, "the command holds a NUL")
        # Entry by entry, so that there may be a /workspace beside them.
        bound = [word for path in sorted(Path("/").iterdir()) for word in ("--ro-bind-try", str(path), str(path))]
        boxed = [
            "bwrap", "--die-with-parent", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
            *([] if args.get("allow_network", True) else ["--unshare-net"]),
            *bound, "--tmpfs", str(self.data), "--dev", "/dev", "--proc", "/proc",
            "--ro-bind", "/proc/sys", "/proc/sys",
            "--tmpfs", "/tmp", "--tmpfs", "/var/tmp", "--tmpfs", "/run",
            "--bind", str(slot.folder), WORKSPACE, "--chdir", WORKSPACE,
            "--clearenv", "--setenv", "PATH", os.environ["PATH"], "--setenv", "LANG", "C.UTF-8",
            "--setenv", "HOME", WORKSPACE, "--remount-ro", "/", "--new-session", "--cap-drop", "ALL",
            # No slot can take the machine from the others; and a command may be longer than one argument can be.
            "bash", "-c", LIMITED, "/dev/fd/{}",
        ]  # fmt: skip
        script = os.memfd_create("command")
        os.write(script, command.encode("utf-8", "surrogatepass"))
        os.lseek(script, 0, os.SEEK_SET)
        boxed[-1] = boxed[-1].format(script)
        mark = uuid.uuid4().hex
        try:
            process = subprocess.Popen(
                boxed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[script],
                env=os.environ | {"CALL": mark},
                start_new_session=True,
            )
        finally:
            os.close(script)
        readers = [Reader(process.stdout), Reader(process.stderr)]
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            end_marked(mark)
            process.wait()
        out, err = (reader.text() for reader in readers)
        output = "\n".join(filter(None, [out, f"[stderr]\n{err}" if out and err else err]))
        metadata = {"exit_code": -1 if code is None else 128 - code if code < 0 else code, "sandboxed": True}
        if code is None:
            raise FailedError(f"Command timed out after {timeout}s", output, metadata | {"timeout": True})
        if code:
            raise FailedError(f"Exit code: {metadata['exit_code']}", output, metadata)
        return output, metadata

    def read_file(self, slot, args, timeout):
        path = slot.inside(text_of(args, "path"), 200)
        if not os.path.lexists(path):
            raise RefusedError(200, f"File not found: {args['path']}")
        if not path.is_file():
            raise RefusedError(200, f"Not a file: {args['path']}")
        if not path.stat().st_mode & stat.S_IRUSR:
            raise RefusedError(200, f"Permission denied: {args['path']}")
        size = path.stat().st_size
        if size > MOST_FILE:
            raise RefusedError(200, f"File too large: {size} bytes")
        return path.read_bytes().decode("utf-8", "replace"), {"size": size}

    def write_file(self, slot, args, timeout):
        path = slot.inside(text_of(args, "path"), 200)
        content = text_of(args, "content").encode("utf-8", "surrogatepass")
        if len(content) > MOST_FILE:
            raise RefusedError(200, f"Content too large: {len(content)} bytes")
        if os.path.lexists(path) and not path.is_file():
            raise RefusedError(200, f"Not a file: {args['path']}")
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode if path.exists() else 0o644
        if not mode & stat.S_IWUSR:
            raise RefusedError(200, f"Permission denied: {args['path']}")
        # A name that no other call of the slot uses, for it has the slot's lock.
        new = path.with_name(f".new-{os.getpid()}")
        try:
            new.write_bytes(content)
            new.chmod(stat.S_IMODE(mode))
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        return f"Wrote {len(content)} bytes", {"size": len(content)}


def end_marked(mark):
    """Kill bwrap, and what it has forked: while it starts, that does not end with it. Commands do not get the mark."""
    found = True
    while found:
        found = False
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark.encode() in environ.read_bytes():
                    found = True
                    os.kill(int(environ.parent.name), signal.SIGKILL)


class FailedError(RefusedError):
    """A command that ended badly."""

    def __init__(self, error, output, metadata):
        super().__init__(200, error)
        self.output, self.metadata = output, metadata


class Reader(threading.Thread):
    """Reads a stream to its end and keeps the beginning."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.kept = stream, bytearray()
        self.start()

    def run(self):
        while chunk := self.stream.read1(65536):
            self.kept += chunk[: max(0, 4 * MOST_OUTPUT + 4 - len(self.kept))]
        self.stream.close()

    def text(self):
        self.join()
        text = self.kept.decode("utf-8", "replace").strip()
        return text if len(text) <= MOST_OUTPUT else f"{text[:MOST_OUTPUT]}\n[output truncated]"


def text_of(args, name):
    if not isinstance(args.get(name), str):
        raise RefusedError(200, f"{name}: a string is expected")
    return args[name]


class Server:
    def __init__(self, slots, data):
        self.data = data.resolve()
        self.slots = {f"slot_{n}": Slot(f"slot_{n}", self.data / f"slot_{n}") for n in range(slots)}
        self.tools = Tools(self.data)
        self.posts = {
            "/execute": self.execute,
            "/batch": self.batch,
            "/reset": self.reset,
            "/artifacts/read": self.read,
            "/artifacts/list": self.list,
            "/artifacts/archive": self.archive,
        }
        self.gets = {"/health": self.health, "/slots": self.list_slots}

    def health(self):
        busy = sum(slot.lock.locked() for slot in self.slots.values())
        known = {"slots": len(self.slots), "available": len(self.slots) - busy, "executing": busy}
        return {"status": "ok", **known, "data_dir": str(self.data), "bwrap_available": True}

    def list_slots(self):
        return {
            "slots": [
                {
                    "slot_id": slot.name,
                    "state": "executing" if slot.lock.locked() else "available",
                    "workspace_dir": str(slot.folder),
                    "current_execution_id": slot.running,
                }
                for slot in self.slots.values()
            ]
        }

    def execute(self, call):
        checked(call)
        slot, tool = self.slots.get(call["slot_id"]), getattr(Tools, str(call["tool"]), None)
        answer = {"success": False, "output": "", "error": "", "execution_id": call.get("execution_id"), "metadata": {}}
        if slot is None:
            return answer | {"error": f"Unknown slot: {call['slot_id']}"}
        if tool is None or str(call["tool"]).startswith("_"):
            return answer | {"error": f"Unknown tool: {call['tool']}"}
        with slot.lock:
            slot.open()
            slot.running = call.get("execution_id")
            try:
                output, metadata = tool(self.tools, slot, call.get("args") or {}, call.get("timeout") or 30.0)
                return answer | {"success": True, "output": output, "metadata": metadata}
            except FailedError as failed:
                return answer | {"error": str(failed), "output": failed.output, "metadata": failed.metadata}
            except RefusedError as refused:
                return answer | {"error": str(refused)}
            except OSError as error:
                return answer | {"error": f"{error.strerror}: {call['tool']}"}
            finally:
                slot.running = None

    def batch(self, calls):
        if not isinstance(calls, list):
            raise RefusedError(400, "a list is expected")
        for call in calls:
            checked(call)
        with ThreadPoolExecutor(max(len(calls), 1)) as workers:
            return list(workers.map(self.execute, calls))

    def reset(self, call):
        if not isinstance(call, dict) or not isinstance(call.get("slot_id"), str):
            raise RefusedError(400, "slot_id: a string is expected")
        answer = {"success": True, "output": "reset", "error": "", "execution_id": None, "metadata": {}}
        slot = self.slots.get(call["slot_id"])
        if slot is None:
            return answer | {"success": False, "error": f"Unknown slot: {call['slot_id']}"}
        with slot.lock:
            slot.open()
            for entry in slot.folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    for folder, _, _ in os.walk(entry):
                        Path(folder).chmod(0o700)
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        return answer

    def artifact(self, call):
        if not isinstance(call, dict) or not isinstance(call.get("slot_id"), str):
            raise RefusedError(400, "slot_id: a string is expected")
        for name in ("max_bytes", "max_entries"):
            value = call.get(name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise RefusedError(400, f"{name}: a number is expected")
        if call["slot_id"] not in self.slots:
            raise RefusedError(404, f"Unknown slot: {call['slot_id']}")
        slot = self.slots[call["slot_id"]]
        path = slot.inside(call.get("path", "."))
        if not path.exists():
            raise RefusedError(404, f"File not found: {call.get('path')}")
        return slot, path

    def read(self, call):
        if isinstance(call, dict) and not isinstance(call.get("path"), str):
            raise RefusedError(400, "path: a string is expected")
        _, path = self.artifact(call)
        encoding = call.get("encoding") or "text"
        if encoding not in ("text", "base64"):
            raise RefusedError(400, f"encoding: text or base64, not {encoding!r}")
        if not path.is_file():
            raise RefusedError(400, "Not a file")
        whole = path.read_bytes()
        part = whole if call.get("max_bytes") is None else whole[: call["max_bytes"]]
        content = part.decode("utf-8", "replace") if encoding == "text" else base64.b64encode(part).decode()
        return {
            "success": True,
            "content": content,
            "encoding": encoding,
            "truncated": len(part) < len(whole),
            "bytes": len(part),
            "file_size": len(whole),
            "path": call["path"],
            "mime": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
            "sha256": hashlib.sha256(whole).hexdigest() if call.get("include_sha256") else None,
        }

    def found(self, slot, path, recursive):
        for entry in sorted(path.iterdir()):
            yield entry
            if recursive and entry.is_dir() and not entry.is_symlink():
                yield from self.found(slot, entry, True)

    def list(self, call):
        slot, path = self.artifact(call)
        if not isinstance(call.get("recursive", False), bool):
            raise RefusedError(400, "recursive: true or false")
        if not path.is_dir():
            raise RefusedError(400, "Not a directory")
        most = call.get("max_entries")
        entries, top = [], slot.folder.resolve()
        for entry in self.found(slot, path, call.get("recursive", False)):
            if most is not None and len(entries) == most:
                return {"success": True, "entries": entries, "truncated": True}
            about = entry.lstat()
            name = str(entry.relative_to(top)).encode("utf-8", "replace").decode()
            size = about.st_size if stat.S_ISREG(about.st_mode) else 0
            entries.append({"path": name, "is_dir": entry.is_dir(), "size": size, "mtime": about.st_mtime})
        return {"success": True, "entries": entries, "truncated": False}

    def archive(self, call):
        slot, path = self.artifact(call)
        if (call.get("format") or "tar.gz") != "tar.gz":
            raise RefusedError(400, "format: tar.gz is the only one")
        if not path.is_dir() and not path.is_file():
            raise RefusedError(400, "neither a file nor a directory")
        top, stream, count = slot.folder.resolve(), io.BytesIO(), 0
        entries = list(self.found(slot, path, True)) if path.is_dir() else [path]
        if call.get("max_entries") is not None and len(entries) > call["max_entries"]:
            raise RefusedError(413, f"{len(entries)} entries")
        if call.get("max_bytes") is not None and sum(e.lstat().st_size for e in entries) > call["max_bytes"]:
            raise RefusedError(413, "too many bytes")
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for entry in entries:
                if stat.S_ISSOCK(entry.lstat().st_mode):
                    continue
                archive.add(entry, str(entry.relative_to(top)), recursive=False)
                count += 1
        content = stream.getvalue()
        about = {"encoding": "base64", "format": "tar.gz", "bytes": len(content), "entry_count": count}
        return {"success": True, "content": base64.b64encode(content).decode(), **about}


def checked(call):
    """Raise where ``call`` is none of ``/execute``."""
    if not isinstance(call, dict):
        raise RefusedError(400, "an object is expected")
    for name, kinds, needed in (
        ("slot_id", str, True),
        ("tool", str, True),
        ("args", dict, False),
        ("execution_id", str, False),
        ("timeout", (int, float), False),
    ):
        value = call.get(name)
        if (value is None and needed) or (value is not None and (not isinstance(value, kinds) or value is True)):
            raise RefusedError(400, f"{name}: missing, or of the wrong type")
    timeout = call.get("timeout")
    if timeout is not None and not 0 < timeout <= 86_400:
        raise RefusedError(400, "timeout: more than 0 s, and a day at most")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version = "second"

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status != 200:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def answered_by(self, table, other, *given):
        path = self.path.partition("?")[0]
        if path not in table:
            status = 405 if path in other else 404
            return self.answer(status, {"success": False, "error": "no such call"})
        try:
            content = table[path](*given)
        except RefusedError as refused:
            return self.answer(refused.status, {"success": False, "error": str(refused)})
        except OSError as error:
            return self.answer(400, {"success": False, "error": str(error.strerror)})
        return self.answer(200, content)

    def is_known(self):
        """Whether the client has a token of the server's, or the server none."""
        hashes = self.server.hashes
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        seen = hashlib.sha256(token.strip().encode("latin-1", "replace")).hexdigest()
        return not hashes or (kind.lower() == "bearer" and any(hmac.compare_digest(seen, one) for one in hashes))

    def do_GET(self):
        if not self.is_known():
            if self.path == "/health":
                return self.answer(200, {"status": "ok"})
            return self.answer(401, {"success": False, "error": "who are you?"})
        return self.answered_by(self.server.sandbox.gets, self.server.sandbox.posts)

    def do_POST(self):
        if not self.is_known():
            return self.answer(401, {"success": False, "error": "who are you?"})
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self.answer(411, {"success": False, "error": "a length is expected"})
        if int(length) > MOST_BODY:
            return self.answer(413, {"success": False, "error": "too large"})
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return None
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return self.answer(400, {"success": False, "error": "the body is not JSON"})
        return self.answered_by(self.server.sandbox.posts, self.server.sandbox.gets, content)

    def log_message(self, *_):
        pass


class Listener(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is no event."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--data-dir", type=Path, default=Path("/data"))
    parser.add_argument("--token-sha256", nargs="+", action="extend", default=[])
    options = parser.parse_args()
    listener = Listener((options.host, options.port), Handler)
    listener.hashes = options.token_sha256
    listener.sandbox = Server(options.slots, options.data_dir)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=listener.shutdown).start())
    with contextlib.suppress(KeyboardInterrupt):
        listener.serve_forever()


if __name__ == "__main__":
    main()
