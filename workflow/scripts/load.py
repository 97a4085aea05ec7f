"""Give the image of a sandbox to the Docker engine, or find it there."""

import time
from pathlib import Path

from sifproof import config, documents
from sifproof.image import engine, source
from sifproof.image.records import LoadedImage, SourceImage
from sifproof.workflow.stage import stage

sandbox = snakemake.wildcards.sandbox

with stage("image", snakemake, sandbox=sandbox):
    settings = config.load(snakemake.config).conversion
    image = documents.read(snakemake.input.source, SourceImage)
    begin = time.monotonic()
    loaded = engine.load_into_engine(
        source.parse(image.source), sandbox, log=Path(snakemake.log[0]), settings=settings, identity=image.digest
    )
    seconds = {"load": round(time.monotonic() - begin, 3)}
    documents.write(snakemake.output.image, LoadedImage.of(image.source, image.digest, loaded, seconds))
    print(loaded.name)
