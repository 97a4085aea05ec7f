"""The reference image: built from sandbox/ without a registry, and its server inside Apptainer, contained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import image_samples as samples
import pytest
import requests

from sifproof import host_tools
from sifproof.errors import Fault, SifproofError
from sifproof.image import convert, source
from sifproof.image.digest import digest
from sifproof.image.reference import CONTEXT, ReferenceImage, build_reference_image


@pytest.fixture(scope="module")
def folder(images: Path) -> Path:
    return images / "reference"


@pytest.fixture(scope="module")
def built(folder: Path) -> ReferenceImage:
    return build_reference_image(folder)


@pytest.fixture(scope="module")
def sif(built: ReferenceImage, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = tmp_path_factory.mktemp("convert") / "log"
    return Path(convert.convert(source.parse(built.source), images, log=log).sif)


def manifest(image: ReferenceImage) -> dict[str, Any]:
    layout = source.parse(image.source).path
    return read_blob(layout, json.loads((layout / "index.json").read_text())["manifests"][0])


def read_blob(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    return json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_text())


class TestBuild:
    def test_layers_are_raw_and_the_base_is_told(self, built: ReferenceImage) -> None:
        layers = manifest(built)["layers"]
        assert len(layers) == 2
        assert all(layer["mediaType"].endswith(".tar") for layer in layers)
        config = read_blob(source.parse(built.source).path, manifest(built)["config"])["config"]
        assert config["Entrypoint"] == ["python3", "/app/sandbox_server.py"]
        assert config["WorkingDir"] == "/app"
        packages = dict(package.split("=") for package in config["Labels"]["sifproof.base.packages"].split())
        assert {"bubblewrap", "python3-aiohttp", "bash"} <= packages.keys()
        assert "perl" not in packages

    def test_what_did_not_change_is_not_built_again(self, built: ReferenceImage, folder: Path) -> None:
        said: list[str] = []
        again = build_reference_image(folder, say=said.append)
        assert (again.source, again.seconds, said) == (built.source, {}, [])

    def test_a_store_is_of_use_wherever_it_is_taken(self, built: ReferenceImage, folder: Path, tmp_path: Path) -> None:
        linked, copied = tmp_path / "linked", tmp_path / "copied"
        linked.symlink_to(folder)
        # Not all of it: other builds are at work there.
        for part in (folder / f"image-{built.key}", *folder.glob("base-*")):
            shutil.copytree(part, copied / part.name)
        for place in (linked, copied):
            found = build_reference_image(place)
            assert (found.key, found.seconds) == (built.key, {})
            assert source.parse(found.source).path == place / f"image-{built.key}" / "oci"
            source.verify(source.parse(found.source))

    def test_a_changed_server_is_built_anew_on_the_same_base(
        self, built: ReferenceImage, folder: Path, tmp_path: Path
    ) -> None:
        context, store = tmp_path / "sandbox", tmp_path / "store"
        shutil.copytree(CONTEXT, context)
        store.mkdir()
        for base in folder.glob("base-*"):
            (store / base.name).symlink_to(base)
        said: list[str] = []
        same = build_reference_image(store, context=context, say=said.append)
        assert same.key == built.key
        assert "base" not in same.seconds
        if not any("without its RUN steps" in line for line in said):
            assert manifest(same) == manifest(built)
        with (context / "slotserver" / "api.py").open("a") as module:
            module.write("# changed\n")
        changed = build_reference_image(store, context=context)
        assert changed.key != built.key
        assert manifest(changed)["layers"][0] == manifest(built)["layers"][0]
        assert manifest(changed)["layers"][1] != manifest(built)["layers"][1]
        assert same.source != changed.source
        assert source.parse(same.source).path.is_dir()

    def test_a_base_that_is_named(self, built: ReferenceImage, tmp_path: Path) -> None:
        image = build_reference_image(tmp_path, base=built.source)
        assert image.base == built.source
        assert manifest(image)["layers"][:2] == manifest(built)["layers"]

    def test_a_base_among_other_platforms(self, built: ReferenceImage, tmp_path: Path) -> None:
        """By the digest that was chosen: what stands first in the index is for another system."""
        layout = tmp_path / "base"
        shutil.copytree(source.parse(built.source).path, layout)
        (one,) = json.loads((layout / "index.json").read_text())["manifests"]
        linux = {"os": "linux", "architecture": source.host_architecture()}
        other = samples.image_of(layout, says=linux | {"os": "windows"}) | {"platform": linux | {"os": "windows"}}
        index = samples.index_of(layout, [other, one | {"platform": linux}, other])
        samples.layout_of(layout, [samples.index_of(layout, [index])])
        image = build_reference_image(tmp_path, base=f"oci:{layout}")
        assert manifest(image)["layers"][:2] == manifest(built)["layers"]
        assert image.base_digest == digest(source.parse(built.source)).digest

    @pytest.mark.parametrize("base", ["docker-archive:/nowhere/x.tar", "oci:/nowhere", "nowhere.sif:x y"])
    def test_a_base_that_is_not_there(self, base: str, tmp_path: Path) -> None:
        with pytest.raises(SifproofError) as error:
            build_reference_image(tmp_path, base=base)
        assert error.value.fault is Fault.CONFIGURATION
        assert not list(tmp_path.glob("image-*"))

    def test_a_containerfile_that_fails_leaves_nothing(
        self, built: ReferenceImage, folder: Path, tmp_path: Path
    ) -> None:
        context, store = tmp_path / "sandbox", tmp_path / "store"
        shutil.copytree(CONTEXT, context)
        (context / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nCOPY no-such-file /\n")
        store.mkdir()
        for base in folder.glob("base-*"):
            (store / base.name).symlink_to(base)
        with pytest.raises(SifproofError, match="no-such-file") as error:
            build_reference_image(store, context=context)
        assert str(store / "build.log") in str(error.value)
        assert not list(store.glob("image-*"))
        assert not list(store.glob("sifproof-build-*"))


@pytest.fixture
def serve(sif: Path, tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def started(*options: str) -> Iterator[Server]:
        server = Server(sif, tmp_path, options)
        try:
            yield server
        finally:
            server.process.terminate()
            assert server.process.wait(60) == 0
        assert server.left_over() == []

    return started


class Server:
    """The server in the SIF, run as a Nomad job runs it."""

    def __init__(self, sif: Path, folder: Path, options: tuple[str, ...]) -> None:
        self.data = folder / "data"
        self.token = uuid.uuid4().hex
        (folder / "work").mkdir(exist_ok=True)
        self.data.mkdir(exist_ok=True)
        private = folder / f"{self.token}.sif"
        shutil.copy(sif, private)
        # Root of a machine that lacks a capability needs a user name space.
        userns = ["--userns"] if os.geteuid() == 0 else []
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                *(str(host_tools.require("apptainer").path), "-q", "exec", *userns, "--containall", *options),
                *("--bind", f"{self.data}:/data", "--workdir", str(folder / "work"), "--pwd", "/app", str(private)),
                *("python3", "/app/sandbox_server.py", "--port", "0", "--host", "127.0.0.1"),
                *("--slots", "3", "--data-dir", "/data"),
            ],
            env=host_tools.environment() | {"NOMAD_ALLOC_DIR": "/nowhere"},
            stderr=self.log,
        )
        self.url = eventually(self._address)

    def _address(self) -> str | None:
        self.log.seek(0)
        text = self.log.read()
        assert self.process.poll() is None, text
        return text.rpartition("listening on ")[2].strip() if "listening on" in text and text.endswith("\n") else None

    def health(self) -> dict[str, Any]:
        return requests.get(f"{self.url}/health", timeout=60).json()

    def execute(self, tool: str, slot: str = "slot_0", timeout: float = 60, **args: Any) -> dict[str, Any]:
        body = {"slot_id": slot, "tool": tool, "args": args, "timeout": timeout}
        answer = requests.post(f"{self.url}/execute", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def bash(self, command: str, **more: Any) -> dict[str, Any]:
        return self.execute("bash", command=command, **more)

    def left_over(self) -> list[str]:
        """Command lines of processes that have to do with this server."""
        return [line for line in command_lines() if self.token in line]


def command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines


def eventually(probe: Callable[[], Any], within_s: float = 60) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := probe()):
        assert time.monotonic() < deadline, f"nothing within {within_s} s"
        time.sleep(0.01)
    return found


class TestInApptainer:
    def test_contained_and_sandboxed(self, serve: Callable[..., Any]) -> None:
        with serve("--bind", "/dev/full") as server:
            health = server.health()
            assert (health["containment"], health["bwrap_available"], health["slots"]) == ("bubblewrap", True, 3)
            assert health["data_dir"] == "/data"
            result = server.bash("pwd; echo x > f; touch /x; ls -A /tmp; ls -d /data", require_sandbox=True)
            assert result["metadata"]["sandboxed"] is True
            assert result["output"].splitlines()[0] == "/workspace"
            assert "Read-only file system" in result["output"]
            assert "'/data': No such file" in result["output"]
            assert (server.data / "slots" / "slot_0" / "f").read_text() == "x\n"
            assert server.bash("grep -c : /proc/net/dev", allow_network=False)["output"] == "1"
            assert server.execute("bash_stateful", command="cd /tmp; x=5")["success"]
            assert server.execute("bash_stateful", command="pwd; echo $x")["output"] == "/tmp\n5"
            assert server.execute("write_file", "slot_1", path="a/b", content="grüß")["success"]
            assert (server.data / "slots" / "slot_1" / "a" / "b").read_text() == "grüß"
            assert server.bash("cat a/b", slot="slot_1")["output"] == "grüß"
            certificates = "import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 50)"
            assert server.bash(f'python -c "{certificates}"')["output"] == "True"

    def test_a_time_out_leaves_nothing(self, serve: Callable[..., Any]) -> None:
        with serve("--bind", "/dev/full") as server:
            result = server.bash(f"(setsid bash -c 'exec -a {server.token} sleep 1000' &); sleep 1000", timeout=0.5)
            assert result["metadata"]["timeout"] is True
            assert not [line for line in server.left_over() if line.startswith(server.token)]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_stop_ends_everything(self, serve: Callable[..., Any], number: int) -> None:
        with serve("--bind", "/dev/full") as server:
            server.execute("bash_stateful", command=f"(setsid bash -c 'exec -a {server.token} sleep 1000' &)")
            eventually(lambda: [line for line in server.left_over() if line.startswith(server.token)])
            server.process.send_signal(number)
            assert server.process.wait(60) == 0
            assert server.left_over() == []
            with pytest.raises(requests.ConnectionError):
                server.health()

    def test_what_cannot_be_sandboxed_is_said_and_refused(self, serve: Callable[..., Any]) -> None:
        with serve() as server:  # bubblewrap needs /dev/full
            assert server.health()["bwrap_available"] is False
            result = server.bash("pwd; (setsid sleep 1000 &) ; exit 3")
            assert (result["output"], result["error"]) == ("/data/slots/slot_0", "Exit code: 3")
            assert result["metadata"]["sandboxed"] is False
            assert "sandbox" in server.bash("true", require_sandbox=True)["error"]
            assert "network" in server.bash("true", allow_network=False)["error"]
            assert "bubblewrap:" in Path(server.log.name).read_text()
