"""Where an image comes from: parsing what the config names, and proving that it is there."""

from __future__ import annotations

import difflib
import platform
import re
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sifproof.errors import Fault, SifproofError
from sifproof.image import platforms, sif

ALLOWED = (
    "docker-daemon:NAME[:TAG], docker-archive:PATH[:REFERENCE], oci:PATH[:REFERENCE], oci-archive:PATH[:REFERENCE], "
    "docker://[HOST/]NAME[:TAG|@DIGEST], or the path of a .sif"
)

# The grammar of image references, as registries and engines accept it.
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_DIGEST = r"sha256:[0-9a-f]{64}"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@(?P<digest>{_DIGEST}))?"
)


class Kind(StrEnum):
    """The kinds of sources; the value is the word before the colon."""

    DOCKER_DAEMON = "docker-daemon"
    DOCKER_ARCHIVE = "docker-archive"
    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    REGISTRY = "docker"
    SIF = "sif"


class Source(BaseModel):
    """One image source. ``str(source)`` is how it is named to people and tools."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    location: str = Field(description="path of a file or directory; name of an image in an engine or a registry")
    reference: str = Field(default="", description="which image of an archive or layout; empty where it holds one")

    @property
    def path(self) -> Path:
        """The file or directory of a source that is one."""
        return Path(self.location).expanduser()

    @property
    def is_file(self) -> bool:
        """Whether the source is a path rather than a name."""
        return self.kind not in (Kind.DOCKER_DAEMON, Kind.REGISTRY)

    def __str__(self) -> str:
        if self.kind is Kind.SIF:
            return self.location
        if self.kind is Kind.REGISTRY:
            return f"docker://{self.location}"
        return f"{self.kind}:{self.location}" + (f":{self.reference}" if self.reference else "")


def parse(text: str) -> Source:
    """Read ``text``, an image as the config names it. Looks at nothing but the text.

    Raises:
        SifproofError: (configuration) the text is none of the forms in :data:`ALLOWED`.
    """
    text = text.strip()
    prefix, colon, rest = text.partition(":")
    if colon and prefix == Kind.REGISTRY and rest.startswith("//"):
        if re.match(r"[^/]*@[^/]*/", rest[2:]):
            raise _unreadable(text, "credentials do not belong into an image's name; `skopeo login HOST` keeps them")
        return Source(kind=Kind.REGISTRY, location=_full_reference(text, rest[2:]))
    if colon and prefix == Kind.DOCKER_DAEMON:
        return Source(kind=Kind.DOCKER_DAEMON, location=_full_reference(text, rest))
    if colon and prefix in (Kind.DOCKER_ARCHIVE, Kind.OCI, Kind.OCI_ARCHIVE):
        path, _, reference = rest.partition(":")
        if not path:
            raise _unreadable(text, "the path is missing")
        return Source(kind=Kind(prefix), location=path, reference=reference)
    if not text:
        raise _unreadable(text, "it is empty")
    if "://" in text or (colon and "/" not in prefix and not text.endswith(".sif")):
        raise _unreadable(text, f'"{prefix}:" is no kind of source')
    return Source(kind=Kind.SIF, location=text)


def verify(source: Source, architecture: str = "") -> None:
    """Prove that ``source`` exists and is what it says, for ``architecture`` (GOARCH name; this machine's by default).

    What is wrong with the image itself is left to whoever converts or loads it: a run tells that in its verdict.

    Raises:
        SifproofError: (configuration) it doesn't or isn't; (infrastructure) a registry does not answer.
    """
    require_file(source)
    if source.kind is Kind.SIF:
        require_platform(source, sif.read_header(source.path).architecture, wanted=architecture)
    else:
        from sifproof.image.digest import digest  # noqa: PLC0415 (digests are of sources: it imports this module)

        try:
            found = digest(source)
        except SifproofError as error:
            if error.fault is Fault.IMAGE:
                return
            raise
        require_platform(source, found.architecture, found.os, wanted=architecture)


def require_file(source: Source) -> None:
    """Prove that there is a file or a directory where ``source`` names one.

    Raises:
        SifproofError: (configuration) there is none, or a SIF is a directory.
    """
    if source.is_file and not source.path.exists():
        raise _missing(source)
    if source.kind is Kind.SIF and not source.path.is_file():
        raise SifproofError(
            f"{source} is a directory, not a SIF", todo=f"allowed are {ALLOWED}", fault=Fault.CONFIGURATION
        )


def require_platform(source: Source, architecture: str, system: str = "", *, wanted: str = "") -> None:
    """Refuse an image that is for another system, or for another processor than ``wanted`` (this machine's by default).

    What it does not say speaks against nothing.

    Raises:
        SifproofError: (configuration) it is.
    """
    here = f"{platforms.SYSTEM}/{wanted or host_architecture()}"
    made_for = f"{system or platforms.SYSTEM}/{architecture or wanted or host_architecture()}"
    if made_for != here:
        raise SifproofError(
            f"The image {source} can't run here",
            why=f"it is made for {made_for}, and this machine is {here}",
            todo=f"name an image that is made for {here}",
            fault=Fault.CONFIGURATION,
        )


def host_architecture() -> str:
    """This machine's processor as images name it (GOARCH), such as amd64."""
    machine = platform.machine()
    if re.match(r"armv[5-8]", machine):
        return "arm"
    return {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "loongarch64": "loong64"}.get(machine, machine)


def _full_reference(text: str, reference: str) -> str:
    """``reference`` with the tag that is meant where none is given."""
    if re.fullmatch(_DIGEST, reference) and text.startswith(Kind.DOCKER_DAEMON):
        return reference
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise _unreadable(text, "what follows the colon is no name of an image (lower case, NAME[:TAG])")
    return reference if match["tag"] or match["digest"] else f"{reference}:latest"


def _unreadable(text: str, why: str) -> SifproofError:
    # Whatever stands before an @ may be a password.
    shown = re.sub(rf"//.*@(?!{_DIGEST}$)", "//…@", text)
    todo = f"allowed are {ALLOWED}"
    if _REFERENCE.fullmatch(text):
        todo = f"if an image of that name is meant, write docker-daemon:{text} or docker://{text}; {todo}"
    return SifproofError(f'Cannot read the image "{shown}"', why=why, todo=todo, fault=Fault.CONFIGURATION)


def _missing(source: Source) -> SifproofError:
    path = source.path
    named = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, named, n=3)
    todo = f"similar names there: {', '.join(similar)}; allowed" if similar else "allowed"
    why = "there is no such file or directory"
    if source.kind is Kind.SIF and _REFERENCE.fullmatch(source.location) and path.suffix != ".sif":
        todo = f"if an image of that name is meant, write docker-daemon:{source} or docker://{source}; {todo}"
    if source.reference and Path(f"{source.location}:{source.reference}").exists():
        why = "the path ends at the first colon; skopeo and apptainer can't read paths that hold one"
        todo = f"rename the file; {todo}"
    return SifproofError(
        f"The image {source} does not exist", why=why, todo=f"{todo} are {ALLOWED}", fault=Fault.CONFIGURATION
    )
