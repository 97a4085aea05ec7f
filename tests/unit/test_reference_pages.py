"""Generated pages and files that repeat another agree with their source."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from sifproof import reference_pages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_page_agrees_with_the_code(name: str) -> None:
    assert (reference_pages.FOLDER / name).read_text() == reference_pages.PAGES[name](), (
        "run: python -m sifproof.reference_pages"
    )


def test_conda_environment_pins_what_pyproject_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = dict(re.match(r"([\w.-]+)(.*)", d).groups() for d in project["dependencies"])
    conda = dict(d.split(" ", 1) for d in yaml.safe_load((ROOT / "envs/sifproof.yaml").read_text())["dependencies"])
    conda["snakemake"] = conda.pop("snakemake-minimal")
    assert conda.pop("python") == project["requires-python"]
    # conda writes an exact version with one sign of equality, pip with two
    assert {name: pin.lstrip("=") for name, pin in conda.items()} == {
        name: pin.lstrip("=") for name, pin in pip.items()
    }


def test_every_rule_names_an_environment_that_exists() -> None:
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        for named in re.findall(r'conda:\s+"([^"]+)"', rules.read_text()):
            assert (rules.parent / named).resolve().is_file(), f"{rules.name}: {named}"
