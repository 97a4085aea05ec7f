"""A suite is over when its checks are: what fails to be cleared away afterwards takes no verdict with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sifproof import config
from sifproof.checks import presence, suite
from sifproof.checks.server import Placement, Server
from sifproof.records import PlannedSandbox

ALLOCATION = {
    "id": "a1",
    "name": "a[0]",
    "job_id": "sifproof-r-box",
    "node_id": "n1",
    "node_name": "node",
    "task": "server",
    "address": "127.0.0.1",
    "port": 9,
    "ports": {"http": 9},
    "client_status": "running",
    "desired_status": "run",
    "failed": False,
    "created_ns": 1,
}


@pytest.mark.parametrize("failure", [OSError("the disk is gone"), RuntimeError("odd")])
def test_the_verdicts_stay_where_clearing_away_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    made = suite.server_of
    ended = []

    def never_ends(placement: Placement) -> Server:
        def end() -> None:
            raise failure

        server = made(placement)
        server.keep.callback(ended.append, "the rest")
        server.keep.callback(end)
        return server

    monkeypatch.setattr(suite, "server_of", never_ends)
    monkeypatch.setattr(presence, "_NOMAD_BACK_S", 0.0)  # nobody listens at its address
    files = {
        "nomad": {"address": "http://127.0.0.1:9", "version": "", "local": False},
        "endpoints": {"job_id": "sifproof-r-box", "allocations": [ALLOCATION], "seconds": {}, "healthy_s": {}},
        "job": {"Job": {"TaskGroups": [{"Tasks": [{"Name": "server"}]}]}},
        "image": {},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    planned = PlannedSandbox(
        name="box",
        driver="singularity",
        image="reference",
        slots=1,
        count=1,
        suites=["health"],
        job_id="sifproof-r-box",
        checks=["health.status", "health.slots"],
    )
    log = io.StringIO()
    verdicts = suite.run_suite(
        "health",
        planned,
        config.load({"sandboxes": {"box": {"driver": "singularity"}}}),
        run="r",
        **{name: tmp_path / name for name in files},
        earlier=[],
        log=log,
    )
    assert [(v.check, v.verdict) for v in verdicts] == [
        ("health.status", "not-measured"),
        ("health.slots", "not-measured"),
    ]
    assert ended == ["the rest"]
    assert f"could not all be ended: {failure}" in log.getvalue()
    assert "ids begin with sifproof-r-box" in log.getvalue()
