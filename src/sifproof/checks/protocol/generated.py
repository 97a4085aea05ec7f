"""Requests made by schemathesis from the protocol's description, such that they harm no server, whoever wrote it.

What is made is narrowed twice. The description is, before anything is made of it: slots, tools, commands and paths are
a few known words. And each body is, after it was made: requests that break the description are made of words that
were not asked for, and none of these may be what a shell runs, a slot or a path.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import yaml

if TYPE_CHECKING:
    from schemathesis import APIOperation

DESCRIPTION = Path(__file__).with_name("protocol.yaml")

_SEED = 20
"""The same requests in each run: what failed once can be looked at again."""


@dataclass(frozen=True)
class Request:
    """One request: ``body`` is what is sent, None for none; ``known`` says whether it has to be answered with 200."""

    method: str
    path: str
    body: bytes | None
    known: bool
    operation: APIOperation[Any, Any, Any, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {(self.body or b'')[:200].decode('utf-8', 'replace')}".rstrip()

    def mismatch(self, status: int, answer: bytes) -> str:
        """In what way an answer is not as described; empty where it is."""
        from schemathesis import Response  # noqa: PLC0415 (see make_requests)

        sent = requests.Request(self.method, f"http://server{self.path}").prepare()
        headers = {"content-type": ["application/json"]}
        try:
            self.operation.validate_response(Response(status, headers, answer, sent, elapsed=0.0, verify=False))
        except AssertionError as failure:
            return " ".join(str(failure).split())[:300]
        except BaseExceptionGroup as failures:
            return "; ".join(" ".join(str(failure).split())[:300] for failure in failures.exceptions)
        return ""


_ALONE = threading.Lock()
"""Hypothesis has one folder and one state for the whole process."""


def make_requests(
    *, valid: bool, count: int, words: Mapping[str, Sequence[str]], known: Mapping[str, Sequence[Any]]
) -> list[Request]:
    """``count`` requests, or a few less, for each call of the protocol, those with a body last.

    ``words`` are the allowed values of the schemas ``SlotId``, ``Tool``, ``Command`` and ``Path``; the last of each
    stands in for any other. ``known`` are bodies by path that are sent too: of what is made at random hardly a call
    succeeds. Writes no file that outlives the call.
    """
    # Slow to import, and only needed here: every rule of a run imports the checks.
    import hypothesis  # noqa: PLC0415
    import schemathesis  # noqa: PLC0415
    from hypothesis.configuration import set_hypothesis_home_dir  # noqa: PLC0415

    description = yaml.safe_load(DESCRIPTION.read_text(encoding="utf-8"))
    schemas = description["components"]["schemas"]
    schemas |= {name: {"type": "string", "enum": list(allowed)} for name, allowed in words.items()}
    schemas["Timeout"] = {"type": "number", "minimum": 1, "maximum": 30}
    for asked in (schemas["Call"], schemas["Call"]["properties"]["args"], *_asked(description["paths"])):
        # The protocol does not say what becomes of keys that it does not know: a server may refuse them.
        asked["additionalProperties"] = False
    mode = schemathesis.GenerationMode.POSITIVE if valid else schemathesis.GenerationMode.NEGATIVE
    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    schema: Any = schemathesis.openapi.from_dict(description)
    made: list[Request] = []
    with _ALONE, tempfile.TemporaryDirectory(prefix="sifproof-") as folder:
        set_hypothesis_home_dir(folder)
        try:
            for operation in (found.ok() for found in schema.get_all_operations()):
                if not (operation.body or valid):
                    continue
                bodies: list[bytes | None] = []
                collect: Any = _collector(bodies, words, has_body=bool(operation.body))
                strategy = operation.as_strategy(generation_mode=mode)
                hypothesis.seed(_SEED)(settings(hypothesis.given(case=strategy)(collect)))()
                method, path = operation.method.upper(), operation.path
                # The description does not say which tool needs which arguments, nor which paths there are.
                certain = valid and not path.startswith(("/execute", "/batch", "/artifacts"))
                made += [Request(method, path, body, certain, operation) for body in dict.fromkeys(bodies)]
                sure = [json.dumps(body).encode() for body in known.get(path, ())]
                made += [Request(method, path, body, True, operation) for body in sure]
        finally:
            set_hypothesis_home_dir(None)
    return made


def _collector(
    bodies: list[bytes | None], words: Mapping[str, Sequence[str]], *, has_body: bool
) -> Callable[[Any], None]:
    """A test for hypothesis that never fails: it takes down what it is given."""

    def collect(case: Any) -> None:
        bodies.append(_body(case.body, words) if has_body else None)

    return collect


def _asked(paths: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas of the objects that the bodies of requests are, where they stand in their call."""
    for path in paths.values():
        for call in path.values():
            schema = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if "properties" in schema:
                yield schema


def _body(body: object, words: Mapping[str, Sequence[str]]) -> bytes:
    if isinstance(body, bytes):
        return body
    if body is None or isinstance(body, bool | int | float | str | list | dict):
        return json.dumps(_harmless(body, words)).encode()
    return b""  # schemathesis' word for no body


_SCHEMA_OF = {"slot_id": "SlotId", "tool": "Tool", "command": "Command", "path": "Path"}
_FREE = {"content", "execution_id", "encoding", "format"}


def _harmless(value: Any, words: Mapping[str, Sequence[str]], key: str = "") -> Any:
    """``value`` with each text that a server could take for a command, a slot or a path replaced by an allowed one."""
    if isinstance(value, dict):
        return {name: _harmless(item, words, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_harmless(item, words, key) for item in value]
    if not isinstance(value, str) or key in _FREE:
        return value
    allowed = words[_SCHEMA_OF.get(key, "Command")]
    return value if value in allowed else allowed[-1]
