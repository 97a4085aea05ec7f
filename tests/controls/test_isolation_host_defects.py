"""Sandboxes whose job or node lets something of the node in: each way in turns its own checks red, and no other.

Commands in bubblewrap see little of their container, whatever that sees of the node. So some of these have none: a
server without it is what many images bring.
"""

import contextlib
import json
import os
import pwd
import re
import shutil
import socket
import stat
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from catalogue import control
from checkout import ROOT
from placed import try_without_gate

from sifproof.checks.engine import registry
from sifproof.checks.engine.registry import NotMeasured
from sifproof.checks.engine.runner import Context, run_checks
from sifproof.checks.engine.subject import Server
from sifproof.checks.isolation.planted import Said, planted
from sifproof.errors import Fault, SifproofError
from sifproof.records import Verdict

HOST = "isolation.host."
STRANGERS = f"{HOST}strangers"
"""About the server, and not what its container lets in: see ``test_isolation_access_defects.py``."""
CHECKS = [c for c in registry.of_suite("isolation") if c.id.startswith(HOST) and c.id != STRANGERS]
FOLDERS = ("home", "workdir", "tmp", "var-tmp", "dev-shm", "allocations", "nomad-data")
SUPERVISOR = ROOT / "sandbox" / "slotserver" / "supervisor.py"
CONTAINMENT = ROOT / "sandbox" / "slotserver" / "containment.py"
DIRECTORIES = ROOT / "sandbox" / "slotserver" / "directories.py"


def bind(*binds: str) -> Callable[[str], str]:
    """Apptainer gets these, from a file system of the node or of the test (``{made}``)."""
    return lambda line: line.replace(
        "--bind /dev/full", " ".join(["--bind /dev/full", *(f"--bind {b}" for b in binds)])
    )


def without(*flags: str) -> Callable[[str], str]:
    def change(line: str) -> str:
        for flag in flags:
            assert flag in line
            line = line.replace(flag, "")
        return line

    return change


def one_user(line: str) -> str:
    """A server that runs the commands of all slots as itself, without bubblewrap."""
    return line.replace("--slots", "--one-user --slots")


def docker(**settings: object) -> Callable[[dict], None]:
    return lambda job: job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"].update(settings)


def as_user(line: str) -> str:
    """Apptainer is started by an ordinary user, where the Nomad client runs as root."""
    before, program, after = line.replace(" --userns", "").partition("apptainer -q exec")
    return f"{before}unshare --mount {{made}}/as-user {program}{after}"


USER = 64_922
# One whom nobody else on this machine is: through a process of the same user, a command reaches all that this one sees.
# In a mount name space of its own: FUSE for all, as it is wherever ordinary users run containers, and the way to the
# allocation's directory, which the tests' folder for temporary files closes.
AS_USER = """#!/bin/sh
set -e
allocation=${{TMPDIR%/alloc/tmp}}
chown {user} "$TMPDIR" "$allocation/alloc/data"
mount --bind {made}/fuse /dev/fuse
mount --bind {made}/passwd /etc/passwd
exec 9< "$allocation"
mount -t tmpfs -o mode=755 tmpfs {top}
mkdir -p "$allocation"
mount --no-canonicalize --bind /proc/self/fd/9 "$allocation"
exec 9<&-
cd "$allocation/server"
exec setpriv --reuid={user} --regid=nogroup --clear-groups --bounding-set=-all --no-new-privs "$@"
"""
FROM_SOURCE = {"environment": {"PYTHONPYCACHEPREFIX": "/nowhere"}}
"""Python then does not take what the image has compiled."""


def containment(name: str) -> Callable[[str], str]:
    return bind(f"{{made}}/{name}.py:/app/slotserver/containment.py:ro")


NO_BUBBLEWRAP = bind("/bin/false:/usr/bin/bwrap")


@dataclass(frozen=True)
class Case:
    """A sandbox with something changed, and the checks that it turns red, without their common beginning."""

    sentence: str
    red: set[str]
    lines: tuple[Callable[[str], str], ...] = ()
    change: Callable[[dict], None] = lambda job: None
    driver: str = "singularity"
    settings: dict = field(default_factory=dict)


