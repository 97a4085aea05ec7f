"""Runs a command and stays until everything that came from it has ended: ``python keeper.py COMMAND…``.

The kernel hands every orphan of the command to this process (PR_SET_CHILD_SUBREAPER), whatever session, environment or
control group it has fled to. So when this process ends, no process of the command is left, and while it lives, its
descendants are what is left. The command gets a session of its own: its process id names its process group.
"""

import ctypes
import os
import signal
import sys

_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # What is sent to the command is not meant for its keeper.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process = os.fork()
    if process == 0:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    code = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == process:
            code = os.waitstatus_to_exitcode(status)
            # Whoever reads the command's output need not wait for what it left behind, but may.
            os.write(1, f"\nkeeper: exit code {code}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) & 0xFF)
