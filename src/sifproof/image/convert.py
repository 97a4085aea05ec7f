"""From an image to a SIF, by the fastest way that the machine allows.

Fast is: the layers are copied as they are into an OCI layout on a tmpfs, and Apptainer builds from that layout, its
scratch directory on the same tmpfs, with zstd. A plain `apptainer build` of a Docker archive compresses every
layer and unpacks it again before it makes the SIF, on disk, with gzip at its highest level. Where a part of the fast
way is missing, the conversion goes on without it, and the provenance says so.

The SIF is built under a temporary name in the store and renamed: under its real name there is a whole SIF or none.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import sifproof
from sifproof import host_tools
from sifproof.config import Conversion
from sifproof.errors import Fault, SifproofError
from sifproof.image import archive, blame, fidelity, layout, process, scratch, sif, tree
from sifproof.image.digest import (
    ImageConfig,
    SourceDigest,
    digest,
    file_digest,
    registry_error,
    require_unchanged,
)
from sifproof.image.process import ToolFailure
from sifproof.image.provenance import ConversionSettings, Provenance, SifStore
from sifproof.image.scratch import Place
from sifproof.image.source import Kind, Source, host_architecture, parse, require_file, require_platform

logger = logging.getLogger(__name__)

# gzip makes about a third of what root file systems hold.
_COMPRESSION_RATIO = 3
# On a tmpfs a file takes whole pages; on top come the tables of mksquashfs and manifests.
_ROUNDING = 1.2
_SMALL = 64 * 1024 * 1024
# What a registry did not tell the size of.
_UNKNOWN_BYTES = 2 * 1024**3


def convert(
    source: Source,
    store: Path,
    settings: Conversion | None = None,
    *,
    log: Path,
    identity: SourceDigest | None = None,
) -> Provenance:
    """Make the SIF of ``source`` in ``store``, or find it there; a source that is a SIF already stays where it is.

    An image whose content, tools and arguments are those of a SIF in the store is not converted again. Two calls for
    one image at once make one SIF: the second waits for the first. What was left over by calls that were killed is
    removed.

    Args:
        source: of any kind.
        store: directory of the SIFs; made where it is missing.
        settings: how to convert; the defaults are the fast way.
        log: file that gets the output of all tools, appended.
        identity: what ``source`` was found to be; the SIF is of that image and no other. None: of what it is now.

    Raises:
        SifproofError: (configuration) there is no such image, or it is for another processor; (image) it can't be
            converted; (infrastructure) it changed meanwhile, a disk is full, a tool is missing, a registry does not
            answer.
    """
    how = ConversionSettings.of(settings)
    shelf = SifStore(store)
    try:
        store.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SifproofError(f"Cannot make the directory {error.filename}", why=str(error.strerror)) from error
    if identity is None:
        identity = digest(source, cache=shelf.digests)
    require_file(source)
    require_platform(source, identity.architecture, identity.os)
    if source.kind is Kind.SIF:
        require_unchanged(source, identity, shelf.digests)
        return _existing(source, identity, shelf)
    versions = {"sifproof": sifproof.__version__} | {
        name: host_tools.require(name).version for name in ("apptainer", "mksquashfs")
    }
    if (skopeo := host_tools.find("skopeo")) is not None:
        versions["skopeo"] = skopeo.version
    key = shelf.key(identity, versions, how)
    with _ends_on_sigterm():
        if scratch.is_locked(shelf.lock(key)):
            logger.info("Another conversion of %s is under way; waiting for it", source)
        with scratch.lock(shelf.lock(key)):
            rooms = [*places(how), Place(store, in_memory=False)]
            for leftover in scratch.sweep(p.path for p in rooms):
                logger.info("Removed %s, left over from a conversion that was killed", leftover)
            found, defect = shelf.find(key)
            conversion = _Conversion(source, identity, shelf, how, log, key)
            if found is not None:
                logger.info("The SIF of %s is in the store: %s", source, shelf.sif(key))
                if not shelf.tree(key).exists():
                    conversion.list_again(rooms)
                return conversion.reuse(found)
            if defect:
                conversion.say(f"the SIF in the store was not used: {defect}")
            made = conversion.in_the_best_of(rooms, versions)
            logger.info("Made %s of %s in %.1f s", made.sif, source, made.seconds["total"])
            return made


@dataclass
class _Conversion:
    """One conversion on its way: what has been said, done and measured so far."""

    source: Source
    identity: SourceDigest
    shelf: SifStore
    settings: ConversionSettings
    log: Path
    key: str
    fallbacks: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, fallback: str) -> None:
        logger.warning("%s: %s", self.source, fallback)
        self.fallbacks.append(fallback)

    def reuse(self, found: Provenance) -> Provenance:
        """What there is to say of a SIF that is in the store already."""
        listed = self.shelf.tree(self.key)
        return found.model_copy(
            update={
                "source": str(self.source),
                "manifest_digest": self.identity.manifest_digest,
                "sif": str(self.shelf.sif(self.key)),
                "tree": str(listed) if listed.exists() else "",
                "fallbacks": found.fallbacks + self.fallbacks,
                "reused": True,
            }
        )

    def in_the_best_of(self, rooms: list[Place], versions: dict[str, str]) -> Provenance:
        """Convert in the first of ``rooms`` that turns out to hold it."""
        need = need_bytes(self.source, self.identity)
        chosen = scratch.choose(rooms, need)
        for place in rooms:
            if place.in_memory and place not in chosen:
                self.say(
                    f"works on disk: it may need {_gigabytes(need)}, and {place.path} has "
                    f"{_gigabytes(place.free_bytes())} to give"
                )
        begin = time.monotonic()
        for place in chosen:
            try:
                with (
                    scratch.directory(place.path) as (work, _),
                    scratch.directory(self.shelf.path) as (new, _),
                ):
                    made = new / "image.sif"
                    reference = self._layout(work)
                    self._build(made, reference, work)
                    files = self._list(new / "tree.gz", reference, work)
                    return self._finish(made, files, place, versions, begin)
            except ToolFailure as failure:
                if place is chosen[-1] or not _lacks_space(failure, in_memory=place.in_memory):
                    self._give_up(failure, place)
                self.say(f"works on disk: {place.path} was full, whatever it promised")
            except OSError as error:
                if place is chosen[-1] or error.errno != errno.ENOSPC:
                    self._give_up_on(error, place)
                self.say(f"works on disk: {place.path} was full, whatever it promised")
        raise AssertionError("the last place returns or raises")

    def list_again(self, rooms: list[Place]) -> None:
        """List the files of the image of a SIF that has no such list."""
        place = scratch.choose(rooms, need_bytes(self.source, self.identity))[0]
        try:
            with scratch.directory(place.path) as (work, _), scratch.directory(self.shelf.path) as (new, _):
                files = self._list(new / "tree.gz", self._layout(work), work)
                if files:
                    files.replace(self.shelf.tree(self.key))
        except ToolFailure as failure:
            self.say(f"the files of the image were not listed: {failure.name} says: {failure.last_words}")
        except OSError as error:
            self.say(f"the files of the image were not listed: {error}")

    def _list(self, path: Path, reference: str, work: Path) -> Path | None:
        """Write down which files the image holds: it is at hand now, and may not be when the SIF is compared."""
        image = parse(reference)
        begin = time.monotonic()
        logger.info("%s: %s", self.source, _STEPS["list"])
        try:
            try:
                listing = archive.read_listing(image, host_architecture())
            except archive.CompressionError:
                # skopeo takes a compression away only from what it writes to a plain directory.
                plain, again = f"dir:{work / 'plain'}", f"oci:{work / 'again'}"
                self._run("list", "skopeo", ["--insecure-policy", "copy", "--dest-decompress", reference, plain])
                self._run("list", "skopeo", [*_SKOPEO_COPY, plain, f"{again}:latest"])
                listing = archive.read_listing(parse(again), host_architecture())
            tree.save(path, listing)
        # The SIF is none the worse; whoever wants to compare is told why he can't.
        except (SifproofError, ToolFailure, OSError) as error:
            if isinstance(error, SifproofError) and error.fault is Fault.IMAGE:
                # By its config another image has the same name in the store, and would get this one's files.
                raise SifproofError(
                    f"The image {self.source} is damaged", why=error.why, todo=error.todo, fault=Fault.IMAGE
                ) from error
            why = error.last_words if isinstance(error, ToolFailure) else str(error)
            self.say(f"the files of the image were not listed: {why}")
            return None
        self.seconds["list"] = round(time.monotonic() - begin, 3)
        return path

    def _layout(self, work: Path) -> str:
        """Lay the identified image out, and nothing beside it; returns how Apptainer and skopeo call it."""
        begin, before = time.monotonic(), sum(self.seconds.values())
        logger.info("%s: %s", self.source, _STEPS["copy"])
        made = layout.lay_out(self.source, self.identity, work, self._run)
        within = sum(self.seconds.values()) - before
        self.seconds["copy"] = round(self.seconds.get("copy", 0.0) + time.monotonic() - begin - within, 3)
        return f"oci:{made}"

    def _build(self, made: Path, reference: str, work: Path) -> None:
        compression = ["--mksquashfs-args", self.settings.mksquashfs_arguments]
        under: list[str] = []
        while True:
            made.unlink(missing_ok=True)
            try:
                self._run(
                    "build",
                    "apptainer",
                    ["--nocolor", "build", "--disable-cache", *compression, str(made), reference],
                    # SingularityCE has kept the other name.
                    environment={"APPTAINER_TMPDIR": str(work), "SINGULARITY_TMPDIR": str(work)},
                    under=under,
                )
                return
            except ToolFailure as failure:
                words = failure.output.lower()
                gzip = ["--mksquashfs-args", ConversionSettings(compression="gzip", level=4).mksquashfs_arguments]
                if 'compressor "zstd" is not supported' in words and compression not in ([], gzip):
                    self.say("compressed with gzip: mksquashfs knows no zstd")
                    compression = gzip
                elif "unknown flag: --mksquashfs-args" in words and compression:
                    self.say("compressed as Apptainer does by itself: before 1.4 it can't be told how")
                    compression = []
                elif "operation not permitted" in words and os.geteuid() == 0 and not under:
                    self.say("built as an ordinary user in a user namespace: root lacks a capability on this machine")
                    under = _AS_ORDINARY_USER
                else:
                    raise

    def _run(
        self,
        step: str,
        tool: str,
        arguments: list[str],
        *,
        environment: dict[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        logger.info("%s: %s (%s)", self.source, _STEPS[step], tool)
        self.commands.append(shlex.join([*under, tool, *arguments]))
        begin = time.monotonic()
        try:
            process.run(
                tool,
                arguments,
                log=self.log,
                timeout_s=self.settings.timeout_s,
                environment=environment,
                under=under,
            )
        finally:
            self.seconds[step] = round(self.seconds.get(step, 0.0) + time.monotonic() - begin, 3)

    def _finish(
        self, made: Path, files: Path | None, place: Place, versions: dict[str, str], begin: float
    ) -> Provenance:
        sif.read_header(made)
        hashing = time.monotonic()
        sha256 = file_digest(made)
        self.seconds["hash"] = round(time.monotonic() - hashing, 3)
        self.seconds["total"] = round(time.monotonic() - begin, 3)
        provenance = Provenance(
            source=str(self.source),
            digest=self.identity.digest,
            manifest_digest=self.identity.manifest_digest,
            architecture=self.identity.architecture,
            key=self.key,
            sif=str(self.shelf.sif(self.key)),
            tree=str(self.shelf.tree(self.key)) if files else "",
            sha256=sha256,
            size_bytes=made.stat().st_size,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions,
            arguments=self.commands,
            seconds=self.seconds,
            worked_in="memory" if place.in_memory else "disk",
            fallbacks=self.fallbacks,
            image=self.identity.config,
            labels=sif.read_labels(made),
        )
        # A machine whose locks are not seen here may have been faster, and its SIF may run by now.
        faster, _ = self.shelf.find(self.key)
        if faster is not None:
            return self.reuse(faster)
        self.shelf.put(made, provenance, files)
        return provenance

    def _give_up(self, failure: ToolFailure, place: Place) -> NoReturn:
        if _lacks_space(failure, in_memory=place.in_memory):
            raise self._full(place) from failure
        if failure.name == "skopeo" and self.source.kind is Kind.REGISTRY:
            raise registry_error(self.source, failure) from failure
        raise verdict_on(failure, f"The image {self.source} can't be converted", self.log) from failure

    def _give_up_on(self, error: OSError, place: Place) -> NoReturn:
        if error.errno == errno.ENOSPC:
            raise self._full(place) from error
        raise SifproofError(f"Cannot convert {self.source} in {place.path}", why=str(error)) from error

    def _full(self, place: Place) -> SifproofError:
        return SifproofError(
            f"The image {self.source} can't be converted",
            why=f"no space is left in {place.path} or in the store {self.shelf.path}",
            todo=f"make room there (it may need {_gigabytes(need_bytes(self.source, self.identity))}), "
            f"or name another directory to work in; the whole output is in {self.log}",
        )


def verdict_on(failure: ToolFailure, what: str, log: Path | None) -> SifproofError:
    """Who is at fault for the ``failure`` of a tool, and its last words; ``what`` says what did not work."""
    blamed = blame.of_conversion(failure.output, failure.status)
    return SifproofError(
        what,
        why=f"{failure.name} says: {failure.last_words}",
        todo="; ".join(filter(None, [blamed.todo, f"the whole output is in {log}" if log else ""])),
        fault=blamed.fault,
    )


# Unpacked that way, devices become empty files, and owners are not kept; neither is kept in a SIF that users run.
_AS_ORDINARY_USER = ["unshare", "--user", "--map-user=65534", "--map-group=65534"]
_SKOPEO_COPY = ["--insecure-policy", "copy", "--dest-oci-accept-uncompressed-layers"]
_STEPS = {
    "save": "taking the image out of the engine",
    "copy": "copying the layers",
    "build": "building the SIF",
    "list": "listing the files of the image",
}


def _existing(source: Source, identity: SourceDigest, shelf: SifStore) -> Provenance:
    return Provenance(
        source=str(source),
        digest=identity.digest,
        architecture=identity.architecture,
        sif=str(source.path.absolute()),
        sha256=identity.digest.removeprefix("sha256:"),
        size_bytes=source.path.stat().st_size,
        created="",
        versions={"sifproof": sifproof.__version__, "apptainer": host_tools.require("apptainer").version},
        image=_settings_in(source.path),
        labels=sif.read_labels(source.path),
        reused=True,
    )


def _settings_in(made: Path) -> ImageConfig:
    """How the image wanted to be run that a SIF was made of elsewhere, as far as the SIF tells."""
    told = sif.read_oci_config(made) or fidelity.read_runscript(sif.read_runscript(made)) or {}
    try:
        return ImageConfig.of(told)
    except (ValueError, TypeError, AttributeError):  # anybody may have made it, of anything
        return ImageConfig()


def places(settings: ConversionSettings) -> list[Place]:
    """Where to work, the fastest first."""
    if settings.tmpdir:
        return [Place(Path(settings.tmpdir).expanduser(), in_memory=False)]
    memory = [Place(settings.memory, in_memory=True)] if settings.memory else []
    return [*memory, Place(Path(os.environ.get("TMPDIR", "/var/tmp")), in_memory=False)]  # noqa: S108


def need_bytes(source: Source, identity: SourceDigest) -> int:
    """Room that a conversion may take at its peak: what was fetched, layers, files and SIF."""
    held = identity.layer_bytes or _UNKNOWN_BYTES
    layers = held if identity.raw_layers else held * _COMPRESSION_RATIO
    archived = held if source.kind in (Kind.DOCKER_DAEMON, Kind.REGISTRY) else 0
    return int((archived + layers + layers + layers / _COMPRESSION_RATIO) * _ROUNDING) + _SMALL


def _lacks_space(failure: ToolFailure, *, in_memory: bool) -> bool:
    # A control group that runs out of memory kills instead.
    return "no space left" in failure.output.lower() or (
        in_memory and (failure.status in (-signal.SIGKILL, 137) or "signal: killed" in failure.output)
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what it interrupts cleans up, as Ctrl-C does."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
