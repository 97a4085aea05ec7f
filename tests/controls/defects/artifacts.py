"""``/artifacts``."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

from defects import refusal, turns_red


def is_read(path, answer):
    return path == "/artifacts/read" and answer.get("success")


@turns_red("artifacts.read-text")
async def file_size_in_characters(path, call, go):
    """The size of a text file is given in characters, not in bytes."""
    answer = await go(call)
    if is_read(path, answer) and answer["encoding"] == "text" and not answer["truncated"]:
        answer |= {"bytes": len(answer["content"]), "file_size": len(answer["content"])}
    return answer


@turns_red("artifacts.read-base64")
async def every_file_is_text(path, call, go):
    """A file is read as text, and what is no text is lost, before it is put into base64."""
    answer = await go(call)
    if is_read(path, answer) and answer["encoding"] == "base64":
        text = base64.b64decode(answer["content"]).decode(errors="replace")
        answer["content"] = base64.b64encode(text.encode()).decode()
    return answer


@turns_red("artifacts.read-no-text")
async def bytes_end_in_an_error(path, call, go):
    """A file that is no UTF-8, asked for as text, is an internal error."""
    answer = await go(call)
    if is_read(path, answer) and "\ufffd" in answer["content"]:
        return refusal(500)
    return answer


@turns_red("artifacts.sha256")
async def hash_of_what_is_sent(path, call, go):
    """The checksum is that of the text that is sent, not of the file's bytes."""
    answer = await go(call)
    if is_read(path, answer) and answer["sha256"]:
        answer["sha256"] = hashlib.sha256(answer["content"].encode()).hexdigest()
    return answer


@turns_red("artifacts.sha256")
async def hash_of_a_part(path, call, go):
    """The checksum of a file that is cut is that of the part that is sent."""
    answer = await go(call)
    if is_read(path, answer) and answer["sha256"] and answer["truncated"] and answer["encoding"] == "base64":
        answer["sha256"] = hashlib.sha256(base64.b64decode(answer["content"])).hexdigest()
    return answer


@turns_red("artifacts.truncated")
async def cut_without_a_word(path, call, go):
    """A file larger than asked for is cut, and not marked as cut."""
    answer = await go(call)
    return answer | {"truncated": False} if is_read(path, answer) else answer


@turns_red("artifacts.list")
async def times_in_milliseconds(path, call, go):
    """A list gives the files' times in milliseconds, as if they were of the distant future."""
    answer = await go(call)
    for entry in answer.get("entries", ()):
        entry["mtime"] *= 1000
    return answer


@turns_red("artifacts.list-recursive")
async def not_all_the_way_down(path, call, go):
    """A recursive list ends at the third level."""
    answer = await go(call)
    if path == "/artifacts/list" and "entries" in answer:
        answer["entries"] = [entry for entry in answer["entries"] if entry["path"].count("/") < 3]
    return answer


@turns_red("artifacts.list-recursive")
def walks_through_links(arguments):
    """A recursive list goes through links to directories, out of the workspace too."""
    from slotserver import workspace

    status = workspace.Location.stat

    def followed(self):
        with contextlib.suppress(OSError):
            target = os.stat(self.name, dir_fd=self.directory)
            if stat.S_ISDIR(target.st_mode):
                return target
        return status(self)

    workspace.Location.stat = followed
    workspace._LIST &= ~os.O_NOFOLLOW


@turns_red("artifacts.list-limit")
async def short_list_without_a_word(path, call, go):
    """A list that was cut at its limit is not marked as cut."""
    answer = await go(call)
    return answer | {"truncated": False} if "entries" in answer else answer


async def repacked(answer, change):
    """An archive of the members that ``change`` lets through, made beside what else the server does."""
    return await asyncio.to_thread(repack, answer, change) if "entry_count" in answer else answer


def repack(answer, change):
    packed = io.BytesIO()
    data = io.BytesIO(gzip.decompress(base64.b64decode(answer["content"])))
    with tarfile.open(fileobj=data) as old, tarfile.open(fileobj=packed, mode="w:gz") as new:
        for member in old:
            if change(member):
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    content = packed.getvalue()
    return answer | {"content": base64.b64encode(content).decode(), "bytes": len(content)}


@turns_red("artifacts.archive")
async def archive_without_modes(path, call, go):
    """An archive has lost which files can be executed."""

    def change(member):
        member.mode &= 0o666
        return True

    return await repacked(await go(call), change)


