"""What is sent to a server, whoever wrote it, may do it no harm; and the gate leaves no trace where it is called."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sifproof.checks.protocol.generated import DESCRIPTION, make_requests

WORDS = {
    "SlotId": ("slot_1", "no-such-slot"),
    "Tool": ("bash", "read_file", "write_file", "no-such-tool"),
    "Command": ("exit 3", "true"),
    "Path": ("folder/file", "folder"),
}
SCHEMA_OF = {"slot_id": "SlotId", "tool": "Tool", "command": "Command", "path": "Path"}
KEYS = {"content", "execution_id", "encoding", "format"}


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a body, with the key that it stands under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, key)
    elif isinstance(value, str):
        yield key, value


@pytest.mark.parametrize("valid", [True, False])
def test_no_text_is_made_up_that_a_server_could_run_or_open(valid: bool) -> None:
    seen = set()
    for request in make_requests(valid=valid, count=60, words=WORDS, known={}):
        try:
            body = json.loads(request.body or b"null")
        except ValueError:
            assert not valid
            continue
        for key, text in texts(body):
            if key not in KEYS:
                assert text in WORDS[SCHEMA_OF.get(key, "Command")], request
                seen.add(key)
    assert seen >= set(SCHEMA_OF)


def test_the_same_requests_each_time_for_every_call_and_no_file_is_left(tmp_path) -> None:
    script = (
        "import sys; from sifproof.checks.protocol.generated import make_requests; "
        f"made = [make_requests(valid=valid, count=5, words={WORDS}, known={{}}) for valid in (True, False)]; "
        "print([(r.method, r.path, r.body) for rs in made for r in rs])"
    )
    ends = [
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert ends[0].stdout == ends[1].stdout
    assert ends[0].stderr == ""
    assert list(tmp_path.iterdir()) == []
    for path in ("/health", "/slots", "/execute", "/batch", "/reset", *(f"/artifacts/{c}" for c in ("read", "list"))):
        assert repr(path) in ends[0].stdout
    assert DESCRIPTION.exists()


def test_a_rule_that_loads_the_checks_does_not_pay_for_what_makes_requests() -> None:
    script = (
        "import sys; from sifproof.checks.engine import registry; registry.load(); print('schemathesis' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
