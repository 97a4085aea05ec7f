"""The way to Nomad: python-nomad's endpoints, with blocking queries and with errors in words.

python-nomad's own front door, ``nomad.Nomad``, lets ``NOMAD_ADDR`` win over an address that it is given, doesn't
verify certificates by default, and forgets the namespace of evaluations. So its endpoint classes are made here, from
settings that are all explicit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from nomad import api
from nomad.api.exceptions import BaseNomadException, TimeoutNomadException
from requests.adapters import HTTPAdapter

from sifproof.errors import Fault, SifproofError
from sifproof.nomad.job import validate_id

BLOCK_S = 5.0
"""Seconds one blocking query waits. Short, because a change can slip past one that has just begun."""

_TIMEOUT_S = 20.0
_RESTART_S = 60.0
"""A restart is answered when the task has ended: at its kill_timeout at the latest."""

_JITTER = 1 / 16


class NotFoundError(SifproofError):
    """Nomad has no such job, allocation, node or file."""


class RejectedError(SifproofError):
    """Nomad understood the request and refused it: HTTP 400."""


class ForbiddenError(SifproofError):
    """The token does not allow it: HTTP 401 or 403."""


class _ServerName(HTTPAdapter):
    """Verifies the certificate against a name of its own: ``NOMAD_TLS_SERVER_NAME``."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, server_hostname=self._name, assert_hostname=self._name, **kwargs)


