"""What real conversions of odd images change: what is known, and nothing else."""

import gzip
import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import image_samples as samples
import pytest

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.image import archive, convert, fidelity, process, squashfs, tree
from sifproof.image.provenance import Provenance, SifStore
from sifproof.image.source import host_architecture, parse


def hard_link(target: str) -> tuple:
    return (b"", {"type": tarfile.LNKTYPE, "linkname": target})


LOWER = {
    "bin": None,
    "bin/sh": 0o755,
    "bin/suid": 0o4755,
    "bin/sgid": 0o2755,
    "usr": None,
    "usr/lib": None,
    "lib": "usr/lib",
    "tmp": (None, {"mode": 0o1777}),
    "root": (None, {"mode": 0o700}),
    "var": None,
    "var/tmp": (None, {"mode": 0o1777}),
    "modes": None,
    **{f"modes/file{mode:o}": (b"x", {"mode": mode}) for mode in (0o400, 0o444, 0o555, 0o600, 0o777, 0o7777)},
    **{f"modes/folder{mode:o}": (None, {"mode": mode}) for mode in (0o500, 0o555, 0o700, 0o777, 0o2775, 0o1777)},
    "modes/folder500/inner": b"i",
    "owned": (b"o", {"uid": 1000, "gid": 1001}),
    "dev": None,
    "dev/null|": b"",
    "fifo": (b"", {"type": tarfile.FIFOTYPE}),
    "proc": (None, {"mode": 0o555}),
    "proc/x": b"f",
    "etc": None,
    "etc/resolv.conf": b"nameserver 192.0.2.1\n",
    "etc/hosts": (b"127.0.0.1 localhost\n", {"mode": 0o600}),
    "etc/hosts.backup": hard_link("etc/hosts"),
    "one": (b"hard", {"mode": 0o640}),
    "two": hard_link("one"),
    "usr/lib/three": hard_link("one"),
    "lib/through-a-link": b"v",
    "newline": "a\nb",
    "far": "x/" * 200,
    "nobody/lists/this": b"n",
    "capable": (b"c", {"pax_headers": {"SCHILY.xattr.security.capability": "\1\0\0\2\0\x20" + 14 * "\0"}}),
    'two words\nnew line\\back"quote\t#': b"1",
    "#hash": b"1",
    " leading": b"1",
    "no\udcffutf8": b"2",
    "grüße-日本": b"3",
    255 * "x": b"4",
    (3 * (120 * "y" + "/")) + "z": b"5",
    "./dot": b"r",
    "opaque": None,
    "opaque/old": b"a",
    "hidden": None,
    "hidden/x": b"x",
    "becomes-folder": b"x",
    "becomes-file": None,
    "becomes-file/x": b"x",
    "link-becomes-folder": "usr",
    **{f"many/{number // 100}/{number}": str(number).encode() for number in range(3000)},
    "big": bytes(range(256)) * 4096 * 20,
    "empty": b"",
}
UPPER = {
    "opaque/new": b"new",
    "opaque/.wh..wh..opq": b"",
    ".wh.hidden": b"",
    "becomes-folder": None,
    "becomes-folder/y": b"y",
    "becomes-file": b"now a file",
    "link-becomes-folder": None,
    "lib/upper": b"up",
    "four": hard_link("bin/sh"),
    "two": b"replaced",
}


def sparse_layer(folder: Path) -> bytes:
    """A layer that GNU tar made of a file with holes; Apptainer does not know tar's own older form of it."""
    with (folder / "sparse").open("wb") as stream:
        stream.truncate(30_000_000)
        stream.seek(20_000_000)
        stream.write(b"not a hole")
    command = ["tar", "-C", str(folder), "--create", "--sparse", "--format=pax", "sparse"]
    layer = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(layer) < 1_000_000
    return layer


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> tuple[Path, Provenance]:
    """A layout with all that, and its conversion."""
    folder = tmp_path_factory.mktemp("odd")
    held = [samples.layer(LOWER), sparse_layer(folder), samples.layer(UPPER)]
    layout = samples.oci_layout(folder / "layout", held=held)
    return layout, convert.convert(parse(f"oci:{layout}"), folder / "store", log=folder / "log")


def differences(listing: str, sif: Path | str) -> list[fidelity.Difference]:
    return fidelity.compare(tree.load(Path(listing)).tree, squashfs.read(Path(sif)).tree)


def test_a_conversion_changes_what_is_known_and_no_more(odd):
    _, made = odd
    found = differences(made.tree, made.sif)
    assert [str(d) for d in found if not d.known] == []
    assert {"own-files", "mount-points", "network-files", "unnamed-directories"} <= {d.known for d in found}


def test_names_and_contents_are_those_of_the_image(odd):
    _, made = odd
    found = squashfs.read(Path(made.sif)).tree
    assert found["big"].sha256 == hashlib.sha256(LOWER["big"]).hexdigest()
    assert found["sparse"].size == 30_000_000
    assert {"no\udcffutf8", "#hash", " leading", 'two words\nnew line\\back"quote\t#'} <= found.keys()
    assert (found["newline"].target, found["bin/suid"].mode) == ("a\nb", 0o4755)
    assert len([path for path in found if path.startswith("many/")]) == 3030
    assert {path for path, entry in found.items() if entry.twin == "one"} == {"one", "usr/lib/three"}


