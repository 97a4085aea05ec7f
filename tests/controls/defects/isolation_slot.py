"""Slots that reach each other. Each changes how the server locks commands in."""

import contextlib
import json
import os
import shutil
import sys

from defects import turns_red

ALL = ("files-read", "files-written", "tmp", "tmp-own", "processes", "signals", "environment", "moved")
OPEN = tuple(f"isolation.slot.{name}" for name in ALL)
"""What a server without any containment leaves open."""


def without_bubblewrap():
    shutil.which = lambda *_: None


def in_bubblewrap(change):
    """Let ``change`` have the words of each bwrap command, and the place it is for."""
    from slotserver.containment import Bubblewrap

    words = Bubblewrap.argv

    def argv(self, place, command, **options):
        return change(words(self, place, command, **options), place)

    Bubblewrap.argv = argv


def bind(words, kind, place, own=None):
    """Bind the directory of all workspaces, or of what else is each slot's ``own``, where it is outside."""
    folder = str((own or place.workspace).parent)
    end = words.index("--remount-ro")
    return [*words[:end], "--tmpfs", "/data", kind, folder, folder, *words[end:]]


@turns_red("bubblewrap.available", "bubblewrap.used", *OPEN, nomad=True, elsewhere=("reset.tmp",))
def bubblewrap_is_not_found(arguments):
    """The server does not find bubblewrap, and runs the commands of all slots as its own user without a word."""
    without_bubblewrap()


@turns_red("isolation.slot.tmp", "isolation.slot.tmp-own", nomad=True)
def one_tmp_for_all(arguments):
    """All slots have the same `/tmp`."""

    def change(words, place):
        common = place.tmp.with_name("common")
        common.mkdir(exist_ok=True)
        return [str(common) if word == str(place.tmp) else word for word in words]

    in_bubblewrap(change)


@turns_red("isolation.slot.tmp", "isolation.slot.tmp-own", nomad=True)
def one_cache_for_all(arguments):
    """All slots have the same writable `/root/.cache`: what one puts there, another installs."""

    def change(words, place):
        common, end = place.tmp.with_name("cache"), words.index("--remount-ro")
        common.mkdir(exist_ok=True)
        return [*words[:end], "--tmpfs", "/root", "--bind", str(common), "/root/.cache", *words[end:]]

    in_bubblewrap(change)


@turns_red("isolation.slot.files-read", "isolation.slot.files-written", nomad=True)
def open_directory_handed_on(arguments):
    """Commands inherit a descriptor of the server's data directory, through which all slots lie open."""
    from slotserver.slots import Slot

    start, data = Slot.start, arguments[arguments.index("--data-dir") + 1]

    def with_data(self, command, *, pass_fds=(), **options):
        descriptor = os.open(data, os.O_RDONLY)
        try:
            return start(self, command, pass_fds=(*pass_fds, descriptor), **options)
        finally:
            os.close(descriptor)

    Slot.start = with_data


@turns_red("isolation.slot.moved", "isolation.slot.tmp", docker=True, nomad=True)
def slots_found_by_name(arguments):
    """The server has a user for each slot, and finds their directories by name, in one that every user can write to."""
    from slotserver import directories

    @contextlib.contextmanager
    def by_name(directory, owner, *, as_new=False):
        directory.mkdir(parents=True, exist_ok=True)
        directory.parent.chmod(0o777)  # as Nomad makes what it gives to an allocation
        os.chown(directory, *owner)
        directory.chmod(0o705)
        descriptor = os.open(directory, os.O_PATH)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    directories.opened = by_name
    directories.close_to_slots = lambda *_: []


@turns_red("isolation.slot.tmp", nomad=True)
def tmps_to_be_read(arguments):
    """Every command finds the `/tmp` of all slots, read-only, where the server keeps them."""
    in_bubblewrap(lambda words, place: bind(words, "--ro-bind", place, place.tmp))


@turns_red("isolation.slot.files-read", nomad=True)
def workspaces_to_be_read(arguments):
    """Every command finds the workspaces of all slots, read-only, where the server keeps them."""
    in_bubblewrap(lambda words, place: bind(words, "--ro-bind", place))


@turns_red(
    "isolation.slot.files-written",
    "isolation.slot.files-read",
    "isolation.slot.moved",
    "bubblewrap.only-workspace-writable",
    nomad=True,
)
def workspaces_to_be_written(arguments):
    """Every command finds the workspaces of all slots, writable, where the server keeps them."""
    in_bubblewrap(lambda words, place: bind(words, "--bind", place))


@turns_red(
    "isolation.slot.processes",
    "isolation.slot.signals",
    "bubblewrap.private-processes",
    "bubblewrap.require-sandbox",
    "bubblewrap.require-stateful-sandbox",
    nomad=True,
)
def no_pid_namespace(arguments):
    """Commands run in bubblewrap without `--unshare-pid`, and see the `/proc` of the container."""

    def change(words, place):
        words = [word for word in words if word != "--unshare-pid"]
        at = words.index("--proc")
        return [*words[:at], "--bind", "/proc", *words[at + 1 :]]

    in_bubblewrap(change)


@turns_red(
    "bubblewrap.private-processes",
    "isolation.slot.processes",
    "isolation.slot.signals",
    "bubblewrap.require-sandbox",
    "bubblewrap.require-stateful-sandbox",
    nomad=True,
)
def no_pid_namespace_below_a_launcher(arguments):
    """Commands see the processes of the container, where the server goes by another name than the job's command."""
    if "PLANTED" not in os.environ:
        os.environ["PLANTED"] = json.dumps(arguments)
        os.execv(sys.executable, [sys.executable, arguments[0], "no-pid-namespace-below-a-launcher"])
    arguments[:] = json.loads(os.environ["PLANTED"])
    no_pid_namespace(arguments)


@turns_red("isolation.slot.first-to-go", nomad=True)
def commands_raise_the_servers_score(arguments):
    """Whoever starts a command marks it as the first to go by marking itself: the server keeps the mark."""
    from slotserver import process

    process._FIRST_TO_GO = ()
    started = process.Process.__init__

    def start(self, *args, **options):
        with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
            score.write("500")
        started(self, *args, **options)

    process.Process.__init__ = start


@turns_red("isolation.slot.first-to-go", nomad=True)
def shells_raise_the_servers_score(arguments):
    """Whoever starts a shell of `bash_stateful` marks himself as the first to go: the server keeps the mark."""
    from slotserver import shell

    started = shell.Shell.__init__

    def start(self, *args, **options):
        with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
            score.write("500")
        started(self, *args, **options)

    shell.Shell.__init__ = start


@turns_red("isolation.slot.memory", "isolation.slot.first-to-go", nomad=True)
def server_goes_before_its_commands(arguments):
    """When memory runs out, the kernel ends the server rather than the command that took it."""
    from slotserver import process

    process._FIRST_TO_GO = ("sh", "-c", 'echo 0 > /proc/self/oom_score_adj && exec "$@"', "sh")
    with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write("1000")
