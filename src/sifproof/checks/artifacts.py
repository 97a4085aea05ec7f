"""``/artifacts``: what a slot holds is read, listed and packed as it is, and nothing else is."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import io
import json
import tarfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any

from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.config import DRIVERS

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
    "`include_sha256` gives the SHA-256 of the file's bytes: of all of them, also where `max_bytes` cuts what comes.",
    why="It is how a client knows that what it has is what the sandbox had, and whether a part belongs to it.",
    todo="Hash the bytes of the whole file, not the text, the base64 or the part that is sent.",
)
def sha256(server: Server) -> Finding:
    content = {"all": bytes(range(256)), "none": b""}
    wanted = {name: hashlib.sha256(whole).hexdigest() for name, whole in content.items()}
    with _folder(server, f"printf '{_EVERY_BYTE}' > all; : > none") as folder:
        seen = {
            (name, encoding, most): _read(
                server, f"{folder}/{name}", encoding=encoding, max_bytes=most, include_sha256=True
            ).get("sha256")
            for name, encoding, most in (
                ("all", "base64", 1000),
                ("none", "base64", 1000),
                ("none", "text", 1000),
                ("all", "base64", 10),
                ("all", "text", 10),
            )
        }
    wrong = {key: value for key, value in seen.items() if value != wanted[key[0]]}
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
        kept = _times(server, folder, "a.txt").get("a.txt", _GIVEN_TIME)
    found = _entries(answer, folder)
    kinds = {name: entry.get("is_dir") for name, entry in found.items()}
    file = found.get("a.txt", {})
    mtime = file.get("mtime")
    return expect(
        kinds == {"a.txt": False, ".hidden": False, "ü b": False, "sub": True, "empty": True}
        and (file.get("size"), answer.get("truncated")) == (3, False)
        and isinstance(mtime, int | float)
        and int(mtime) == kept
        and (empty.get("entries"), empty.get("truncated")) == ([], False),
        f"{_about(answer)}; an empty directory: {_about(empty)}{_not_kept(kept)}",
    )


_GIVEN_TIME = 1_000_000_000
"""What `touch -t` gives to a file here; a file system may keep another, and no server is to blame for that."""


def _times(server: Server, folder: str, *names: str) -> dict[str, int]:
    """When files were changed, as commands see it; nothing of those where they can't."""
    told = server.bash("; ".join(f'echo "$(date -r {quote(f"{folder}/{name}")} +%s)"' for name in names))
    words = told.output.split("\n")
    return {name: int(word) for name, word in zip(names, words, strict=False) if word.isdigit()}


def _not_kept(kept: int) -> str:
    return "" if kept == _GIVEN_TIME else f"; the file system keeps {kept} where {_GIVEN_TIME} was given"


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


@dataclass(frozen=True)
class _Member:
    """What an archive holds under one name."""

    kind: str
    content: object = None
    time: float = 0.0

    def like(self, other: _Member) -> bool:
        return (self.kind, self.content) == (other.kind, other.content)


def _unpack(packed: bytes) -> dict[str, _Member] | str:
    """Each member by its name, in memory and within bounds; what is wrong with the archive, where it is."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            raw = stream.read(_UNPACKED_BYTES + 1)
        if len(raw) > _UNPACKED_BYTES:
            return f"it unpacks to more than {_UNPACKED_BYTES} bytes"
        members: dict[str, _Member] = {}
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    found = _Member("directory")
                elif member.issym():
                    found = _Member("link", member.linkname)
                elif member.isreg() and (content := archive.extractfile(member)):
                    found = _Member("executable" if member.mode & 0o100 else "file", content.read(), member.mtime)
                else:
                    found = _Member(f"entry of type {member.type!r}")
                members[member.name] = found
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        return f"{type(error).__name__}: {error}"
    return members


def _below(members: dict[str, _Member], folder: str) -> dict[str, _Member]:
    """The members by their name below ``folder``, from wherever the archive tells names: it may be a member itself."""
    found = {}
    for name, member in members.items():
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if folder in parts:
            parts = parts[parts.index(folder) + 1 :]
        if parts:
            found["/".join(parts)] = member
    return found


_TREE: dict[str, _Member] = {
    "a": _Member("directory"),
    "a/b": _Member("directory"),
    "a/b/all": _Member("file", bytes(range(256))),
    "a/ü b": _Member("file", b"text"),
    "a/run": _Member("executable", b"run"),
    "a/link": _Member("link", "b/all"),
    ".hidden": _Member("file", b""),
    "empty": _Member("directory"),
    "out": _Member("link", "/etc/passwd"),
}


@dataclass(frozen=True)
class _Archived:
    """The answer to an archive of :data:`_TREE`, and what the file system keeps of what was given to its files."""

    folder: str
    answer: dict[str, Any]
    executable: set[str]
    """Files that commands may execute: where modes are not kept, others than were made so."""
    kept: int | None
    """The time of `a/run` as commands see it; None where they can't."""


