"""``read_file`` and ``write_file`` keep what they are given, inside the workspace."""

from __future__ import annotations

from sifproof.checks.registry import Finding, check, expect
from sifproof.checks.server import Server, nonce
from sifproof.nomad.client import NotFoundError


@check(
    "files.roundtrip",
    "What `write_file` writes, `read_file` reads back, byte for byte.",
    why="Agents edit code through these two calls.",
    todo="Write and read the same file by hand through the server.",
)
def roundtrip(server: Server) -> Finding:
    path, text = f"{nonce()}.txt", "first line\n  indented\ttab\r\nlast line without end"
    written, seen = server.write(path, text), server.read(path)
    return expect(written.success and seen.success and seen.output == text, f"wrote: {written}; read: {seen}")


@check(
    "files.size",
    "Writing and reading report the file's size in bytes.",
    why="Clients compare it with what they sent; characters and bytes differ beyond ASCII.",
    todo="Look at what the server counts.",
)
def size(server: Server) -> Finding:
    path, text = nonce(), "äöü日本🧪"
    sizes = (server.write(path, text).metadata.get("size"), server.read(path).metadata.get("size"))
    expected = len(text.encode())
    return expect(sizes == (expected, expected), f"written {sizes[0]!r}, read {sizes[1]!r}; {expected} bytes expected")


@check(
    "files.parents",
    "`write_file` makes missing parent directories.",
    why="Agents write new modules without `mkdir`.",
    todo="Look at how the server opens the file.",
)
def parents(server: Server) -> Finding:
    top, word = nonce(), nonce()
    written, seen = server.write(f"{top}/a/b/c.txt", word), server.read(f"{top}/a/b/c.txt")
    return expect(written.success and seen.output == word, f"wrote: {written}; read: {seen}")


@check(
    "files.overwrite",
    "Writing again replaces the whole file.",
    why="A shorter version with the rest of a longer one behind it is corrupt code.",
    todo="Look at whether the server truncates.",
)
def overwrite(server: Server) -> Finding:
    path, short = nonce(), nonce()
    server.write(path, "x" * 1000)
    written, seen = server.write(path, short), server.read(path)
    return expect(written.success and seen.output == short, f"wrote: {written}; read: {seen}")


@check(
    "files.empty",
    "An empty file can be written and read.",
    why="`__init__.py` is one.",
    todo="Look for a test of the content's truth in the server.",
)
def empty(server: Server) -> Finding:
    path = nonce()
    written, seen = server.write(path, ""), server.read(path)
    there = server.bash(f"test -f {path} && test ! -s {path}")
    return expect(
        written.success and seen.success and seen.output == "" and there.success,
        f"wrote: {written}; read: {seen}; exists and is empty: {there.success}",
    )


@check(
    "files.unicode",
    "Text and file names beyond ASCII are kept.",
    why="Test data and translations are not ASCII.",
    todo="Set `LANG=C.UTF-8` in the image, and open files as UTF-8.",
)
def unicode(server: Server) -> Finding:
    path, text = f"{nonce()}-größe-日本.txt", "Grüße, 日本語, 🧪, a\u0301, \u2028"
    written, seen = server.write(path, text), server.read(path)
    return expect(written.success and seen.success and seen.output == text, f"wrote: {written}; read: {seen}")


@check(
    "files.missing",
    "Reading a file that does not exist fails and says so.",
    why="An empty answer instead would read as an empty file.",
    todo="Compare with the protocol: `File not found: …`.",
)
def missing(server: Server) -> Finding:
    seen = server.read(nonce())
    return expect(not seen.success and "not found" in seen.error.lower(), seen)


@check(
    "files.directory",
    "Reading a directory fails and says so.",
    why="It must not end the server or look like a file.",
    todo="Compare with the protocol: `Not a file: …`.",
)
def directory(server: Server) -> Finding:
    name = nonce()
    server.bash(f"mkdir {name}")
    seen = server.read(name)
    server.bash(f"rmdir {name}")
    return expect(not seen.success and "not a file" in seen.error.lower(), seen)


@check(
    "files.outside",
    "A path that leads out of the workspace, by `..`, from the root or through a link, is refused for reading and for "
    "writing, and nothing is written beside the workspace.",
    why="The server's own files and other slots' work lie just beside the workspace.",
    todo="Resolve the path, links included, before opening it.",
)
def outside(server: Server) -> Finding:
    name, links = nonce(), nonce()
    made = server.bash(f"mkdir {links} && ln -s /etc/passwd {links}/file && ln -s /tmp {links}/folder")
    reads = ("../../../../etc/passwd", "/etc/passwd", "../slot_1", f"{links}/file")
    writes = (f"../{name}", f"/var/tmp/{name}", f"d/../../{name}", f"{links}/folder/{name}")  # noqa: S108
    calls = [(f"read {path}", server.read(path)) for path in reads]
    calls += [(f"write {path}", server.write(path, "x")) for path in writes]
    let_out = [f"{call}: {result}" for call, result in calls if result.success or "denied" not in result.error.lower()]
    if not made.success:
        let_out.append(f"making links: {made}")
    try:
        server.read_allocation_file(f"{server.workspace()}/../{name}")
        let_out.append(f"a file {name} beside the workspace")
    except NotFoundError:
        pass
    server.bash(f"rm -rf {links}")
    return expect(not let_out, "; ".join(let_out) or f"{len(calls)} paths out of the workspace refused")


@check(
    "files.seen-by-bash",
    "Files written by `write_file` are there for commands of the same slot, and the other way round.",
    why="Agents write code with one tool and run it with the other.",
    todo="Look at the mount of the workspace in the command's sandbox.",
)
def seen_by_bash(server: Server) -> Finding:
    there, back, word, answer = nonce(), nonce(), nonce(), nonce()
    server.write(there, word)
    seen = server.bash(f"cat {there} && printf %s {answer} > {back}")
    read = server.read(back)
    return expect(seen.output.strip() == word and read.output == answer, f"bash saw: {seen}; read_file saw: {read}")


@check(
    "files.in-allocation",
    "What is written is in the allocation's directory, as Nomad shows it.",
    why="Logs and results are collected from there; a server that writes elsewhere loses them with the container.",
    todo="Look at `--data-dir` and the bind of the allocation's directory.",
)
def in_allocation(server: Server) -> Finding:
    path, word = nonce(), nonce()
    written = server.write(path, word)
    seen = server.read_slot_file(path)
    return expect(written.success and seen == word.encode(), f"wrote: {written}; Nomad shows {len(seen)} bytes")
