"""What users and sites export for these very tools changes nothing of what sifproof makes with them."""

import json
from pathlib import Path

import image_samples as samples
import pytest

from sifproof import host_tools
from sifproof.image import convert, squashfs
from sifproof.image.digest import digest
from sifproof.image.reference import build_reference_image
from sifproof.image.source import parse

# Each of them changes the outcome or ends in a failure where it reaches the tool.
HOSTILE = {
    **dict.fromkeys(("APPTAINER_FIXPERMS", "SINGULARITY_FIXPERMS", "APPTAINER_FAKEROOT", "APPTAINER_UPDATE"), "1"),
    **dict.fromkeys(("APPTAINER_SANDBOX", "SINGULARITY_SANDBOX", "APPTAINER_ENCRYPT", "APPTAINER_JSON"), "1"),
    "APPTAINER_CONFIG_FILE": "/nowhere",
    "APPTAINER_MKSQUASHFS_ARGS": "-noI -noD -all-root",
    "SOURCE_DATE_EPOCH": "86400",
    "BUILDAH_FORMAT": "docker",
    "BUILDAH_ISOLATION": "none",
    "BUILDAH_LAYERS": "true",
    "STORAGE_DRIVER": "none",
    "STORAGE_OPTS": "none.of=it",
    **dict.fromkeys(("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF"), "/nowhere"),
    "LD_PRELOAD": "/nowhere.so",
    "PERL5LIB": "/nowhere",
    "SQFS_THREADS": "none",
    "LC_ALL": "de_DE.UTF-8",
}
# The time and the place of the build are in these.
TELLS = {".singularity.d/labels.json", ".singularity.d/Singularity"}


@pytest.mark.parametrize("skopeo", [True, False])
def test_a_sif_is_the_same(tmp_path, monkeypatch, skopeo):
    if not skopeo:
        there = host_tools.find
        monkeypatch.setattr(host_tools, "find", lambda name: None if name == "skopeo" else there(name))
    archive = samples.docker_archive(tmp_path / "a.tar")

    def made(name: str):
        done = convert.convert(parse(f"docker-archive:{archive}"), tmp_path / name, log=tmp_path / "log")
        tree = squashfs.read(Path(done.sif)).tree
        return {p: e for p, e in tree.items() if p not in TELLS}, done.fallbacks, done.key, bool(done.labels)

    clean = made("clean")
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    assert made("hostile") == clean
    assert clean[0]["bin/setuid"].mode == 0o4755


def test_an_image_is_the_same(tmp_path, monkeypatch):
    context = tmp_path / "context"
    context.mkdir()
    (context / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nCOPY one /one\nLABEL a=b\n")
    (context / "one").write_text("1")
    base = samples.oci_layout(tmp_path / "base")

    def built(name: str) -> str:
        image = build_reference_image(tmp_path / name, base=f"oci:{base}", context=context)
        assert image.seconds
        (manifest,) = json.loads((parse(image.source).path / "index.json").read_text())["manifests"]
        return digest(parse(image.source)).digest + manifest["mediaType"]

    clean = built("clean")
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    assert built("hostile") == clean
