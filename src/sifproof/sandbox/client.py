"""HTTP client of one sandbox server. Nothing that comes over the wire is trusted: not its shape, size or pace."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sifproof.errors import Fault, SifproofError

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""More than any answer of the protocol needs: an archive is the largest, and servers limit those."""

_CONNECT_TIMEOUT_S = 5.0
_GRACE_S = 10.0
"""What a server may take beyond the time-out that it was asked to keep."""

LEAST_SECRET = 20
"""Characters of a token that no other text holds by chance."""

_STRANGER = "Give the client the token that this server asks for; in a config see `tokens` and `job_token`"


class ServerError(SifproofError):
    """The server did not answer as the protocol says. ``status`` is the HTTP status, or None without an answer."""

    def __init__(
        self, what: str, *, why: str = "", todo: str = "", status: int | None = None, fault: Fault = Fault.IMAGE
    ) -> None:
        super().__init__(what, why=why, todo=todo, fault=fault)
        self.status = status


class Result(BaseModel):
    """What a tool answered.

    ``stdout`` and ``stderr`` are what a command printed, with its white space; None where the server has no such
    fields. ``output`` is both of them, stripped.
    """

    model_config = ConfigDict(strict=True)

    success: bool
    output: str = ""
    error: str = ""
    execution_id: str | None = None
    metadata: dict[str, Any] = Field(default={})
    stdout: str | None = None
    stderr: str | None = None

    @property
    def exit_code(self) -> int | None:
        """Exit code of a ``bash`` call: 0 where it succeeded, None where the server gives none."""
        if self.success:
            return 0
        code = self.metadata.get("exit_code")
        return code if isinstance(code, int) else None

    def __str__(self) -> str:
        parts = [f"success={self.success}"]
        parts += [f"{name}={_short(text)}" for name in ("output", "error") if (text := getattr(self, name))]
        if not self.success:
            parts.append(f"exit_code={self.metadata.get('exit_code')!r}")
        return ", ".join(parts)


def _short(text: str, limit: int = 200) -> str:
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"


class _Socket(socket.socket):
    """A socket whose every wait ends at one deadline: a server that drips bytes wins no time by each."""

    deadline = 0.0

    def recv_into(self, *args: Any) -> int:
        self._wait_no_longer()
        return super().recv_into(*args)

    def sendall(self, *args: Any) -> None:
        self._wait_no_longer()
        super().sendall(*args)

    def _wait_no_longer(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)


