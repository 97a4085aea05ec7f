# The reports from the recorded verdicts, and the one rule that may fail the run.
#
# Needs: plan.json, verdicts/*.jsonl, faults/*.json and what the stages recorded
# Makes: results/checks.tsv, summary.tsv, verdict.json, junit.xml, report.html
#        accepted   only where the run is


def measured(wildcards):
    """The teardown of every sandbox that preflight did not leave out; a dry run shows all."""
    names = (
        flow.planned() if workflow.dryrun else flow.measured(checkpoints.preflight.get().output.plan)
    )
    return [f"{R}/verdicts/{name}.teardown.jsonl" for name in names]


rule report:
    input:
        plan=f"{R}/plan.json",
        verdicts=measured,
    output:
        **flow.reports,
    params:
        run=flow.run.id,
    log:
        f"{R}/logs/report.log",
    conda:
        "../../envs/sifproof.yaml"
    message:
        "reports"
    script:
        "../scripts/report.py"


rule gate:
    input:
        verdict=rules.report.output.verdict,
    output:
        accepted=f"{R}/accepted",
    params:
        run=flow.run.id,
    log:
        f"{R}/logs/gate.log",
    conda:
        "../../envs/sifproof.yaml"
    message:
        "gate"
    script:
        "../scripts/gate.py"
