"""Run one suite on every allocation of a sandbox; record a verdict for each check."""

import sys
from pathlib import Path

from sifproof import config, stages
from sifproof.checks import suite
from sifproof.records import Plan, read_verdicts, write_verdicts

name, sandbox = snakemake.wildcards.suite, snakemake.wildcards.sandbox

with stages.stage(name, snakemake, sandbox=sandbox):
    earlier = [verdict for path in snakemake.input.before for verdict in read_verdicts(Path(path))]
    plan = stages.read(snakemake.input.plan, Plan)
    verdicts = suite.run_suite(
        name,
        plan.sandbox(sandbox),
        config.load(snakemake.config),
        run=plan.run,
        nomad=snakemake.input.nomad,
        endpoints=snakemake.input.endpoints,
        job=snakemake.input.job,
        image=snakemake.input.image,
        earlier=earlier,
        log=sys.stdout,
    )
    written = write_verdicts(Path(snakemake.output.verdicts), verdicts)
    print(stages.outcome(name, plan.sandbox(sandbox), written))
