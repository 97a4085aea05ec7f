"""checks.tsv and summary.tsv: columns, and texts that survive."""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest
from report_samples import NASTY, RUN, plan, planned, record, verdict, verdicts

from sifproof.report.decision import decide
from sifproof.report.escaping import one_line, printable, tsv_escape, tsv_unescape, xml_text
from sifproof.report.recorded import read_run
from sifproof.report.tables import CHECK_COLUMNS, LEFT_OUT, checks_table, read_tsv, summary_table, to_tsv

# fmt: off
COLUMNS = [
    "run", "sandbox", "driver", "node", "allocation", "suite", "check", "verdict", "required", "value", "unit", "limit",
    "duration_s", "waited_s", "attempts", "message",
]
# fmt: on


def random_texts(count: int) -> list[str]:
    """Texts of characters that mean something to some format, and of any other."""
    source = random.Random(7)
    special = "\t\n\r\"'\\,;=+-@#<>&NAnul x7u0\x00\x1b\x85\u2028\u202e\ufeff🙂é"
    return ["".join(source.choices(special, k=source.randrange(12))) for _ in range(count)]


def test_the_columns_are_the_prescribed_ones(tmp_path: Path) -> None:
    path = tmp_path / "checks.tsv"
    path.write_text(to_tsv(checks_table(plan(), verdicts())[CHECK_COLUMNS]), encoding="utf-8")
    assert list(pd.read_csv(path, sep="\t").columns) == COLUMNS


def test_every_text_survives_and_every_row_is_a_line(tmp_path: Path) -> None:
    texts = NASTY + random_texts(2000)
    rows = [verdict(message=text, node=text) for text in texts]
    path = tmp_path / "checks.tsv"
    path.write_text(to_tsv(checks_table(plan(), rows)[CHECK_COLUMNS]), encoding="utf-8", newline="")

    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(texts)
    assert {line.count("\t") for line in lines} == {len(COLUMNS) - 1}

    back = read_tsv(path)
    assert list(back["message"]) == texts
    assert list(back["node"]) == texts

    plain = pd.read_csv(path, sep="\t")
    assert len(plain) == len(texts)
    assert [tsv_unescape(text) for text in plain["message"].fillna("")] == texts
    assert list(plain.index[plain["message"].isna()]) == [n for n, text in enumerate(texts) if not text]


@pytest.mark.parametrize("text", NASTY)
def test_no_text_is_a_formula_or_leaves_its_field(text: str) -> None:
    escaped = tsv_escape(text)
    assert not escaped.startswith(("=", "+", "-", "@"))
    assert not set(escaped) & set("\t\n\r\x00\x1b")
    assert tsv_unescape(escaped) == text


def test_numbers_and_flags_come_back_as_such(tmp_path: Path) -> None:
    rows = [
        verdict(value=0.1, unit="s", limit=2.0, duration_s=0.25, attempts=3),
        verdict("bash.exit-code", required=False),
    ]
    path = tmp_path / "checks.tsv"
    path.write_text(to_tsv(checks_table(plan(), rows)[CHECK_COLUMNS]), encoding="utf-8")
    for frame in (pd.read_csv(path, sep="\t"), read_tsv(path)):
        assert frame["required"].tolist() == [True, False]
        assert frame["value"].tolist()[0] == 0.1
        assert frame["value"].isna().tolist() == [False, True]
        assert frame[["limit", "duration_s", "attempts"]].iloc[0].tolist() == [2.0, 0.25, 3]


def test_rows_are_in_the_order_of_the_plan() -> None:
    rows = verdicts("docker", "singularity")
    random.Random(1).shuffle(rows)
    table = checks_table(plan(), rows)
    assert list(table["sandbox"].unique()) == ["singularity", "docker"]
    assert list(table[table["sandbox"] == "docker"]["suite"].unique()) == ["health", "bash", "files", "teardown"]


def test_a_sandbox_left_out_has_a_row_in_both(tmp_path: Path) -> None:
    it = plan(planned(), planned("docker", left_out="There is no Docker engine."))
    folder = record(tmp_path, it, verdicts("singularity"))
    recorded = read_run(folder)
    checks = checks_table(it, recorded.verdicts)
    row = checks[checks["sandbox"] == "docker"].iloc[0]
    assert (row["check"], row["verdict"], bool(row["required"]), row["message"]) == (
        LEFT_OUT, "not-measured", False, "There is no Docker engine.",
    )  # fmt: skip
    summary = summary_table(recorded, decide(it, recorded.verdicts)).set_index("sandbox")
    assert summary.loc["docker", ["verdict", "required", "reason"]].tolist() == [
        "not-measured", False, "There is no Docker engine.",
    ]  # fmt: skip


def test_summary_adds_up(tmp_path: Path) -> None:
    it = plan(planned(), planned("docker", count=2))
    rows = verdicts(bash_exit_code={"verdict": "fail"}, files_round_trip={"verdict": "waived"})
    folder = record(tmp_path, it, rows)
    recorded = read_run(folder)
    path = tmp_path / "summary.tsv"
    path.write_text(to_tsv(summary_table(recorded, decide(it, recorded.verdicts))), encoding="utf-8")
    for frame in (pd.read_csv(path, sep="\t"), read_tsv(path)):
        assert len(frame) == 2
        first = frame.set_index("sandbox").loc["singularity"]
        assert first["run"] == RUN
        assert first["verdict"] == "rejected"
        words = ["pass", "fail", "flaky", "waived", "measured", "not-measured"]
        assert first[words].tolist() == [7, 1, 0, 1, 0, 0]
        assert first["checks"] == first[words].sum() == 9
        assert first[["allocations", "expected"]].tolist() == [1, 1]
        assert first["nodes"] == "node-1"
        assert first["digest"] == "sha256:" + "ab" * 32
        assert first["sif_sha256"] == "cd" * 32
        assert first["sif_bytes"] == 78_100_000
        assert first["image_s"] == pytest.approx(5.7)
        assert first["job_s"] == pytest.approx(0.44)
        assert first["checks_s"] == pytest.approx(9 * 0.25)


def test_tables_of_nothing_have_their_columns(tmp_path: Path) -> None:
    it = plan().model_copy(update={"sandboxes": []})
    recorded = read_run(record(tmp_path, it, []))
    path = tmp_path / "t.tsv"
    path.write_text(to_tsv(checks_table(it, [])[CHECK_COLUMNS]), encoding="utf-8")
    assert list(read_tsv(path).columns) == COLUMNS
    assert to_tsv(summary_table(recorded, decide(it, []))).startswith("run\tsandbox\t")


def test_text_for_terminals_has_no_controls() -> None:
    for text in [*NASTY, *random_texts(500)]:
        line = one_line(text)
        assert "\n" not in line
        assert "\x1b" not in line
        assert "\u202e" not in line
        assert "\x1b" not in printable(text)
    assert one_line("\x1b[31mred\x1b[0m\n  and\tmore") == "red and more"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"
    assert xml_text("a\x00b\x0bc\ufffe\nd") == "abc\nd"
