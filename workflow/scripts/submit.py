"""Submit the job of a sandbox and wait until Nomad runs its allocations, or says why not."""

from sifproof import config, deploy, stages
from sifproof.cluster import Cluster
from sifproof.records import Plan

sandbox = snakemake.wildcards.sandbox

with stages.stage("submit", snakemake, sandbox=sandbox):
    settings = config.load(snakemake.config)
    planned = stages.read(snakemake.input.plan, Plan).sandbox(sandbox)
    cluster = stages.read(snakemake.input.nomad, Cluster)
    found = deploy.submit(planned, settings, cluster, snakemake.input.job)
    stages.write(snakemake.output.endpoints, found)
    print(", ".join(f"{a.id[:8]} on {a.node_name} at {a.url}" for a in found.allocations))
