"""Render the Nomad job of a sandbox to a file that a person can read and submit by hand."""

from pathlib import Path

from sifproof import config, documents
from sifproof.doctor.record import Doctor
from sifproof.nomad.cluster import Cluster
from sifproof.records import Plan
from sifproof.run import Run
from sifproof.workflow import deploy
from sifproof.workflow.stage import stage

sandbox = snakemake.wildcards.sandbox

with stage("job", snakemake, sandbox=sandbox):
    deploy.render_job(
        Run(snakemake.params.run),
        documents.read(snakemake.input.plan, Plan).sandbox(sandbox),
        config.load(snakemake.config),
        documents.read(snakemake.input.nomad, Cluster),
        image=snakemake.input.image,
        output=Path(snakemake.output.job),
        doctor=documents.read(snakemake.input.doctor, Doctor),
    )
    print(f"submit it by hand: nomad job run -json {snakemake.output.job}")
