"""The reference image: ``sandbox/`` built into an OCI layout, on a base of Debian packages or on any base one names.

No image registry is needed: mmdebstrap makes the base from packages, buildah builds the Containerfile on it, and skopeo
lays the layers out uncompressed, which is what converts fastest (see :mod:`sifproof.image.convert`). All three work for
root and for an ordinary user.

What was built is kept and found again by its key: the content of ``sandbox/``, the base, and how it is built.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sifproof.checkout import ROOT
from sifproof.errors import Fault, SifproofError
from sifproof.image import blame, scratch
from sifproof.image.digest import SourceDigest, digest
from sifproof.image.layout import lay_out
from sifproof.image.process import ToolFailure, run
from sifproof.image.scratch import Place
from sifproof.image.source import Kind, Source, parse, verify

CONTEXT = ROOT / "sandbox"
"""The folder of the Containerfile and the server."""

SUITE = "bookworm"
PACKAGES = ("python3-minimal", "python3-aiohttp", "bubblewrap", "bash", "findutils", "ca-certificates")

# Part of every key: to be raised when the same input is to give another image.
_RECIPE = 2
_NOT_INSTALLED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
# usrmerge, which an older system would need to move /bin into /usr, brings all of Perl; here it is moved beforehand.
_MERGE_USR = (
    'for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d" || exit; done;'
    ' mkdir -p "$1/etc/apt/preferences.d" &&'
    r' printf "Package: usrmerge\nPin: release *\nPin-Priority: -1\n" > "$1/etc/apt/preferences.d/no-usrmerge"'
)
# What the Containerfile's RUN steps would add; they can't run everywhere (see _build).
_FINISH = 'rm "$1/etc/apt/preferences.d/no-usrmerge" && mkdir "$1/data" && ln -s python3 "$1/usr/bin/python"'

_TIMEOUT_S = 1800.0
_KEEP_UNUSED_S = 24 * 3600.0
# Base, its copy in buildah's storage, the built image there and in an archive, and the layout.
_ROOM_BYTES = 2 * 2**30
# More than buildah asks for by itself fails where the machine grants less.
_ULIMITS = {"nofile": (resource.RLIMIT_NOFILE, 1_048_576), "nproc": (resource.RLIMIT_NPROC, 32_768)}


class ReferenceImage(BaseModel):
    """The reference image as it was built."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="the image as the config would name it: oci:FOLDER")
    key: str = Field(description="what it was built from, hashed")
    base: str = Field(description="the base as the config names it, or what it was made of")
    base_digest: str = Field(description="of the base, or of the names and versions of its packages")
    seconds: dict[str, float] = Field(description="duration of each step; empty where it was found built")


def build_reference_image(
    folder: Path, *, base: str | None = None, context: Path = CONTEXT, say: Callable[[str], None] = print
) -> ReferenceImage:
    """Build the reference image, or find it built.

    Args:
        folder: where images, the base and the log of the last build are kept; made where it is missing.
        base: image to build on, as buildah names it (a bare name is one in a registry); None: Debian packages.
        context: folder of the Containerfile and what it copies.
        say: gets a line for each step that takes time.

    Raises:
        SifproofError: (configuration) there is no such base, or the image can't be built on it; (infrastructure) a
            tool is missing, packages can't be had, or the machine does not allow what is needed.
    """
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SifproofError(f"Cannot make the directory {folder}", why=str(error.strerror)) from error
    with scratch.lock(folder / "lock") as held:
        scratch.sweep([folder, *(place.path for place in _places(folder))])
        return _Build(folder, base, context, say, held).image()


