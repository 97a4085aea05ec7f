"""``read_file`` and ``write_file`` keep what they are given, inside the workspace."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from shlex import quote

from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.config import DRIVERS
from sifproof.errors import SifproofError
from sifproof.nomad.client import NotFoundError
from sifproof.sandbox.client import Result, ServerError

SIZE_LIMIT_BYTES = 100_000
"""Of a file that can be read or written by one call."""

NAME_LIMIT_BYTES = 255
"""Of a name in a directory, on every common file system."""


@contextlib.contextmanager
def _name(server: Server, *, slot: int = 0) -> Iterator[str]:
    """A name in the slot's workspace; whatever begins with it is gone afterwards."""
    name = nonce()
    try:
        yield name
    finally:
        server.bash(f"rm -rf -- {name}*", slot=slot, timeout_s=10.0)


@check(
    "files.roundtrip",
    "What `write_file` writes, `read_file` reads back, byte for byte.",
    why="Agents edit code through these two calls.",
    todo="Write and read the same file by hand through the server.",
)
def roundtrip(server: Server) -> Finding:
    texts = ["first line\n  indented\ttab\r\nlast line without end", " \n both ends of white space \n\n\t "]
    texts += [
        "\ufeffa mark of order",
        "\x0b control \x1b characters \x7f",
        "as most files end\n",
        "end of a page\n\n\n",
        "",
    ]
    saw = []
    with _name(server) as name:
        for number, text in enumerate(texts):
            written, seen = server.write(f"{name}-{number}", text), server.read(f"{name}-{number}")
            if not (written.success and seen.success and seen.output == text):
                saw.append(f"of {text!r}: wrote: {written}; read: {seen.output!r}, {seen.error}")
        # That a text file holds a zero byte a server may refuse; what it takes, it has to keep.
        odd = "before\0after"
        written, seen = server.write(f"{name}-zero", odd), server.read(f"{name}-zero")
        if written.success and seen.output != odd:
            saw.append(f"of {odd!r}: wrote: {written}; read: {seen.output!r}, {seen.error}")
    return expect(not saw, "; ".join(saw) or f"{len(texts) + 1} texts as they were written")


@check(
    "files.size",
    "Writing and reading report the file's size in bytes.",
    why="Clients compare it with what they sent; characters and bytes differ beyond ASCII.",
    todo="Look at what the server counts.",
)
def size(server: Server) -> Finding:
    text = "äöü日本🧪"
    with _name(server) as name:
        sizes = (server.write(name, text).metadata.get("size"), server.read(name).metadata.get("size"))
    expected = len(text.encode())
    return expect(sizes == (expected, expected), f"written {sizes[0]!r}, read {sizes[1]!r}; {expected} bytes expected")


@check(
    "files.write-limit",
    f"`write_file` takes a file of exactly {SIZE_LIMIT_BYTES:,} bytes, and refuses one byte more and writes nothing.",
    why="Clients split their work at the documented limit; a file cut in silence is corrupt.",
    todo="Compare with the protocol: `Content too large: …` for more than 100,000 bytes.",
)
def write_limit(server: Server) -> Finding:
    with _name(server) as name:
        taken = server.write(f"{name}-at", "x" * SIZE_LIMIT_BYTES)
        refused = server.write(f"{name}-over", "x" * (SIZE_LIMIT_BYTES + 1))
        there = server.bash(f"wc -c < {name}-at; test ! -e {name}-over || wc -c < {name}-over")
    return expect(
        taken.success and _too_large(refused) and there.output.split() == [str(SIZE_LIMIT_BYTES)],
        f"at the limit: {taken}; one byte over: {refused}; bytes that are there: {there.output.split()}",
    )


