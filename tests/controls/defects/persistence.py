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


@turns_red("persistence.isolation", "resilience.killed-isolation", nomad=True)
def shells_of_the_first_start_alone(arguments):
    """When it starts again, the server locks in what `bash` runs, and no more the shells of `bash_stateful`."""
    from slotserver import containment
    from slotserver.containment import Bubblewrap

    words = Bubblewrap.argv

    def argv(self, place, command, *, network, report_fd):
        if "--norc" in command:
            return containment.Supervised(user_per_slot=False).argv(
                place, command, network=network, report_fd=report_fd
            )
        return words(self, place, command, network=network, report_fd=report_fd)

    if (data(arguments) / "slots").exists():
        Bubblewrap.argv = argv


@turns_red("persistence.isolation", "resilience.killed-isolation", nomad=True)
def network_when_it_starts_again(arguments):
    """When it starts again, the server gives network to commands that were to have none, and says nothing."""
    from defects.isolation_slot import in_bubblewrap

    if (data(arguments) / "slots").exists():
        in_bubblewrap(lambda words, place: [word for word in words if word != "--unshare-net"])


@turns_red("persistence.isolation", "resilience.killed-isolation", nomad=True)
def one_tmp_when_it_starts_again(arguments):
    """When it starts again, the server gives all slots the same `/tmp`."""
    from defects.isolation_slot import one_tmp_for_all

    if (data(arguments) / "slots").exists():
        one_tmp_for_all(arguments)


@turns_red("persistence.isolation", "resilience.killed-isolation", nomad=True)
def no_pid_namespace_when_it_starts_again(arguments):
    """When it starts again, the server lets commands see the processes of its container."""
    from defects.isolation_slot import no_pid_namespace

    if (data(arguments) / "slots").exists():
        no_pid_namespace(arguments)


@turns_red("persistence.isolation", "resilience.killed-isolation", nomad=True)
def no_token_when_it_starts_again(arguments):
    """When it starts again, the server has forgotten to ask for a token."""
    from defects.isolation_access import lets_in

    if (data(arguments) / "slots").exists():
        lets_in(lambda request: True)


def data(arguments) -> Path:
    return Path(arguments[arguments.index("--data-dir") + 1])
