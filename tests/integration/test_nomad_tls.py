"""A cluster that speaks TLS and asks for a client's certificate: it is told whose is wrong, and what mends it."""

import json
import os
import subprocess

import pytest
from nomad_payload import clear_away, end_agent

from sifproof import host_tools
from sifproof.errors import Fault, SifproofError
from sifproof.nomad import nodes
from sifproof.nomad.agent import local
from sifproof.nomad.client import connect
from sifproof.nomad.ports import MARK, claim_block


def made(folder, *words):
    """Certificates as Nomad makes them, in ``folder``: an authority, and one for each of ``words``."""
    for line in ("ca create", *(f"cert create -{word}" for word in words)):
        subprocess.run(
            [host_tools.require("nomad").path, "tls", *line.split()], cwd=folder, check=True, capture_output=True
        )
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder with the authority of the cluster, and what it signed."""
    return made(tmp_path_factory.mktemp("own"), "server", "client", "cli")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """That of another authority."""
    return made(tmp_path_factory.mktemp("other"), "cli")


@pytest.fixture(scope="module")
def tls(own, tmp_path_factory):
    """The variables of one who may talk to the agent."""
    folder = tmp_path_factory.mktemp("tls")
    block = claim_block()
    http, rpc, serf = block.agent
    additions = {
        "data_dir": str(folder / "data"),
        "ports": {"http": http, "rpc": rpc, "serf": serf},
        "client": {"min_dynamic_port": block.dynamic[0], "max_dynamic_port": block.dynamic[1]},
        "tls": {
            "http": True,
            "verify_https_client": True,
            "ca_file": str(own / "nomad-agent-ca.pem"),
            "cert_file": str(own / "global-server-nomad.pem"),
            "key_file": str(own / "global-server-nomad-key.pem"),
        },
    }
    (folder / "tls.json").write_text(json.dumps(additions))
    nomad = host_tools.require("nomad").path
    with (folder / "log").open("w") as log:
        agent = subprocess.Popen(
            [nomad, "agent", "-dev", f"-config={local.CONFIGURATION}", f"-config={folder / 'tls.json'}"],
            env={**host_tools.environment(), MARK: f"{folder}/"},
            stdout=log,
            stderr=log,
        )
    variables = {
        "NOMAD_ADDR": f"https://127.0.0.1:{http}",
        "NOMAD_CACERT": str(own / "nomad-agent-ca.pem"),
        "NOMAD_CLIENT_CERT": str(own / "global-cli-nomad.pem"),
        "NOMAD_CLIENT_KEY": str(own / "global-cli-nomad-key.pem"),
    }
    try:
        _wait_ready(variables, agent)
        yield variables
    finally:
        end_agent(agent)
        left = clear_away(folder)
        block.lock.close()
    assert left == []


def _wait_ready(variables, agent):
    while True:
        assert agent.poll() is None
        try:
            with connect(environment=variables) as client:
                nodes.wait_for_node_ready(client, 60)
            return
        except SifproofError as error:
            assert "can't be reached" in str(error) or "leader" in str(error), error


def told(variables, **changes) -> SifproofError:
    """What asking with ``changes`` comes to."""
    with pytest.raises(SifproofError) as caught, connect(environment={**variables, **changes}) as client:
        client.get("nodes")
    return caught.value


def test_what_tls_refuses_is_told_by_whose_certificate_it_is(tls, other, tmp_path):
    certificate, key = str(other / "global-cli-nomad.pem"), str(other / "global-cli-nomad-key.pem")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing\n")
    theirs = {"NOMAD_CLIENT_CERT": certificate, "NOMAD_CLIENT_KEY": key}
    for change, says, todo in (
        ({"NOMAD_CACERT": str(other / "nomad-agent-ca.pem")}, "can't be trusted", "set NOMAD_CACERT to"),
        ({"NOMAD_CLIENT_CERT": "", "NOMAD_CLIENT_KEY": ""}, "asks for a client's certificate", "set NOMAD_CLIENT_CERT"),
        (theirs, "does not take the client's certificate", "NOMAD_CLIENT_CERT"),
        ({"NOMAD_CLIENT_KEY": key}, "not the key of", "one certificate"),
        ({"NOMAD_CACERT": str(nothing)}, "NOMAD_CACERT names a file that holds no certificate", "NOMAD_CACERT"),
        ({"NOMAD_CLIENT_CERT": str(nothing)}, "names a file that holds none", "NOMAD_CLIENT_CERT"),
        ({"NOMAD_TLS_SERVER_NAME": "server.mars.nomad"}, "is for another name", "NOMAD_TLS_SERVER_NAME"),
        ({"NOMAD_ADDR": tls["NOMAD_ADDR"].replace("https", "http")}, "speaks TLS only", "https://"),
    ):
        error = told(tls, **change)
        assert says in error.what, error
        assert todo in error.todo, error


def test_the_advice_on_a_name_and_on_a_scheme_leads_to_nomad(tls):
    for address, change in (
        (told(tls, NOMAD_ADDR=tls["NOMAD_ADDR"].replace("https", "http")).todo.split()[1], {}),
        ("https://", {"NOMAD_TLS_SERVER_NAME": "server.global.nomad"}),
    ):
        given = tls["NOMAD_ADDR"].replace("https://", address)
        with connect(environment={**tls, **change, "NOMAD_ADDR": given}) as client:
            assert client.get("nodes")


def test_an_expired_certificate_of_the_client_is_told_as_that(tls, own, tmp_path):
    expired = _expired(own, tmp_path)
    error = told(tls, NOMAD_CLIENT_CERT=str(expired), NOMAD_CLIENT_KEY=str(expired.with_suffix(".key")))
    assert "the client's certificate has expired" in error.what
    assert "NOMAD_CACERT" not in error.todo
    assert error.fault is Fault.CONFIGURATION
    shown = subprocess.run(
        ["/bin/sh", "-c", error.todo.split("`")[1]],
        env={**os.environ, "NOMAD_CLIENT_CERT": str(expired)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "notAfter=Jan  2 00:00:00 2020" in shown


def _expired(authority, folder):
    """A certificate of ``authority`` that ended in 2020; its key lies beside it."""
    (folder / "index").touch()
    (folder / "serial").write_text("01\n")
    (folder / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index\nserial={folder}/serial\nnew_certs_dir={folder}\n"
        "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n"
    )
    ca = f"-cert {authority}/nomad-agent-ca.pem -keyfile {authority}/nomad-agent-ca-key.pem"
    for line in (
        "req -newkey rsa:2048 -nodes -keyout cli.key -subj /CN=cli.global.nomad -out cli.csr",
        f"ca -batch -config ca.cnf {ca} -in cli.csr -out cli.pem -notext "
        "-startdate 20200101000000Z -enddate 20200102000000Z",
    ):
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True)
    return folder / "cli.pem"
