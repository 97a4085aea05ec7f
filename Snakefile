"""From a Docker image to a verdict: convert, submit, check, tear down, report, decide. See docs/explanation/flow.md."""

import os
import sys

from snakemake.utils import min_version

min_version("9.27")

sys.path.insert(0, os.path.join(workflow.basedir, "src"))
from sifproof.workflow.flow import begin, claim, end, readable

files = list(workflow.config_settings.configfiles)
if "sandboxes" not in config:
    # The first, for Snakemake lays those of the command line over it.
    default = os.path.join(workflow.basedir, "config", "config.yaml")
    files.insert(0, readable(default))

    configfile: files[0]


flow = begin(config, files, workflow.config_settings.config)
R = str(flow.run.folder)


# Made once, by the outermost process: every child parse must find the same run.
envvars:
    "SIFPROOF_RUN",
    "SIFPROOF_RUN_PID",


wildcard_constraints:
    sandbox=flow.names(),
    suite="|".join(flow.suites),


localrules:
    all,


include: "workflow/rules/preflight.smk"
include: "workflow/rules/image.smk"
include: "workflow/rules/job.smk"
include: "workflow/rules/checks.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        f"{R}/accepted",


onstart:
    claim(flow)


onsuccess:
    end(flow)


onerror:
    end(flow)
