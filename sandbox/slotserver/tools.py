"""The tools by name. Each takes the slot, its arguments and its time-out, and returns a result or raises ToolError."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from .protocol import MAX_FILE_BYTES, MAX_OUTPUT_CHARACTERS, Fields, Result, ToolError
from .shell import Shell, ShellLostError
from .workspace import OutsideError, WrongKindError

if TYPE_CHECKING:
    from .process import Pipe, Process
    from .slots import Slot

# The kernel takes no argument longer than this (MAX_ARG_STRLEN, its closing zero byte included).
_MAX_ARGUMENT_BYTES = 128 * 1024 - 1


async def bash(slot: Slot, args: Fields, timeout_s: float) -> Result:
    """A command in a shell of its own: ``command``, ``allow_network``, ``require_sandbox``."""
    command = _command(args)
    network = args.flag("allow_network", True)
    _check_containment(slot, network=network, required=args.flag("require_sandbox", False))
    script = None
    argv = ["bash", "-c", command]
    if len(command.encode()) > _MAX_ARGUMENT_BYTES:
        script = os.memfd_create("command")
        argv = ["bash", f"/dev/fd/{script}"]
    try:
        if script is not None:
            await slot.in_thread(_write_all, script, command.encode())
        process = slot.start(argv, network=network, pass_fds=() if script is None else (script,))
    finally:
        if script is not None:
            os.close(script)
    timed_out = False
    code = None
    async with process:
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            timed_out = True
    return _command_result(slot, process, code, f"Command timed out after {timeout_s}s" if timed_out else "")


async def bash_stateful(slot: Slot, args: Fields, timeout_s: float) -> Result:
    """A command in the slot's shell that lives on, started where there is none; arguments as of ``bash``."""
    command = _command(args)
    network = args.flag("allow_network", True)
    required = args.flag("require_stateful_sandbox", False) or args.flag("require_sandbox", False)
    _check_containment(slot, network=network, required=required)
    if slot.shell and not slot.shell.running:
        await slot.shell.end()
        slot.shell = None
    if slot.shell and slot.shell.network != network:
        raise ToolError(
            f"The slot's shell runs with allow_network={str(slot.shell.network).lower()}; reset the slot first"
        )
    started = slot.shell is None
    shell = slot.shell = slot.shell or Shell(slot, network=network)
    code, timed_out, lost = None, "", ""
    try:
        code = await asyncio.wait_for(shell.run(command), timeout_s)
    except TimeoutError:
        timed_out = f"Command timed out after {timeout_s}s; the shell was ended and its state is lost"
    except ShellLostError:
        lost = "The shell does not tell any more how a command ended; it was ended and its state is lost"
    except asyncio.CancelledError:
        await shell.end()
        slot.shell = None
        raise
    if code is None:
        await shell.end()
        slot.shell = None
        code = None if lost else shell.exit_code
    result = _command_result(slot, shell.process, code, timed_out)
    result.error = lost or result.error
    result.metadata |= {"shell_started": started, "shell_ended": slot.shell is None}
    return result


async def read_file(slot: Slot, args: Fields, timeout_s: float) -> Result:
    """The text of a file of at most MAX_FILE_BYTES bytes: ``path``."""
    path = args.text("path")

    def read() -> bytes:
        with _file_errors(path), slot.workspace.locate(path) as location, location.open() as (descriptor, status):
            if not status.st_mode & stat.S_IRUSR:  # which a server that runs as root is not asked about
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            size = status.st_size
            content = b""
            if size <= MAX_FILE_BYTES:
                with os.fdopen(os.dup(descriptor), "rb") as stream:
                    content = stream.read(MAX_FILE_BYTES + 1)
                size = max(size, len(content))
            if size > MAX_FILE_BYTES:
                raise ToolError(f"File too large: {path} has {size} bytes, the limit is {MAX_FILE_BYTES}")
            return content

    content = await slot.in_thread(read)
    return Result(True, output=content.decode(errors="replace"), metadata={"size": len(content)})


async def write_file(slot: Slot, args: Fields, timeout_s: float) -> Result:
    """Make or replace a file of at most MAX_FILE_BYTES bytes: ``path``, ``content``."""
    path = args.text("path")
    content = args.text("content").encode()
    if len(content) > MAX_FILE_BYTES:
        raise ToolError(f"Content too large: {len(content)} bytes, the limit is {MAX_FILE_BYTES}")

    def write() -> None:
        with _file_errors(path):
            slot.containment.prepare(slot.place)
            slot.workspace.write_file(path, content)

    await slot.in_thread(write)
    return Result(True, output=f"Wrote {len(content)} bytes to {path}", metadata={"size": len(content)})


Tool = Callable[["Slot", Fields, float], Awaitable[Result]]
TOOLS: dict[str, Tool] = {tool.__name__: tool for tool in (bash, bash_stateful, read_file, write_file)}


def _command(args: Fields) -> str:
    command: str = args.text("command")
    if "\0" in command:
        raise ToolError("The command holds a zero byte, which no shell can take")
    return command


def _check_containment(slot: Slot, *, network: bool, required: bool) -> None:
    if required and not slot.containment.sandboxed:
        raise ToolError("A sandbox was required, and this server can't make one", sandboxed=False)
    if not network and not slot.containment.can_cut_network:
        raise ToolError("allow_network=false was asked for, and this server can't cut the network", sandboxed=False)


def _command_result(slot: Slot, process: Process, code: int | None, timed_out: str) -> Result:
    """The result of a command that ended on its own with ``code``, or early, where ``timed_out`` says so."""
    stdout, stderr = _text(process.stdout), _text(process.stderr)
    out, err = _cut(*stdout, strip=True), _cut(*stderr, strip=True)
    metadata: dict[str, Any] = {"exit_code": code, "sandboxed": slot.containment.sandboxed}
    error = timed_out
    if timed_out:
        metadata |= {"exit_code": -1, "timeout": True}
    elif code is None:
        metadata["exit_code"] = -1
        error = "The containment of the command failed or was ended from outside"
    elif code != 0:
        error = f"Exit code: {code}"
    output = f"{out}\n[stderr]\n{err}" if out and err else out or err
    return Result(not error, output=output, error=error, metadata=metadata, stdout=_cut(*stdout), stderr=_cut(*stderr))


def _text(pipe: Pipe) -> tuple[str, bool]:
    data, dropped = pipe.take()
    return data.decode(errors="replace"), dropped


def _cut(text: str, dropped: bool, *, strip: bool = False) -> str:
    text = text.strip() if strip else text
    if dropped or len(text) > MAX_OUTPUT_CHARACTERS:
        return f"{text[:MAX_OUTPUT_CHARACTERS]}\n[cut at {MAX_OUTPUT_CHARACTERS:,} characters]"
    return text


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as stream:
        stream.write(data)


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """Tell what went wrong with a file in the words of the protocol."""
    try:
        yield
    except OutsideError:
        raise ToolError("Access denied: path outside workspace") from None
    except WrongKindError:
        raise ToolError(f"Not a file: {path}") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ToolError(f"File not found: {path}") from None
        raise ToolError(f"{os.strerror(error.errno or errno.EIO)}: {path}") from None
