"""A twin is the sandbox's job but for what is to be tried on it."""

from __future__ import annotations

from typing import Any

from sifproof.nomad.job import READ_ONLY, create_sandbox_job
from sifproof.nomad.job_copy import create_twin, give_small_disk


def test_a_small_disk_leaves_the_tmpfs_of_a_read_only_sandbox() -> None:
    job = create_sandbox_job("a", "image", driver="docker", read_only=True)
    twin = create_twin(job, node_id="node")
    give_small_disk(twin)
    config: dict[str, Any] = twin["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]
    assert config["readonly_rootfs"] is True
    assert [mount["target"] for mount in config["mount"]] == ["/tmp", "/var/tmp", "/run", "/alloc/data"]
    assert len(READ_ONLY["mount"]) == 3
