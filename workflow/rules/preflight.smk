# Before anything is built or submitted: is what the config asks for there, and who answers for Nomad?
#
# Needs: the config.
# Makes: plan.json      what this run sets out to do; sandboxes whose driver can't be had are left out here
#        machine.json   what the doctor sees on this machine
#        nomad.json     the cluster; a local agent is started where no address is given
#        doctor.json    the same with what it sees on the nodes of a cluster; the reports show it beside failures


checkpoint preflight:
    output:
        plan=f"{R}/plan.json",
        machine=f"{R}/machine.json",
    log:
        f"{R}/logs/preflight.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "preflight: machine, settings, images, cluster"
    script:
        "../scripts/preflight.py"


rule agent:
    input:
        plan=f"{R}/plan.json",
        machine=f"{R}/machine.json",
    output:
        nomad=f"{R}/nomad.json",
        doctor=f"{R}/doctor.json",
    log:
        f"{R}/logs/agent.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "nomad: connect, or start a local agent"
    script:
        "../scripts/agent.py"


# The agent is this run's child: it must be on this machine.
localrules:
    preflight,
    agent,
