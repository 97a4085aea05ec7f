"""Where the checkout is that this package lies in. Standard library only: set-up uses it too.

The package takes three things from it: the default config, the reference server's source and the local agent's
configuration. All else that lies there is written by set-up or by runs.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
