"""An archive comes from a server that nobody vouches for: it is unpacked in memory, and only so far."""

import gzip
import io
import tarfile

import pytest

from sifproof.checks.artifacts import _UNPACKED_BYTES, _below, _difference, _leads_out, _Member, _unpack


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_a_bomb_is_not_unpacked() -> None:
    assert "unpacks to more than" in str(_unpack(gzip.compress(b"\0" * (2 * _UNPACKED_BYTES), 1)))


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"no tar"), gzip.compress(b"x" * 4096)[:-20]],
    ids=["empty", "no-gzip", "no-tar", "cut-short"],
)
def test_what_is_no_archive_is_told(content: bytes) -> None:
    found = _unpack(content)
    assert isinstance(found, str)
    assert found


def test_names_that_lead_out_are_only_names_and_other_kinds_are_named() -> None:
    device = tarfile.TarInfo("null")
    device.type = tarfile.CHRTYPE
    found = _unpack(packed((tarfile.TarInfo("../../x"), b"y"), (tarfile.TarInfo("/etc/x"), b"z"), (device, b"")))
    kinds = {name: (member.kind, member.content) for name, member in found.items()}
    device_told = (f"entry of type {tarfile.CHRTYPE!r}", None)
    assert kinds == {"../../x": ("file", b"y"), "/etc/x": ("file", b"z"), "null": device_told}
    assert [name for name in found if _leads_out(name)] == ["../../x", "/etc/x"]


@pytest.mark.parametrize("top", ["", "./", "slot_0/", "/workspace/", "./a/b/"])
def test_names_count_from_the_folder_that_was_packed_wherever_they_begin(top: str) -> None:
    file = _Member("file", b"y")
    found = {f"{top}folder": _Member("directory"), f"{top}folder/a": file, f"{top}folder/a/folder": file}
    assert _below(found, "folder") == {"a": file, "a/folder": file}
    assert _below({"a": file, "./b/c": file}, "folder") == {"a": file, "b/c": file}


def test_what_is_there_is_not_said_to_be_missing() -> None:
    file, script = _Member("file", b"y"), _Member("executable", b"y")
    assert _difference("x", None, file) == "x: missing"
    assert _difference("x", script, file) == "x: executable instead of file"
    assert _difference("x", _Member("file", b"z"), file) == "x: file with another content, b'z'"
    assert _difference("x", _Member("file", b"y", 5.0), file) == ""


def test_a_member_that_says_to_be_larger_than_the_archive_is_told() -> None:
    raw = bytearray(gzip.decompress(packed((tarfile.TarInfo("x"), b"y"))))
    header = tarfile.TarInfo("x")
    header.size = 2**40
    raw[:512] = header.tobuf(format=tarfile.GNU_FORMAT)[:512]
    found = _unpack(gzip.compress(bytes(raw)))
    assert "unexpected end" in str(found)
