"""Python imports this before anything else in every process of a run, by ``PYTHONPATH``: Ctrl-C shows no traceback.

A terminal sends Ctrl-C to all processes of a run. Snakemake and the scripts of its rules take most of a second to
import, and until :func:`sifproof.workflow.stage.stage` has begun nobody is there to catch it. How they end is not
changed.

A node's own Python, which may be 3.6, inherits the path too.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

# There is one module of this name in a process, and a site may have its own: EasyBuild's Python finds packages by it.
_elsewhere = [entry for entry in sys.path if Path(entry) != Path(__file__).parent]
_sites = PathFinder.find_spec("sitecustomize", _elsewhere)
if _sites and _sites.loader:
    _sites.loader.exec_module(module_from_spec(_sites))

_shown = sys.excepthook


def quiet(kind: Any, error: Any, traceback: Any) -> None:
    """In place of ``sys.excepthook``."""
    if not issubclass(kind, KeyboardInterrupt):
        _shown(kind, error, traceback)


sys.excepthook = quiet
