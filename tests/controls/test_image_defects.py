"""Images that were changed on their way to the node: each change turns its own check red, and no other."""

import contextlib
import json
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import image_samples as samples
import pytest
from catalogue import control
from placed import red, try_without_gate, verdicts

from sifproof import config, documents, host_tools
from sifproof.checks.engine.subject import Placement, Server
from sifproof.errors import Fault, SifproofError
from sifproof.image import convert, engine, process
from sifproof.image.provenance import Provenance
from sifproof.image.records import LoadedImage
from sifproof.image.source import host_architecture, parse
from sifproof.sandbox.client import SandboxClient

NUMBERS = {"amd64": 62, "arm64": 183}
HERE = host_architecture()
ELSEWHERE = "arm64" if HERE != "arm64" else "amd64"


def program(architecture: str) -> bytes:
    """The beginning of an ELF program for that processor."""
    return b"\x7fELF\x02\x01\x01" + 11 * b"\0" + NUMBERS[architecture].to_bytes(2, "little") + 44 * b"\0"


FILES = {
    "app": None,
    "app/program": (program(HERE), {"mode": 0o755}),
    "etc": None,
    "etc/conf": b"value=1\n",
    "etc/other": b"other\n",
    "link": "etc/conf",
    "one": b"the same file\n",
    "two": (b"", {"type": tarfile.LNKTYPE, "linkname": "one"}),
}
SETTINGS = {
    "Entrypoint": ["/app/program"],
    "Cmd": ["--slots", "5"],
    "Env": ["PATH=/bin"],
    "WorkingDir": "/app",
    "Labels": {"org.example.version": "1"},
}

# What the SIF has in place of what the image has: files, and settings; None for a file that it lacks.
LACKS = object()
CHANGED = {
    control("image-file-missing", "sif", "image.files", sentence="The SIF lacks a file of the image."): (
        {"etc/other": LACKS},
        {},
    ),
    control("image-file-extra", "sif", "image.files", sentence="The SIF has a file that the image has not."): (
        {"etc/more": b"x"},
        {},
    ),
    control("image-file-for-directory", "sif", "image.files", sentence="A file became a directory."): (
        {"etc/other": None},
        {},
    ),
    control("image-content", "sif", "image.content", sentence="A file has other content of the same size."): (
        {"etc/conf": b"value=2\n"},
        {},
    ),
    control("image-mode", "sif", "image.modes", sentence="A program is not executable in the SIF."): (
        {"app/program": (program(HERE), {"mode": 0o644})},
        {},
    ),
    control("image-setuid", "sif", "image.modes", sentence="A program is set-uid in the SIF."): (
        {"app/program": (program(HERE), {"mode": 0o4755})},
        {},
    ),
    control("image-link", "sif", "image.links", sentence="A symbolic link leads elsewhere."): (
        {"link": "etc/other"},
        {},
    ),
    control("image-hard-link", "sif", "image.links", sentence="Two names of a file are two files."): (
        {"two": b"the same file\n"},
        {},
    ),
    control("image-workdir", "sif", "image.workdir", sentence="The SIF names another working directory."): (
        {},
        {"WorkingDir": "/etc"},
    ),
    control("image-entrypoint", "sif", "image.command", sentence="The SIF has another entrypoint."): (
        {},
        {"Entrypoint": ["/app/program", "--debug"]},
    ),
    control("image-command", "sif", "image.command", sentence="The SIF has another command."): (
        {},
        {"Cmd": ["--slots", "6"]},
    ),
    control("image-label", "sif", "image.labels", sentence="A label of the SIF has another value."): (
        {},
        {"Labels": {"org.example.version": "2"}},
    ),
}
# What is wrong with the image itself, or with who converts it.
FOREIGN = control(
    "image-foreign-programs",
    "sif",
    "image.architecture",
    sentence="The image is marked for one processor and holds programs for another.",
)
UNMARKED = control(
    "image-unmarked-foreign-programs",
    "sif",
    "image.architecture",
    sentence="The image names no processor and holds programs for another.",
)
NO_WORKDIR = control(
    "image-workdir-missing", "sif", "image.workdir", sentence="The image's working directory is not in the image."
)
UNREADABLE = control(
    "image-file-emptied",
    "sif",
    "image.content",
    sentence="An ordinary user's conversion empties a program that its owner may not read.",
)
LOCKED = control(
    "image-directory-lost",
    "sif",
    "image.files",
    sentence="An ordinary user's conversion drops a directory that its owner may not read.",
)
QUOTED = control(
    "image-environment",
    "image",
    "image.environment",
    sentence="A quote in one variable of the image makes Apptainer hand on none at all.",
)
FLIPPED = control(
    "sif-changed", "node", "image.on-node", sentence="Somebody changed a byte of the SIF while the server runs from it."
)
SWAPPED = control(
    "sif-replaced", "node", "image.on-node", sentence="Somebody put another SIF in the place of the one that runs."
)
STARTED = control(
    "sif-changed-before-start",
    "node",
    "image.on-node",
    sentence="The SIF was changed before the start, and the sandbox has `verify_image: false`.",
)
MOVED = control(
    "docker-tag-moved",
    "node",
    "image.on-node",
    sentence="Somebody gave the image's tag to one of the same layers with another variable, after it was loaded.",
)
ANOTHER = control("docker-other-image", "job", "image.on-node", sentence="The container runs another image.")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("shop"))


