"""Who is to blame for what a program said before it ended: the image, where its own faults are known, else the machine.

Nobody knows all that a machine may lack, and each word that was missing from a list of them would reject an image. So
the list is that of what only an image can cause; whatever is not in it is the infrastructure's. The other lists tell
what to do about it.
"""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

from sifproof.errors import Fault


class Blame(NamedTuple):
    """Who has to act, and what to do; empty where nobody knows."""

    fault: Fault
    todo: str


# What the kernel says that a machine, or this user on it, has no more of. It may stand in anybody's words.
_LACKS = (
    (r"no space left on device|probably out of space", "make room on the file system that is named"),
    (r"disk quota exceeded|quota exceeded", "have the quota of the user raised, or name a directory with room in it"),
    (
        r"resource temporarily unavailable|cannot fork|pthread_create failed|failed to create new OS thread",
        "raise the number of processes that the user may have (`ulimit -u`, TasksMax, pids.max)",
    ),
    (
        r"too many open files|eventfd failed with 24",
        "raise the number of files that the user may have open (`ulimit -n`)",
    ),
    (
        r"cannot allocate memory|out of memory|cannot map pages|failed to (reserve|allocate) .*memory|bad_alloc",
        "free memory, or raise the limit of it (`ulimit -v`, memory.max)",
    ),
    (
        r"signal: killed|signal 9\b|oom.?kill|\bKilled$",
        "see who killed it: memory that ran out, as the kernel's log tells, or a limit of the site's",
    ),
    (r"stale (NFS )?file handle", "mount the file system anew: its server has another now"),
    (
        r"input/output error|transport endpoint is not connected|structure needs cleaning|remote I/O error",
        "look at the disk or the network file system that is named, and at the kernel's log",
    ),
    (r"read-only file system", "name a directory that can be written, or mount the file system so"),
)

# What a machine lets nobody do, or not this user. A tool's words; an image has others for the same.
_REFUSES = (
    (
        r"unknown userid|user account information|no passwd entry|cannot find name for user|getpwuid|no such user",
        "give the user that this runs as an entry in the passwd database of the machine (/etc/passwd, LDAP, sssd)",
    ),
    (
        r"bad superblock|compression algorithm|find a decompressor|mount.*squashfs.*invalid argument",
        "convert with `conversion: {compression: gzip}`, which every kernel reads, or let squashfuse mount the image",
    ),
    (
        r"loop device|loop-control|/dev/loop|max loop",
        "give the node loop devices (`modprobe loop`, `max loop devices` of apptainer.conf), or let squashfuse mount "
        "the image: `userns: true`",
    ),
    (r"trying to read the squashfs image", "compare the SIF on the node with the converted one, and copy it anew"),
    (r"disallow|by (the )?administrator", "have the site's apptainer.conf allow it, or try `userns: true`"),
    (
        r"starter-suid|set-?uid|\bnosuid\b|no_new_privs|setuid workflow",
        "have Apptainer installed with its set-uid starter on a file system that allows it, or use `userns: true`",
    ),
    (
        r"\bfuse\b|/dev/fuse|fusermount|squashfuse|fuse-overlayfs|fuse2fs|no such image driver",
        "give the user of the node's Nomad client access to /dev/fuse, and install squashfuse",
    ),
    (
        r"user ?namespace|max_user_namespaces|new[ug]idmap|/etc/sub[ug]id|failed to create namespace|\bunshare\b",
        "let the node's user make user namespaces, or try the other value of `userns`",
    ),
    (
        r"requesting capability",
        "let the node's user make user namespaces, or try the other value of `userns`: root lacks a capability there",
    ),
    (r"parse configuration file", "mend Apptainer's configuration file, which is named"),
    (
        r"could not open image|image format not recognized",
        "put the SIF where the node sees it under the same path, on a shared file system, readable to the node's user",
    ),
    (
        r"mount source .* doesn't exist|while mounting|mount hook function|\bmount\b.*(denied|permitted)",
        "look at that mount on the node: its source, the rights of the node's user, `binds` of the sandbox, and what "
        "apptainer.conf allows",
    ),
    (r"cannot connect to the docker daemon|docker daemon running", "start the Docker engine, or set DOCKER_HOST"),
    (
        # Without a word of what was read: the client's, whose engine went away. It never gets an archive that is cut.
        r"error during connect|^unexpected EOF$",
        "see in its log why the Docker engine ended or was started anew, and run again",
    ),
    (
        r"dial tcp|connection (refused|reset)|no route to host|i/o timeout|name resolution|no such host|TLS handshake",
        "look at the network, then run again",
    ),
    (r"operation not permitted|permission denied", "give the user that this runs as the right to do it"),
)

