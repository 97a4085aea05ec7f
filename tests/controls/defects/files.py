"""``read_file`` and ``write_file``."""

import asyncio
import os
import stat
from collections import defaultdict
from pathlib import Path

from defects import ANSWERED, InternalError, failure, is_call, no_locks_for, turns_red


async def real(call, go) -> Path:
    """Where the path of ``call`` leads, nothing looked at; names that the system does not take are cut."""
    slots = (await go({}, "/slots"))["slots"]
    (folder,) = (Path(slot["workspace_dir"]) for slot in slots if slot["slot_id"] == call["slot_id"])
    return folder / "/".join(part[:100] for part in call["args"]["path"].split("/"))


def answered(content: bytes) -> dict:
    return ANSWERED | {"output": content.decode(errors="replace"), "metadata": {"size": len(content)}}


@turns_red("files.roundtrip", elsewhere=("artifacts.read-text",))
async def line_ends_changed(path, call, go):
    """Line ends of Windows become those of Unix."""
    if is_call(call, "write_file"):
        call["args"]["content"] = call["args"]["content"].replace("\r\n", "\n")
    return await go(call)


@turns_red("files.roundtrip", "files.unicode", "files.odd-names")
async def read_without_its_ends(path, call, go):
    """Reading takes white space off both ends."""
    answer = await go(call)
    if is_call(call, "read_file"):
        answer["output"] = answer["output"].strip()
    return answer


@turns_red("files.roundtrip")
async def last_line_end_lost(path, call, go):
    """Writing leaves the line breaks at the end out."""
    if is_call(call, "write_file"):
        call["args"]["content"] = call["args"]["content"].rstrip("\n")
    return await go(call)


@turns_red("files.roundtrip")
async def zero_byte_ends_the_content(path, call, go):
    """Writing ends at the first zero byte."""
    if is_call(call, "write_file"):
        call["args"]["content"] = call["args"]["content"].partition("\0")[0]
    return await go(call)


@turns_red("files.size")
async def characters_counted(path, call, go):
    """The size that writing reports is in characters."""
    answer = await go(call)
    if is_call(call, "write_file") and answer["success"]:
        answer["metadata"]["size"] = len(call["args"]["content"])
    return answer


@turns_red("files.write-limit", "files.limit-in-bytes", elsewhere=("protocol.large-body",))
async def one_byte_too_many_is_cut(path, call, go):
    """Of a file over the limit the beginning is written, and the call succeeds."""
    if is_call(call, "write_file"):
        call["args"]["content"] = call["args"]["content"].encode()[:100_000].decode(errors="ignore")
    return await go(call)


@turns_red("files.write-limit", "files.limit-in-bytes")
async def the_limit_itself_refused(path, call, go):
    """Writing refuses a file of exactly the limit."""
    if is_call(call, "write_file") and len(call["args"]["content"].encode()) == 100_000:
        return failure("Content too large: 100000 bytes")
    return await go(call)


@turns_red("files.read-limit", "files.limit-in-bytes")
async def read_without_limit(path, call, go):
    """Reading gives a file of any size."""
    answer = await go(call)
    if is_call(call, "read_file") and "File too large" in answer["error"]:
        return answered((await real(call, go)).read_bytes())
    return answer


@turns_red("files.limit-in-bytes")
async def limit_in_characters(path, call, go):
    """Writing measures characters against the limit."""
    content = call.get("args", {}).get("content", "")
    if is_call(call, "write_file") and len(content) <= 100_000 < len(content.encode()):
        (await real(call, go)).write_text(content)
        return ANSWERED
    return await go(call)


@turns_red(
    "files.parents",
    elsewhere=(
        "artifacts.read-text",
        "reset.only-that-slot",
    ),
)
async def no_parents_made(path, call, go):
    """Writing needs the file's directory."""
    relative = is_call(call, "write_file") and not call["args"]["path"].startswith("/")
    if relative and not (await real(call, go)).parent.is_dir():
        return failure(f"File not found: {call['args']['path']}")
    return await go(call)


