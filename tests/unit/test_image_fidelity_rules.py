"""Which differences between image and SIF are known, and which are told."""

import io

import pytest
from checkout import ROOT

from sifproof.image import fidelity, squashfs
from sifproof.image.fidelity import Difference, compare, compare_environment, compare_labels, fingerprint, show
from sifproof.image.tree import Entry

FILE = Entry("file", 0o644, size=1, sha256="a" * 64)
EMPTY = Entry("file", 0o644, size=0, sha256="e" * 64)
FOLDER = Entry("directory", 0o755)
LINK = Entry("link", None, target=".singularity.d/actions/exec")


def told(image: dict, sif: dict) -> set[tuple[str, str, str]]:
    return {(d.path, d.aspect, d.known) for d in compare(image, sif)}


@pytest.mark.parametrize(
    ("image", "sif", "found"),
    [
        (FILE, FILE, set()),
        (FILE, None, {("f", "files", "")}),
        (None, FILE, {("f", "files", "")}),
        (FILE, FOLDER, {("f", "files", "")}),
        (FILE, FILE._replace(sha256="b" * 64), {("f", "content", "")}),
        (FILE, EMPTY, {("f", "content", "")}),
        (FILE, FILE._replace(mode=0o4644), {("f", "modes", "")}),
        (FILE._replace(owner="5:5"), FILE, {("f", "modes", "owners")}),
        (FILE, FILE._replace(owner="5:5"), {("f", "modes", "")}),
        (FILE._replace(capabilities=True), FILE, {("f", "modes", "capabilities")}),
        (FILE, FILE._replace(capabilities=True), {("f", "modes", "")}),
        (FILE._replace(twin="e"), FILE, {("f", "links", "")}),
        (LINK, LINK._replace(target="x"), {("f", "links", "")}),
        (FOLDER._replace(mode=None), FOLDER, {("f", "modes", "unnamed-directories")}),
        (Entry("device", 0o666), EMPTY, {("f", "files", "devices")}),
        (Entry("device", 0o666), FILE, {("f", "files", "")}),
        (Entry("device", 0o666), None, {("f", "files", "")}),
        (FILE, FILE._replace(mode=0, sha256="b" * 64), {("f", "modes", ""), ("f", "content", "")}),
    ],
)
def test_a_file_of_the_image_and_of_the_sif(image, sif, found):
    assert told({"f": image} if image else {}, {"f": sif} if sif else {}) == found


@pytest.mark.parametrize(
    ("path", "entry", "known"),
    [
        (".exec", LINK, "own-files"),
        (".exec", LINK._replace(target="bin/sh"), ""),
        ("bin/.exec", LINK, ""),
        (".singularity.d", FOLDER, ""),
        ("dev", FOLDER, "mount-points"),
        ("etc/hosts", EMPTY, "mount-points"),
        ("etc/hosts", FILE, ""),
        ("etc/shadow", EMPTY, ""),
        ("tmp", LINK, ""),
    ],
)
def test_what_only_the_sif_has(path, entry, known):
    known = "own-files" if path == ".singularity.d" else known
    assert told({}, {path: entry}) == {(path, "files", known)}


def test_network_files_are_emptied_whatever_their_names():
    image = {
        "etc": FOLDER,
        "etc/hosts": FILE._replace(twin="etc/hosts"),
        "etc/hosts2": FILE._replace(twin="etc/hosts"),
        "etc/resolv.conf": Entry("link", None, target="stub"),
        "etc/stub": FILE,
    }
    sif = image | {
        "etc/hosts": EMPTY._replace(twin="etc/hosts", mode=0o600),
        "etc/hosts2": EMPTY._replace(twin="etc/hosts", mode=0o600),
        "etc/stub": EMPTY,
    }
    assert {known for _, _, known in told(image, sif)} == {"network-files"}
    assert ("etc/stub", "content", "") in told(image, image | {"etc/stub": FILE._replace(sha256="b" * 64)})


def test_what_the_image_had_of_apptainers_own_is_replaced():
    image = {".singularity.d": FOLDER, ".singularity.d/labels.json": FILE}
    assert told(image, image | {".singularity.d/labels.json": EMPTY}) == {
        (".singularity.d/labels.json", "content", "own-files")
    }
    assert told(image, {".singularity.d": FOLDER}) == {(".singularity.d/labels.json", "files", "")}


def test_every_known_difference_has_a_reason():
    reasons = fidelity.KNOWN | fidelity.KNOWN_SETTINGS
    differences = [Difference("x", "files", "", "", known) for known in reasons]
    assert fidelity.unexplained(differences, "files") == []
    assert fidelity.summary(differences, "files").count(",") == len(reasons) - 1


@pytest.mark.parametrize(
    ("given", "seen", "known"),
    [
        ("A=x", {"A": fingerprint("A", "x")}, None),
        ("A=", {"A": fingerprint("A", "")}, None),
        ("A", {}, None),
        ("A=x=y", {"A": fingerprint("A", "x=y")}, None),
        ("A=x", {"A": fingerprint("A", "y")}, ""),
        ("A=x", {}, ""),
        ("PATH=/bin", {"PATH": "/bin"}, None),
        ("PATH=/bin", {"PATH": "/bin:/usr/bin"}, "search-paths"),
        ("PATH=/bin", {"PATH": "/usr/bin:/bin"}, ""),
        ("PATH=/bin", {"PATH": "/bin2"}, ""),
        ("LD_LIBRARY_PATH=/lib", {"LD_LIBRARY_PATH": "/lib:/.singularity.d/libs"}, "search-paths"),
        ("HOME=/x", {"HOME": fingerprint("HOME", "/root")}, "runtime-variables"),
        ("a.b=1", {}, "unusable-names"),
        ("1A=1", {}, "unusable-names"),
    ],
)
def test_environment(given, seen, known):
    assert [d.known for d in compare_environment([given], seen)] == ([] if known is None else [known])


