"""Sandboxes that leave something behind, or do not go when they are told to."""

import contextlib
import io
import itertools
import socket
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import pytest
from catalogue import control
from placed import red

from sifproof import host_tools
from sifproof.checks.engine import registry
from sifproof.checks.engine.runner import Context, run_checks
from sifproof.checks.engine.subject import Ended, Server
from sifproof.nomad import teardown
from sifproof.nomad.node import leftovers
from sifproof.nomad.ports import claim_block

HERE = Path(__file__).parent
FUSE = host_tools.root() / "debian/apptainer/usr/bin"
"""Of a machine whose Apptainer is set-up's own; another machine's has its helpers on the PATH."""

# Nomad ends the control groups of a task, where it may make some: what survives a stop has left them.
LEAVE = "for group in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do echo 0 > $group; done"
QUIET = "< /dev/null > /dev/null 2>&1 &"


@dataclass(frozen=True)
class Leftover:
    """What a wrapper around apptainer leaves on the node when it starts the server, and what must turn red."""

    line: str
    red: str
    sentence: str


LEFTOVERS = {
    "survivor": Leftover(
        f"({LEAVE}; exec setsid sleep 600) {QUIET}",
        "teardown.processes",
        "A process that was started beside the server, in a session and control group of its own, lives on.",
    ),
    "survivor-under-another-name": Leftover(
        f"({LEAVE}; exec setsid bash -c 'exec -a \"nomad agent\" sleep 600') {QUIET}",
        "teardown.processes",
        "A process that was started beside the server lives on, and calls itself a Nomad agent.",
    ),
    "mount": Leftover(
        'mkdir "$TMPDIR/left" && mount -t tmpfs tmpfs "$TMPDIR/left"',
        "teardown.mounts",
        "A file system stays mounted in the allocation's directory.",
    ),
    # Mounted where nothing tells whose it is.
    "fuse-helper": Leftover(
        'mksquashfs /etc/hostname "$TMPDIR/left.squashfs" > /dev/null; mkdir "$LEFT/mounted";'
        f' ({LEAVE}; exec setsid squashfuse_ll -f "$TMPDIR/left.squashfs" "$LEFT/mounted") {QUIET}',
        "teardown.fuse",
        "A squashfuse_ll of the allocation lives on.",
    ),
}
for _name, _leftover in LEFTOVERS.items():
    control(_name, "leftover", _leftover.red, sentence=_leftover.sentence)

PORT_KEPT = control(
    "port-kept",
    "end",
    "teardown.port-reusable",
    sentence="A process that Nomad does not know takes the port when the server has ended, and does not listen.",
)
LATE = control(
    "ends-late",
    "job",
    "teardown.stopped",
    "teardown.port-closed",
    "teardown.port-reusable",
    "teardown.processes",
    "teardown.fuse",
    "teardown.mounts",
    sentence="The server takes more time to end than `nomad.stopped_within_s` allows.",
    not_measured=("teardown.graceful",),
)
CONTAINER = control(
    "container-left",
    "leftover",
    "teardown.mounts",
    sentence="A container of the allocation stays in the Docker engine.",
)
SUBMITTED_AGAIN = control(
    "submitted-again",
    "end",
    "teardown.purged",
    sentence="Somebody submits the job again as soon as it is purged.",
)


def found(server: Server, folder: Path, within_s: float = 20.0, unclear: Iterable[str] = ()) -> tuple[set[str], Ended]:
    """The checks that the end of the sandbox turns red, and what was found of it; ``unclear`` as in :func:`red`."""
    placed = server.placed
    end = teardown.stop_and_verify(
        placed.nomad,
        placed.allocation.job_id,
        [placed.allocation],
        collect=folder / "collected",
        deadline_s=within_s,
        local=True,
    )
    ended = Ended(end.allocations[0], end.purged, within_s, server.driver)
    checks = [check for check in registry.of_suite(registry.TEARDOWN) if server.driver in check.drivers]
    context = Context(placed.run, "box", server.driver, log=io.StringIO())
    missed = () if ended.allocation.killed is not None else ("teardown.graceful",)  # by Nomad, now and then
    return red({v.check: v for v in run_checks(checks, ended, context)}, {*unclear, *missed}), ended


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_is_left_behind(house, tmp_path, name):
    wrapper = tmp_path / "apptainer"
    wrapper.write_text(
        f"#!/bin/sh\nPATH={quote(str(host_tools.root() / 'bin'))}:{quote(str(FUSE))}:$PATH\n"
        f"LEFT={quote(str(tmp_path))}\n"
        f'{LEFTOVERS[name].line}\nexec {quote(str(host_tools.require("apptainer").path))} "$@"\n'
    )
    wrapper.chmod(0o755)
    with house.sandbox(name, apptainer=str(wrapper)) as server:
        # Waiting longer brings nothing: it stays.
        failed, ended = found(server, tmp_path, within_s=10.0)
        leftovers.end_processes(ended.allocation.processes, 5)
        for point in ended.allocation.mounts:
            subprocess.run(["umount", point], check=True)
    assert failed == {LEFTOVERS[name].red}


