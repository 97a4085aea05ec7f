"""Stop and purge the job of a sandbox, whatever the suites found; record what is left of it."""

import sys
from pathlib import Path

from sifproof import config, stages
from sifproof.checks import suite
from sifproof.records import Plan, write_verdicts
from sifproof.run import Run

sandbox = snakemake.wildcards.sandbox

with stages.stage("teardown", snakemake, sandbox=sandbox):
    plan = stages.read(snakemake.input.plan, Plan)
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
    print(stages.outcome("teardown", plan.sandbox(sandbox), written))
