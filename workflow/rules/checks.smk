# The suites on each sandbox, one after another (a suite must not see the work of another), then the teardown.
#
# Needs: plan.json, nomad.json, images/<sandbox>.json, jobs/<sandbox>.json, endpoints/<sandbox>.json
# Makes: verdicts/<sandbox>.<suite>.jsonl   one verdict a line; a failed check does not fail the rule


rule suite:
    input:
        plan=f"{R}/plan.json",
        nomad=rules.agent.output.nomad,
        endpoints=rules.submit.output.endpoints,
        job=rules.job.output.job,
        image=f"{R}/images/{{sandbox}}.json",
        # all of them: what a guarding check found holds for every suite after it
        before=lambda w: flow.before(w.sandbox, w.suite),
    output:
        verdicts=f"{R}/verdicts/{{sandbox}}.{{suite}}.jsonl",
    log:
        f"{R}/logs/{{sandbox}}.{{suite}}.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "{wildcards.sandbox}: check {wildcards.suite}"
    script:
        "../scripts/suite.py"


rule teardown:
    input:
        plan=f"{R}/plan.json",
        nomad=rules.agent.output.nomad,
        endpoints=rules.submit.output.endpoints,
        before=f"{R}/verdicts/{{sandbox}}.{flow.suites[-1]}.jsonl",
    output:
        verdicts=f"{R}/verdicts/{{sandbox}}.teardown.jsonl",
    log:
        f"{R}/logs/{{sandbox}}.teardown.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "{wildcards.sandbox}: tear down, look for what is left"
    script:
        "../scripts/teardown.py"
