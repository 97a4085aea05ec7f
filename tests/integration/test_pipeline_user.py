"""The gate as an ordinary user: no right of root is needed for the singularity driver and the reference image.

Root becomes such a user for it. Whoever is one already runs it as himself.
"""

import os
import pwd
import shutil
import sys
import tempfile
from pathlib import Path
from shlex import quote

import pytest
from checkout import DEAD_ENGINE, FEW, Checkout

from sifproof import host_tools

ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
BECOME = 'exec setpriv --reuid=nobody --regid=nogroup --clear-groups --bounding-set=-all --no-new-privs "$@"'


def shown(paths: set[Path], stage: Path) -> list[str]:
    """Lines of shell that let everyone enter ``paths``, in a mount namespace of their own.

    A checkout and a Python may lie where only root can enter. Such a folder is covered by an empty one that is open,
    and in that ``paths`` are put in their place again.
    """
    covered: dict[Path, list[Path]] = {}
    for path in paths:
        closed = next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None)
        if closed:
            covered.setdefault(closed, []).append(path)
    lines = []
    places = {
        path: stage / str(number) for number, path in enumerate(p for several in covered.values() for p in several)
    }
    for path, place in places.items():
        place.mkdir(parents=True)
        lines.append(f"mount --bind {quote(str(path))} {quote(str(place))}")
    for closed, several in covered.items():
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {quote(str(closed))}")
        for path in several:
            lines.append(f"mkdir -p {quote(str(path))}")
            lines.append(f"mount --bind {quote(str(places[path]))} {quote(str(path))}")
    return lines


def hidden() -> list[str]:
    """Lines of shell that take away what set-up does without and this machine may have."""
    if not all((host_tools.root() / "bin" / name).exists() for name in ("buildah", "mmdebstrap")):
        return []  # set-up took this machine's, which bring their own
    names = ("buildah", "mmdebstrap", "newuidmap", "newgidmap", "fakechroot", "fakeroot")
    return [f"mount --bind /dev/null {quote(path)}" for name in names if (path := shutil.which(name))]


def fuse_for_all(folder: Path) -> list[str]:
    """Lines of shell that let everyone use FUSE there, as it is wherever ordinary users run containers."""
    device = Path("/dev/fuse").stat()
    if device.st_mode & 0o006 == 0o006:
        return []
    node = quote(str(folder / "fuse"))
    number = f"{os.major(device.st_rdev)} {os.minor(device.st_rdev)}"
    return [f"[ -e {node} ] || mknod -m 666 {node} c {number}", f"mount --bind {node} /dev/fuse"]


@pytest.fixture(scope="module")
def gate():
    """Runs the gate as an ordinary user who has built nothing yet, in a folder open to him: pytest's own is closed."""
    home = Path(tempfile.mkdtemp(prefix="sifproof-user-"))
    home.chmod(0o755)
    checkout = Checkout(home / "checkout")
    (home / "tmp").mkdir()
    # An apptainer that leaves a process behind, for whoever puts it on PATH. The real one stands behind it.
    (home / "leaves-behind").mkdir()
    wrapper = home / "leaves-behind" / "apptainer"
    wrapper.write_text(
        f"#!/bin/sh\nPATH={quote(str(host_tools.root() / 'bin'))}:$PATH\n"
        'case "$*" in *"/sandbox_server.py "*) setsid sleep 600 < /dev/null > /dev/null 2>&1 & ;; esac\n'
        f'exec {quote(str(host_tools.require("apptainer").path))} "$@"\n'
    )
    wrapper.chmod(0o755)
    user = ()
    if ROOT:
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        lines = shown({host_tools.root(), Path(sys.prefix), Path(sys.base_prefix)}, home / "shown")
        script = "\n".join(["set -e", *lines, *hidden(), *fuse_for_all(home), BECOME])
        user = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    else:
        may = os.access("/dev/fuse", os.R_OK | os.W_OK)
        assert may, "/dev/fuse is closed to ordinary users here: have root run `chmod 666 /dev/fuse`"

    def run(*suites: str, path: str = ""):
        started = checkout.start(
            "--config",
            "driver=singularity",
            *suites,
            user=user,
            HOME=str(home / "tmp"),
            TMPDIR=str(home / "tmp"),
            PATH=f"{home / path}:{os.environ['PATH']}" if path else os.environ["PATH"],
            **DEAD_ENGINE,
        )
        try:
            return started.wait()
        finally:
            started.end()

    yield run
    shutil.rmtree(home)


def test_an_ordinary_user_gets_a_verdict(gate):
    outcome = gate()
    assert outcome.exit_code == 0, outcome
    assert outcome.red() == set()
    assert {path.stat().st_uid for path in outcome.folder.rglob("*")} == {NOBODY.pw_uid if ROOT else os.geteuid()}


def test_a_process_that_survives_the_stop_is_found(gate):
    # Without control groups of its own, Nomad ends what is below the task, and not what has left it.
    outcome = gate(FEW, path="leaves-behind")
    assert outcome.exit_code == 1, outcome
    assert outcome.red() == {"teardown.processes"}
    assert "sleep 600" in outcome.output
