"""Writes the pages of ``docs/reference/`` that are generated: ``python -m sifproof.reference_pages``.

The code is their one source; a test fails where page and code differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sifproof import config
from sifproof.checkout import ROOT
from sifproof.checks.engine import listing, registry
from sifproof.records import write_atomically

FOLDER = ROOT / "docs" / "reference"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(field: Any) -> str:
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{config_word(value)}`"


def config_word(value: object) -> str:
    """``value`` as one writes it in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(config_word, value))}]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}


def _allowed(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return "mappings"
    if "anyOf" in schema:
        branches = (_allowed(branch) for branch in schema["anyOf"] if branch.get("type") != "null")
        return " or ".join(filter(None, branches))
    if words := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{word}`" for word in words)
    if schema.get("type") == "array":
        return f"list of {_allowed(schema['items'])}"
    text = _KINDS.get(schema.get("type", ""), "")
    if "exclusiveMinimum" in schema:
        text += f", more than {schema['exclusiveMinimum']}"
    if "minimum" in schema:
        text += f", {schema['minimum']} " + (f"to {schema['maximum']}" if "maximum" in schema else "or more")
    return text


def _section(model: type[BaseModel], prefix: str, heading: str) -> Iterator[str]:
    yield f"## {heading}\n"
    yield f"{(model.__doc__ or '').strip()}\n"
    yield "| key | allowed | default | meaning |"
    yield "|---|---|---|---|"
    schema = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        cells = (f"`{prefix}{name}`", _allowed(schema[name]), _default(field), field.description or "")
        yield "| " + " | ".join(map(_cell, cells)) + " |"
    yield ""


def config_page() -> str:
    """``docs/reference/config.md``."""
    lines = [
        "# The config\n",
        "Generated from `src/sifproof/config.py` by `python -m sifproof.reference_pages`.\n",
        "`config/config.yaml` is the default; `--configfile FILE` with a `sandboxes:` of its own takes its place, and",
        "`--config key=value` sets a top-level key for one run. An unknown key or a wrong value ends the run before",
        "anything is built, with exit code 2. Secrets have no place here: `NOMAD_TOKEN` comes from the environment.\n",
        *_section(config.Settings, "", "Top level"),
        *_section(config.Sandbox, "sandboxes.NAME.", "A sandbox"),
    ]
    for name, field in config.Settings.model_fields.items():
        model = next((a for a in (field.annotation, *get_args(field.annotation)) if _is_section(a)), None)
        if model is not None and model is not config.Sandbox:
            lines += _section(model, f"{name}.", f"`{name}`")
    return "\n".join(lines)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def checks_page() -> str:
    """``docs/reference/checks.md``."""
    lines = [
        "# The checks\n",
        "Generated from the registry by `python -m sifproof.reference_pages`; `sifproof checks` lists the same, and",
        "`sifproof checks ID` says all about one. Ids are stable.\n",
        "Each runs on every allocation of every sandbox whose driver it applies to. A run is accepted where all",
        "that is *required* passed; what is *advisory* is run and reported. The config can say otherwise for each",
        "sandbox: [policy, waivers and limits](../how-to/policy.md).\n",
    ]
    suite = ""
    for check in registry.load().values():
        if check.suite != suite:
            suite = check.suite
            module = sys.modules[f"sifproof.checks.{suite}"]
            lines += [f"## {suite}\n", f"{(module.__doc__ or '').strip()}\n"]
        lines += [f"### `{check.id}`\n", f"{check.requirement}\n"]
        said = dict(listing.facts(check))
        levels = {driver: said.pop(driver) for driver in config.DRIVERS}
        if set(levels.values()) == {"required"}:
            said["Counts"] = "required, under both drivers"
        else:
            said |= {f"Under `{driver}`": text for driver, text in levels.items()}
        lines += [f"- {name}: {text}" for name, text in said.items()]
        lines.append("")
    return "\n".join(lines)


PAGES = {"config.md": config_page, "checks.md": checks_page}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        write_atomically(FOLDER / name, page())
        print(FOLDER / name)


if __name__ == "__main__":
    main()