def test_no_value_of_the_environment_is_told():
    (found,) = compare_environment(["TOKEN=s3cret"], {"TOKEN": fingerprint("TOKEN", "other")})
    assert "s3cret" not in str(found)


def test_labels():
    image = {"a": "1", "b": "2", "org.label-schema.build-date": "then", "org.label-schema.x": "y"}
    found = compare_labels(image, {"a": "1", "b": "3", "c": "4", "org.label-schema.build-date": "now"})
    assert {(d.path, d.known) for d in found} == {
        ("b", ""),
        ("org.label-schema.build-date", "schema-labels"),
        ("org.label-schema.x", ""),
    }


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('OCI_ENTRYPOINT=\'"/bin/a" "b c"\'\nOCI_CMD=\'"--x"\'\n', (["/bin/a", "b c"], ["--x"])),
        ("OCI_ENTRYPOINT=''\nOCI_CMD=''\n", ([], [])),
        ("OCI_ENTRYPOINT=\nOCI_CMD='\"x\"'\n", ([], ["x"])),
        (
            '#!/bin/sh\nOCI_ENTRYPOINT=\'"q\'"\'"\'uo\\"te" "\\$HOME" "new\nline" "\\\\"\'\nOCI_CMD=\'\'\n',
            (["q'uo\"te", "$HOME", "new\nline", "\\"], []),
        ),
        ("exec /bin/bash\n", None),
        ("OCI_ENTRYPOINT='never ends\nOCI_CMD=\n", None),
    ],
)
def test_runscript(script, words):
    found = fidelity.read_runscript(script)
    assert (found and (found["Entrypoint"], found["Cmd"])) == words


def test_names_are_shown_on_one_line():
    assert show("a\nb\tc\udcff") == "a\\nb\\tc\\udcff"
    assert show("grüße 日本") == "grüße 日本"
    text = fidelity.table([Difference("a\tb", "files", "a file", "nothing")])
    assert text == "path\taspect\timage\tsif\tknown\na\\tb\tfiles\ta file\tnothing\t\n"


PSEUDO = rb"""/ D 1 755 0 0
a\ b\
c R 1 4755 7 8 2 0 0
#hash R 1 644 0 0 1 2 0
dev C 1 666 0 0 1 3
fifo I 1 600 0 0 f
link S 1 777 0 0 to a
second line
other S 1 777 0 0 back\
sock I 1 600 0 0 s
ping R 1 755 0 0 3 3 1
ping x security.capability=0t\001\000
ping x user.note=x
twin\ 1 L a\ b\
c
#
# START OF DATA - DO NOT MODIFY
#
xyzabc"""


def test_a_pseudo_file_is_read():
    found = squashfs._read(io.BytesIO(PSEUDO), frozenset({"#hash"}))
    assert found.kept == {"#hash": b"z"}
    assert {path: entry.kind for path, entry in found.tree.items()} == {
        ".": "directory", "a b\nc": "file", "#hash": "file", "dev": "device", "fifo": "fifo", "link": "link",
        "other": "link", "sock": "socket", "ping": "file", "twin 1": "file",
    }  # fmt: skip
    assert found.tree["a b\nc"] == found.tree["twin 1"]
    assert found.tree["a b\nc"][:4] == ("file", 0o4755, "7:8", 2)
    assert (found.tree["link"].target, found.tree["other"].target) == ("to a\nsecond line", "back\\")
    assert [found.tree[name].capabilities for name in ("ping", "#hash")] == [True, False]
    assert found.tree["ping"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: text.replace(b"# START", b"# BEGIN"),
        lambda text: text.replace(b" 1 2 0\n", b" 1 9 0\n"),
        lambda text: text.replace(b"dev C", b"dev Q"),
        lambda text: b"",
    ],
)
def test_what_is_no_pseudo_file_is_refused(spoil):
    with pytest.raises((ValueError, EOFError)):
        squashfs._read(io.BytesIO(spoil(PSEUDO)), frozenset())


@pytest.mark.parametrize(
    ("number", "order", "name"), [(62, "little", "amd64"), (21, "big", "ppc64"), (21, "little", "ppc64le")]
)
def test_programs_are_counted_by_processor(number, order, name):
    head = b"\x7fELF\x02" + (b"\1" if order == "little" else b"\2") + bytes(12) + number.to_bytes(2, order) + bytes(44)
    text = b"/ D 1 755 0 0\np R 1 755 0 0 64 0 0\n#\n# START OF DATA - DO NOT MODIFY\n#\n" + head
    assert squashfs._read(io.BytesIO(text), frozenset()).programs == {name: 1}


def test_the_explanation_lists_what_is_known():
    page = (ROOT / "docs/explanation/fidelity.md").read_text(encoding="utf-8")
    for name, reason in (fidelity.KNOWN | fidelity.KNOWN_SETTINGS).items():
        assert f"| `{name}` | {reason} |" in page