def _archive(server: Server) -> _Archived:
    script = (
        f"mkdir -p a/b empty; printf '{_EVERY_BYTE}' > a/b/all; printf text > 'a/ü b'; : > .hidden; "
        "printf run > a/run; chmod 755 a/run; chmod 644 a/b/all; ln -s b/all a/link; ln -s /etc/passwd out; "
        "TZ=UTC0 touch -t 200109090146.40 a/run"
    )
    files = [name for name, member in _TREE.items() if member.kind in ("file", "executable")]
    with _folder(server, script) as folder:
        answer = server.client.artifact("archive", server.slot(), folder)
        tests = "; ".join(f"test ! -x {quote(f'{folder}/{name}')} || echo {quote(name)}" for name in files)
        executable = {line for line in server.bash(tests).output.split("\n") if line}
        return _Archived(folder, answer, executable, _times(server, folder, "a/run").get("a/run"))


@check(
    "artifacts.archive",
    "An archive unpacks to the directory that was asked for: every file's bytes, empty directories, the executable bit "
    "and links as links, under names that lead nowhere else.",
    why="It is how a whole workspace is kept; what is not in it is lost at the next reset.",
    todo="Unpack the answer of `/artifacts/archive` and compare it with the directory.",
    once=True,
)
def archive(server: Server) -> Finding:
    made = server.share("archived", lambda: _archive(server))
    packed = _bytes(made.answer)
    if packed is None or made.answer.get("encoding") != "base64" or made.answer.get("format") != "tar.gz":
        return expect(False, f"no tar.gz in base64: {_about(made.answer)}")
    members = _unpack(packed)
    if isinstance(members, str):
        return expect(False, f"it can't be unpacked: {members}")
    found = _below(members, made.folder)
    files = {name: member for name, member in _TREE.items() if member.kind in ("file", "executable")}
    as_kept = {n: replace(m, kind="executable" if n in made.executable else "file") for n, m in files.items()}
    wrong = [_difference(name, found.get(name), member) for name, member in (_TREE | as_kept).items()]
    wrong += [f"{name}: not in the directory" for name in sorted(found.keys() - _TREE.keys())[:10]]
    wrong += [f"{name}: leads out of where it is unpacked" for name in members if _leads_out(name)][:10]
    count = made.answer.get("entry_count")
    if not isinstance(count, int) or not len(files) <= count <= len(members):
        wrong.append(f"entry_count {count!r} of {len(members)} members")
    if made.answer.get("bytes") != len(packed):
        wrong.append(f"bytes {made.answer.get('bytes')!r} of {len(packed)}")
    modes = "" if made.executable == {"a/run"} else "; the file system does not keep which files can be executed"
    wrong = [text for text in wrong if text]
    return expect(not wrong, ("; ".join(wrong) or f"{len(members)} members, as in the directory") + modes)


def _difference(name: str, found: _Member | None, wanted: _Member) -> str:
    """How what is found under a name differs from what there was; nothing where it does not."""
    if found is None:
        return f"{name}: missing"
    if found.kind != wanted.kind:
        return f"{name}: {found.kind} instead of {wanted.kind}"
    return "" if found.like(wanted) else f"{name}: {found.kind} with another content, {found.content!r:.60}"


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


