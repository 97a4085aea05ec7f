"""``isolation.host.*``: a sandbox sees and reaches nothing of the node that it was not given.

What a slot's commands see, not what the server could: a server may well contain them better than its container does.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Server, nonce
from sifproof.checks.isolation import scripts
from sifproof.checks.isolation.planted import Planted, Said, planted
from sifproof.errors import Fault, SifproofError
from sifproof.nomad.job import DOCKER_PORT
from sifproof.nomad.node.leftovers import unescape

PLACES = {
    "home": "the home directory of the Nomad client's user",
    "workdir": "the working directory of its task, or of the Nomad agent",
    "tmp": "the node's `/tmp`",
    "var-tmp": "the node's `/var/tmp`",
    "dev-shm": "the node's `/dev/shm`",
    "allocations": "the directory of another allocation",
    "nomad-data": "the data directory of the Nomad client",
}
"""Where on the node a marker is planted, in words; the key ends the id of the check."""

# No image brings what is the node's: who has to act for most of these checks is who runs the node or wrote the config.
_BROUGHT = (
    "Look for it in `binds` of the config, under Docker in `volumes` and `mount` of the rendered job too, and take out "
    "the bind that brings it or a folder above it. What goes by the name of apptainer on the node may be a script of "
    "the site, with binds of its own: name the program itself in `apptainer` of the config."
)
_RENDERED = (
    "sifproof renders each job so: see whether this one was edited, or apptainer on the node is a script that changes "
    "it."
)
_APART = f"A container has its own by Apptainer's `--containall`, under Docker where `{{}}` is not `host`; {_RENDERED}"

_WHY = {
    "home": (
        "Keys, tokens and start-up files lie there: who reads or writes them is the user of the Nomad client.",
        f"{_BROUGHT} The user's home, which Apptainer gives a container else, is kept out by `--containall`; "
        f"{_RENDERED}",
    ),
    "workdir": (
        "The task's directory holds its secrets, and that of the agent its configuration.",
        f"{_BROUGHT} The directory that it is started in, which Apptainer gives a container else, is kept out by "
        f"`--containall`; {_RENDERED}",
    ),
    "tmp": (
        "Sockets, locks and half-written files of all users lie there.",
        f"{_BROUGHT} A container has a `/tmp` of its own by Apptainer's `--containall`; {_RENDERED}",
    ),
    "var-tmp": (
        "What lies there outlives a reboot, and belongs to others.",
        f"{_BROUGHT} A container has a `/var/tmp` of its own by Apptainer's `--containall`; {_RENDERED}",
    ),
    "dev-shm": (
        "Programs share their memory by it: MPI, databases, browsers.",
        f"{_BROUGHT} {_APART.format('ipc_mode')}",
    ),
    "allocations": ("Data and secrets of other jobs lie there.", _BROUGHT),
    "nomad-data": ("The client's state and the secrets of every task on the node lie there.", _BROUGHT),
}


def judge_place(name: str, found: Planted, given: Iterable[str] = ()) -> Finding:
    """Whether what was planted in the place ``name`` is seen in the slot, or something of the slot's came there.

    ``given`` are the config's ``binds``: what they bring is its matter.
    """
    places, closed = found.node.named("place", name), found.node.named("closed", name)
    if not places and closed and name != "home":
        raise NotMeasured(f"the client's user may not write there, so nothing could be planted: {', '.join(closed)}")
    if not places:
        # A home that its own user can't write is none: nothing of theirs is left there.
        there = [f"{path}: {why}" for why in ("absent", "closed") for path in found.node.named(why, name)]
        raise NotApplicable(f"the client's user has no such directory of its own ({'; '.join(there) or 'none at all'})")
    seen = found.inside.named("visible", name)
    arrived = found.after.named("arrived", name)
    said = [f"a file planted in {PLACES[name]} is there as {path}" for path in seen]
    said += [f"a file that the slot wrote arrived as {path}" for path in arrived]
    folders = ", ".join(dict.fromkeys(path.rpartition("/")[0] or "/" for path in places))
    unlooked = f"; not looked at, for the client's user may not write there: {', '.join(closed)}" if closed else ""
    finding = expect(
        not said, "; ".join(said[:2]) or f"no file planted is seen, and none came out: {folders}{unlooked}"
    )
    return _asked_for(finding, _holds(given, seen, inside=True) or _holds(given, arrived))


def _place(name: str) -> Callable[[Server], Finding]:
    return lambda server: judge_place(name, planted(server), server.placed.sandbox.binds)


def _asked_for(finding: Finding, asked: bool) -> Finding:
    """``finding``, for which the config is at fault where it asked for what was found."""
    return replace(finding, fault=Fault.CONFIGURATION) if asked and not finding.passed else finding


def _holds(binds: Iterable[str], paths: Iterable[str], *, inside: bool = False) -> bool:
    """Whether one of ``paths`` is, or is below, what ``binds`` of the config bring: on the node, or in the slot."""
    folders = [bind.split(":")[:2][-1 if inside else 0] for bind in binds]
    return any(PurePosixPath(path).is_relative_to(folder) for path in paths for folder in folders)


for _name, (_why, _todo) in _WHY.items():
    check(
        f"isolation.host.{_name}",
        f"A slot neither sees a file in {PLACES[_name]} nor leaves one there.",
        why=_why,
        todo=_todo,
        blames=Fault.INFRASTRUCTURE,
        once=True,
    )(_place(_name))


@check(
    "isolation.host.directories",
    "None of the node's top directories and of its users' home directories is in a slot, but for what `binds` names.",
    why="Programs, settings and data of others are on them; a bind of `/` gives all at once.",
    todo=_BROUGHT,
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def directories(server: Server) -> Finding:
    found = planted(server)
    node = _identities(found.node)
    if not node:
        raise NotMeasured("the node has no stat, to tell a directory by its inode")
    inside = _identities(found.inside)
    if not inside:
        raise NotMeasured("the image has no stat, to tell a directory by its inode")
    given = [bind.partition(":")[0].rstrip("/") or "/" for bind in server.placed.sandbox.binds]
    known = [
        f"{path} is the node's {node[identity]}"
        for identity, path in inside.items()
        if identity in node and node[identity] not in given
    ]
    known += [f"{path} has the node's {folder}" for path, folder in far_directories(found.node, found.inside, given)]
    said = f"{len(inside)} directories, none of {len(node)} of the node's"
    if far := found.node["far"]:
        said += f" and of {len(far)} that come to it over the network, by their mounts"
    if found.node["unlooked"]:
        said += "; not all of the node's were looked at: one did not answer within 10 s"
    return expect(not known, "; ".join(known[:8]) or said)


def far_directories(node: Said, inside: Said, given: Iterable[str]) -> list[tuple[str, str]]:
    """Mounts of the slot with a directory of the node that may not be asked for its inode, and which that is.

    Told by the device, and by what of its file system each mount shows (``root``).
    """
    found = []
    for line in node["far"]:
        device, root, point, folder = line.split(" ", 3)
        path = PurePosixPath(_path(root)) / PurePosixPath(folder).relative_to(_path(point))
        if any(PurePosixPath(folder).is_relative_to(one) for one in given):
            continue
        found += [
            (_path(there), folder)
            for its_device, shown, there in (mount.split(" ") for mount in inside["far"])
            if its_device == device and path.is_relative_to(_path(shown))
        ]
    return found


def _path(field: str) -> str:
    return unescape(os.fsencode(field))


def _identities(said: Said) -> dict[str, str]:
    """Paths of directories by device and inode, which a bind mount does not change."""
    pairs = [line.partition(" ") for line in said["directory"]]
    return {identity: path.removesuffix("/.") or "/" for identity, _, path in reversed(pairs)}


@check(
    "isolation.host.environment",
    "No variable of the Nomad agent's environment is seen in a slot, in that of any process.",
    why="A task inherits the agent's environment, and with it tokens that nobody thought of; Apptainer carries it on, "
    "`APPTAINERENV_*` even over `--cleanenv`.",
    todo="Take tokens out of the agent's environment. Under Apptainer `env -i` at the beginning of the command keeps "
    f"it out, and Docker hands on what the job's `Env` names alone; {_RENDERED}",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def environment(server: Server) -> Finding:
    leaked, known = planted(server).leaked()
    if not known:
        raise NotApplicable("the agent's environment holds nothing that could be told apart")
    return expect(not leaked, f"seen: {', '.join(leaked)}" if leaked else f"none of {known} values of the node is seen")


@check(
    "isolation.host.processes",
    "A slot sees neither the arguments nor the environment of a process of the node.",
    why="Passwords stand in them, and through `/proc/PID/root` of such a process all files of the node are in reach.",
    todo=_APART.format("pid_mode"),
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def processes(server: Server) -> Finding:
    found = planted(server)
    if not found.node.one("process"):
        raise NotMeasured("no process could be planted on the node")
    if not found.inside["processes"]:
        raise NotMeasured("the image has no cat or no tr")
    seen = found.inside["process"]
    return expect(not seen, f"of the planted process is seen: {'; '.join(seen)}" if seen else "it sees its own alone")


@check(
    "isolation.host.signals",
    "A slot can't send a signal to a process of the node.",
    why="It could end what others compute, or the Nomad client itself.",
    todo=_APART.format("pid_mode"),
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def signals(server: Server) -> Finding:
    found = planted(server)
    if not found.node.one("process"):
        raise NotMeasured("no process could be planted on the node")
    arrived = bool(found.after["signalled"])
    return expect(not arrived, f"SIGURG to a planted process {'arrived' if arrived else 'did not arrive'}")


@check(
    "isolation.host.ipc",
    "A slot does not share System V shared memory, semaphores and queues with the node.",
    why="Programs of the same user there can be read and misled by it.",
    todo=_APART.format("ipc_mode"),
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def ipc(server: Server) -> Finding:
    found = planted(server)
    segment, seen = found.node.one("shm"), found.inside["shm"]
    outside, inside = found.node.one("ipc-namespace"), found.inside.one("ipc-namespace")
    if not (segment and found.inside["shm-list"]) and not (outside and inside):
        raise NotMeasured("neither is there a list of shared memory nor do node and image tell the name space")
    shared = bool(seen) or (bool(outside) and outside == inside)
    return expect(
        not shared,
        f"a planted segment of shared memory is {'seen' if seen else 'not seen' if segment else 'not to be had'}; "
        f"name space of the node {outside or 'unknown'}, of the slot {inside or 'unknown'}",
    )


@check(
    "isolation.host.devices",
    "A slot can open no block device and no memory of the node, and can't make itself one.",
    why="Under the file system there are no permissions: every file of the node can be read from its disk.",
    todo="Leave `privileged` out of the config, and devices out of `binds`. A container has a `/dev` of its own by "
    f"Apptainer's `--containall`; {_RENDERED}",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def devices(server: Server) -> Finding:
    found = planted(server).inside
    sandbox = server.placed.sandbox
    asked = sandbox.privileged or _holds(sandbox.binds, found["device"], inside=True)
    return _asked_for(judge_devices(found), asked)


def judge_devices(said: Said) -> Finding:
    """Whether the slot opened a block device that is there, or one of its own making."""
    opened, closed, tried = said["device"], said["closed-device"], said.one("mknod")
    if opened:
        return expect(False, f"{len(opened)} can be opened for reading: {', '.join(opened[:8])}")
    if not tried and not _is_own_user_namespace(said) and _capabilities(said, "CapEff") >> _NAMES.index("mknod") & 1:
        raise NotMeasured(
            "whether a command can make itself a block device could not be tried: no mknod, or none to make"
        )
    made = f"one made by mknod ({tried}) neither" if tried else "the command has no right to make itself one"
    return expect(True, f"{len(closed)} block devices are there, none can be opened, {made}")


@check(
    "isolation.host.kernel-settings",
    "No setting of the node's kernel is open for writing in a slot.",
    why="`core_pattern` names a program that the kernel runs as root outside of all containers; to root in a user name "
    "space without any capability it is open still.",
    todo="Let commands run in bubblewrap with `--ro-bind /proc/sys /proc/sys` and without `/sys`, or run the Nomad "
    "client, or the task (`user`), as an ordinary user; with Docker leave out `privileged`.",
    once=True,
)
def kernel_settings(server: Server) -> Finding:
    said = planted(server).inside
    if not said["settings"]:
        raise NotMeasured("the slot has no /proc/sys")
    opened = said["writable-setting"]
    many = f" and {len(opened) - 8} more" if len(opened) > 8 else ""
    return expect(not opened, f"open for writing: {', '.join(opened[:8])}{many}" if opened else "none can be opened")


@check(
    "isolation.host.root-filesystem",
    "What a slot writes to the root file system is gone with the command: programs, libraries and settings of the "
    "image can't be changed.",
    why="What one agent changes there, the next one runs, in this slot and in all others.",
    todo="With Docker set `read_only: true`, or let the server run the commands as a user that owns none of it. Under "
    f"Apptainer it is read-only without `--writable` and `--writable-tmpfs`; {_RENDERED}",
    advisory={
        "docker": "Docker gives each container a root file system of its own that its root can write: nothing of the "
        "node, and gone with the container; `read_only: true` closes it"
    },
    given_by=("read_only",),
    once=True,
)
def root_filesystem(server: Server) -> Finding:
    found = planted(server)
    opened, tried = found.inside["writable-root"], found.inside["root-folder"]
    if not tried:
        raise NotMeasured("no directory of the root file system was found to try")
    kept = found.later["kept-root"] if opened else []
    gone = f"; what was written is gone: {', '.join(opened)}" if opened else ""
    return expect(
        not kept,
        f"written, and there for the next command: {', '.join(kept)}"
        if kept
        else f"{len(tried)} directories tried{gone}",
    )


@check(
    "isolation.host.setuid",
    "A program of the image that is set-uid root, or has capabilities of its own, gives a command no rights that it "
    "did not have.",
    why="A hole in one such program (su, mount, sudo) makes the command root, and frees it from its user.",
    todo="Start commands with `no_new_privs` set (bubblewrap does it; `setpriv --no-new-privs`), or take such "
    "programs out of the image, or their rights (`chmod u-s`, `setcap -r`).",
    once=True,
)
def setuid(server: Server) -> Finding:
    said = planted(server).inside
    if said.one("NoNewPrivs") == "1":
        return expect(True, "the kernel grants no new privileges to the command (NoNewPrivs)")
    user = _uids(said)[1]
    if user == "0":
        return expect(True, "commands run as user 0 already: there is nothing to gain")
    points = [point for _, _, point in (line.partition(" ") for line in said["mount"])]
    places = {shlex.quote(point) for point in points if not point.startswith(_NO_FILES)}
    result = server.bash(
        # Each by itself: what is bound over the root's directories is another file system.
        f"set -- / {' '.join(sorted(places - {'/'}))}\n"
        'find "$@" -xdev -type f -user 0 -perm -4000 -perm -1 2>/dev/null | sort -u | head -n 100\n'
        'if command -v python3 >/dev/null; then find "$@" -xdev -type f -perm -1 2>/dev/null '
        f"| python3 -c {shlex.quote(_CAPABILITIES_OF_FILES)}; fi\n"
        "command -v find >/dev/null",
        timeout_s=120,
    )
    if not result.success:
        raise NotMeasured(f"set-uid programs can't be searched for: {result}")
    lines = result.output.splitlines()
    gaining = [path for path in lines if path.startswith("/") and not _is_nosuid(path, said)]
    more = _capabilities(said, "CapBnd") & ~_capabilities(said, "CapPrm") & ~_HARMLESS
    of_files = [line.split(" ", 2)[1:] for line in lines if line.startswith("capabilities ")]
    able = [path for mask, path in of_files if int(mask, 16) & more and not _is_nosuid(path, said)]
    found = [f"as root in {', '.join(gaining[:12])}"] if gaining else []
    found += [f"with more capabilities in {', '.join(able[:12])}"] if able else []
    unlooked = "" if "looked at capabilities" in lines else "; no python3 told the capabilities of files"
    return expect(
        not found, f"commands run as user {user}, and {', '.join(found)}" if found else f"no such program{unlooked}"
    )


# What a file gives to whoever starts it, of those that anybody may start: linux/capability.h, struct vfs_cap_data.
_CAPABILITIES_OF_FILES = """
import os, struct, sys
for line in sys.stdin.buffer:
    path = line.rstrip(b"\\n")
    try:
        held = os.getxattr(path, "security.capability").ljust(20, b"\\0")
    except OSError:
        continue
    low, high = (struct.unpack_from("<I", held, at)[0] for at in (4, 12))
    print("capabilities", format(high << 32 | low, "x"), path.decode(errors="replace"))
