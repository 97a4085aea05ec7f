"""Connect to the cluster and look at its nodes, or start a local agent that ends with the run."""

import os

from sifproof import config, documents
from sifproof.doctor import look
from sifproof.doctor.record import Doctor
from sifproof.nomad.agent import local
from sifproof.nomad.cluster import Cluster
from sifproof.records import Plan
from sifproof.run import PID_VARIABLE, Run
from sifproof.workflow.stage import stage

run = Run(snakemake.params.run)

with stage("agent", snakemake):
    plan = documents.read(snakemake.input.plan, Plan)
    doctor = documents.read(snakemake.input.machine, Doctor)
    documents.write(snakemake.output.doctor, doctor)
    address, directory = plan.nomad_address, ""
    if plan.nomad_local:
        agent = local.start(run.id, local.DIRECTORY, int(os.environ[PID_VARIABLE]), log=run.folder / "nomad-agent.log")
        address, directory = agent.address, str(agent.directory)
    cluster = Cluster(address=address, version=plan.nomad_version, local=plan.nomad_local, directory=directory)
    documents.write(snakemake.output.nomad, cluster)
    if not plan.nomad_local:
        doctor.looks += look.nodes_of(cluster, config.load(snakemake.config), run)
        documents.write(snakemake.output.doctor, doctor)
    print(f"{'a local agent' if cluster.local else 'the cluster'}, Nomad {cluster.version}, at {address}")
