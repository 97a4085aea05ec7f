"""An archive comes from a server that nobody vouches for: it is unpacked in memory, and only so far."""

import gzip
import io
import tarfile

import pytest

from sifproof.checks.artifacts import _UNPACKED_BYTES, _unpack


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
    assert found == {"../../x": ("file", b"y"), "etc/x": ("file", b"z"), "null": (f"type {tarfile.CHRTYPE!r}", None)}


def test_a_member_that_says_to_be_larger_than_the_archive_is_told() -> None:
    raw = bytearray(gzip.decompress(packed((tarfile.TarInfo("x"), b"y"))))
    header = tarfile.TarInfo("x")
    header.size = 2**40
    raw[:512] = header.tobuf(format=tarfile.GNU_FORMAT)[:512]
    found = _unpack(gzip.compress(bytes(raw)))
    assert "unexpected end" in str(found)
