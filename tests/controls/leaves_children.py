"""The supervisor of the reference server with a defect: it leaves children of its command behind.

    leaves_children.py timeout|end all|daemons FOLDER STATUS_FD USER:GROUP COMMAND [ARGUMENT …]

``timeout`` or ``end`` of the command is when; ``all`` but the shell, or all outside of its process group, are whom.
FOLDER is that of the true ``supervisor.py``.
"""

import os
import signal
import sys

when, whom, folder = sys.argv[1:4]
sys.path.insert(0, folder)

import supervisor  # noqa: E402

start, end_descendants = supervisor.start, supervisor.end_descendants
shells: list[int] = []


def started(*given):
    shells.append(start(*given))
    return shells[-1]


def leave() -> None:
    if when != ("timeout" if isinstance(sys.exc_info()[1], supervisor.Terminated) else "end"):
        return end_descendants()
    ended = set(shells if when == "timeout" else ())
    if whom == "daemons":
        group = supervisor.descendants({os.getpid()})
        ended |= {pid for pid in group if os.getpgid(pid) == os.getpgrp()}
    return supervisor.signal_all(ended, signal.SIGKILL)


supervisor.start, supervisor.end_descendants = started, leave
user, group = sys.argv[5].split(":")
supervisor.main(int(sys.argv[4]), int(user), int(group), sys.argv[6:])
