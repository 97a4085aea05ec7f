"""junit.xml: the structure that CI systems read, and as red as the gate."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from report_samples import ALLOCATION, NASTY, fault, plan, planned, verdict, verdicts

from sifproof.errors import Fault
from sifproof.records import FaultRecord, Plan, Verdict
from sifproof.report import junit
from sifproof.report.decision import decide
from sifproof.report.tables import checks_table

SUITE_ATTRIBUTES = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"}
CASE_ATTRIBUTES = {"name", "classname", "time", "file"}
RESULTS = {"failure", "error", "skipped"}


def render(plan: Plan, rows: list[Verdict], faults: list[FaultRecord] | None = None) -> tuple[ET.Element, int]:
    """The parsed XML, checked against the structure of the widely used schema, and the exit code of the gate."""
    decision = decide(plan, rows, faults or [])
    text = junit.render(checks_table(plan, rows), decision, plan.run, plan.started)
    root = ET.fromstring(text)
    conforms(root)
    return root, decision.exit_code


def conforms(root: ET.Element) -> None:
    """What the JUnit schemas of Ant, Jenkins and GitLab agree on."""
    assert root.tag == "testsuites"
    assert set(root.attrib) <= {"name", "tests", "failures", "errors", "skipped", "time"}
    for suite in root:
        assert suite.tag == "testsuite"
        assert suite.attrib["name"]
        assert set(suite.attrib) <= SUITE_ATTRIBUTES
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert {case.tag for case in suite} == {"testcase"}
        for case in suite:
            assert set(case.attrib) <= CASE_ATTRIBUTES
            assert case.attrib["name"]
            assert case.attrib["classname"]
            assert float(case.attrib["time"]) >= 0
            outcomes = [child.tag for child in case]
            assert outcomes in ([], ["system-out"]) or (len(outcomes) == 1 and outcomes[0] in RESULTS)
            for child in case:
                assert child.tag == "system-out" or set(child.attrib) == {"message", "type"}
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[count]) == len(suite.findall(f"testcase/{tag}"))
        assert int(suite.attrib["tests"]) == len(suite)
        names = [(case.attrib["classname"], case.attrib["name"]) for case in suite]
        assert len(set(names)) == len(names)
    for count in ("tests", "failures", "errors", "skipped"):
        assert int(root.attrib[count]) == sum(int(suite.attrib[count]) for suite in root)


def case(root: ET.Element, name: str) -> ET.Element:
    (found,) = [item for item in root.iter("testcase") if item.attrib["name"] == name]
    return found


def test_a_suite_for_each_sandbox_and_suite() -> None:
    root, code = render(plan(), verdicts())
    assert code == 0
    assert [suite.attrib["name"] for suite in root] == [
        f"{sandbox}.{suite}"
        for sandbox in ("singularity", "docker")
        for suite in ("health", "bash", "files", "teardown")
    ]
    item = root.find("testsuite/testcase")
    assert item is not None
    assert item.attrib == {
        "name": "health.ready",
        "classname": "singularity.health",
        "time": "0.25",
        "file": "src/sifproof/checks/health.py",
    }


def test_allocations_tell_cases_apart() -> None:
    rows = verdicts("singularity")
    rows += [row.model_copy(update={"allocation": "ffffffff-1"}) for row in rows if row.allocation]
    root, _ = render(plan(planned(count=2)), rows)
    assert case(root, "bash.output [1a2b3c4d]") is not None
    assert case(root, "bash.output [ffffffff]") is not None


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        ({"verdict": "fail"}, "failure"),
        ({"verdict": "flaky"}, "failure"),
        ({"verdict": "fail", "fault": Fault.INFRASTRUCTURE}, "error"),
        ({"verdict": "not-measured"}, "error"),
        ({"verdict": "waived"}, "skipped"),
        ({"verdict": "fail", "required": False}, "skipped"),
        ({"verdict": "not-measured", "required": False}, "skipped"),
    ],
)
def test_each_outcome_has_its_tag(changes: dict[str, object], tag: str) -> None:
    rows = verdicts(
        "singularity", bash_output=changes | {"message": "what was seen", "value": 2.5, "unit": "s", "limit": 2}
    )
    root, _ = render(plan(planned()), rows)
    (result,) = case(root, "bash.output")
    assert result.tag == tag
    assert "what was seen" in result.attrib["message"]
    if tag != "skipped":
        assert result.text is not None
        assert "value: 2.5 s, limit: 2 s" in result.text
        assert ALLOCATION["singularity"] in result.text


RED = [
    (plan(), verdicts(), []),
    (plan(), verdicts(bash_output={"verdict": "fail"}), []),
    (plan(), verdicts(bash_output={"verdict": "waived"}), []),
    (plan(), verdicts(bash_output={"verdict": "fail", "required": False}), []),
    (plan(), verdicts("docker"), []),
    (plan(), [], []),
    (plan(planned(count=2)), verdicts("singularity"), []),
    (plan(planned(), planned("docker", left_out="none")), verdicts("singularity"), []),
    (plan(planned(left_out="none")), [], []),
    (plan(), verdicts(), [fault("teardown")]),
    (plan(), verdicts("docker"), [fault()]),
    (plan(), [*verdicts(), verdict(run="other")], []),
    (plan(), [*verdicts(), verdict(sandbox="stray", verdict="fail")], []),
]


@pytest.mark.parametrize("number", range(len(RED)))
def test_red_exactly_when_the_gate_is(number: int) -> None:
    root, code = render(*RED[number])
    assert (int(root.attrib["failures"]) + int(root.attrib["errors"]) > 0) == (code != 0)


def test_faults_say_what_to_do() -> None:
    root, _ = render(plan(), verdicts("docker"), [fault()])
    texts = [error.text or "" for error in root.iter("error")]
    assert any("no node has raw_exec" in text and "enable raw_exec on a node" in text for text in texts)


def test_a_sandbox_left_out_is_skipped_and_says_why() -> None:
    root, _ = render(plan(planned(), planned("docker", left_out="no engine")), verdicts("singularity"))
    (result,) = case(root, "plan.left-out")
    assert result.tag == "skipped"
    assert "no engine" in result.attrib["message"]


@pytest.mark.parametrize("word", ["pass", "fail", "waived"])
def test_no_text_breaks_the_xml(word: str) -> None:
    rows = [verdict(f"bash.c{n}", verdict=word, message=text) for n, text in enumerate(NASTY)]
    root, _ = render(plan(planned()), rows)
    assert sum(item.attrib["name"].startswith("bash.c") for item in root.iter("testcase")) == len(NASTY)
    texts = [
        text for item in root.iter("testcase") for child in item for text in (child.text, child.get("message")) if text
    ]
    assert any("<script>alert(1)</script>" in text for text in texts)
    assert any("你好 🙂" in text for text in texts)