# Only content that is broken, or that no tool takes, is told like this.
_IN_CONVERSION = (
    r"unexpected EOF",
    r"archive/tar|invalid tar|unrecognized archive|not a tar|no such file or directory.*(manifest\.json|layer\.tar)",
    r"manifest\.json: no such file|layer\.tar: no such file|file .*(manifest\.json|layer\.tar) not found",
    r"gzip: |flate: |zlib: |bzip2 data|lzma: |xz: |zstd: |invalid checksum|magic number|corrupt input|decompress",
    r"digest\S* (did|does) not match|digest mismatch|did not match|hash mismatch|diff_?ID|expected digest",
    r"unsupported (MIME|media|manifest|compression|schema)|unknown media|invalid (manifest|config|image|reference)",
    r"unpack(ing)? (entry|layer|rootfs)|(applying|extracting|registering) layer|layers? from manifest",
    r"json: |invalid character|cannot unmarshal|parsing (image|manifest|config)|no image found|choosing (an )?image",
    r"exec format error|file name too long|too many levels of symbolic links|max depth exceeded|is not a directory",
    r"unrecognized image format|duplicates of file paths|layer .* (missing|not found)|invalid diff",
)

# Apptainer's last words where all is mounted and what fails is the start of the image's program.
_AT_START = (
    r'FATAL: +"[^"]*": executable file not found in \$PATH',
    r"FATAL: +stat \S+: (no such file or directory|not a directory)",
    r"FATAL: +(permission denied|is a directory|exec format error)\s*$",
    r"FATAL: +exec \S+ failed: .*(no such file or directory|permission denied|exec format error)",
    r"FATAL: +failed to set working directory: chdir \S+: (no such file|not a directory|permission denied)",
)
_STARTED = "correct `command` or `workdir`: the image has no such program or folder, or none that can be run"

# By Apptainer's own form: Go's part pads before the text, the starter's before the colon.
_OWN = re.compile(r"(FATAL|ERROR|WARNING|INFO|VERBOSE|DEBUG)(: +|\s+: )\S")
_ENDS = re.compile(r"FATAL:   |ERROR +: ")
_OF_THE_RUNTIME = re.compile(r"runtime(/cgo)?: |fatal error: |(/bin/)?(ba)?sh: (\d+: Cannot fork|fork: )|timeout: fork")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def of_conversion(words: str, status: int | None) -> Blame:
    """Who is to blame for a tool that was to convert or load an image, said ``words`` and ended with ``status``.

    A status below 0 is a signal, None a time-out.
    """
    if status is None:
        return Blame(Fault.INFRASTRUCTURE, "see what it waited for, and run again when the machine is less busy")
    if machine := _first((*_LACKS, *_REFUSES), words):
        return machine
    if status in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL):
        return Blame(Fault.INFRASTRUCTURE, "see who killed it: memory that ran out, or a limit of the site's")
    if status >= 0 and any(_found(pattern, words) for pattern in _IN_CONVERSION):
        return Blame(Fault.IMAGE, "")
    return Blame(Fault.INFRASTRUCTURE, "")


def of_start(words: str) -> Blame | None:
    """Who is to blame for a task that ended with ``words``, where they are Apptainer's; else None.

    A ``FATAL:`` of Apptainer's comes before the image's program runs: nothing of that program's stands before it.
    """
    lines = [line.strip() for line in _COLOUR.sub("", words).splitlines() if line.strip()]
    if lines and _OF_THE_RUNTIME.match(lines[0]):
        # It may be the image's program that is written in Go: only what a machine lacks.
        return _first(_LACKS, words)
    last = next((line for line in lines if not _OWN.match(line) or _ENDS.match(line)), "")
    if not _ENDS.match(last):
        return None
    said = "\n".join(line for line in lines if _OWN.match(line))
    if lacking := _first(_LACKS, said):
        return lacking
    if any(re.search(pattern, last) for pattern in _AT_START):
        return Blame(Fault.IMAGE, _STARTED)
    by_hand = "start the SIF by hand on that node, with the command of the rendered job"
    return _first(_REFUSES, said) or Blame(Fault.INFRASTRUCTURE, by_hand)


def lacking(words: str) -> str:
    """What to do about what the machine lacks, as the kernel says it in ``words``; empty where it does not."""
    found = _first(_LACKS, words)
    return found.todo if found else ""


def _first(causes: tuple[tuple[str, str], ...], words: str) -> Blame | None:
    return next((Blame(Fault.INFRASTRUCTURE, todo) for pattern, todo in causes if _found(pattern, words)), None)


def _found(pattern: str, words: str) -> bool:
    return re.search(pattern, words, re.IGNORECASE | re.MULTILINE) is not None