WRITTEN: set[tuple[str, str]] = set()


@turns_red("files.overwrite", elsewhere=("protocol.wrong-types",))
async def lost_write(path, call, go):
    """The first write of a file is kept; later ones are answered, and lost."""
    if is_call(call, "write_file"):
        target = (call["slot_id"], call["args"]["path"])
        if target in WRITTEN:
            return ANSWERED
        WRITTEN.add(target)
    return await go(call)


@turns_red("files.mode-kept")
async def made_anew_with_the_usual_mode(path, call, go):
    """A file that is written again is one with the mode of a new one."""
    if not is_call(call, "write_file"):
        return await go(call)
    answer = await go(call)
    file = await real(call, go)
    if answer["success"] and file.is_file() and not file.is_symlink():
        file.chmod(0o644)
    return answer


@turns_red("files.overwrite")
async def copy_of_the_old_file_stays(path, call, go):
    """Writing moves what was there aside, under a hidden name, and leaves it there."""
    if is_call(call, "write_file") and ".." not in call["args"]["path"]:
        target = await real(call, go)
        if target.is_file() and not target.is_symlink():
            target.with_name(f".{target.name[:90]}.orig").write_bytes(target.read_bytes())
    return await go(call)


@turns_red("files.refused-write")
async def opened_before_it_is_looked_at(path, call, go):
    """Writing opens the file, and empties it, before it finds the content too large."""
    answer = await go(call)
    if is_call(call, "write_file") and "too large" in answer["error"]:
        target = await real(call, go)
        if target.is_file() and not target.is_symlink() and ".." not in call["args"]["path"]:
            target.write_text("")
    return answer


@turns_red("files.refused-write", elsewhere=("protocol.missing-fields",))
async def no_content_is_an_empty_one(path, call, go):
    """Writing without a content empties the file."""
    if is_call(call, "write_file"):
        call["args"].setdefault("content", "")
    return await go(call)


@turns_red(
    "files.in-turn",
    elsewhere=(
        "protocol.wrong-types",
        "protocol.not-described",
        "protocol.large-body",
        "protocol.bad-json",
        "stateful.in-turn",
    ),
)
def files_without_the_lock(arguments):
    """`read_file` and `write_file` do not wait for the command that runs in their slot."""
    no_locks_for("read_file", "write_file")


@turns_red("files.whole")
async def written_piece_by_piece(path, call, go):
    """Writing fills the file piece by piece."""
    content = call.get("args", {}).get("content", "")
    if is_call(call, "write_file") and content.isascii() and 1000 < len(content) <= 100_000:
        target = await real(call, go)
        if target.is_file() and not target.is_symlink():
            with target.open("w") as stream:
                for start in range(0, len(content), 500):
                    stream.write(content[start : start + 500])
                    stream.flush()
                    await asyncio.sleep(0.01)
            return answered(content.encode()) | {"output": "written"}
    return await go(call)


@turns_red("files.inner-link")
async def no_links_at_all(path, call, go):
    """A path with a link in it is refused, wherever it leads."""
    if is_call(call, "read_file") or is_call(call, "write_file"):
        target = await real(call, go)
        if target.is_symlink() or target.parent.is_symlink():
            return failure("Access denied: path outside workspace")
    return await go(call)


@turns_red("files.inner-link")
async def links_are_written_over(path, call, go):
    """Writing to a link puts a file into its place."""
    if is_call(call, "write_file"):
        target = await real(call, go)
        # One that leads out of the workspace is refused.
        if target.is_symlink() and target.resolve().is_relative_to(target.parent.resolve()):
            target.unlink()
    return await go(call)


@turns_red("files.inner-link")
async def links_upwards_refused(path, call, go):
    """A link that leads up is refused, though it stays in the workspace."""
    if is_call(call, "read_file") and (target := await real(call, go)).is_symlink():
        return (
            await go(call) if ".." not in str(target.readlink()) else failure("Access denied: path outside workspace")
        )
    return await go(call)


