"""Submit the job of a sandbox and wait until Nomad runs its allocations, or says why not."""

from sifproof import config, documents
from sifproof.nomad.cluster import Cluster
from sifproof.records import Plan
from sifproof.workflow import deploy
from sifproof.workflow.stage import stage

sandbox = snakemake.wildcards.sandbox

with stage("submit", snakemake, sandbox=sandbox):
    settings = config.load(snakemake.config)
    planned = documents.read(snakemake.input.plan, Plan).sandbox(sandbox)
    cluster = documents.read(snakemake.input.nomad, Cluster)
    found = deploy.submit(planned, settings, cluster, snakemake.input.job)
    documents.write(snakemake.output.endpoints, found)
    print(", ".join(f"{a.id[:8]} on {a.node_name} at {a.url}" for a in found.allocations))
