"""What identifies an image, read straight from archives and layouts."""

import hashlib
import json
import os

import pytest
from image_samples import (
    config,
    docker_archive,
    docker_archive_of,
    image_of,
    index_of,
    layers,
    layout_of,
    oci_archive,
    oci_layout,
    sif_header,
)

from sifproof.errors import Fault, SifproofError
from sifproof.image.digest import digest, file_digest
from sifproof.image.source import host_architecture, parse, verify

EXPECTED = "sha256:" + hashlib.sha256(config(layers())).hexdigest()


@pytest.fixture
def sample(tmp_path):
    layout = oci_layout(tmp_path / "layout")
    return {
        "docker-archive": f"docker-archive:{docker_archive(tmp_path / 'd.tar')}",
        "gzipped": f"docker-archive:{docker_archive(tmp_path / 'd.tar.gz', compression='gz')}",
        "oci": f"oci:{layout}",
        "compressed": f"oci:{oci_layout(tmp_path / 'compressed', raw=False)}",
        "index": f"oci:{oci_layout(tmp_path / 'index', index=True)}",
        "named": f"oci:{oci_layout(tmp_path / 'named', tags=('a', 'b'))}:a",
        "oci-archive": f"oci-archive:{oci_archive(tmp_path / 'o.tar', layout)}",
    }


@pytest.mark.parametrize("name", ["docker-archive", "gzipped", "oci", "compressed", "index", "named", "oci-archive"])
def test_one_image_has_one_digest_however_it_is_packed(sample, name):
    found = digest(parse(sample[name]))
    assert found.digest == EXPECTED
    assert len(found.layers) == 2
    assert found.raw_layers == (name != "compressed")
    assert found.config.entrypoint == ["/bin/serve"]
    assert found.config.ports == ["8080/tcp"]
    assert found.config.env_keys == ["PATH", "TOKEN"]
    assert "s3cret" not in found.model_dump_json()


def test_another_content_has_another_digest(tmp_path):
    assert digest(parse(f"docker-archive:{docker_archive(tmp_path / 'x.tar', mark='new')}")).digest != EXPECTED


def test_an_archive_of_several_images_needs_a_name(tmp_path):
    docker_archive_of(tmp_path / "x.tar", {"one:1": layers(), "registry.example/library/two:latest": layers("2")})
    with pytest.raises(SifproofError, match=r"2 images \(one:1.*x\.tar:one:1"):
        digest(parse(f"docker-archive:{tmp_path}/x.tar"))
    with pytest.raises(SifproofError, match="does not exist"):
        digest(parse(f"docker-archive:{tmp_path}/x.tar:three"))
    assert digest(parse(f"docker-archive:{tmp_path}/x.tar:one:1")).digest == EXPECTED
    assert digest(parse(f"docker-archive:{tmp_path}/x.tar:@0")).digest == EXPECTED
    for name in ("two", "two:latest", "registry.example/two", "registry.example/library/two:latest"):
        assert digest(parse(f"docker-archive:{tmp_path}/x.tar:{name}")).digest != EXPECTED
    with pytest.raises(SifproofError, match="does not exist"):
        digest(parse(f"docker-archive:{tmp_path}/x.tar:other.example/two"))


def test_an_index_without_this_processor(tmp_path, monkeypatch):
    layout = oci_layout(tmp_path / "x", index=True)
    monkeypatch.setattr("sifproof.image.digest.host_architecture", lambda: "riscv64")
    with pytest.raises(SifproofError, match="not for linux/riscv64") as raised:
        digest(parse(f"oci:{layout}"))
    assert raised.value.fault is Fault.CONFIGURATION


def test_a_damaged_config_is_refused(tmp_path):
    layout = oci_layout(tmp_path / "x")
    blob = layout / "blobs/sha256" / EXPECTED[7:]
    blob.write_bytes(blob.read_bytes().replace(b"s3cret", b"s4cret"))
    with pytest.raises(SifproofError, match="damaged"):
        digest(parse(f"oci:{layout}"))


@pytest.mark.parametrize(
    "marks", [{}, {"architecture": None, "os": None}, {"architecture": "", "os": ""}, {"architecture": 7}]
)
def test_what_an_image_does_not_say_speaks_against_nothing(tmp_path, marks):
    layout = layout_of(tmp_path, [image_of(tmp_path, says=marks)])
    found = digest(parse(f"oci:{layout}"))
    assert (found.architecture, found.os) == ("", "")
    verify(parse(f"oci:{layout}"))


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        ({"os": "windows", "architecture": host_architecture()}, f"made for windows/{host_architecture()}, and"),
        ({"os": "windows"}, "made for windows/"),
        ({"os": "linux", "architecture": "s390x"}, "made for linux/s390x, and"),
    ],
)
def test_an_image_of_its_own_for_another_platform(tmp_path, marks, said):
    layout = layout_of(tmp_path, [image_of(tmp_path, says=marks)])
    with pytest.raises(SifproofError, match=said) as raised:
        verify(parse(f"oci:{layout}"))
    assert raised.value.fault is Fault.CONFIGURATION


