"""The set of reports: whole or not there, the run's own, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from report_samples import RUN, fault, plan, planned, record, verdicts

from sifproof.errors import Fault, SifproofError
from sifproof.report import write
from sifproof.report.decision import decide
from sifproof.report.recorded import read_run
from sifproof.report.verdict import VerdictFile, read_verdict, without_credentials
from sifproof.report.write import REPORTS, retire_reports, write_reports

OLD = "20250101-000000-0ld0"


def published(results: Path) -> dict[str, str]:
    """The files of a set in ``results``, by name."""
    return {name: (results / name).read_text(encoding="utf-8") for name in REPORTS if (results / name).exists()}


def kept(results: Path, run: str = RUN) -> dict[str, str]:
    return published(results / "runs" / run / "report")


def old_run(results: Path) -> dict[str, str]:
    """An earlier, finished run; returns its set."""
    it = plan().model_copy(update={"run": OLD})
    rows = [row.model_copy(update={"run": OLD}) for row in verdicts()]
    write_reports(record(results, it, rows), results)
    return kept(results, OLD)


def test_the_set_is_in_the_runs_folder_and_in_results(tmp_path: Path) -> None:
    folder = record(tmp_path, plan(), verdicts())
    decision = write_reports(folder, tmp_path)
    assert decision.exit_code == 0
    assert set(published(tmp_path)) == set(REPORTS)
    assert published(tmp_path) == kept(tmp_path)
    assert not [path for path in (*tmp_path.iterdir(), *folder.iterdir()) if path.name.startswith(".")]


def test_all_reports_say_the_same(tmp_path: Path) -> None:
    rows = verdicts(bash_output={"verdict": "fail"}, files_round_trip={"verdict": "waived"})
    decision = write_reports(record(tmp_path, plan(), rows), tmp_path)
    file = VerdictFile.model_validate_json((tmp_path / "verdict.json").read_bytes())
    assert file.model_dump(include=set(type(decision).model_fields)) == decision.model_dump()
    assert (file.run, file.started, file.nomad.address) == (RUN, plan().started, "http://127.0.0.1:4646")
    assert all((tmp_path / path).is_file() for path in file.reports.values())
    assert set(file.reports) == set(REPORTS)
    checks = pd.read_csv(tmp_path / "checks.tsv", sep="\t")
    summary = pd.read_csv(tmp_path / "summary.tsv", sep="\t")
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert len(checks) == summary["checks"].sum() == int(root.attrib["tests"]) == len(rows)
    assert (checks["verdict"] == "fail").sum() == summary["fail"].sum() == int(root.attrib["failures"]) == 2
    assert sum(sandbox.counts["fail"] for sandbox in file.sandboxes) == 2
    assert set(checks["run"]) == set(summary["run"]) == {RUN}


def test_a_new_run_replaces_the_published_set_and_keeps_the_old_one(tmp_path: Path) -> None:
    old = old_run(tmp_path)
    write_reports(record(tmp_path, plan(), verdicts()), tmp_path)
    assert published(tmp_path) == kept(tmp_path)
    assert kept(tmp_path, OLD) == old
    assert not [path for path in (tmp_path / "runs").iterdir() if path.name.startswith("retired")]


def test_the_same_run_can_be_reported_again(tmp_path: Path) -> None:
    folder = record(tmp_path, plan(), verdicts())
    write_reports(folder, tmp_path)
    record(tmp_path, plan(), verdicts(bash_output={"verdict": "fail"}))
    assert write_reports(folder, tmp_path).exit_code == 1
    assert json.loads(published(tmp_path)["verdict.json"])["exit_code"] == 1
    assert published(tmp_path) == kept(tmp_path)


def test_retiring_clears_results_and_loses_nothing(tmp_path: Path) -> None:
    old = old_run(tmp_path)
    retire_reports(tmp_path)
    assert published(tmp_path) == {}
    assert kept(tmp_path, OLD) == old
    retire_reports(tmp_path)

    (tmp_path / "checks.tsv").write_text("made by hand")
    (tmp_path / "README.md").write_text("stays")
    retire_reports(tmp_path)
    assert not (tmp_path / "checks.tsv").exists()
    assert (tmp_path / "README.md").exists()
    (found,) = tmp_path.glob("runs/retired-*/report/checks.tsv")
    assert found.read_text() == "made by hand"
    os.utime(found, (0, 0))

    (tmp_path / "checks.tsv").write_text("made by hand")
    retire_reports(tmp_path)
    assert not (tmp_path / "checks.tsv").exists()
    assert found.read_text() == "made by hand"


def test_two_files_retired_in_one_second_are_both_kept(tmp_path: Path) -> None:
    for text in ("one", "two"):
        path = tmp_path / "checks.tsv"
        path.write_text(text)
        os.utime(path, (1_000_000, 1_000_000))
        retire_reports(tmp_path)
    assert sorted(path.read_text() for path in tmp_path.glob("runs/retired-*/report/*")) == ["one", "two"]


def killed_at(step: int, folder: Path, results: Path, texts: dict[str, str]) -> bool:
    """Write a rendered set in a process that is killed before its ``step``-th change; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = iter(range(step))

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def change(*arguments: object, **options: object) -> object:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return change

        for name in ("replace", "rename", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))
        try:
            write.put_in_place(texts, folder, results)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def looks_whole(results: Path, old: dict[str, str]) -> None:
    """What holds at every moment: no half file, no half set under a verdict, no mixture, nothing lost."""
    assert kept(results, OLD) == old
    new = kept(results)
    assert set(new) in (set(), set(REPORTS))
    now = published(results)
    assert all(text in (old[name], new.get(name)) for name, text in now.items())
    runs = {"old" if text == old[name] else "new" for name, text in now.items()}
    assert len(runs) <= 1
    if "verdict.json" in now:
        assert set(now) == set(REPORTS)


