"""What is lost in the middle of a run is not blamed on the image; a server that dies is one finding."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from checkout import DEAD_ENGINE, SINGULARITY
from machines import Machines
from nomad_payload import new_id, shell_job, wait_until

from sifproof import host_tools
from sifproof.checks.engine import presence
from sifproof.checks.engine.presence import Watch
from sifproof.checks.engine.registry import Check, expect
from sifproof.checks.engine.runner import Context, run_checks
from sifproof.errors import Fault, SifproofError
from sifproof.nomad import client as nomad_client
from sifproof.nomad.client import NotFoundError
from sifproof.nomad.ports import claim_block
from sifproof.nomad.submit import submit, wait_for_allocations
from sifproof.sandbox.client import SandboxClient

SERVER = """
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/exit":
            sys.stderr.write("the slots are on fire\\n")
            sys.stderr.flush()
            os._exit(3)
        if self.path == "/eat":
            eaten = [bytearray(b"x" * (1 << 20)) for _ in range(1000)]
        body = json.dumps({"status": "ok", "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    made = Machines(tmp_path_factory.mktemp("machines"))
    (made.folder / "server.py").write_text(SERVER)
    try:
        made.start()
        yield made
    finally:
        made.close()


class Sandbox:
    """A server on the node, and the checks that look at it while something happens to it."""

    def __init__(self, machines, nomad, allocation) -> None:
        self.nomad, self.allocation = nomad, allocation
        self.watch = Watch(machines.connect, allocation, port=allocation.port, run="lost")
        self.client = SandboxClient(allocation.url, timeout_s=5.0, grace_s=0)
        self.client.on_silence = self.watch.unanswered

    @property
    def pid(self) -> int:
        return self.client.health()["pid"]

    def verdicts(self, happens):
        """The verdicts of a check before ``happens``, of the one in which it does, and of two after it."""

        def asks(_):
            return expect(self.client.health()["status"] == "ok")

        def meets(_):
            happens()
            return expect(True, "all is well")

        checks = [
            Check(f"bash.{name}", "It is so.", "why", "todo", function, once=True)
            for name, function in (("before", asks), ("meets", meets), ("after", asks), ("last", asks))
        ]
        context = Context("run", "box", "singularity", "node", self.allocation.id, io.StringIO())
        found = list(run_checks(checks, None, context, look=self.watch.look))
        assert (found[0].verdict, found[0].hindered) == ("pass", False)
        return found[1:]


@contextlib.contextmanager
def sandbox(machines, restarts=0):
    line = f'exec {sys.executable} {machines.folder}/server.py "$NOMAD_IP_http" "$NOMAD_PORT_http"'
    job = shell_job(new_id(), line)
    job["Job"]["TaskGroups"][0]["RestartPolicy"] = {
        "Attempts": restarts,
        "Delay": 0,
        "Interval": int(600e9),
        "Mode": "fail",
    }
    with machines.connect() as nomad:
        submit(nomad, job)
        try:
            (allocation,) = wait_for_allocations(nomad, job["Job"]["ID"], 1, 120)
            made = Sandbox(machines, nomad, allocation)
            wait_until(lambda: answers(allocation.url))
            yield made
        finally:
            nomad.deregister(job["Job"]["ID"], purge=True)


def answers(url):
    with contextlib.suppress(SifproofError):
        return SandboxClient(url).health()
    return None


def assert_lost(found, says):
    """It is told once, as the infrastructure's; nothing failed, and nothing after it was looked at."""
    assert [v.verdict for v in found] == ["not-measured"] * 3, found
    assert {(v.fault, v.hindered, v.required) for v in found} == {(Fault.INFRASTRUCTURE, True, True)}
    assert says in found[0].message
    assert {v.attempts for v in found[1:]} == {0}
    assert all(v.message.startswith("not looked at, because of what bash.meets met: ") for v in found[1:])


def assert_died(found, fault, *says):
    """The check at work tells what ended the server, and is the only one that failed."""
    assert [v.verdict for v in found] == ["fail", "not-measured", "not-measured"], found
    assert {(v.fault, v.hindered) for v in found} == {(fault, True)}
    for words in says:
        assert words in found[0].message


def test_a_node_whose_agent_is_killed(machines):
    with sandbox(machines) as box:

        def killed():
            machines.kill_agent()
            box.nomad.file(box.allocation.id, "/alloc")

        try:
            found = box.verdicts(killed)
            assert answers(box.allocation.url)  # what the agent started runs on
        finally:
            machines.start_agent()
    assert_lost(found, "node")


def test_a_node_whose_network_is_cut(machines):
    with sandbox(machines) as box:
        with contextlib.ExitStack() as keep:

            def cut():
                keep.enter_context(machines.cut())
                box.client.health()

            found = box.verdicts(cut)
        wait_until(lambda: [n for n in box.nomad.get("nodes") if n["Status"] == "ready"])
    assert_lost(found, "node")


def test_a_cluster_whose_server_answers_no_more(machines, monkeypatch):
    monkeypatch.setattr(presence, "_NOMAD_BACK_S", 0.5)
    monkeypatch.setattr(nomad_client, "_TIMEOUT_S", 1.0)
    with sandbox(machines) as box:
        with contextlib.ExitStack() as keep:

            def freeze():
                keep.enter_context(machines.frozen())
                box.nomad.get("nodes")

            found = box.verdicts(freeze)
        wait_until(lambda: [n for n in box.nomad.get("nodes") if n["Status"] == "ready"])
    assert_lost(found, "did not answer")


def test_a_server_that_somebody_kills_is_not_the_images(machines):
    with sandbox(machines) as box:
        pid = box.pid

        def killed():
            os.kill(pid, signal.SIGKILL)
            box.client.health()

        assert_lost(box.verdicts(killed), "was killed, Nomad does not know by whom")


def test_a_server_that_ends_by_itself_is_one_finding(machines):
    with sandbox(machines) as box:
        found = box.verdicts(lambda: box.client.request("GET", "/exit"))
    assert_died(found, Fault.IMAGE, "ended by itself", "exit code 3", "the slots are on fire")


def test_a_server_that_takes_more_memory_than_its_job_has_is_one_finding(machines):
    with sandbox(machines) as box:
        found = box.verdicts(lambda: box.client.request("GET", "/eat"))
    assert_died(found, Fault.CONFIGURATION, "The kernel ended the server", "Raise memory")


def test_a_server_that_hangs_is_one_finding(machines, monkeypatch):
    monkeypatch.setattr(presence, "_HANGS_S", 0.5)
    with sandbox(machines) as box:
        pid = box.pid

        def stopped():
            os.kill(pid, signal.SIGSTOP)
            box.client.health()

        try:
            found = box.verdicts(stopped)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert_died(found, Fault.IMAGE, "hangs")


def test_a_server_that_was_started_again_is_noticed_though_the_new_one_answers(machines):
    with sandbox(machines, restarts=3) as box:
        before = box.pid

        def again():
            with contextlib.suppress(presence.Lost):
                box.client.on_silence = lambda: None
                with contextlib.suppress(SifproofError):
                    box.client.request("GET", "/exit")
            wait_until(lambda: (answers(box.allocation.url) or {}).get("pid", before) != before)

            def told():
                events = box.nomad.get("allocation", box.allocation.id)["TaskStates"]["server"]["Events"]
                return "Terminated" in [event["Type"] for event in events]

            wait_until(told)

        found = box.verdicts(again)
        noticed = next(v for v in found if v.verdict == "fail")
        assert "Nomad started it again" in noticed.message
        assert "the slots are on fire" in noticed.message
        assert [v.verdict for v in found if v.verdict not in ("pass", "fail")] == ["not-measured"] * (
            2 - found.index(noticed)
        )


def test_a_restart_that_was_asked_for_is_no_loss(machines):
    with sandbox(machines) as box:
        before = box.pid

        def restart():
            box.nomad.restart(box.allocation.id, box.allocation.task)
            with box.watch.silence_expected():
                wait_until(lambda: (answers(box.allocation.url) or {}).get("pid", before) != before)

        assert [v.verdict for v in box.verdicts(restart)] == ["pass"] * 3


def test_a_node_that_takes_nothing_is_told_where_the_others_are_full_and_the_advice_has_the_job_placed(machines):
    block = claim_block()
    job = shell_job(new_id(), "exec sleep 600", port=block.static[0], count=2)
    nomad = host_tools.require("nomad").path
    environment = {
        **os.environ,
        "PATH": f"{nomad.parent}:{os.environ['PATH']}",
        "NOMAD_ADDR": machines.address,
    }
    with machines.another(), machines.connect() as client:
        (other,) = [n["ID"] for n in client.get("nodes") if n["Name"] == "other" and n["Status"] == "ready"]
        drained = [nomad, "node", "eligibility", "-disable", other]
        subprocess.run(drained, env=environment, check=True, capture_output=True)
        submit(client, job)
        try:
            with pytest.raises(SifproofError) as caught:
                wait_for_allocations(client, job["Job"]["ID"], 2, 60)
            assert "reserved by another allocation" in caught.value.why
            assert "other, which is not eligible" in caught.value.why
            subprocess.run(
                ["/bin/sh", "-c", caught.value.todo.split("`")[1]], env=environment, check=True, capture_output=True
            )
            wait_until(lambda: len(running(client, job["Job"]["ID"])) == 2)
        finally:
            client.deregister(job["Job"]["ID"], purge=True)
            wait_until(lambda: not running(client, job["Job"]["ID"]))
            block.lock.close()


def running(client, job_id):
    with contextlib.suppress(NotFoundError):
        return [one for one in client.get("job", job_id, "allocations") if one["ClientStatus"] == "running"]
    return []


def test_a_run_that_loses_its_node_says_so_once_and_rejects_nothing(machines, checkout):
    started = checkout.start(
        *SINGULARITY, "suites=health,bash,files,protocol", **DEAD_ENGINE, NOMAD_ADDR=machines.address
    )
    try:
        started.reached("singularity.bash.log")
        machines.kill_agent()
        outcome = started.wait()
    finally:
        started.end()
        machines.start_agent()
    assert outcome.exit_code == 3, outcome
    assert outcome.red() == set()
    assert outcome.verdict["sentence"].startswith("Infrastructure at fault, the image is not judged: ")
    assert "node" in outcome.verdict["sentence"]
    told = [r for r in outcome.verdict["reasons"] if not r["follows"]]
    assert len(told) == 1, json.dumps(told, indent=2)
