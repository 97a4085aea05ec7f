"""What a person sees while set-up works: one line per step, with the time it takes.

On a terminal the line of the running step is redrawn every second; in a log it is written at the step's start, every
20 seconds while it runs, and at its end. What a step's commands print goes to a file; where one fails, the end of it
is shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from sifproof import variables
from sifproof.errors import SifproofError

_TERMINAL = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
_LOG_INTERVAL = 20.0
_LINES_SHOWN = 25


def paint(colour: str, text: str) -> str:
    """``text`` in ``colour`` (green, yellow, red, bold, faint) on a terminal; as it is elsewhere."""
    codes = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "faint": "2"}
    return f"\x1b[{codes[colour]}m{text}\x1b[0m" if _TERMINAL else text


def say(text: str = "") -> None:
    """Write one line."""
    print(text, file=sys.stderr, flush=True)


_started: list[str] = []


def started() -> bool:
    """Whether there was anything to do."""
    return bool(_started)


class Step:
    """One step of set-up, as a context: ``with Step("nomad", "building", logs) as step: step.run([...])``."""

    def __init__(self, name: str, what: str, logs: Path) -> None:
        self.name, self.what = name, what
        self.log = logs / f"{name}.log"
        self._detail = ""
        self._start = time.monotonic()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Step:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        _started.append(self.name)
        if not _TERMINAL:
            say(f"  ..  {self.name}: {self.what}")
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._ticker.join()
        mark = paint("green", "ok") if kind is None else paint("red", "!!")
        clear = "\r\x1b[K" if _TERMINAL else ""
        say(f"{clear}  {mark}  {self.name}: {self.what} {paint('faint', f'({self._elapsed()})')}")

    def detail(self, text: str) -> None:
        """Say what the step is at just now."""
        self._detail = text

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run ``argv``, its output to the step's log and last line to the screen; its standard output is returned.

        ``env`` is its environment, what :mod:`sifproof.variables` gives to any program where absent.

        Raises :class:`SifproofError` with the end of the output where the command fails.
        """
        words = [str(word) for word in argv]
        kept: list[str] = []
        last: deque[str] = deque(maxlen=_LINES_SHOWN)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(words)}\n")
            process = subprocess.Popen(
                # What set-up started must not go on behind the next call where this process is killed.
                ["setpriv", "--pdeathsig", "KILL", *words],
                env=variables.of() if env is None else env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            try:
                for line in process.stdout or ():
                    log.write(line)
                    log.flush()
                    kept.append(line)
                    if line.strip():
                        last.append(line.rstrip())
                        self.detail(line.strip())
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if code != 0:
            raise SifproofError(
                f"{self.name}: `{' '.join(words[:4])} …` ended with exit code {code}",
                why="it printed\n    " + "\n    ".join(last) if last else "it printed nothing",
                todo=f"all of its output is in {self.log}; the next call goes on from here",
            )
        return "".join(kept)

    def _elapsed(self) -> str:
        seconds = time.monotonic() - self._start
        return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"

    def _tick(self) -> None:
        while not self._over.wait(1.0 if _TERMINAL else _LOG_INTERVAL):
            if _TERMINAL:
                width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
                line = f"  ..  {self.name}: {self.what} ({self._elapsed()}) "
                room = max(0, width - len(line) - 1)
                sys.stderr.write(f"\r\x1b[K{line}{paint('faint', self._detail[:room])}")
                sys.stderr.flush()
            else:
                say(f"  ..  {self.name}: {self.what} ({self._elapsed()}) {self._detail[:100]}")
