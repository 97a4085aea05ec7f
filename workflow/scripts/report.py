"""Make every report of the run from what it recorded."""

from sifproof.checks.engine import registry
from sifproof.report import write
from sifproof.run import Run
from sifproof.workflow.stage import stage

run = Run(snakemake.params.run)

with stage("report", snakemake, fatal=True):
    write.write_reports(run.folder, run.results, describe=registry.load().get)
    print(run.results / "report.html")
