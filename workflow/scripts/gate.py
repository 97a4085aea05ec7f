"""Let the run pass or not: the only rule whose failure is the run's verdict."""

import sys
from pathlib import Path

from sifproof import stages
from sifproof.report.terminal import print_closing
from sifproof.report.verdict import read_verdict
from sifproof.run import Run

run = Run(snakemake.params.run)

stages.log_to(snakemake.log[0])
decision = read_verdict(Path(snakemake.input.verdict).parent, run.id)
print_closing(decision, run.results / "report.html")
if decision.exit_code:
    sys.exit(decision.exit_code)
Path(snakemake.output.accepted).touch()
