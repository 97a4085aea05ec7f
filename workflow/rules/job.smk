# The Nomad job of each sandbox, from its rendering to a running allocation.
#
# Needs: plan.json, nomad.json, doctor.json, images/<sandbox>.json
# Makes: jobs/<sandbox>.json        the job, fit to be read and submitted by hand: nomad job run -json FILE
#        endpoints/<sandbox>.json   the allocations with node, address and port


rule job:
    input:
        plan=f"{R}/plan.json",
        nomad=rules.agent.output.nomad,
        doctor=rules.agent.output.doctor,
        image=f"{R}/images/{{sandbox}}.json",
    output:
        job=f"{R}/jobs/{{sandbox}}.json",
    log:
        f"{R}/logs/{{sandbox}}.job.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "{wildcards.sandbox}: render the job"
    script:
        "../scripts/job.py"


rule submit:
    input:
        plan=f"{R}/plan.json",
        nomad=rules.agent.output.nomad,
        job=rules.job.output.job,
    output:
        endpoints=f"{R}/endpoints/{{sandbox}}.json",
    log:
        f"{R}/logs/{{sandbox}}.submit.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "{wildcards.sandbox}: submit, wait for the allocations"
    script:
        "../scripts/submit.py"
