"""Make the reports of a run and put them in place.

The set of a run lies in ``results/runs/<run>/report/``, for good; ``results/`` holds a copy of the latest. Everything
is rendered before anything is written. A set in ``results/`` counts only with its ``verdict.json``: that is removed
first and written last. :func:`retire_reports` clears ``results/`` when a run begins, so that a run that
ends early leaves no older run's reports under its name. Runs may go on side by side: they change ``results/`` one at a
time, and prepare what they put there in folders of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from sifproof.image import scratch
from sifproof.records import write_atomically
from sifproof.report.decision import Decision, Describe, decide
from sifproof.report.recorded import Recorded, read_run

VERDICT = "verdict.json"
REPORTS = (VERDICT, "report.html", "checks.tsv", "summary.tsv", "junit.xml")
FOLDER = "report"
"""Where in the folder of a run its set lies."""


def write_reports(run_dir: Path, results: Path, describe: Describe | None = None) -> Decision:
    """Judge the run recorded in ``run_dir`` and write its reports there and to ``results``.

    ``describe`` gives what the registry knows about a check by its id, such as
    ``checks.engine.registry.load().get``.
    Records that can't be read make the run incomplete; they never raise.
    """
    recorded = read_run(run_dir)
    decision = decide(
        recorded.plan, recorded.verdicts, recorded.faults, recorded.problems, describe, doctor=recorded.doctor
    )
    put_in_place(render(recorded, decision, describe), run_dir, results)
    return decision


def render(recorded: Recorded, decision: Decision, describe: Describe | None = None) -> dict[str, str]:
    """The text of each of :data:`REPORTS`."""
    # pandas takes 0.4 s to import, which the callers of the rest of this module need not pay.
    from sifproof.report import junit, page, tables, verdict  # noqa: PLC0415

    paths = {name: f"runs/{recorded.folder.name}/{FOLDER}/{name}" for name in REPORTS}
    file = verdict.of(recorded, decision, paths)
    checks = tables.checks_table(recorded.plan, recorded.verdicts)
    texts = {
        VERDICT: file.model_dump_json(indent=2) + "\n",
        "report.html": page.render(recorded, file, checks, describe),
        "checks.tsv": tables.to_tsv(checks[tables.CHECK_COLUMNS]),
        "summary.tsv": tables.to_tsv(tables.summary_table(recorded, decision)),
        "junit.xml": junit.render(
            checks, decision, recorded.plan.run, recorded.plan.started, command=recorded.plan.command
        ),
    }
    return {name: _clean(text) for name, text in texts.items()}


def put_in_place(texts: Mapping[str, str], run_dir: Path, results: Path) -> None:
    """Write a rendered set to the run's folder, then to ``results``."""
    with _alone(results):
        _keep(texts, run_dir)
        _publish(texts, run_dir, results)


def is_published(kept: Path, results: Path) -> bool:
    """Whether the set in ``results`` is the one in ``kept``, the report folder of a run."""
    return _same(kept / VERDICT, results / VERDICT)


def retire_reports(results: Path) -> None:
    """Clear ``results`` of the reports of an earlier run, which stay in that run's own folder.

    A file that is in no run's folder is moved to one of its own below ``runs/``: nothing is lost.
    """
    with _alone(results):
        _retire(results)


@contextlib.contextmanager
def _alone(results: Path) -> Iterator[None]:
    """No other run changes the reports in ``results`` meanwhile."""
    with scratch.lock(results / "runs" / ".lock"):
        yield


def _retire(results: Path) -> None:
    for name in REPORTS:
        path = results / name
        if not path.is_file():
            continue
        if any(_same(path, kept) for kept in results.glob(f"runs/*/{FOLDER}/{name}")):
            path.unlink()
            continue
        made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        shelter = results / "runs" / f"retired-{made:%Y%m%dT%H%M%SZ}" / FOLDER
        shelter.mkdir(parents=True, exist_ok=True)
        path.replace(_unused(shelter / name))


def _keep(texts: Mapping[str, str], run_dir: Path) -> None:
    """Put the set into the run's folder by one rename."""
    kept = run_dir / FOLDER
    for leftover in run_dir.glob(f".{FOLDER}.*"):  # of a process that was killed
        shutil.rmtree(leftover)
    fresh = run_dir / f".{FOLDER}.{os.getpid()}.new"
    for name, text in texts.items():
        write_atomically(fresh / name, text)
    if kept.exists():
        # A folder can't be renamed over another: the older set of this same run stands aside.
        kept.rename(run_dir / f".{FOLDER}.{os.getpid()}.old")
    fresh.rename(kept)
    shutil.rmtree(run_dir / f".{FOLDER}.{os.getpid()}.old", ignore_errors=True)


def _publish(texts: Mapping[str, str], run_dir: Path, results: Path) -> None:
    """Put the set into ``results``: none of an older one is left when the first of this one appears."""
    staged = run_dir / f".{FOLDER}.{os.getpid()}.copy"
    try:
        for name, text in texts.items():
            write_atomically(staged / name, text)
        _retire(results)
        for name in reversed(REPORTS):
            try:
                (staged / name).replace(results / name)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                write_atomically(results / name, texts[name])  # `results/runs` is a link to another disk
    except BaseException:
        # Between two renames: a part of a set is worth less than none, and the run's folder has the whole.
        if not (results / VERDICT).exists():
            for name in REPORTS:
                (results / name).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
    except FileNotFoundError:
        return False


def _unused(path: Path) -> Path:
    number = 0
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _clean(text: str) -> str:
    """``text`` as UTF-8 can hold it, and without the token of this process, wherever it may have come from."""
    token = os.environ.get("NOMAD_TOKEN", "")
    if len(token) >= 8:
        text = text.replace(token, "[NOMAD_TOKEN]")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
