"""Look at what the config asks for, before anything is built or submitted; write down what the run sets out to do."""

from sifproof import config, preflight, stages
from sifproof.report import write
from sifproof.run import Run

run = Run(snakemake.params.run)

with stages.stage("preflight", snakemake, fatal=True):
    plan = preflight.make_plan(config.load(snakemake.config), run)
    stages.write(snakemake.output.plan, plan)
    write.retire_reports(run.results)
    for sandbox in plan.sandboxes:
        if sandbox.left_out:
            print(f"{sandbox.name}: left out. {sandbox.left_out}")
    print(", ".join(f"{name} {version}" for name, version in plan.tools.items()))
