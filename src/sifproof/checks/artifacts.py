"""``/artifacts``: what a slot holds is read, listed and packed as it is, and nothing else is."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sifproof.checks.registry import Finding, NotMeasured, check, expect
from sifproof.checks.server import Server, nonce

CALLS = ("read", "list", "archive")

_UNPACKED_BYTES = 16 * 2**20
"""Far more than the trees that are packed here; what exceeds it is not unpacked."""


@contextmanager
def _folder(server: Server, script: str) -> Iterator[str]:
    """Name of a folder of the workspace, made by ``script`` and gone afterwards."""
    name = nonce()
    made = server.bash(f"mkdir {name} && cd {name} && {{ {script}\n}}")
    try:
        if not made.success:
            raise NotMeasured(f"the files to look at could not be made: {made}")
        yield name
    finally:
        server.bash(f"chmod -R u+rwx {name}; rm -rf {name}")


def _read(server: Server, path: str, **options: Any) -> dict[str, Any]:
    return server.client.artifact("read", server.slot(), path, **options)


def _bytes(answer: dict[str, Any]) -> bytes | None:
    """The bytes in a base64 ``content``; None where there are none."""
    try:
        return base64.b64decode(str(answer.get("content")), validate=True)
    except (binascii.Error, ValueError):
        return None


def _about(answer: dict[str, Any]) -> str:
    """An answer in few words: its content shortened, a long list counted."""
    shown = {
        key: f"{len(value)} entries" if isinstance(value, list) and len(value) > 8 else value
        for key, value in answer.items()
    }
    text = json.dumps(shown, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}…"


@check(
    "artifacts.read-text",
    "A text file is read as it is, with its size in bytes, and is not called truncated.",
    why="Results and logs leave the sandbox this way.",
    todo="Read the same file by hand through `/artifacts/read`; look at the encoding and at what is counted.",
)
def read_text(server: Server) -> Finding:
    text = "Grüße, 日本語, 🧪\n\tindented\r\nlast line without end"
    expected = {
        "success": True,
        "content": text,
        "encoding": "text",
        "truncated": False,
        "bytes": len(text.encode()),
        "file_size": len(text.encode()),
    }
    with _folder(server, ":") as folder:
        server.write(f"{folder}/a b/ü.txt", text)
        answer = _read(server, f"{folder}/a b/ü.txt", encoding="text")
        by_default = _read(server, f"{folder}/a b/ü.txt")
    wrong = [key for key, value in expected.items() if answer.get(key) != value or by_default.get(key) != value]
    return expect(not wrong, f"{f'wrong: {wrong} in ' if wrong else ''}{_about(answer)}")


_EVERY_BYTE = "".join(f"\\{byte:03o}" for byte in range(256))


@check(
    "artifacts.read-base64",
    "A file of any bytes is read as base64 without loss.",
    why="Models, images and databases are no text.",
    todo="Compare what is decoded with the file in the workspace.",
)
def read_base64(server: Server) -> Finding:
    with _folder(server, f"printf '{_EVERY_BYTE}' > all; : > none") as folder:
        answer = _read(server, f"{folder}/all", encoding="base64")
        none = _read(server, f"{folder}/none", encoding="base64")
    whole = bytes(range(256))
    return expect(
        (_bytes(answer), answer.get("bytes"), answer.get("file_size"), answer.get("truncated"))
        == (whole, 256, 256, False)
        and answer.get("encoding") == "base64"
        and (_bytes(none), none.get("file_size"), none.get("truncated")) == (b"", 0, False),
        f"256 bytes: {_about(answer)}; an empty file: {_about(none)}",
    )


@check(
    "artifacts.read-no-text",
    "A file that is no UTF-8, asked for as text, is answered: with what can be read of it, or with 400.",
    why="A client does not know beforehand what a file holds; an internal error tells it nothing.",
    todo="Decode with a replacement character, or answer 400.",
)
def read_no_text(server: Server) -> Finding:
    with _folder(server, f"printf '{_EVERY_BYTE}' > all") as folder:
        body = {"slot_id": server.slot(), "path": f"{folder}/all", "encoding": "text"}
        status, answer = server.client.request("POST", "/artifacts/read", body)
    return expect(status in (200, 400), f"HTTP {status}: {answer[:200].decode('utf-8', 'replace')}")


@check(
    "artifacts.sha256",
    "`include_sha256` gives the SHA-256 of the file's bytes.",
    why="It is how a client knows that what it has is what the sandbox had.",
    todo="Hash the bytes of the file, not the text or the base64 that is sent.",
)
def sha256(server: Server) -> Finding:
    with _folder(server, f"printf '{_EVERY_BYTE}' > all; : > none") as folder:
        seen = {
            (name, encoding): _read(server, f"{folder}/{name}", encoding=encoding, include_sha256=True).get("sha256")
            for name, encoding in (("all", "base64"), ("none", "base64"), ("none", "text"))
        }
    content = {"all": bytes(range(256)), "none": b""}
    wrong = {key: value for key, value in seen.items() if value != hashlib.sha256(content[key[0]]).hexdigest()}
    return expect(not wrong, "; ".join(f"{key}: {value!r}" for key, value in (wrong or seen).items()))


@check(
    "artifacts.truncated",
    "Of a file larger than `max_bytes` the first bytes come, marked as truncated beside the file's whole size; one of "
    "just that size comes whole.",
    why="A part that passes for the whole is a wrong result without an error.",
    todo="Compare the file's size with `max_bytes` before and after reading.",
)
def truncated(server: Server) -> Finding:
    text = "0123456789" * 10
    wrong = []
    with _folder(server, f"printf {text} > file") as folder:
        for limit in (10, 99, 100, 101):
            for encoding in ("text", "base64"):
                answer = _read(server, f"{folder}/file", encoding=encoding, max_bytes=limit)
                content = answer.get("content") if encoding == "text" else (_bytes(answer) or b"").decode("latin-1")
                seen = (content, answer.get("truncated"), answer.get("bytes"), answer.get("file_size"))
                if seen != (text[:limit], limit < 100, min(limit, 100), 100):
                    wrong.append(f"max_bytes {limit} as {encoding}: {_about(answer)}")
    return expect(not wrong, "; ".join(wrong) or "100 bytes with max_bytes 10 and 99 cut and marked, 100 and 101 whole")


def _entries(answer: dict[str, Any], folder: str) -> dict[str, dict[str, Any]]:
    """The entries of a list by their path below ``folder``, which may stand before it."""
    entries = answer.get("entries")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return {"": {"path": f"`entries` is {entries!r:.100}"}}
    return {str(entry.get("path")).removeprefix("./").removeprefix(f"{folder}/"): entry for entry in entries}


@check(
    "artifacts.list",
    "A directory's list has each of its entries, hidden ones too, with kind, size and time, and none of what lies "
    "deeper.",
    why="Collectors fetch what is listed, and nothing else.",
    todo="Compare the answer of `/artifacts/list` with `ls -la` in the slot.",
)
def list_directory(server: Server) -> Finding:
    script = "printf abc > a.txt; : > .hidden; : > 'ü b'; mkdir -p sub/deep empty; : > sub/inner; "
    with _folder(server, script + "TZ=UTC0 touch -t 200109090146.40 a.txt") as folder:
        answer = server.client.artifact("list", server.slot(), folder)
        empty = server.client.artifact("list", server.slot(), f"{folder}/empty")
    found = _entries(answer, folder)
    kinds = {name: entry.get("is_dir") for name, entry in found.items()}
    file = found.get("a.txt", {})
    return expect(
        kinds == {"a.txt": False, ".hidden": False, "ü b": False, "sub": True, "empty": True}
        and (file.get("size"), file.get("mtime"), answer.get("truncated")) == (3, 1_000_000_000, False)
        and (empty.get("entries"), empty.get("truncated")) == ([], False),
        f"{_about(answer)}; an empty directory: {_about(empty)}",
    )


@check(
    "artifacts.list-recursive",
    "A recursive list has everything below the directory, and does not follow links.",
    why="A link to `/` would list the whole container, or never end.",
    todo="Walk the tree without following links.",
)
def list_recursive(server: Server) -> Finding:
    tree = {"a", "a/b", "a/b/c", "a/b/c/file", "a/.hidden", "empty", "file"}
    script = "mkdir -p a/b/c empty; : > a/b/c/file; : > a/.hidden; : > file; ln -s /etc out; ln -s .. a/up"
    with _folder(server, script) as folder:
        answer = server.client.artifact("list", server.slot(), folder, recursive=True)
    found = _entries(answer, folder)
    directories = {name for name, entry in found.items() if name in tree and entry.get("is_dir")}
    missing, strange = tree - found.keys(), found.keys() - tree - {"out", "a/up"}
    return expect(
        not missing
        and not strange
        and directories == {"a", "a/b", "a/b/c", "empty"}
        and answer.get("truncated") is False,
        f"missing: {sorted(missing)}; not expected: {sorted(strange)[:10]}; directories: {sorted(directories)}; "
        f"truncated: {answer.get('truncated')!r}",
    )


@check(
    "artifacts.list-limit",
    "A list keeps to `max_entries`, recursive or not, and says when it left something out.",
    why="A cut list that passes for the whole loses files without an error.",
    todo="Count while walking, and set `truncated` when there was one more.",
)
def list_limit(server: Server) -> Finding:
    wrong = []
    with _folder(server, "for i in 1 2 3 4 5; do mkdir d$i; : > d$i/f; done") as folder:
        for recursive, there in ((False, 5), (True, 10)):
            for limit in (1, there - 1, there, there + 1):
                answer = server.client.artifact("list", server.slot(), folder, recursive=recursive, max_entries=limit)
                found = _entries(answer, folder)
                seen = (len(found), len(answer.get("entries") or ()), answer.get("truncated"))
                if seen != (min(limit, there), min(limit, there), limit < there):
                    wrong.append(f"max_entries {limit} of {there}, recursive {recursive}: {_about(answer)}")
    return expect(not wrong, "; ".join(wrong) or "of 5 and of 10 entries: as many as asked for, and `truncated` right")


def _unpack(packed: bytes) -> dict[str, tuple[str, object]] | str:
    """Kind and content of each member, in memory and within bounds; what is wrong with the archive, where it is."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            raw = stream.read(_UNPACKED_BYTES + 1)
        if len(raw) > _UNPACKED_BYTES:
            return f"it unpacks to more than {_UNPACKED_BYTES} bytes"
        members: dict[str, tuple[str, object]] = {}
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            for member in archive:
                name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
                if member.isdir():
                    members[name] = ("directory", None)
                elif member.issym():
                    members[name] = ("link", member.linkname)
                elif member.isreg() and (content := archive.extractfile(member)):
                    executable = "executable" if member.mode & 0o100 else "file"
                    members[name] = (executable, content.read())
                else:
                    members[name] = (f"type {member.type!r}", None)
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        return f"{type(error).__name__}: {error}"
    return members


