"""Fixtures for the controls that need a sandbox under Nomad."""

import pytest
from placed import House


@pytest.fixture(scope="session")
def house(tmp_path_factory, images):
    """A local agent for the whole session, and the images."""
    made = House(tmp_path_factory.mktemp("house"), images)
    yield made
    made.close()
