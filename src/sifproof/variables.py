"""What a program that sifproof starts gets of the caller's environment: the variables that are named here, no others.

Sites export settings for their users (`module load`), users for themselves: ``APPTAINER_FIXPERMS`` changes the files of
a SIF, ``DOCKER_DEFAULT_PLATFORM`` chooses another image, ``LD_PRELOAD`` may be anything. What a tool makes is kept and
judged, so it must not depend on them. Named are where things lie, how the network is reached, and who is asking.

Three things get more: Snakemake and its stages, which are sifproof itself (``NOMAD_*``, ``SNAKEMAKE_*`` and
``SIFPROOF_*`` are for them); the local Nomad agent, whose list is in :mod:`.nomad.agent.local`; and the command that
a person gives to ``tools/docker_engine.py``.

Standard library only: set-up uses it before any dependency is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# Where things are. What lies on PATH may need the libraries that came with it.
_PLACES = ("PATH", "LD_LIBRARY_PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR")
_PROXIES = tuple(
    name for word in ("http", "https", "ftp", "all", "no") for name in (f"{word}_proxy", f"{word.upper()}_PROXY")
)
_NETWORK = (*_PROXIES, "SSL_CERT_FILE", "SSL_CERT_DIR")
# Whoever may fetch an image: which one it is goes by its digest.
_REGISTRY = (*_NETWORK, "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME")
_ENGINE = (
    *_NETWORK,
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS", "DOCKER_TLS_VERIFY"),
    "SSH_AUTH_SOCK",  # for DOCKER_HOST=ssh://…
)
# What pip, apt and go fetch goes by digests or signatures; where they fetch it is the site's business.
_PIP = tuple(
    f"PIP_{word}"
    for word in (
        *("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "FIND_LINKS", "NO_INDEX", "CONFIG_FILE", "CACHE_DIR"),
        *("PROXY", "CERT", "CLIENT_CERT", "TIMEOUT", "DEFAULT_TIMEOUT", "RETRIES"),
    )
)
_UV = ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_NATIVE_TLS", "XDG_CACHE_HOME")
_GO = ("GOPROXY", "GOSUMDB", "GOPRIVATE", "GONOPROXY", "GONOSUMDB", "GOINSECURE", "GOENV", "GOVCS")

_MORE: dict[str, tuple[str, ...]] = {
    "skopeo": _REGISTRY,
    "buildah": _REGISTRY,
    "mmdebstrap": _NETWORK,
    "docker": _ENGINE,
    "dockerd": (*_NETWORK, "DOCKER_RAMDISK"),
    "pip": (*_NETWORK, *_PIP, "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
    "uv": (*_NETWORK, *_UV),
    "apt": (*_NETWORK, "APT_CONFIG"),
    "go": (*_NETWORK, *_GO, "NETRC", "XDG_CONFIG_HOME"),
}


def of(program: str = "", caller: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of ``program``, made of the caller's (``os.environ``); its messages are in English."""
    given = os.environ if caller is None else caller
    kept = {name: given[name] for name in (*_PLACES, *_MORE.get(program, ())) if given.get(name)}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}