@check(
    "artifacts.archive-times",
    "The files of an archive have the times of the files in the workspace.",
    why="What `make` has built is built anew where all files are of one time.",
    todo="Take the time of each member from its file.",
    advisory=dict.fromkeys(DRIVERS, "a server may leave times out, so that the same files make the same archive"),
    once=True,
)
def archive_times(server: Server) -> Finding:
    made = server.share("archived", lambda: _archive(server))
    members = _unpack(_bytes(made.answer) or b"")
    if isinstance(members, str) or made.kept is None:
        raise NotMeasured(f"the times can't be compared: {members if isinstance(members, str) else 'no date -r'}")
    found = _below(members, made.folder).get("a/run")
    return expect(
        found is not None and abs(found.time - made.kept) <= _TAR_SECONDS,
        f"of {made.kept} came {found and found.time}{_not_kept(made.kept)}",
    )


_TAR_SECONDS = 1
"""A member's time is in whole seconds, cut or rounded."""

_MOST = 0.7
"""Of the time that an archive takes, by the client's clock: the rest may go into sending it."""

_PACKED_BYTES = (8 * 2**20, *3 * (24 * 2**20,))
"""What is packed while others ask: harmless, and a second or less of work; more than once where others seem held up.

It can't be compressed, so that it takes its time. A server holds it several times over, so it is less where the job has
little memory.
"""


@check(
    "artifacts.archive-meanwhile",
    "While a large archive is made, the server answers others, and commands and file tools of other slots run.",
    why="Whoever keeps a workspace would otherwise hold up every agent of the server.",
    todo="Pack in a thread or a process of its own, not between two requests.",
)
def archive_meanwhile(server: Server) -> Finding:
    saw, absent = "", nonce()
    for size in (server.at_most_of_memory(size, 16) for size in _PACKED_BYTES):
        with _folder(server, f"head -c {size} /dev/urandom > large") as folder, ThreadPoolExecutor(1) as caller:
            begin = time.monotonic()
            packing = caller.submit(
                server.client.request, "POST", "/artifacts/archive", {"slot_id": server.slot(), "path": folder}
            )
            held_up, asked = 0.0, begin
            while not packing.done():
                server.client.health()
                if server.slots > 1:
                    server.bash(":", slot=1)
                    # Of one that is not there: who looks for it may need what the archive holds all the same.
                    server.read(absent, slot=1)
                asked, before = time.monotonic(), asked
                held_up = max(held_up, asked - before)
            status, _ = packing.result()
            seconds = time.monotonic() - begin
        if status == 413:
            raise NotApplicable(f"it makes no archive of {size >> 20} MiB: HTTP 413")
        saw = f"while one of {size >> 20} MiB was made in {seconds:.2f} s, others waited {held_up:.2f} s at most"
        if status != 200:
            return expect(False, f"HTTP {status}")
        # Who waits for all of it waits until no more than the answer is to be sent; a loaded node gets more looks.
        if held_up < _MOST * seconds:
            return expect(True, saw)
    return expect(False, saw)


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
    "Reading a directory or a FIFO is answered with 400, at once; listing a file too, or with an entry for it alone.",
    why="A server that opens a FIFO waits for ever for somebody to write; a file's list is not that of its directory.",
    todo="Look at the kind of the entry before opening it.",
)
def wrong_kind(server: Server) -> Finding:
    with _folder(server, "mkdir d; : > file; mkfifo fifo") as folder:
        file = f"{folder}/file"
        try:
            seen = _statuses(server, *(("read", {"path": f"{folder}/{name}"}) for name in ("d", "fifo")), expected=400)
            status, listed = server.client.request(
                "POST", "/artifacts/list", {"slot_id": server.slot(), "path": file}, timeout_s=5
            )
        finally:
            # Frees a server that waits for a writer.
            server.bash(f": <> {folder}/fifo")
    alone = status == 400 or (status == 200 and _names_alone(listed, "file"))
    return expect(
        seen.passed and alone, f"{seen.saw}; list of a file: HTTP {status} {listed[:200].decode('utf-8', 'replace')}"
    )


def _names_alone(listed: bytes, name: str) -> bool:
    """Whether a list has one entry, a file of that name."""
    try:
        (entry,) = json.loads(listed)["entries"]
        return entry["is_dir"] is False and str(entry["path"]).rpartition("/")[2] == name
    except (ValueError, KeyError, TypeError):
        return False


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
