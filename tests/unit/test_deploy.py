"""What of a config is in the rendered job."""

import json

import pytest

from sifproof import config, deploy
from sifproof.cluster import Cluster
from sifproof.records import PlannedSandbox
from sifproof.run import Run


@pytest.mark.parametrize(("stopped_within_s", "killed_after_s"), [(3, 5), (10, 5), (40, 20)])
def test_a_server_has_half_of_the_time_to_stop_until_it_is_killed(tmp_path, stopped_within_s, killed_after_s):
    image = tmp_path / "box.json"
    made = {"source": "x", "digest": "x", "architecture": "amd64", "sif": "/x.sif", "sha256": "0" * 64}
    image.write_text(json.dumps({**made, "size_bytes": 1, "created": "2026-01-01T00:00:00Z"}))
    sandbox = {"driver": "singularity", "port": 20000}
    deploy.render_job(
        Run("r", tmp_path),
        PlannedSandbox(
            name="box", driver="singularity", image="x", slots=1, count=1, suites=[], job_id="sifproof-r-box"
        ),
        config.load({"sandboxes": {"box": sandbox}, "nomad": {"stopped_within_s": stopped_within_s}}),
        Cluster(address="http://127.0.0.1:1", version="", local=True),
        image=str(image),
        output=tmp_path / "job.json",
    )
    task = json.loads((tmp_path / "job.json").read_text())["Job"]["TaskGroups"][0]["Tasks"][0]
    assert task["KillTimeout"] == killed_after_s * 10**9
    assert f"timeout --foreground -k {killed_after_s} " in task["Config"]["args"][-1]
