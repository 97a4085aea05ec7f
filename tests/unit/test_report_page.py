"""report.html: what a person finds in it, and that nothing in it can act."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_samples import NASTY, RUN, fault, plan, planned, record, verdict, verdicts

from sifproof.records import FaultRecord, Plan, Verdict
from sifproof.report.decision import decide
from sifproof.report.page import code, seconds, size
from sifproof.report.recorded import read_run
from sifproof.report.write import render, write_reports

VOID = {"meta", "link", "br", "img", "input", "hr", "use", "path", "circle"}


@dataclass
class Node:
    """An element of the page."""

    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return re.sub(r"\s+", " ", "".join(parts)).strip()

    def all(self, tag: str = "", **attributes: str) -> list[Node]:
        """Every element below that has this tag and these attributes; a class is one of those of the element."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                wanted = {name.rstrip("_"): value for name, value in attributes.items()}
                if (not tag or child.tag == tag) and all(
                    value in child.attributes.get(name, "").split() for name, value in wanted.items()
                ):
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> Node:
        (found,) = self.all(tag, **attributes)
        return found


class Parser(HTMLParser):
    """Builds a tree, and is strict about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice on {tag}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(text: str) -> Node:
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == [parser.root]
    return parser.root


def describe(check: str) -> SimpleNamespace | None:
    if check == "bash.unknown":
        return None
    return SimpleNamespace(requirement=f"What `{check}` <asks> for.", why="It <matters>.", todo="Look at `sh`.")


def page(tmp_path: Path, it: Plan, rows: list[Verdict], faults: list[FaultRecord] | None = None) -> Node:
    recorded = read_run(record(tmp_path, it, rows, faults))
    decision = decide(it, recorded.verdicts, recorded.faults, recorded.problems, describe)
    return parse(render(recorded, decision, describe)["report.html"])


@pytest.fixture
def rejected(tmp_path: Path) -> Node:
    it = plan(planned(), planned("docker", left_out="There is no Docker engine."))
    rows = verdicts(
        "singularity",
        bash_exit_code={"verdict": "fail", "message": "exit 7 came back\nas 0"},
        files_round_trip={"verdict": "waived", "message": "known"},
        health_ready={"value": 0.81, "unit": "s", "limit": 30},
    )
    return page(tmp_path, it, rows)


def test_the_first_screen_says_it_all(rejected: Node) -> None:
    assert rejected.one("h1").text == "Rejected"
    assert rejected.one("p", class_="sentence").text.startswith(
        "1 of 9 required checks failed on singularity: bash.exit-code"
    )
    header = rejected.one("header", class_="top")
    assert RUN in header.text
    assert header.one("time").attributes["datetime"] == "2026-01-02T03:04:05+00:00"
    assert header.one("time").text == "2 January 2026, 03:04:05 UTC"
    card = rejected.all("article", class_="card")[0]
    for fact in (
        "singularity", "docker-daemon:sandbox:latest", "sha256:" + "ab" * 32, "results/images/sandbox.sif", "cd" * 32,
        "78.1 MB", "1a2b3c4d on node-1", "[::1]:31000", "7 pass", "1 fail", "1 waived",
    ):  # fmt: skip
        assert fact in card.text


def test_a_sandbox_left_out_says_why(rejected: Node) -> None:
    card = rejected.one("article", class_="out")
    assert "docker" in card.text
    assert "not-measured" in card.text
    assert "There is no Docker engine." in card.text


def test_each_failing_check_says_what_is_asked_what_was_seen_and_what_to_do(rejected: Node) -> None:
    (item,) = rejected.one("ol", class_="todo").all("li")
    for fact in (
        "bash.exit-code", "singularity 1a2b3c4d", "exit 7 came back as 0", "What bash.exit-code <asks> for.",
        "It <matters>.", "Look at sh.", "sifproof run --config driver=singularity", "image at fault",
    ):  # fmt: skip
        assert fact in item.text
    link = item.one("h3").one("a").attributes["href"]
    assert rejected.one("tr", id=link.removeprefix("#"))


def test_the_matrix_has_every_check_and_words_beside_symbols(rejected: Node) -> None:
    table = rejected.one("table", class_="matrix")
    checks = [row.all("code")[0].text for row in table.all("tr") if row.attributes.get("id")]
    assert len(checks) == 9
    assert [row.text for row in table.all("tr", class_="suite")] == [
        "health3 checks", "bash2 checks", "files1 check", "teardown3 checks",
    ]  # fmt: skip
    assert {header.attributes["scope"] for header in table.all("th")} == {"col", "row", "rowgroup"}
    row = rejected.one("tr", id="check-health-ready")
    assert "810 ms, at most 30 s" in row.text
    for mark in rejected.all("span", class_="mark"):
        word = mark.text
        assert word
        symbol = mark.one("use").attributes["href"].removeprefix("#i-")
        assert f"is-{symbol}" in mark.attributes["class"].split()
    assert "known" in table.text


def test_one_reason_for_what_fails_alike_in_several_places(tmp_path: Path) -> None:
    rows = verdicts(bash_output={"verdict": "fail", "message": "nothing came back"})
    root = page(tmp_path, plan(), rows)
    (item,) = root.one("ol", class_="todo").all("li")
    assert "singularity 1a2b3c4d, docker 5e6f7a8b" in item.text
    assert item.all("code")[-1].text == "sifproof run"


def test_timings_are_shown(rejected: Node) -> None:
    times = rejected.one("div", class_="times")
    for fact in ("export", "1.90 s", "place and start", "400 ms", "Slowest checks", "bash"):
        assert fact in times.text
    assert "total" not in times.text
    widths = [float(re.sub(r"[^0-9.]", "", bar.attributes["style"])) for bar in times.all("span", class_="len")]
    assert max(widths) == 100
    assert min(widths) >= 0


@pytest.mark.parametrize(
    ("rows", "faults", "headline"),
    [
        (verdicts(), [], "Accepted"),
        (verdicts("docker"), [fault()], "Infrastructure at fault"),
        (verdicts("docker"), [], "Incomplete"),
        ([], [], "Incomplete"),
    ],
)
def test_every_outcome_has_a_page(
    tmp_path: Path, rows: list[Verdict], faults: list[FaultRecord], headline: str
) -> None:
    root = page(tmp_path, plan(), rows, faults)
    assert root.one("h1").text == headline
    assert bool(root.all("ol", class_="todo")) == (headline != "Accepted")
    assert root.all("h2")[0].text == "What was tested"


def test_the_page_needs_nothing_and_can_do_nothing(rejected: Node) -> None:
    assert not [
        node
        for tag in ("script", "link", "img", "iframe", "object", "embed", "form", "base")
        for node in rejected.all(tag)
    ]
    for node in rejected.all():
        assert not [name for name in node.attributes if name.startswith("on") or name == "src"]
        target = node.attributes.get("href", "")
        assert (
            not target or target.startswith("#") or target in {"verdict.json", "checks.tsv", "summary.tsv", "junit.xml"}
        )
    style = rejected.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    policy = rejected.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'")
    assert rejected.one("html").attributes["lang"] == "en"
    identities = [node.attributes["id"] for node in rejected.all() if "id" in node.attributes]
    assert len(identities) == len(set(identities))


# fmt: off
TAGS = {
    "html", "head", "meta", "title", "style", "body", "svg", "symbol", "path", "circle", "use", "a", "header", "div",
    "span", "b", "time", "h1", "h2", "h3", "h4", "p", "dl", "dt", "dd", "small", "main", "section", "article", "ul",
    "ol", "li", "i", "table", "thead", "tbody", "tr", "th", "td", "code", "details", "summary", "footer", "nav",
}
# fmt: on


@pytest.mark.parametrize("text", [text for text in NASTY if text.strip()])
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    """Wherever a task, an image or a config can put text, it is shown and not obeyed."""
    it = plan(planned(image=f"x{text}"), planned("docker", left_out=f"x{text}"))
    rows = verdicts(
        "singularity", bash_output={"verdict": "fail", "message": f"x{text}", "node": f"x{text}", "unit": text}
    )
    rows.append(verdict(f"bash.{text}", message=text, verdict="flaky", required=False))
    root = page(tmp_path / "hostile", it, rows, [fault().model_copy(update={"what": f"x{text}", "todo": text})])
    assert {node.tag for node in root.all()} <= TAGS
    for node in root.all():
        assert not [name for name in node.attributes if name.startswith("on")]
    assert not set(root.text) & set("\x00\x1b\u202e")
    assert "49" not in root.one("p", class_="sentence").text


def test_secrets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "5d0c1f9e-aaaa-bbbb-cccc-0123456789ab"
    monkeypatch.setenv("NOMAD_TOKEN", token)
    rows = verdicts(bash_output={"verdict": "fail", "message": f"env: NOMAD_TOKEN={token}"})
    write_reports(record(tmp_path, plan(), rows), tmp_path)
    for path in [path for path in tmp_path.iterdir() if path.is_file()]:
        text = path.read_text(encoding="utf-8")
        assert token not in text
        assert "hidden-from-every-report" not in text
        assert "user:pass" not in text


def colours(style: str, scheme: str) -> dict[str, str]:
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", light))
    return found | (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", dark)) if scheme == "dark" else {})


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_for_text(rejected: Node, scheme: str) -> None:
    named = colours(rejected.one("style").text, scheme)
    pairs = [(ink, ground) for ink in ("ink", "soft") for ground in ("page", "card", "faint")]
    for word in ("pass", "fail", "flaky", "waived", "measured", "not-measured"):
        pairs += [(word, "page"), (word, "card"), (word, f"{word}-bg")]
    for ink, ground in pairs:
        bright, dim = sorted((luminance(named[ink]), luminance(named[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)


def test_numbers_for_people() -> None:
    assert [size(n) for n in (None, 5, 999, 78_100_000, 250_000_000, 3_200_000_000)] == [
        "", "5 B", "999 B", "78.1 MB", "250 MB", "3.2 GB",
    ]  # fmt: skip
    assert [seconds(n) for n in (0, 0.0123, 0.9999, 1.424, 12.34, 185, 7260)] == [
        "0 ms", "12 ms", "1.00 s", "1.42 s", "12.3 s", "3 min 05 s", "2 h 01 min",
    ]  # fmt: skip
    assert code("a `<b>` & c") == "a <code>&lt;b&gt;</code> &amp; c"
    assert code("an ` alone <b>") == "an ` alone &lt;b&gt;"
