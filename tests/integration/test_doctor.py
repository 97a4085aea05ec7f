"""The doctor on machines on which something is really wrong: here, and on the two nodes of a cluster."""

import contextlib
import http.server
import json
import os
import shlex
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
import yaml
from checkout import DEAD_ENGINE, ROOT, wait_until
from nomad_payload import LISTEN, bootstrap, clear_away, end_agent, new_id, shell_job

from sifproof import config, host_tools
from sifproof.checks.engine import registry
from sifproof.checks.engine.runner import Context, run_checks
from sifproof.checks.engine.subject import Ended
from sifproof.doctor import look
from sifproof.doctor.facts import OK, Facts, parse
from sifproof.doctor.findings import Case, Finding, Image, judge
from sifproof.doctor.record import Doctor
from sifproof.nomad import submit
from sifproof.nomad.agent import local
from sifproof.nomad.client import connect
from sifproof.nomad.cluster import Cluster
from sifproof.nomad.node import leftovers
from sifproof.nomad.node.script import run_on_nodes
from sifproof.nomad.node.userns import needs_userns
from sifproof.nomad.nodes import Driver
from sifproof.nomad.ports import MARK, claim_block
from sifproof.nomad.teardown import AllocationEnd
from sifproof.records import PlannedSandbox
from sifproof.run import Run
from sifproof.workflow import deploy

SANDBOX = {"driver": "singularity", "image": "/no/such.sif", "slots": 1}


