"""Run one suite on every allocation of a sandbox; record a verdict for each check."""

import sys
from pathlib import Path

from sifproof import config, documents
from sifproof.checks.engine import suite
from sifproof.records import Plan, read_verdicts, write_verdicts
from sifproof.workflow.stage import outcome, stage

name, sandbox = snakemake.wildcards.suite, snakemake.wildcards.sandbox

with stage(name, snakemake, sandbox=sandbox):
    earlier = [verdict for path in snakemake.input.before for verdict in read_verdicts(Path(path))]
    plan = documents.read(snakemake.input.plan, Plan)
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
    print(outcome(name, plan.sandbox(sandbox), written))