@check(
    "artifacts.archive",
    "An archive unpacks to the directory that was asked for: every file's bytes, empty directories, the executable bit "
    "and links as links.",
    why="It is how a whole workspace is kept; what is not in it is lost at the next reset.",
    todo="Unpack the answer of `/artifacts/archive` and compare it with the directory.",
)
def archive(server: Server) -> Finding:
    script = (
        f"mkdir -p a/b empty; printf '{_EVERY_BYTE}' > a/b/all; printf text > 'a/ü b'; : > .hidden; "
        "printf run > a/run; chmod 755 a/run; chmod 644 a/b/all; ln -s b/all a/link; ln -s /etc/passwd out"
    )
    tree: dict[str, tuple[str, object]] = {
        "a": ("directory", None),
        "a/b": ("directory", None),
        "a/b/all": ("file", bytes(range(256))),
        "a/ü b": ("file", b"text"),
        "a/run": ("executable", b"run"),
        "a/link": ("link", "b/all"),
        ".hidden": ("file", b""),
        "empty": ("directory", None),
        "out": ("link", "/etc/passwd"),
    }
    with _folder(server, script) as folder:
        answer = server.client.artifact("archive", server.slot(), folder)
    packed = _bytes(answer)
    if packed is None or answer.get("encoding") != "base64" or answer.get("format") != "tar.gz":
        return expect(False, f"no tar.gz in base64: {_about(answer)}")
    members = _unpack(packed)
    if isinstance(members, str):
        return expect(False, f"it can't be unpacked: {members}")
    # Names may be told from the workspace or from the directory, which may be a member itself.
    found = {name.removeprefix(f"{folder}/"): member for name, member in members.items() if name not in ("", folder)}
    wrong = [f"{name}: {found.get(name, ('missing', None))[0]}" for name in tree if found.get(name) != tree[name]]
    wrong += [f"{name}: not in the directory" for name in sorted(found.keys() - tree)[:10]]
    count = answer.get("entry_count")
    files = sum(kind in ("file", "executable") for kind, _ in tree.values())
    if not isinstance(count, int) or not files <= count <= len(members):
        wrong.append(f"entry_count {count!r} of {len(members)} members")
    if answer.get("bytes") != len(packed):
        wrong.append(f"bytes {answer.get('bytes')!r} of {len(packed)}")
    return expect(not wrong, "; ".join(wrong) or f"{len(members)} members, as in the directory")


