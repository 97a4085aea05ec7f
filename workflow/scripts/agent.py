"""Connect to the cluster, or start a local agent that ends with the run."""

import os

from sifproof import stages
from sifproof.cluster import Cluster
from sifproof.nomad import local
from sifproof.records import Plan
from sifproof.run import PID_VARIABLE, Run

run = Run(snakemake.params.run)

with stages.stage("agent", snakemake):
    plan = stages.read(snakemake.input.plan, Plan)
    address, directory = plan.nomad_address, ""
    if plan.nomad_local:
        agent = local.start(run.id, local.DIRECTORY, int(os.environ[PID_VARIABLE]), log=run.folder / "nomad-agent.log")
        address, directory = agent.address, str(agent.directory)
    cluster = Cluster(address=address, version=plan.nomad_version, local=plan.nomad_local, directory=directory)
    stages.write(snakemake.output.nomad, cluster)
    print(f"{'a local agent' if cluster.local else 'the cluster'}, Nomad {cluster.version}, at {address}")
