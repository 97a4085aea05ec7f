"""Jobs on a real local agent: placed, told why not, stopped, and what is left of them."""

import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import requests
from checkout import command_line, environ
from nomad_payload import BINDS, COMMAND, LISTEN, build_sif, local_agent, new_id, shell_job, wait_until

from sifproof import config, host_tools
from sifproof.errors import Fault, SifproofError
from sifproof.nomad import job as jobs
from sifproof.nomad import nodes, static_port, submit, sweep, teardown
from sifproof.nomad.agent import supervisor
from sifproof.nomad.allocations import get_job_allocations
from sifproof.nomad.client import NotFoundError, RejectedError, UnreadableFileError
from sifproof.nomad.node import leftovers
from sifproof.nomad.node.userns import needs_userns
from sifproof.run import Run
from sifproof.workflow.plan import make_plan

TOKENS = {"NOMAD_TOKEN": "t0", "HF_TOKEN": "t1", "GITHUB_TOKEN": "t2", "AWS_SECRET_ACCESS_KEY": "t3", "SLURM_JWT": "t4"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Settings of Apptainer's that would keep every sandbox from its start.
        hostile = {"APPTAINER_FAKEROOT": "1", "SINGULARITY_CONFIG_FILE": "/nowhere", "LD_PRELOAD": "/nowhere.so"}
        given = {**TOKENS, **hostile, "APPTAINERENV_LEAK": "t5", "DOCKER_HOST": "unix:///no/engine.sock"}
        for name, value in given.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("nomad")
        with local_agent(folder) as started:
            yield started
        assert list(folder.glob("*/")) == []


@pytest.fixture
def client(agent):
    with agent.connect() as connected:
        yield connected
        for left in connected.get("jobs"):
            connected.deregister(left["ID"], purge=True)
        assert leftovers.wait_unmounted(f"{agent.directory}/data/alloc", 60) == []


@pytest.fixture(scope="module")
def sif(tmp_path_factory):
    return build_sif(tmp_path_factory.mktemp("sif"))


def run(client, job, count=1, deadline_s=60.0):
    submit.submit(client, job)
    return submit.wait_for_allocations(client, job["Job"]["ID"], count, deadline_s)


def stop(client, job_id, folder, **arguments):
    return teardown.stop_and_verify(client, job_id, collect=folder / "collected", **{"deadline_s": 60.0, **arguments})


def sandbox(job_id, sif, **changes):
    arguments = {"command": COMMAND, "binds": BINDS, "userns": needs_userns(), "kill_timeout_s": 30, **changes}
    return jobs.create_sandbox_job(job_id, str(sif), **arguments)


def test_hcl_is_parsed_by_nomad(client):
    text = 'variable "dc" { type = string }\njob "a" { datacenters = [var.dc] }'
    tricky = 'two "words", ${dollars} and a \\ '
    assert client.parse_job(text, {"dc": tricky})["Datacenters"] == [tricky]
    for wrong in (text, "job {", "nothing"):
        with pytest.raises(RejectedError) as raised:
            client.parse_job(wrong, {})
        assert raised.value.fault is Fault.CONFIGURATION


def token_of(agent):
    return (agent.directory / "token").read_text()


def answer(allocation):
    def ask():
        try:
            return requests.get(allocation.url, timeout=30).json()
        except requests.ConnectionError:
            return None

    return wait_until(ask)


def test_a_sandbox_runs_contained_and_is_gone_after_the_stop(client, sif, tmp_path):
    job_id = new_id()
    words = ["a b", "$(id)", "${node.unique.id}", "%{x}", "q'\"", "$HOME"]
    port = static_port.pick_static_port(client, "dc1")
    (allocation,) = run(
        client, sandbox(job_id, sif, port=port, command=[*COMMAND, *words], environment={"GREETING": "a,b=$(id) 'c'"})
    )
    assert allocation.port == port
    said = answer(allocation)
    assert said["words"] == words
    assert said["cwd"] == "/app"
    environment = said["environment"]
    assert environment["GREETING"] == "a,b=$(id) 'c'"
    assert not set(environment) & {*TOKENS, "LEAK"}
    assert not set(environment.values()) & {"t0", "t1", "t2", "t3", "t4", "t5"}
    assert client.file(allocation.id, "/alloc/data/started") == b"by the server"
    assert [allocation.time_ns(e) is not None for e in ("Received", "Task Setup", "Started")] == [True] * 3

    # Whatever Nomad started for it, squashfuse among it, is seen; and no token of the agent in any of it.
    seen = leftovers.find_processes([allocation.id])[allocation.id]
    assert any("squashfuse" in p.command for p in seen)
    for process in seen:
        raw = environ(process.pid)
        assert not any(f"{name}=".encode() in raw for name in (*TOKENS, "APPTAINERENV_LEAK"))

    report = stop(client, job_id, tmp_path)
    (end,) = report.allocations
    assert report.purged
    assert end.looked_at
    assert (end.processes, end.mounts, end.containers) == ([], [], [])
    assert end.client_status == "complete"
    assert end.exit_code in (143, None)
    assert not end.killed
    assert 0 < end.port_closed_s <= report.duration_s
    assert 0 < end.ended_s <= report.duration_s
    collected = {p.name.split(".", 1)[-1] for p in map(Path, report.collected)}
    assert collected == {"json", "stdout.log", "stderr.log"}
    with pytest.raises(NotFoundError):
        client.get("job", job_id)


# What code in an image under test can try, which shares the network of the node.
ATTACK = """
import contextlib, json, os, pathlib, sys, urllib.error, urllib.request

def status(method, path, token, body=None):
    headers = {"X-Nomad-Token": token} if token else {}
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(sys.argv[1] + path, data, headers, method=method)
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code

job = {"Job": {"ID": "stolen", "Datacenters": ["dc1"], "TaskGroups": [{"Name": "a", "Tasks": [
    {"Name": "b", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}]}]}}
first = {"BootstrapSecret": "11111111-2222-3333-4444-555555555555"}
said = {
    f"{method} {path} {token}": status(method, path, token, body)
    for token in ("", first["BootstrapSecret"])
    for method, path, body in (
        ("PUT", "/v1/jobs", job),
        ("GET", "/v1/jobs", None),
        ("GET", "/v1/nodes", None),
        ("GET", "/v1/allocations", None),
        ("POST", "/v1/acl/bootstrap", first),
    )
}
words = []
for name in ("environ", "cmdline"):
    for path in pathlib.Path("/proc").glob(f"[0-9]*/{name}"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # ended by now
            words.append(path.read_bytes().decode("latin-1"))
pathlib.Path("/data/said").write_text(json.dumps({"statuses": said, "words": words}))
"""


def test_code_in_a_sandbox_can_do_nothing_with_the_agent(agent, client, sif):
    job_id = new_id()
    command = ["/usr/bin/python3", "-c", ATTACK, agent.address]
    submit.submit(client, sandbox(job_id, sif, command=command))
    wait_until(lambda: any(a.terminal for a in get_job_allocations(client, job_id)))
    (allocation,) = get_job_allocations(client, job_id)
    said = json.loads(client.file(allocation.id, "/alloc/data/said"))
    assert len(said["statuses"]) == 10
    assert {code for what, code in said["statuses"].items() if "bootstrap" not in what} == {403}
    assert {code for what, code in said["statuses"].items() if "bootstrap" in what} == {400}
    assert [j["ID"] for j in client.get("jobs")] == [job_id]
    assert not any(token_of(agent) in words for words in said["words"])


def test_the_token_is_where_its_user_alone_can_read_it(agent, client, sif):
    (allocation,) = run(client, sandbox(new_id(), sif))
    answer(allocation)
    token = token_of(agent).encode()
    assert uuid.UUID(token.decode()).version == 4
    holding = []
    for folder, _, names in os.walk(agent.directory):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # the agent is at work there
                if path.is_file() and token in path.read_bytes():
                    holding.append(path)
    assert holding == [agent.directory / "token"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
    assert not agent.directory.stat().st_mode & 0o066
    assert token not in agent.directory.with_name(f"{agent.run}.log").read_bytes()
    tasks = leftovers.find_processes([f"{agent.directory}/"])[f"{agent.directory}/"]
    assert len(tasks) >= 4
    for pid in (agent.supervisor, agent.agent, *(p.pid for p in tasks)):
        assert token not in environ(pid)
        assert token.decode() not in command_line(pid)


@pytest.mark.parametrize("kind", [1, 2, 6], ids=["rpc", "raft", "multiplexed"])
def test_without_its_certificate_nobody_speaks_as_a_server_to_the_agent(agent, kind):
    port = json.loads((agent.directory / "agent.json").read_text())["ports"]["rpc"]
    with socket.create_connection(("127.0.0.1", port), 60) as plain:
        plain.sendall(bytes([kind]))
        # One that listened would wait for what comes next.
        assert plain.recv(1) == b""
    authority = ssl.create_default_context(cafile=agent.directory / "tls" / "nomad-agent-ca.pem")
    with socket.create_connection(("127.0.0.1", port), 60) as bare:
        bare.sendall(b"\x04")
        with pytest.raises(ssl.SSLError, match="certificate required"):  # noqa: SIM117 - the handshake may raise too
            with authority.wrap_socket(bare, server_hostname="server.global.nomad") as secure:
                secure.sendall(bytes([kind]))
                secure.recv(1)
    keys = [p for p in (agent.directory / "tls").iterdir() if "key" in p.name]
    assert len(keys) == 2
    assert {stat.S_IMODE(p.stat().st_mode) for p in keys} == {0o600}


def test_an_agent_that_another_took_over_first_is_not_used(agent):
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        with pytest.raises(PermissionError, match="another process was first"):
            supervisor.wait_ready(process, agent.address, str(uuid.uuid4()), 60)
        process.kill()


def test_placed_is_known_before_running(client, tmp_path):
    job_id = new_id()
    submit.submit(client, shell_job(job_id, LISTEN))
    (allocation,) = submit.wait_for_allocations(client, job_id, 1, 60, started=False)
    assert allocation.port
    stop(client, job_id, tmp_path, local=True)


def test_a_forgotten_job_ends_by_itself(client, sif, tmp_path):
    job_id = new_id()
    submit.submit(client, sandbox(job_id, sif, lifetime_s=1.5))
    ended = wait_until(lambda: next((a for a in get_job_allocations(client, job_id) if a.terminal), None))
    assert next(e.details["exit_code"] for e in ended.events if e.type == "Terminated") == "124"
    assert "lifetime" in str(submit.failure_of(client, ended))
    wait_until(lambda: client.get("job", job_id)["Status"] == "dead")
    assert len(get_job_allocations(client, job_id)) == 1
    processes = leftovers.find_processes([ended.id])[ended.id]
    assert [p for p in processes if not p.is_nomad] == []
    assert stop(client, job_id, tmp_path).purged


def test_the_rendered_file_can_be_submitted_by_hand(agent, client, sif, tmp_path):
    job_id = new_id()
    path = tmp_path / "job.json"
    path.write_text(jobs.render(sandbox(job_id, sif)))
    subprocess.run(
        [host_tools.require("nomad").path, "job", "run", "-detach", "-json", path],
        env={**os.environ, "NOMAD_ADDR": agent.address, "NOMAD_TOKEN": token_of(agent)},
        check=True,
        capture_output=True,
    )
    (allocation,) = submit.wait_for_allocations(client, job_id, 1, 60)
    assert answer(allocation)["cwd"] == "/app"


# -- failures, each made to happen -------------------------------------------------------------------------------------


def fails(client, job, count=1):
    """The error of a job that can't run, which is known long before the time is up."""
    job_id = job["Job"]["ID"]
    submit.submit(client, job)
    with pytest.raises(SifproofError) as caught:
        # One that starts and ends at once may be seen running first.
        allocations = submit.wait_for_allocations(client, job_id, count, 60)
        wait_until(lambda: any(a.terminal for a in get_job_allocations(client, job_id)))
        assert len(allocations) == count
        submit.check_alive(client, get_job_allocations(client, job_id))
    assert " within 60 s" not in str(caught.value)
    return caught.value


def test_port_of_another_job(client):
    port = static_port.pick_static_port(client, "dc1")
    run(client, shell_job(new_id(), LISTEN, port=port))
    assert static_port.pick_static_port(client, "dc1", exclude=[port]) != port
    error = fails(client, shell_job(new_id(), LISTEN, port=port))
    assert f"static port {port} is reserved by another allocation" in str(error)


def test_two_allocations_with_one_static_port_on_one_node(client):
    port = static_port.pick_static_port(client, "dc1")
    error = fails(client, shell_job(new_id(), LISTEN, port=port, count=2), count=2)
    assert "can't place 1 allocation of job" in str(error)
    assert "lower count" in error.todo


def test_port_of_a_process_that_nomad_does_not_know(client):
    port = static_port.pick_static_port(client, "dc1")
    with socket.create_server(("127.0.0.1", port)):
        error = fails(client, shell_job(new_id(), LISTEN, port=port))
    assert "Address already in use" in str(error)
    assert "holds the port" in error.todo
    assert error.fault is Fault.INFRASTRUCTURE


def test_too_much_memory(client):
    job = shell_job(new_id(), LISTEN)
    job["Job"]["TaskGroups"][0]["Tasks"][0]["Resources"]["MemoryMB"] = 100_000_000
    assert "too little memory" in str(fails(client, job))


def test_driver_that_no_node_has(client):
    job = shell_job(new_id(), LISTEN)
    job["Job"]["TaskGroups"][0]["Tasks"][0]["Driver"] = "podman"
    assert "without the driver" in str(fails(client, job))


def test_docker_without_an_engine(client):
    with pytest.raises(SifproofError, match="docker: Failed to connect to docker daemon"):
        nodes.check_driver_available(client, "docker", "dc1")
    (node,) = nodes.check_driver_available(client, "singularity", "dc1")
    assert node.usable
    job = jobs.create_sandbox_job(new_id(), "image:1", driver="docker")
    assert "Failed to connect to docker daemon" in str(fails(client, job))


def test_constraint_that_no_node_meets(client):
    constraint = {"LTarget": "${attr.kernel.name}", "Operand": "=", "RTarget": "plan9"}
    error = fails(client, shell_job(new_id(), LISTEN, constraints=[constraint]))
    assert "do not meet '${attr.kernel.name} = plan9'" in str(error)


def test_datacenter_without_a_node(client):
    error = fails(client, shell_job(new_id(), LISTEN, datacenter="nowhere"))
    assert "no ready and eligible node" in str(error)
    with pytest.raises(SifproofError, match="has nodes in: dc1"):
        nodes.check_driver_available(client, "singularity", "nowhere")


def test_server_that_crashes(client):
    error = fails(client, shell_job(new_id(), "echo first >&2; echo 'Boom: no such thing' >&2; exit 3"))
    assert "exit code 3; its last words were: first | Boom: no such thing" in str(error)
    assert error.fault is Fault.IMAGE


def test_server_that_a_signal_ends(client):
    assert "signal 11" in str(fails(client, shell_job(new_id(), "kill -SEGV $$")))


def test_program_that_is_not_on_the_node(client):
    job = sandbox(new_id(), "/x.sif", apptainer="/no/such/apptainer")
    error = fails(client, job)
    assert error.fault is Fault.INFRASTRUCTURE
    assert "PATH" in error.todo


def test_sif_that_is_not_on_the_node(client):
    error = fails(client, sandbox(new_id(), "/no/such.sif"))
    assert error.fault is Fault.INFRASTRUCTURE
    assert "shared file system" in error.todo


def test_command_that_is_not_in_the_image(client, sif):
    error = fails(client, sandbox(new_id(), sif, command=["no-such-program"]))
    assert error.fault is Fault.IMAGE
    assert "`command`" in error.todo


# How the node's apptainer is started where the node lacks something; and what is to be done about it.
LACKING = {
    "files": ("exec prlimit --nofile=6 $REAL", "ulimit -n"),
    "memory": ("exec prlimit --as=400000000 $REAL", "memory"),
    # Root has no such limit.
    "threads": (
        '[ "$(id -u)" != 0 ] || drop="setpriv --reuid=54321 --regid=54321 --clear-groups"\n'
        "exec $drop prlimit --nproc=0 sh -c '\"$@\"; :' sh $REAL",
        "ulimit -u",
    ),
    "passwd": ("exec unshare --user --map-user=54321 $REAL", "passwd"),
    "room": (
        "for word; do case $last in --workdir) work=$word ;; esac; last=$word; done; export work\n"
        "exec unshare --user --map-root-user --mount sh -c "
        '\'mount -t tmpfs -o nr_inodes=1 none "$work" && exec "$@"\' sh $REAL',
        "make room",
    ),
    "fuse": (
        "exec unshare --user --map-root-user --mount sh -c 'mount --bind /dev/null /dev/fuse && exec \"$@\"' sh $REAL",
        "/dev/fuse",
    ),
    "namespaces": (f"exec {sys.executable} {Path(__file__).with_name('no_userns.py')} $REAL", "user namespaces"),
    "libraries": ("PATH=/nowhere exec -a x $REAL-of-another-machine", "PATH"),
    "what nobody has heard of": (
        "echo 'FATAL:   the moon is in the wrong phase' >&2; exit 255; :",
        "by hand on that node",
    ),
    "its memory of us": ("echo 'ERROR  : Failed to remember: not today' >&2; exit 1; :", "by hand on that node"),
}


@pytest.mark.parametrize("lacks", LACKING)
def test_what_a_node_lacks_is_not_the_images_fault(client, sif, tmp_path, lacks):
    line, todo = LACKING[lacks]
    site = tmp_path / "apptainer"
    real = str(host_tools.require("apptainer").path)
    site.write_text(f'#!/bin/bash\nREAL={real}\n{line} "$@"\n')
    site.chmod(0o755)
    error = fails(client, sandbox(new_id(), sif, apptainer=str(site), userns=True))
    assert error.fault is Fault.INFRASTRUCTURE, error
    assert todo in error.todo, error


@pytest.mark.parametrize(
    "changes",
    [{"command": ["/no/such/program"]}, {"command": ["/etc"]}, {"workdir": "/no/such/folder"}],
)
def test_what_the_image_lacks_is(client, sif, changes):
    error = fails(client, sandbox(new_id(), sif, **changes))
    assert error.fault is Fault.IMAGE, error
    assert "`workdir`" in error.todo


def test_task_command_that_does_not_exist(client):
    job = shell_job(new_id(), LISTEN)
    job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]["command"] = "/no/such/shell"
    assert "could not start" in str(fails(client, job))


def test_job_that_is_none(client):
    job = shell_job(new_id(), LISTEN)
    job["Job"]["TaskGroups"] = []
    with pytest.raises(RejectedError, match="task group"):
        submit.submit(client, job)


def test_namespace_that_does_not_exist(client):
    job = shell_job(new_id(), LISTEN, namespace="nowhere")
    with pytest.raises(SifproofError, match="nowhere"):
        submit.submit(client, job)


def test_job_that_never_starts_is_told_after_the_deadline(client):
    job = shell_job(new_id(), LISTEN)
    # The server waits for a task before it, which takes its time.
    job["Job"]["TaskGroups"][0]["Tasks"][0]["Driver"] = "mock_driver"
    job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"] = {"start_block_for": "15s", "run_for": "1s"}
    submit.submit(client, job)
    with pytest.raises(SifproofError, match="did not run within 5 s") as caught:
        submit.wait_for_allocations(client, job["Job"]["ID"], 1, 5)
    assert "is pending after 'Task Setup'" in str(caught.value)


# -- what is left of a job ---------------------------------------------------------------------------------------------


def test_process_that_survives_the_stop_is_found(client, tmp_path):
    job_id = new_id()
    # Out of the control groups, the session, the process group and the environment: an open file is left to know it by.
    survivor = """
        (
            for group in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
                { echo 0 > $group; } 2>/dev/null
            done
            exec setsid env -i /bin/sleep 300 < "$NOMAD_ALLOC_DIR" >/dev/null 2>&1
        ) &
    """
    (allocation,) = run(client, shell_job(job_id, survivor + LISTEN))
    # It may still be on its way out when Nomad says that the task runs.
    (pid,) = wait_until(
        lambda: [
            p.pid for p in leftovers.find_processes([allocation.id])[allocation.id] if p.command == "/bin/sleep 300"
        ]
    )
    try:
        (end,) = stop(client, job_id, tmp_path, deadline_s=5).allocations
        assert [(p.pid, p.command) for p in end.processes if not p.is_nomad] == [(pid, "/bin/sleep 300")]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_server_that_ignores_sigterm_is_told_apart(client, tmp_path):
    job_id = new_id()
    (one,) = run(client, shell_job(job_id, "trap '' TERM; " + LISTEN.removeprefix("exec "), kill_timeout_s=1))
    wait_until(lambda: static_port.answers(one.address, one.port, 1.0))
    (end,) = stop(client, job_id, tmp_path).allocations
    assert end.killed or (end.killed is None and end.exit_code is None)  # Nomad misses it now and then
    assert end.port_closed_s > 0.9  # it was given its time
    assert end.processes == []


def test_port_that_stays_open_is_told(client, tmp_path):
    job_id = new_id()
    port = static_port.pick_static_port(client, "dc1")
    with socket.create_server(("127.0.0.1", port)):
        run(client, shell_job(job_id, "exec sleep 300", port=port))
        (end,) = stop(client, job_id, tmp_path, deadline_s=1).allocations
    assert end.port_closed_s is None
    assert "accepts" in end.port_seen


def test_a_port_that_does_not_answer_is_not_closed(client, tmp_path):
    job_id = new_id()
    port = static_port.pick_static_port(client, "dc1")
    # The kernel lets connections wait unanswered beyond those that the listener is to accept some day.
    with socket.create_server(("127.0.0.1", port), backlog=0), contextlib.ExitStack() as waiting:
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        run(client, shell_job(job_id, "exec sleep 300", port=port))
        (end,) = stop(client, job_id, tmp_path, deadline_s=2).allocations
    assert end.port_closed_s is None
    assert "no answer" in end.port_seen


def test_an_allocation_of_which_nothing_is_seen_from_here_is_looked_for_on_its_node(client, tmp_path):
    job_id = new_id()
    (allocation,) = run(client, shell_job(job_id, LISTEN))
    client.deregister(job_id, purge=True)
    # Nothing of it is here any more, as nothing would be if it had run elsewhere.
    wait_until(lambda: not leftovers.find_processes([allocation.id])[allocation.id])
    (end,) = teardown.stop_and_verify(client, job_id, [allocation], collect=tmp_path).allocations
    assert end.looked_at
    assert (end.processes, end.mounts, end.ended_s) == ([], [], None)


def of_run(job, run):
    job["Job"]["Meta"]["sifproof_run"] = run
    return job


def test_sweep_leaves_what_is_not_ours(client):
    ours, foreign = new_id(), shell_job("sifproof-foreign", LISTEN)
    foreign["Job"]["Meta"] = {"sifproof_run": ours}
    for job in (shell_job(f"sifproof-{ours}", LISTEN), foreign):
        run(client, job)
    assert teardown.sweep(client) == [f"sifproof-{ours}"]
    assert {j["ID"] for j in client.get("jobs")} == {"sifproof-foreign"}


def test_a_run_whose_id_begins_as_that_of_another_keeps_its_jobs(agent, client, tmp_path, monkeypatch):
    night = Run("night", tmp_path)
    others = [Run("night-2", tmp_path), Run("night-2-twin", tmp_path), Run("nigh", tmp_path), Run("knight", tmp_path)]
    names = {one.id: [one.job_id("a"), one.job_id("b"), f"sifproof-{one.id}-probe-1"] for one in (night, *others)}
    assert len({name for several in names.values() for name in several}) == 15
    for one, several in names.items():
        for name in several:
            client.register(of_run(shell_job(name, LISTEN), one))
    monkeypatch.setenv("NOMAD_ADDR", agent.address)
    monkeypatch.setenv("NOMAD_TOKEN", token_of(agent))
    assert sorted(teardown.jobs_of(client, "night")) == sorted(names["night"])
    sweep.end_run(night, agent.address)
    left = {name for one in others for name in names[one.id]}
    assert {j["ID"] for j in client.get("jobs")} == left
    sweep.sweep(others[0])
    assert {j["ID"] for j in client.get("jobs")} == left - set(names["night-2"])


@pytest.mark.parametrize("there", [("sifproof-night-2-a", "night-2"), ("sifproof-elsewhere", "night")])
def test_a_run_whose_jobs_are_there_already_is_refused(agent, client, monkeypatch, there):
    job, mark = there
    # From another checkout: of this one's runs the folders are known.
    client.register(of_run(shell_job(job, LISTEN), mark))
    monkeypatch.setenv("NOMAD_ADDR", agent.address)
    monkeypatch.setenv("NOMAD_TOKEN", token_of(agent))
    settings = config.load({"sandboxes": {"2-a": {"driver": "singularity"}}})
    with pytest.raises(SifproofError, match=job) as caught:
        make_plan(settings, Run("night"))
    assert caught.value.fault is Fault.CONFIGURATION


def test_the_end_of_a_run_takes_its_jobs_along(agent, client, tmp_path, monkeypatch):
    this, other = Run(new_id(), tmp_path), Run(new_id(), tmp_path)
    for owner in (this, other):
        run(client, of_run(shell_job(owner.job_id("a"), LISTEN), owner.id))
    monkeypatch.setenv("NOMAD_ADDR", agent.address)
    monkeypatch.setenv("NOMAD_TOKEN", token_of(agent))
    sweep.end_run(this, agent.address)
    assert [j["ID"] for j in client.get("jobs")] == [other.job_id("a")]
    assert sweep.sweep(other) == [f"job {other.job_id('a')}: stopped and purged"]
    assert sweep.sweep(other) == []


def test_a_file_of_a_task_is_read_within_bounds(client, monkeypatch):
    line = 'cd "$NOMAD_ALLOC_DIR/data"; truncate -s 1T huge; mkdir folder; mkfifo pipe; ' + LISTEN
    (allocation,) = run(client, shell_job(new_id(), line))
    wait_until(lambda: static_port.answers(allocation.address, allocation.port, 1.0))
    # It never answers what a FIFO is: this ends the wait.
    monkeypatch.setattr(client._files.stat, "timeout", 3.0)
    for name in ("huge", "folder", "pipe"):
        with pytest.raises(UnreadableFileError):
            client.file(allocation.id, f"/alloc/data/{name}")


def test_each_port_and_each_process_is_judged_by_its_own_end(client, tmp_path):
    """One that stays makes none look late that closed at once."""
    (allocation,) = run(client, shell_job(new_id(), LISTEN))
    other = str(uuid.uuid4())
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(["sleep", "600"], env={"NOMAD_ALLOC_ID": other}) as process,
    ):
        stays = allocation.model_copy(update={"id": other, "port": listener.getsockname()[1]})
        known = [stays, allocation]
        ends = teardown.stop_and_verify(
            client, allocation.job_id, known, collect=tmp_path / "collected", deadline_s=8, local=True
        ).allocations
        process.kill()
    first, second = ends
    assert (first.port_closed_s, first.ended_s) == (None, None)
    assert second.port_closed_s is not None and second.port_closed_s < 8
    assert second.ended_s is not None and second.ended_s < 8
