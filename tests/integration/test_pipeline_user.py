"""The gate as an ordinary user: no right of root is needed for the singularity driver."""

import os
import pwd
import shutil
import sys
import tempfile
from pathlib import Path
from shlex import quote

import pytest
from checkout import DEAD_ENGINE, Checkout

from sifproof import tools
from sifproof.image.reference import build_reference_image

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


def fuse_for_all(folder: Path) -> list[str]:
    """Lines of shell that let everyone use FUSE there, as it is wherever ordinary users run containers."""
    device = Path("/dev/fuse").stat()
    if device.st_mode & 0o006 == 0o006:
        return []
    node = quote(str(folder / "fuse"))
    number = f"{os.major(device.st_rdev)} {os.minor(device.st_rdev)}"
    return [f"mknod -m 666 {node} c {number}", f"mount --bind {node} /dev/fuse"]


@pytest.fixture
def home():
    """A folder that an ordinary user can enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="sifproof-user-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_ordinary_user_gets_a_verdict(home, images):
    assert os.geteuid() == 0, "becoming an ordinary user needs root; `make test` says so"
    layout = build_reference_image(images / "reference").source.removeprefix("oci:")
    shutil.copytree(layout, home / "image")
    checkout = Checkout(home / "checkout")
    (home / "tmp").mkdir()
    nobody = pwd.getpwnam("nobody")
    for path in (home, *home.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)

    lines = shown({tools.root(), Path(sys.prefix), Path(sys.base_prefix)}, home / "shown")
    script = "\n".join(["set -e", *lines, *fuse_for_all(home), BECOME])
    outcome = checkout.gate(
        "--config",
        "driver=singularity",
        f"image=oci:{home}/image",
        user=("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"),
        HOME=str(home / "tmp"),
        TMPDIR=str(home / "tmp"),
        **DEAD_ENGINE,
    )
    assert outcome.exit_code == 0, outcome
    assert outcome.red() == set()
    assert {path.stat().st_uid for path in outcome.folder.rglob("*")} == {nobody.pw_uid}
