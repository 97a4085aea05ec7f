"""A server that nobody of this project would know, written from the protocol alone, is judged as the reference is."""

from pathlib import Path

from placed import verdicts

from sifproof import config
from sifproof.checks.engine import registry

SERVER = Path(__file__).parents[1] / "second_server"


def test_a_server_of_somebody_else_passes_every_check_of_what_it_has(house):
    """All suites, on the same image: only the server differs."""
    settings = {"binds": [f"{SERVER}:/second:ro"], "command": ["python3", "/second/server.py"]}
    with house.sandbox("second", tokens=True, **settings) as server:
        found = verdicts(server, config.SUITES)
    others = [
        f"{v.verdict} {check}: {v.message}" for check, v in found.items() if v.verdict not in ("pass", "measured")
    ]
    stateful = [check.id for check in registry.of_suite("stateful")] + ["bubblewrap.require-stateful-sandbox"]
    reason = "the server has no tool `bash_stateful`, which is optional"
    # Advisory: the protocol does not say that it stays.
    tmp = "fail bash.tmp-kept: a file that the command before left there: success=False, output="
    expected = [tmp, *(f"not-measured {check}: {reason}" for check in stateful)]
    assert sorted(line.partition("'")[0] for line in others) == sorted(expected)
