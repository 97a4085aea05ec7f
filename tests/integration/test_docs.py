"""The commands in the documentation do what it says.

A block that opens with ``sh`` is run, those of one page in order and in one folder. ``sh exit N`` is expected to end
with that code; ``sh not run: REASON`` is left out, and needs the reason.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import DEAD_ENGINE, ROOT, Checkout

PAGES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("sandbox/*.md"))
)
BLOCK = re.compile(r"^```(sh|bash|shell)\b[ ]*(.*?)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(how, commands) for _, how, commands in BLOCK.findall((ROOT / page).read_text())]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for how, commands in blocks(page):
        assert re.fullmatch(r"|exit \d|not run: \w.*", how), f"{page}: {how!r} above {commands!r}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not how.startswith("not run") for how, _ in blocks(page))], ids=str
)
def test_commands(page: Path, checkout: Checkout) -> None:
    environment = checkout.environment(**DEAD_ENGINE)
    environment.pop("SIFPROOF_RUN")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for how, commands in blocks(page):
        if how.startswith("not run"):
            continue
        expected = int(how.removeprefix("exit ") or 0)
        ended = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands],
            cwd=checkout.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ended.returncode == expected, f"{page}:\n{commands}\n{ended.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall((ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