class Shop:
    """Makes small images and their SIFs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0

    def layout(self, files=(), settings=(), marks=None) -> Path:
        """An OCI layout of the small image with other ``files``, ``settings`` and ``marks`` of its platform."""
        self.number += 1
        held = {name: content for name, content in {**FILES, **dict(files)}.items() if content is not LACKS}
        return samples.oci_layout(
            self.folder / str(self.number), held=[samples.layer(held)], settings=SETTINGS | dict(settings), marks=marks
        )

    def made(self, layout: Path) -> Provenance:
        """Its conversion."""
        return convert.convert(parse(f"oci:{layout}"), self.folder / "sif", log=self.folder / "log")

    def red(self, image: Provenance, sif: Path) -> set[str]:
        """What turns red where ``sif`` is in the place of the SIF of ``image``."""
        file = self.folder / "image.json"
        documents.write(file, image.model_copy(update={"sif": str(sif)}))
        settings = config.load({"sandboxes": {"box": {"driver": "singularity"}}})
        placement = Placement("run", None, None, settings, settings.sandboxes["box"], None, None, {}, file)
        nowhere = SandboxClient("http://127.0.0.1:9")
        # Those two need a node, and are tried with one below.
        on_node = {"image.on-node", "image.environment"}
        return red(verdicts(Server(nowhere, 1, 1, None, None, placement=placement), ["image"], without=on_node))


@pytest.mark.parametrize("marks", [None, {}, {"architecture": None}, {"architecture": ""}], ids=str)
def test_a_sound_image_is_green(shop, marks):
    """One that does not name its processor, too."""
    image = shop.made(shop.layout(marks=marks))
    assert shop.red(image, Path(image.sif)) == set()


@pytest.mark.parametrize(("planted", "change"), CHANGED.items(), ids=[c.name for c in CHANGED])
def test_another_sif_in_the_place_of_the_images_own(shop, planted, change):
    image, other = shop.made(shop.layout()), shop.made(shop.layout(*change))
    assert shop.red(image, Path(other.sif)) == set(planted.red)


@pytest.mark.parametrize(
    ("planted", "files", "settings", "marks"),
    [
        (FOREIGN, {"app/program": (program(ELSEWHERE), {"mode": 0o755})}, {}, None),
        (UNMARKED, {"app/program": (program(ELSEWHERE), {"mode": 0o755})}, {}, {"os": "linux"}),
        (NO_WORKDIR, {}, {"WorkingDir": "/srv/nowhere"}, None),
    ],
    ids=[FOREIGN.name, UNMARKED.name, NO_WORKDIR.name],
)
def test_what_is_wrong_with_the_image_itself(shop, planted, files, settings, marks):
    image = shop.made(shop.layout(files, settings, marks))
    assert shop.red(image, Path(image.sif)) == set(planted.red)


@pytest.mark.parametrize(
    ("planted", "files"),
    [(UNREADABLE, {"app/tool": (b"#!/bin/sh\n", {"mode": 0o4111})}), (LOCKED, {"locked": (None, {"mode": 0o111})})],
    ids=[UNREADABLE.name, LOCKED.name],
)
def test_what_an_ordinary_user_loses(shop, planted, files):
    layout = shop.layout(files)
    image, sif = shop.made(layout), shop.folder / f"{planted.name}.sif"
    arguments = ["build", "--disable-cache", str(sif), f"oci:{layout}"]
    process.run("apptainer", arguments, log=None, timeout_s=60, under=convert._AS_ORDINARY_USER)
    assert shop.red(image, sif) == set(planted.red)


def changed_copy(house, name: str, **changes) -> tuple[Path, Path]:
    """A file of the image stage that names a copy of the reference image's SIF, and the copy."""
    file = house.image_file("singularity", name)
    made = documents.read(file, Provenance)
    copy = house.folder / f"{name}.sif"
    shutil.copy(made.sif, copy)
    documents.write(file, made.model_copy(update={"sif": str(copy), **changes}))
    return file, copy


