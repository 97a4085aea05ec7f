"""Fixtures for the controls that need a sandbox under Nomad."""

import pytest
from placed import House


def pytest_addoption(parser):
    parser.addoption(
        "--every-suite",
        action="store_true",
        help="put every suite to each defect of the server, not only those that it is to turn red (10 minutes)",
    )


@pytest.fixture(scope="session")
def house(tmp_path_factory, images):
    """A local agent for the whole session, and the images."""
    made = House(tmp_path_factory.mktemp("house"), images)
    yield made
    made.close()
