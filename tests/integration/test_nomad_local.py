"""The local agent ends with its run, whatever way that ends, and leaves nothing."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import requests
from nomad_payload import (
    BINDS,
    COMMAND,
    assert_gone,
    build_sif,
    local_agent,
    new_id,
    runs,
    wait_until,
)

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.nomad import ports, submit
from sifproof.nomad.agent import local
from sifproof.nomad.job import create_sandbox_job
from sifproof.nomad.node import leftovers
from sifproof.nomad.node.userns import needs_userns


@pytest.fixture
def watched():
    """A process that stands for a run's outermost one."""
    process = subprocess.Popen(["/bin/sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path):
    """A test that fails midway must not leave its agents to the others."""
    yield
    for lock in tmp_path.glob("**/lock"):
        local.stop(lock.parent.name, lock.parent.parent)


@pytest.fixture(scope="module")
def sif(tmp_path_factory):
    return build_sif(tmp_path_factory.mktemp("sif"))


def start(folder, pid):
    run = new_id("test")
    return local.start(run, folder, pid, log=folder / f"{run}.log")


def run_sandbox(agent, sif):
    """A running sandbox on ``agent``: its processes."""
    job = create_sandbox_job(new_id(), str(sif), command=COMMAND, binds=BINDS, userns=needs_userns(), cpu=50, memory=64)
    with agent.connect() as client:
        submit.submit(client, job)
        (allocation,) = submit.wait_for_allocations(client, job["Job"]["ID"], 1, 60)
    return wait_until(
        lambda: (
            (found := leftovers.find_processes([allocation.id])[allocation.id])
            and any(COMMAND[0] in p.command and "apptainer" not in p.command for p in found)
            and found
        )
    )


def gone(agent, processes):
    wait_until(lambda: not agent.directory.exists())
    wait_until(lambda: not runs(agent.supervisor))
    assert_gone(agent)
    assert [p for p in processes if runs(p.pid)] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_is_gone_after_the_run_however_that_ends(tmp_path, watched, sif, number):
    agent = start(tmp_path, watched.pid)
    processes = run_sandbox(agent, sif)
    assert len(processes) >= 4
    watched.send_signal(number)
    watched.wait()
    gone(agent, processes)


def test_stop_returns_when_everything_is_gone(tmp_path, watched, sif):
    agent = start(tmp_path, watched.pid)
    processes = run_sandbox(agent, sif)
    local.stop(agent.run, tmp_path)
    assert_gone(agent)
    assert [p for p in processes if runs(p.pid)] == []
    local.stop(agent.run, tmp_path)


def test_a_killed_agent_leaves_nothing(tmp_path, watched, sif):
    agent = start(tmp_path, watched.pid)
    processes = run_sandbox(agent, sif)
    os.kill(agent.agent, signal.SIGKILL)
    gone(agent, processes)


def test_a_killed_supervisor_takes_the_agent_with_it(tmp_path, watched, sif):
    agent = start(tmp_path, watched.pid)
    processes = run_sandbox(agent, sif)
    os.kill(agent.supervisor, signal.SIGKILL)
    wait_until(lambda: not runs(agent.agent) and not runs(agent.supervisor))
    assert local.sweep(tmp_path) == [agent.run]
    gone(agent, processes)


def test_the_next_start_sweeps_what_a_killed_supervisor_left(tmp_path, watched, sif):
    first = start(tmp_path, watched.pid)
    processes = run_sandbox(first, sif)
    os.kill(first.supervisor, signal.SIGKILL)
    wait_until(lambda: not runs(first.supervisor))
    # At once: the agent may still be on its way down.
    second = start(tmp_path, watched.pid)
    assert not first.directory.exists()
    local.stop(second.run, tmp_path)
    gone(first, processes)


def test_killed_all_at_once(tmp_path, watched, sif):
    agent = start(tmp_path, watched.pid)
    processes = run_sandbox(agent, sif)
    for pid in (watched.pid, agent.supervisor, agent.agent):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not runs(agent.agent) and not runs(agent.supervisor))
    assert local.sweep(tmp_path) == [agent.run]
    gone(agent, processes)


def dynamic_ports(agent):
    with agent.connect() as client:
        (node,) = client.get("nodes")
        resources = client.get("node", node["ID"])["NodeResources"]
    return set(range(resources["MinDynamicPort"], resources["MaxDynamicPort"] + 1))


def test_two_runs_side_by_side_do_not_meet(tmp_path, sif):
    with local_agent(tmp_path / "a") as one, local_agent(tmp_path / "b") as two:
        assert one.address != two.address
        assert not dynamic_ports(one) & dynamic_ports(two)
        # Nor does one let the other in that looks for it.
        settings = one.directory / "agent.json"
        joined = requests.put(
            f"{two.address}/v1/agent/join",
            params={"address": f"127.0.0.1:{json.loads(settings.read_text())['ports']['serf']}"},
            headers={"X-Nomad-Token": (two.directory / "token").read_text()},
            timeout=60,
        ).json()
        assert joined["num_joined"] == 0
        assert joined["error"]
        assert stat.S_IMODE(settings.stat().st_mode) == 0o600
        others = run_sandbox(two, sif)
        local.stop(one.run, tmp_path / "a")
        with two.connect() as client:
            assert client.version()
        assert {runs(p.pid) for p in others} == {True}


def test_a_second_start_of_a_run_finds_its_agent(tmp_path, watched):
    agent = start(tmp_path, watched.pid)
    assert local.start(agent.run, tmp_path, watched.pid) == agent
    assert local.find(agent.run, tmp_path) == agent
    local.stop(agent.run, tmp_path)
    assert local.find(agent.run, tmp_path) is None


def test_it_holds_no_pipe_of_the_caller_and_survives_its_terminal(tmp_path, watched):
    run = new_id("test")
    script = (
        "import sys; from pathlib import Path; from sifproof.nomad.agent import local;"
        f"print(local.start({run!r}, Path({str(tmp_path)!r}), {watched.pid}).model_dump_json())"
    )
    # The output ends with the caller, not with the agent; or this would wait for ever.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    agent = local.LocalAgent.model_validate_json(done.stdout)
    caller = os.getsid(0)
    for pid in (agent.supervisor, agent.agent):
        assert runs(pid)
        assert os.getsid(pid) != caller
    os.kill(agent.supervisor, signal.SIGINT)
    os.kill(agent.supervisor, signal.SIGHUP)
    with agent.connect() as client:
        assert client.version()
    local.stop(run, tmp_path)
    assert_gone(agent)


def test_its_environment_holds_no_token(tmp_path, watched, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    monkeypatch.setenv("NOMAD_TOKEN", "very-secret")
    agent = start(tmp_path, watched.pid)
    for pid in (agent.supervisor, agent.agent):
        seen = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"PATH=" in seen
        assert b"very-secret" not in seen
    local.stop(agent.run, tmp_path)


def test_it_listens_on_loopback_only(tmp_path, watched):
    with local_agent(tmp_path) as agent:
        sockets = set()
        for descriptor in Path(f"/proc/{agent.agent}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed by now
                sockets.add(descriptor.readlink().name)
        listening = []
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                    listening.append(fields[1].rpartition(":")[0])
        assert listening
        assert set(listening) == {"0100007F"}


def test_an_agent_that_cannot_start_says_why(tmp_path, watched):
    broken = tmp_path / "broken.hcl"
    broken.write_text("client { no_such_key = 1 }")
    run = new_id("test")
    with pytest.raises(SifproofError, match="no_such_key"):
        local.start(run, tmp_path / "agents", watched.pid, configuration=broken)
    wait_until(lambda: not (tmp_path / "agents" / run).exists())


def test_a_run_that_is_over_is_not_watched(tmp_path):
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    with pytest.raises(SifproofError, match="can't be watched"):
        start(tmp_path, process.pid)


def test_a_path_that_bind_mounts_cannot_name_is_refused(tmp_path, watched):
    with pytest.raises(SifproofError, match="colon or a comma"):
        local.start("x", tmp_path / "a:b", watched.pid)


def test_a_long_path_with_odd_letters_will_do(tmp_path, watched, sif):
    folder = tmp_path / ("long" * 18 + " und grüße")
    folder.mkdir()
    agent = start(folder, watched.pid)
    run_sandbox(agent, sif)
    state = (agent.directory / "state.json").read_text()
    assert str(folder) not in state.partition('"tmpdir"')[2]
    elsewhere = Path(state.partition('"tmpdir": "')[2].partition('"')[0])
    assert elsewhere.is_dir()
    local.stop(agent.run, folder)
    assert_gone(agent)
    assert not elsewhere.exists()


def test_a_person_who_looks_at_the_files_is_left_alone(tmp_path, watched):
    agent = start(tmp_path, watched.pid)
    viewer = subprocess.Popen(
        ["/bin/sleep", "600"], cwd=agent.directory, env={"PWD": str(agent.directory)}, stdin=subprocess.DEVNULL
    )
    local.stop(agent.run, tmp_path)
    assert viewer.poll() is None
    viewer.kill()
    viewer.wait()


def test_blocks_of_ports_are_apart_and_come_back():
    blocks = [ports.claim_block() for _ in range(5)]
    spans = [range(b.first, b.first + 100) for b in blocks]
    assert len({p for span in spans for p in span}) == 500
    low, high = ports.ephemeral_ports()
    assert not any(low <= p <= high for span in spans for p in span)
    for block in blocks:
        block.lock.close()


def test_a_port_that_is_taken_is_not_free():
    block = ports.claim_block()
    with block.lock:
        with socket.create_server(("127.0.0.1", block.first)):
            assert not ports.is_free(block.first)
        assert ports.is_free(block.first)


# -- an ordinary user --------------------------------------------------------------------------------------------------

USER = 1000
AS_USER = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from nomad_payload import BINDS, COMMAND, local_agent, new_id, wait_until
from sifproof.nomad import submit, teardown
from sifproof.nomad.job import create_sandbox_job
from sifproof.nomad.static_port import answers
from sifproof.nomad.node.leftovers import find_processes
from sifproof.nomad.node.userns import needs_userns

assert os.getuid() != 0
folder, sif = Path(sys.argv[1]), sys.argv[2]
with local_agent(folder) as agent, agent.connect() as client:
    job = create_sandbox_job(
        "j", sif, command=COMMAND, binds=BINDS, userns=needs_userns(), cpu=50, memory=64, kill_timeout_s=30
    )
    submit.submit(client, job)
    (allocation,) = submit.wait_for_allocations(client, "j", 1, 60)
    wait_until(lambda: answers(allocation.address, allocation.port, 1))
    assert client.file(allocation.id, "/alloc/data/started") == b"by the server"
    seen = find_processes([allocation.id])[allocation.id]
    report = teardown.stop_and_verify(client, "j", collect=folder / "collected", deadline_s=60)
print(json.dumps({"seen": [p.command for p in seen], "report": report.model_dump()}))
"""


@pytest.fixture
def ordinary():
    """Starts programs as an ordinary user, with Python in it; as this one, where it is one."""
    if os.geteuid() != 0:
        yield lambda arguments, **options: subprocess.run([sys.executable, *arguments], check=False, **options)
        return
    fuse = Path("/dev/fuse")
    mode = stat.S_IMODE(fuse.stat().st_mode)
    fuse.chmod(0o666)  # as it is wherever ordinary users run containers

    def run(arguments, **options):
        as_user = {"user": USER, "group": USER, "extra_groups": []}
        python = sys.executable
        try:
            subprocess.run([python, "-c", ""], check=False, **as_user)
        except PermissionError:  # an interpreter in root's home; the system's will do, if it is of the same version
            python = f"/usr/bin/python3.{sys.version_info.minor}"
        return subprocess.run([python, *arguments], check=False, **as_user, **options)

    yield run
    fuse.chmod(mode)


def test_an_ordinary_user_can_do_all_of_it(sif, ordinary):
    with tempfile.TemporaryDirectory(prefix="sifproof-user-") as name:
        folder = Path(name)
        image = folder / "payload.sif"
        image.write_bytes(sif.read_bytes())
        if os.geteuid() == 0:
            os.chown(folder, USER, USER)
        done = ordinary(
            ["-c", AS_USER, folder / "agents", image, str(Path(__file__).parent)],
            cwd=folder,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",  # root's own folders are closed to others
                "HOME": str(folder),
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
    assert any("squashfuse" in command for command in said["seen"])
    (end,) = said["report"]["allocations"]
    assert end["looked_at"]
    assert (end["processes"], end["mounts"]) == ([], [])
    assert not end["killed"]
    assert end["port_closed_s"] is not None


def test_userns_is_asked_for_where_apptainer_fails_without(sif):
    plain = subprocess.run(
        [host_tools.require("apptainer").path, "-q", "exec", "--containall", "--bind", BINDS[0], sif, "/bin/true"],
        env=host_tools.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert needs_userns() == ("equesting capability set" in plain.stderr)


@pytest.mark.parametrize(
    ("uid", "permitted", "needed"),
    [
        (0, "all", False),
        (0, "000001fffeffffff", True),
        (0, "0000000000000000", True),
        (1000, "0000000000000000", False),
    ],
)
def test_userns_is_needed_by_a_root_that_lacks_a_capability(tmp_path, uid, permitted, needed):
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    status = tmp_path / "status"
    status.write_text(
        f"Name:\tx\nCapPrm:\t{(1 << (last + 1)) - 1 if permitted == 'all' else int(permitted, 16):016x}\n"
    )
    assert needs_userns(status, uid) is needed


def test_time_from_start_to_ready(tmp_path, watched):
    begin = time.monotonic()
    agent = start(tmp_path, watched.pid)
    assert 0 < agent.ready_s <= time.monotonic() - begin
    local.stop(agent.run, tmp_path)


CLEARED = """
import json, subprocess, sys
from pathlib import Path
from sifproof.nomad.agent import local
home, precious = map(Path, sys.argv[1:])
for name in ("gr\u00fc\u00dfe", "a b\\\\c"):
    (home / name).mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, home / name], check=True)
print(json.dumps([local.clear(home), home.exists()]))
"""


@pytest.mark.parametrize("umount", ["works", "fails"])
def test_what_lies_behind_a_mount_is_not_removed_with_a_directory(tmp_path, umount, monkeypatch):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    if umount == "fails":
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "umount").symlink_to("/bin/false")
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    home = tmp_path / "\u00e4 home" / "run"
    said = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", CLEARED, home, precious],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    found, there = json.loads(said)
    mounted = {f"mount {home}/gr\u00fc\u00dfe", f"mount {home}/a b\\c"}
    assert mounted <= set(found)
    assert (there, len(found)) == ((False, 2) if umount == "works" else (True, 3))
    assert (precious / "file").read_text() == "kept"
