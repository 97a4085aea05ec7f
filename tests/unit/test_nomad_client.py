"""What reaches Nomad, seen from a server that records it; and what a person is told when Nomad can't be reached."""

import base64
import socket

import pytest

from sifproof import config
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.client import Client, NotFoundError, RejectedError, UnreadableFileError, connect
from sifproof.nomad.cluster import Cluster

TOKEN = "7a6d1f52-secret"


def test_an_address_that_is_given_wins_over_the_environment(nomad, monkeypatch):
    monkeypatch.setenv("NOMAD_ADDR", "http://127.0.0.1:1")
    with connect(nomad.address) as client:
        assert client.get("jobs") == []


def test_settings_come_from_nomads_variables(nomad):
    variables = {"NOMAD_ADDR": nomad.address, "NOMAD_TOKEN": TOKEN, "NOMAD_NAMESPACE": "ai", "NOMAD_REGION": "eu"}
    nomad.answers = (200, {"ID": "abc"})
    with connect(environment=variables) as client:
        client.get("evaluation", "abc")
    ((_, path, headers, _),) = nomad.seen
    assert path.startswith("/v1/evaluation/abc?")
    assert "namespace=ai" in path
    assert "region=eu" in path
    assert headers["X-Nomad-Token"] == TOKEN


def test_a_local_agent_gets_no_token_of_the_environment(nomad, monkeypatch):
    monkeypatch.setenv("NOMAD_TOKEN", TOKEN)
    with connect(nomad.address, environment={}) as client:
        client.get("jobs")
    assert "X-Nomad-Token" not in nomad.seen[0][2]


def test_loopback_is_not_asked_through_a_proxy(nomad, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with connect(nomad.address) as client:
        assert client.get("jobs") == []


def test_blocking_query_hands_index_and_wait_on(nomad):
    with connect(nomad.address, environment={}) as client:
        assert client.wait_for_change("job", "j", "allocations", index=7, wait_s=2.5) == ([], 42)
    path = nomad.seen[0][1]
    assert "index=7" in path
    assert "wait=2500ms" in path


@pytest.mark.parametrize("bad", ["a/b", "a?b", "a#b", "..", ".", "", "a b", "ä", "a%2fb"])
def test_an_id_that_would_change_the_path_is_refused(nomad, bad):
    with connect(nomad.address, environment={}) as client:
        for call in (
            lambda: client.get("job", bad),
            lambda: client.deregister(bad, purge=True),
            lambda: client.logs(bad, "server"),
            lambda: client.file(bad, "/x"),
        ):
            with pytest.raises(SifproofError, match="can't be a"):
                call()
    assert nomad.seen == []


def test_deregister_purges_and_does_not_mind_a_job_that_is_gone(nomad):
    nomad.answers = (404, b"job not found")
    with connect(nomad.address, environment={}) as client:
        client.deregister("j", purge=True)
    method, path, _, _ = nomad.seen[0]
    assert method == "DELETE"
    assert path.startswith("/v1/job/j?")
    assert "purge=true" in path


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ((400, b"Task server: bad driver"), RejectedError, "bad driver"),
        ((403, b"Permission denied"), SifproofError, "NOMAD_TOKEN to a token whose policy has"),
        ((404, b"alloc not found"), NotFoundError, "alloc not found"),
        ((500, b"No cluster leader"), SifproofError, "has no leader"),
        ((500, b"rpc error: strange"), SifproofError, "HTTP 500, rpc error: strange"),
        ((400, b"Client sent an HTTP request to an HTTPS server."), SifproofError, "https://"),
    ],
)
def test_refusals_are_told_in_words(nomad, answer, kind, says):
    nomad.answers = answer
    with connect(nomad.address, token=TOKEN, environment={}) as client, pytest.raises(kind) as caught:
        client.get("allocation", "abc")
    assert says in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_an_address_where_nobody_listens_is_told():
    with connect("http://127.0.0.1:1", token=TOKEN, environment={}) as client, pytest.raises(SifproofError) as caught:
        client.get("jobs")
    assert "can't be reached at http://127.0.0.1:1: Connection refused" in str(caught.value)
    assert "NOMAD_ADDR" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_name_that_does_not_exist_is_told():
    with connect("http://nomad.invalid:4646", environment={}) as client, pytest.raises(SifproofError) as caught:
        client.get("jobs")
    assert "can't be reached at http://nomad.invalid:4646" in str(caught.value)


def test_tls_to_a_server_without_it_is_told(nomad):
    address = nomad.address.replace("http:", "https:")
    with connect(address, environment={}) as client, pytest.raises(SifproofError) as caught:
        client.get("jobs")
    assert "NOMAD_CACERT" in str(caught.value)


