"""Write the generated parts of ``docs/reference/report.md`` and the schema of ``verdict.json`` from the models.

``python -m sifproof.report.document docs/reference`` rewrites both in place.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from pydantic import BaseModel

from sifproof.doctor.record import Explanation
from sifproof.records import Verdict, write_atomically
from sifproof.report.decision import Reason, SandboxDecision
from sifproof.report.tables import CHECK_COLUMNS, SummaryRow
from sifproof.report.terms import AdvisoryTerm, LimitTerm, OffTerm, Terms, WaiverTerm
from sifproof.report.verdict import Nomad, VerdictFile

PAGE = "report.md"
SCHEMA = "verdict.schema.json"


def schema() -> str:
    """The JSON Schema of ``verdict.json``."""
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **VerdictFile.model_json_schema()}
    return json.dumps(content, indent=2) + "\n"


def page(text: str) -> str:
    """``text`` with what stands between ``<!-- fields of NAME -->`` and ``<!-- end -->`` made anew.

    Raises ``KeyError`` for a name that is not one of the tables.
    """
    tables = {
        "checks.tsv": fields(Verdict, CHECK_COLUMNS),
        "summary.tsv": fields(SummaryRow),
        "verdict.json": fields(VerdictFile),
        "reasons": fields(Reason),
        "doctor": fields(Explanation),
        "sandboxes": fields(SandboxDecision),
        "nomad": fields(Nomad),
        "terms": fields(Terms),
        "waivers": fields(WaiverTerm),
        "advisory": fields(AdvisoryTerm),
        "off": fields(OffTerm),
        "limits": fields(LimitTerm),
    }
    return re.sub(
        r"(<!-- fields of (\S+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{tables[match[2]]}{match[3]}",
        text,
        flags=re.DOTALL,
    )


def fields(model: type[BaseModel], names: list[str] | None = None) -> str:
    """A Markdown table of the fields of ``model``, all or those of ``names``."""
    lines = ["| name | is |", "|---|---|"]
    for name, field in model.model_fields.items():
        if names is None or name in names:
            nested = (getattr(field.annotation, "__doc__", "") or "") if not field.description else ""
            lines.append(f"| `{field.alias or name}` | {field.description or nested} |")
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Rewrite both files in ``folder``."""
    write_atomically(folder / PAGE, page((folder / PAGE).read_text(encoding="utf-8")))
    write_atomically(folder / SCHEMA, schema())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
