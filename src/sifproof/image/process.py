"""Running the tools that read and make images.

Plain subprocess rather than spython's ``run_command``: that one keeps all output in memory until the end (nothing to
watch in a log, nothing left of a run that was killed), knows no time-out, and leaves the tool running when its caller
is killed.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.image import scratch

_PR_SET_PDEATHSIG = 1
_WORDS_BYTES = 256 * 1024
_LIBC = ctypes.CDLL(None, use_errno=True)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# How skopeo, buildah and docker dress up what they say.
_LOGRUS = re.compile(r'^time="[^"]*" level=\w+ msg="(.*)"$', re.MULTILINE)
_NOISE = re.compile(r"^(INFO|WARNING|DEBUG|VERBOSE):|^\s*$|^(Copying|Getting|Writing|Storing) ", re.MULTILINE)


class ToolFailure(Exception):  # noqa: N818 (it is caught and judged; what reaches a person is a SifproofError)
    """A tool ended with another exit status than 0, or not in time."""

    def __init__(self, name: str, status: int | None, output: str) -> None:
        self.name = name
        self.status = status
        """Exit status, negative for a signal, None for a time-out."""
        self.output = _COLOUR.sub("", output)
        super().__init__(name, status)

    @property
    def last_words(self) -> str:
        """The last lines that speak of an error, else the last that say something; in one line."""
        output = _LOGRUS.sub(lambda m: m[1].replace('\\"', '"'), self.output)
        lines = [line.strip() for line in output.splitlines() if not _NOISE.search(line)]
        errors = [line for line in lines if re.search(r"fatal|error|fail|cannot|unable", line, re.IGNORECASE)]
        said = " | ".join((errors or lines)[-3:])[-600:]
        if self.status is None:
            return "it did not end in time" + (f"; its last words: {said}" if said else "")
        return said or f"exit status {self.status}, and it said nothing"


def capture(name: str, *arguments: str, timeout_s: float = 60.0) -> bytes:
    """Run the tool ``name`` and return what it writes to standard output.

    Raises:
        ToolFailure: it failed.
        SifproofError: there is no such tool.
    """
    command = [str(host_tools.require(name).path), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=timeout_s,
            env=host_tools.environment(name),
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailure(name, None, (error.stderr or b"").decode(errors="replace")) from error
    if done.returncode != 0:
        raise ToolFailure(name, done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout


def run(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path | None,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    keep: Sequence[int] = (),
    under: Sequence[str] = (),
) -> None:
    """Run the tool ``name``, its output appended to ``log`` as it comes. It dies with its caller, however that ends.

    Args:
        name: as :func:`sifproof.host_tools.require` knows it.
        arguments: what follows the name.
        log: file that gets the command line and all output, appended.
        timeout_s: seconds until it is stopped.
        environment: variables beside those of :func:`sifproof.host_tools.environment`.
        keep: file descriptors, of locks, that it inherits: what they guard stays guarded until it has ended too.
        under: command that is to start it, such as `unshare` with its options.

    Raises:
        ToolFailure: it failed.
        SifproofError: there is no such tool, or it can't be started.
    """
    tool = host_tools.require(name)
    with log.open("a+b") if log else tempfile.TemporaryFile() as stream:
        stream.write(f"$ {shlex.join([*under, name, *arguments])}\n".encode())
        stream.flush()
        begin = stream.tell()
        try:
            process = subprocess.Popen(
                [*under, str(tool.path), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**host_tools.environment(name), scratch.OWNER_VARIABLE: scratch.owner(), **(environment or {})},
                start_new_session=True,  # so that it can be ended with all that it started
                pass_fds=keep,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (one call of a library that is loaded already)
            )
        except OSError as error:
            raise SifproofError(f"{name} can't be started", why=str(error)) from error
        try:
            status: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        if status != 0:
            raise ToolFailure(name, status, tail(stream, _WORDS_BYTES, begin))


def tail(stream: IO[bytes], most: int, begin: int = 0) -> str:
    """The last ``most`` bytes of what ``stream`` holds from ``begin`` on: a tool may say any amount."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(begin, end - most))
    return stream.read(most).decode(errors="replace")


def _die_with_parent() -> None:
    # What it started lives on for a while; the next call ends that (see scratch.sweep).
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    # apptainer ends before those that it started.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
