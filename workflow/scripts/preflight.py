"""Look at this machine and at what the config asks for, before anything is built; write down what the run sets out to
do."""

from sifproof import config, documents
from sifproof.doctor import look
from sifproof.doctor.record import Doctor
from sifproof.errors import SifproofError
from sifproof.report import write
from sifproof.run import Run
from sifproof.workflow.plan import make_plan, needed_tools
from sifproof.workflow.stage import stage

run = Run(snakemake.params.run)

with stage("preflight", snakemake, fatal=True):
    settings = config.load(snakemake.config)
    with look.Here(settings, needed=needed_tools(settings)) as here:
        try:
            plan = make_plan(settings, run)
        except SifproofError:
            print(*Doctor(looks=[here.look()]).lines(), sep="\n")
            raise
        documents.write(snakemake.output.machine, Doctor(looks=[here.look()]))
    documents.write(snakemake.output.plan, plan)
    write.retire_reports(run.results)
    for sandbox in plan.sandboxes:
        if sandbox.left_out:
            print(f"{sandbox.name}: left out. {sandbox.left_out}")
    print(", ".join(f"{name} {version}" for name, version in plan.tools.items()))
