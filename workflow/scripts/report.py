"""Make every report of the run from what it recorded."""

from sifproof import stages
from sifproof.checks import registry
from sifproof.report import write
from sifproof.run import Run

run = Run(snakemake.params.run)

with stages.stage("report", snakemake, fatal=True):
    write.write_reports(run.folder, run.results, describe=registry.load().get)
    print(run.results / "report.html")
