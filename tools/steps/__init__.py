"""The parts of ``tools/setup.py``, one file per subject. Standard library only: nothing is installed yet."""