def flip(file: Path) -> None:
    """Change the last byte, which is padding: what runs from the file is none the worse."""
    with file.open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)[0]
        stream.seek(-1, 2)
        stream.write(bytes([last ^ 1]))


def test_what_becomes_of_the_file_while_a_server_runs_from_it(house):
    file, sif = changed_copy(house, "swapped")
    with house.sandbox("swapped", image=file) as server:
        flip(sif)
        try_without_gate(FLIPPED.name, server)
        assert red(verdicts(server, ["image"])) == set(FLIPPED.red)
        flip(sif)
        other = sif.with_suffix(".new")
        shutil.copy(sif, other)
        flip(other)
        other.replace(sif)
        try_without_gate(SWAPPED.name, server)
        found = verdicts(server, ["image"])
        assert red(found) == set(SWAPPED.red)
        assert "another file open" in found["image.on-node"].message


# A big file is read for a while, in which Nomad calls the task running.
@pytest.mark.parametrize("takes_s", [0, 3])
def test_a_changed_sif_is_refused_before_it_starts(house, takes_s):
    name = f"refused-{takes_s}"
    file, sif = changed_copy(house, name)
    flip(sif)
    with (
        pytest.raises(SifproofError, match=f"{sif} is not the image that was converted") as raised,
        house.sandbox(name, image=file, line=lambda line: f"sleep {takes_s}; {line}"),
    ):
        pass
    assert raised.value.fault is Fault.INFRASTRUCTURE
    assert "find out who" in raised.value.todo


def test_who_does_not_want_to_wait_sees_it_afterwards(house):
    file, sif = changed_copy(house, "unverified")
    flip(sif)
    with house.sandbox(STARTED.name, image=file, verify_image=False) as server:
        assert red(verdicts(server, ["image"])) == set(STARTED.red)


def elsewhere(server: Server, **changes: str) -> Server:
    """``server`` as if it were another allocation."""
    other = server.placed.allocation.model_copy(update=changes)
    return replace(server, placement=replace(server.placed, allocation=other))


def test_what_only_the_kernel_has_open(house):
    """As root, Apptainer has the kernel mount a SIF: no process has it open, and a loop device tells."""
    file, sif = changed_copy(house, "mounted")
    with house.sandbox("mounted", image=file) as server:
        unseen = elsewhere(server, id=str(uuid.uuid4()))

        def says(word: str, words: str, server: Server = unseen) -> bool:
            seen = verdicts(server, ["image"])["image.on-node"]
            return (seen.verdict, words in seen.message) == (word, True)

        sandbox = unseen.placed.sandbox.model_copy(update={"verify_image": False})
        unverified = replace(unseen, placement=replace(unseen.placed, sandbox=sandbox))
        assert says("pass", "could not be seen; its task compared it")
        assert says("not-measured", "could not be seen", unverified)
        with mounted(sif):
            assert says("pass", "kernel has mounted")
            shutil.copy(sif, sif.with_suffix(".new"))
            sif.with_suffix(".new").replace(sif)
            assert says("fail", "which was replaced")
            with mounted(sif):
                assert says("not-measured", "whose is which", unverified)


@contextlib.contextmanager
def mounted(sif: Path) -> Iterator[None]:
    """A loop device of it, as the kernel has of one that it mounts."""
    loop = subprocess.run(["losetup", "--find", "--show", sif], check=True, capture_output=True, text=True).stdout
    try:
        yield
    finally:
        subprocess.run(["losetup", "--detach", loop.strip()], check=True)


