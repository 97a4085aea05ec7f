"""Whatever comes in Nomad's place is told in a sentence, without a secret, and with advice that can be followed."""

import gzip
import json
import os
import re
import subprocess

import pytest

from sifproof import cli, config, run
from sifproof.errors import Fault, SifproofError
from sifproof.nomad import session
from sifproof.nomad.agent import local
from sifproof.nomad.client import ForbiddenError, NotFoundError, UnreachableError, connect
from sifproof.workflow import plan

TOKEN = "7a6d1f52-secret"
PAGE = b"<!doctype html><title>Sign in</title><script>alert(1)</script><p>with your <b>badge</b>"
HTML = {"Content-Type": "text/html; charset=utf-8"}


def told(address=None, *path, **variables) -> SifproofError:
    """What asking for ``path`` (the nodes) comes to, which has no secret in it."""
    with pytest.raises(SifproofError) as caught, connect(address, environment=variables) as client:
        client.get(*path or ("nodes",))
    assert TOKEN not in str(caught.value)
    return caught.value


# -- what is no token, and no address ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (f"{TOKEN}\r", "character 16 of 16 is a carriage return"),
        (f" {TOKEN}", "character 1 of 16 is a blank"),
        (f"{TOKEN}\n", "a line feed"),
        (f"{TOKEN}€", "none that a token may have"),
        (f"\ufeff{TOKEN}", "none that a token may have"),
    ],
)
def test_what_is_no_token_is_told_and_not_shown(token, says):
    error = told("http://127.0.0.1:1", NOMAD_TOKEN=token)
    assert says in str(error)
    assert error.fault is Fault.CONFIGURATION


@pytest.mark.parametrize("end", ["\r", "\r\n", " ", "\t"])
def test_the_advice_on_a_token_mends_it(nomad, end):
    command = told(nomad.address, NOMAD_TOKEN=TOKEN + end).todo.partition(": ")[2]
    mended = subprocess.run(
        ["/bin/sh", "-c", f'{command}; printf %s "$NOMAD_TOKEN"'],
        env={**os.environ, "NOMAD_TOKEN": TOKEN + end},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with connect(nomad.address, token=mended, environment={}) as client:
        client.get("jobs")
    assert nomad.seen[-1][2]["X-Nomad-Token"] == TOKEN


@pytest.mark.parametrize(
    "address",
    [
        f"user:{TOKEN}@host:4646",
        f"user:{TOKEN}@host",
        f"http://user:{TOKEN}/x@host:4646",
        f"http://user:{TOKEN}@[::1:4646",
        f"http://user:{TOKEN}@host:99999",
        f"http://user:{TOKEN}@host:4646?token={TOKEN}",
        f"http://user:{TOKEN}@a..b:4646",
        f"http://user:{TOKEN}@{'a' * 64}:4646",
        f"http://user:{TOKEN}@host:4646\r",
        "http://[::1:4646",
    ],
)
def test_what_is_no_address_is_told_without_its_password(address):
    error = told(address)
    assert "no address of a Nomad API" in str(error)
    assert error.fault is Fault.CONFIGURATION


def test_the_config_does_not_show_an_address_that_is_none():
    with pytest.raises(SifproofError, match=r"nomad\.address: a URL such as") as caught:
        config.load({"sandboxes": {"box": {"driver": "singularity"}}, "nomad": {"address": f"user:{TOKEN}@host"}})
    assert TOKEN not in str(caught.value)


# -- what is not Nomad ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, PAGE, HTML), "HTTP 200, text/html, 'Sign in with your badge'"),
        ((200, b"", {}), "HTTP 200, no type, ''"),
        ((200, b"[" * 100_000, {}), "HTTP 200"),
        ((200, {"nodes": []}, {}), "'{\"nodes\": []}'"),
        ((200, ["n1"], {}), "'[\"n1\"]'"),
        ((204, b"", {}), "HTTP 204"),
        ((403, PAGE, HTML), "HTTP 403, text/html, 'Sign in"),
        ((403, b"blocked by the firewall", {"Content-Type": "text/plain"}), "'blocked by the firewall'"),
        ((404, b"404 page not found", {}), "404 page not found"),
        ((401, PAGE, HTML), "HTTP 401"),
        ((502, PAGE, HTML), "HTTP 502"),
        (
            (302, b"", {"Location": f"https://user:{TOKEN}@login.example.org/in?t={TOKEN}"}),
            "https://login.example.org/in",
        ),
    ],
)
def test_an_answer_that_is_not_nomads_is_told_as_such(nomad, answer, says):
    nomad.answers = answer
    error = told(nomad.address, NOMAD_TOKEN=TOKEN)
    assert isinstance(error, UnreachableError)
    assert "does not answer as Nomad does" in str(error)
    assert says in str(error)
    assert "policy has" not in str(error)
    assert error.fault is Fault.INFRASTRUCTURE


def test_a_token_follows_no_redirect(nomad):
    nomad.answers = (307, b"", {"Location": f"{nomad.address}/elsewhere"})
    with connect(nomad.address, token=TOKEN, environment={}) as client:
        for call in (
            lambda: client.get("jobs"),
            lambda: client.register({"Job": {"ID": "j"}}),
            lambda: client.deregister("j", purge=True),
            lambda: client.restart("a", "server"),
        ):
            with pytest.raises(UnreachableError, match="does not answer as Nomad does"):
                call()
    assert {path.partition("?")[0] for _, path, _, _ in nomad.seen} == {
        "/v1/jobs",
        "/v1/job/j",
        "/v1/client/allocation/a/restart",
    }