def test_what_an_ordinary_user_can_not_keep_is_known_too(odd, tmp_path):
    layout, made = odd
    sif = tmp_path / "user.sif"
    arguments = ["build", "--disable-cache", str(sif), f"oci:{layout}"]
    process.run("apptainer", arguments, log=None, timeout_s=600, under=convert._AS_ORDINARY_USER)
    found = differences(made.tree, sif)
    assert [str(d) for d in found if not d.known] == []
    assert {"devices", "owners", "capabilities"} <= {d.known for d in found}


def test_a_cached_sif_without_a_listing_gets_one(odd, tmp_path):
    layout, made = odd
    listing = Path(made.tree)
    before = gzip.decompress(listing.read_bytes())
    listing.unlink()
    again = convert.convert(parse(f"oci:{layout}"), listing.parent, log=tmp_path / "log")
    assert (again.reused, again.sha256, again.tree) == (True, made.sha256, made.tree)
    assert gzip.decompress(listing.read_bytes()) == before
    assert SifStore(listing.parent).find(made.key)[0]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_layers_in_any_compression_are_listed(tmp_path, compression):
    plain = samples.oci_layout(tmp_path / "plain")
    packed = f"oci:{tmp_path / 'packed'}:latest"
    copy = ["--insecure-policy", "copy", "--dest-compress-format", compression, f"oci:{plain}:latest", packed]
    process.run("skopeo", copy, log=None, timeout_s=600)
    made = convert.convert(parse(packed), tmp_path / "store", log=tmp_path / "log")
    assert made.fallbacks == []
    expected = archive.read_listing(parse(f"oci:{plain}"), host_architecture())
    assert tree.load(Path(made.tree)).tree == expected.tree
    assert not [d for d in differences(made.tree, made.sif) if not d.known]


def test_a_layer_of_several_gzip_members_is_read_to_its_end(tmp_path, monkeypatch):
    def in_members(layer: bytes, **_) -> bytes:
        return b"".join(gzip.compress(layer[begin : begin + 1500]) for begin in range(0, len(layer), 1500))

    monkeypatch.setattr(samples, "gzip", SimpleNamespace(compress=in_members))
    layout = samples.oci_layout(tmp_path / "members", raw=False)
    made = convert.convert(parse(f"oci:{layout}"), tmp_path / "store", log=tmp_path / "log")
    assert made.fallbacks == []
    assert tree.load(Path(made.tree)).tree == tree.merge(map(io.BytesIO, samples.layers()))
    assert not [d for d in differences(made.tree, made.sif) if not d.known]


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_every_kind_of_source_has_a_listing(tmp_path, form):
    sources = {
        "docker-archive": lambda: samples.docker_archive(tmp_path / "x"),
        "oci-archive": lambda: samples.oci_archive(tmp_path / "x", samples.oci_layout(tmp_path / "o")),
        "oci": lambda: samples.oci_layout(tmp_path / "x", raw=False),
    }
    source = parse(f"{form}:{sources[form]()}")
    made = convert.convert(source, tmp_path / "store", log=tmp_path / "log")
    listing = tree.load(Path(made.tree))
    assert listing.config["config"] == samples.CONFIG
    assert listing.tree == tree.merge(map(io.BytesIO, samples.layers()))
    # Where there is no skopeo the source itself is read.
    assert archive.read_listing(source, host_architecture()) == listing


def test_an_image_that_can_not_be_listed_is_converted_all_the_same(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no such luck")

    monkeypatch.setattr(archive, "read_listing", fail)
    layout = samples.oci_layout(tmp_path / "layout")
    made = convert.convert(parse(f"oci:{layout}"), tmp_path / "store", log=tmp_path / "log")
    assert (made.tree, made.fallbacks) == ("", ["the files of the image were not listed: no such luck"])


@pytest.mark.parametrize(("begin", "length"), [(-40_000, 40_000), (90_000, 2000), (45_056, 4)])
def test_a_damaged_sif_is_not_taken_for_a_sound_one(odd, tmp_path, begin, length):
    _, made = odd
    content = bytearray(Path(made.sif).read_bytes())
    at = begin % len(content)
    content[at : at + length] = bytes(length)
    spoilt = tmp_path / "spoilt.sif"
    spoilt.write_bytes(content)
    with pytest.raises(SifproofError, match=r"unsquashfs can't read .*spoilt\.sif"):
        squashfs.read(spoilt)


def test_unsquashfs_is_found_beside_mksquashfs():
    assert squashfs._unsquashfs().parent == host_tools.require("mksquashfs").path.resolve().parent


def test_an_unsquashfs_that_ends_well_and_says_what_nobody_can_read_is_no_sif_read(odd, monkeypatch, tmp_path):
    _, made = odd
    program = tmp_path / "unsquashfs"
    program.write_text("#!/bin/sh\ntrap '' PIPE\necho what is this\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setattr(squashfs, "_unsquashfs", lambda: program)
    # Until it has ended by itself: else it is killed, which shows in how it ended.
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: process.wait())
    with pytest.raises(SifproofError, match=r"unsquashfs can't read .*: it ended before the contents"):
        squashfs.read(Path(made.sif))


def test_of_a_long_file_in_a_sif_only_the_beginning_is_kept(tmp_path):
    held = [samples.layer({"long": b"x" * (3 * 2**20)})]
    layout = samples.oci_layout(tmp_path / "layout", held=held)
    made = convert.convert(parse(f"oci:{layout}"), tmp_path / "store", log=tmp_path / "log")
    content = squashfs.read(Path(made.sif), frozenset({"long"}))
    assert len(content.kept["long"]) == 2**20
    assert content.tree["long"].sha256 == hashlib.sha256(b"x" * (3 * 2**20)).hexdigest()
