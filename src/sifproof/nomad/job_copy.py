"""A twin of a sandbox: the same job once more, for what would harm the sandbox itself.

It has the same image, command and resources, a port of its own, and an id that begins with the sandbox's: whatever
ends the run's jobs ends it too.
"""

from __future__ import annotations

import contextlib
import copy
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sifproof.errors import Fault, SifproofError
from sifproof.nomad.allocations import TERMINAL, Allocation
from sifproof.nomad.client import BLOCK_S, Client
from sifproof.nomad.deployed_job import is_given, port_label_of, ports, task_of
from sifproof.nomad.job import kill_timeout_s, quote
from sifproof.nomad.submit import wait_for_allocations

RESTART_DELAY_S = 0.2
"""Before Nomad starts a twin again whose server has ended; it adds up to a quarter."""

CHECK = "health"
CHECKED_EVERY_S = 1.0
"""Nomad checks no more often, nor does it give up sooner on an answer."""

_RESTARTS = {
    "Attempts": 2,
    "Delay": int(RESTART_DELAY_S * 1e9),
    "Interval": 600_000_000_000,
    "Mode": "fail",
}
_DISK_MIB = 32
_ENDS_S = 10.0
"""How long a twin that was told to end is waited for beside its kill timeout: what Nomad and a busy node take."""


_DATA_BIND = '--bind "$NOMAD_ALLOC_DIR/data:/data"'
_LIFETIME = "timeout --foreground"
_CONTAINED = "--containall --no-eval"
_USERNS = "--userns"
_WORKDIR = '--workdir "$NOMAD_ALLOC_DIR/tmp"'


class NoTwinError(SifproofError):
    """A job that production runs can't run twice on one node, or not with what would have to be changed in it."""


def create_twin(
    job: Mapping[str, Any], *, node_id: str = "", datacenter: str = "", restarts: bool = True
) -> dict[str, Any]:
    """A job like ``job`` under another id, with one allocation.

    ``node_id`` or ``datacenter`` say where it is placed. ``restarts``: Nomad starts it again when its server ends,
    which it does not do for a sandbox under test. Nomad picks its port. Raises :class:`NoTwinError` where the job names
    another one in its command.
    """
    twin: dict[str, Any] = {"Job": copy.deepcopy(dict(job["Job"]))}
    body = twin["Job"]
    body["ID"] = body["Name"] = f"{body['ID']}-twin-{secrets.token_hex(4)}"
    if datacenter:
        body["Datacenters"], body["Constraints"] = [datacenter], []
    else:
        body["Constraints"] = [
            *(body.get("Constraints") or []),
            {"LTarget": "${node.unique.id}", "Operand": "=", "RTarget": node_id},
        ]
    group = body["TaskGroups"][0]
    group["Count"] = 1
    group["RestartPolicy"] = dict(_RESTARTS) if restarts else {"Attempts": 0, "Mode": "fail"}
    group["ReschedulePolicy"] = {"Attempts": 0, "Unlimited": False}
    group.pop("Services", None)
    task = task_of(twin)
    for part in group["Tasks"]:
        part.pop("RestartPolicy", None)
        part.pop("Services", None)
    _free_port(twin, group, task)
    return twin


def _free_port(twin: Mapping[str, Any], group: dict[str, Any], task: dict[str, Any]) -> None:
    """Let Nomad pick the port of ``twin``, and its server listen on that."""
    label = port_label_of(twin)
    for network, kind, port in list(ports(group, task)):
        if kind == "DynamicPorts" or port["Label"] != label:
            continue
        network[kind].remove(port)
        free = {"Label": label}
        if task["Driver"] == "docker":  # the port inside stays
            free["To"] = port.get("To") or port["Value"]
        elif is_given(twin):
            _name_port(task, label, port["Value"])
        network["DynamicPorts"] = [*(network.get("DynamicPorts") or []), free]


def _name_port(task: dict[str, Any], label: str, number: int) -> None:
    """Put Nomad's name of the port ``label`` where the command of ``task`` gives its ``number``."""
    words = task["Config"].get("args") or []
    if any(re.search(rf"NOMAD_PORT_{re.escape(label)}\b", word) for word in words):
        return
    numbered = rf"(--port[=\s]+[\"']?){number}\b"
    named = [re.sub(numbered, rf"\g<1>${{NOMAD_PORT_{label}}}", word) for word in words]
    for index, word in enumerate(named[1:], 1):
        if word == str(number) and named[index - 1] == "--port":
            named[index] = f"${{NOMAD_PORT_{label}}}"
    if named == words:
        raise NoTwinError(
            f"A second job of this kind can't run beside it: its command has no `--port {number}`, nor Nomad's name "
            f"of the port, $NOMAD_PORT_{label}",
            fault=Fault.CONFIGURATION,
        )
    task["Config"]["args"] = named


