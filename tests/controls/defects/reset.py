"""``/reset``."""

import os

from defects import failure, turns_red


@turns_red("reset.empties", "reset.tmp")
def hidden_files_stay(arguments):
    """A reset leaves hidden files, in the workspace and in `/tmp`."""
    from slotserver.slots import Result, Slot

    async def by_a_glob(self):
        if self.shell:
            await self.shell.end()
            self.shell = None
        async with self.start(
            ["bash", "-c", 'chmod -R u+rwx . "$TMPDIR"; rm -rf -- * "$TMPDIR"/*'], network=True
        ) as process:
            return Result(await process.wait() == 0)

    Slot.reset = by_a_glob


@turns_red("reset.closed")
def mode_stays(arguments):
    """A reset leaves the mode that a command gave to the workspace: the next agent can't write."""
    from slotserver.slots import Slot

    reset = Slot.reset

    async def as_it_was(self):
        before = self.place.workspace.stat().st_mode
        result = await reset(self)
        self.place.workspace.chmod(before & 0o7777)
        return result

    Slot.reset = as_it_was


@turns_red("reset.closed", nomad=True)
def closed_for_good(arguments):
    """A slot whose directory a command closed takes no command any more, and no reset."""
    from slotserver import directories

    directories._give = lambda *_, **more: None


@turns_red("reset.tmp", nomad=True)
def tmp_survives_the_reset(arguments):
    """A reset empties the workspace, and leaves the slot's `/tmp` as it is."""
    from slotserver import slots

    slots._EMPTY = slots._EMPTY.replace('. "$TMPDIR"', ".")


@turns_red("reset.tmp", nomad=True)
def hidden_names_in_tmp_stay(arguments):
    """A reset leaves the hidden files of the slot's `/tmp`."""
    otherwise_in_tmp('chmod -R u+rwx "$TMPDIR"/* 2>/dev/null; rm -rf -- "$TMPDIR"/*')


@turns_red("reset.tmp", nomad=True)
def fifos_in_tmp_stay(arguments):
    """A reset takes files, links and directories away from the slot's `/tmp`, and leaves FIFOs and sockets."""
    otherwise_in_tmp('chmod -R u+rwx "$TMPDIR"; find "$TMPDIR" -mindepth 1 ! -type p ! -type s -delete 2>/dev/null')


@turns_red("reset.tmp", nomad=True)
def tmp_of_the_first_slot_alone(arguments):
    """A reset empties the `/tmp` of the first slot, and no other's."""
    from slotserver.containment import Bubblewrap

    environment = Bubblewrap.environment
    Bubblewrap.environment = lambda self, place: environment(self, place) | {"SLOT": str(place.index)}
    otherwise_in_tmp('if [ "$SLOT" = 0 ]; then find "$TMPDIR" -mindepth 1 -exec chmod u+w {} \\; -delete; fi')


@turns_red("reset.tmp", nomad=True)
def tmp_stays_where_the_workspace_has_files(arguments):
    """A reset of a slot whose workspace holds files empties that alone, and leaves its `/tmp`."""
    otherwise_in_tmp('if [ -z "$(ls -A)" ]; then chmod -R u+rwx "$TMPDIR"; find "$TMPDIR" -mindepth 1 -delete; fi')


def otherwise_in_tmp(script):
    """Let a reset empty the slot's `/tmp` by ``script``."""
    from slotserver import slots

    slots._EMPTY = f"{script}\n" + slots._EMPTY.replace('. "$TMPDIR"', ".")


@turns_red("reset.only-that-slot")
def links_followed(arguments):
    """A reset follows links to directories, and empties what they lead to: another slot's workspace."""
    from slotserver.slots import Slot

    reset = Slot.reset

    async def by_links(self):
        all_slots = self.place.workspace.parent
        for entry in self.place.workspace.rglob("*"):
            # Of what a link may lead to, nothing but the slots is to be harmed.
            if entry.is_symlink() and all_slots in entry.resolve().parents:
                for folder, _, files in os.walk(entry):
                    for name in files:
                        os.unlink(f"{folder}/{name}")  # noqa: PTH108
        return await reset(self)

    Slot.reset = by_links


@turns_red("reset.only-that-slot")
async def all_slots_reset(path, call, go):
    """A reset of the first slot empties the second one too."""
    if path == "/reset" and call.get("slot_id") == "slot_0":
        await go({"slot_id": "slot_1"})
    return await go(call)


@turns_red("reset.processes", "stateful.reset")
def shell_survives_the_reset(arguments):
    """A reset leaves the shell of `bash_stateful` alone, with all that runs in it."""
    from slotserver.slots import Slot

    reset = Slot.reset

    async def without_the_shell(self):
        shell, self.shell = self.shell, None
        try:
            return await reset(self)
        finally:
            self.shell = shell

    Slot.reset = without_the_shell


@turns_red("reset.processes", nomad=True)
def directory_made_anew_below_the_shell(arguments):
    """A reset removes the workspace and makes a new one, and the shell of `bash_stateful` goes on in the old."""
    import shutil

    from slotserver.slots import Slot

    reset, forgotten = Slot.reset, []

    async def elsewhere(self):
        forgotten.append(self.shell)
        self.shell = None
        shutil.rmtree(self.place.workspace)
        return await reset(self)

    Slot.reset = elsewhere


JUST_RESET: set[str] = set()


@turns_red("reset.again")
async def empty_slot_is_no_slot(path, call, go):
    """A reset of a slot that was just reset fails."""
    slot = str(call.get("slot_id"))
    if path != "/reset":
        JUST_RESET.discard(slot)
    elif slot in JUST_RESET:
        return failure("No such directory") | {"execution_id": None}
    else:
        JUST_RESET.add(slot)
    return await go(call)


@turns_red("reset.closed", nomad=True)
def closed_to_the_shell(arguments):
    """The shell of `bash_stateful` does not start where a command closed the slot's directory."""
    from slotserver import tools

    bash_stateful = tools.TOOLS["bash_stateful"]

    async def unless_closed(slot, args, timeout_s):
        if not slot.place.workspace.stat().st_mode & 0o100:
            raise tools.ToolError("Permission denied")
        return await bash_stateful(slot, args, timeout_s)

    tools.TOOLS["bash_stateful"] = unless_closed


@turns_red("reset.closed", nomad=True)
def closed_tmp_for_good(arguments):
    """A slot whose `/tmp` a command closed takes no command any more, and no reset."""
    from slotserver import directories
    from slotserver.protocol import ToolError
    from slotserver.slots import Slot

    give, start = directories._give, Slot.start

    def workspaces_alone(directory, owner, *, as_new):
        if "/.state/" not in str(directories.path_of(directory).readlink()):
            give(directory, owner, as_new=as_new)

    def unless_closed(self, *args, **options):
        if not self.place.tmp.stat().st_mode & 0o100:
            raise ToolError("bwrap: Can't bind mount /tmp: Permission denied")
        return start(self, *args, **options)

    directories._give = workspaces_alone
    Slot.start = unless_closed


@turns_red("reset.closed", nomad=True)
def closed_is_taken_for_empty(arguments):
    """A reset of a directory that a command closed opens it, and leaves in it what is there."""
    from slotserver.slots import Result, Slot

    reset = Slot.reset

    async def unless_closed(self):
        if self.place.workspace.stat().st_mode & 0o777:
            return await reset(self)
        self.containment.prepare(self.place, as_new=True)
        return Result(True, output="Reset")

    Slot.reset = unless_closed
