"""Small images, written by hand: two layers with what goes wrong easily in a conversion."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from sifproof.image.source import host_architecture

CONFIG = {
    "Entrypoint": ["/bin/serve"],
    "Cmd": ["--slots", "5"],
    "Env": ["PATH=/bin", "TOKEN=s3cret"],
    "WorkingDir": "/app",
    "ExposedPorts": {"8080/tcp": {}},
    "Labels": {"org.example.kind": "sample"},
}
LONG = "long-" + 60 * "x" + "/" + 60 * "y" + ".txt"


Member = bytes | str | int | None


def layer(members: dict[str, Member | tuple[Member, dict[str, Any]]]) -> bytes:
    """A tar: bytes make a file, a word a link, None a directory, a number an executable of that mode.

    Names that end in ``|`` are devices. Attributes of the tar's header may stand beside the content.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for name, given in members.items():
            content, attributes = given if isinstance(given, tuple) else (given, {})
            member = tarfile.TarInfo(name)
            if name.endswith("|"):
                member.name, member.type, member.devmajor, member.devminor = name[:-1], tarfile.CHRTYPE, 1, 3
            elif content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            elif isinstance(content, int):
                member.mode = content
            else:
                member.size = len(content)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return stream.getvalue()


def layers(mark: str = "") -> list[bytes]:
    """The layers of the sample; another ``mark`` makes another image."""
    lower = layer(
        {
            "bin": None,
            "bin/setuid": 0o4755,
            "etc": None,
            "etc/gone": b"removed by the next layer",
            "etc/mark": mark.encode(),
            "grüße-日本.txt": "Grüß dich\n".encode(),
            LONG: b"a long name",
            "link": "etc/mark",
            "locked": None,
            "locked/inner": b"x",
        }
    )
    return [lower, layer({"etc/.wh.gone": b"", "app": None, "app/empty": b"", "app/data": b"\0\1\2" * 1000})]


def config(
    blobs: list[bytes],
    architecture: str = "",
    settings: dict[str, Any] | None = None,
    marks: dict[str, Any] | None = None,
) -> bytes:
    """``marks`` is what it says of its platform, in place of ``architecture`` and Linux."""
    return json.dumps(
        {
            **({"architecture": architecture or host_architecture(), "os": "linux"} if marks is None else marks),
            "config": CONFIG if settings is None else settings,
            "rootfs": {"type": "layers", "diff_ids": [_digest(b) for b in blobs]},
        }
    ).encode()


def docker_archive(
    path: Path, *, tag: str = "sample:1", mark: str = "", architecture: str = "", **options: Any
) -> Path:
    """What `docker save` writes. ``compression``: of the whole archive, as tarfile calls it."""
    return docker_archive_of(path, {tag: layers(mark)}, architecture, **options)


def docker_archive_of(
    path: Path,
    images: dict[str, list[bytes]],
    architecture: str = "",
    *,
    compression: str = "",
    damage: bool = False,
    lacks_layers: bool = False,
    beside: dict[str, bytes] | None = None,
) -> Path:
    """``beside`` are further files, as today's engines write an OCI layout beside."""
    listed, files = [], dict(beside or {})
    for tag, blobs in images.items():
        text = config(blobs, architecture)
        name = f"{_digest(text)[7:]}.json"
        files[name] = text
        names = [f"{_digest(b)[7:]}/layer.tar" for b in blobs]
        held = blobs if not damage else [b[:600] + b"\xff" * (len(b) - 600) for b in blobs]
        files |= dict(zip(names, held, strict=True))
        listed.append({"Config": name, "RepoTags": [tag], "Layers": [] if lacks_layers else names})
    files["manifest.json"] = json.dumps(listed).encode()
    with tarfile.open(path, f"w:{compression}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def oci_layout(
    path: Path,
    *,
    tags: tuple[str, ...] = ("latest",),
    raw: bool = True,
    index: bool = False,
    mark: str = "",
    held: list[bytes] | None = None,
    settings: dict[str, Any] | None = None,
    marks: dict[str, Any] | None = None,
) -> Path:
    """An OCI layout; ``index`` puts the images of two processors under one name, as buildx does.

    ``held`` are its layers, ``settings`` how it wants to be run and ``marks`` what it says of its platform, in place of
    those of the sample.
    """
    entries = []
    for number, tag in enumerate(tags):
        name = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        one = _manifest(path, held or layers(mark + str(number or "")), raw, settings=settings, marks=marks)
        if index:
            other = _manifest(path, layers("other"), raw, "s390x")
            platforms = [
                one | {"platform": {"architecture": host_architecture(), "os": "linux"}},
                other | {"platform": {"architecture": "s390x", "os": "linux"}},
                other | {"platform": {"architecture": "unknown", "os": "unknown"}},
            ]
            one = index_of(path, platforms)
        entries.append(one | name)
    return layout_of(path, entries)


def image_of(path: Path, mark: str = "", says: dict[str, Any] | None = None, *, lacks_layers: bool = False) -> dict:
    """Put an image into a layout; ``says`` is what its config says of its platform. What a manifest says of it."""
    return _manifest(path, layers(mark), True, marks=says, lacks_layers=lacks_layers)


def index_of(path: Path, entries: list[dict]) -> dict:
    """Put an index into a layout; what another says of it."""
    media = "application/vnd.oci.image.index.v1+json"
    return _put(path, json.dumps({"schemaVersion": 2, "mediaType": media, "manifests": entries}).encode(), media)


def layout_of(path: Path, entries: list[dict]) -> Path:
    """Make a layout of what was put there."""
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return path


def oci_archive(path: Path, layout: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(layout, arcname=".")
    return path


def sif_header(path: Path, *, architecture: bytes = b"02", data: int = 100, cut: int = 0) -> Path:
    """The header of a SIF and ``data`` bytes after it, less ``cut``."""
    words = [0, 0, 47, 48, 128, 0, 128, data]
    head = b"#!/usr/bin/env run-singularity\n\0" + b"SIF_MAGIC\0" + b"01\0" + architecture + b"\0" + b"u" * 16
    path.write_bytes((head + b"".join(w.to_bytes(8, "little") for w in words) + b"\0" * data)[: 128 + data - cut])
    return path


def _manifest(
    path: Path,
    blobs: list[bytes],
    raw: bool,
    architecture: str = "",
    settings: dict[str, Any] | None = None,
    *,
    marks: dict[str, Any] | None = None,
    lacks_layers: bool = False,
) -> dict[str, Any]:
    media = "application/vnd.oci.image.layer.v1.tar" + ("" if raw else "+gzip")
    text = config(blobs, architecture, settings, marks)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _put(path, text, "application/vnd.oci.image.config.v1+json"),
        "layers": [] if lacks_layers else [_put(path, b if raw else gzip.compress(b, mtime=0), media) for b in blobs],
    }
    return _put(path, json.dumps(manifest).encode(), str(manifest["mediaType"]))


def _put(path: Path, content: bytes, media: str) -> dict[str, Any]:
    (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (path / "blobs/sha256" / _digest(content)[7:]).write_bytes(content)
    return {"mediaType": media, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
