# The image of each sandbox, as its driver runs it.
#
# Needs: plan.json
# Makes: sources/<sandbox>.json   what the image is: source and digest
#        images/<sandbox>.json    provenance of the SIF, or of the image in the Docker engine
# What a digest identifies is kept in results/images/ and outlives the run.


rule reference_image:
    input:
        plan=f"{R}/plan.json",
    output:
        reference=f"{R}/reference.json",
    log:
        f"{R}/logs/reference_image.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "reference image: build from sandbox/"
    script:
        "../scripts/reference_image.py"


rule source_image:
    input:
        plan=f"{R}/plan.json",
        reference=lambda w: (
            rules.reference_image.output.reference
            if flow.uses_reference(w.sandbox)
            else []
        ),
    output:
        source=f"{R}/sources/{{sandbox}}.json",
    log:
        f"{R}/logs/{{sandbox}}.source.log",
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "{wildcards.sandbox}: digest of the source image"
    script:
        "../scripts/source_image.py"


rule convert:
    input:
        plan=f"{R}/plan.json",
        source=rules.source_image.output.source,
    output:
        image=f"{R}/images/{{sandbox}}.json",
    log:
        f"{R}/logs/{{sandbox}}.convert.log",
    wildcard_constraints:
        sandbox=flow.names("singularity"),
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "{wildcards.sandbox}: convert to a SIF"
    script:
        "../scripts/convert.py"


rule load:
    input:
        plan=f"{R}/plan.json",
        source=rules.source_image.output.source,
    output:
        image=f"{R}/images/{{sandbox}}.json",
    log:
        f"{R}/logs/{{sandbox}}.load.log",
    wildcard_constraints:
        sandbox=flow.names("docker"),
    conda:
        "../../envs/sifproof.yaml"
    params:
        run=flow.run.id,
    message:
        "{wildcards.sandbox}: load into the Docker engine"
    script:
        "../scripts/load.py"
