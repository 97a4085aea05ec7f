#!/usr/bin/env python3
"""Runs a command as a pretended root, for an ordinary user on a machine without newuidmap or a range of user ids.

In a user namespace where this user is root, the kernel refuses to give files to anyone else, and package managers must
do that. Here such calls do nothing and succeed, so that all files stay the user's own, that is root's in the namespace:
right for making a file system that is packed as root's. Needs unprivileged user namespaces and nothing else.
"""

import ctypes
import os
import struct
import sys

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _SUCCEED_IDLY = 0x7FFF0000, 0x00050000  # the latter is "fail with error number 0"

# Per architecture: its AUDIT_ARCH word, and the numbers of the calls that change the owner of a file or the groups of a
# process. Numbers from the kernel's own system call tables.
_CALLS = {
    "x86_64": (0xC000003E, {"chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "setgroups": 116}),
    "aarch64": (0xC00000B7, {"fchown": 55, "fchownat": 54, "setgroups": 159}),
}


def main() -> None:
    """Become root in a namespace of our own, install the filter, and run the command in place of this program."""
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: rootless.py COMMAND…")
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        _give_up("the kernel makes no user namespace for this user")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 (written in one call)
            file.write(text)
    _install_filter(libc)
    os.execvp(command[0], command)  # noqa: S606


def _install_filter(libc: ctypes.CDLL) -> None:
    machine = os.uname().machine
    if machine not in _CALLS:
        sys.exit(f"rootless.py knows no {machine}: install the package uidmap, or run this as root")
    audit, calls = _CALLS[machine]
    numbers = sorted(calls.values())
    program = [
        _step(_LOAD_WORD, 0, 0, 4),
        _step(_JUMP_IF_EQUAL, 0, len(numbers) + 1, audit),
        _step(_LOAD_WORD, 0, 0, 0),
        *(_step(_JUMP_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        _step(_RETURN, 0, 0, _ALLOW),
        _step(_RETURN, 0, 0, _SUCCEED_IDLY),
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header):
        _give_up("the kernel takes no system call filter")


def _step(operation: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("HBBI", operation, if_true, if_false, value)


def _give_up(what: str) -> None:
    sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
