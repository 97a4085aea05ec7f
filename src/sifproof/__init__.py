"""sifproof: the acceptance gate for agent sandboxes on HPC clusters.

Kept free of imports: set-up imports :mod:`sifproof.host_tools` before any dependency is installed.
"""

__version__ = "0.1.0"
