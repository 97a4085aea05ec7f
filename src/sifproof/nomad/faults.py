"""Every fault between the gate and Nomad in words, in one place: so no secret is in any of them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies, select_proxy

from sifproof.errors import Fault, SifproofError
from sifproof.nomad.address import passwords, without_password
from sifproof.nomad.session import TooLargeError

_SHORTEST_SECRET = 4
"""Shorter ones are in any text by chance; what stands before an `@` in a URL is cut, however short."""

LISTS = frozenset({"nodes", "jobs"})
"""What Nomad always has, be it empty."""


class NotFoundError(SifproofError):
    """Nomad has no such job, allocation, node or file."""


class RejectedError(SifproofError):
    """Nomad understood the request and refused it: HTTP 400."""


class ForbiddenError(SifproofError):
    """The token does not allow it: HTTP 401 or 403."""


class UnreachableError(SifproofError):
    """Nomad, or the node that it was to ask, did not answer: nothing is known of what was asked for."""


class Telling:
    """Puts errors of one connection into words; ``address`` may have a password, what is told has none.

    ``own`` says that it is that of an agent which the run started itself: no setting leads to it.
    """

    def __init__(
        self, address: str, namespace: str, secrets: Iterable[str], *, proxies: bool, own: bool = False
    ) -> None:
        self._own = own
        self.address = without_password(address.rstrip("/"))
        self._namespace = namespace
        proxy = select_proxy(address, get_environ_proxies(address)) if proxies else None
        self._proxy = without_password(proxy or "")
        known = {*secrets, *passwords(address), *passwords(proxy or "")}
        self._secrets = sorted((s for s in known if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)

    def clean(self, text: str) -> str:
        """``text`` without the secrets of this connection."""
        text = re.sub(r"//[^/\s'\"]*@", "//", text)
        for secret in self._secrets:
            text = text.replace(secret, "(secret)")
        return text

    def told(self, error: Exception, what: str, needs: str) -> SifproofError:
        """``error``, met when ``what`` was asked for, in words; ``needs`` are the capabilities that it takes."""
        cause = getattr(error, "nomad_resp", error)
        if isinstance(cause, requests.Response):
            return self._refused(cause, what, needs)
        words = self.clean(_innermost(cause))
        if isinstance(cause, requests.exceptions.SSLError) or re.search(r"\bALERT_|_ALERT_", words):
            return self._untrusted(words)
        if isinstance(cause, (requests.exceptions.ConnectionError, requests.exceptions.Timeout)):
            return self._unanswered(cause, words, what)
        if isinstance(cause, TooLargeError):
            return self._foreign(f"to the question for {what} {words}")
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            # requests checks the certificate files itself
            return SifproofError(words, todo="check NOMAD_CACERT, NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY")
        return SifproofError(
            f"The talk with Nomad at {self.address} failed ({what})", why=words, todo=self._check_address()
        )

    def _unanswered(self, cause: Exception, words: str, what: str) -> SifproofError:
        if isinstance(cause, requests.exceptions.ProxyError):
            return UnreachableError(
                f"The proxy {self._proxy or 'of this machine'} leads to no Nomad at {self.address}",
                why=words,
                todo=self._without_proxy(),
            )
        if self._own:
            return UnreachableError(
                f"The Nomad agent that the run started does not answer at {self.address}",
                why=words,
                todo="read nomad-agent.log in the run's folder: it tells whether the agent ended, and why",
            )
        if isinstance(cause, requests.exceptions.ConnectionError):
            return UnreachableError(
                f"Nomad can't be reached at {self.address}",
                why=words,
                todo="check NOMAD_ADDR (or nomad.address) and that the agent runs; "
                "without an address, a run starts an agent of its own",
            )
        return UnreachableError(
            f"Nomad at {self.address} did not answer ({what})", todo="look at the load and the log of its servers"
        )

    def no_answer_of_nomads(self, answer: requests.Response, what: str) -> SifproofError:
        """That ``answer``, which came as a success, is none that Nomad gives when ``what`` is asked for."""
        return self._foreign(f"to the question for {what} it says {self._quoted(answer)}")

    # -- what comes as an answer -----------------------------------------------------------------------------------

    def _refused(self, answer: requests.Response, what: str, needs: str) -> SifproofError:
        status = answer.status_code
        text = self.clean(" ".join(_beginning(answer).split())[:500])
        if status == 400 and "HTTPS server" in text:
            return SifproofError(
                f"Nomad at {self.address} speaks TLS only",
                todo="write https:// in NOMAD_ADDR",
                fault=Fault.CONFIGURATION,
            )
        if _is_foreign(answer) or (status == 404 and what in LISTS):
            return self._foreign(f"to the question for {what} it says {self._quoted(answer)}")
        # Nomad 1.11 answers 500 to a job that its own validation refuses, with a list of what is wrong.
        if status == 400 or (status == 500 and re.match(r"\d+ errors? occurred:", text)):
            return RejectedError(f"Nomad rejected {what}", why=text, fault=Fault.CONFIGURATION)
        if status in (401, 403):
            return ForbiddenError(
                f"Nomad at {self.address} does not permit it ({what})",
                why=text,
                todo=f"set NOMAD_TOKEN to a token whose policy has {needs} in namespace {self._namespace!r} "
                'and node { policy = "read" }',
            )
        return self._without(status, text, what)

    def _without(self, status: int, text: str, what: str) -> SifproofError:
        """That what was asked for is not there, or could not be looked for."""
        if _NO_WAY_TO_NODE.search(text):
            return UnreachableError(
                f"Nomad at {self.address} can't reach the node ({what})",
                why=text,
                todo="look at the node, at its network, and at the log of its Nomad client",
            )
        if status == 404 or (status == 500 and ("no such file" in text or "not found" in text)):
            return NotFoundError(f"Nomad at {self.address} has no {what}", why=text)
        if "no cluster leader" in text.lower():
            return UnreachableError(
                f"The Nomad cluster at {self.address} has no leader", todo="wait for its servers to elect one"
            )
        kind = UnreachableError if status in (429, 502, 503, 504) else SifproofError
        return kind(f"Nomad at {self.address} failed ({what})", why=f"HTTP {status}, {text}")

    def _quoted(self, answer: requests.Response) -> str:
        """What ``answer`` is like, in a few words."""
        if answer.is_redirect:
            target = urlsplit(answer.headers.get("Location", ""))
            return f"HTTP {answer.status_code}, go to {self.clean(without_password(target.geturl())) or 'nowhere'}"
        text = _beginning(answer)
        if _is_page(answer):
            text = html.unescape(re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL))
        kind = answer.headers.get("Content-Type", "").partition(";")[0] or "no type"
        return f"HTTP {answer.status_code}, {kind}, {self.clean(' '.join(text.split()))[:120]!r}"

    def _foreign(self, why: str) -> SifproofError:
        return UnreachableError(
            f"What answers at {self.address} does not answer as Nomad does", why=why, todo=self._check_address()
        )

    def _check_address(self) -> str:
        parts = urlsplit(self.address)
        if parts.path.strip("/"):
            return (
                f"NOMAD_ADDR is the address of the API alone: try {parts.scheme}://{parts.netloc}, without {parts.path}"
            )
        if self._proxy:
            return self._without_proxy()
        return (
            f"check NOMAD_ADDR: `curl {self.address}/v1/status/leader` shows an address in quotes where Nomad answers"
        )

    def _without_proxy(self) -> str:
        host = urlsplit(self.address).hostname
        proxy = self._proxy or "a proxy"
        return f"{proxy} stands between; where Nomad is reached without it: export NO_PROXY={host}"

    # -- certificates ----------------------------------------------------------------------------------------------

    def _untrusted(self, words: str) -> SifproofError:
        for pattern, what, todo, fault in _TLS:
            if re.search(pattern, words, re.IGNORECASE):
                return SifproofError(what.format(self.address), why=words, todo=todo, fault=fault)
        return SifproofError(f"Nomad at {self.address} can't be trusted", why=words, todo=_AUTHORITY)


_AUTHORITY = "set NOMAD_CACERT to the certificate of the authority that signed the server's"
_OURS = (
    "set NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY to a certificate that the cluster's authority signed, and to its key"
)
_SHOW = '`openssl x509 -noout -dates -issuer -in "$NOMAD_CLIENT_CERT"` shows when it ends and who signed it'

# What TLS says, by pattern: what it means, what to do, who has to. An alert is the server's word on our certificate.
_TLS: tuple[tuple[str, str, str, Fault], ...] = (
    (
        "ALERT_CERTIFICATE_EXPIRED",
        "Nomad at {} says that the client's certificate has expired",
        f"have a new one signed, and set NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY to it; {_SHOW}",
        Fault.CONFIGURATION,
    ),
    ("CERTIFICATE_REQUIRED", "Nomad at {} asks for a client's certificate", _OURS, Fault.CONFIGURATION),
    (
        "ALERT_(UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_UNKNOWN|CERTIFICATE_REVOKED|UNSUPPORTED_CERTIFICATE|"
        "ACCESS_DENIED|HANDSHAKE_FAILURE|DECRYPT_ERROR)",
        "Nomad at {} does not take the client's certificate",
        f"{_OURS}; {_SHOW}",
        Fault.CONFIGURATION,
    ),
    (
        "KEY_VALUES_MISMATCH",
        "NOMAD_CLIENT_KEY is not the key of NOMAD_CLIENT_CERT",
        "set both to the files of one certificate",
        Fault.CONFIGURATION,
    ),
    (
        "NO_CERTIFICATE_OR_CRL_FOUND",
        "NOMAD_CACERT names a file that holds no certificate",
        f"{_AUTHORITY}, as PEM",
        Fault.CONFIGURATION,
    ),
    (
        "PEM lib|NO_START_LINE|BAD_BASE64|BAD_END_LINE",
        "NOMAD_CLIENT_CERT or NOMAD_CLIENT_KEY names a file that holds none",
        f"{_OURS}, as PEM",
        Fault.CONFIGURATION,
    ),
    (
        "certificate has expired|not yet valid",
        "The certificate of Nomad at {} is not valid now",
        "have it renewed, or mend the clock of this machine (`date`)",
        Fault.INFRASTRUCTURE,
    ),
    (
        "doesn't match|mismatch|not valid for",
        "The certificate of Nomad at {} is for another name",
        "use one of its names in NOMAD_ADDR, or set NOMAD_TLS_SERVER_NAME to it (server.REGION.nomad)",
        Fault.CONFIGURATION,
    ),
    (
        "WRONG_VERSION_NUMBER|record layer failure|UNKNOWN_PROTOCOL|HTTP_REQUEST",
        "What listens at {} speaks no TLS",
        "write http:// in NOMAD_ADDR where that is Nomad, and set NOMAD_CACERT where TLS is to be spoken elsewhere",
        Fault.CONFIGURATION,
    ),
)

_NO_WAY_TO_NODE = re.compile(
    r"no path to (node|region)|unable to find path|stream closed|session shutdown|rpc error: (EOF|.*i/o timeout)|"
    r"(dial|read) tcp .*(refused|timeout|no route|unreachable)|keepalive timeout",
    re.IGNORECASE,
)

_NOMADS_REFUSALS = re.compile(r"permission|\bacl\b|token|policy|uuid|namespace|sentinel", re.IGNORECASE)


def _is_page(answer: requests.Response) -> bool:
    """Whether it is for people: Nomad's API answers JSON, or a line of text."""
    return "html" in answer.headers.get("Content-Type", "") or answer.content.lstrip()[:1] == b"<"


def _is_foreign(answer: requests.Response) -> bool:
    """Whether an answer that is no success can't be Nomad's own."""
    if answer.is_redirect or _is_page(answer) or answer.status_code == 407:
        return True
    return answer.status_code in (401, 403) and not _NOMADS_REFUSALS.search(_beginning(answer))


def _beginning(answer: requests.Response) -> str:
    return answer.content[:2000].decode("utf-8", "replace")


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


FAULTS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)
"""What the libraries below raise where the talk fails."""