class _Build:
    """One build on its way."""

    def __init__(self, folder: Path, base: str | None, context: Path, say: Callable[[str], None], held: int) -> None:
        self.folder = folder
        self.context = context
        self.say = say
        self.held = held
        self.log = folder / "build.log"
        self.seconds: dict[str, float] = {}
        self.named = base and _named_base(base)
        self.identity: SourceDigest | None = None

    def image(self) -> ReferenceImage:
        """Find the image by its key, or build it."""
        try:
            return self._image()
        except ToolFailure as failure:
            raise self._error(failure) from failure

    def _image(self) -> ReferenceImage:
        base, base_digest, packages = self._base()
        key = _hash(_RECIPE, base_digest, *_context_files(self.context))
        home = self.folder / f"image-{key}"
        record = home / "reference.json"
        if record.is_file():
            os.utime(home)
            told = json.loads(record.read_text(encoding="utf-8"))
            return ReferenceImage.model_validate({**told, "source": _source(home), "seconds": {}})
        begin = time.monotonic()
        with scratch.directory(self.folder) as (new, _):
            layout = new / "oci"
            with self._work() as work:
                self._build(base, layout, work, packages)
            built = ReferenceImage(
                source=_source(home),
                key=key,
                base=str(self.named) if self.named else f"{SUITE}: {', '.join(PACKAGES)}",
                base_digest=base_digest,
                seconds=self.seconds | {"total": round(time.monotonic() - begin, 3)},
            )
            # Without the source, which is wherever the record lies: the store may be moved, copied or linked to.
            text = built.model_dump_json(indent=2, exclude={"source"})
            (new / record.name).write_text(text + "\n", encoding="utf-8")
            _put(new, home)
        self._forget_unused(home)
        return built

    def _base(self) -> tuple[str, str, str]:
        """The base as buildah calls it where it was made here, its digest, and the packages that it was made of."""
        if self.named:
            if self.named.kind is Kind.SIF:
                raise SifproofError(f"{self.named} can't be a base", why="it is a SIF", fault=Fault.CONFIGURATION)
            verify(self.named)
            self.identity = digest(self.named)
            return "", self.identity.digest, ""
        packages, tar = self._debian_base()
        return f"tarball:{tar}", f"sha256:{_hash(packages)}", packages

    def _debian_base(self) -> tuple[str, Path]:
        """Names and versions of the packages of the base, and the tar file of its file system."""
        home = self.folder / f"base-{_hash(*_mmdebstrap('-'))}"
        tar, listed = home / "base.tar", home / "packages"
        if not listed.is_file():
            with scratch.directory(self.folder) as (new, _), self._work() as work:
                work.chmod(0o711)  # the users of mmdebstrap's own user name space must get through
                self._run(
                    "base",
                    f"making a base of Debian {SUITE} packages",
                    "mmdebstrap",
                    _mmdebstrap(str(new / tar.name)),
                    work,
                )
                # The layer's date in the image's history, and so its digest, comes from here.
                os.utime(new / tar.name, (0, 0))
                (new / listed.name).write_text(_packages(new / tar.name), encoding="utf-8")
                _put(new, home)
        return listed.read_text(encoding="utf-8"), tar

    def _build(self, base: str, layout: Path, work: Path, packages: str) -> None:
        if self.named and self.identity:
            # The one that was identified: buildah would choose among several images by a rule of its own.
            def fetch(step: str, tool: str, words: list[str], *, environment: dict[str, str] | None = None) -> None:
                self._run(step, "fetching the base", tool, words, work)

            base = f"oci:{lay_out(self.named, self.identity, work, fetch)}"
        storage = ["--storage-driver", "vfs", "--root", str(work / "root"), "--runroot", str(work / "run")]
        # Without ranges of user ids (/etc/subuid) files of other owners become the user's own.
        storage += ["--storage-opt", "vfs.ignore_chown_errors=true"]
        arguments = [*storage, "bud", "--isolation", "chroot", "--timestamp", "0", "--tag", "reference"]
        arguments += [word for limit in _ulimits() for word in ("--ulimit", limit)]
        if packages:
            arguments += ["--label", f"sifproof.base.packages={' '.join(packages.split())}"]
        arguments += ["--build-arg", f"BASE={base}"]
        said = "building sandbox/ on the base"
        containerfile = self.context / "Containerfile"
        try:
            self._run("build", said, "buildah", [*arguments, "--file", str(containerfile), str(self.context)], work)
        except ToolFailure:
            if self.named or os.geteuid() == 0:
                raise
            # Without those ranges, or a home, buildah can run nothing in an image, and has many ways to say so.
            # Our own base has all that RUN would see to; whatever else is wrong with the Containerfile fails again.
            short = work / "Containerfile"
            short.write_text(_without_run(containerfile.read_text(encoding="utf-8")), encoding="utf-8")
            said += ", without its RUN steps, which this user can't run here"
            self._run("build", said, "buildah", [*arguments, "--file", str(short), str(self.context)], work)
        # As a folder, because buildah compresses what it pushes to other places, or skopeo misnames it afterwards.
        pushed = f"dir:{work / 'image'}"
        push = [*storage, "push", "--disable-compression", "reference", pushed]
        self._run("push", "taking the image out of buildah", "buildah", push, work)
        copy = ["--insecure-policy", "copy", "--dest-oci-accept-uncompressed-layers", pushed, f"oci:{layout}:latest"]
        self._run("layout", "laying out the image's layers", "skopeo", copy, work)

    @contextmanager
    def _work(self) -> Iterator[Path]:
        place = scratch.choose(_places(self.folder), _ROOM_BYTES)[0]
        with scratch.directory(place.path) as (work, _):
            try:
                yield work
            finally:
                if os.geteuid() != 0 and (work / "root").exists():
                    # Files of other users in buildah's storage, which only its own user name space can remove.
                    with suppress(ToolFailure):
                        remove = ["unshare", "rm", "-rf", str(work / "root")]
                        self._run("remove", "removing buildah's storage", "buildah", remove, work)

    def _run(self, step: str, said: str, tool: str, arguments: list[str], work: Path | None = None) -> None:
        if not self.seconds:
            self.log.unlink(missing_ok=True)
        self.say(f"reference image: {said} ({tool})")
        begin = time.monotonic()
        run(
            tool,
            arguments,
            log=self.log,
            timeout_s=_TIMEOUT_S,
            environment={"SOURCE_DATE_EPOCH": "0"} | ({"TMPDIR": str(work)} if work else {}),
            keep=(self.held,),
        )
        self.seconds[step] = round(time.monotonic() - begin, 3)
        self.say(f"reference image: {step} took {self.seconds[step]:.1f} s")

    def _error(self, failure: ToolFailure) -> SifproofError:
        log = f"the whole output is in {self.log}"
        if "unable to pick chroot mode" in failure.output:
            return SifproofError(
                "No base can be made of Debian packages here",
                why="this needs root, or newuidmap with a range for you in /etc/subuid and /etc/subgid, or fakechroot",
                todo="have one of them installed, or name a base (`reference: base:`) or another image; " + log,
            )
        lacks = blame.lacking(failure.output)
        named = self.named and failure.name == "buildah" and not lacks
        return SifproofError(
            "The reference image can't be built",
            why=f"{failure.name} says: {failure.last_words}",
            todo=f"{lacks}; {log}" if lacks else log,
            fault=Fault.CONFIGURATION if named else Fault.INFRASTRUCTURE,
        )

    def _forget_unused(self, home: Path) -> None:
        for other in self.folder.glob("image-*"):
            if other != home and time.time() - other.stat().st_mtime > _KEEP_UNUSED_S:
                scratch.remove(other)


