"""A private copy of the project, and runs of the gate in it: what the tests of the whole pipeline work with."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import keeper

from sifproof import host_tools, run
from sifproof.report.write import REPORTS

ROOT = Path(__file__).resolve().parents[1]
DEAD_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
"""The environment of a machine on which no Docker engine answers."""

SINGULARITY = ("--config", "driver=singularity")
FEW = "suites=health,bash,files"
"""After ``--config``: for runs in which it does not matter what is checked."""

GONE_S = 120.0
"""Seconds within which nothing of a run may be left, once it has ended or was killed."""


@dataclass(frozen=True)
class Outcome:
    """What a run of the gate came to."""

    run: run.Run
    exit_code: int
    output: str

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def verdict(self) -> dict:
        return json.loads((self.folder / "report" / "verdict.json").read_text())

    @property
    def verdicts(self) -> list[dict[str, str]]:
        """The rows of ``checks.tsv``, and nothing done to them but what any reader of such a file does."""
        with (self.folder / "report" / "checks.tsv").open(newline="") as stream:
            return list(csv.DictReader(stream, delimiter="\t"))

    def red(self, sandbox: str | None = None) -> set[str]:
        """The checks that failed (of one sandbox)."""
        return {v["check"] for v in self.verdicts if v["verdict"] == "fail" and sandbox in (None, v["sandbox"])}

    def standing(self, sandbox: str) -> dict:
        """The decision on one sandbox."""
        return next(s for s in self.verdict["sandboxes"] if s["name"] == sandbox)

    def allocations(self, sandbox: str) -> list[dict]:
        return json.loads((self.folder / "endpoints" / f"{sandbox}.json").read_text())["allocations"]

    def __str__(self) -> str:
        logs = "".join(
            f"\n--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.folder.glob("logs/*.log"))
        )
        return f"run {self.run.id} ended with {self.exit_code}\n{self.output}{logs}"


class Started:
    """A run of the gate under way."""

    def __init__(self, checkout: "Checkout", command: list[str], environment: dict[str, str]) -> None:
        self.run = run.Run(environment[run.RUN_VARIABLE], checkout.results)
        self._checkout = checkout
        self._output = checkout.root / f".output-{self.run.id}"
        with self._output.open("wb") as output:
            self.keeper = subprocess.Popen(
                [sys.executable, keeper.__file__, *command],
                cwd=checkout.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def group(self) -> int:
        """The process group of the command, which is the process id of its first process too."""
        return wait_until(lambda: children(self.keeper.pid))[0]

    def snakemake(self) -> int:
        """The process id of the run's outermost Snakemake."""
        return wait_until(
            lambda: next((pid for pid in descendants(self.keeper.pid) if "snakemake --cores" in command_line(pid)), 0)
        )

    def reached(self, log: str) -> None:
        """Return when the stage that writes ``log`` is at work."""
        path = self.run.folder / "logs" / log
        wait_until(lambda: path.exists() or self.keeper.poll() is not None, 600)
        assert path.exists(), f"{log} was never written\n{self.output()}"

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def wait(self, within_s: float = 600.0) -> Outcome:
        """The outcome, once nothing of the run is left: no process, no mount, no agent's folder."""
        try:
            self.keeper.wait(within_s)
        except subprocess.TimeoutExpired:
            left = [f"{pid} {command_line(pid)}" for pid in descendants(self.keeper.pid)]
            self.end()
            raise AssertionError(f"left after {within_s:g} s: {left}\n{self.output()}") from None
        # What the run left behind when it was killed may still have written after that.
        text, code, later = re.split(r"\nkeeper: exit code (-?\d+)\n", self.output(), maxsplit=1)
        assert self._checkout.traces() == []
        self._output.unlink()
        return Outcome(self.run, int(code), text + later)

    def end(self) -> None:
        """Kill whatever is left."""
        while self.keeper.poll() is None:
            for pid in descendants(self.keeper.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.keeper.wait(0.1)


class Checkout:
    """A copy of the project's own files; ``.tools`` is shared, and so is ``images`` where it is given."""

    def __init__(self, root: Path, *, images: Path | None = None) -> None:
        self.root, self.results = root, root / "results"
        listed = subprocess.run(
            # A clone may belong to another user than the one who tests it.
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # what somebody is writing there has its name for a moment
                    shutil.copy2(ROOT / name, target)
        if images:
            (self.results / "images").symlink_to(images)

    def environment(self, **changes: str) -> dict[str, str]:
        """This process's environment for a run here: nothing of another run or cluster, this copy's own library."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NOMAD_", "SIFPROOF_", "PYTEST_", "PYTHON")) or name == "SIFPROOF_DEBIAN_MIRROR"
        }
        return {
            **inherited,
            "PYTHONPATH": str(self.root / "src"),
            "SIFPROOF_TOOLS": str(host_tools.root()),
            run.RUN_VARIABLE: run.new_id(),
            **changes,
        }

    def start(
        self,
        *arguments: str,
        command: tuple[str, ...] = ("sifproof", "run"),
        user: tuple[str, ...] = (),
        **environment: str,
    ) -> Started:
        """``sifproof run ARGUMENTS…`` here; ``user`` are words before it that make it another user's."""
        return Started(self, [*user, sys.executable, "-m", *command, *arguments], self.environment(**environment))

    def gate(self, *arguments: str, **options) -> Outcome:
        """The outcome of a run, of which nothing is left."""
        started = self.start(*arguments, **options)
        try:
            return started.wait()
        finally:
            started.end()

    def snakemake(self, *arguments: str, **options) -> Outcome:
        """The outcome of plain ``snakemake ARGUMENTS…``."""
        return self.gate(*arguments, command=("snakemake",), **options)

    def traces(self) -> list[str]:
        """What runs left on this machine: agents' folders and mounts."""
        folders = [str(path) for path in (self.root / ".tools" / "agents").glob("*") if path.is_dir()]
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{self.root}/" in line]
        return folders + mounts

    def reports(self) -> dict[str, bytes]:
        """The reports in ``results/`` by name."""
        return {name: (self.results / name).read_bytes() for name in REPORTS if (self.results / name).exists()}

    def files(self) -> dict[str, bytes]:
        """Every file below ``results/`` but the images, by path."""
        return {
            str(path.relative_to(self.results)): path.read_bytes()
            for path in self.results.rglob("*")
            if path.is_file() and "images" not in path.relative_to(self.results).parts[:1]
        }


def children(pid: int) -> list[int]:
    """The processes whose parent is ``pid``, the oldest first."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it ends at any moment, and so does each of its threads
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """The processes below ``pid``."""
    return [below for child in children(pid) for below in (child, *descendants(child))]


def command_line(pid: int) -> str:
    """The command line of ``pid``; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def environ(pid: int) -> bytes:
    """The environment of ``pid``; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def wait_until(condition, deadline_s: float = 120.0):
    """What ``condition`` returns once it is true; fails after ``deadline_s`` seconds."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s:g} s"
        time.sleep(0.01)
    return value
