"""Fixtures for the tests that run the whole pipeline."""

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("checkout")

from checkout import Checkout  # noqa: E402

from sifproof import host_tools  # noqa: E402

# For the tests of the sandbox server outside of a container, on a machine without bubblewrap.
os.environ["PATH"] += f"{os.pathsep}{host_tools.root() / 'debian/bubblewrap/usr/bin'}"
IMAGES = host_tools.root() / "tests" / "images"
"""Of the tests alone: what runs of this checkout keep in `results/images` is theirs."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item):
    """No test is skipped: one that can't run here fails, and says why."""
    report = yield
    if report.skipped:
        report.outcome, report.longrepr = "failed", f"{item.nodeid} was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector):
    """Nor is a file of tests."""
    report = yield
    if report.skipped:
        report.outcome, report.longrepr = "failed", f"{collector.nodeid} was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def images() -> Path:
    """The store of images that copies of the project share: each is built once."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    return IMAGES


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, images) -> Checkout:
    """A private copy of the project, one for each module."""
    return Checkout(tmp_path_factory.mktemp("checkout"), images=images)
