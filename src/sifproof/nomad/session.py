"""The HTTP session of the client: it follows no redirect, and reads no more of an answer than one can be."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""The lists of a cluster with ten thousand allocations are smaller."""

_CHUNK = 1 << 16


class TooLargeError(requests.RequestException):
    """An answer does not end where the largest would."""


class ServerName(HTTPAdapter):
    """Verifies the certificate against a name of its own: ``NOMAD_TLS_SERVER_NAME``."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102 - that of requests
        super().init_poolmanager(*args, server_hostname=self._name, assert_hostname=self._name, **kwargs)


class Session(requests.Session):
    """A session whose every answer is bounded and its own: a redirect would carry the token elsewhere."""

    def request(self, *args: Any, **settings: Any) -> requests.Response:
        """As that of ``requests``; raises :class:`TooLargeError` where the answer is."""
        answer = super().request(*args, **{**settings, "allow_redirects": False, "stream": True})
        body = bytearray()
        try:
            for chunk in answer.iter_content(_CHUNK):
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise TooLargeError(f"it has more than {MAX_ANSWER_BYTES} bytes")
        finally:
            answer.close()
        answer._content = bytes(body)  # where requests itself puts what it read
        return answer
