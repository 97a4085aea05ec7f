"""Render the Nomad job of a sandbox to a file that a person can read and submit by hand."""

from pathlib import Path

from sifproof import config, deploy, stages
from sifproof.cluster import Cluster
from sifproof.doctor.record import Doctor
from sifproof.records import Plan
from sifproof.run import Run

sandbox = snakemake.wildcards.sandbox

with stages.stage("job", snakemake, sandbox=sandbox):
    deploy.render_job(
        Run(snakemake.params.run),
        stages.read(snakemake.input.plan, Plan).sandbox(sandbox),
        config.load(snakemake.config),
        stages.read(snakemake.input.nomad, Cluster),
        image=snakemake.input.image,
        output=Path(snakemake.output.job),
        doctor=stages.read(snakemake.input.doctor, Doctor),
    )
    print(f"submit it by hand: nomad job run -json {snakemake.output.job}")
