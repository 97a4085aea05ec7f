"""Find the digest of a sandbox's image by the cheapest way."""

from sifproof import documents
from sifproof.image import digest, source
from sifproof.image.provenance import SifStore
from sifproof.image.records import SourceImage
from sifproof.records import Plan
from sifproof.run import Run
from sifproof.workflow import flow
from sifproof.workflow.stage import stage

run, sandbox = Run(snakemake.params.run), snakemake.wildcards.sandbox

with stage("source", snakemake, sandbox=sandbox):
    named = documents.read(snakemake.input.plan, Plan).sandbox(sandbox).image
    if snakemake.input.reference:
        named = documents.read_document(snakemake.input.reference)["source"]
    image = source.parse(named)
    found = digest.digest(image, SifStore(flow.sif_store(run)).digests)
    source.require_platform(image, found.architecture, found.os)
    documents.write(snakemake.output.source, SourceImage(source=named, digest=found))
    print(found.digest)
