"""From what a run recorded to its reports and the gate's decision.

One direction: :mod:`~sifproof.report.recorded` reads, :mod:`~sifproof.report.decision` judges, ``tables``, ``junit``,
``page`` and ``verdict`` render to text, :mod:`~sifproof.report.write` puts the set in place.
Kept free of imports, so that a command line pays for pandas only where it writes tables.
"""