def test_a_node_that_can_not_be_asked_is_no_failure_of_the_image(house):
    with house.sandbox("unasked") as server:
        gone = elsewhere(server, node_id=str(uuid.uuid4()), node_name="gone")
        found = verdicts(gone, ["image", "reset"])
        gone.placed.__dict__["node"] = SimpleNamespace(run=lambda script: "")
        shown_nothing = verdicts(gone, ["reset"])["reset.processes"]
    lingers = found["reset.processes"]
    assert (lingers.verdict, shown_nothing.verdict) == ("not-measured", "not-measured")
    assert "No script could be run on node gone" in lingers.message
    assert "does not show the sandbox's processes" in shown_nothing.message
    unseen = {check: found[check] for check in ("image.on-node", "image.environment")}
    assert {v.verdict for v in unseen.values()} == {"not-measured"}
    assert all(v.required and "the node can't be asked" in v.message for v in unseen.values())


def test_a_quote_in_the_environment(house):
    made = documents.read(house.image_file("singularity", "quoted"), Provenance)
    layout = variant(Path(made.source.removeprefix("oci:")), house.folder / "quoted", 'MOTTO=it is "fine"')
    file = house.run.folder / "images" / "quoted.json"
    documents.write(
        file, convert.convert(parse(f"oci:{layout}"), house.folder / "sif", log=house.folder / "quoted.log")
    )
    with house.sandbox(QUOTED.name, image=file) as server:
        found = verdicts(server, ["image"])
    assert red(found) == set(QUOTED.red)
    assert "fine" not in found["image.environment"].message  # it may be a secret


def variant(layout: Path, folder: Path, variable: str) -> Path:
    """A copy of a layout with one more variable in the image's environment."""
    shutil.copytree(layout, folder)
    index = json.loads((folder / "index.json").read_text())
    manifest = json.loads(blob(folder, index["manifests"][0]).read_text())
    settings = json.loads(blob(folder, manifest["config"]).read_text())
    settings["config"]["Env"].append(variable)
    manifest["config"] |= samples._put(folder, json.dumps(settings).encode(), manifest["config"]["mediaType"])
    index["manifests"][0] |= samples._put(
        folder, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json"
    )
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def blob(layout: Path, descriptor: dict) -> Path:
    return layout / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")


def docker(*words: str) -> str:
    """What the Docker command prints."""
    command = [str(host_tools.require("docker").path), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_container_of_another_image(house):
    with house.sandbox("loaded", driver="docker") as server:
        assert red(verdicts(server, ["image"])) == set()
        loaded = documents.read(server.placed.image, LoadedImage)
    other = "sifproof/other:1"
    container = docker("create", loaded.name)
    docker("commit", "--change", "ENV TAMPERED=1", container, other)
    docker("rm", container)

    def change(job: dict) -> None:
        job["Job"]["TaskGroups"][0]["Tasks"][0]["Config"]["image"] = other

    with house.sandbox(ANOTHER.name, driver="docker", change=change) as server:
        assert red(verdicts(server, ["image"])) == set(ANOTHER.red)
    docker("rmi", other)


def test_a_tag_that_was_moved(house):
    """The same layers, and another variable: where it was loaded after that, the tag is right again."""
    file = house.image_file("docker", MOVED.name)
    loaded = documents.read(file, LoadedImage)
    layout = variant(Path(loaded.source.removeprefix("oci:")), house.folder / "moved", "TAMPERED=1")
    other = engine.load_into_engine(parse(f"oci:{layout}"), "moved")
    docker("tag", other.name, loaded.name)
    with house.sandbox(MOVED.name, driver="docker", image=file) as server:
        found = verdicts(server, ["image"])
        assert red(found) == set(MOVED.red)
        assert f"runs {other.id}" in found["image.on-node"].message
        assert "the same as" in found["image.on-node"].message  # its layers
    assert documents.read(house.image_file("docker", MOVED.name), LoadedImage) == loaded
    assert docker("image", "inspect", "--format", "{{.Id}}", loaded.name) == loaded.id
    docker("rmi", other.name)