def test_a_port_that_is_kept(house, tmp_path):
    taken = threading.Event()
    over = threading.Event()

    def keep(port: int) -> None:
        # Past connections that linger it has to say first that it would share the port.
        for shared in itertools.cycle((0, 1)):
            with socket.socket() as taker, contextlib.suppress(OSError):
                taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
                taker.bind(("127.0.0.1", port))
                taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                taken.set()
                over.wait()
            if over.wait(0.001):
                return

    block = claim_block()
    try:
        with house.sandbox("port-kept", port=block.static[0]) as server:
            keeper = threading.Thread(target=keep, args=(block.static[0],))
            keeper.start()
            try:
                failed, _ = found(server, tmp_path, within_s=10.0)
            finally:
                over.set()
                keeper.join()
    finally:
        block.lock.close()
    assert taken.is_set()
    assert failed == set(PORT_KEPT.red)


def ignores_sigterm(house, name: str, kill_timeout_s: int):
    """A sandbox that Nomad has to kill."""

    def change(job):
        job["Job"]["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = kill_timeout_s * 1_000_000_000

    def patient(line):
        changed = line.replace("-k 5 ", f"-k {kill_timeout_s} ")
        assert changed != line
        return changed

    return house.sandbox(
        name,
        command=["python3", "/planted/defects", "ignores-sigterm"],
        binds=[f"{HERE}:/planted:ro"],
        line=patient,
        change=change,
    )


def test_a_server_that_must_be_killed(house, tmp_path):
    with ignores_sigterm(house, "ignores-sigterm", 1) as server:
        failed, ended = found(server, tmp_path)
    assert ended.allocation.killed is not False
    assert failed == ({"teardown.graceful"} if ended.allocation.killed else set())


def test_a_server_that_ends_late(house, tmp_path):
    # It is there until the last look, however busy the machine; then it need not be waited for.
    with ignores_sigterm(house, LATE.name, 30) as server:
        failed, ended = found(server, tmp_path, within_s=0.5, unclear=LATE.not_measured)
        leftovers.end_processes(ended.allocation.processes, 0)
    assert failed == set(LATE.red)


def test_a_job_that_is_submitted_again(house, tmp_path, monkeypatch):
    with house.sandbox("again") as server:
        nomad, job = server.placed.nomad, server.placed.job
        deregister = nomad.deregister

        def submit_again(job_id, *, purge):
            deregister(job_id, purge=purge)
            if purge:
                nomad.register(job)

        monkeypatch.setattr(nomad, "deregister", submit_again)
        failed, _ = found(server, tmp_path)
        monkeypatch.undo()
    assert failed == set(SUBMITTED_AGAIN.red)


def test_a_container_that_is_left_behind(house, tmp_path):
    docker = host_tools.require("docker").path
    with house.sandbox(CONTAINER.name, driver="docker") as server:
        image = server.placed.job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]["image"]
        label = f"com.hashicorp.nomad.alloc_id={server.placed.allocation.id}"
        made = subprocess.check_output([docker, "create", "--label", label, image], text=True).strip()
        try:
            failed, ended = found(server, tmp_path, within_s=10.0)
        finally:
            subprocess.run([docker, "rm", made], check=True, stdout=subprocess.DEVNULL)
    assert failed == set(CONTAINER.red)
    assert [words.split()[0] for words in ended.allocation.containers] == [made[:12]]


@pytest.mark.parametrize("driver", ["singularity", "docker"])
def test_nothing_is_left_of_a_healthy_sandbox(house, tmp_path, driver):
    with house.sandbox(f"gone-{driver}", driver=driver) as server:
        failed, ended = found(server, tmp_path)
    assert failed == set()
    assert ended.purged
