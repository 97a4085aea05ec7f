"""The store: what makes a SIF another one, and what of it is believed."""

import hashlib
from pathlib import Path

import pytest

from sifproof.config import Conversion
from sifproof.image.digest import SourceDigest
from sifproof.image.provenance import ConversionSettings, Provenance, SifStore

VERSIONS = {"apptainer": "1.4.5", "mksquashfs": "4.6.1", "sifproof": "0.1.0"}


def _key(digest="sha256:a", settings=None, **versions):
    source = SourceDigest(digest=digest, architecture="amd64")
    return SifStore(Path("x")).key(source, VERSIONS | versions, settings or ConversionSettings())


def test_the_key_follows_content_tools_and_arguments_and_nothing_else():
    assert _key() == _key(sifproof="0.2.0")
    assert _key() == _key(settings=ConversionSettings(timeout_s=5, tmpdir="/somewhere"))
    others = [
        _key(digest="sha256:b"),
        _key(apptainer="1.4.6"),
        _key(mksquashfs="4.7"),
        _key(settings=ConversionSettings(level=4)),
        _key(settings=ConversionSettings(compression="gzip")),
    ]
    assert len({_key(), *others}) == 6


def test_settings_of_the_config():
    settings = ConversionSettings.of(Conversion(compression="gzip", level=9))
    assert settings.mksquashfs_arguments == "-comp gzip -Xcompression-level 9"
    assert ConversionSettings.of(settings) is settings
    assert ConversionSettings.of(None).mksquashfs_arguments == "-comp zstd -Xcompression-level 3"


@pytest.fixture
def store(tmp_path):
    store = SifStore(tmp_path)
    made = tmp_path / "made"
    made.write_bytes(b"content")
    store.put(
        made,
        Provenance(
            source="oci:x", digest="sha256:a", architecture="amd64", key="k", sif="k.sif",
            sha256=hashlib.sha256(b"content").hexdigest(), size_bytes=7, created="",
        ),
    )  # fmt: skip
    return store


def test_a_sound_entry_is_found(store):
    found, defect = store.find("k")
    assert found.source == "oci:x"
    assert defect == ""
    assert store.find("other") == (None, "")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.sif("k").write_bytes(b"changed"), "content"),
        (lambda s: s.sif("k").write_bytes(b"cut"), "3 bytes instead of 7"),
        (lambda s: s.sif("k").unlink(), "SIF is gone"),
        (lambda s: s.record("k").unlink(), "provenance"),
        (lambda s: s.record("k").write_text("{"), "provenance"),
    ],
)
def test_a_spoilt_entry_is_not(store, spoil, said):
    assert store.find("k")[0] is not None
    spoil(store)
    found, defect = store.find("k")
    assert found is None
    assert said in defect
