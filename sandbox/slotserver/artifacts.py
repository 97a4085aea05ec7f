"""Read, list and archive: how the files of a slot leave the server. Blocking; to be run beside the event loop."""

from __future__ import annotations

import base64
import codecs
import errno
import hashlib
import io
import mimetypes
import os
import stat
import tarfile
from collections.abc import Callable
from typing import IO, Any

from .protocol import Fields
from .workspace import Location, OutsideError, TooDeepError, Workspace, WrongKindError

MAX_READ_BYTES = 32 * 2**20
MAX_ARCHIVE_BYTES = 32 * 2**20
MAX_ENTRIES = 10_000
# Not to be had by asking for it: what is looked at on the way to an answer, whatever size the answer has.
_MAX_BYTES_TO_HASH = 2**30
_MAX_BYTES_TO_PACK = 2**29
_CHUNK_BYTES = 2**20

Answer = dict[str, Any]


class ArtifactError(Exception):
    """An artifact can't be had; ``status`` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read(workspace: Workspace, fields: Fields) -> Answer:
    """The first ``max_bytes`` of a file; ``sha256`` is that of the whole file."""
    encoding = fields.choice("encoding", "text", ("text", "base64"))
    limit = fields.count("max_bytes", MAX_READ_BYTES, most=MAX_READ_BYTES)
    hashed = fields.flag("include_sha256", False)
    with workspace.locate(fields.text("path")) as location, location.open() as (descriptor, status):
        if hashed and status.st_size > _MAX_BYTES_TO_HASH:
            raise ArtifactError(413, f"The file has {status.st_size} bytes, too many to hash")
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            data = stream.read(limit)
            sha256 = _hash(stream) if hashed else None
        truncated = status.st_size > len(data)
        if encoding == "base64":
            content = base64.b64encode(data).decode()
        else:  # a character that the limit cuts in two is left out
            content = codecs.getincrementaldecoder("utf-8")(errors="replace").decode(data, final=not truncated)
        return {
            "success": True,
            "content": content,
            "encoding": encoding,
            "truncated": truncated,
            "bytes": len(data),
            "file_size": max(status.st_size, len(data)),
            "path": location.path,
            "mime": mimetypes.guess_type(location.path)[0] or "application/octet-stream",
            "sha256": sha256,
        }


def list_entries(workspace: Workspace, fields: Fields) -> Answer:
    """What is in a directory; paths are relative to the workspace, sizes in bytes, times in seconds since 1970."""
    limit = fields.count("max_entries", MAX_ENTRIES, most=MAX_ENTRIES)
    recursive = fields.flag("recursive", False)
    entries: list[Answer] = []
    truncated = False
    with workspace.locate(fields.text("path", ".")) as location:
        try:
            for entry, status in location.walk(recursive=recursive, most=limit + 1):
                if len(entries) == limit:
                    truncated = True
                    break
                entries.append(
                    {
                        "path": entry.path,
                        "is_dir": stat.S_ISDIR(status.st_mode),
                        "size": status.st_size,
                        "mtime": status.st_mtime,
                    }
                )
        except TooDeepError:
            truncated = True
    return {"success": True, "entries": entries, "truncated": truncated}


def archive(workspace: Workspace, fields: Fields) -> Answer:
    """A directory or file as tar.gz; names are relative to the workspace. Devices, sockets and FIFOs are left out."""
    form = fields.choice("format", "tar.gz", ("tar.gz",))
    limit = fields.count("max_bytes", MAX_ARCHIVE_BYTES, most=MAX_ARCHIVE_BYTES)
    most = fields.count("max_entries", MAX_ENTRIES, most=MAX_ENTRIES)
    packed = _BoundedBuffer(limit)
    count = 0
    content_bytes = 0
    with (
        workspace.locate(fields.text("path", ".")) as location,
        tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6, format=tarfile.PAX_FORMAT) as tar,
    ):
        is_directory = stat.S_ISDIR(location.stat().st_mode)
        entries = location.walk(recursive=True, most=most + 1) if is_directory else iter([(location, location.stat())])
        for entry, status in entries:
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                if not is_directory:
                    raise WrongKindError
                continue
            count += 1
            content_bytes += status.st_size
            if count > most:
                raise ArtifactError(413, f"More than {most} entries")
            if content_bytes > _MAX_BYTES_TO_PACK:
                raise ArtifactError(413, f"More than {_MAX_BYTES_TO_PACK} bytes before compression")
            _add(tar, entry, status)
    data = packed.getvalue()
    return {
        "success": True,
        "content": base64.b64encode(data).decode(),
        "encoding": "base64",
        "format": form,
        "bytes": len(data),
        "entry_count": count,
    }


def answer(work: Callable[[Workspace, Fields], Answer], workspace: Workspace, fields: Fields) -> Answer:
    """Do the work; what goes wrong with a file is raised as ArtifactError."""
    try:
        return work(workspace, fields)
    except OutsideError:
        raise ArtifactError(403, "Access denied: path outside workspace") from None
    except WrongKindError:
        kind = "directory" if work is list_entries else "file"
        raise ArtifactError(400, f"Not a {kind}") from None
    except TooDeepError:
        raise ArtifactError(413, "The directories lie too deep in each other") from None
    except OSError as error:
        if error.errno is None:
            raise
        status = {errno.ENOENT: 404, errno.ENOTDIR: 404, errno.EACCES: 403, errno.EPERM: 403}
        raise ArtifactError(status.get(error.errno, 400), os.strerror(error.errno)) from None


class _BoundedBuffer(io.BytesIO):
    """Memory that takes so much and no more."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any) -> int:
        written = super().write(data)
        if self.tell() > self._limit:
            raise ArtifactError(413, f"The archive is larger than {self._limit} bytes")
        return written


class _Padded:
    """A file that never ends: one that became shorter since its size was written down is filled up with zeros."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = 0, /) -> bytes:
        return self._stream.read(size).ljust(size, b"\0")


def _add(tar: tarfile.TarFile, entry: Location, status: os.stat_result) -> None:
    info = tarfile.TarInfo(entry.path)
    info.mode = stat.S_IMODE(status.st_mode)
    info.mtime = int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif stat.S_ISLNK(status.st_mode):
        info.type = tarfile.SYMTYPE
        info.linkname = os.readlink(entry.name, dir_fd=entry.directory)
        tar.addfile(info)
    else:
        with entry.open() as (descriptor, now), os.fdopen(os.dup(descriptor), "rb") as stream:
            info.size = min(now.st_size, _MAX_BYTES_TO_PACK)
            tar.addfile(info, _Padded(stream))


def _hash(stream: io.BufferedReader) -> str:
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
