"""Whether the node runs the image that was converted: what a job that is not sifproof's own has to show for it."""

import json
from types import SimpleNamespace

import pytest

from sifproof import config
from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.image import on_node
from sifproof.image.provenance import Provenance

SHA256 = "ab" * 32


def server(folder, *, command, given=True, held="mounted"):
    """One whose node says that it has the SIF as it was converted, and has it ``held`` so; its job runs ``command``."""
    sif = folder / "it's ü.sif"
    sif.touch()
    image = folder / "image.json"
    made = Provenance(
        source="oci:x",
        digest="sha256:x",
        architecture="",
        key="k",
        sif=str(sif),
        sha256=SHA256,
        size_bytes=1,
        created="",
    )
    image.write_text(made.model_dump_json())
    sandbox = config.Sandbox(driver="singularity", job="their.json" if given else None)
    task = {"Name": "server", "Config": {"command": "/bin/sh", "args": ["-c", command.format(sif=sif)]}}
    said = f"file {SHA256}  -\nopen {held}\n"
    return SimpleNamespace(
        driver="singularity",
        placed=SimpleNamespace(
            image=image,
            allocation=SimpleNamespace(id="1a2b"),
            sandbox=sandbox.model_copy(update={"verify_image": not given}),
            node=SimpleNamespace(run=lambda script, **_: said),
            job=json.loads(json.dumps({"Job": {"TaskGroups": [{"Tasks": [task]}]}})),
        ),
    )


def test_what_is_mounted_for_another_sandbox_is_no_evidence_of_a_job_that_names_another_file(tmp_path):
    with pytest.raises(NotMeasured, match="may be mounted for another"):
        on_node(server(tmp_path, command="apptainer run /elsewhere/old.sif"))


def test_what_the_job_names_and_the_kernel_has_mounted_runs(tmp_path):
    assert on_node(server(tmp_path, command='apptainer run "{sif}"')).passed


def test_by_a_job_of_sifproofs_own_nothing_else_is_mounted(tmp_path):
    assert on_node(server(tmp_path, command="apptainer run …", given=False)).passed


def test_what_it_has_open_needs_no_name(tmp_path):
    assert on_node(server(tmp_path, command="apptainer run $SIF", held="same")).passed
