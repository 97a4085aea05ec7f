"""The checks: a registry (:mod:`~sifproof.checks.registry`), a runner, and one module per suite.

To add one: open the module of its suite, write a function under :func:`~sifproof.checks.registry.check`, done. It is
in the run, in the reports and in ``docs/reference/checks.md``.
"""
