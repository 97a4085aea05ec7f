"""Find the digest of a sandbox's image by the cheapest way."""

from __future__ import annotations

from sifproof.image.reference import ReferenceImage
from snakemake.script import snakemake

from sifproof import deploy, pipeline, stages
from sifproof.image import digest, source
from sifproof.records import Plan
from sifproof.run import Run

run, sandbox = Run(snakemake.params.run), snakemake.wildcards.sandbox

with stages.stage("source", snakemake, sandbox=sandbox):
    named = stages.read(snakemake.input.plan, Plan).sandbox(sandbox).image
    if snakemake.input.reference:
        named = stages.read(snakemake.input.reference, ReferenceImage).source
    image = source.parse(named)
    source.verify(image)
    found = digest.digest(image, pipeline.sif_store(run))
    stages.write(snakemake.output.source, deploy.SourceImage(source=named, digest=found))
    print(found.digest)
