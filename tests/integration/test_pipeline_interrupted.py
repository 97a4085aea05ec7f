"""A run that is interrupted, in whatever stage and way: nothing of it is left, no report is wrong, the next works."""

import glob
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from checkout import DEAD_ENGINE, FEW, GONE_S, Checkout, descendants, wait_until

from sifproof.image.reference import build_reference_image
from sifproof.report.write import REPORTS

STAGES = {
    "convert": "singularity.convert.log",
    "agent": "agent.log",
    "submit": "singularity.submit.log",
    "suites": "singularity.bash.log",
    "resilience": "singularity.resilience.log",
    "teardown": "singularity.teardown.log",
}


def ctrl_c(started):
    os.killpg(started.group, signal.SIGINT)


def terminate(started):
    os.kill(started.group, signal.SIGTERM)


def kill(started):
    os.kill(started.group, signal.SIGKILL)


def kill_snakemake(started):
    os.kill(started.snakemake(), signal.SIGKILL)


WAYS = [
    *((ctrl_c, stage) for stage in STAGES),
    (terminate, "agent"),
    (terminate, "suites"),
    (kill, "convert"),
    (kill, "suites"),
    (kill, "resilience"),
    (kill_snakemake, "agent"),
    (kill_snakemake, "suites"),
]


@pytest.fixture(scope="module")
def image(images):
    return build_reference_image(images / "reference").source


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """With images of its own, so that there is something to convert."""
    return Checkout(tmp_path_factory.mktemp("interrupted"))


def start(checkout, image, suites=FEW):
    return checkout.start("--config", "driver=singularity", suites, f"image={image}", **DEAD_ENGINE)


def second_client_has_a_task(checkout):
    """Whether there is a second client beside the run's agent, and a sandbox on it: nobody but the run knows them."""
    # pathlib's glob raises where a folder vanishes while it looks.
    return bool(glob.glob(f"{checkout.root}/.tools/agents/*/second-*/alloc/*/server"))  # noqa: PTH207


def scratch(pids):
    """The folders in which the processes ``pids`` unpacked images."""
    return [path for pid in pids for path in Path("/dev/shm").glob(f"sifproof-build-{pid}-*")]


@pytest.mark.parametrize(("way", "stage"), WAYS, ids=[f"{way.__name__}-{stage}" for way, stage in WAYS])
def test_leaves_nothing(checkout, image, way, stage):
    if stage == "convert":
        shutil.rmtree(checkout.results / "images", ignore_errors=True)
    for folder in (checkout.results, checkout.results / "runs" / "yesterday" / "report"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in REPORTS:
            (folder / name).write_text(f"{name} of yesterday")

    started = start(checkout, image, "suites=resilience" if stage == "resilience" else FEW)
    try:
        started.reached(STAGES[stage])
        if stage == "resilience":
            wait_until(lambda: second_client_has_a_task(checkout))
        pids = descendants(started.keeper.pid)
        way(started)
        outcome = started.wait(GONE_S)
    finally:
        started.end()

    assert outcome.exit_code == (-signal.SIGKILL if way is kill else 4), outcome
    assert checkout.reports() == {}
    assert {path.name for path in checkout.results.iterdir()} <= {"README.md", "images", "runs"}
    assert not (outcome.folder / "report").exists()
    assert not (outcome.folder / "accepted").exists()
    for name in REPORTS:
        assert (checkout.results / "runs" / "yesterday" / "report" / name).read_text() == f"{name} of yesterday"
    # A Python that Ctrl-C meets in its first milliseconds, before any module of anybody's, tells of that itself.
    told = re.sub(r"Fatal Python error: init_import_site(?:.*\n)*?.*KeyboardInterrupt", "", outcome.output)
    assert "Traceback" not in told, told
    if way in (ctrl_c, terminate):
        assert scratch(pids) == []


def test_before_anything_is_made(checkout, image):
    started = start(checkout, image)
    try:
        wait_until(lambda: "workflow specific profile" in started.output())
        ctrl_c(started)
        outcome = started.wait(GONE_S)
    finally:
        started.end()
    assert outcome.exit_code == 4, outcome
    assert outcome.output.splitlines()[-1] == "sifproof: interrupted before anything was made"
    assert not outcome.folder.exists()
    assert "Traceback" not in outcome.output


def test_the_next_run_works_and_clears_away_after_killed_ones(checkout, image):
    started = start(checkout, image)
    try:
        outcome = started.wait()
    finally:
        started.end()
    assert outcome.exit_code == 0, outcome
    assert set(checkout.reports()) == set(REPORTS)
