# The reports from the recorded verdicts, and the one rule that may fail the run.
#
# Needs: plan.json, verdicts/*.jsonl, faults/*.json and what the stages recorded
# Makes: report/   checks.tsv, summary.tsv, verdict.json, junit.xml, report.html; results/ gets a copy
#        accepted   only where the run is


rule report:
    input:
        plan=f"{R}/plan.json",
        # every sandbox that preflight did not leave out; a dry run shows all
        verdicts=lambda w: flow.teardowns(
            None if workflow.dryrun else checkpoints.preflight.get().output.plan
        ),
    output:
        **flow.reports,
    log:
        f"{R}/logs/report.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "reports"
    script:
        "../scripts/report.py"


rule gate:
    input:
        verdict=rules.report.output.verdict,
    output:
        accepted=f"{R}/accepted",
    log:
        f"{R}/logs/gate.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "gate"
    script:
        "../scripts/gate.py"
