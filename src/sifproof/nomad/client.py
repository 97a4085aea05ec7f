"""The way to Nomad: python-nomad's endpoints, with blocking queries and with errors in words.

python-nomad's own front door, ``nomad.Nomad``, lets ``NOMAD_ADDR`` win over an address that it is given, doesn't
verify certificates by default, and forgets the namespace of evaluations. So its endpoint classes are made here, from
settings that are all explicit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import requests
from nomad import api
from nomad.api.exceptions import BaseNomadException

from sifproof.errors import Fault, SifproofError
from sifproof.nomad.address import check_token, is_loopback, parse_address
from sifproof.nomad.faults import FAULTS, ForbiddenError, NotFoundError, RejectedError, Telling, UnreachableError
from sifproof.nomad.job import validate_id
from sifproof.nomad.session import ServerName, Session

__all__ = ["BLOCK_S", "Client", "ForbiddenError", "NotFoundError", "RejectedError", "UnreachableError", "connect"]

BLOCK_S = 5.0
"""Seconds one blocking query waits. Short, because a change can slip past one that has just begun."""

_TIMEOUT_S = 20.0
_RESTART_S = 60.0
"""A restart is answered when the task has ended: at its kill_timeout at the latest."""

_JITTER = 1 / 16

_LISTS = frozenset({"nodes", "jobs", "allocations", "evaluations"})
"""Ends of paths whose answer is a list; that of others is an object."""

FILE_BYTES = 2**20
"""Most of a file of an allocation that is read, unless a caller says otherwise: a task may write what it likes."""


class UnreadableFileError(SifproofError):
    """A file of an allocation is too long, or no ordinary file."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why=why, todo="look at what the server writes there", fault=Fault.IMAGE)


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
        own: bool = False,
    ) -> None:
        parts = parse_address(address)
        check_token(token or "")
        self.namespace = namespace or "default"
        self.region = region
        session = Session()
        # As Nomad's own command line does: a proxy is for the world outside, not for this machine.
        session.trust_env = not is_loopback(parts.hostname or "")
        if server_name:
            session.mount("https://", ServerName(server_name))
        self._telling = Telling(address, self.namespace, [token or ""], proxies=session.trust_env, own=own)
        self.address = self._telling.address
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
        return self._get(path, dict(params or {}), _TIMEOUT_S)[0]

    def wait_for_change(self, *path: str, index: int = 0, wait_s: float = BLOCK_S) -> tuple[Any, int]:
        """The answer to ``GET /v1/<path>`` and its index, once the index is beyond ``index`` or ``wait_s`` are over.

        A return promises no change: read the answer. Index 0 returns at once.
        """
        wait_s = max(wait_s, 0.001)
        # Nomad adds up to a sixteenth of the wait.
        answer, headers = self._get(
            path, {"index": index, "wait": f"{int(wait_s * 1000)}ms"}, _TIMEOUT_S + wait_s * (1 + _JITTER)
        )
        return answer, int(headers["X-Nomad-Index"])

    def _get(self, path: tuple[str, ...], params: dict[str, Any], timeout: float) -> tuple[Any, Mapping[str, str]]:
        """The JSON answer and its headers; raises :class:`UnreachableError` where it is none of Nomad's."""
        head, *rest = path
        for part in rest:
            validate_id(part)
        what = "/".join(path)
        with self._in_words(what):
            answer = cast(
                requests.Response,
                self._endpoints[head].request(
                    *rest, method="get", params={"namespace": self.namespace, **params}, timeout=timeout
                ),
            )
        read = self._read(answer, what, list if path[-1] in _LISTS else dict)
        if "index" in params and not answer.headers.get("X-Nomad-Index", "").isdigit():
            raise self._telling.no_answer_of_nomads(answer, what)
        return read, answer.headers

    def _read(self, answer: requests.Response, what: str, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
        """The JSON in ``answer``, of ``kind``; raises :class:`UnreachableError` where Nomad would not say that."""
        try:
            read = answer.json() if answer.status_code == 200 else None
        except (ValueError, RecursionError):
            read = None
        whole = isinstance(read, kind)
        if isinstance(read, list):
            whole = whole and all(isinstance(item, dict) and "ID" in item for item in read)
        if not whole:
            raise self._telling.no_answer_of_nomads(answer, what)
        return read

    def version(self) -> str:
        """The version of the cluster, as ``1.11.2``: the oldest of its ready nodes; empty where it has none.

        The agent at the address would tell its own too, but only to a token with ``agent { policy = "read" }``.
        """
        versions = [str(node["Version"]) for node in self.get("nodes") if node["Status"] == "ready"]
        return min(versions, key=lambda version: [int(n) for n in re.findall(r"\d+", version)], default="")

    def file(self, allocation: str, path: str, most: int = FILE_BYTES) -> bytes:
        """The content of ``path`` in the directory of ``allocation``, such as ``/alloc/data/slot_0/x``.

        Read through Nomad, from the node. Raises :class:`NotFoundError` where there is no such file, and
        :class:`UnreadableFileError` where it is no ordinary file, or longer than ``most`` bytes: a task makes it as it
        likes.
        """
        validate_id(allocation, "allocation id")
        what = f"file {path} of allocation {allocation}"
        try:
            return self._file(allocation, path, what, most)
        except UnreachableError:
            # Nomad opens what it is asked about, and a FIFO keeps it for ever.
            mode = self._listed(allocation, path)
            if mode.startswith(("-", "L")) or not mode:
                raise
        raise UnreadableFileError(f"The {what} is no ordinary file", mode)

    def _listed(self, allocation: str, path: str) -> str:
        """The mode of ``path`` in the list of its directory; empty where that can't be had."""
        folder, _, name = path.rpartition("/")
        try:
            with self._in_words(f"folder {folder} of allocation {allocation}"):
                params = self._file_params(path=folder or "/")
                entries = self._files.ls.request(allocation, params=params, method="get").json()
            return next((str(entry["FileMode"]) for entry in entries if entry["Name"] == name), "")
        except (SifproofError, LookupError, TypeError, ValueError):
            return ""

    def _file(self, allocation: str, path: str, what: str, most: int) -> bytes:
        with self._in_words(what):
            # For a missing file Nomad 1.11.2 answers 200 to a read, with the error as its text; to `stat` 404.
            answer = self._files.stat.request(allocation, params=self._file_params(path=path), method="get")
            found = self._read(answer, what, dict)
            size, mode = int(found.get("Size") or 0), str(found.get("FileMode"))
            if not mode.startswith("-"):
                raise UnreadableFileError(f"The {what} is no ordinary file", mode)
            if size <= most:
                # It may have grown meanwhile.
                params = self._file_params(path=path, offset=0, limit=most + 1)
                content = bytes(self._files.read_at.request(allocation, params=params, method="get").content)
                if len(content) <= most:
                    return content
        raise UnreadableFileError(f"The {what} is not read", f"{max(size, most + 1)} bytes, {most} at most")

    def checks(self, allocation: str) -> dict[str, tuple[str, str]]:
        """What Nomad's own checks of the services of ``allocation`` said last: status and output of each, by its name.

        A status is ``success``, ``failure`` or ``pending``.
        """
        validate_id(allocation, "allocation id")
        what = f"checks of allocation {allocation}"
        with self._in_words(what):
            answer = self._files.allocation.request(
                allocation, "checks", params={"namespace": self.namespace}, method="get"
            )
        found = self._read(answer, what, dict).values()
        return {one["Check"]: (one["Status"], one.get("Output") or "") for one in found}

    def reach(self, node_id: str, *, within_s: float) -> None:
        """Return once the agent of the node has answered, whatever it says.

        Raises :class:`UnreachableError` where Nomad can't reach it, or hears nothing of it ``within_s`` seconds.
        """
        validate_id(node_id, "node id")
        try:
            with self._in_words(f"node {node_id}"):
                self._files.stats.request(params={"node_id": node_id}, method="get", timeout=within_s)
        except (NotFoundError, ForbiddenError):
            return

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
        return cast(bytes, answer.content)[-tail:].decode("utf-8", "replace")

    def _file_params(self, **params: Any) -> dict[str, Any]:
        return {"namespace": self.namespace, **params}

    # -- writing ---------------------------------------------------------------------------------------------------

    def register(self, job: Mapping[str, Any]) -> str:
        """Submit ``job`` (``{"Job": {…}}``); the id of the evaluation that will place it."""
        job_id = validate_id(job["Job"]["ID"], "job id")
        what = f"job {job_id}"
        with self._in_words(what, needs="submit-job"):
            answer = self._endpoints["job"].request(job_id, json=dict(job), method="post")
        return str(self._read(answer, what, dict).get("EvalID", ""))

    def parse_job(self, text: str, variables: Mapping[str, str]) -> dict[str, Any]:
        """The job that the HCL in ``text`` describes, as Nomad parses it; nothing is submitted.

        Raises :class:`RejectedError` for HCL that it does not take, or that asks for another of ``variables``.
        """
        values = "".join(f"{name} = {json.dumps(value).replace('${', '$${')}\n" for name, value in variables.items())
        body = {"JobHCL": text, "Variables": values, "Canonicalize": False}
        with self._in_words("the job in HCL", needs="parse-job or submit-job"):
            answer = self._endpoints["jobs"].request("parse", json=body, method="post")
        return dict(answer.json())

    def deregister(self, job_id: str, *, purge: bool) -> None:
        """Stop ``job_id``, and with ``purge`` make Nomad forget it. A job that doesn't exist is no error."""
        validate_id(job_id, "job id")
        what = f"job {job_id}"
        params = {"namespace": self.namespace, "purge": "true" if purge else "false"}
        try:
            with self._in_words(what, needs="submit-job"):
                answer = self._endpoints["job"].request(job_id, params=params, method="delete")
        except NotFoundError:
            return
        self._read(answer, what, dict)

    def restart(self, allocation: str, task: str) -> None:
        """Have ``task`` of ``allocation`` restarted where it runs; returns when its process has ended.

        Raises :class:`ForbiddenError` to a token without ``alloc-lifecycle``.
        """
        validate_id(allocation, "allocation id")
        what = f"restart of allocation {allocation}"
        with self._in_words(what, needs="alloc-lifecycle"):
            answer = self._files.allocation.request(
                allocation,
                "restart",
                json={"TaskName": task},
                params={"namespace": self.namespace},
                method="post",
                timeout=_RESTART_S,
            )
        self._read(answer, what, dict)

    def forget_node(self, node_id: str) -> None:
        """Make Nomad forget a node whose client has ended; needs ``node { policy = "write" }``."""
        validate_id(node_id, "node id")
        what = f"node {node_id}"
        with self._in_words(what):
            answer = self._endpoints["node"].request(node_id, "purge", method="post")
        self._read(answer, what, dict)

    def bootstrap(self, token: str) -> None:
        """Make ``token``, a UUID, the first management token of a cluster whose access control has none yet.

        Raises :class:`RejectedError` where somebody did so before.
        """
        what = "the first token of its access control"
        with self._in_words(what):
            answer = self._endpoints["acl"].request("bootstrap", json={"BootstrapSecret": token}, method="post")
        self._read(answer, what, dict)

    # -- errors ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _in_words(self, what: str, needs: str = "read-job, list-jobs, read-logs, read-fs") -> Iterator[None]:
        try:
            yield
        except (BaseNomadException, *FAULTS) as error:
            raise self._telling.told(error, what, needs) from None


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
    own: bool = False,
) -> Client:
    """A client of the cluster at ``address``. What is not given is taken from Nomad's own variables.

    These are ``NOMAD_ADDR``, ``NOMAD_TOKEN``, ``NOMAD_NAMESPACE``, ``NOMAD_REGION``, ``NOMAD_CACERT``,
    ``NOMAD_CAPATH``, ``NOMAD_CLIENT_CERT``, ``NOMAD_CLIENT_KEY``, ``NOMAD_TLS_SERVER_NAME`` and ``NOMAD_SKIP_VERIFY``,
    read from ``environment`` (``os.environ``; give ``{}`` for an agent that needs none of them). Nothing is sent yet.
    ``own`` is for an agent that the run started itself: where it does not answer, no setting is to blame.

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
        own=own,
    )
