"""Give the image of a sandbox to the Docker engine, or find it there."""

from __future__ import annotations

from snakemake.script import snakemake

from sifproof import deploy, stages
from sifproof.image import engine, source

sandbox = snakemake.wildcards.sandbox

with stages.stage("image", snakemake, sandbox=sandbox):
    image = stages.read(snakemake.input.source, deploy.SourceImage)
    name = engine.load_into_engine(source.parse(image.source), sandbox)
    stages.write(snakemake.output.image, deploy.LoadedImage(source=image.source, digest=image.digest.digest, name=name))
    print(name)