def test_who_names_a_variant_itself_may_have_it(tmp_path):
    layout = layout_of(tmp_path, [image_of(tmp_path, says={"architecture": host_architecture(), "variant": "v99"})])
    verify(parse(f"oci:{layout}"))
    index = layout_of(
        tmp_path, [index_of(tmp_path, [image_of(tmp_path, says={"variant": "v99", "architecture": "arm"})])]
    )
    with pytest.raises(SifproofError, match="made for linux/arm/v99, not for"):
        digest(parse(f"oci:{index}"))


def lacking(path):
    """The same image without layers, in each form of a file; the last lacks them only in the layout beside."""
    layout = layout_of(path / "one", [image_of(path / "one", lacks_layers=True)])
    beside = {str(f.relative_to(layout)): f.read_bytes() for f in layout.rglob("*") if f.is_file()}
    inner = path / "index"
    return {
        "oci": f"oci:{layout}",
        "oci, in an index": f"oci:{layout_of(inner, [index_of(inner, [image_of(inner, lacks_layers=True)])])}",
        "oci-archive": f"oci-archive:{oci_archive(path / 'o.tar', layout)}",
        "docker-archive": f"docker-archive:{docker_archive(path / 'd.tar', lacks_layers=True)}",
        "both in one": f"docker-archive:{docker_archive_of(path / 'b.tar', {'a:1': layers()}, beside=beside)}",
    }


@pytest.mark.parametrize("kind", ["oci", "oci, in an index", "oci-archive", "docker-archive", "both in one"])
def test_a_manifest_without_layers_is_the_images_fault_wherever_it_lies(tmp_path, kind):
    source = parse(lacking(tmp_path)[kind])
    with pytest.raises(
        SifproofError, match="is not whole: its manifest lists 0 layers, and its config names 2"
    ) as raised:
        digest(source)
    assert raised.value.fault is Fault.IMAGE
    verify(source)  # a verdict on the image is none on the config


def test_a_layout_beside_an_archive_that_agrees_is_fine(tmp_path):
    layout = layout_of(tmp_path, [image_of(tmp_path)])
    beside = {str(f.relative_to(layout)): f.read_bytes() for f in layout.rglob("*") if f.is_file()}
    archive = docker_archive_of(tmp_path / "b.tar", {"a:1": layers()}, beside=beside)
    assert digest(parse(f"docker-archive:{archive}")).digest == EXPECTED
    lost = {name: content for name, content in beside.items() if not name.startswith("blobs")}
    assert (
        digest(parse(f"docker-archive:{docker_archive_of(archive, {'a:1': layers()}, beside=lost)}")).digest == EXPECTED
    )


def test_an_artifact_is_no_image(tmp_path):
    layout = oci_layout(tmp_path / "x")
    (layout / "index.json").write_text(json.dumps({"manifests": [{"digest": "../../x"}]}))
    with pytest.raises(SifproofError, match="no digest"):
        digest(parse(f"oci:{layout}"))


def test_a_sif_is_known_by_its_bytes_and_remembered(tmp_path):
    path = sif_header(tmp_path / "x.sif")
    value = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest(parse(str(path)), tmp_path / "cache").digest == f"sha256:{value}"
    # Status times can't be set, only waited for or looked past.
    assert file_digest(path, tmp_path / "cache") == value


def test_what_is_remembered_counts_only_for_the_same_file(tmp_path, monkeypatch):
    path, cache = tmp_path / "x", tmp_path / "cache"
    path.write_bytes(b"one")
    late = path.stat().st_ctime_ns + 10**10
    monkeypatch.setattr("sifproof.image.digest.time.time_ns", lambda: late)
    first = file_digest(path, cache)
    (record,) = cache.iterdir()
    record.write_text(record.read_text().replace(first, "remembered"))
    assert file_digest(path, cache) == "remembered"
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(path, cache) == hashlib.sha256(b"two").hexdigest()
    record.write_text("no JSON")
    assert file_digest(path, cache) == hashlib.sha256(b"two").hexdigest()
