"""Fixtures for the controls that need a sandbox under Nomad."""

import os
import pwd
from collections import Counter

import pytest
from catalogue import CONTROLS
from placed import TRIED, House

NOT_PASSED: Counter[str] = Counter()
"""How many tests of each file have not passed by now."""


def pytest_addoption(parser):
    parser.addoption(
        "--every-suite",
        action="store_true",
        help="put every suite to each defect of the server, not only those that it is to turn red (10 minutes)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    NOT_PASSED.update(item.nodeid.partition("::")[0] for item in items)


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        NOT_PASSED[report.nodeid.partition("::")[0]] -= 1


@pytest.fixture(scope="module", autouse=True)
def every_control_is_tried(request):
    """What the matrix says would have been noticed without the gate was seen, where all of a module's tests passed."""
    yield
    whole = not NOT_PASSED[request.node.nodeid] and not any("::" in given for given in request.config.args)
    served = {c.name for c in CONTROLS.values() if c.served and c.module == request.module.__name__}
    assert not whole or served <= TRIED, f"try_without_gate was not asked about {sorted(served - TRIED)}"


@pytest.fixture(scope="session")
def house(tmp_path_factory, images):
    """A local agent for the whole session, and the images.

    The agent's HOME is its user's home, whatever the tests have: what shows `/tmp` would show a home in there as well.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", pwd.getpwuid(os.geteuid()).pw_dir)
        made = House(tmp_path_factory.mktemp("house"), images)
    yield made
    made.close()