print("looked at capabilities")
"""


_NO_FILES = ("/proc", "/sys", "/dev")


def _uids(said: Said) -> list[str]:
    uids = said.one("Uid").split()
    if len(uids) != 4:
        raise NotMeasured("the slot has no /proc/self/status")
    return uids


def _is_nosuid(path: str, said: Said) -> bool:
    """Whether the file system that ``path`` is on ignores set-uid bits, as the slot's list of mounts says."""
    mounts = [line.partition(" ")[::2] for line in said["mount"]]
    over = [(len(point), options) for options, point in mounts if path.startswith(point.rstrip("/") + "/")]
    return "nosuid" in max(over, default=(0, ""))[1].split(",")


_DOCKERS = 0xA80425FB
"""The capabilities that Docker gives the root of a container: they reach no further than its name spaces."""

_NAMES = """
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
""".split()  # noqa: SIM905 - forty lines otherwise
"""Of the capabilities, by the number of their bit: include/uapi/linux/capability.h."""

_HARMLESS = sum(1 << _NAMES.index(name) for name in ("net_bind_service", "net_raw"))
"""What ping and the like have: no file and no process of others is in reach by it."""


def _is_own_user_namespace(said: Said) -> bool:
    if not said["map"]:
        raise NotMeasured("the slot has no /proc/self/uid_map")
    return [line.split() for line in said["map"]] != [["0", "0", "4294967295"]]


