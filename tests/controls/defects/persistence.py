"""What a server does with its directories at the start."""

import shutil
import sys
from pathlib import Path

from defects import turns_red

AFTER_A_KILL = ("resilience.killed-data", "resilience.killed-isolation", "resilience.first-call")
"""The checks of what a killed server is like when it is there again: nothing to look at where it does not come back."""


@turns_red("persistence.after-restart", "resilience.killed-data", nomad=True)
def wipes_its_workspaces_at_the_start(arguments):
    """The server empties its workspaces whenever it starts."""
    for workspace in data(arguments).glob("slots/slot_*"):
        shutil.rmtree(workspace)


@turns_red(
    "persistence.restart",
    "resilience.killed",
    nomad=True,
    not_measured=("persistence.after-restart", "persistence.isolation", *AFTER_A_KILL),
)
def refuses_a_used_directory(arguments):
    """The server does not start on a data directory that it has worked in before."""
    if (data(arguments) / "slots").exists():
        sys.exit("the data directory is not empty")


@turns_red("persistence.isolation", "resilience.killed-isolation", nomad=True)
def sandboxes_of_the_first_start_alone(arguments):
    """The server locks commands in when it starts for the first time, and does without whenever it starts again."""
    from slotserver import containment

    from defects.isolation_slot import without_bubblewrap

    if (data(arguments) / "slots").exists():
        without_bubblewrap()
    containment.hold_to = lambda *_, **options: None


def data(arguments) -> Path:
    return Path(arguments[arguments.index("--data-dir") + 1])
