"""Whether the unit tests notice small changes of the modules that decide: `make mutants`.

mutmut changes them one thing at a time (``[tool.mutmut]`` in ``pyproject.toml``) and runs their unit tests on each such
mutant. A mutant that no test notices is shown as a diff. Below :data:`LEAST` noticed, in any module, this ends with 1.

A mutant that changes nothing but the words of a message does not count: people read them, and the tests hold the parts
that matter, such as names, numbers and what to do.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = ROOT / "mutants"
LEAST = 0.9

_NOTICED = {1, 3}
"""Exit codes of the tests on a mutant, as mutmut writes them down: a test failed."""
_LATE = {24, 36, 152, 255, -24}
"""They ran out of time: that is no failure, since on a busy machine it may be chance. Such a mutant is tried once more,
and what never ends does not count as noticed."""

_WORD = re.compile(r"[\w./-]*")
_MARK = re.compile(r"__mutmut_(\d+|orig)$")


class Mutant(NamedTuple):
    """One change of one function."""

    name: str
    before: str
    after: str
    noticed: bool | None
    """None where nobody tried it."""

    @property
    def diff(self) -> str:
        """What it changes, without the lines around."""
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


class _Wordless(ast.NodeTransformer):
    """Takes out what people read: constants of more than one word, and the words between the values of an f-string."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and not _WORD.fullmatch(node.value.removeprefix("XX").removesuffix("XX")):
            return ast.Constant("")
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        self.generic_visit(node)
        return ast.JoinedStr([value for value in node.values if isinstance(value, ast.FormattedValue)])


def without_words(function: str) -> str:
    """``function`` as code, with what people read taken out."""
    return ast.dump(_Wordless().visit(ast.parse(function)))


def mutants_of(record: Path) -> Iterator[Mutant]:
    """The mutants of a module that count; ``record`` is what mutmut wrote of it, beside the module with all of them."""
    text = record.with_suffix("").read_text()
    lines, functions = text.split("\n"), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (mark := _MARK.search(node.name)):
            source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            functions[node.name] = source.replace(node.name, node.name[: mark.start()], 1)
    for name, code in json.loads(record.read_text())["exit_code_by_key"].items():
        own = name.rpartition(".")[2]
        before, after = functions[_MARK.sub("__mutmut_orig", own)], functions[own]
        if without_words(before) != without_words(after):
            yield Mutant(name, before, after, None if code is None else code in _NOTICED)


def try_out(names: list[str]) -> None:
    """Run the tests on the mutants of these ``names``, or on all; in a log without the line that mutmut moves."""
    command = [sys.executable, "-m", "mutmut", "run", *names]
    if sys.stdout.isatty():
        subprocess.run(command, cwd=ROOT, check=True)
        return
    print("trying", " ".join(names) or "all of them", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"mutmut ended with {done.returncode}:\n" + "\n".join(done.stdout.splitlines()[-40:]))


def ran_out_of_time() -> list[str]:
    """The names of the mutants whose tests did not end in time."""
    records = [json.loads(record.read_text()) for record in MUTANTS.glob("src/**/*.py.meta")]
    return [name for record in records for name, code in record["exit_code_by_key"].items() if code in _LATE]


def report() -> bool:
    """Print what survives of each module, and how much was noticed; True where it is enough everywhere."""
    found = {
        record.relative_to(MUTANTS / "src").with_suffix("").as_posix(): list(mutants_of(record))
        for record in sorted(MUTANTS.glob("src/**/*.py.meta"))
    }
    for mutants in found.values():
        for mutant in mutants:
            if mutant.noticed is False:
                print(f"{mutant.name}\n{mutant.diff}\n")
    found = {module: mutants for module, mutants in found.items() if mutants}
    found["all of them"] = [mutant for mutants in found.values() for mutant in mutants]
    enough = len(found) > 1
    for module, mutants in found.items():
        tried = [mutant.noticed for mutant in mutants if mutant.noticed is not None]
        share = sum(tried) / len(tried) if tried else 0.0
        enough = enough and len(tried) == len(mutants) and share >= LEAST
        left = f", {len(mutants) - len(tried)} not tried" if len(tried) < len(mutants) else ""
        print(f"{share:7.1%}  {sum(tried):5} of {len(tried):5}  {module}{left}")
    return enough


def main() -> int:
    """Make the mutants anew and try them all, or those that are named; 1 where too few are noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help='try these anew and keep the rest, such as "sifproof.checks.engine.policy*"'
    )
    parser.add_argument("--known", action="store_true", help="try nothing, show what is known")
    asked = parser.parse_args()
    if not asked.known:
        if not asked.names:
            shutil.rmtree(MUTANTS, ignore_errors=True)
        try_out(asked.names)
        if late := ran_out_of_time():
            try_out(late)
    return 0 if report() else 1


if __name__ == "__main__":
    raise SystemExit(main())
