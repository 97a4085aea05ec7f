"""``no_userns.py COMMAND…``: runs it as on a node whose administrator allows no user namespaces.

A filter of system calls refuses unshare(2) and clone(2) with CLONE_NEWUSER, and clone3(2), whose flags it can't see. It
is for this process and what comes of it alone: the setting of the kernel would be the whole machine's.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

NEWUSER, ARGUMENT = 0x10000000, 16
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
CALLS = {"x86_64": (56, 272, 435), "aarch64": (220, 97, 435)}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2


def main() -> None:
    clone, unshare, clone3 = CALLS[platform.machine()]
    steps = [
        (LOAD, 0, 0, 0),
        (EQUAL, 5, 0, clone3),
        (EQUAL, 1, 0, clone),
        (EQUAL, 0, 4, unshare),
        (LOAD, 0, 0, ARGUMENT),
        (ANY_BIT, 0, 2, NEWUSER),
        (RETURN, 0, 0, REFUSE | errno.EPERM),
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
        (RETURN, 0, 0, ALLOW),
    ]
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    code = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.create_string_buffer(header)):
        sys.exit(f"no filter of system calls: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
