"""Stop and purge the job of a sandbox, whatever the suites found; record what is left of it."""

import sys
from pathlib import Path

from sifproof import config, documents
from sifproof.checks.engine import suite
from sifproof.records import Plan, write_verdicts
from sifproof.run import Run
from sifproof.workflow.stage import outcome, stage

sandbox = snakemake.wildcards.sandbox

with stage("teardown", snakemake, sandbox=sandbox):
    plan = documents.read(snakemake.input.plan, Plan)
    verdicts = suite.run_teardown(
        plan.sandbox(sandbox),
        config.load(snakemake.config),
        run=plan.run,
        nomad=snakemake.input.nomad,
        endpoints=snakemake.input.endpoints,
        collect=Run(snakemake.params.run).folder / "tasks" / sandbox,
        log=sys.stdout,
    )
    written = write_verdicts(Path(snakemake.output.verdicts), verdicts)
    print(outcome("teardown", plan.sandbox(sandbox), written))
