"""Snakemake logger plugin: what runs, on what, for how long. Live lines on a terminal, plain lines in a log.

Chosen by ``logger: sifproof`` in ``profiles/default``; ``--logger`` on the command line chooses another. The whole
log of Snakemake stays in ``.snakemake/log``.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.text import Text
from snakemake.logging import ColorizingTextHandler
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

# Snakemake says these of a job whose own log is shown instead.
_NOISE = (
    "Exiting because a job execution failed",
    "Shutting down, this might take some time",
    "Complete log",
    "RuleException:",
    "WorkflowError:\nAt least one job did not complete successfully",
)
_BAD = escape("✗ ")
_DONE, _FAILED = "[green]✓[/]", "[red]✗[/]"
GATE = "gate"
"""The rule whose log is the verdict: it is shown whole."""
UNWRITTEN: list[OSError] = []
"""Why what was to be shown could not be written, where it could not: a full disk, a reader that went away."""


def _lines(path: Path, limit: int = 12) -> list[str]:
    """The last lines of a log; it comes from tasks too, so only what can be printed of it."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 16384))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = ("".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in text.splitlines())
    return [line for line in lines if line][-limit:]


@dataclass
class Job:
    """A job that runs."""

    title: str
    rule: str
    log: Path | None
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started


class Running:
    """The live part of the display: one line per running job, with its time and the last line of its log."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich at each refresh."""
        # A copy: the logging thread adds and removes jobs meanwhile.
        for job in list(self.jobs.values()):
            latest = (_lines(job.log, 1) if job.log else []) or [""]
            line = Text.from_markup(
                f"[cyan]•[/] {escape(job.title)} [dim]{job.seconds:5.1f} s  {escape(latest[-1])}[/]"
            )
            line.truncate(options.max_width, overflow="ellipsis")
            yield line


class LogHandler(LogHandlerBase):
    """Gets every record of Snakemake's log, in a thread of its own."""

    def __post_init__(self) -> None:
        """Called by the base class, in place of a constructor."""
        settings = self.common_settings
        stream = sys.stdout if settings.stdout else sys.stderr
        self._plain = ColorizingTextHandler(nocolor=settings.nocolor, stream=stream)
        self._plain.handleError = self.handleError
        self._whole = settings.dryrun or settings.verbose or settings.debug_dag
        self._console = Console(
            file=stream,
            no_color=settings.nocolor or None,
            highlight=False,
            soft_wrap=True,
        )
        self._running = Running()
        self._live = Live(self._running, console=self._console, refresh_per_second=8, transient=True)

    @property
    def writes_to_stream(self) -> bool:
        """It takes the place of Snakemake's own lines."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """It does not."""
        return False

    @property
    def has_filter(self) -> bool:
        """``--quiet`` is heeded by Snakemake's filter."""
        return False

    @property
    def has_formatter(self) -> bool:
        """What is shown as it comes is formatted by Snakemake."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """It does not."""
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        try:
            self._emit(record)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name in logging
        """Keep why a record could not be shown; logging itself would print a traceback for each."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            UNWRITTEN.append(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Take the live lines off the terminal."""
        self._live.stop()
        super().close()

    def _emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__
        event = fields.get("event")
        if self._whole:
            self._plain.setFormatter(self.formatter)
            self._plain.emit(record)
        elif event == LogEvent.JOB_INFO:
            self._begin(fields)
        elif event == LogEvent.JOB_FINISHED:
            self._end(fields.get("job_id", fields.get("jobid")), _DONE)
        elif event == LogEvent.JOB_ERROR:
            self._fail(fields)
        elif record.levelno >= logging.WARNING and not str(record.msg).lstrip().startswith(_NOISE):
            style = "red" if record.levelno >= logging.ERROR else "yellow"
            self._console.print(Text(str(self.format(record)), style=style))

    def _begin(self, fields: dict[str, Any]) -> None:
        if fields["rule_name"] == "all":
            return
        logs = [Path(str(path)) for path in fields.get("log") or []]
        title = str(fields.get("rule_msg") or fields["rule_name"])
        self._running.jobs[fields["jobid"]] = job = Job(title, fields["rule_name"], logs[0] if logs else None)
        if self._console.is_terminal:
            self._live.start()
        elif job.rule != GATE:
            self._console.print(f"{time.strftime('%H:%M:%S')} … {escape(job.title)}")

    def _end(self, jobid: int | None, mark: str, *, tail: int = 1) -> None:
        job = self._running.jobs.pop(jobid, None) if jobid is not None else None
        if job is None:
            return
        for line in self._outcome(job, mark, tail):
            self._console.print(line)
        if not self._running.jobs:
            self._live.stop()

    def _outcome(self, job: Job, mark: str, tail: int) -> Iterator[str]:
        lines = [escape(line) for line in (_lines(job.log, 60 if job.rule == GATE else tail) if job.log else [])]
        if tail == 1 and lines and lines[-1].startswith(_BAD):
            # The rule succeeded, for only the gate fails a run; what it found is bad all the same.
            mark, lines = _FAILED, [lines[-1].removeprefix(_BAD)]
        stamp = "" if self._console.is_terminal else f"{time.strftime('%H:%M:%S')} "
        if job.rule == GATE:
            style = "bold green" if mark == _DONE else "bold red"
            yield f"[{style}]{''.join(lines[:1])}[/]"
            yield from lines[1:]
        elif tail == 1:
            yield f"{stamp}{mark} {escape(job.title)} [dim]({job.seconds:.1f} s)  {''.join(lines)}[/]"
        else:
            yield f"{stamp}{mark} {escape(job.title)} [dim]({job.seconds:.1f} s)[/]"
            yield from (f"    {line}" for line in lines)

    def _fail(self, fields: dict[str, Any]) -> None:
        jobid = fields.get("jobid")
        job = self._running.jobs.get(jobid) if isinstance(jobid, int) else None
        self._end(jobid, _FAILED, tail=12)
        if job is not None and job.rule != GATE and job.log is not None and job.log.exists():
            self._console.print(f"    [dim]whole log: {escape(str(job.log))}[/]")