def give_small_disk(job: Mapping[str, Any]) -> None:
    """Put the data of ``job`` on a file system in memory that is soon full.

    Docker makes one itself. Under Apptainer the task makes it in a mount namespace of its own, which needs no rights
    but to user namespaces; without these Apptainer is installed set-uid, and its scratch folders are small.
    """
    task = task_of(job)
    mount = f'mount -t tmpfs -o size={_DISK_MIB}m tmpfs "$0" && exec "$@"'
    if task["Driver"] == "docker":
        disk = {"type": "tmpfs", "target": "/alloc/data", "tmpfs_options": [{"size": _DISK_MIB << 20}]}
        task["Config"]["mount"] = [*task["Config"].get("mount", []), disk]
    elif _CONTAINED not in task["Config"]["args"][-1]:
        command = [task["Config"]["command"], *(task["Config"].get("args") or [])]
        # Apptainer takes its flags from variables too; as root of a user namespace it must be told to make its own.
        own = f"exec env APPTAINER_USERNS=1 SINGULARITY_USERNS=1 unshare -Urm sh -c {quote(mount)} "
        line = f'mkdir -p "$NOMAD_ALLOC_DIR/data" && {own} "$NOMAD_ALLOC_DIR/data" "$@"'
        task["Config"] = {"command": "/bin/sh", "args": ["-c", line, "sh", *command]}
    else:
        line = task["Config"]["args"][-1]
        own = _replaced(line, _LIFETIME, f'unshare -Urm sh -c {quote(mount)} "$NOMAD_ALLOC_DIR/data" {_LIFETIME}')
        if _USERNS not in own:
            own = _replaced(own, _CONTAINED, f"{_CONTAINED} {_USERNS}")
        # With --workdir a scratch folder would lie in that, on the node's disk.
        scratch = _replaced(_replaced(line, _DATA_BIND, "--scratch /data"), _WORKDIR, "")
        task["Config"]["args"][-1] = f"if unshare -Urm true 2>/dev/null; then\n{own}\nelse\n{scratch}\nfi"
    # What lies in it counts as memory of the task.
    task["Resources"]["MemoryMB"] = (task["Resources"].get("MemoryMB") or 0) + 128


def let_nomad_check(job: Mapping[str, Any]) -> None:
    """Have Nomad ask ``/health`` of ``job`` every :data:`CHECKED_EVERY_S`, as it does for a scheduler that asks it."""
    every = int(CHECKED_EVERY_S * 1e9)
    check = {"Name": CHECK, "Type": "http", "Path": "/health", "Interval": every, "Timeout": every}
    service = {"Name": "sifproof-twin", "Provider": "nomad", "PortLabel": port_label_of(job), "Checks": [check]}
    job["Job"]["TaskGroups"][0]["Services"] = [service]


def listen_on(job: Mapping[str, Any], port: int) -> None:
    """Let the server of ``job``, a singularity one, listen on ``port``, of which Nomad does not know."""
    configured, variable = task_of(job)["Config"], f"NOMAD_PORT_{port_label_of(job)}"
    name = rf"{re.escape(variable)}\b"
    named = rf"\"\$\{{?{name}\}}?\"|\$\{{{name}\}}|\${name}"
    words = [re.sub(named, str(port), word) for word in configured["args"]]
    if words == configured["args"]:
        raise NoTwinError(f"The command of the job does not have Nomad's name of its port, ${variable}")
    configured["args"] = words


def _replaced(line: str, old: str, new: str) -> str:
    if old not in line:
        raise SifproofError(
            "The job of the sandbox is not as sifproof renders it",
            why=f"its shell line has no {old}",
            todo="please report it, with the rendered job",
            fault=Fault.INCOMPLETE,
        )
    return line.replace(old, new, 1)


@contextlib.contextmanager
def running(client: Client, job: Mapping[str, Any], deadline_s: float) -> Iterator[Allocation]:
    """The allocation of ``job``, which is submitted, and stopped and purged at the end.

    Raises :class:`SifproofError` where it can't be placed or its task does not start.
    """
    with submitted(client, job):
        yield wait_for_allocations(client, job["Job"]["ID"], 1, deadline_s)[0]


@contextlib.contextmanager
def submitted(client: Client, job: Mapping[str, Any]) -> Iterator[None]:
    """``job`` is submitted, whatever becomes of it; at the end it is stopped, its task has ended, and it is purged.

    Raises :class:`SifproofError` where Nomad does not take it.
    """
    job_id = job["Job"]["ID"]
    client.register(job)
    try:
        yield
    finally:
        # What can't be told now is told when the run ends: the id begins with the run's.
        with contextlib.suppress(SifproofError):
            client.deregister(job_id, purge=False)
            # Until then Nomad counts what it reserved for it, and a node may have no room for the next.
            _wait_ended(client, job_id, kill_timeout_s(task_of(job)) + _ENDS_S)
        with contextlib.suppress(SifproofError):
            client.deregister(job_id, purge=True)


def _wait_ended(client: Client, job_id: str, within_s: float) -> None:
    end, index = time.monotonic() + within_s, 0
    while (left := end - time.monotonic()) > 0:
        stubs, index = client.wait_for_change("job", job_id, "allocations", index=index, wait_s=min(BLOCK_S, left))
        if all(stub["ClientStatus"] in TERMINAL for stub in stubs):
            break
