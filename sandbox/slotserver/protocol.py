"""What goes over the wire: typed fields of a request, the result of a tool, and the limits of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_BODY_BYTES = 32 * 2**20
MAX_FILE_BYTES = 100_000
MAX_OUTPUT_CHARACTERS = 50_000
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 24 * 3600.0

_REQUIRED: Any = object()


class BadFieldError(ValueError):
    """A field of a request is missing or of a wrong type; the text names it and says what is allowed."""


class ToolError(Exception):
    """A tool could not do what it was asked; the text is the ``error`` of its result."""

    def __init__(self, message: str, **metadata: Any) -> None:
        super().__init__(message)
        self.metadata = metadata


@dataclass
class Result:
    """The answer to one tool call. A tool that fails is an answer too, and goes out with HTTP status 200.

    ``stdout`` and ``stderr`` are what a command printed, with its white space: ``output`` is stripped, which takes the
    indent off the first line of a program. Of other tools there are none.
    """

    success: bool
    output: str = ""
    error: str = ""
    execution_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    stdout: str | None = None
    stderr: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The result as the protocol has it."""
        answer = asdict(self)
        if self.stdout is None:
            del answer["stdout"], answer["stderr"]
        return answer


class Fields:
    """The fields of a JSON object, read by the type they must have. ``null`` counts as absent."""

    def __init__(self, values: object, *, of: str = "The body") -> None:
        if not isinstance(values, Mapping):
            raise BadFieldError(f"{of} must be a JSON object, not {_kind(values)}")
        self._values = values
        self._prefix = "" if of == "The body" else f"{of}: "

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """A string that UTF-8 can hold (JSON can spell lone surrogates, which nothing after it can take)."""
        value = self._get(name, default, str, "a string")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadFieldError(f"{self._prefix}{name!r} holds a lone surrogate") from None
        return value

    def flag(self, name: str, default: bool) -> bool:
        """``true`` or ``false``."""
        return bool(self._get(name, default, bool, "true or false"))

    def count(self, name: str, default: int, *, most: int) -> int:
        """A whole number from 0; one above ``most`` counts as ``most``."""
        value: int = self._get(name, default, int, "a whole number")
        if value < 0:
            raise BadFieldError(f"{self._prefix}{name!r} must not be negative")
        return min(value, most)

    def seconds(self, name: str, default: float, *, most: float) -> float:
        """A number above 0 and up to ``most``, as the client gave it."""
        value: float = self._get(name, default, (int, float), "a number of seconds")
        if not math.isfinite(value) or not 0 < value <= most:
            raise BadFieldError(f"{self._prefix}{name!r} must be above 0 and at most {most:g} seconds")
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of ``allowed``."""
        value: str = self.text(name, default)
        if value not in allowed:
            raise BadFieldError(f"{self._prefix}{name!r} must be one of {', '.join(allowed)}")
        return value

    def fields(self, name: str) -> Fields:
        """An object within the object; empty where it is absent."""
        return Fields(self._get(name, {}, Mapping, "an object"), of=f"{self._prefix}{name!r}")

    def _get(self, name: str, default: Any, kind: Any, said: str) -> Any:
        value = self._values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise BadFieldError(f"{self._prefix}{name!r} is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise BadFieldError(f"{self._prefix}{name!r} must be {said}, not {_kind(value)}")
        return value


@dataclass(frozen=True)
class Call:
    """One tool call, as ``/execute`` takes it."""

    slot_id: str
    tool: str
    args: Fields
    execution_id: str | None
    timeout_s: float

    @classmethod
    def of(cls, values: object, *, said: str = "The body") -> Call:
        """The call in a JSON object; raises BadFieldError."""
        fields = Fields(values, of=said)
        return cls(
            slot_id=fields.text("slot_id"),
            tool=fields.text("tool"),
            args=fields.fields("args"),
            execution_id=fields.text("execution_id", None),
            timeout_s=fields.seconds("timeout", DEFAULT_TIMEOUT_S, most=MAX_TIMEOUT_S),
        )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
