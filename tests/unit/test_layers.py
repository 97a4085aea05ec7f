"""CONTRIBUTING shows the layers that `make lint` holds the imports to."""

import layers


def test_contributing_shows_the_layers():
    assert layers.PAGE.read_text() == layers.page(), "run: python tests/layers.py"