@check(
    "files.read-limit",
    f"`read_file` gives a file of exactly {SIZE_LIMIT_BYTES:,} bytes, and refuses one of one byte more.",
    why="Clients split their work at the documented limit; half a file looks like a whole one.",
    todo="Compare with the protocol: `File too large: …` for more than 100,000 bytes.",
)
def read_limit(server: Server) -> Finding:
    with _name(server) as name:
        made = server.bash(
            f"printf '%0{SIZE_LIMIT_BYTES}d' 0 > {name}-at && printf '%0{SIZE_LIMIT_BYTES + 1}d' 0 > {name}-over"
        )
        given, refused = server.read(f"{name}-at"), server.read(f"{name}-over")
    return expect(
        made.success and given.success and given.output == "0" * SIZE_LIMIT_BYTES and _too_large(refused),
        f"at the limit: {given}; one byte over: {refused}",
    )


@check(
    "files.limit-in-bytes",
    f"The limit of {SIZE_LIMIT_BYTES:,} is one of bytes, not of characters, for writing and for reading.",
    why="What one call writes another must be able to read; text beyond ASCII has up to four bytes a character.",
    todo="Encode the content before its length is compared with the limit.",
)
def limit_in_bytes(server: Server) -> Finding:
    at, over = "ä" * (SIZE_LIMIT_BYTES // 2), "ä" * (SIZE_LIMIT_BYTES // 2 + 1)
    with _name(server) as name:
        taken, refused = server.write(f"{name}-at", at), server.write(f"{name}-over", over)
        made = server.bash(f"printf '%0{len(over)}d' 0 | sed 's/0/ä/g' > {name}-made; wc -c < {name}-made")
        given, not_given = server.read(f"{name}-at"), server.read(f"{name}-made")
    return expect(
        taken.success
        and given.output == at
        and _too_large(refused)
        and made.output.strip() == str(len(over.encode()))
        and _too_large(not_given),
        f"{len(at):,} characters of two bytes: written {taken}, read {given}; {len(over):,}, which is "
        f"{len(over.encode()):,} bytes: written {refused}, read {not_given}",
    )


def _too_large(result: Result) -> bool:
    return not result.success and "too large" in result.error.lower()


@check(
    "files.parents",
    "`write_file` makes missing parent directories.",
    why="Agents write new modules without `mkdir`.",
    todo="Look at how the server opens the file.",
)
def parents(server: Server) -> Finding:
    word = nonce()
    with _name(server) as top:
        written, seen = server.write(f"{top}/a/b/c.txt", word), server.read(f"{top}/a/b/c.txt")
    return expect(written.success and seen.output == word, f"wrote: {written}; read: {seen}")


@check(
    "files.overwrite",
    "Writing again replaces the whole file, and leaves nothing else in its directory.",
    why="A shorter version with the rest of a longer one behind it is corrupt code; copies that are left are found by "
    "`git` and by tests.",
    todo="Look at whether the server truncates, and at what it keeps beside the file.",
)
def overwrite(server: Server) -> Finding:
    short = nonce()
    with _name(server) as name:
        server.bash(f"mkdir {name}")
        server.write(f"{name}/file", "x" * 1000)
        written, seen = server.write(f"{name}/file", short), server.read(f"{name}/file")
        there = server.bash(f"ls -A {name}")
    return expect(
        written.success and seen.output == short and there.output.split() == ["file"],
        f"wrote: {written}; read: {seen}; in its directory: {there.output.split()}",
    )


@check(
    "files.mode-kept",
    "A file that `write_file` writes anew keeps its mode: what was executable is, and what was closed to others is.",
    why="An agent that has edited a script runs it next; a key that others can read is lost.",
    todo="Write into the file, or give the one that takes its place the mode of the first.",
)
def mode_kept(server: Server) -> Finding:
    seen = {}
    with _name(server) as name:
        for mode in ("755", "600"):
            file, word = f"{name}-{mode}", nonce()
            made = server.bash(f"echo old > {file} && chmod {mode} {file} && ls -l {file}")
            if not made.success:
                raise NotMeasured(f"a file of mode {mode} can't be made: {made}")
            written, left = server.write(file, word), server.bash(f"ls -l {file}; cat {file}")
            # As the file system keeps it, which may know no modes.
            before, after = made.output.strip()[:10], left.output.strip()[:10]
            if not written.success or word not in left.output or before != after:
                seen[mode] = f"mode {mode}, {before}: {written}; afterwards {left}"
    return expect(not seen, "; ".join(seen.values()) or "755 and 600 as they were")


@check(
    "files.refused-write",
    "What was in a file is still there when `write_file` refuses the new content, or is given none.",
    why="A failed edit must not cost the work that was to be edited.",
    todo="Look at size and encoding of the content before the file is opened.",
)
def refused_write(server: Server) -> Finding:
    old = nonce()
    contents = {"too large": "x" * (SIZE_LIMIT_BYTES + 1), "no character": "\ud800", "none at all": None}
    lost = []
    with _name(server) as name:
        for what, content in contents.items():
            server.write(name, old)
            try:
                args = {"path": name} if content is None else {"path": name, "content": content}
                written = server.client.execute(server.slot(), "write_file", args)
            except ServerError as error:  # refused as a request, as it may be
                written = Result(success=False, error=str(error))
            seen = server.read(name)
            if seen.output != old and not (written.success and content):
                lost.append(f"{what}: {written}; and then the file holds {seen}")
    return expect(not lost, "; ".join(lost) or "the old content is there")


_HELD_S = (0.3, 3.0)


@check(
    "files.in-turn",
    "`read_file` and `write_file` wait for the command that runs in their slot.",
    why="Tools of one slot run one at a time: else an agent reads what a build has half written.",
    todo="Take the slot's lock for the file tools, too.",
    waits_s=_HELD_S[0],
)
def in_turn(server: Server) -> Finding:
    waited_s = 0.0
    # Told by what the file holds, not by a clock; a slow client gets a second, longer look.
    for seconds in _HELD_S:
        with _name(server) as name, ThreadPoolExecutor(3) as callers:
            command = f"echo half > {name}; echo mine > {name}-w; sleep {seconds}; cat {name}-w; echo whole > {name}"
            running = callers.submit(server.bash, command)
            # By a call that waits for nobody, or for the command, which is as well.
            body = {"slot_id": server.slot(), "path": f"{name}-w"}
            while not running.done() and server.client.request("POST", "/artifacts/read", body)[0] != 200:
                time.sleep(0.01)
            reading = callers.submit(server.read, name)
            writing = callers.submit(server.write, f"{name}-w", "theirs")
            command_saw, seen, written = running.result(), reading.result(), writing.result()
            after = server.read(f"{name}-w")
        waited_s += seconds
        saw = f"the command found {command_saw.output!r} of what it wrote; read meanwhile: {seen}; wrote: {written}"
        if "half" in seen.output or command_saw.output.strip() != "mine":
            return expect(False, saw, waited_s=waited_s)
        if "whole" in seen.output and after.output == "theirs":
            return expect(True, saw, waited_s=waited_s)
    # They came before it.
    raise NotMeasured(f"the calls did not come while the command ran: {saw}")


_REPLACED_TIMES = 8


@check(
    "files.whole",
    "Who reads a file while `write_file` replaces it never sees a part of the new content.",
    why="Half a module is a syntax error that nobody finds again.",
    todo="Write to a temporary file and rename it, or write all of it at once.",
)
def whole(server: Server) -> Finding:
    # Of one page, which a single write fills at once: only who writes in parts shows a part.
    contents = [letter * 2000 for letter in "ab"]
    parts = set()
    looked = status = 0
    with _name(server) as name, ThreadPoolExecutor(1) as caller:
        body = {"slot_id": server.slot(), "path": name}
        server.write(name, contents[0])
        for number in range(_REPLACED_TIMES):
            writing = caller.submit(server.write, name, contents[(number + 1) % 2])
            while not writing.done():
                status, answer = server.client.request("POST", "/artifacts/read", body)
                content = json.loads(answer).get("content") if status == 200 else None
                looked += status == 200
                # One that is empty is not held against a server: for that long every file is that is opened anew.
                if content and content not in contents:
                    parts.add(f"{len(content)} characters: {content[:3]}…{content[-3:]}")
    if not looked:
        raise NotMeasured(f"the file could not be read meanwhile: HTTP {status}")
    return expect(not parts, "; ".join(sorted(parts)) or f"read {looked} times, and never a part")


@check(
    "files.inner-link",
    "A symbolic link that stays in the workspace is followed, for reading and for writing: to files, through "
    "directories, up and down again, and by another link. Writing leaves it a link.",
    why="Packages, virtual environments and repositories are full of them.",
    todo="Refuse a link by where it leads, not for being one.",
)
def inner_link(server: Server) -> Finding:
    word, other = nonce(), nonce()
    with _name(server) as name:
        made = server.bash(
            f"mkdir -p {name}/real && echo {word} > {name}/real/file && ln -s real {name}/folder && "
            f"ln -s real/file {name}/link && mkdir {name}/bin && ln -s ../real/file {name}/bin/up && "
            f"ln -s bin/up {name}/by-another"
        )
        if not made.success:
            raise NotApplicable(f"no links can be made in the workspace: {made}")
        reads = {path: server.read(f"{name}/{path}") for path in ("link", "folder/file", "bin/up", "by-another")}
        writes = {path: server.write(f"{name}/{path}", other) for path in ("link", "folder/new")}
        # What stands in the link's place is not looked at, but what it leads to.
        there = server.bash(f"cat {name}/real/new && cat {name}/real/file && test -L {name}/link")
    wrong = [f"read {path}: {result}" for path, result in reads.items() if result.output.strip() != word]
    wrong += [f"write {path}: {result}" for path, result in writes.items() if not result.success]
    if not wrong and not (there.success and there.output.strip() == other * 2):
        wrong.append(f"what was written is not what a command sees: {there}")
    return expect(not wrong, "; ".join(wrong) or "followed")


@check(
    "files.modes",
    "What its mode keeps a command from, `read_file` and `write_file` are kept from, too.",
    why="Who takes the right to write from a file wants it to stay as it is.",
    todo="Look at the mode of a file before opening it, where the server runs as root.",
    advisory=dict.fromkeys(DRIVERS, "the protocol does not say with whose rights the server opens files"),
)
def modes(server: Server) -> Finding:
    word, other = nonce(), nonce()
    with _name(server) as name:
        obeyed = server.bash(
            f"echo {word} > {name}; echo {word} > {name}-w; chmod 000 {name}; chmod 444 {name}-w; "
            f"test ! -r {name} && echo read; test ! -w {name}-w && echo write"
        ).output.split()
        seen = server.read(name)
        written = server.write(f"{name}-w", other)
        server.bash(f"chmod 644 {name} {name}-w")
        left = server.read(f"{name}-w").output.strip()
    if not obeyed:
        raise NotApplicable("no mode keeps a command from a file here")
    wrong = [f"read, with mode 000: {seen}"] if "read" in obeyed and seen.success else []
    wrong += [f"written, with mode 444: {written}"] if "write" in obeyed and (written.success or left != word) else []
    return expect(not wrong, "; ".join(wrong) or f"read: {seen}; wrote: {written}")


@check(
    "files.shown-path",
    "The path that `pwd` shows to a command is one by which `read_file` and `write_file` know the workspace.",
    why="Agents copy paths out of a command's output.",
    todo="Accept an absolute path below what commands call the workspace.",
    advisory=dict.fromkeys(DRIVERS, "the protocol promises paths relative to the workspace, and no others"),
)
def shown_path(server: Server) -> Finding:
    word = nonce()
    with _name(server) as name:
        shown = server.bash(f"echo {word} > {name}; pwd").output.strip()
        seen = server.read(f"{shown}/{name}")
        written = server.write(f"{shown}/{name}-w", word)
        back = server.read(f"{name}-w")
    return expect(
        seen.output.strip() == word and written.success and back.output == word,
        f"below {shown}: read: {seen}; wrote: {written}",
    )


@check(
    "files.empty",
    "An empty file can be written and read.",
    why="`__init__.py` is one.",
    todo="Look for a test of the content's truth in the server.",
)
def empty(server: Server) -> Finding:
    with _name(server) as name:
        written, seen = server.write(name, ""), server.read(name)
        there = server.bash(f"test -f {name} && test ! -s {name}")
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
    text = "Grüße, 日本語, 🧪, a\u0301, \u2028"
    with _name(server) as name:
        path = f"{name}-größe-日本.txt"
        written, seen = server.write(path, text), server.read(path)
    return expect(written.success and seen.success and seen.output == text, f"wrote: {written}; read: {seen}")


@check(
    "files.odd-names",
    "Files with spaces, quotes, newlines, backslashes and what a shell expands in their names are written and read "
    "under just these names.",
    why="A server that cleans or expands names writes other files than it says.",
    todo="Hand paths to the operating system as they came; build no shell command of them.",
)
def odd_names(server: Server) -> Finding:
    names = ["two  words", " lead", "trail ", "it's", 'say "hi"', "new\nline", "tab\there", "back\\slash\\n"]
    names += ["$HOME", "`id`", "*", "?", "-rf", "#", "~", "%2e%2e", "a;b&c|d"]
    with _name(server) as top:
        server.bash(f"mkdir {top}")
        wrong = []
        for name in names:
            written, seen = server.write(f"{top}/{name}", name), server.read(f"{top}/{name}")
            if not written.success or seen.output != name:
                wrong.append(f"{name!r}: wrote: {written}; read: {seen}")
        # No name holds a slash.
        listed = server.bash(f"cd {top} && for f in * ; do printf '/%s' \"$f\"; done; echo /").output.strip().split("/")
    there = {name for name in listed if name}
    if there != set(names):
        wrong.append(
            f"missing for a command: {sorted(set(names) - there)}; there instead: {sorted(there - set(names))}"
        )
    return expect(not wrong, "; ".join(wrong) or f"{len(names)} names kept")


@check(
    "files.name-length",
    f"A name of {NAME_LIMIT_BYTES} bytes can be written and read; one of {NAME_LIMIT_BYTES + 1} is refused by a result "
    "that says so, not by an HTTP error.",
    why="Generated names are long; a temporary name that a server makes by adding to one must not be too long.",
    todo="Give temporary files a short name of their own, and catch the operating system's `File name too long`.",
)
def name_length(server: Server) -> Finding:
    word = nonce()
    with _name(server) as name:
        longest, over = (name + "ä" * ((n - len(name)) // 2) + "x" * ((n - len(name)) % 2) for n in (255, 256))
        made = server.bash(f": > {longest}; rm {longest}")
        if not made.success:
            raise NotApplicable(f"the workspace's file system takes no name of {NAME_LIMIT_BYTES} bytes: {made}")
        written, seen = server.write(longest, word), server.read(longest)
        refused, not_given = server.write(over, word), server.read(over)
    return expect(
        written.success
        and seen.output == word
        and not any(result.success or not result.error for result in (refused, not_given)),
        f"{NAME_LIMIT_BYTES} bytes: wrote: {written}; read: {seen}; one more: wrote: {refused}; read: {not_given}",
    )


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
    with _name(server) as name:
        server.bash(f"mkdir {name}")
        seen = server.read(name)
    return expect(not seen.success and "not a file" in seen.error.lower(), seen)


@check(
    "files.fifo",
    "Reading a FIFO that nobody writes to fails at once, writing to one answers too, and the slot works afterwards.",
    why="A server that opens it waits for the other end for ever, with the slot or with everything.",
    todo="Look at the kind of a file before and after opening it, and open it with `O_NONBLOCK`.",
    once=True,
)
def fifo(server: Server) -> Finding:
    # A slot that hangs must not be the one that the next checks need.
    slot = server.slots - 1
    with _name(server, slot=slot) as name:
        made = server.bash(f"mkfifo {name}", slot=slot)
        if not made.success:
            missing = made.exit_code == 127
            raise (NotMeasured if missing else NotApplicable)(f"no FIFO can be made in the workspace: {made}")
        path = f"{server.workspace(slot)}/{name}"
        answers = []
        for tool, args in (("read_file", {"path": name}), ("write_file", {"path": name, "content": "x"})):
            try:
                answers.append(server.client.execute(server.slot(slot), tool, args, timeout_s=1.0))
            except ServerError as error:
                return expect(False, f"{tool} of a FIFO: {error} {_release(server, path)}")
        after = server.bash("echo usable", slot=slot)
    seen, written = answers
    return expect(
        not seen.success and after.output.strip() == "usable", f"read: {seen}; wrote: {written}; afterwards: {after}"
    )


def _release(server: Server, path: str) -> str:
    """Let go who waits for the other end of the FIFO ``path`` of the data directory, on the node; how that went."""
    if server.placement is None:
        return "Its slot may be lost."
    script = (
        f'cd "$NOMAD_ALLOC_DIR/../../"{quote(server.placed.allocation.id)}/alloc/data && test -p {quote(path)} &&'
        f" exec 3<> {quote(path)} && sleep 0.3"
    )
    try:
        server.placed.node.run(script)
    except SifproofError as error:
        return f"Its slot is lost, for the FIFO could not be opened on the node: {error}"
    return "Its slot was freed from the node."


@check(
    "files.device",
    "Reading a device fails: one in the workspace, or a link to one, or its path.",
    why="A device can be endless, can wait for ever, and can belong to the machine.",
    todo="Serve regular files only.",
)
def device(server: Server) -> Finding:
    with _name(server) as name:
        # /dev/null, the one that harms nobody who reads it. Making one needs a privilege that few commands have.
        made = server.bash(f"mknod {name} c 1 3 2>/dev/null || {{ rm -f {name}; ln -s /dev/null {name}; }}")
        seen = {path: server.read(path) for path in (name, "/dev/null", "../../../../../../../../dev/null")}
    read = [f"{path}: {result}" for path, result in seen.items() if result.success]
    return expect(made.success and not read, "; ".join(read) or "; ".join(str(result) for result in seen.values()))


_READABLE = "/etc/passwd"
_UP = "../" * 12


@check(
    "files.outside-dotdot",
    "A path that leads out of the workspace by `..` is refused, for reading and for writing.",
    why="The server's own files and other slots' work lie just beside the workspace.",
    todo="Resolve the path before opening it, and compare it with the workspace.",
)
def outside_dotdot(server: Server) -> Finding:
    with _beside(server) as (name, neighbour):
        reads = [f"{_UP}etc/passwd", f"{name}/../../../../../../../../../..{_READABLE}"]
        reads += [f"../{path}" for path in neighbour]
        return _refused(server, name, reads, [f"../{name}", f"{name}/../../{name}"])


@check(
    "files.outside-absolute",
    "An absolute path out of the workspace is refused, for reading and for writing.",
    why="Every file of the machine that the server may read has one.",
    todo="Resolve the path before opening it, and compare it with the workspace.",
)
def outside_absolute(server: Server) -> Finding:
    with _beside(server) as (name, neighbour):
        data = _data_directory(server)
        return _refused(server, name, [_READABLE, *(f"{data}/{path}" for path in neighbour)], [f"{data}/{name}"])


@check(
    "files.outside-file-link",
    "A symbolic link to a file out of the workspace is refused, for reading and for writing.",
    why="Commands can make any link; the server, who follows it, may read and write more than they.",
    todo="Resolve links before opening a path, and let none be exchanged meanwhile (`O_NOFOLLOW`, `openat2`).",
)
def outside_file_link(server: Server) -> Finding:
    with _beside(server) as (name, neighbour):
        targets = [_READABLE, f"{_UP}etc/passwd", *(f"../{path}" for path in neighbour)]
        reads = _links(server, f"{name}-read", targets)
        writes = _links(server, f"{name}-write", [f"../{name}", f"{_data_directory(server)}/{name}"])
        return _refused(server, name, reads, writes)


@check(
    "files.outside-directory-link",
    "A path through a symbolic link to a directory out of the workspace is refused, for reading and for writing.",
    why="Commands can make any link; the server, who follows it, may read and write more than they.",
    todo="Resolve every part of a path before opening it, not only the last.",
)
def outside_directory_link(server: Server) -> Finding:
    with _beside(server) as (name, neighbour):
        etc, beside, data = _links(server, f"{name}-link", ["/etc", "..", _data_directory(server)])
        reads = [f"{etc}/passwd", *(f"{beside}/{path}" for path in neighbour)]
        return _refused(server, name, reads, [f"{beside}/{name}", f"{data}/{name}"])


@contextlib.contextmanager
def _beside(server: Server) -> Iterator[tuple[str, list[str]]]:
    """A name that must not come into being beside the workspace, and files of another slot, from the data directory.

    The workspace holds a directory of the name, so that a path can go through it.
    """
    with _name(server) as name, contextlib.ExitStack() as stack:
        made = server.bash(f"mkdir {name}")
        if not made.success:
            raise NotMeasured(f"no directory can be made in the workspace: {made}")
        neighbour = []
        if server.slots > 1:
            other = stack.enter_context(_name(server, slot=1))
            server.write(other, "of another slot", slot=1)
            neighbour = [f"{server.workspace(1)}/{other}"]
        yield name, neighbour


def _data_directory(server: Server) -> PurePosixPath:
    return PurePosixPath(str(server.client.health().get("data_dir")))


def _links(server: Server, name: str, targets: Iterable[str | PurePosixPath]) -> list[str]:
    """Links in the workspace to each of ``targets``."""
    links = {f"{name}{number}": str(target) for number, target in enumerate(targets)}
    made = server.bash(" && ".join(f"ln -s -- {quote(target)} {link}" for link, target in links.items()))
    if not made.success:
        raise NotMeasured(f"no links can be made in the workspace: {made}")
    return list(links)


def _refused(server: Server, name: str, reads: Iterable[str], writes: Iterable[str]) -> Finding:
    """Whether all these paths are refused, and nothing of that name came into being beside the workspace."""
    calls = [(f"read {path}", server.read(path)) for path in reads]
    calls += [(f"write {path}", server.write(path, "x")) for path in writes]
    let_out = [f"{call}: {result}" for call, result in calls if result.success or "denied" not in result.error.lower()]
    with contextlib.suppress(NotFoundError):
        server.read_slot_file(f"../{name}")
        let_out.append(f"a file {name} beside the workspace")
        server.bash(f"rm -f -- ../{name}")
    return expect(not let_out, "; ".join(let_out) or f"{len(calls)} paths out of the workspace refused")


@check(
    "files.seen-by-bash",
    "Files written by `write_file` are there for commands of the same slot, to read and to change, and the other way "
    "round.",
    why="Agents write code with one tool and run it with the other.",
    todo="Look at the mount of the workspace in the command's sandbox.",
)
def seen_by_bash(server: Server) -> Finding:
    word, answer = nonce(), nonce()
    with _name(server) as name:
        server.write(name, word)
        seen = server.bash(f"cat {name} && printf %s {answer} > {name}-back && printf %s {answer} >> {name}")
        read = server.read(f"{name}-back")
        changed = server.read(name)
        written = server.write(f"{name}-back", word)
    return expect(
        seen.success
        and seen.output.strip() == word
        and (read.output, changed.output) == (answer, word + answer)
        and written.success,
        f"bash saw: {seen}; read_file saw: {read}, and of what bash added to: {changed}; changed in turn: {written}",
    )


@check(
    "files.in-allocation",
    "What is written is in the allocation's directory, as Nomad shows it.",
    why="Logs and results are collected from there; a server that writes elsewhere loses them with the container.",
    todo="Look at `--data-dir` and the bind of the allocation's directory.",
)
def in_allocation(server: Server) -> Finding:
    word = nonce()
    with _name(server) as name:
        written = server.write(name, word)
        seen = server.read_slot_file(name)
    return expect(written.success and seen == word.encode(), f"wrote: {written}; Nomad shows {len(seen)} bytes")