CASES = {
    "no-containall": Case(
        "Apptainer starts without `--containall`, in an image without bubblewrap.",
        {*FOLDERS, "directories", "processes", "signals", "ipc", "devices", "kernel-settings"},
        (without(" --containall"), NO_BUBBLEWRAP),
    ),
    "no-containall-but-bubblewrap": Case(
        "Apptainer starts without `--containall`, and bubblewrap alone is in the way.",
        {"home", "var-tmp"},
        (without(" --containall"),),
    ),
    "users-home": Case(
        "The home directory of the Nomad client's user is bound, under another name.",
        {"home"},
        (bind("{home}:/somewhere:ro"),),
    ),
    "working-directory": Case(
        "The working directory of the task is bound.", {"workdir"}, (bind('"$NOMAD_ALLOC_DIR/../server:/task"'),)
    ),
    "temporary-directories": Case(
        "The node's directories for temporary files are bound, all but what is the agent's.",
        {"tmp", "var-tmp", "dev-shm"},
        (bind("/tmp:/somewhere/tmp:ro", "{made}/empty:/somewhere{top}", "/var/tmp:/elsewhere", "/dev/shm:/memory:ro"),),
    ),
    "all-allocations": Case(
        "The directory above the allocation's own is bound.",
        {"allocations", "workdir"},
        (bind('"$NOMAD_ALLOC_DIR/../..:/allocations:ro"'),),
    ),
    "nomad-data": Case(
        "The client's data directory is bound.",
        {"allocations", "workdir", "nomad-data"},
        (bind('"$NOMAD_ALLOC_DIR/../../..:/nomad:ro"'),),
    ),
    "apptainer-of-the-site": Case(
        "What goes by the name of apptainer on the node is a script of the site, which binds home directories.",
        {"home"},
        (lambda line: line.replace("apptainer -q exec", "{made}/apptainer-of-the-site -q exec"),),
    ),
    "whole-node": Case(
        "The node's root is bound.",
        {*FOLDERS, "directories", "processes"},
        (bind("/:/host"),),
    ),
    "programs-of-the-node": Case("The node's `/usr` is bound.", {"directories"}, (bind("/usr:/node-usr:ro"),)),
    "agents-environment": Case(
        "The command of the task begins without `env -i`.",
        {"environment"},
        (lambda line: line.replace("exec env -i ", "exec env "),),
    ),
    "engines-socket": Case(
        "The socket of the node's container engine is bound.",
        {"container-engine"},
        (bind("{made}/docker.sock:/srv/docker.sock"),),
    ),
    "root-without-bubblewrap": Case(
        "The Nomad client runs as root, and so do commands, in an image without bubblewrap.",
        {"kernel-settings"},
        (NO_BUBBLEWRAP,),
    ),
    "writable-root": Case(
        "Apptainer starts with `--writable-tmpfs`, as an ordinary user, in an image without bubblewrap.",
        {"root-filesystem"},
        (as_user, NO_BUBBLEWRAP, lambda line: line.replace("--containall", "--containall --writable-tmpfs")),
    ),
    "processes-of-the-node": Case(
        "Apptainer starts with `--contain` in place of `--containall`, as an ordinary user, without bubblewrap.",
        {"processes", "ipc"},
        (as_user, NO_BUBBLEWRAP, lambda line: line.replace("--containall", "--contain")),
    ),
    # With users whom no other slot of this machine has: through their processes this one's commands reach more.
    "dockers-pid-mode": Case(
        "The container shares the node's process ids.",
        {"processes"},
        (),
        docker(pid_mode="host", volumes=["{made}/other-users.py:/app/slotserver/directories.py:ro"]),
        "docker",
        FROM_SOURCE,
    ),
    # As root: a user of a slot of the container above would find the memory through this one's processes.
    "dockers-ipc-mode": Case(
        "The container shares the node's memory, and commands run as its root.",
        {"ipc", "dev-shm", "root-filesystem"},
        (one_user,),
        docker(ipc_mode="host"),
        "docker",
    ),
    "dockers-privileges": Case(
        "The container is privileged, and commands run as its root.",
        {"capabilities", "devices", "kernel-settings", "root-filesystem"},
        (one_user,),
        docker(privileged=True, volumes=["/bin/false:/usr/bin/bwrap:ro"]),
        "docker",
    ),
    "new-privileges": Case(
        "Commands of slots may gain privileges by set-uid programs of the image.",
        {"setuid"},
        (),
        docker(
            volumes=["{made}/supervisor.py:/app/slotserver/supervisor.py:ro", "{made}/programs:/opt/programs:ro"],
        ),
        "docker",
    ),
}
OF_THE_IMAGE = {"kernel-settings", "root-filesystem", "setuid"}
"""Checks that an image can keep or break under the same job on the same node."""
HEALTHY = {
    "healthy": Case("", set()),
    "healthy-docker": Case("", set(), driver="docker"),
    # An ordinary user needs no bubblewrap to be kept from the kernel's settings.
    "healthy-user": Case("", set(), (as_user, NO_BUBBLEWRAP)),
    # What bubblewrap's own root holds is gone with the command.
    "healthy-private-root": Case("", set(), (containment("private-root"),), settings=FROM_SOURCE),
    # Who reaches nobody asks Nomad nothing.
    "healthy-no-network": Case("", set(), (containment("no-network"),), settings=FROM_SOURCE),
    # Commands that run as root have nothing of the root file system to write.
    "healthy-read-only": Case("", set(), (one_user,), driver="docker", settings={"read_only": True}),
}