class Client:
    """A connection to one Nomad cluster; made by :func:`connect`. Not for use by two threads at once."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        namespace: str | None = None,
        region: str | None = None,
        verify: bool | str = True,
        certificate: tuple[str, str] | None = None,
        server_name: str | None = None,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SifproofError(
                f"{without_password(address)!r} is no address of a Nomad API",
                why="a URL such as http://127.0.0.1:4646 or https://nomad.example.org:4646 is expected",
                todo="correct NOMAD_ADDR or nomad.address",
                fault=Fault.CONFIGURATION,
            )
        self.address = without_password(address.rstrip("/"))
        self.namespace = namespace or "default"
        self.region = region
        session = requests.Session()
        # As Nomad's own command line does: a proxy is for the world outside, not for this machine.
        session.trust_env = not is_loopback(parts.hostname)
        if server_name:
            session.mount("https://", _ServerName(server_name))
        settings: dict[str, Any] = {
            "address": address.rstrip("/"),
            "token": token or None,
            "namespace": namespace or None,
            "region": region or None,
            "verify": verify,
            "cert": certificate or (),
            "timeout": _TIMEOUT_S,
            "session": session,
        }
        self._session = session
        self._endpoints: dict[str, Any] = {
            "acl": api.Acl(**settings),
            "agent": api.Agent(**settings),
            "allocation": api.Allocation(**settings),
            "allocations": api.Allocations(**settings),
            "evaluation": api.Evaluation(**settings),
            "job": api.Job(**settings),
            "jobs": api.Jobs(**settings),
            "node": api.Node(**settings),
            "nodes": api.Nodes(**settings),
            "status": api.Status(**settings).leader,
        }
        self._files = api.Client(**settings)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, *path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to ``GET /v1/<path>``, such as ``get("job", job_id, "evaluations")``."""
        return self._get(path, dict(params or {}), _TIMEOUT_S).json()

    def wait_for_change(self, *path: str, index: int = 0, wait_s: float = BLOCK_S) -> tuple[Any, int]:
        """The answer to ``GET /v1/<path>`` and its index, once the index is beyond ``index`` or ``wait_s`` are over.

        A return promises no change: read the answer. Index 0 returns at once.
        """
        wait_s = max(wait_s, 0.001)
        # Nomad adds up to a sixteenth of the wait.
        answer = self._get(
            path, {"index": index, "wait": f"{int(wait_s * 1000)}ms"}, _TIMEOUT_S + wait_s * (1 + _JITTER)
        )
        return answer.json(), int(answer.headers.get("X-Nomad-Index", "0"))

    def _get(self, path: tuple[str, ...], params: dict[str, Any], timeout: float) -> requests.Response:
        head, *rest = path
        for part in rest:
            validate_id(part)
        with self._in_words("/".join(path)):
            return cast(
                requests.Response,
                self._endpoints[head].request(
                    *rest, method="get", params={"namespace": self.namespace, **params}, timeout=timeout
                ),
            )

    def version(self) -> str:
        """The version of the cluster, as ``1.11.2``: the oldest of its ready nodes; empty where it has none.

        The agent at the address would tell its own too, but only to a token with ``agent { policy = "read" }``.
        """
        versions = [str(node["Version"]) for node in self.get("nodes") if node["Status"] == "ready"]
        return min(versions, key=lambda version: [int(n) for n in re.findall(r"\d+", version)], default="")

    def file(self, allocation: str, path: str) -> bytes:
        """The content of ``path`` in the directory of ``allocation``, such as ``/alloc/data/slot_0/x``.

        Read through Nomad, from the node. Raises :class:`NotFoundError` where there is no such file.
        """
        validate_id(allocation, "allocation id")
        with self._in_words(f"file {path} of allocation {allocation}"):
            # For a missing file Nomad 1.11.2 answers 200 to `cat`, with the error as its text; to `stat` 404.
            self._files.stat.request(allocation, params=self._file_params(path=path), method="get")
            answer = self._files.cat.request(allocation, params=self._file_params(path=path), method="get")
        return bytes(answer.content)

    def checks(self, allocation: str) -> dict[str, tuple[str, str]]:
        """What Nomad's own checks of the services of ``allocation`` said last: status and output of each, by its name.

        A status is ``success``, ``failure`` or ``pending``.
        """
        validate_id(allocation, "allocation id")
        with self._in_words(f"checks of allocation {allocation}"):
            answer = self._files.allocation.request(
                allocation, "checks", params={"namespace": self.namespace}, method="get"
            )
        return {one["Check"]: (one["Status"], one.get("Output") or "") for one in (answer.json() or {}).values()}

    def logs(self, allocation: str, task: str, stream: str = "stderr", tail: int = 65536) -> str:
        """The last ``tail`` bytes that ``task`` wrote to ``stream`` (``stdout`` or ``stderr``); empty for none."""
        validate_id(allocation, "allocation id")
        try:
            with self._in_words(f"logs of allocation {allocation}"):
                answer = self._files.stream_logs.request(
                    allocation,
                    params=self._file_params(task=task, type=stream, origin="end", offset=tail, plain="true"),
                    method="get",
                )
        except NotFoundError:
            return ""
        return cast(bytes, answer.content).decode("utf-8", "replace")

    def _file_params(self, **params: Any) -> dict[str, Any]:
        return {"namespace": self.namespace, **params}

    # -- writing ---------------------------------------------------------------------------------------------------

    def register(self, job: Mapping[str, Any]) -> str:
        """Submit ``job`` (``{"Job": {…}}``); the id of the evaluation that will place it."""
        job_id = validate_id(job["Job"]["ID"], "job id")
        with self._in_words(f"job {job_id}", needs="submit-job"):
            return str(self._endpoints["job"].register_job(job_id, dict(job))["EvalID"])

    def deregister(self, job_id: str, *, purge: bool) -> None:
        """Stop ``job_id``, and with ``purge`` make Nomad forget it. A job that doesn't exist is no error."""
        validate_id(job_id, "job id")
        try:
            with self._in_words(f"job {job_id}", needs="submit-job"):
                self._endpoints["job"].deregister_job(
                    job_id, namespace=self.namespace, purge="true" if purge else "false"
                )
        except NotFoundError:
            return

    def restart(self, allocation: str, task: str) -> None:
        """Have ``task`` of ``allocation`` restarted where it runs; returns when its process has ended.

        Raises :class:`ForbiddenError` to a token without ``alloc-lifecycle``.
        """
        validate_id(allocation, "allocation id")
        with self._in_words(f"restart of allocation {allocation}", needs="alloc-lifecycle"):
            self._files.allocation.request(
                allocation,
                "restart",
                json={"TaskName": task},
                params={"namespace": self.namespace},
                method="post",
                timeout=_RESTART_S,
            )

    def forget_node(self, node_id: str) -> None:
        """Make Nomad forget a node whose client has ended; needs ``node { policy = "write" }``."""
        validate_id(node_id, "node id")
        with self._in_words(f"node {node_id}"):
            self._endpoints["node"].request(node_id, "purge", method="post")

    def bootstrap(self, token: str) -> None:
        """Make ``token``, a UUID, the first management token of a cluster whose access control has none yet.

        Raises :class:`RejectedError` where somebody did so before.
        """
        with self._in_words("the first token of its access control"):
            self._endpoints["acl"].request("bootstrap", json={"BootstrapSecret": token}, method="post")

    # -- errors ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _in_words(self, what: str, needs: str = "read-job, list-jobs, read-logs, read-fs") -> Iterator[None]:
        try:
            yield
        except (BaseNomadException, TimeoutNomadException, requests.RequestException) as error:
            raise self._told(error, what, needs) from None

    def _told(self, error: Exception, what: str, needs: str) -> SifproofError:
        cause = getattr(error, "nomad_resp", error)
        if isinstance(cause, requests.Response):
            return self._refused(cause, what, needs)
        if isinstance(cause, requests.exceptions.SSLError):
            return SifproofError(
                f"Nomad at {self.address} can't be trusted",
                why=_innermost(cause),
                todo="set NOMAD_CACERT to the certificate of the authority that signed the server's, "
                "and NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY where the server asks for a client's",
            )
        if isinstance(cause, requests.exceptions.ConnectionError):
            return SifproofError(
                f"Nomad can't be reached at {self.address}",
                why=_innermost(cause),
                todo="check NOMAD_ADDR (or nomad.address) and that the agent runs; "
                "without an address, a run starts an agent of its own",
            )
        if isinstance(cause, requests.exceptions.Timeout):
            return SifproofError(
                f"Nomad at {self.address} did not answer ({what})", todo="look at the load and the log of its servers"
            )
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            # requests checks the certificate files itself
            return SifproofError(str(cause), todo="check NOMAD_CACERT, NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY")
        return SifproofError(f"The talk with Nomad at {self.address} failed ({what})", why=_innermost(cause))

    def _refused(self, answer: requests.Response, what: str, needs: str) -> SifproofError:
        text = " ".join(answer.text.split())[:500]
        status = answer.status_code
        if status == 400 and "HTTPS server" in text:
            return SifproofError(
                f"Nomad at {self.address} speaks TLS only",
                todo="write https:// in NOMAD_ADDR",
                fault=Fault.CONFIGURATION,
            )
        # Nomad 1.11 answers 500 to a job that its own validation refuses, with a list of what is wrong.
        if status == 400 or (status == 500 and re.match(r"\d+ errors? occurred:", text)):
            return RejectedError(f"Nomad rejected {what}", why=text, fault=Fault.CONFIGURATION)
        if status in (401, 403):
            return ForbiddenError(
                f"Nomad at {self.address} does not permit it ({what})",
                why=text,
                todo=f"set NOMAD_TOKEN to a token whose policy has {needs} in namespace {self.namespace!r} "
                'and node { policy = "read" }',
            )
        if status == 404 or (status == 500 and ("no such file" in text or "not found" in text)):
            return NotFoundError(f"Nomad at {self.address} has no {what}", why=text)
        if "no cluster leader" in text.lower():
            return SifproofError(
                f"The Nomad cluster at {self.address} has no leader", todo="wait for its servers to elect one"
            )
        return SifproofError(f"Nomad at {self.address} failed ({what})", why=f"HTTP {status}, {text}")


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    namespace: str | None = None,
    region: str | None = None,
    cacert: str | None = None,
    client_cert: str | None = None,
    client_key: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Client:
    """A client of the cluster at ``address``. What is not given is taken from Nomad's own variables.

    These are ``NOMAD_ADDR``, ``NOMAD_TOKEN``, ``NOMAD_NAMESPACE``, ``NOMAD_REGION``, ``NOMAD_CACERT``,
    ``NOMAD_CAPATH``, ``NOMAD_CLIENT_CERT``, ``NOMAD_CLIENT_KEY``, ``NOMAD_TLS_SERVER_NAME`` and ``NOMAD_SKIP_VERIFY``,
    read from ``environment`` (``os.environ``; give ``{}`` for an agent that needs none of them). Nothing is sent yet.

    Raises :class:`SifproofError` where the address or a certificate file can't be used.
    """
    variables = os.environ if environment is None else environment
    setting: Callable[[str], str | None] = lambda name: variables.get(name) or None  # noqa: E731
    address = address or setting("NOMAD_ADDR")
    if not address:
        raise SifproofError(
            "There is no address of a Nomad API", todo="set NOMAD_ADDR or nomad.address", fault=Fault.CONFIGURATION
        )
    authority = cacert or setting("NOMAD_CACERT") or setting("NOMAD_CAPATH")
    certificate = client_cert or setting("NOMAD_CLIENT_CERT")
    key = client_key or setting("NOMAD_CLIENT_KEY")
    for name, value in (
        ("NOMAD_CACERT", authority),
        ("NOMAD_CLIENT_CERT", certificate),
        ("NOMAD_CLIENT_KEY", key),
    ):
        if value and not os.access(value, os.R_OK):
            raise SifproofError(
                f"{name} names {value}",
                why="it can't be read" if os.path.lexists(value) else "there is no such file",
                fault=Fault.CONFIGURATION,
            )
    if bool(certificate) != bool(key):
        raise SifproofError(
            "NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY belong together",
            why="only one of them is set",
            fault=Fault.CONFIGURATION,
        )
    skip_verify = (setting("NOMAD_SKIP_VERIFY") or "").lower() in ("1", "t", "true")
    return Client(
        address,
        token=token or setting("NOMAD_TOKEN"),
        namespace=namespace or setting("NOMAD_NAMESPACE"),
        region=region or setting("NOMAD_REGION"),
        verify=False if skip_verify else (authority or True),
        certificate=(certificate, key) if certificate and key else None,
        server_name=setting("NOMAD_TLS_SERVER_NAME"),
    )


def without_password(address: str) -> str:
    """``address`` without the ``user:password@`` that it may have."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_loopback(host: str) -> bool:
    """Whether ``host``, an address or a name, is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _innermost(error: object) -> str:
    """The last words of a chain such as MaxRetryError(NewConnectionError(ConnectionRefusedError))."""
    while True:
        inner = getattr(error, "reason", None) or getattr(error, "__cause__", None)
        if not isinstance(inner, Exception):
            arguments = getattr(error, "args", ())
            inner = next((a for a in arguments if isinstance(a, Exception)), None)
        if inner is None or inner is error:
            break
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.rpartition(": ")[2] if "Connection" in type(error).__name__ else text
