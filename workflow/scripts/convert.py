"""Convert the image of a sandbox to a SIF, or find it converted."""

from pathlib import Path

from sifproof import config, documents
from sifproof.image import convert, source
from sifproof.image.records import SourceImage
from sifproof.run import Run
from sifproof.workflow import flow
from sifproof.workflow.stage import stage

run, sandbox = Run(snakemake.params.run), snakemake.wildcards.sandbox

with stage("image", snakemake, sandbox=sandbox):
    settings = config.load(snakemake.config)
    image = documents.read(snakemake.input.source, SourceImage)
    made = convert.convert(
        source.parse(image.source),
        flow.sif_store(run),
        settings.conversion,
        log=Path(snakemake.log[0]),
        identity=image.digest,
    )
    documents.write(snakemake.output.image, made)
    took = f"{made.seconds.get('total', 0):.1f} s"
    how = ("converted before" if made.reused else took) if made.key else "taken as it is"
    print(f"{made.sif}, {made.size_bytes / 1e6:.1f} MB, {how}")