def _statuses(
    server: Server, *requests: tuple[str, dict[str, Any]], expected: int, or_: int = 0, **more: Any
) -> Finding:
    """Whether each request, a call and its fields, is answered with ``expected``; ``more`` are fields of all."""
    seen = []
    for call, fields in requests:
        body = {"slot_id": server.slot(), **more, **fields}
        status, _ = server.client.request("POST", f"/artifacts/{call}", body, timeout_s=5)
        told = ", ".join(f"{key} {value!r}" for key, value in fields.items())
        seen.append((status in (expected, or_), f"{call}, {told}: HTTP {status}"))
    wrong = [text for right, text in seen if not right]
    return expect(not wrong, "; ".join(wrong) or f"{len(seen)} requests answered with {expected}")


@check(
    "artifacts.outside",
    "A path out of the workspace, by `..`, from the root or through a link, is answered with 403 by read, list and "
    "archive.",
    why="The server's own files and other slots' work lie just beside the workspace.",
    todo="Resolve the path, links included, before opening it.",
)
def outside(server: Server) -> Finding:
    with _folder(server, "ln -s /etc/passwd file; ln -s /etc folder; ln -s /proc/self process") as links:
        bounded = {"max_entries": 20}
        # Inside, and not there, for a server that takes `..` away before it follows a link.
        back = _statuses(server, ("read", {"path": f"{links}/process/../version"}), expected=403, or_=404)
        seen = _statuses(
            server,
            *(("read", {"path": path}) for path in ("../../../../etc/passwd", "/etc/passwd", f"{links}/file")),
            ("read", {"path": f"{links}/folder/passwd"}),
            *(("list", {"path": path, **bounded}) for path in ("..", "../slot_1", "/etc", f"{links}/folder")),
            *(("archive", {"path": path, **bounded}) for path in ("..", "/etc/passwd", f"{links}/folder")),
            expected=403,
        )
    return seen if back.passed else back


