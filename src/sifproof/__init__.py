"""sifproof: the acceptance gate for agent sandboxes on HPC clusters.

Kept free of imports: set-up imports :mod:`sifproof.tools` before any dependency is installed.
"""

__version__ = "0.1.0"
