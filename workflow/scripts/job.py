"""Render the Nomad job of a sandbox to a file that a person can read and submit by hand."""

from __future__ import annotations

from pathlib import Path

from snakemake.script import snakemake

from sifproof import config, deploy, stages
from sifproof.cluster import Cluster
from sifproof.nomad import job
from sifproof.records import Plan, write_atomically

sandbox = snakemake.wildcards.sandbox

with stages.stage("job", snakemake, sandbox=sandbox):
    settings = config.load(snakemake.config)
    planned = stages.read(snakemake.input.plan, Plan).sandbox(sandbox)
    cluster = stages.read(snakemake.input.nomad, Cluster)
    rendered = deploy.sandbox_job(snakemake.params.run, planned, settings, cluster, snakemake.input.image)
    write_atomically(Path(snakemake.output.job), job.render(rendered))
    print(f"submit it by hand: nomad job run -json {snakemake.output.job}")