def _capabilities(said: Said, *words: str) -> int:
    """What the slot holds by the lines ``words`` of its ``/proc/self/status``, as bits."""
    held = 0
    for word in words:
        try:
            held |= int(said.one(word), 16)
        except ValueError:
            raise NotMeasured("the slot has no /proc/self/status") from None
    return held


@check(
    "isolation.host.capabilities",
    "A command holds no capability over the node: none outside of a user name space of its own (under Docker: none "
    "that its default profile does not give), and can't read a file of another user that is closed to all.",
    why="With one such as `sys_admin` or `sys_ptrace` a command takes over the node.",
    todo="Leave `privileged` and `nested_sandboxes` out of the config where commands don't run in bubblewrap; where "
    "Apptainer runs as root set `userns: true`, or run the Nomad client as an ordinary user.",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def capabilities(server: Server) -> Finding:
    found = planted(server)
    said = found.inside
    own = _is_own_user_namespace(said)
    held = _capabilities(said, "CapEff", "CapPrm", "CapInh", "CapAmb")
    docker = server.driver == "docker"
    too_many = 0 if own else held & ~(_DOCKERS if docker else 0)
    reads = bool(said["closed-file"]) and (own or not docker)
    names = ", ".join(name for bit, name in enumerate(_NAMES) if too_many >> bit & 1)
    where = "in a user name space of its own" if own else "in that of the node"
    mapped = "; ".join(" ".join(line.split()) for line in said["map"])
    finding = expect(
        not too_many and not reads,
        f"user {_uids(said)[1]} {where} (uid_map {mapped}), capabilities {held:x}"
        + (f", over the node: {names or hex(too_many)}" if too_many else "")
        + ("; a file of another user, closed to all, could be read" if said["closed-file"] else ""),
    )
    sandbox = server.placed.sandbox
    return _asked_for(finding, docker and (sandbox.privileged or sandbox.nested_sandboxes))


@check(
    "isolation.host.container-engine",
    "No socket of a container engine of the node can be reached in a slot.",
    why="Who reaches it starts a container with all of the node in it, as root.",
    todo=_BROUGHT,
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def container_engine(server: Server) -> Finding:
    seen = planted(server).inside["engine"]
    finding = expect(not seen, f"can be written to: {', '.join(seen)}" if seen else "no socket of an engine is there")
    return _asked_for(finding, _holds(server.placed.sandbox.binds, seen, inside=True))


@check(
    "isolation.host.nomad-api",
    "Nomad's HTTP API gives a slot nothing without a token: no list of jobs or nodes, no configuration, no plan of a "
    "job.",
    why="Apptainer shares the node's network. Who may submit a job runs code as the user of the Nomad client, outside "
    "of all containers.",
    todo="Turn on `acl` for the cluster and give anonymous no rights, or close the API to the nodes' own addresses.",
    blames=Fault.INFRASTRUCTURE,
    once=True,
)
def nomad_api(server: Server) -> Finding:
    placed = server.placed
    try:
        node = placed.nomad.get("node", placed.allocation.node_id)
    except SifproofError as error:
        raise NotMeasured(f"Nomad does not tell the address of the node's agent: {error}") from None
    scheme = "https" if node.get("TLSEnabled") else "http"
    cluster = urlsplit(placed.cluster.address)
    agents = [f"{scheme}://{node['HTTPAddr']}"] if node.get("HTTPAddr") else []
    if cluster.hostname and cluster.port:
        host = f"[{cluster.hostname}]" if ":" in cluster.hostname else cluster.hostname
        agents.append(f"{cluster.scheme}://{host}:{cluster.port}")
    port = int((node.get("HTTPAddr") or ":4646").rpartition(":")[2])
    docker = placed.sandbox.driver == "docker"
    inner = placed.sandbox.port if isinstance(placed.sandbox.port, int) else DOCKER_PORT
    job = nonce()
    result = server.bash(
        scripts.ask(
            own_host="127.0.0.1" if docker else placed.allocation.address,
            own_port=inner if docker else placed.allocation.port,
            targets=dict.fromkeys(agents),
            gateway=f"{scheme}://GATEWAY:{port}" if docker else "",
            job=job,
            plan=_plan(job),
        )
    )
    said = Said(result.output, "end", f"the command that asks Nomad ({result})")
    if not said.one("way"):
        raise NotMeasured(
            "the slot has no program that could ask, or no network at all; tried: "
            f"{said.one('tools').strip() or 'none of bash, python3, curl, wget, nc is there'}"
        )
    answers = [line.split() for line in said["answer"]]
    given = [f"{method} {path} at {where}" for where, method, path, *rest in answers if rest[1:2] == ["200"]]
    told = sorted({f"{where}: {' '.join(rest[1:]) or 'no answer'}" for where, _, _, *rest in answers})
    cut = "the slot reaches nobody but itself, not even its server; " if said["cut"] else ""
    return expect(not given, f"answered without a token: {'; '.join(given)}" if given else f"{cut}{'; '.join(told)}")


def _plan(job: str) -> str:
    """A job for Nomad to plan: it is looked at and not kept."""
    task = {"Name": "t", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}
    groups = [{"Name": "g", "Tasks": [task]}]
    text = {"ID": job, "Name": job, "Type": "batch", "Datacenters": ["*"], "TaskGroups": groups}
    return json.dumps({"Job": text, "Diff": False})
