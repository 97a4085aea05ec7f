"""Let the run pass or not: the only rule whose failure is the run's verdict."""

import sys
from pathlib import Path

from sifproof.report import gate
from sifproof.report.terminal import print_closing
from sifproof.report.verdict import read_verdict
from sifproof.report.write import is_published
from sifproof.run import Run
from sifproof.workflow.stage import log_to

run = Run(snakemake.params.run)

log_to(snakemake.log[0])
kept = Path(snakemake.input.verdict).parent
decision = read_verdict(kept, run.id)
# Another run may have put its own reports there meanwhile.
print_closing(
    decision, (run.results if is_published(kept, run.results) else kept) / "report.html", command=decision.command
)
gate.write(run, decision.verdict, decision.exit_code)
if decision.exit_code:
    sys.exit(decision.exit_code)
Path(snakemake.output.accepted).touch()
