"""The slots of one server, and the way of one call through them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from . import containment, directories
from .containment import SANDBOX_WORKSPACE, Containment, Place
from .process import Process, Reaper, uninterrupted
from .protocol import MAX_OUTPUT_CHARACTERS, BadFieldError, Call, Result, ToolError
from .shell import Shell
from .tools import TOOLS
from .workspace import Workspace

# A character of UTF-8 is up to four bytes; one more shows that there was more.
_OUTPUT_LIMIT_BYTES = 4 * MAX_OUTPUT_CHARACTERS + 1
_SPARE_THREADS = 4  # for artifacts, which need no slot's lock
# Modules and caches are often laid down read-only, hence chmod. A directory where another slot left something stays.
_EMPTY = r"""
left=
for own in . "$TMPDIR"; do
    chmod -R u+rwx -- "$own" 2>/dev/null
    find "$own" -mindepth 1 -delete || exit
done
of_slot() { find "$1" -xdev -mindepth 1 -user "$EUID" "${@:2}" 2>/dev/null; }
for shared; do
    of_slot "$shared" -maxdepth 1 -type d -exec chmod -R u+rwx -- {} + 2>/dev/null
    of_slot "$shared" -delete
done
# When all are done: what is closed in /run/lock can't be removed by way of /run.
for shared; do left+=$(of_slot "$shared" ! -type d); done
if [ "$left" ]; then echo "there is still ${left:0:1000}" >&2; exit 1; fi
"""

T = TypeVar("T")
Work = Callable[[], Awaitable[Result]]


class Slot:
    """One workspace and the tools that run in it, one at a time."""

    def __init__(self, place: Place, containment: Containment, reaper: Reaper, threads: ThreadPoolExecutor) -> None:
        """Make the slot's directories; raises OSError."""
        containment.prepare(place)
        alias = SANDBOX_WORKSPACE if containment.sandboxed else str(place.workspace)
        self.place = place
        self.containment = containment
        self.workspace = Workspace(
            place.workspace, lambda: containment.workspace(place), also_known_as=alias, owner=containment.owner(place)
        )
        self.lock = asyncio.Lock()
        self.executing = False
        self.execution_id: str | None = None
        self.shell: Shell | None = None
        self._reaper = reaper
        self._threads = threads

    def start(
        self, command: Sequence[str], *, network: bool, stdin: int = subprocess.DEVNULL, pass_fds: tuple[int, ...] = ()
    ) -> Process:
        """Start a command in the slot's containment; raises ToolError."""
        try:
            self.containment.prepare(self.place)  # a command may have closed them, or removed them
            with self.containment.workspace(self.place) as workspace:
                return Process(
                    self._reaper,
                    lambda fd: self.containment.argv(self.place, command, network=network, report_fd=fd),
                    cwd=str(directories.path_of(workspace)),
                    env=self.containment.environment(self.place),
                    output_limit=_OUTPUT_LIMIT_BYTES,
                    stdin=stdin,
                    pass_fds=pass_fds,
                )
        except OSError as error:
            raise ToolError(f"The command could not be started: {error}") from error

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run ``work`` beside the event loop, and wait for its end even when the call is cancelled meanwhile.

        Otherwise it would go on while the slot's next tool runs.
        """
        return await uninterrupted(asyncio.get_running_loop().run_in_executor(self._threads, work, *args))

    async def reset(self) -> Result:
        """Empty the workspace and the slot's /tmp, and end the shell that lives on."""
        if self.shell:
            await self.shell.end()
            self.shell = None
        # In the containment, so that nothing it follows can reach out of it.
        async with self.start(["bash", "-c", _EMPTY, "bash", *self.containment.shared()], network=True) as process:
            code = await process.wait()
        if code != 0:
            said = process.stderr.take()[0].decode(errors="replace").strip()
            return Result(False, error=f"The workspace could not be emptied: {said}")
        try:
            self.containment.prepare(self.place, as_new=True)
        except OSError as error:
            return Result(False, error=f"The workspace could not be made as new: {error}")
        return Result(True, output=f"Reset {self.place.slot_id}")


class Slots:
    """All slots of the server, by id, in order."""

    def __init__(self, slots: Sequence[Slot], threads: ThreadPoolExecutor) -> None:
        self._slots = {slot.place.slot_id: slot for slot in slots}
        self._calls: set[asyncio.Task[Any]] = set()
        self._threads = threads
        self._closing = False

    @classmethod
    async def make(cls, data_dir: Path, count: int, *, user_per_slot: bool, weaker: bool) -> tuple[Slots, str]:
        """Make ``count`` slots under ``data_dir``, and say why their containment is not the best.

        Raises OSError; and WeakerError where it is weaker than before, unless ``weaker`` says that it may be.
        """
        data_dir.mkdir(parents=True, exist_ok=True)
        reaper = Reaper()
        reaper.install()
        chosen, why_not = await containment.choose(reaper, data_dir, count, user_per_slot=user_per_slot)
        directories.keep_names(data_dir)
        containment.hold_to(data_dir, chosen, why_not, weaker=weaker)
        places = [Place.of_slot(data_dir, index) for index in range(count)]
        threads = ThreadPoolExecutor(count + _SPARE_THREADS, thread_name_prefix="files")
        return cls([Slot(place, chosen, reaper, threads) for place in places], threads), why_not

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, slot_id: str) -> Slot | None:
        """The slot, or None where there is none of that id."""
        return self._slots.get(slot_id)

    @property
    def containment(self) -> Containment:
        """What the commands of all slots are locked into."""
        return next(iter(self)).containment

    async def execute(self, call: Call) -> Result:
        """Run one tool in its slot, in its turn."""
        slot, tool = self.get(call.slot_id), TOOLS.get(call.tool)
        if slot is None:
            result = Result(False, error=f"Unknown slot: {call.slot_id}")
        elif tool is None:
            result = Result(False, error=f"Unknown tool: {call.tool}")
        else:
            result = await self._run(slot, lambda: tool(slot, call.args, call.timeout_s), call.execution_id)
        result.execution_id = call.execution_id
        return result

    async def reset(self, slot_id: str) -> Result:
        """Empty a slot, in its turn."""
        slot = self.get(slot_id)
        if slot is None:
            return Result(False, error=f"Unknown slot: {slot_id}")
        return await self._run(slot, slot.reset)

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run ``work`` beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def close(self) -> None:
        """End every call, with an answer that says why, and every shell."""
        self._closing = True
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        await asyncio.gather(*(slot.shell.end() for slot in self if slot.shell))

    async def _run(self, slot: Slot, work: Work, execution_id: str | None = None) -> Result:
        if self._closing:
            return Result(False, error="The server is stopping")
        task = asyncio.ensure_future(_in_turn(slot, work, execution_id))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if not self._closing:
                raise
            return Result(False, error="The server is stopping")


async def _in_turn(slot: Slot, work: Work, execution_id: str | None) -> Result:
    async with slot.lock:
        slot.executing, slot.execution_id = True, execution_id
        try:
            return await work()
        except BadFieldError as error:
            return Result(False, error=str(error))
        except ToolError as error:
            return Result(False, error=str(error), metadata=error.metadata)
        finally:
            slot.executing, slot.execution_id = False, None
