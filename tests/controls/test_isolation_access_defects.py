"""Servers that do what strangers ask: each way in turns its own checks red; who is to act is told."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import defects
import pytest
from catalogue import control
from placed import red, verdicts

from sifproof.errors import Fault
from sifproof.sandbox import tokens

HERE = Path(__file__).parent
SECOND = HERE.parent / "second_server"
SLOT, HOST = CHECKS = ("isolation.slot.server", "isolation.host.strangers")
POLICY = {"off": ["isolation.*"], "required": list(CHECKS)}
SERVERS = {n: d.red for n, d in defects.load().items() if d.plant.__module__ == "defects.isolation_access"}
WITHOUT_TOKEN = {"no-network-for-slots", "network-in-the-session-alone", "network-where-a-sandbox-is-required"}
IN_DOCKER = {"trusts-its-own-address"}
"""Elsewhere every address is the node's."""

OF_SOMEBODY_ELSE = {"binds": [f"{SECOND}:/second:ro"], "command": ["python3", "/second/server.py"]}
JOBS = {
    "no-token": ({"tokens": False}, CHECKS, "The config takes the token away (`tokens: false`)."),
    "no-token-docker": ({"tokens": False, "driver": "docker"}, CHECKS, "The same in Docker."),
    "no-token-in-anothers-server": (OF_SOMEBODY_ELSE, CHECKS, "A server of somebody else, which asks for no token."),
    "token-in-a-bind": ({"binds": ["{results}:/results:ro"]}, (SLOT,), "The folder of the run is bound."),
}
HEALTHY = {
    "with-token": {},
    "with-token-docker": {"driver": "docker"},
    "with-token-docker-nested": {"driver": "docker", "nested_sandboxes": True},
    "with-token-in-anothers-server": {**OF_SOMEBODY_ELSE, "tokens": True},
}
for _name, (_, _red, _sentence) in JOBS.items():
    control(_name, "server" if _name == "no-token-in-anothers-server" else "job", *_red, sentence=_sentence)


def settings_of(name: str) -> dict:
    if name in SERVERS:
        planted = {"binds": [f"{HERE}:/planted:ro"], "command": ["python3", "/planted/defects", name]}
        return {
            **planted,
            "tokens": name not in WITHOUT_TOKEN,
            "driver": "docker" if name in IN_DOCKER else "singularity",
        }
    return HEALTHY[name] if name in HEALTHY else JOBS[name][0]


@pytest.fixture(scope="module")
def seen(house):
    """The verdicts on each server: several at a time, for most of it is waiting."""

    def look(name: str) -> dict:
        settings = settings_of(name)
        binds = [bind.replace("{results}", str(house.run.results)) for bind in settings.get("binds", [])]
        with house.sandbox(name, policy=POLICY, **{**settings, "binds": binds}) as server:
            found = verdicts(server, ["isolation"])
            assert not server.placed.token or server.placed.token not in str(found)
            return found

    with ThreadPoolExecutor(3) as workers:
        yield {name: workers.submit(look, name) for name in (*HEALTHY, *SERVERS, *JOBS)}


@pytest.mark.parametrize("name", HEALTHY)
def test_who_has_no_token_gets_nothing(seen, name):
    found = seen[name].result()
    assert {check: v.message for check, v in found.items() if v.verdict != "pass"} == {}
    assert found.keys() == set(CHECKS)
    assert all(verdict.required and "401 at " in verdict.message for verdict in found.values()), found


@pytest.mark.parametrize("name", SERVERS)
def test_a_defect_of_the_server(seen, name):
    found = seen[name].result()
    assert red(found) == set(SERVERS[name]), found
    assert {v.verdict for v in found.values()} <= {"pass", "fail"}, found
    assert {found[check].fault for check in SERVERS[name]} == {Fault.IMAGE}


@pytest.mark.parametrize("name", JOBS)
def test_a_defect_of_the_job(seen, name):
    found = seen[name].result()
    assert red(found) == set(JOBS[name][1]), found
    # That somebody else's server asks for no token is no matter of the config's.
    blamed = Fault.IMAGE if name == "no-token-in-anothers-server" else Fault.CONFIGURATION
    assert {found[check].fault for check in JOBS[name][1]} == {blamed}


def test_each_way_in_is_told(seen):
    def said(name: str, check: str = SLOT) -> str:
        return seen[name].result()[check].message

    assert "bash_stateful: slot 1 read a file" in said("network-in-the-session-alone")
    assert "bash with require_sandbox: slot 1 read a file" in said("network-where-a-sandbox-is-required")
    assert "to [::1]:" in said("asks-for-no-token-in-ipv6")
    assert "emptied slot 0 by POST /reset" in said("resets-for-strangers")
    user = 65534 if os.geteuid() == 0 else os.geteuid()  # an ordinary one can't become another
    assert f"user {user} of the node read a file" in said("no-token", HOST)
    assert "can read the job's token: /results/" in said("token-in-a-bind")
    assert "connection refused" in said("no-network-for-slots")


def test_another_sandbox_on_the_node_gets_in_where_its_users_do_not(house, monkeypatch):
    """Each half of the check tells by itself."""
    with house.sandbox("neighbours", policy=POLICY, tokens=False) as server:
        monkeypatch.setattr(type(server.placed.node), "run", lambda *_, **__: "user\t65534\ntools\t bash\nend\t")
        found = verdicts(server, ["isolation"])[HOST]
    assert (found.verdict, "another sandbox read a file" in found.message) == ("fail", True), found
    assert not tokens.path_for(house.run.folder / "jobs" / "neighbours.json").exists()


def test_a_server_whose_token_the_config_does_not_give_is_no_broken_image(house):
    def asks(line: str) -> str:
        return f"{line} --token-sha256 {'0' * 64}"

    with house.sandbox("asks", line=asks, tokens=False) as server:
        found = verdicts(server, ["health"])
    assert red(found) == {"health.identity"}
    assert found["health.identity"].fault == Fault.CONFIGURATION
    assert "see `tokens` and `job_token`" in found["health.status"].message
