"""Defects of the server that only the node can tell: a sandbox under Nomad for each."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import defects
import pytest
from placed import red, verdicts

from sifproof.records import Verdict

HERE = Path(__file__).parent
SUITES = ("bash", "files", "health")
DEFECTS = {n: d for n, d in defects.load().items() if d.nomad and d.red[0].partition(".")[0] in SUITES}


def look(house, name: str, image: Path) -> dict[str, Verdict]:
    """The verdicts of the suite in question on a defect."""
    settings = {"binds": [f"{HERE}:/planted:ro"], "command": ["python3", "/planted/defects", name]}
    with house.sandbox(name, image=image, **settings) as server:
        return verdicts(server, {check.partition(".")[0] for check in DEFECTS[name].red})


@pytest.fixture(scope="module")
def seen(house):
    """What was seen on each defect: all at a time, for most of it is waiting."""
    image = house.image_file("singularity", "planted")
    with ThreadPoolExecutor(len(DEFECTS)) as workers:
        return dict(zip(DEFECTS, workers.map(lambda name: look(house, name, image), DEFECTS), strict=True))


@pytest.mark.parametrize("name", DEFECTS)
def test_turns_its_own_checks_red(seen, name):
    assert red(seen[name], DEFECTS[name].not_measured) == set(DEFECTS[name].red), seen[name]


def test_a_slot_that_waits_for_a_fifo_is_freed(seen):
    found = seen["waits-for-a-fifo"]
    assert "Its slot was freed from the node" in found["files.fifo"].message
    assert {verdict.verdict for check, verdict in found.items() if check != "files.fifo"} == {"pass"}
