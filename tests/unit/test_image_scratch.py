"""Room to work in: chosen by what is free, removed when its owner is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sifproof.image import scratch
from sifproof.image.scratch import Place

OWNER = """
import sys
from pathlib import Path
from sifproof.image import scratch
with scratch.directory(Path(sys.argv[1])) as (path, held):
    (path / "file").write_text("x")
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """A process that holds a scratch directory until its input is closed or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    path = Path(process.stdout.readline().strip())
    yield process, path
    process.kill()
    process.communicate()


def test_a_held_directory_is_left_alone_and_goes_with_its_owner(owner, tmp_path):
    process, path = owner
    assert scratch.sweep([tmp_path]) == []
    assert (path / "file").exists()
    process.communicate("")
    assert not path.exists()


def test_what_a_killed_owner_left_is_removed(owner, tmp_path):
    process, path = owner
    process.kill()
    process.wait()
    (path / "locked").mkdir()
    (path / "locked/inner").touch()
    (path / "locked").chmod(0)
    assert scratch.sweep([tmp_path]) == [path]
    assert list(tmp_path.iterdir()) == []


def test_only_own_names_are_swept(tmp_path):
    (tmp_path / "sifproof-build-x").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").mkdir()
    (tmp_path / "other").mkdir()
    assert scratch.sweep([tmp_path]) == []
    assert (tmp_path / "precious").exists()


def test_a_lock_is_seen_while_it_is_held(tmp_path):
    path = tmp_path / "locks" / "key"
    assert not scratch.is_locked(path)
    with scratch.lock(path):
        assert scratch.is_locked(path)
    assert not scratch.is_locked(path)


def test_the_first_place_with_room_is_chosen_and_a_disk_in_any_case(tmp_path, monkeypatch):
    memory, small, large = (Place(tmp_path / n, in_memory=n == "m") for n in "msl")
    room = {memory: 100, small: 10, large: 50}
    monkeypatch.setattr(Place, "free_bytes", lambda place: room[place])
    assert scratch.choose([memory, small, large], 40) == [memory, large]
    assert scratch.choose([memory, small, large], 5) == [memory, small, large]
    assert scratch.choose([memory, small, large], 80) == [memory, large]
    assert scratch.choose([memory, small, large], 1000) == [large]


def test_memory_is_what_processes_may_still_take(tmp_path):
    available = scratch.memory_available()
    assert 0 < available < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert Place(tmp_path, in_memory=True).free_bytes() <= available
    assert Place(tmp_path / "missing", in_memory=False).free_bytes() == 0