@pytest.mark.parametrize("answer", [(404, PAGE, HTML), (200, PAGE, HTML)])
def test_a_page_is_no_word_that_a_job_is_gone_or_a_file_read(nomad, answer):
    nomad.answers = answer
    with connect(nomad.address, environment={}) as client:
        for call in (
            lambda: client.deregister("j", purge=True),
            lambda: client.file("a", "/x"),
            lambda: client.checks("a"),
        ):
            with pytest.raises(UnreachableError):
                call()


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"\x1f\x8bgarbage", {"Content-Encoding": "gzip"}),
        (200, b"[]", {"Content-Length": "7000"}),
    ],
)
def test_an_answer_that_comes_to_no_end_is_told(nomad, answer):
    nomad.answers = answer
    error = told(nomad.address, NOMAD_TOKEN=TOKEN)
    assert error.what.startswith(("The talk with Nomad", "Nomad can't be reached", "What answers"))


def test_an_answer_of_any_size_is_bounded(nomad, monkeypatch):
    monkeypatch.setattr(session, "MAX_ANSWER_BYTES", 1 << 20)
    nomad.answers = (200, gzip.compress(b" " * (2 << 20)), {"Content-Encoding": "gzip"})
    assert "more than 1048576 bytes" in str(told(nomad.address))


def test_a_blocking_query_without_an_index_is_not_asked_again_at_once(nomad):
    nomad.answers = (200, [], {"X-Nomad-Index": ""})
    with connect(nomad.address, environment={}) as client, pytest.raises(UnreachableError):
        client.wait_for_change("nodes")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((404, b"No path to node. Please try again later."), UnreachableError),
        ((500, b"rpc error: EOF"), UnreachableError),
        ((500, b"No cluster leader"), UnreachableError),
        ((503, b"busy"), UnreachableError),
        ((404, b"alloc not found"), NotFoundError),
        ((403, b"Permission denied"), ForbiddenError),
        ((403, b"ACL token not found"), ForbiddenError),
    ],
)
def test_a_node_that_is_cut_off_is_no_file_that_is_missing(nomad, answer, kind):
    nomad.answers = answer
    with connect(nomad.address, environment={}) as client, pytest.raises(SifproofError) as caught:
        client.file("abc", "/alloc/data/x")
    assert type(caught.value) is kind


# -- advice --------------------------------------------------------------------------------------------------------


def test_the_advice_on_an_address_with_a_path_leads_to_nomad(nomad):
    nomad.answers, nomad.by_path = (200, PAGE, HTML), {"/v1/nodes": (200, [])}
    advised = re.search(r"http://\S+(?=,)", told(f"{nomad.address}/ui").todo)[0]
    with connect(advised, environment={}) as client:
        assert client.get("nodes") == []


@pytest.fixture
def proxied(nomad, monkeypatch):
    """An address for which a proxy is used; its password, as long as what answers there is no proxy."""
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    proxy = nomad.address.replace("//", f"//user:{TOKEN}@")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    # This machine by a name that is not known for it.
    return nomad.address.replace("127.0.0.1", "0.0.0.0")


def test_what_a_proxy_refuses_is_not_nomads_word_and_the_advice_leads_past_it(nomad, proxied, monkeypatch):
    nomad.by_path = {"/v1/nodes": (200, [])}
    nomad.answers = (403, PAGE, HTML)  # to the proxy the path is the whole address
    error = told(proxied)
    assert f"{nomad.address} stands between" in error.todo
    name, value = error.todo.rpartition("export ")[2].split("=")
    monkeypatch.setenv(name, value)
    with connect(proxied, environment={}) as client:
        assert client.get("nodes") == []


def test_a_proxy_that_makes_no_way_to_tls_is_told_as_one(nomad, proxied):
    nomad.answers = (403, PAGE, HTML)
    error = told(proxied.replace("http:", "https:"))
    assert error.what.startswith(f"The proxy {nomad.address} leads to no Nomad at ")


def test_nobody_is_sent_to_an_address_for_an_agent_that_the_run_started(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with local.connect_to("http://127.0.0.1:1", tmp_path) as client, pytest.raises(UnreachableError) as caught:
        client.get("nodes")
    assert "The Nomad agent that the run started does not answer" in str(caught.value)
    assert "NOMAD_ADDR" not in str(caught.value)
    assert "nomad-agent.log" in caught.value.todo


# -- every command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "tells"),
    [
        ({}, (3, "does not answer as Nomad does")),
        ({"NOMAD_TOKEN": f"{TOKEN}\r"}, (2, "carriage return")),
        ({"NOMAD_ADDR": f"user:{TOKEN}@host:4646"}, (2, "no address")),
        ({"NOMAD_ADDR": "http://[::1:4646"}, (2, "no address")),
    ],
)
def test_every_command_tells_it(nomad, monkeypatch, capsys, variables, tells):
    nomad.answers = (200, PAGE, HTML)
    code, says = tells
    for name, value in {"NOMAD_ADDR": nomad.address, "NOMAD_TOKEN": TOKEN, **variables}.items():
        monkeypatch.setenv(name, value)
    for words in (["doctor", "--config", "driver=singularity"], ["doctor", "--json"], ["sweep", "--all"]):
        assert cli.main(words) == code
        out, err = capsys.readouterr()
        assert says in out + err
        assert TOKEN not in out + err
    settings = config.load({"sandboxes": {"box": {"driver": "singularity"}}})
    with pytest.raises(SifproofError) as caught:
        plan.make_plan(settings, run.Run(run.new_id()))
    assert caught.value.fault.exit_code == code
    assert TOKEN not in json.dumps(caught.value.args)
