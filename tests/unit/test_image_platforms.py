"""Which image is meant where several stand under one name."""

import json

import image_samples as samples
import pytest

from sifproof.errors import Fault, SifproofError
from sifproof.image import platforms
from sifproof.image.digest import digest
from sifproof.image.platforms import Candidate, Platform, candidates, choose, rank
from sifproof.image.source import host_architecture, parse

HERE = host_architecture()
LINUX = {"os": "linux", "architecture": HERE}
ARM = {"os": "linux", "architecture": "s390x"}
WINDOWS = {"os": "windows", "architecture": HERE, "os.version": "10.0.17763.1"}
ATTESTATION = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}


def chosen(path, entries, reference="") -> str:
    """What marks the image that is chosen in a layout of ``entries``."""
    layout = samples.layout_of(path, entries)
    found = digest(parse(f"oci:{layout}{reference}"))
    return next(mark for mark in "abc" if found.layers == digests(path, mark))


def digests(path, mark) -> list[str]:
    return [samples._digest(layer) for layer in samples.layers(mark)]


def test_two_systems_of_one_processor(tmp_path):
    """The Linux image changes, the Windows one does not: another digest, whichever comes first."""
    linux, changed = samples.image_of(tmp_path, "a"), samples.image_of(tmp_path, "b")
    windows = samples.image_of(tmp_path, "c", {"os": "windows", "architecture": HERE}) | {"platform": WINDOWS}
    for order in (1, -1):
        for mark, image in (("a", linux), ("b", changed)):
            entries = [image | {"platform": LINUX}, windows][::order]
            assert chosen(tmp_path, [samples.index_of(tmp_path, entries)]) == mark


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_an_index_in_an_index(tmp_path, depth):
    entry = samples.image_of(tmp_path, "a") | {"platform": LINUX}
    other = samples.image_of(tmp_path, "b", ARM) | {"platform": ARM}
    for _ in range(depth):
        entry = samples.index_of(tmp_path, [other, entry])
    assert chosen(tmp_path, [entry]) == "a"


def test_indexes_that_lie_too_deep_or_lead_to_themselves(tmp_path):
    entry = samples.image_of(tmp_path, "a") | {"platform": LINUX}
    for _ in range(9):
        entry = samples.index_of(tmp_path, [entry])
    with pytest.raises(SifproofError, match="more than 8 deep") as raised:
        chosen(tmp_path, [entry])
    assert raised.value.fault is Fault.CONFIGURATION

    class Liar:
        """Whose every index lists itself, and one more."""

        def manifest(self, name):
            return json.dumps({"manifests": [{"digest": name}, {"digest": f"{name}1"}]}).encode()

    with pytest.raises(ValueError, match="more than 8 deep"):
        candidates([{"digest": "md5:1"}], Liar())


def test_an_index_of_very_many(tmp_path):
    many = [{"digest": f"md5:{number}", "mediaType": next(iter(platforms._MANIFESTS)), "platform": ARM}
            for number in range(1001)]  # fmt: skip
    with pytest.raises(ValueError, match="more than 1000"):
        candidates(many, None)
    assert len(candidates(many[:1000], None)) == 1000


def test_platforms_at_the_top_of_a_layout(tmp_path):
    name = {"annotations": {"org.opencontainers.image.ref.name": "1.0.0"}}
    entries = [samples.image_of(tmp_path, m, p) | {"platform": p} | name for m, p in (("b", ARM), ("a", LINUX))]
    assert chosen(tmp_path, entries, ":1.0.0") == "a"
    assert chosen(tmp_path, entries) == "a"


def test_platforms_at_the_top_under_several_names(tmp_path):
    """The advice names the one that is for this machine, and it can be followed."""
    entries = [
        samples.image_of(tmp_path, mark, marks)
        | {"platform": marks, "annotations": {"org.opencontainers.image.ref.name": f"x-{mark}"}}
        for mark, marks in (("b", ARM), ("a", LINUX), ("c", LINUX))
    ]
    with pytest.raises(SifproofError, match=rf"can't be told apart.*as in oci:{tmp_path}:x-a") as raised:
        chosen(tmp_path, entries)
    assert raised.value.fault is Fault.CONFIGURATION
    assert chosen(tmp_path, entries, ":x-a") == "a"


def test_two_images_of_one_name_and_platform_are_not_guessed_between(tmp_path):
    name = {"annotations": {"org.opencontainers.image.ref.name": "1"}}
    entries = [samples.image_of(tmp_path, mark) | name for mark in "ab"]
    for reference in ("", ":1"):
        with pytest.raises(SifproofError, match=r"can't be told apart.*holds one image\.") as raised:
            chosen(tmp_path, entries, reference)
        assert "as in" not in raised.value.todo
    assert chosen(tmp_path, [entries[0], entries[0]]) == "a"


def test_one_image_under_two_names_is_one(tmp_path):
    one = samples.image_of(tmp_path, "a")
    entries = [one | {"annotations": {"org.opencontainers.image.ref.name": name}} for name in ("1", "latest")]
    assert chosen(tmp_path, entries) == chosen(tmp_path, entries, ":latest") == "a"


def test_a_name_that_is_none(tmp_path):
    with pytest.raises(SifproofError, match=f"does not exist.*Name oci:{tmp_path} alone"):
        chosen(tmp_path, [samples.image_of(tmp_path, "a")], ":1")


