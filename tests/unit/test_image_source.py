"""What the config may name as an image, and that it is there."""

import hashlib

import pytest
from image_samples import docker_archive, layers, oci_archive, oci_layout, sif_header

from sifproof.errors import Fault, SifproofError
from sifproof.image.archive import read_listing
from sifproof.image.source import Kind, host_architecture, parse, verify

DIGEST = "sha256:" + 64 * "a"


@pytest.mark.parametrize(
    ("text", "kind", "location", "reference"),
    [
        ("docker-daemon:box", Kind.DOCKER_DAEMON, "box:latest", ""),
        ("docker-daemon:localhost:5000/team/box:1.2", Kind.DOCKER_DAEMON, "localhost:5000/team/box:1.2", ""),
        (f"docker-daemon:{DIGEST}", Kind.DOCKER_DAEMON, DIGEST, ""),
        ("docker-archive:/a/b.tar", Kind.DOCKER_ARCHIVE, "/a/b.tar", ""),
        ("docker-archive:b.tar:box:1", Kind.DOCKER_ARCHIVE, "b.tar", "box:1"),
        ("oci:dir:v1", Kind.OCI, "dir", "v1"),
        ("oci-archive:x.tar", Kind.OCI_ARCHIVE, "x.tar", ""),
        ("docker://alpine", Kind.REGISTRY, "alpine:latest", ""),
        (f"docker://alpine@{DIGEST}", Kind.REGISTRY, f"alpine@{DIGEST}", ""),
        ("docker://host.example:5000/a/b:c", Kind.REGISTRY, "host.example:5000/a/b:c", ""),
        ("x.sif", Kind.SIF, "x.sif", ""),
        ("/data/today:1.sif", Kind.SIF, "/data/today:1.sif", ""),
    ],
)
def test_parse(text, kind, location, reference):
    source = parse(text)
    assert (source.kind, source.location, source.reference) == (kind, location, reference)
    assert parse(str(source)) == source


@pytest.mark.parametrize(
    "text",
    ["", "library://x/y", "docker:alpine", "docker-daemon:", "docker-daemon:Upper", "oci:", "python:3.12", "docker://"],
)
def test_what_is_no_image_names_value_and_what_is_allowed(text):
    with pytest.raises(SifproofError) as raised:
        parse(text)
    assert raised.value.fault is Fault.CONFIGURATION
    assert f'"{text}"' in str(raised.value)
    assert "docker-archive:PATH" in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "docker://me:hunter2@host/box:1",
        "docker://me:hunter2@host/Bad",
        "docker://me:hunter2@bad@@x",
        "dock://me:hunter2@host/x",
    ],
)
def test_a_password_does_not_reach_the_message(text):
    with pytest.raises(SifproofError) as raised:
        parse(text)
    assert "hunter2" not in str(raised.value)


def test_a_missing_file_is_named_with_similar_ones(tmp_path):
    (tmp_path / "sandbox.tar").touch()
    with pytest.raises(SifproofError, match=r"no such file.*sandbox\.tar") as raised:
        verify(parse(f"docker-archive:{tmp_path}/sandbx.tar"))
    assert raised.value.fault is Fault.CONFIGURATION


def test_a_bare_name_hints_at_the_prefixes():
    with pytest.raises(SifproofError, match="docker-daemon:no/such-image"):
        verify(parse("no/such-image"))


def _not_sif(path):
    path.write_bytes(b"x" * 500)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_not_sif, "is no SIF"),
        (lambda p: p.write_bytes(b""), "is no SIF"),
        (lambda p: sif_header(p, cut=40), "cut short"),
        (lambda p: sif_header(p, cut=150), "cut short"),
        (lambda p: sif_header(p, architecture=b"11"), "made for linux/s390x"),
        (lambda p: p.mkdir(), "is a directory"),
    ],
)
def test_bad_sif(tmp_path, make, said):
    make(tmp_path / "x.sif")
    with pytest.raises(SifproofError, match=said) as raised:
        verify(parse(f"{tmp_path}/x.sif"), architecture="amd64")
    assert raised.value.fault is Fault.CONFIGURATION
    assert f"{tmp_path}/x.sif" in str(raised.value)


def test_good_sources(tmp_path):
    layout = oci_layout(tmp_path / "layout")
    verify(parse(f"oci:{layout}"))
    verify(parse(f"oci-archive:{oci_archive(tmp_path / 'o.tar', layout)}"))
    verify(parse(f"docker-archive:{docker_archive(tmp_path / 'd.tar')}"))
    verify(parse(str(sif_header(tmp_path / "x.sif"))), architecture="amd64")


def _cut(path):
    docker_archive(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("kind", "make", "said"),
    [
        ("docker-archive", lambda p: p.write_bytes(b"no archive" * 100), "no tar archive"),
        ("docker-archive", lambda p: p.write_bytes(b"\x28\xb5\x2f\xfd" + b"0" * 600), "zstd"),
        ("docker-archive", _cut, "unexpected end"),
        ("docker-archive", lambda p: oci_archive(p, oci_layout(p.with_suffix(".d"))), "holds no manifest.json"),
        ("oci-archive", docker_archive, "holds no index.json"),
        ("oci", lambda p: p.mkdir(), "holds no index.json"),
        ("docker-archive", lambda p: docker_archive(p, architecture="s390x"), "made for linux/s390x"),
    ],
)
def test_bad_archives(tmp_path, kind, make, said):
    make(tmp_path / "image")
    with pytest.raises(SifproofError, match=said) as raised:
        verify(parse(f"{kind}:{tmp_path}/image"), architecture="amd64")
    assert raised.value.fault is Fault.CONFIGURATION


def test_a_layer_that_lost_its_end_is_no_shorter_list(tmp_path):
    layout = oci_layout(tmp_path / "layout")
    lower, _ = layers()
    # Where a member begins: a tar that ends there looks whole.
    end = lower.index(b"link".ljust(100, b"\0"))
    (layout / "blobs/sha256" / hashlib.sha256(lower).hexdigest()).write_bytes(lower[:end])
    with pytest.raises(SifproofError, match="layer 1 is not the one that its config names"):
        read_listing(parse(f"oci:{layout}"), host_architecture())


def test_a_path_with_a_colon_says_so(tmp_path):
    (tmp_path / "a:b.tar").touch()
    with pytest.raises(SifproofError, match="first colon"):
        verify(parse(f"docker-archive:{tmp_path}/a:b.tar"))
