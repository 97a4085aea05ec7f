"""The address of a Nomad API and the token for it: what can't be one is told before anything is sent."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit

from sifproof.errors import Fault, SifproofError

_LONGEST_HOST = 253


def parse_address(address: str) -> SplitResult:
    """The parts of ``address``; raises :class:`SifproofError`, without its password, where it is none."""
    why = ""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:  # its words quote the address
        why = "its brackets or its port can't be read"
    else:
        if not address.isprintable() or " " in address:
            why = "it has a blank or a character that can't be printed"
        elif parts.scheme not in ("http", "https") or not host:
            why = "a URL such as http://127.0.0.1:4646 or https://nomad.example.org:4646 is expected"
        elif parts.query or parts.fragment:
            why = "what follows `?` or `#` is no part of it"
        elif not _is_name(host):
            why = "its host can't be one"
        else:
            return parts
    raise SifproofError(
        f"{without_password(address)!r} is no address of a Nomad API",
        why=why,
        todo="correct NOMAD_ADDR or nomad.address",
        fault=Fault.CONFIGURATION,
    )


def _is_name(host: str) -> bool:
    try:
        return len(host.encode("idna")) <= _LONGEST_HOST
    except UnicodeError:
        return False


def without_password(address: str) -> str:
    """``address`` without the ``user:password@`` that it may have, with a scheme before it or none, and no query."""
    bare = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", lambda found: found[1] or "", address, flags=re.DOTALL)
    return re.sub(r"[?#].*", "", bare, flags=re.DOTALL)


def passwords(address: str) -> list[str]:
    """The password in ``address``, as it is written and as it is meant."""
    try:
        password = urlsplit(address).password or ""
    except ValueError:
        return []
    return [password, unquote(password)]


def is_loopback(host: str) -> bool:
    """Whether ``host``, an address or a name, is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(token: str) -> None:
    """Raise :class:`SifproofError`, which does not repeat it, where ``token`` can't be sent as one."""
    if re.fullmatch(r"[!-~]*", token):
        return
    at, odd = next((at, char) for at, char in enumerate(token, 1) if not "!" <= char <= "~")
    named = {"\r": "a carriage return", "\n": "a line feed", " ": "a blank", "\t": "a tab"}.get(odd)
    raise SifproofError(
        "NOMAD_TOKEN holds no token",
        why=f"character {at} of {len(token)} is {named or 'none that a token may have'}",
        todo='remove it: export NOMAD_TOKEN="$(printf %s "$NOMAD_TOKEN" | tr -d \'[:space:]\')"'
        if named
        else "copy the token anew",
        fault=Fault.CONFIGURATION,
    )
