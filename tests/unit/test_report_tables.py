"""checks.tsv and summary.tsv: columns, and texts that survive."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import pandas as pd
import pytest
from report_samples import NASTY, RUN, plan, planned, record, verdict, verdicts

from sifproof.records import PlannedWaiver
from sifproof.report.decision import decide
from sifproof.report.recorded import read_run
from sifproof.report.tables import CHECK_COLUMNS, LEFT_OUT, checks_table, read_tsv, rows, summary_table, to_tsv
from sifproof.text import one_line, printable, tsv_escape, tsv_unescape, xml_text

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


def test_a_row_that_stands_for_no_check_says_so_in_each_column() -> None:
    table = checks_table(plan(planned("docker", left_out="There is no Docker engine.")), [])
    (row,) = rows(table[["run", "sandbox", "driver", "suite", "check", "attempts", "duration_s", "message"]])
    assert tuple(row) == (RUN, "docker", "docker", "plan", LEFT_OUT, 0, 0.0, "There is no Docker engine.")
    assert row._fields[0] == "run"


def test_what_the_plan_does_not_have_comes_last_and_what_another_run_left_not_at_all() -> None:
    stray = [verdict(sandbox="stray"), verdict("speed.made"), verdict("health.ready"), verdict(run="yesterday")]
    table = checks_table(plan(), stray)
    assert [(row.sandbox, row.check) for row in rows(table)] == [
        ("singularity", "health.ready"), ("singularity", "speed.made"), ("stray", "bash.output"),
    ]  # fmt: skip


def test_summary_counts_each_word_of_each_sandbox_by_itself(tmp_path: Path) -> None:
    counts = {"pass": 3, "fail": 2, "flaky": 4, "waived": 5, "measured": 6, "not-measured": 7}
    names = [f"bash.n{n}" for n in range(sum(counts.values()))]
    said = [word for word, count in counts.items() for _ in range(count)]
    found = [verdict(name, verdict=word) for name, word in zip(names, said, strict=True)]
    # Of each word one is not required; advisory is what failed of them.
    found = [row.model_copy(update={"required": said.index(row.verdict) != n}) for n, row in enumerate(found)]
    found += [verdict("teardown.port", allocation="", node=""), verdict("bash.other", "docker", verdict="flaky")]
    waiver = PlannedWaiver(reason="ticket 7", until=datetime.date(2026, 1, 1))
    it = plan(
        planned(off={"bash.a": "so", "bash.b": "so"}, waivers={"bash.n9": waiver, "bash.none": waiver}),
        planned("docker", off={"bash.c": "so"}),
    )
    recorded = read_run(record(tmp_path, it, found))
    first, second = summary_table(recorded, decide(it, recorded.verdicts)).to_dict("records")
    assert {word: first[word] for word in counts} == counts | {"pass": 4}
    assert {word: second[word] for word in counts} == dict.fromkeys(counts, 0) | {"flaky": 1}
    told = ["checks", "advisory", "off", "allocations", "nodes", "waivers"]
    assert [first[name] for name in told] == [
        28, 2, 2, 1, "node-1", "bash.n9: used; bash.none: not looked at, expired",
    ]  # fmt: skip
    assert [second[name] for name in told] == [1, 0, 1, 1, "node-1", ""]


def test_each_column_is_read_back_as_what_it_is(tmp_path: Path) -> None:
    it = plan(planned(), planned("docker", left_out="There is no Docker engine."))
    recorded = read_run(record(tmp_path, it, verdicts("singularity", bash_output={"value": 3.0, "message": "007"})))
    path = tmp_path / "t.tsv"
    kinds = {}
    for table in (checks_table(it, recorded.verdicts), summary_table(recorded, decide(it, recorded.verdicts))):
        path.write_text(to_tsv(table), encoding="utf-8")
        back = read_tsv(path)
        kinds |= back.dtypes.map(str).to_dict()
        assert back.map(str).equals(table.map(str).replace("None", "nan"))
    assert kinds["required"] == "bool"
    assert {kinds[name] for name in ("attempts", "checks", "pass", "not-measured", "expected")} == {"int64"}
    assert {kinds[name] for name in ("value", "limit", "duration_s", "image_s", "waited_s")} == {"float64"}
    assert kinds["sif_bytes"] == "Int64"
    assert kinds["message"] == kinds["verdict"] == kinds["sif_sha256"] == "str"


def test_a_line_ends_alike_on_every_machine_and_only_what_must_be_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.linesep", "\r\n")
    assert to_tsv(pd.DataFrame({"a": ["x", 'say "so"'], "b": [1, 2]})) == 'a\tb\nx\t1\n"say ""so"""\t2\n'


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