class _Connection(http.client.HTTPConnection):
    """A connection that is used again; the exchange on it is over at ``deadline``, in whatever part of it."""

    deadline = 0.0
    late = ""
    """What there is to say of an exchange that is not over by then, once the answer has begun."""

    def connect(self) -> None:
        left = max(self.deadline - time.monotonic(), 0.001)
        made = socket.create_connection((self.host, self.port), min(_CONNECT_TIMEOUT_S, left))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bounded = _Socket(made.family, made.type, made.proto, fileno=made.detach())
        bounded.deadline = self.deadline
        self.sock = bounded

    def __del__(self) -> None:
        self.close()

    def exchange(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer, of which no more is read than a byte beyond the most that is allowed."""
        self.late = ""
        try:
            if self.sock and _readable(self.sock):
                self.close()  # at rest, a server has nothing to say but that it has closed
            if isinstance(self.sock, _Socket):
                self.sock.deadline = self.deadline
            if self.sock is None:
                self.connect()
            # A server that does not take all of the body may have answered already, closing in whichever way.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.request(method, path, data, headers)
            response = self.getresponse()
            self.late = "the answer was still coming after the time-out"
            answer = response.read(MAX_ANSWER_BYTES + 1)
            if len(answer) <= MAX_ANSWER_BYTES and response.length:
                raise http.client.IncompleteRead(answer, response.length)
        except BaseException:
            self.close()
            raise
        if len(answer) > MAX_ANSWER_BYTES:
            self.close()
        return response.status, answer


def _readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


class SandboxClient:
    """One server at ``url`` (``http://10.0.0.5:8080``, IPv6 bracketed). May be shared by threads.

    Every method raises :class:`ServerError` where the server does not answer in time or not as the protocol says.
    A tool that fails is an answer, not an error: look at :attr:`Result.success`.

    ``token`` is sent with every request (``Authorization: Bearer``). No message shows it, and where a server's answer
    holds it, ``<token>`` stands in its place.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_s: float = 30.0, grace_s: float = _GRACE_S
    ) -> None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ValueError("a token has visible ASCII characters alone, one at least")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._grace_s = grace_s
        self._token = token
        # One exchange at a time on a connection, so one connection for each thread.
        self._local = threading.local()
        self.on_silence: Callable[[], None] = lambda: None
        """Called where a request got no answer, before that is raised; may raise something weightier."""

    def __repr__(self) -> str:
        return f"SandboxClient({self.url!r})"

    def clone(self, *, timeout_s: float | None = None, grace_s: float | None = None) -> SandboxClient:
        """Another client of the same server, with connections and time-outs of its own."""
        return SandboxClient(
            self.url,
            token=self._token,
            timeout_s=self.timeout_s if timeout_s is None else timeout_s,
            grace_s=self._grace_s if grace_s is None else grace_s,
        )

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                parts = urlsplit(self.url)
                host, port = parts.hostname if parts.scheme == "http" else None, parts.port
            except ValueError:
                host = None
            if not host:
                raise ServerError(
                    f"{self.url!r} is no URL of a sandbox server", why="one such as http://10.0.0.5:8080 is expected"
                )
            connection = self._local.connection = _Connection(host, port or 80)
        return connection

    def begin(self, method: str, path: str, sent: bytes) -> socket.socket:
        """A connection of its own on which a request has begun, as this client would: its first lines and ``sent``.

        ``sent`` are its other lines, and what is to come of the body. Raises OSError.
        """
        address = urlsplit(self.url)
        lines = [f"{method} {address.path}{path} HTTP/1.1", f"Host: {address.netloc}"]
        lines += [f"Authorization: Bearer {self._token}"] if self._token else []
        connection = socket.create_connection((address.hostname or "", address.port or 80), self.timeout_s)
        connection.sendall("".join(f"{line}\r\n" for line in lines).encode() + sent)
        return connection

    def request(
        self, method: str, path: str, body: object = None, *, raw: bytes | None = None, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        """Status and body of any answer; ``raw`` is sent as it is, ``body`` as JSON."""
        connection = self._connection()
        connection.deadline = time.monotonic() + (timeout_s or self.timeout_s) + self._grace_s
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            status, answer = connection.exchange(method, urlsplit(self.url).path + path, data, headers)
        except TimeoutError:
            self.on_silence()
            late = f"no answer within {timeout_s or self.timeout_s:g} s"
            raise ServerError(f"{method} {path}: {connection.late or late}") from None
        except (OSError, http.client.HTTPException) as error:
            self.on_silence()
            why = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {_short(str(error))}"
            raise ServerError(f"{method} {path}: no answer", why=self._hidden(why.encode()).decode()) from None
        if len(answer) > MAX_ANSWER_BYTES:
            raise ServerError(f"{method} {path}: the answer exceeds {MAX_ANSWER_BYTES} bytes")
        return status, self._hidden(answer)

    def _hidden(self, text: bytes) -> bytes:
        """``text`` without the token; a short one is a word that other text may hold too."""
        if self._token and len(self._token) >= LEAST_SECRET:
            return text.replace(self._token.encode(), b"<token>")
        return text

    def _json(self, method: str, path: str, body: object = None, *, timeout_s: float | None = None) -> Any:
        status, answer = self.request(method, path, body, timeout_s=timeout_s)
        if status != 200:
            stranger = status == 401 and not self._token
            raise ServerError(
                f"{method} {path}: HTTP {status}",
                why=_short(answer.decode("utf-8", "replace")),
                todo=_STRANGER if stranger else "",
                status=status,
                # It may well be right to ask.
                fault=Fault.CONFIGURATION if stranger else Fault.IMAGE,
            )
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise ServerError(
                f"{method} {path}: the answer is not JSON", why=_short(answer.decode("utf-8", "replace")), status=status
            ) from None

    def _object(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        answer = self._json(method, path, body)
        if not isinstance(answer, dict):
            raise ServerError(f"{method} {path}: the answer is no JSON object", why=_short(repr(answer)))
        return answer

    def health(self) -> dict[str, Any]:
        """``GET /health`` as it came: a JSON object."""
        return self._object("GET", "/health")

    def slots(self) -> list[dict[str, Any]]:
        """The list in ``GET /slots``."""
        slots = self._object("GET", "/slots").get("slots")
        if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
            raise ServerError("GET /slots: `slots` is no list of objects", why=_short(repr(slots)))
        return slots

    def execute(
        self,
        slot: str,
        tool: str,
        args: dict[str, Any],
        *,
        timeout_s: float | None = None,
        execution_id: str | None = None,
    ) -> Result:
        """``POST /execute``: one tool in one slot; ``timeout_s`` is the server's to keep."""
        call: dict[str, Any] = {"slot_id": slot, "tool": tool, "args": args, "timeout": timeout_s or self.timeout_s}
        if execution_id is not None:
            call["execution_id"] = execution_id
        return _result("POST /execute", self._json("POST", "/execute", call, timeout_s=timeout_s))

    def bash(self, slot: str, command: str, *, timeout_s: float | None = None, **options: bool) -> Result:
        """Run ``command`` by the ``bash`` tool; ``options`` are its switches, such as ``allow_network``."""
        return self.execute(slot, "bash", {"command": command, **options}, timeout_s=timeout_s)

    def read_file(self, slot: str, path: str) -> Result:
        """The text of ``path`` in the slot's workspace, as :attr:`Result.output`."""
        return self.execute(slot, "read_file", {"path": path})

    def write_file(self, slot: str, path: str, content: str) -> Result:
        """Write ``content`` to ``path`` in the slot's workspace; parents are made."""
        return self.execute(slot, "write_file", {"path": path, "content": content})

    def batch(self, calls: list[dict[str, Any]], *, timeout_s: float | None = None) -> list[Result]:
        """``POST /batch``: many calls at once, their results in request order."""
        answer = self._json("POST", "/batch", calls, timeout_s=timeout_s)
        if not isinstance(answer, list) or len(answer) != len(calls):
            raise ServerError(f"POST /batch: not a list of {len(calls)} results", why=_short(repr(answer)))
        return [_result("POST /batch", item) for item in answer]

    def reset(self, slot: str) -> Result:
        """``POST /reset``: afterwards the slot's workspace is empty."""
        return _result("POST /reset", self._json("POST", "/reset", {"slot_id": slot}))

    def artifact(self, call: str, slot: str, path: str, **options: Any) -> dict[str, Any]:
        """``POST /artifacts/<call>``: ``read``, ``list`` or ``archive``, as it came."""
        return self._object("POST", f"/artifacts/{call}", {"slot_id": slot, "path": path, **options})


def _result(call: str, answer: object) -> Result:
    try:
        return Result.model_validate(answer)
    except ValidationError as error:
        wrong = "; ".join(f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors(include_url=False))
        raise ServerError(f"{call}: the answer is no result", why=wrong) from None