def test_passwords_in_an_address_are_not_repeated():
    client = Client(f"http://user:{TOKEN}@127.0.0.1:1")
    with pytest.raises(SifproofError) as caught:
        client.get("jobs")
    assert TOKEN not in str(caught.value)
    with pytest.raises(SifproofError) as caught:
        Client(f"ftp://user:{TOKEN}@host")
    assert TOKEN not in str(caught.value)


def test_a_password_in_the_address_is_used_by_every_stage_and_written_by_none(nomad, monkeypatch):
    with_password = nomad.address.replace("//", f"//user:{TOKEN}@")
    monkeypatch.setenv("NOMAD_ADDR", f"{with_password}/")
    with connect() as client:
        cluster = Cluster(address=client.address, version="1.11.2", local=False)
    assert TOKEN not in cluster.model_dump_json()
    for settings in (config.Nomad(), config.Nomad(address=with_password)):
        with cluster.connect(settings) as client:
            client.get("jobs")
        sent = nomad.seen[-1][2]["Authorization"].removeprefix("Basic ")
        assert base64.b64decode(sent).decode() == f"user:{TOKEN}"


def test_a_password_is_not_sent_to_another_cluster(nomad, monkeypatch):
    monkeypatch.setenv("NOMAD_ADDR", f"http://user:{TOKEN}@127.0.0.1:1")
    with Cluster(address=nomad.address, version="", local=False).connect(config.Nomad()) as client:
        client.get("jobs")
    assert "Authorization" not in nomad.seen[0][2]


@pytest.mark.parametrize(("hostname", "here"), [(socket.gethostname(), True), ("another", False), (None, False)])
def test_what_loopback_leads_to_is_here_where_it_has_our_name(nomad, hostname, here):
    nodes = [{"ID": "n1", "Status": "ready"}, {"ID": "n2", "Status": "down"}]
    nomad.by_path = {
        "/v1/nodes": (200, nodes),
        "/v1/node/n1": (200, {"Attributes": {"unique.hostname": hostname} if hostname else {}}),
    }
    assert Cluster(address=nomad.address, version="", local=False).is_here(config.Nomad()) is here


def test_a_cluster_elsewhere_is_not_asked_whether_it_is_here():
    assert not Cluster(address="https://nomad.invalid:4646", version="", local=False).is_here(config.Nomad())


@pytest.mark.parametrize("address", ["127.0.0.1:4646", "unix:///run/nomad.sock", "nomad", "http://"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(SifproofError, match="no address") as caught:
        connect(address, environment={})
    assert caught.value.fault is Fault.CONFIGURATION


@pytest.mark.parametrize(
    ("variables", "verify"),
    [
        ({}, True),
        ({"NOMAD_SKIP_VERIFY": ""}, True),
        ({"NOMAD_SKIP_VERIFY": "false"}, True),
        ({"NOMAD_SKIP_VERIFY": "true"}, False),
        ({"NOMAD_CACERT": __file__}, __file__),
    ],
)
def test_certificates_are_verified_unless_told_otherwise(variables, verify):
    client = connect("https://nomad.invalid:4646", environment=variables)
    assert client.get.__self__._endpoints["job"].verify == verify


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"NOMAD_CACERT": "/no/such.pem"}, "NOMAD_CACERT names /no/such.pem: there is no such file"),
        ({"NOMAD_CLIENT_CERT": __file__}, "belong together"),
        ({}, "no address"),
    ],
)
def test_settings_that_cannot_work_are_told_before_anything_is_sent(variables, says):
    address = None if not variables else "https://nomad.invalid:4646"
    with pytest.raises(SifproofError, match=says) as caught:
        connect(address, environment=variables)
    assert caught.value.fault is Fault.CONFIGURATION


@pytest.mark.parametrize(
    ("stat", "content", "said"),
    [
        ({"FileMode": "-rw-r--r--", "Size": 10**12}, b"", r"is not read: 1000000000000 bytes, 1048576 at most"),
        ({"FileMode": "-rw-r--r--", "Size": 2}, b"x" * (2**20 + 1), r"is not read: 1048577 bytes, 1048576 at most"),
        ({"FileMode": "prw-r--r--", "Size": 0}, b"", r"is no ordinary file: prw-r--r--"),
    ],
)
def test_a_file_of_a_task_is_read_within_bounds(nomad, stat, content, said):
    nomad.by_path = {"/v1/client/fs/stat/abc": (200, stat), "/v1/client/fs/readat/abc": (200, content)}
    with connect(nomad.address, environment={}) as client, pytest.raises(UnreadableFileError, match=said) as raised:
        client.file("abc", "/alloc/data/x")
    assert raised.value.fault is Fault.IMAGE
    reads = [path for _, path, _, _ in nomad.seen if "readat" in path]
    assert ["limit=1048577" in path for path in reads] == [True] * bool(content)
