"""The reference page and the schema agree with the models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_samples import plan, record, verdicts

from sifproof.records import Verdict
from sifproof.report import document
from sifproof.report.decision import Outcome
from sifproof.report.tables import SummaryRow
from sifproof.report.verdict import VerdictFile
from sifproof.report.write import REPORTS, write_reports

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_page_and_schema_are_up_to_date() -> None:
    """Where this fails: ``python -m sifproof.report.document docs/reference``."""
    text = (REFERENCE / document.PAGE).read_text(encoding="utf-8")
    assert document.page(text) == text
    assert document.schema() == (REFERENCE / document.SCHEMA).read_text(encoding="utf-8")


def test_the_page_names_every_report_word_and_column() -> None:
    text = (REFERENCE / document.PAGE).read_text(encoding="utf-8")
    for name in REPORTS:
        assert f"`{name}`" in text
    for outcome in Outcome:
        assert f"| `{outcome.value}` | {outcome.exit_code} |" in text
    for model in (Verdict, SummaryRow, VerdictFile):
        for name, field in model.model_fields.items():
            assert (
                name in ("fault", "hindered")
                or f"| `{field.alias or name}` | {field.description or 'The cluster'}" in text
            )


def test_a_table_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError):
        document.page("<!-- fields of nothing -->\n<!-- end -->")


def test_main_writes_both(tmp_path: Path) -> None:
    (tmp_path / document.PAGE).write_text("a\n<!-- fields of nomad -->\nstale\n<!-- end -->\nb\n")
    document.main(tmp_path)
    text = (tmp_path / document.PAGE).read_text()
    assert "stale" not in text
    assert "| `address` |" in text
    assert (tmp_path / document.SCHEMA).read_text() == document.schema()


def test_a_verdict_file_has_what_the_schema_asks_for(tmp_path: Path) -> None:
    write_reports(record(tmp_path, plan(), verdicts()), tmp_path)
    written = json.loads((tmp_path / "verdict.json").read_text())
    schema = json.loads(document.schema())
    assert set(schema["required"]) <= set(written)
    assert set(written) == set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert re.fullmatch(r"https://json-schema.org/draft/[0-9-]+/schema", schema["$schema"])