def test_a_kill_between_any_two_steps_leaves_no_half_report(tmp_path: Path) -> None:
    old = old_run(tmp_path)
    folder = record(tmp_path, plan(), verdicts())
    recorded = read_run(folder)
    texts = write.render(recorded, decide(recorded.plan, recorded.verdicts))
    step, died = 0, True
    while died:
        died = killed_at(step, folder, tmp_path, texts)
        looks_whole(tmp_path, old)
        step += 1
    assert step > 20
    # The leftovers of all those are gone with the one that got through.
    assert published(tmp_path) == kept(tmp_path)
    assert not [path for path in (*tmp_path.iterdir(), *folder.iterdir()) if path.name.startswith(".")]


def test_an_interrupt_while_publishing_takes_the_part_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target == tmp_path / "summary.tsv":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_reports(record(tmp_path, plan(), verdicts()), tmp_path)
    assert published(tmp_path) == {}
    assert set(kept(tmp_path)) == set(REPORTS)


def test_nothing_is_written_when_rendering_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = old_run(tmp_path)

    def broken(*_: object) -> dict[str, str]:
        raise RuntimeError

    monkeypatch.setattr(write, "render", broken)
    with pytest.raises(RuntimeError):
        write_reports(record(tmp_path, plan(), verdicts()), tmp_path)
    assert published(tmp_path) == old
    assert kept(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("verdicts/docker.bash.jsonl", b'{"run": "2026', "verdicts/docker.bash.jsonl, line 1"),
        ("verdicts/docker.bash.jsonl", b"", "suite bash did not run"),
        ("verdicts/docker.bash.jsonl", b"\xff\xfe\x00", "verdicts/docker.bash.jsonl, line 1"),
        ("plan.json", b'{"run"', "plan.json cannot be understood"),
        ("plan.json", b"[]", "plan.json cannot be understood"),
        ("faults/submit.docker.json", b'{"stage": "submit"}', "faults/submit.docker.json cannot be understood"),
        ("images/docker.json", b'{"digest": "sha', "images/docker.json cannot be understood"),
        ("images/docker.json", b"[1]", "it holds no JSON object"),
        ("endpoints/docker.json", b"", "endpoints/docker.json cannot be understood"),
        ("nomad.json", b"{", "nomad.json cannot be understood"),
    ],
)
def test_a_record_that_a_kill_left_broken_makes_the_run_incomplete(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    folder = record(tmp_path, plan(), verdicts(), [fault(sandbox="docker", kind=Fault.INCOMPLETE)])
    (folder / name).write_bytes(content)
    decision = write_reports(folder, tmp_path)
    assert decision.exit_code == 4
    assert any(said in reason.text for reason in decision.reasons)
    assert set(published(tmp_path)) == set(REPORTS)
    assert said in published(tmp_path)["verdict.json"]


def test_an_empty_folder_is_an_incomplete_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    decision = write_reports(folder, tmp_path)
    assert (decision.verdict.value, decision.exit_code) == ("incomplete", 4)
    assert decision.reasons[0].text == "plan.json was not written."
    assert read_verdict(tmp_path, RUN).exit_code == 4


def test_whole_lines_before_a_cut_one_count(tmp_path: Path) -> None:
    folder = record(tmp_path, plan(), verdicts(bash_output={"verdict": "fail"}))
    path = folder / "verdicts" / "docker.bash.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert write_reports(folder, tmp_path).exit_code == 1


def test_a_fault_handed_on_is_no_broken_record(tmp_path: Path) -> None:
    record_of_fault = fault("submit", "docker")
    folder = record(tmp_path, plan(), verdicts("singularity"), [record_of_fault])
    handed_on = json.dumps({"fault": record_of_fault.model_dump(mode="json")})
    for name in ("endpoints/docker.json", "images/docker.json", "verdicts/docker.bash.jsonl"):
        (folder / name).write_text(handed_on + "\n")
    decision = write_reports(folder, tmp_path)
    assert decision.exit_code == 3
    assert {reason.fault for reason in decision.reasons} == {Fault.INFRASTRUCTURE}


def test_reports_do_without_what_stages_left_beside(tmp_path: Path) -> None:
    folder = record(tmp_path, plan(), verdicts(), documents=False)
    assert write_reports(folder, tmp_path).exit_code == 0


def test_the_verdict_is_read_back_for_its_own_run_only(tmp_path: Path) -> None:
    write_reports(record(tmp_path, plan(planned()), verdicts("singularity")), tmp_path)
    assert read_verdict(tmp_path, RUN).exit_code == 0
    with pytest.raises(SifproofError, match="is the verdict of run") as caught:
        read_verdict(tmp_path, "another")
    assert caught.value.fault is Fault.INCOMPLETE
    (tmp_path / "verdict.json").write_text("{}")
    with pytest.raises(SifproofError, match="does not follow its schema"):
        read_verdict(tmp_path, RUN)
    retire_reports(tmp_path)
    with pytest.raises(SifproofError, match="No such file"):
        read_verdict(tmp_path, RUN)


def test_addresses_lose_their_credentials() -> None:
    assert without_credentials("https://u:p@n.example:4646/v1?token=x") == "https://n.example:4646/v1"
    assert without_credentials("http://[fd00::7]:4646") == "http://[fd00::7]:4646"
    assert without_credentials("http://[") == ""
    assert without_credentials("") == ""


def test_the_decision_does_not_cost_pandas() -> None:
    imports = "sys, sifproof.report.write, sifproof.report.terminal, sifproof.report.verdict"
    script = f"import {imports}; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_runs_publish_side_by_side(tmp_path: Path) -> None:
    texts = {}
    for number in range(4):
        it = plan().model_copy(update={"run": f"night-{number}"})
        folder = record(tmp_path, it, [row.model_copy(update={"run": it.run}) for row in verdicts()])
        recorded = read_run(folder)
        texts[folder] = write.render(recorded, decide(recorded.plan, recorded.verdicts))

    def publish(folder: Path) -> None:
        for _ in range(5):
            write.put_in_place(texts[folder], folder, tmp_path)
            retire_reports(tmp_path)
        write.put_in_place(texts[folder], folder, tmp_path)

    children = []
    for folder in texts:
        if (child := os.fork()) == 0:
            try:
                publish(folder)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    for folder, rendered in texts.items():
        assert kept(tmp_path, folder.name) == rendered
    assert published(tmp_path) in texts.values()
    assert [write.is_published(folder / "report", tmp_path) for folder in texts].count(True) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.name.startswith("retired")]