def seen(*around: str, before: str = "", environment: dict[str, str] | None = None, **asked) -> Facts:
    """The facts of this machine, looked at below the command ``around`` and after the shell line ``before``."""
    asked = {"programs": ("apptainer",), "images": (), "ports": (), **asked}
    folder = asked.pop("alloc", "/tmp")
    text = look.script(look.Questions(**asked), alloc=folder, tmp=folder)
    answer = subprocess.run(
        [*around, "/bin/sh", "-c", f"{before}\n{text}"],
        env=host_tools.environment() | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    return parse(answer.stdout)


def bad(facts: Facts, **sandbox: object) -> dict[str, Finding]:
    """What is wrong with a machine of these facts, by what was looked at."""
    settings = config.load({"sandboxes": {"box": SANDBOX | sandbox}})
    drivers = {"raw_exec": Driver(detected=True, healthy=True, description="")}
    images = tuple(Image(path, ("box",)) for path in ["/no/such.sif"] * len(facts.images))
    case = Case(facts, settings.selected(), drivers=drivers, images=images, address="127.0.0.1")
    return {finding.id: finding for finding in judge(case) if finding.severity != "fine"}


def test_this_machine_is_fine_and_what_was_tried_is_so():
    facts = seen()
    assert facts.complete
    assert (facts.fuse, facts.userns_two, facts.timeout) == (OK, OK, OK)
    (program,) = facts.programs
    assert program.version == host_tools.require("apptainer").version
    assert (program.userns, program.nested) == (OK, OK)
    # The quick look of the local agent's way and the trial agree.
    assert (program.plain != OK) == needs_userns()
    assert not {"apptainer", "user-namespaces", "fuse", "timeout", "noexec.alloc", "told"} & set(bad(facts))


def test_it_leaves_nothing_behind(tmp_path):
    assert seen(alloc=str(tmp_path)).complete
    assert list(tmp_path.iterdir()) == []


def test_user_namespaces_that_the_kernel_counts_out():
    """Below a root that has lost its capabilities: one that has them starts containers without such a namespace."""
    none = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    facts = seen("unshare", "--user", "--map-root-user", "/bin/sh", "-c", none, "sh")
    assert facts.userns_max == 0
    found = bad(facts)
    assert found["user-namespaces"].severity == found["apptainer"].severity == "blocks"
    assert "user.max_user_namespaces = 0" in found["user-namespaces"].what


def test_user_namespaces_of_one_level_only():
    second = seen(
        "unshare", "--user", "--map-root-user", before="echo 1 > /proc/sys/user/max_user_namespaces", programs=()
    )
    assert second.userns_one == OK
    assert bad(second)["user-namespaces"].severity == "degrades"


def test_no_apptainer_on_the_path():
    facts = seen(environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, programs=("no-such-apptainer",))
    assert bad(facts, apptainer="no-such-apptainer")["apptainer"].severity == "blocks"


NO_DEVICES = "mount --bind /dev/fuse /dev/fuse && mount -o remount,bind,nodev /dev/fuse"


def test_a_fuse_device_that_cannot_be_opened():
    found = bad(seen("unshare", "--mount", before=NO_DEVICES))
    assert found["fuse"].severity == "blocks"
    assert "Permission denied" in found["fuse"].what


def test_a_folder_that_is_small_and_noexec(tmp_path):
    folder = str(tmp_path / "of grüße")
    mount = f"mkdir {shlex.quote(folder)} && mount -t tmpfs -o noexec,size=9m none {shlex.quote(folder)}"
    facts = seen("unshare", "--mount", before=mount, alloc=folder)
    found = bad(facts)
    assert facts.places["alloc"].type == "tmpfs"
    assert found["space.alloc"].severity == "blocks"
    assert {"noexec.alloc", "noexec.tmp"} <= set(found)
    # What was tried in another folder of it, a container, still works.
    assert facts.programs[0].userns == OK


def test_a_folder_that_cannot_be_written(tmp_path):
    found = bad(seen("unshare", "--mount", before=f"mount -t tmpfs -o ro none {tmp_path}", alloc=str(tmp_path)))
    assert found["space.alloc"].severity == "blocks"
    assert "Read-only" in found["space.alloc"].what


def test_a_port_that_somebody_has_is_told_with_his_process():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (taken,) = seen(ports=(port,)).ports[port]
        assert taken.holder.startswith(f"{os.getpid()} ")
        assert bad(seen(ports=(port,)), port=port)["port"].severity == "blocks"
    assert seen(ports=(port,)).ports[port] == ()


def test_images_that_cannot_be_read(tmp_path):
    hard = tmp_path / "it's a $(file) \\ é.sif"
    hard.write_bytes(b"\0" * 9000)
    paths = tuple(Image(str(path), ("box",)) for path in (hard, tmp_path, tmp_path / "none"))
    facts = seen(images=paths, programs=())
    assert facts.images[0] == OK
    assert "Is a directory" in facts.images[1]
    assert "No such file" in facts.images[2]


def test_what_another_user_may_not_read(tmp_path):
    closed = tmp_path / "closed.sif"
    closed.write_bytes(b"x")
    closed.chmod(0o600)
    (said,) = seen("setpriv", "--reuid=1", "--regid=1", "--clear-groups", images=(Image(str(closed), ()),)).images
    assert "Permission denied" in said


def test_a_file_that_hangs_keeps_nothing_else_from_being_told(tmp_path):
    os.mkfifo(tmp_path / "hangs.sif")
    facts = seen(images=(Image(str(tmp_path / "hangs.sif"), ()),), programs=())
    assert facts.complete
    assert facts.fuse == OK
    assert facts.images == ("it did not end within 10 s",)


PRIVATE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def test_a_file_system_that_hangs_is_told_and_keeps_nothing_else_from_being_told(tmp_path):
    """One whose server is stopped, as a network file system's that went away."""
    for name in ("files", "mounted"):
        (tmp_path / name).mkdir()
    packer = host_tools.require("mksquashfs").path.resolve()
    subprocess.run([packer, tmp_path / "files", tmp_path / "image", "-quiet", "-no-progress"], check=True)
    server = next(host_tools.root().glob("**/squashfuse_ll"))
    mounted = tmp_path / "mounted"
    hang = f"{server} {tmp_path}/image {mounted} && kill -STOP $(pgrep -x squashfuse_ll)"
    facts = seen(*PRIVATE, before=hang, alloc=str(mounted / "alloc"), images=(Image(f"{mounted}/x.sif", ()),))
    assert facts.complete
    assert facts.images == ("it did not end within 10 s",)
    assert "did not end within" in facts.places["alloc"].write
    assert facts.programs[0].version == host_tools.require("apptainer").version
    found = bad(facts)
    assert found["space.alloc"].severity == found["image"].severity == "blocks"
    assert "umount -l" in found["space.alloc"].mend


def hanging(folder: Path) -> Path:
    """A program that answers nothing, with a child, and neither of them ends when it is asked to."""
    program = folder / "hanging-apptainer"
    program.write_text("#!/bin/sh\ntrap '' TERM\nsleep 301 &\nsleep 302\n")
    program.chmod(0o755)
    return program


def test_a_program_that_hangs_is_ended_and_told(tmp_path):
    program = str(hanging(tmp_path))
    facts = seen(programs=(program, "apptainer"))
    assert facts.complete
    assert facts.programs[0].answer.endswith("it did not end within 10 s")
    assert facts.programs[1].userns == OK
    told = bad(facts, apptainer=program)["apptainer"]
    assert told.severity == "blocks"
    assert "did not end" in told.what


def test_a_look_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(look, "_HERE_WITHIN_S", 1.0)
    monkeypatch.setattr(local, "DIRECTORY", tmp_path / "agents")
    program = hanging(tmp_path)
    with look.Here(config.load({"sandboxes": {"box": SANDBOX | {"apptainer": str(program)}}})) as here:
        leader = here._process.pid
        wait_until(lambda: "hanging-apptainer" in commands(look._session(leader)))
        facts = here.look()
    assert "told" in {finding.id for finding in facts.findings if finding.severity != "fine"}
    assert facts.facts.uid == os.getuid()
    wait_until(lambda: look._session(leader) == [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [program.name]


def commands(pids: list[int]) -> str:
    found = ""
    for pid in pids:
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/cmdline").read_text()
    return found


# -- the command ------------------------------------------------------------------------------------------------------


def doctor(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("NOMAD_")} | environment
    return subprocess.run(
        [sys.executable, "-m", "sifproof", "doctor", *arguments],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_and_its_exit_code_says_whether_something_blocks(tmp_path):
    file = tmp_path / "mine.yaml"
    sif = tmp_path / "x.sif"
    sif.write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        file.write_text(yaml.safe_dump({"sandboxes": {"box": SANDBOX | {"image": str(sif), "port": port}}}))
        told = doctor("--configfile", str(file))
        assert told.returncode == 3, told
        assert f"blocks    port: Port {port} is taken" in told.stdout
        assert f"→ ss -ltnp 'sport = :{port}'" in told.stdout
    told = doctor("--configfile", str(file), "--json")
    assert told.returncode == 0, told
    (machine,) = Doctor.model_validate_json(told.stdout).looks
    assert machine.machine == socket.gethostname()
    assert machine.facts is not None
    assert machine.facts.images == (OK,)


def test_the_command_refuses_what_a_run_refuses(tmp_path):
    assert doctor("--config", "suites=nonsense").returncode == 2
    told = doctor("--configfile", str(tmp_path / "none.yaml"))
    assert told.returncode == 2
    assert "can't be read" in told.stderr


def test_a_cluster_that_does_not_answer_blocks():
    told = doctor(NOMAD_ADDR="http://127.0.0.1:1")
    assert told.returncode == 3, told
    assert "blocks    cluster: Nomad can't be reached" in told.stdout


def test_a_run_puts_it_beside_the_failure_that_it_explains(checkout):
    """Another server has the port; the run says who."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        box = SANDBOX | {"image": "reference", "cpu": 50, "memory": 64, "port": port}
        (checkout.root / "port.yaml").write_text(yaml.safe_dump({"sandboxes": {"box": box}, "suites": ["health"]}))
        try:
            outcome = checkout.gate("--configfile", "port.yaml", **DEAD_ENGINE)
        finally:
            server.shutdown()
    assert outcome.exit_code == 3, outcome
    found = [seen for reason in outcome.verdict["reasons"] for seen in reason["doctor"]]
    assert {seen["finding"] for seen in found} == {"port"}
    assert f"Port {port} is taken: process {os.getpid()} " in found[0]["text"]
    assert f"Port {port} is taken" in outcome.output
    written = Doctor.model_validate_json((outcome.folder / "doctor.json").read_bytes())
    assert [one.machine for one in written.looks] == [socket.gethostname()]


# -- a cluster of two nodes, one of which lacks much ---------------------------------------------------------------


class TwoNodes:
    """A cluster of ``good`` and ``poor``; ``poor`` has a file system of its own, small and noexec, and no FUSE."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, folder / "shared"
        self.shared.mkdir()
        (self.shared / "results").mkdir()
        (self.shared / "x.sif").write_bytes(b"SIF")
        self.apptainer = self.shared / "apptainer"
        self.apptainer.symlink_to(host_tools.require("apptainer").path.resolve())
        self._agents: list[subprocess.Popen[bytes]] = []
        self._blocks = [claim_block(), claim_block()]
        self.address, self.token = f"http://127.0.0.1:{self._blocks[0].agent[0]}", ""

    def start(self) -> None:
        # A client is ready after its first heartbeat, which comes within this time.
        self._start("good", self._blocks[0], {"server": {"enabled": True, "min_heartbeat_ttl": "1s"}})
        self.token = bootstrap(self.address, self._agents[0])
        poor = self.folder / "poor"
        poor.mkdir()
        hidden = f"mount -t tmpfs -o noexec,size=99m none {poor} && mount -t tmpfs none {self.shared} && {NO_DEVICES}"
        self._start("poor", self._blocks[1], {"client": {"servers": [f"127.0.0.1:{self._blocks[0].agent[1]}"]}}, hidden)
        wait_until(lambda: len([n for n in self.ask("nodes") if n["Status"] == "ready"]) == 2, 60)

    def ask(self, path: str):
        return requests.get(f"{self.address}/v1/{path}", headers={"X-Nomad-Token": self.token}, timeout=60).json()

    def connect(self):
        return connect(self.address, token=self.token, environment={})

    @contextlib.contextmanager
    def ineligible(self, name: str):
        """Nomad places nothing on the node ``name``."""
        self._declare(name, "ineligible")
        try:
            yield
        finally:
            self._declare(name, "eligible")

    def _declare(self, name: str, word: str) -> None:
        node = next(node["ID"] for node in self.ask("nodes") if node["Name"] == name)
        answer = requests.put(
            f"{self.address}/v1/node/{node}/eligibility",
            json={"NodeID": node, "Eligibility": word},
            headers={"X-Nomad-Token": self.token},
            timeout=60,
        )
        answer.raise_for_status()

    def _start(self, name: str, block, more: dict, hidden: str = "") -> None:
        http, rpc, serf = block.agent
        settings = {
            "name": name,
            "bind_addr": "127.0.0.1",
            "advertise": dict.fromkeys(("http", "rpc", "serf"), "127.0.0.1"),
            "data_dir": str(self.folder / name),
            "ports": {"http": http, "rpc": rpc, "serf": serf},
            "acl": {"enabled": True},
            "client": {
                "enabled": True,
                "network_interface": "lo",
                "min_dynamic_port": block.dynamic[0],
                "max_dynamic_port": block.dynamic[1],
                **more.pop("client", {}),
            },
            **more,
        }
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(settings))
        nomad = str(host_tools.require("nomad").path.resolve())
        command = [nomad, "agent", *([] if hidden else ["-dev"]), f"-config={local.CONFIGURATION}", f"-config={file}"]
        if hidden:
            command = ["unshare", "--mount", "/bin/sh", "-c", f"{hidden} && exec {shlex.join(command)}"]
        with (self.folder / f"{name}.log").open("wb") as log:
            variables = {k: v for k, v in host_tools.environment().items() if not k.startswith("NOMAD_")}
            self._agents.append(
                subprocess.Popen(command, env=variables | {MARK: f"{self.folder}/"}, stdout=log, stderr=log)
            )

    def close(self) -> None:
        for agent in reversed(self._agents):  # the server last
            end_agent(agent)
        left = clear_away(self.folder)
        for block in self._blocks:
            block.lock.close()
        assert left == []


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    nodes = TwoNodes(tmp_path_factory.mktemp("two"))
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.close()


@pytest.fixture(scope="module")
def looked(two):
    """What the command tells of the two nodes."""
    file = two.folder / "mine.yaml"
    box = SANDBOX | {"image": str(two.shared / "x.sif"), "apptainer": str(two.apptainer)}
    file.write_text(yaml.safe_dump({"sandboxes": {"box": box, "made": SANDBOX | {"image": "reference"}}}))
    told = doctor("--configfile", str(file), "--json", folder=two.shared, NOMAD_ADDR=two.address, NOMAD_TOKEN=two.token)
    assert two.token not in told.stdout + told.stderr
    assert told.returncode == 3, told
    return Doctor.model_validate_json(told.stdout)


def test_each_node_is_looked_at_as_its_own_client_sees_it(looked):
    here, good, poor = looked.looks
    assert [one.machine for one in (here, good, poor)] == [socket.gethostname(), "good", "poor"]
    assert [finding.id for finding in good.findings if finding.severity != "fine"] == []
    assert {"shared", "image", "clock", "apptainer", "fuse"} <= {finding.id for finding in good.findings}
    wrong = {finding.id: finding.severity for finding in poor.findings if finding.severity != "fine"}
    assert wrong == {
        "apptainer": "blocks",
        "image": "blocks",
        "shared": "blocks",
        "space.alloc": "blocks",
        "fuse": "blocks",
        "noexec.alloc": "degrades",
    }


def test_no_job_of_the_doctor_is_left(two, looked):
    assert two.ask("jobs") == []
    assert list((two.shared / "results" / "images").iterdir()) == []


def test_userns_auto_goes_by_what_was_seen_on_the_nodes(two, looked, tmp_path):
    """The gate is on another machine than the nodes: what this one needs says nothing."""
    settings = config.load({"sandboxes": {"box": SANDBOX | {"port": 20000}}})
    planned = PlannedSandbox(
        name="box", driver="singularity", image="x", slots=1, count=1, suites=[], job_id="sifproof-r-box"
    )
    far = Cluster(address="http://192.0.2.1:4646", version="", local=False)
    image = tmp_path / "box.json"
    made = {"source": "x", "digest": "x", "architecture": "amd64", "sif": "/x.sif", "sha256": "0" * 64}
    image.write_text(json.dumps({**made, "size_bytes": 1, "created": "2026-01-01T00:00:00Z"}))
    rendered = []
    for flips in (False, True):
        facts = looked.looks[1].facts
        # A node that is what this one is not.
        program = facts.programs[0].model_copy(update={"name": "apptainer", "plain": "no" if flips else OK})
        flipped = looked.looks[1].model_copy(update={"facts": facts.model_copy(update={"programs": (program,)})})
        output = tmp_path / "jobs" / f"{flips}.json"
        output.parent.mkdir(exist_ok=True)
        deploy.render_job(
            Run("r", tmp_path), planned, settings, far, image=str(image), output=output, doctor=Doctor(looks=[flipped])
        )
        rendered.append("--userns" in output.read_text())
    assert rendered == [False, True]


def test_a_program_that_hangs_on_a_node_is_ended_and_told(two):
    settings = config.load({"sandboxes": {"box": SANDBOX | {"apptainer": str(hanging(two.shared))}}})
    with two.connect() as client:
        good = next(one for one in look.nodes(client, settings, run="t") if one.machine == "good")
    assert good.facts.complete
    told = next(finding for finding in good.findings if finding.id == "apptainer")
    assert (told.severity, "did not end within 10 s" in told.what) == ("blocks", True)


def test_a_script_may_fail_on_one_node_and_tell_on_another(two):
    with two.connect() as client:
        good, poor = run_on_nodes(
            client, f"command -v {two.apptainer} || {{ echo gone >&2; exit 3; }}", run="t", timeout_s=60
        )
    assert good.output.strip().endswith("apptainer")
    assert good.fault == ""
    assert poor.output == ""
    assert "gone" in poor.fault


def test_a_script_that_does_not_end_is_ended(two):
    with two.connect() as client:
        answers = run_on_nodes(client, "echo begun; exec sleep 60", run="t", timeout_s=3)
    assert [(a.node_name, a.output, bool(a.fault)) for a in answers] == [
        ("good", "begun\n", True),
        ("poor", "begun\n", True),
    ]


def test_a_script_that_is_ended_has_cleared_away_by_then(two, tmp_path):
    made = tmp_path / "made"
    script = f"trap 'sleep 2; rm -f {made}; exit 1' TERM; touch {made}; echo begun; sleep 60 & wait"
    with two.connect() as client:
        run_on_nodes(client, script, run="t", timeout_s=3)
    assert not made.exists()


def test_nodes_that_take_no_job_are_judged_by_what_nomad_says(two):
    settings = config.load({"sandboxes": {"box": SANDBOX | {"datacenter": "elsewhere"}}})
    with two.ineligible("poor"), two.connect() as client:
        looks = {one.machine: one for one in look.nodes(client, settings, run="t")}
    (finding,) = looks["poor"].findings
    assert "not eligible" in finding.what
    assert finding.mend == f"nomad node eligibility -enable {looks['poor'].node}"
    (missing,) = looks["the cluster"].findings
    assert (missing.id, missing.severity) == ("datacenter", "blocks")
    # No sandbox is placed there: whatever it lacks blocks nothing.
    assert {finding.severity for finding in looks["good"].findings} <= {"fine", "degrades"}


# Two processes that leave control groups, session and environment. An open file is left to know the one by; the other
# is known again by its number and start, as squashfuse_ll is: a child of the task's before the stop, nobody's after it.
SURVIVORS = """
    case $PWD in */good/*)
        (
            for group in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
                { echo 0 > $group; } 2>/dev/null
            done
            setsid env -i /bin/sleep 301 < "$NOMAD_ALLOC_DIR" >/dev/null 2>&1 &
            cd /
            exec setsid env -i /bin/sleep 302 </dev/null >/dev/null 2>&1
        ) & ;;
    esac
"""

TEARDOWN = """
import json, sys
from pathlib import Path
from sifproof.nomad import teardown
from sifproof.nomad.client import connect

address, token, job, folder = sys.argv[1:]
with connect(address, token=token, environment={}) as client:
    print(teardown.stop_and_verify(client, job, collect=Path(folder), deadline_s=6, run="t").model_dump_json())
"""


def torn_down(
    two, job: dict, folder: Path, *, count: int = 1, around=contextlib.nullcontext, survivors=frozenset()
) -> list[dict]:
    """The end of each allocation of ``job``, seen by a gate that has processes and mounts of its own alone.

    It is stopped when processes with the command lines ``survivors`` are there: they may still be on their way out of
    where they began when Nomad says that it runs.
    """
    job_id = job["Job"]["ID"]
    with two.connect() as client:
        submit.submit(client, job)
        allocations = submit.wait_for_allocations(client, job_id, count, 60)
    ids = [allocation.id for allocation in allocations]
    wait_until(lambda: survivors <= {p.command for found in leftovers.find_processes(ids).values() for p in found}, 60)
    gate = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", TEARDOWN]
    with around():
        answer = subprocess.run(
            [*gate, two.address, two.token, job_id, str(folder)], stdout=subprocess.PIPE, text=True, check=True
        )
    return sorted(json.loads(answer.stdout)["allocations"], key=lambda end: end["node"])


def test_what_a_job_leaves_on_another_machine_is_found_there(two, tmp_path):
    job = shell_job(new_id(), SURVIVORS + LISTEN, count=2)
    job["Job"]["Constraints"] = [{"Operand": "distinct_hosts", "RTarget": "true"}]
    job["Job"]["TaskGroups"][0]["EphemeralDisk"] = {"SizeMB": 30}
    survivors = {"/bin/sleep 301", "/bin/sleep 302"}
    good, poor = torn_down(two, job, tmp_path, count=2, survivors=survivors)
    try:
        assert (good["node"], poor["node"]) == ("good", "poor")
        assert good["looked_at"]
        assert poor["looked_at"]
        assert {p["command"] for p in good["processes"]} == survivors
        assert poor["processes"] == poor["mounts"] == good["mounts"] == []
    finally:
        for process in good["processes"]:
            os.kill(process["pid"], signal.SIGKILL)


def test_a_node_that_takes_no_script_was_not_looked_at(two, tmp_path):
    job = shell_job(new_id(), LISTEN)
    job["Job"]["Constraints"] = [{"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": "good"}]
    (end,) = torn_down(two, job, tmp_path, around=lambda: two.ineligible("good"))
    assert not end["looked_at"]
    assert "takes no script" in end["unseen"]
    # What could not be looked at is not taken for clean.
    ended = Ended(AllocationEnd.model_validate(end), True, 5.0)
    found = run_checks(registry.of_suite(registry.TEARDOWN), ended, Context("run", "box", "singularity"))
    unseen = {v.check for v in found if v.verdict == "not-measured" and v.required}
    assert {"teardown.processes", "teardown.mounts"} <= unseen