@turns_red("files.modes", nomad=True)
async def opened_as_root(path, call, go):
    """A server that runs as root reads files that their mode closes to commands."""
    answer = await go(call)
    if is_call(call, "read_file") and "Permission denied" in answer["error"]:
        return answered((await real(call, go)).read_bytes())
    return answer


@turns_red("files.modes", nomad=True)
async def written_as_root(path, call, go):
    """A server that runs as root writes to files that their mode keeps commands from writing to."""
    answer = await go(call)
    if is_call(call, "write_file") and "Permission denied" in answer["error"]:
        (await real(call, go)).write_text(call["args"]["content"])
        return ANSWERED
    return answer


@turns_red("files.shown-path")
async def relative_paths_only(path, call, go):
    """An absolute path is refused, wherever it leads."""
    if (is_call(call, "read_file") or is_call(call, "write_file")) and call["args"]["path"].startswith("/"):
        return failure("Access denied: path outside workspace")
    return await go(call)


@turns_red("files.empty", "files.roundtrip")
async def empty_is_missing(path, call, go):
    """Empty content counts as none."""
    if is_call(call, "write_file") and not call["args"]["content"]:
        return failure("content is missing")
    return await go(call)


@turns_red("files.unicode", "files.name-length", elsewhere=("artifacts.read-text",))
async def names_in_ascii(path, call, go):
    """A file can't have a name beyond ASCII."""
    if is_call(call, "write_file") and not call["args"]["path"].isascii():
        return failure("the name can't be encoded")
    return await go(call)


@turns_red("files.odd-names")
async def names_cleaned(path, call, go):
    """Line breaks in names are replaced, in writing and in reading alike."""
    if is_call(call, "write_file") or is_call(call, "read_file"):
        call["args"]["path"] = call["args"]["path"].replace("\n", "_")
    return await go(call)


@turns_red("files.odd-names")
async def names_stripped(path, call, go):
    """A space at the end of a name is cut off."""
    if is_call(call, "write_file"):
        call["args"]["path"] = call["args"]["path"].strip()
    return await go(call)


@turns_red("files.name-length")
async def temporary_name_too_long(path, call, go):
    """Writing makes a temporary file of the name and four letters more, so that the longest names can't be written."""
    if is_call(call, "write_file") and len(Path(call["args"]["path"]).name.encode()) > 251:
        return failure(f"File name too long: {call['args']['path']}.tmp")
    return await go(call)


@turns_red("files.name-length", elsewhere=("protocol.odd-text",))
async def name_too_long_is_an_http_error(path, call, go):
    """A name that is too long is an internal error of the server."""
    answer = await go(call)
    if "File name too long" in str(answer.get("error")):
        raise InternalError(answer["error"])
    return answer


@turns_red("files.missing")
async def missing_is_empty(path, call, go):
    """A file that does not exist reads as an empty one."""
    answer = await go(call)
    return answer | {"success": True, "error": ""} if "File not found" in str(answer.get("error")) else answer


@turns_red("files.directory")
async def directory_is_empty_file(path, call, go):
    """A directory reads as an empty file."""
    answer = await go(call)
    folder = is_call(call, "read_file") and not answer["success"] and (await real(call, go)).is_dir()
    return answer | {"success": True, "error": ""} if folder else answer


@turns_red("files.fifo")
async def fifo_is_empty_file(path, call, go):
    """A FIFO reads as an empty file."""
    answer = await go(call)
    fifo = is_call(call, "read_file") and not answer["success"] and (await real(call, go)).is_fifo()
    return answer | {"success": True, "error": ""} if fifo else answer


HELD: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)


