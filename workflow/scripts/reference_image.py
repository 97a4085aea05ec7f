"""Build the reference image from sandbox/, or find it built."""

from sifproof import config, documents
from sifproof.image import reference
from sifproof.run import Run
from sifproof.workflow.stage import stage

run = Run(snakemake.params.run)

with stage("reference_image", snakemake):
    settings = config.load(snakemake.config)
    built = reference.build_reference_image(run.images / "reference", base=settings.reference.base)
    documents.write(snakemake.output.reference, built)
    print(f"built in {built.seconds['total']:.1f} s" if built.seconds else "built before")