for _name, _case in CASES.items():
    control(
        f"host-{_name}",
        "server" if _name == "new-privileges" else "job",
        *(f"{HOST}{check}" for check in sorted(_case.red)),
        sentence=_case.sentence,
    )
control(
    "host-anonymous-may-read",
    "node",
    f"{HOST}nomad-api",
    sentence="Nomad's access control is on, and lets anonymous read.",
)


PLANTED: list[str] = []
"""The word of each look around, which the names of its markers have."""


def host_verdicts(server: Server) -> dict[str, Verdict]:
    found = list(run_checks(CHECKS, server, Context(server.placed.run, "box", server.driver)))
    PLANTED.append(planted(server).hex)
    return {verdict.check.removeprefix(HOST): verdict for verdict in found}


@pytest.fixture(scope="module")
def made(house, tmp_path_factory) -> Path:
    """What jobs bind."""
    folder = tmp_path_factory.mktemp("made")
    folder.chmod(0o755)
    (folder / "empty").mkdir()
    text = SUPERVISOR.read_text()
    assert "prctl(PR_SET_NO_NEW_PRIVS, 1)" in text
    (folder / "supervisor.py").write_text(text.replace("prctl(PR_SET_NO_NEW_PRIVS, 1)", "pass"))
    text = CONTAINMENT.read_text()
    for name, old, new in (
        ("private-root.py", ' "--remount-ro", "/"', ""),
        ("no-network.py", '*(() if network else ("--unshare-net",))', '"--unshare-net"'),
    ):
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    text = DIRECTORIES.read_text()
    assert "FIRST_SLOT_USER = 40_001" in text
    (folder / "other-users.py").write_text(text.replace("FIRST_SLOT_USER = 40_001", "FIRST_SLOT_USER = 50_001"))
    (folder / "programs").mkdir()
    shutil.copy("/bin/true", folder / "programs")
    (folder / "programs" / "true").chmod(0o4755)
    shutil.copy("/bin/true", folder / "programs" / "able")
    setuid = struct.pack("<5I", 0x2000001, 1 << 7, 0, 0, 0)  # cap_setuid=ep
    os.setxattr(folder / "programs" / "able", "security.capability", setuid)
    fuse = folder / "fuse"
    os.mknod(fuse, stat.S_IFCHR | 0o666, Path("/dev/fuse").stat().st_rdev)
    fuse.chmod(0o666)
    # The outermost folder that is root's alone, where another test has not opened it.
    outermost = [*reversed(house.folder.parents), house.folder]
    closed = next((path for path in outermost if not path.stat().st_mode & 0o001), house.folder)
    (folder / "as-user").write_text(AS_USER.format(made=folder, top=closed, user=USER))
    (folder / "as-user").chmod(0o755)
    users = Path("/etc/passwd").read_text().rstrip("\n")
    (folder / "passwd").write_text(f"{users}\nsandboxes:x:{USER}:65534::/nonexistent:/bin/false\n")
    home = pwd.getpwuid(os.geteuid()).pw_dir
    script = f'#!/bin/sh\nshift 2\nexec apptainer -q exec --bind {home}:/srv/home "$@"\n'
    (folder / "apptainer-of-the-site").write_text(script)
    (folder / "apptainer-of-the-site").chmod(0o755)
    where = Path.cwd()
    os.chdir(folder)  # the name of a socket has 107 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("docker.sock")
    finally:
        os.chdir(where)
    return folder