@turns_red("files.fifo", nomad=True)
async def waits_for_a_fifo(path, call, go):
    """Reading a FIFO waits for somebody who writes to it, and holds its slot meanwhile."""

    async def wait():
        async with HELD[call.get("slot_id", "")]:
            if is_call(call, "read_file") and (target := await real(call, go)).is_fifo():
                await asyncio.to_thread(target.read_bytes)

    await asyncio.shield(asyncio.ensure_future(wait()))  # a client that hangs up frees nothing
    return await go(call)


@turns_red("files.device")
async def devices_are_files(path, call, go):
    """Devices are read like files."""
    answer = await go(call)
    if is_call(call, "read_file") and not answer["success"]:
        target = await real(call, go)
        if target.exists() and stat.S_ISCHR(target.stat().st_mode):
            return answered(b"")
    return answer


@turns_red("files.outside-dotdot")
async def dotdot_followed(path, call, go):
    """`..` in a path to read leads out of the workspace."""
    if is_call(call, "read_file") and ".." in call["args"]["path"].split("/"):
        target = await real(call, go)
        if target.is_file():
            return answered(target.read_bytes())
    return await go(call)


@turns_red("files.outside-dotdot")
async def writes_beside_the_workspace(path, call, go):
    """`..` in a path to write leads out of the workspace, though the call is refused afterwards."""
    if is_call(call, "write_file") and call["args"]["path"].startswith("../"):
        (await real(call, go)).write_text(call["args"]["content"])
    return await go(call)


@turns_red("files.outside-absolute")
async def open_to_the_outside(path, call, go):
    """An absolute path is read wherever it leads."""
    target = call.get("args", {}).get("path", "")
    if is_call(call, "read_file") and target.startswith("/") and Path(target).is_file():
        return answered(Path(target).read_bytes())
    return await go(call)


@turns_red("files.outside-file-link")
async def follows_links(path, call, go):
    """A link that is a path's last part is followed out of the workspace."""
    if is_call(call, "read_file") and (target := await real(call, go)).is_symlink() and target.is_file():
        return answered(target.read_bytes())
    return await go(call)


@turns_red("files.outside-file-link")
async def writes_through_links(path, call, go):
    """Writing follows a link out of the workspace."""
    if is_call(call, "write_file") and (target := await real(call, go)).is_symlink():
        target.write_text(call["args"]["content"])
        return ANSWERED
    return await go(call)


@turns_red("files.outside-directory-link")
async def follows_links_to_directories(path, call, go):
    """Only the last part of a path is looked at: links to directories lead out of the workspace."""
    if is_call(call, "write_file") or is_call(call, "read_file"):
        target = await real(call, go)
        if target.parent.is_symlink():
            if is_call(call, "read_file"):
                return answered(target.read_bytes())
            target.write_text(call["args"]["content"])
            return ANSWERED
    return await go(call)


READ_ONLY: set[Path] = set()


@turns_red("files.seen-by-bash", "files.mode-kept", nomad=True)
async def written_for_reading_only(path, call, go):
    """What `write_file` wrote, commands can't change, and it alone can."""
    if not is_call(call, "write_file"):
        return await go(call)
    if (target := await real(call, go)) in READ_ONLY:
        target.chmod(0o644)
    answer = await go(call)
    if answer["success"]:
        READ_ONLY.add(target)
        target.chmod(0o444)
    return answer


APART: set[str] = set()


@turns_red(
    "files.seen-by-bash",
    "files.empty",
    "files.write-limit",
    "files.in-allocation",
    elsewhere=("reset.only-that-slot",),
    not_measured=("files.whole",),
)
async def files_apart_from_bash(path, call, go):
    """What `write_file` wrote, `read_file` finds, and nobody else."""
    target = call.get("args", {}).get("path", "")
    if is_call(call, "write_file") and not target.startswith("."):
        call["args"]["path"] = target.split("/")[0]
        if not os.path.lexists(await real(call, go)):
            APART.add(target)
    if target in APART:
        call["args"]["path"] = f".apart/{target}"
    elif target:
        call["args"]["path"] = target
    return await go(call)
