"""What the layers of an image amount to, and the list of it that a store keeps."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import random
import tarfile

import image_samples as samples
import pytest

from sifproof.errors import SifproofError
from sifproof.image import tree


def merged(*layers: dict) -> tree.Tree:
    return tree.merge(io.BytesIO(samples.layer(members)) for members in layers)


def hard_link(target: str) -> tuple:
    return (b"", {"type": tarfile.LNKTYPE, "linkname": target})


def names(*layers: dict) -> set[str]:
    return set(merged(*layers)) - {"."}


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ({"a/.wh.f": b""}, {"a", "a/sub", "a/sub/g"}),
        ({".wh.a": b""}, set()),
        ({".wh.a": b"", "a": None, "a/new": b""}, {"a", "a/new"}),
        ({"a/.wh..wh..opq": b"", "a/new": b""}, {"a", "a/new"}),
        # An opaque mark hides what is below this layer, wherever in the layer it stands.
        ({"a/new": b"", "a/.wh..wh..opq": b""}, {"a", "a/new"}),
        ({"a/sub/new": b"", "a/.wh..wh..opq": b""}, {"a", "a/sub", "a/sub/new"}),
        ({"a/twin": hard_link("a/f"), "a/.wh..wh..opq": b""}, {"a", "a/twin"}),
        ({"a/f": b"new", "a/.wh.f": b""}, {"a", "a/f", "a/sub", "a/sub/g"}),
        ({"a/.wh.nothing": b"", "nowhere/.wh.x": b""}, {"a", "a/f", "a/sub", "a/sub/g"}),
        ({"a/.wh..wh.plnk": b""}, {"a", "a/f", "a/sub", "a/sub/g"}),
        ({"a": b"a file now"}, {"a"}),
        ({"a/f": None, "a/f/h": b""}, {"a", "a/f", "a/f/h", "a/sub", "a/sub/g"}),
        ({"a": None, "a/x.wh.y": b""}, {"a", "a/f", "a/sub", "a/sub/g", "a/x.wh.y"}),
    ],
)
def test_layers_replace_hide_and_add(upper, left):
    assert names({"a": None, "a/f": b"", "a/sub": None, "a/sub/g": b""}, upper) == left


def test_directories_keep_what_is_in_them_and_take_the_last_mode():
    found = merged({"d": None, "d/f": b""}, {"d": (None, {"mode": 0o700})})
    assert found["d"].mode == 0o700
    assert "d/f" in found


@pytest.mark.parametrize("way", ["real", "/real", "../../real", "other", "dots/../real/."])
def test_the_way_to_a_file_leads_through_links_and_not_out(way):
    lower = {"real": None, "other": "real", "dots": None, "link": way}
    assert "real/f" in merged(lower, {"link/f": b""})
    assert "real/f" not in merged({**lower, "real/f": b""}, {"link/.wh.f": b""})


def test_a_link_to_nothing_is_followed_and_a_circle_is_not():
    assert "no/where/f" in merged({"link": "no/where"}, {"link/f": b""})
    with pytest.raises(ValueError, match="symbolic links"):
        merged({"a": "b", "b": "a", "a/f": b""})


@pytest.mark.parametrize("name", ["./f", "/f", "a/../f", "../../f", ".//f"])
def test_names_are_taken_from_the_root(name):
    assert "f" in merged({name: b""})


def test_directories_that_no_layer_lists_have_no_mode():
    found = merged({"a/b/f": b""})
    assert (found["a"].mode, found["a/b"].mode, found["."].mode) == (None, None, None)
    assert merged({"./": (None, {"mode": 0o700})})["."].mode == 0o700


def test_hard_links_are_one_file_across_layers_until_one_name_is_replaced():
    lower = {"one": (b"x", {"mode": 0o640}), "two": (b"", {"type": tarfile.LNKTYPE, "linkname": "one", "mode": 0o777})}
    found = merged(lower, {"a": hard_link("/two")})
    assert {found[name] for name in ("one", "two", "a")} == {found["one"]}
    assert (found["one"].twin, found["one"].mode, found["a"].size) == ("a", 0o640, 1)
    found = merged(lower, {"one": b"yy"})
    assert (found["one"].size, found["two"].size, found["one"].twin, found["two"].twin) == (2, 1, "", "")


def test_a_hard_link_to_nothing_is_refused():
    with pytest.raises(ValueError, match="no such file"):
        merged({"a": hard_link("nothing")})


@pytest.mark.parametrize(
    "name",
    ["two words", "new\nline", 'quo"te\\', "grüße-日本", "no\udcffutf8", 255 * "x", 20 * (90 * "y" + "/") + "z"],
)
def test_names_of_every_kind(name):
    assert merged({name: b"x"})[name].size == 1


def test_types_modes_and_contents():
    found = merged(
        {
            "null|": b"",
            "fifo": (b"", {"type": tarfile.FIFOTYPE, "mode": 0o600}),
            "suid": 0o6755,
            "link": "to\nwhere",
            "file": (b"x", {"uid": 7, "gid": 8}),
            "ping": (b"x", {"pax_headers": {"SCHILY.xattr.security.capability": "x"}}),
        }
    )
    assert [found[name].kind for name in ("null", "fifo", "suid", "link")] == ["device", "fifo", "file", "link"]
    assert (found["suid"].mode, found["link"].target, found["file"].owner) == (0o6755, "to\nwhere", "7:8")
    assert found["file"].sha256 == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert [found[name].capabilities for name in ("file", "ping")] == [False, True]


def in_members(layer: bytes) -> bytes:
    """As eStargz and parallel compressors write it: gzip members one after another, cut anywhere."""
    return b"".join(gzip.compress(layer[begin : begin + 700]) for begin in range(0, len(layer), 700))


@pytest.mark.parametrize("packed", [bytes, gzip.compress, in_members, bz2.compress, lzma.compress])
def test_layers_may_be_compressed(packed):
    layer = samples.layer({"f": b"x", "g": bytes(2000), "h": b"y"})
    whole = tree.merge([io.BytesIO(layer)])
    assert tree.merge([io.BytesIO(packed(layer))], [diff_id(layer)]) == whole
    assert {"f", "g", "h"} <= whole.keys()


def diff_id(layer: bytes) -> str:
    return f"sha256:{hashlib.sha256(layer).hexdigest()}"


LAYER = samples.layer({"f": b"x", "g": b"y"})


@pytest.mark.parametrize(
    ("held", "named", "words"),
    [
        # Cut where a file ends, a tar looks whole to tarfile.
        ([LAYER[:1024]], [LAYER], "layer 1 is not the one"),
        ([gzip.compress(LAYER[:1024])], [LAYER], "layer 1 is not the one"),
        ([LAYER, LAYER], [LAYER, samples.layer({"f": b"z"})], "layer 2 is not the one"),
        ([LAYER], [LAYER, LAYER], "it has 1 layers, and its config names 2"),
        ([LAYER], [], "it has 1 layers, and its config names 0"),
    ],
)
def test_layers_that_are_not_those_of_the_config_are_an_error(held, named, words):
    with pytest.raises(ValueError, match=words):
        tree.merge(map(io.BytesIO, held), list(map(diff_id, named)))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_compression_is_an_error(pack):
    packed = bytearray(pack(samples.layer({"f": random.Random(1).randbytes(9000)})))
    packed[5000:5100] = bytes(100)
    with pytest.raises((tarfile.TarError, EOFError, OSError, ValueError)):
        tree.merge([io.BytesIO(packed)])
    with pytest.raises((tarfile.TarError, EOFError, OSError, ValueError)):
        tree.merge([io.BytesIO(packed[:3000])])


def test_an_empty_layer_changes_nothing():
    assert set(tree.merge([io.BytesIO(bytes(1024))])) == {"."}


@pytest.mark.parametrize("damage", [lambda b: b[:700], lambda b: b"\xff" * 600 + b[600:]])
def test_a_damaged_layer_is_an_error(damage):
    layer = damage(samples.layer({"f": bytes(1000)}))
    with pytest.raises((tarfile.TarError, EOFError, OSError)):
        tree.merge([io.BytesIO(layer)])


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/a/f", "a/f"),
        ("link/f", "a/f"),
        ("up/a/f", "a/f"),
        ("a/../a/./f", "a/f"),
        ("/", "."),
        ("a/none", None),
        ("circle", None),
        ("lost", None),
    ],
)
def test_find_follows_links(path, place):
    found = merged({"a": None, "a/f": b"", "link": "/a", "up": "../..", "circle": "circle", "lost": "nowhere"})
    assert tree.find(found, path) == place


def test_a_listing_is_read_back_as_it_was(tmp_path):
    listing = tree.Listing({"config": {"Env": ["A=ü"]}}, merged({"no\udcffutf8\n": b"x", "d": None, "l": "\udcfe"}))
    tree.save(tmp_path / "t.gz", listing)
    assert tree.load(tmp_path / "t.gz") == listing


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: b"",
        lambda text: b"no gzip",
        lambda text: gzip.compress(text)[:-9],
        lambda text: gzip.compress(text[: text.rstrip().rindex(b"\n") + 1]),
        lambda text: gzip.compress(text.replace(b'"format": 1', b'"format": 99')),
        lambda text: gzip.compress(b"[]\n"),
    ],
)
def test_a_spoilt_listing_is_refused(tmp_path, spoil):
    path = tmp_path / "t.gz"
    tree.save(path, tree.Listing({}, merged({"f": b"x"})))
    path.write_bytes(spoil(gzip.decompress(path.read_bytes())))
    with pytest.raises(SifproofError, match="can't be read") as raised:
        tree.load(path)
    assert "remove it" in raised.value.todo


def test_a_listing_is_small(tmp_path):
    files = {f"usr/lib/python3/module{number}.py": str(number).encode() for number in range(2000)}
    tree.save(tmp_path / "t.gz", tree.Listing({}, merged(files)))
    assert (tmp_path / "t.gz").stat().st_size < 70 * 2000
    assert json.loads(gzip.decompress((tmp_path / "t.gz").read_bytes()).splitlines()[0])["entries"] == 2004
