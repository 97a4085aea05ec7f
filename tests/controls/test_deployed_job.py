"""The jobs that clusters deploy, for the reference image: what their own line lets in is seen, and is theirs.

The image passes under sifproof's own job (``test_isolation_host_defects.py``, ``test_resilience_defects.py``).
"""

import os
import pwd
import shlex
from pathlib import Path

import pytest
from catalogue import control
from placed import SLOTS, red, verdicts

from sifproof import stages
from sifproof.image.provenance import Provenance

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
    assert not_measured(found) == set()


def test_the_job_of_production_is_tested_as_it_is(house, userns, exposed, tmp_path):
    sif = stages.read(house.image_file("singularity", "production-job"), Provenance).sif
    port = house.free_port()
    file = tmp_path / "agents.nomad.hcl"
    file.write_text(HCL.format(port=port, slots=SLOTS, flags=userns))
    given = {"job": str(file), "job_variables": {"sif": str(Path(sif).resolve())}, "datacenter": "dc1"}
    with house.sandbox("production-job", **given) as server:
        job = server.placed.job["Job"]
        (group,) = job["TaskGroups"]
        assert (job["Meta"]["team"], group["Count"], group["RestartPolicy"]["Attempts"]) == ("agents", 1, 3)
        assert server.placed.allocation.port == port
        assert server.placed.allocation.task == "sandbox-server"
        found = verdicts(server, ["health", "image", "isolation", "resilience"])
    assert red(found) == exposed
    assert not_measured(found) == set()


def not_measured(found):
    return {check for check, verdict in found.items() if verdict.verdict == "not-measured" and verdict.required}
