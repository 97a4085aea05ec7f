"""The checks: one module or folder for each suite, and what runs them (:mod:`~sifproof.checks.engine`).

To add one: open the module of its suite and write a function under :func:`~sifproof.checks.engine.registry.check`. It
is then in the run, in the reports and in ``docs/reference/checks.md``.
"""
