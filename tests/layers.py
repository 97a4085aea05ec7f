"""The layers of the package as CONTRIBUTING shows them: `python tests/layers.py` writes them there.

The contracts of import-linter in ``pyproject.toml`` are their source; what each room is comes from its docstring.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PAGE = ROOT / "CONTRIBUTING.md"
_BEGIN, _END = "<!-- layers: written by tests/layers.py -->\n", "<!-- end of layers -->\n"


def about(module: str) -> str:
    """The first sentence of the docstring of ``module``, on one line."""
    path = SOURCE / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = re.sub(r"\s+", " ", text.partition("\n\n")[0]).replace("``", "`").rstrip(".")
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", first)


def drawn() -> str:
    """The contracts as lists, the highest layer first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return "\n".join(line for contract in contracts for line in _contract(contract))


def _contract(contract: dict) -> Iterator[str]:
    (container,) = contract["containers"]
    folder = container.replace(".", "/")
    yield f"`src/{folder}/`, from the top:\n"
    for layer in contract["layers"]:
        rooms = re.split(r"\s*[|:]\s*", layer.strip())
        for number, room in enumerate(rooms):
            is_folder = (SOURCE / folder / room).is_dir()
            indent = "- " if number == 0 else "  "
            gap = "  " if number < len(rooms) - 1 else ""
            yield f"{indent}`{room}{'/' if is_folder else '.py'}`: {about(f'{container}.{room}')}{gap}"
    yield ""


def page() -> str:
    """CONTRIBUTING with the layers as they are."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{drawn()}\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