def _source(home: Path) -> str:
    return f"oci:{home / 'oci'}"


def _put(made: Path, home: Path) -> None:
    """Give ``made`` its name, readable to others as far as this process makes files so."""
    made.chmod(0o755)
    shutil.rmtree(home, ignore_errors=True)
    made.rename(home)


def _mmdebstrap(target: str) -> list[str]:
    arguments = ["--variant=essential", f"--include=usr-is-merged,{','.join(PACKAGES)}"]
    arguments += [f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_INSTALLED]
    arguments += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    # As set-up has it, for machines whose own apt knows no Debian mirror; without one mmdebstrap has a default.
    mirror = filter(None, [os.environ.get("SIFPROOF_DEBIAN_MIRROR")])
    return [*arguments, f"--setup-hook={_MERGE_USR}", f"--customize-hook={_FINISH}", SUITE, target, *mirror]


def _named_base(base: str) -> Source:
    """The base as a source; a bare name is an image in a registry, as it is in a Containerfile."""
    prefix = base.partition(":")[0]
    return parse(base if prefix in set(Kind) or "://" in base else f"docker://{base}")


def _packages(tar: Path) -> str:
    """Names and versions of the packages in a Debian file system, sorted, one a line."""
    with tarfile.open(tar) as archive:
        status = archive.extractfile("./var/lib/dpkg/status")
        assert status is not None  # noqa: S101 (a regular file of every Debian system)
        stanzas = status.read().decode().split("\n\n")
    packages = []
    for stanza in stanzas:
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if fields:
            packages.append(f"{fields['Package']}={fields['Version']}")
    return "".join(f"{package}\n" for package in sorted(packages))


def _context_files(context: Path) -> list[str]:
    """Names, contents and modes of all that a build in ``context`` can see."""
    listed: list[str] = []
    for path in sorted({context / "Containerfile", *_not_ignored(context)}):
        if path.is_file():
            mode = path.stat().st_mode & 0o777
            listed += [str(path.relative_to(context)), f"{mode:o}", hashlib.sha256(path.read_bytes()).hexdigest()]
    return listed


def _not_ignored(context: Path) -> Iterator[Path]:
    ignore = context / ".dockerignore"
    lines = ignore.read_text(encoding="utf-8").split() if ignore.is_file() else []
    if lines[:1] == ["*"]:  # the only form that is understood here: nothing but what is named
        for line in lines[1:]:
            yield from context.glob(line.removeprefix("!"))
    else:
        yield from context.rglob("*")


def _without_run(containerfile: str) -> str:
    return re.sub(r"^RUN (.*\\\n)*.*\n", "", containerfile, flags=re.MULTILINE)


def _ulimits() -> list[str]:
    limits = []
    for name, (number, most) in _ULIMITS.items():
        hard = resource.getrlimit(number)[1]
        value = most if hard == resource.RLIM_INFINITY else min(hard, most)
        limits.append(f"{name}={value}:{value}")
    return limits


def _places(folder: Path) -> list[Place]:
    return [Place(Path("/dev/shm"), in_memory=True), Place(folder, in_memory=False)]  # noqa: S108


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