@turns_red("artifacts.archive")
async def archive_without_empty_directories(path, call, go):
    """An archive holds files and links only."""
    return await repacked(await go(call), lambda member: not member.isdir())


@turns_red("artifacts.archive")
async def names_from_the_root(path, call, go):
    """The names in an archive are absolute."""

    def change(member):
        member.name = f"/workspace/{member.name}"
        return True

    return await repacked(await go(call), change)


@turns_red("artifacts.archive-times")
async def archive_of_no_time(path, call, go):
    """Everything in an archive is of 1970."""

    def change(member):
        member.mtime = 0
        return True

    return await repacked(await go(call), change)


PACKING = asyncio.Lock()


@turns_red("artifacts.archive-meanwhile")
async def nobody_is_served_while_it_packs(path, call, go):
    """While an archive is made, all other requests wait."""
    if path == "/artifacts/archive":
        async with PACKING:
            return await go(call)
    async with PACKING:
        pass
    return await go(call)


@turns_red("artifacts.archive-meanwhile")
async def one_thread_for_all_files(path, call, go):
    """While an archive is made, whoever reads, writes or lists files of any slot waits."""
    if not path.startswith("/artifacts") and call.get("tool") not in ("read_file", "write_file"):
        return await go(call)
    async with PACKING:
        return await go(call)


@turns_red("artifacts.outside", elsewhere=("files.outside-directory-link",))
def reads_through_links(arguments):
    """A file is read through a link to a directory out of the workspace."""
    from slotserver import workspace

    link_target = workspace._link_target

    def of_files_only(directory, name):
        target = link_target(directory, name)
        return None if target and Path(f"/proc/self/fd/{directory}/{name}").is_dir() else target

    workspace._link_target = of_files_only
    workspace._PASS_THROUGH &= ~os.O_NOFOLLOW


@turns_red("artifacts.outside")
async def archives_the_workspace_instead(path, call, go):
    """An archive of a path out of the workspace is one of the workspace."""
    answer = await go(call)
    if path == "/artifacts/archive" and "outside workspace" in str(answer.get("error")):
        return await go(call | {"path": "."})
    return answer


@turns_red("artifacts.unknown-slot")
async def unknown_slot_is_a_bad_request(path, call, go):
    """Artifacts of an unknown slot are answered with 400, as if the request could not be read."""
    answer = await go(call)
    if path.startswith("/artifacts/") and "Unknown slot" in str(answer.get("error")):
        return refusal(400)
    return answer


@turns_red("artifacts.missing")
async def missing_directory_is_empty(path, call, go):
    """A directory that is not there is listed as an empty one."""
    answer = await go(call)
    if path == "/artifacts/list" and "No such file" in str(answer.get("error")):
        return refusal(200, success=True, entries=[], truncated=False)
    return answer


@turns_red("artifacts.wrong-kind")
async def directory_is_an_empty_artifact(path, call, go):
    """A directory is read as if it were an empty file."""
    answer = await go(call)
    if path == "/artifacts/read" and "Not a file" in str(answer.get("error")):
        empty = {"content": "", "encoding": "text", "truncated": False, "bytes": 0, "file_size": 0, "sha256": None}
        return refusal(200, success=True, path=call["path"], mime="inode/directory", **empty)
    return answer


@turns_red("artifacts.wrong-kind", elsewhere=("protocol.described",))
async def list_of_a_file_is_that_of_its_directory(path, call, go):
    """Listing a file gives what is beside it."""
    answer = await go(call)
    if path == "/artifacts/list" and "Not a directory" in str(answer.get("error")):
        beside = await go(call | {"path": call["path"].rpartition("/")[0] or "."})
        return refusal(200, **beside)
    return answer


@turns_red("artifacts.wrong-encoding")
async def any_encoding_is_text(path, call, go):
    """An encoding that it does not know is taken for text."""
    if path == "/artifacts/read" and isinstance(call.get("encoding"), str) and call["encoding"] != "base64":
        call["encoding"] = "text"
    return await go(call)


@turns_red("artifacts.archive-limit")
async def archive_without_limits(path, call, go):
    """An archive is made whatever limits the request gives."""
    if path == "/artifacts/archive":
        call = {key: value for key, value in call.items() if not key.startswith("max_")}
    return await go(call)
