"""One image on its own, whatever it came from."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path

import image_samples as samples
import pytest

from sifproof.errors import Fault, SifproofError
from sifproof.image import archive
from sifproof.image.digest import SourceDigest, digest
from sifproof.image.layout import lay_out
from sifproof.image.source import host_architecture, parse

LINUX = {"architecture": host_architecture(), "os": "linux"}
WINDOWS = LINUX | {"os": "windows"}


def no_tool(*_, **__):
    raise AssertionError("files take no tool")


def laid_out(text: str, folder: Path) -> dict:
    """The manifest of the only image of the layout that is made of ``text``; it is the one that was identified."""
    source = parse(text)
    identity = digest(source)
    layout = lay_out(source, identity, folder, no_tool)
    (listed,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((layout / "blobs/sha256" / listed["digest"][7:]).read_text())
    names = {listed["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}
    assert {f"sha256:{f.name}" for f in (layout / "blobs/sha256").iterdir()} == names
    assert names == {
        f"sha256:{hashlib.sha256(f.read_bytes()).hexdigest()}" for f in (layout / "blobs/sha256").iterdir()
    }
    assert manifest["config"]["digest"] == identity.digest
    sizes = [len((layout / "blobs/sha256" / layer["digest"][7:]).read_bytes()) for layer in manifest["layers"]]
    assert sizes == [layer["size"] for layer in manifest["layers"]]
    assert digest(parse(f"oci:{layout}")).digest == identity.digest
    return manifest


def of_two(path: Path) -> Path:
    entries = [samples.image_of(path, m, p) | {"platform": p} for m, p in (("", LINUX), ("other", WINDOWS))]
    return samples.layout_of(path, [samples.index_of(path, [samples.index_of(path, entries)])])


KINDS = {
    "docker-archive": lambda p: f"docker-archive:{samples.docker_archive(p / 'd.tar')}",
    "docker-archive, gzipped": lambda p: f"docker-archive:{samples.docker_archive(p / 'd.tgz', compression='gz')}",
    "docker-archive of two": lambda p: "docker-archive:{}:a:1".format(
        samples.docker_archive_of(p / "d.tar", {"b:1": samples.layers("b"), "a:1": samples.layers()})
    ),
    "oci": lambda p: f"oci:{samples.oci_layout(p / 'o')}",
    "oci of two": lambda p: f"oci:{of_two(p / 'o')}",
    "oci-archive of two": lambda p: f"oci-archive:{samples.oci_archive(p / 'o.tar', of_two(p / 'o'))}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_identified_lies_there_alone(tmp_path, kind):
    manifest = laid_out(KINDS[kind](tmp_path), tmp_path / "work")
    assert [layer["digest"] for layer in manifest["layers"]] == [samples._digest(x) for x in samples.layers()]
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar"}


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(lambda x: gzip.compress(x, mtime=0), "+gzip"), (bz2.compress, ""), (lzma.compress, "")],
    ids=["gzip", "bzip2", "xz"],
)
def test_layers_of_any_compression(tmp_path, pack, suffix):
    """Also those of which a manifest says that they are not compressed."""
    blobs = samples.layers()
    listed = [samples._put(tmp_path, pack(x), "application/vnd.oci.image.layer.v1.tar") for x in blobs]
    config = samples._put(tmp_path, samples.config(blobs), "application/vnd.oci.image.config.v1+json")
    text = json.dumps({"config": config, "layers": listed}).encode()
    entry = samples._put(tmp_path, text, "application/vnd.oci.image.manifest.v1+json")
    manifest = laid_out(f"oci:{samples.layout_of(tmp_path, [entry])}", tmp_path / "work")
    assert {layer["mediaType"] for layer in manifest["layers"]} == {f"application/vnd.oci.image.layer.v1.tar{suffix}"}
    listing = archive.read_listing(parse(f"oci:{tmp_path / 'work' / 'layout'}"), host_architecture())
    assert "etc/mark" in listing.tree


def test_a_layer_of_zstd_stays_as_it_is(tmp_path):
    packed = archive.ZSTD + b"what only others can read"
    layer = samples._put(tmp_path, packed, "application/vnd.oci.image.layer.v1.tar+zstd")
    config = samples._put(tmp_path, samples.config([b"x"]), "application/vnd.oci.image.config.v1+json")
    text = json.dumps({"config": config, "layers": [layer]}).encode()
    entry = samples._put(tmp_path, text, "application/vnd.oci.image.manifest.v1+json")
    manifest = laid_out(f"oci:{samples.layout_of(tmp_path, [entry])}", tmp_path / "work")
    assert manifest["layers"] == [layer]


def spoil(layout: Path, layer: bytes, spoilt: bytes) -> None:
    path = layout / "blobs/sha256" / samples._digest(layer)[7:]
    assert path.exists()
    path.write_bytes(spoilt)


def cut_xz(path: Path) -> None:
    """The second layer, compressed in a way that has to be taken away, ends early."""
    blobs = samples.layers()
    packed = [lzma.compress(x) for x in blobs]
    listed = [samples._put(path, x, "application/vnd.oci.image.layer.v1.tar") for x in packed]
    config = samples._put(path, samples.config(blobs), "application/vnd.oci.image.config.v1+json")
    text = json.dumps({"config": config, "layers": listed}).encode()
    samples.layout_of(path, [samples._put(path, text, "application/vnd.oci.image.manifest.v1+json")])
    spoil(path, packed[1], packed[1][:-20])


def other_gzip(path: Path) -> None:
    """The right content, and not the file that the manifest names."""
    samples.oci_layout(path, raw=False)
    layer = samples.layers()[1]
    spoil(path, gzip.compress(layer, mtime=0), gzip.compress(layer, mtime=1))


def other_layer(path: Path) -> None:
    samples.oci_layout(path)
    layer = samples.layers()[1]
    spoil(path, layer, layer[:-1] + b"x")


@pytest.mark.parametrize("damage", [cut_xz, other_gzip, other_layer])
def test_a_damaged_layer_is_the_images_fault(tmp_path, damage):
    damage(tmp_path / "o")
    with pytest.raises(SifproofError, match="is damaged: layer 2 of 2: ") as raised:
        laid_out(f"oci:{tmp_path}/o", tmp_path / "work")
    assert raised.value.fault is Fault.IMAGE


def linked(path: Path, target: str) -> Path:
    """An archive whose second layer is a link, as older engines save one that two images share."""
    blobs = samples.layers()
    listed = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]
    files = {
        "c.json": samples.config(blobs),
        "1/layer.tar": blobs[0],
        "0/layer.tar": blobs[1],
        "manifest.json": json.dumps(listed).encode(),
    }
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("2/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, target
        tar.addfile(link)
    return path


def test_a_layer_that_is_a_link(tmp_path):
    archived = linked(tmp_path / "d.tar", "../0/layer.tar")
    manifest = laid_out(f"docker-archive:{archived}", tmp_path / "work")
    assert manifest["layers"][1]["digest"] == samples._digest(samples.layers()[1])
    lost = linked(tmp_path / "d.tar", "../nowhere")
    with pytest.raises(SifproofError, match="layer 2 of 2: it is not there") as raised:
        laid_out(f"docker-archive:{lost}", tmp_path / "lost")
    assert raised.value.fault is Fault.IMAGE


def test_a_source_that_is_another_by_now(tmp_path):
    source = parse(f"docker-archive:{samples.docker_archive(tmp_path / 'd.tar')}")
    identity = digest(source)
    samples.docker_archive(tmp_path / "d.tar", mark="another")
    with pytest.raises(SifproofError, match=f"changed while .* was {identity.digest} and is now sha256:") as raised:
        lay_out(source, identity, tmp_path / "one", no_tool)
    assert raised.value.fault is Fault.INFRASTRUCTURE
    (tmp_path / "d.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(SifproofError, match=r"is now none \(it is no tar archive\)") as raised:
        lay_out(source, identity, tmp_path / "two", no_tool)
    assert raised.value.fault is Fault.INFRASTRUCTURE
    samples.docker_archive(tmp_path / "d.tar", lacks_layers=True)
    with pytest.raises(SifproofError, match="is not whole") as raised:
        lay_out(source, identity, tmp_path / "three", no_tool)
    assert raised.value.fault is Fault.IMAGE


class Engine:
    """In the place of `docker`: what it saves, and what it was asked for."""

    def __init__(self, mark=""):
        self.mark = mark
        self.asked = []

    def __call__(self, step, tool, arguments, *, environment=None):
        self.asked.append([tool, *arguments])
        samples.docker_archive(Path(arguments[arguments.index("--output") + 1]), mark=self.mark)


@pytest.mark.parametrize("by", ["config", "manifest"])
def test_an_engines_image_is_the_one_that_it_gave_by_that_id(tmp_path, by):
    """Whether the engine calls it by its config or by its manifest, in which case its layers tell."""
    (tmp_path / "work").mkdir()
    config = samples._digest(samples.config(samples.layers()))
    identity = SourceDigest(
        digest=config if by == "config" else "sha256:" + 64 * "a",
        architecture="",
        layers=[samples._digest(x) for x in samples.layers()],
    )
    engine, source = Engine(), parse("docker-daemon:box")
    layout = lay_out(source, identity, tmp_path / "work", engine)
    assert engine.asked == [["docker", "save", "--output", str(tmp_path / "work/image.tar"), identity.digest]]
    assert digest(parse(f"oci:{layout}")).digest == config
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["layout"]
    (tmp_path / "other").mkdir()
    with pytest.raises(SifproofError, match="changed while"):
        lay_out(source, identity, tmp_path / "other", Engine("another"))


def test_a_registrys_image_is_fetched_by_its_digest(tmp_path):
    held = samples.oci_layout(tmp_path / "held", raw=False)
    (entry,) = json.loads((held / "index.json").read_text())["manifests"]
    identity = digest(parse(f"oci:{held}"))
    assert identity.manifest_digest == entry["digest"]

    def skopeo(step, tool, arguments, *, environment):
        """What it writes to a plain directory."""
        assert (tool, environment) == ("skopeo", {"TMPDIR": str(tmp_path / "work")})
        assert arguments[-2] == f"docker://host.example/box@{entry['digest']}"
        folder = Path(arguments[-1].removeprefix("dir:"))
        shutil.copytree(held / "blobs/sha256", folder)
        (folder / entry["digest"][7:]).rename(folder / "manifest.json")

    (tmp_path / "work").mkdir()
    layout = lay_out(parse("docker://host.example/box:1"), identity, tmp_path / "work", skopeo)
    found = digest(parse(f"oci:{layout}"))
    assert (found.digest, found.layers) == (identity.digest, identity.layers)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["layout"]
