"""What the Snakefile and the scripts of its rules call: the plan of a run, its stages, its deployment."""