@check(
    "artifacts.unknown-slot",
    "Read, list and archive of a slot that does not exist are answered with 404.",
    why="A client has to tell a wrong slot from an empty one.",
    todo="Look the slot up among those that there are, and answer 404 where it is none of them.",
)
def unknown_slot(server: Server) -> Finding:
    requests = [(call, {"slot_id": slot}) for call in CALLS for slot in ("slot_999999", "no-such", "../slot_0")]
    return _statuses(server, *requests, expected=404, path=".")


@check(
    "artifacts.missing",
    "Read, list and archive of a path that does not exist are answered with 404.",
    why="An empty answer instead would read as an empty file or directory.",
    todo="Answer 404 where the path is not there.",
)
def missing(server: Server) -> Finding:
    name = nonce()
    return _statuses(server, *((call, {"path": path}) for call in CALLS for path in (name, f"{name}/x")), expected=404)


@check(
    "artifacts.wrong-kind",
    "Reading a directory or a FIFO and listing a file are answered with 400, at once.",
    why="A server that opens a FIFO waits for ever for somebody to write.",
    todo="Look at the kind of the entry before opening it.",
)
def wrong_kind(server: Server) -> Finding:
    with _folder(server, "mkdir d; : > file; mkfifo fifo") as folder:
        try:
            return _statuses(
                server,
                ("read", {"path": f"{folder}/d"}),
                ("read", {"path": f"{folder}/fifo"}),
                ("list", {"path": f"{folder}/file"}),
                expected=400,
            )
        finally:
            # Frees a server that waits for a writer.
            server.bash(f": <> {folder}/fifo")


@check(
    "artifacts.wrong-encoding",
    "An encoding or a format that the protocol does not have is answered with 400.",
    why="A client that asked for one thing and got another reads it wrongly.",
    todo="Accept `text` and `base64` for reading and `tar.gz` for an archive, and refuse the rest.",
)
def wrong_encoding(server: Server) -> Finding:
    with _folder(server, ": > file") as folder:
        return _statuses(
            server,
            *(("read", {"path": f"{folder}/file", "encoding": word}) for word in ("latin-1", "hex", "BASE65")),
            *(("archive", {"path": folder, "format": word}) for word in ("zip", "tar.rar")),
            expected=400,
        )


@check(
    "artifacts.archive-limit",
    "An archive beyond `max_bytes` or `max_entries` is answered with 413, and one within them is made.",
    why="Half an archive is no archive, and a whole one may be too much for the client.",
    todo="Count entries and bytes while packing, and answer 413 when there is one too many.",
)
def archive_limit(server: Server) -> Finding:
    with _folder(server, "mkdir d; for i in 1 2 3 4; do echo $i > d/$i; done") as folder:
        kept = server.client.artifact("archive", server.slot(), folder, max_entries=10, max_bytes=1_000_000)
        over = _statuses(
            server,
            ("archive", {"path": folder, "max_bytes": 1}),
            ("archive", {"path": folder, "max_entries": 2}),
            expected=413,
        )
    return expect(kept.get("success") is True and over.passed, f"{over.saw}; within both: {_about(kept)}")
