"""``read_file`` and ``write_file``."""

from defects import ANSWERED, failure, is_call, turns_red


@turns_red("files.roundtrip")
async def line_ends_changed(path, call, go):
    if is_call(call, "write_file"):
        call["args"]["content"] = call["args"]["content"].replace("\r\n", "\n")
    return await go(call)


@turns_red("files.size")
async def characters_counted(path, call, go):
    answer = await go(call)
    if is_call(call, "write_file") and answer["success"]:
        answer["metadata"]["size"] = len(call["args"]["content"])
    return answer


@turns_red("files.parents")
async def no_parents_made(path, call, go):
    if is_call(call, "write_file") and "/a/b/" in call["args"]["path"]:
        return failure(f"File not found: {call['args']['path']}")
    return await go(call)


WRITTEN: set[tuple[str, str]] = set()


@turns_red("files.overwrite")
async def lost_write(path, call, go):
    # The first write of a file is kept. The next ones are answered, and lost.
    if is_call(call, "write_file"):
        target = (call["slot_id"], call["args"]["path"])
        if target in WRITTEN:
            return ANSWERED
        WRITTEN.add(target)
    return await go(call)


@turns_red("files.empty")
async def empty_is_missing(path, call, go):
    if is_call(call, "write_file") and not call["args"]["content"]:
        return failure("content is missing")
    return await go(call)


@turns_red("files.unicode")
async def names_in_ascii(path, call, go):
    if is_call(call, "write_file") and not call["args"]["path"].isascii():
        return failure("the name can't be encoded")
    return await go(call)


@turns_red("files.missing")
async def missing_is_empty(path, call, go):
    answer = await go(call)
    return answer | {"success": True, "error": ""} if "File not found" in str(answer.get("error")) else answer


@turns_red("files.directory")
async def directory_is_empty_file(path, call, go):
    answer = await go(call)
    return answer | {"success": True, "error": ""} if "Not a file" in str(answer.get("error")) else answer


@turns_red("files.outside")
async def open_to_the_outside(path, call, go):
    target = call.get("args", {}).get("path", "")
    if is_call(call, "read_file") and target.startswith("/"):
        with open(target) as stream:  # noqa: PTH123
            return {"success": True, "output": stream.read(), "error": "", "metadata": {}}
    return await go(call)


@turns_red("files.outside")
async def follows_links(path, call, go):
    target = call.get("args", {}).get("path", "")
    if is_call(call, "read_file") and target.endswith("/file"):
        with open("/etc/passwd") as stream:  # noqa: PTH123
            return {"success": True, "output": stream.read(), "error": "", "metadata": {}}
    return await go(call)


@turns_red("files.seen-by-bash", "files.empty", "files.in-allocation")
async def files_apart_from_bash(path, call, go):
    # What `write_file` wrote, `read_file` finds, and nobody else.
    target = call.get("args", {}).get("path", "")
    if (
        is_call(call, "write_file")
        and target.isascii()
        and not target.startswith(("/", "..", "d/"))
        and "/folder/" not in target
    ):
        APART.add(target)
    if target in APART:
        call["args"]["path"] = f".apart/{target}"
    return await go(call)


APART: set[str] = set()
