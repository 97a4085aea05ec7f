"""Is the gate steady? Runs it again and again on the reference image, which is healthy: nothing may turn red.

    python benchmarks/steady.py [--runs 10] [further arguments of `sifproof run`]

Prints a line per run: the verdict, what was not a pass, and how long the checks took beside what they waited on
purpose. Ends with exit code 1 where a run was not accepted or a check was anything but a pass that the plan requires.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from sifproof import run
from sifproof.records import FINE, Verdict, read_verdicts


def look(this: run.Run) -> tuple[list[Verdict], list[str]]:
    """The verdicts of a run, and those that a healthy image must not have."""
    verdicts = [v for path in sorted(this.folder.glob("verdicts/*.jsonl")) for v in read_verdicts(path)]
    return verdicts, [
        f"{v.sandbox} {v.check} {v.verdict}: {v.message}" for v in verdicts if v.verdict not in FINE and v.required
    ]


def main() -> int:
    """Run, print, and say by the exit code whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    options, rest = parser.parse_known_args()
    red = 0
    for number in range(1, options.runs + 1):
        this = run.Run(run.new_id())
        begin = time.monotonic()
        code = subprocess.run(
            [Path(sys.executable).parent / "sifproof", "run", *rest],
            env={**os.environ, run.RUN_VARIABLE: this.id},
            stdout=subprocess.DEVNULL,
            check=False,
        ).returncode
        verdicts, wrong = look(this)
        red += bool(code or wrong)
        spent = sum(v.duration_s for v in verdicts)
        waited = sum(v.waited_s for v in verdicts)
        advisory = sum(v.verdict not in FINE and not v.required for v in verdicts)
        print(
            f"{number:3} {this.id} exit {code}, {len(verdicts)} verdicts, {len(wrong)} red, {advisory} advisory, "
            f"{time.monotonic() - begin:.1f} s, of which checks {spent - waited:.1f} s and waiting {waited:.1f} s",
            *wrong,
            sep="\n      ",
            flush=True,
        )
    print(f"{red} of {options.runs} runs were red")
    return min(red, 1)


if __name__ == "__main__":
    sys.exit(main())
