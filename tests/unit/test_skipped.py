"""No test of the project is skipped: what can't run fails, and says why."""

import os
import re
import subprocess
import sys

import pytest
from checkout import ROOT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@pytest.mark.skip(reason='not here')\ndef test(): pass", "was skipped: .*not here"),
        ("def test(): pytest.skip('not now')", "was skipped: .*not now"),
        ("@pytest.fixture\ndef thing(): pytest.skip('no thing')\ndef test(thing): pass", "was skipped: .*no thing"),
        ("pytest.importorskip('no_such_module')\ndef test(): pass", "was skipped: .*no_such_module"),
        ("@pytest.mark.parametrize('x', [])\ndef test(x): pass", "Empty parameter set in 'test'"),
    ],
)
def test_what_is_skipped_fails(tmp_path, text, said):
    (tmp_path / "test_it.py").write_text(f"import pytest\n{text}\n")
    settings = ["-p", "conftest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, tmp_path / "test_it.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2), done.stdout
    assert re.search(said, done.stdout), done.stdout
