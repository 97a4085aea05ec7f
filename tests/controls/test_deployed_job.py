"""The jobs that clusters deploy, for the reference image: what their own line lets in is seen, and is theirs.

The image passes under sifproof's own job (``test_isolation_host_defects.py``, ``test_resilience_defects.py``).
"""

import json
import os
import pwd
import shlex
from pathlib import Path

import pytest
from catalogue import control
from placed import SLOTS, red, verdicts

from sifproof import documents
from sifproof.image.provenance import Provenance
from sifproof.image.records import LoadedImage

EXPOSED = [
    "isolation.host.environment",
    "isolation.host.var-tmp",
    "isolation.host.strangers",
    "isolation.slot.server",
]
"""What Apptainer lets in unasked, where commands are in bubblewrap, and whom a server does that has no token."""

control(
    "plain-line",
    "job",
    *EXPOSED,
    sentence="The job is the one that most clusters deploy: `apptainer run --bind …`, without `exec` and `env -i`.",
)
control(
    "production-docker-job",
    "job",
    "isolation.host.strangers",
    "isolation.slot.server",
    sentence="The job is production's own, as JSON with the docker driver: another port label, a tag, no token.",
)
control(
    "production-job",
    "job",
    *EXPOSED,
    sentence="The job is production's own, in HCL: another port label, a port in its command, restarts, no `exec`.",
)

HCL = """
variable "sif" {{ type = string }}
variable "slots" {{
  type    = number
  default = {slots}
}}

job "agents" {{
  datacenters = ["nowhere"]
  meta {{ team = "agents" }}
  group "sandbox" {{
    count = 12
    network {{
      port "api" {{ static = {port} }}
    }}
    restart {{
      attempts = 3
      delay    = "15s"
      mode     = "fail"
    }}
    task "sandbox-server" {{
      driver = "raw_exec"
      config {{
        command = "/bin/sh"
        args    = ["-c", <<-EOT
          mkdir -p "$NOMAD_ALLOC_DIR/data"
          apptainer run {flags} --bind "$NOMAD_ALLOC_DIR/data:/data" --pwd /app ${{var.sif}} \
            --port {port} --slots ${{var.slots}} --data-dir /data
        EOT
        ]
      }}
      env {{ TEAM = "agents" }}
      resources {{
        cpu    = 9000000
        memory = 128
      }}
    }}
  }}
}}
"""


def docker_job(image: str) -> dict:
    """As `nomad job inspect` prints what a cluster with Docker deploys."""
    words = ["--host", "0.0.0.0", "--port", "8000", "--slots", str(SLOTS), "--data-dir", "/alloc/data"]
    task = {
        "Name": "sandbox-server",
        "Driver": "docker",
        "Config": {"image": image, "ports": ["api"], "args": words, "cap_drop": ["net_raw"]},
        "Env": {"TEAM": "agents"},
        "Resources": {"CPU": 100, "MemoryMB": 128},
    }
    network = {"DynamicPorts": [{"Label": "api", "To": 8000}]}
    group = {"Name": "sandbox", "Count": 12, "Networks": [network], "Tasks": [task]}
    meta = {"team": "agents"}
    return {"Job": {"ID": "agents", "Name": "agents", "Type": "service", "Meta": meta, "TaskGroups": [group]}}


@pytest.fixture(scope="module")
def userns(house):
    """The flag that this machine's Apptainer needs, as in a job of sifproof's own."""
    with house.sandbox("own-line") as server:
        words = shlex.split(server.placed.job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]["args"][-1])
        return "--userns" if "--userns" in words else ""


@pytest.fixture(scope="module")
def exposed(house):
    """And the home and the task's directory, where they do not lie below the `/tmp` that bubblewrap covers."""
    places = {
        "isolation.host.home": Path(pwd.getpwuid(os.geteuid()).pw_dir),
        "isolation.host.workdir": Path(house.cluster.directory),
    }
    return {*EXPOSED, *(check for check, place in places.items() if not place.resolve().is_relative_to("/tmp"))}


def test_the_plain_line_lets_the_node_in(house, userns, exposed):
    with house.sandbox("plain-line", containment="plain", userns=bool(userns)) as server:
        found = verdicts(server, ["health", "isolation", "resilience"])
    assert red(found) == exposed


def test_the_job_of_production_is_tested_as_it_is(house, userns, exposed, tmp_path):
    sif = documents.read(house.image_file("singularity", "production-job"), Provenance).sif
    port = house.free_port()
    file = tmp_path / "agents.nomad.hcl"
    file.write_text(HCL.format(port=port, slots=SLOTS, flags=userns))
    given = {"job": str(file), "job_variables": {"sif": str(Path(sif).resolve())}, "datacenter": "dc1"}
    with house.sandbox("production-job", **given) as server:
        assert server.placed.job_file.stat().st_mode & 0o077 == 0
        job = server.placed.job["Job"]
        (group,) = job["TaskGroups"]
        assert (job["Meta"]["team"], group["Count"], group["RestartPolicy"]["Attempts"]) == ("agents", 1, 3)
        assert server.placed.allocation.port == port
        assert server.placed.allocation.task == "sandbox-server"
        found = verdicts(server, ["health", "image", "isolation", "resilience"])
    assert red(found) == exposed


def test_the_docker_job_of_production_is_tested_as_it_is(house, tmp_path):
    image = documents.read(house.image_file("docker", "production-docker-job"), LoadedImage).name
    file = tmp_path / "agents.json"
    file.write_text(json.dumps(docker_job(image)))
    with house.sandbox("production-docker-job", driver="docker", job=str(file), datacenter="dc1") as server:
        job = server.placed.job["Job"]
        (group,) = job["TaskGroups"]
        assert (job["Meta"]["team"], group["Count"], group["Tasks"][0]["Config"]["cap_drop"]) == (
            "agents",
            1,
            ["net_raw"],
        )
        assert server.placed.allocation.task == "sandbox-server"
        found = verdicts(server, ["health", "bash", "image", "isolation", "persistence", "resilience"])
    # What Docker's default profile does not give is advisory, in any job.
    assert {check for check in red(found) if found[check].required} == {
        "isolation.host.strangers",
        "isolation.slot.server",
    }
