"""Who may use the server: clients that send a token whose SHA-256 it was started with; without any, everybody.

Only hashes are given to the server. Who reads its command line or the job that starts it can't use them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection

from aiohttp import web


def parse_sha256(text: str) -> str:
    """``text`` as the hash of a token; raises ValueError for anything but 64 hexadecimal digits.

    Its words leave out ``text``, which may be a token that was given by mistake.
    """
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text, re.ASCII):
        raise ValueError("64 hexadecimal digits are expected: printf %s TOKEN | sha256sum")
    return text.lower()


class Access:
    """Lets in who sends ``Authorization: Bearer TOKEN``, once, with one of the tokens whose hashes these are."""

    def __init__(self, hashes: Collection[str] = ()) -> None:
        self._hashes = [known.encode() for known in hashes]

    def allows(self, request: web.Request) -> bool:
        """Whether the request comes from somebody who may use the server."""
        if not self._hashes:
            return True
        given = request.headers.getall("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            return False
        digest = hashlib.sha256(token.strip(" ").encode("utf-8", "surrogateescape")).hexdigest().encode()
        # All of them, each in constant time.
        return sum(hmac.compare_digest(digest, known) for known in self._hashes) > 0