@pytest.fixture(scope="module")
def seen(house, made):
    """The verdicts on each case: several at a time, for most of it is waiting."""
    top = Path("/", *house.folder.resolve().parts[1:3])
    names = {
        "{made}": str(made),
        "{home}": pwd.getpwuid(os.geteuid()).pw_dir,
        # What of the node's /tmp the agent's own directories are in: hidden, for they have checks of their own.
        "{top}": str(top) if top.is_relative_to("/tmp") else "/tmp/nothing",
    }

    def filled(text: str) -> str:
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    def look(name: str, case: Case) -> dict[str, Verdict]:
        def line(text: str) -> str:
            for change in case.lines:
                text = change(text)
            return filled(text)

        def change(job: dict) -> None:
            case.change(job)
            filled_job = json.loads(filled(json.dumps(job)))
            job.update(filled_job)

        with house.sandbox(f"host-{name}", driver=case.driver, line=line, change=change, **case.settings) as server:
            return host_verdicts(server)

    with ThreadPoolExecutor(3) as workers:
        yield {name: workers.submit(look, name, case) for name, case in (HEALTHY | CASES).items()}


@pytest.mark.parametrize("name", HEALTHY)
def test_all_green_without_a_defect(seen, name):
    found = seen[name].result()
    assert len(found) == len(CHECKS)
    assert {check: verdict for check, verdict in found.items() if verdict.verdict != "pass"} == {}


@pytest.mark.parametrize("name", CASES)
def test_what_is_let_in_turns_its_own_checks_red(seen, name):
    found = seen[name].result()
    assert {check for check, verdict in found.items() if verdict.verdict != "pass"} == CASES[name].red, found
    assert {verdict.verdict for verdict in found.values()} == {"pass", "fail"}
    # No image brings what is the node's.
    faults = {verdict.fault for check, verdict in found.items() if check in CASES[name].red - OF_THE_IMAGE}
    assert faults <= {Fault.INFRASTRUCTURE}


def test_what_keeps_the_healthy_ones_green_is_told(seen):
    private, cut = (seen[f"healthy-{name}"].result() for name in ("private-root", "no-network"))
    assert "what was written is gone: /" in private["root-filesystem"].message
    assert "reaches nobody but itself" in cut["nomad-api"].message
    assert "one made by mknod" in private["devices"].message


def test_set_uid_programs_are_found_on_what_is_mounted(seen):
    message = seen["new-privileges"].result()["setuid"].message
    assert "/opt/programs/true" in message
    assert message.endswith("with more capabilities in /opt/programs/able")


def test_no_value_of_the_environment_is_told(seen):
    message = seen["agents-environment"].result()["environment"].message
    assert "SIFPROOF_PLANTED" in message
    assert not re.search("[A-Za-z]{36}", message)


class Closed:
    """A node that runs no scripts, as one without raw_exec."""

    @contextlib.contextmanager
    def hold(self, script, **_):
        raise SifproofError("Nomad places no script there", why="missing drivers")
        yield


def test_an_open_api_and_a_node_that_runs_no_scripts(house, seen):
    for verdicts in seen.values():
        verdicts.result()
    token = (Path(house.cluster.directory) / "token").read_text()
    policy = f"{house.cluster.address}/v1/acl/policy/anonymous"
    rules = {"Name": "anonymous", "Rules": 'namespace "default" { policy = "read" }'}
    with house.sandbox("open") as server:
        requests.put(policy, json=rules, headers={"X-Nomad-Token": token}, timeout=10).raise_for_status()
        try:
            try_without_gate("host-anonymous-may-read", server)
            server.placed.__dict__["node"] = Closed()
            found = host_verdicts(server)
        finally:
            requests.delete(policy, headers={"X-Nomad-Token": token}, timeout=10).raise_for_status()
    assert {check for check, verdict in found.items() if verdict.verdict == "fail"} == {"nomad-api"}
    assert "GET /v1/jobs" in found["nomad-api"].message
    blind = {check for check, verdict in found.items() if verdict.verdict == "not-measured"}
    assert blind == {*FOLDERS, "directories", "environment", "processes", "signals", "ipc"}
    assert all("missing drivers" in found[check].message for check in blind)


def test_nothing_stays(house, seen):
    """What was planted for whom is gone: on the node and in the workspaces."""
    for verdicts in seen.values():
        verdicts.result()
    with house.sandbox("clean") as server:
        there = planted(server)
        folders = {Path(line.partition(" ")[2]).parent for line in there.node["place"]}
        folders.add(Path(there.node.one("workspace")))
        assert len(folders) == len(FOLDERS) + 2
        own = [*PLANTED, there.hex]  # a gate that runs beside this has markers too
        assert [str(path) for folder in folders for hex in own for path in folder.glob(f".sifproof-{hex}*")] == []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # ended by now
                words = path.read_bytes()
                assert not [hex for hex in own if hex.encode() in words]


def test_a_script_that_does_not_come_to_its_end_has_seen_nothing():
    with pytest.raises(NotMeasured, match="who did not come to its end: 'seen"):
        Said("seen\tthis", "end", "who")