def test_names_of_either_kind(tmp_path):
    names = {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "docker.io/library/box:1"}
    entry = samples.image_of(tmp_path, "a") | {"annotations": names}
    assert chosen(tmp_path, [entry], ":1") == chosen(tmp_path, [entry], ":docker.io/library/box:1") == "a"


def test_entries_without_a_mark_are_told_by_their_configs(tmp_path):
    entries = [samples.image_of(tmp_path, m, p) for m, p in (("b", ARM), ("a", LINUX))]
    assert chosen(tmp_path, [samples.index_of(tmp_path, entries)]) == "a"
    assert chosen(tmp_path, entries) == "a"
    silent = samples.image_of(tmp_path, "c", {})
    # What says nothing at all comes last.
    assert chosen(tmp_path, [samples.index_of(tmp_path, [silent, *entries])]) == "a"
    assert chosen(tmp_path, [samples.index_of(tmp_path, [silent, entries[0]])]) == "c"


def test_of_what_an_entry_leaves_out_its_config_tells(tmp_path):
    half = {"platform": {"architecture": HERE}}
    windows, linux = samples.image_of(tmp_path, "c", WINDOWS) | half, samples.image_of(tmp_path, "a", LINUX) | half
    assert chosen(tmp_path, [samples.index_of(tmp_path, [windows, linux])]) == "a"


def test_what_is_no_image_is_passed_over(tmp_path):
    image = samples.image_of(tmp_path, "a")
    signature = {"config": {"mediaType": "application/vnd.dev.cosign.v1+json", "digest": "sha256:0"}, "layers": []}
    entries = [
        samples.image_of(tmp_path, "b") | {"platform": {"os": "unknown", "architecture": "unknown"}},
        samples.image_of(tmp_path, "c") | {"platform": LINUX} | ATTESTATION,
        samples._put(tmp_path, json.dumps(signature).encode(), "application/vnd.oci.image.manifest.v1+json"),
        {"digest": "sha256:" + 64 * "0", "mediaType": "application/vnd.oci.image.index.v1+json", "size": 1},
        image,
    ]
    assert chosen(tmp_path, [samples.index_of(tmp_path, entries)]) == "a"
    with pytest.raises(SifproofError, match="no image is in it"):
        chosen(tmp_path, [samples.index_of(tmp_path, entries[:-1])])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"os": "linux", "architecture": "arm64", "variant": "v8"}, "linux/arm64"),
        ({"os": "linux", "architecture": "aarch64", "variant": "8"}, "linux/arm64"),
        ({"os": "Linux", "architecture": "x86_64"}, "linux/amd64"),
        ({"architecture": "amd64", "variant": "v1"}, "linux/amd64"),
        ({"architecture": "amd64", "variant": "v3"}, "linux/amd64/v3"),
        ({"architecture": "arm"}, "linux/arm/v7"),
        ({"architecture": "arm", "variant": "6"}, "linux/arm/v6"),
        ({"architecture": "armel"}, "linux/arm/v6"),
        ({"os": "windows", "architecture": None}, "windows/no processor named"),
        (None, "linux/no processor named"),
        (["amd64"], "linux/no processor named"),
    ],
)
def test_what_marks_mean(given, told):
    assert str(Platform.of(given)) == told


def variants(architecture, *names):
    return [Candidate(name or "none", Platform.of({"architecture": architecture, "variant": name})) for name in names]


@pytest.mark.parametrize(
    ("machine", "architecture", "there", "taken"),
    [
        ("aarch64", "arm64", ["v9", "v8"], "v8"),
        ("aarch64", "arm64", ["", "v8"], "none"),
        ("x86_64", "amd64", ["v3", "v2", ""], "none"),
        ("x86_64", "amd64", ["v2", "v1"], "v1"),
        ("armv7l", "arm", ["v5", "v6", "v8"], "v6"),
        ("armv7l", "arm", ["v6", ""], "none"),
        ("armv6l", "arm", ["v7", "v5"], "v5"),
        ("armv8l", "arm", ["v7", "v8"], "v8"),
    ],
)
def test_of_variants_the_best_that_runs(monkeypatch, machine, architecture, there, taken):
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert host_architecture() == architecture
    assert choose("x", variants(architecture, *there), architecture).digest == taken


def test_where_no_variant_fits_it_says_what_is_there(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = [*variants("amd64", "v3", "v2"), Candidate("x", Platform("windows", "amd64"))]
    with pytest.raises(SifproofError) as raised:
        choose("docker://box", found, "amd64")
    assert raised.value.why == "it is made for linux/amd64/v2, linux/amd64/v3, windows/amd64, not for linux/amd64"
    assert "--override-variant v3" in raised.value.todo
    assert raised.value.fault is Fault.CONFIGURATION
    with pytest.raises(SifproofError, match=r"not for linux/arm64\. Name an image that is made for linux/arm64\.$"):
        choose("docker://box", found, "arm64")


def test_another_processor_never_fits():
    assert rank(Platform("linux", "386"), "amd64") is None
    assert rank(Platform("", "amd64"), "amd64") == 0
    assert rank(Platform("freebsd", "amd64"), "amd64") is None
    assert rank(Platform("windows", ""), "amd64") is None
    assert rank(Platform("", ""), "amd64") == 1
