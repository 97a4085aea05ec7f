"""Hostile text made fit for one line, for a TSV field and for XML. Messages hold what tasks printed: anything."""

from __future__ import annotations

import re
import unicodedata

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]{0,200}(?:\x07|\x1b\\)|[@-Z\\-_])")
_BIDI = dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))

# https://www.w3.org/TR/xml/#charsets
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# What str.splitlines() or a C locale's tools break a line at, and what no terminal should be sent.
_TSV_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\\\\\u2028\u2029\ud800-\udfff]")
_TSV_NAMES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_TSV_ESCAPE = re.compile(r"\\(\\|t|n|r|x[0-9a-f]{2}|u[0-9a-f]{4})")
_FORMULA = tuple("=+-@")
# "-nan" and its like are formulas already.
_MISSING = frozenset({"#N/A", "#N/A N/A", "#NA", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None"})
_MISSING |= frozenset({"n/a", "nan", "null"})
"""What ``pandas.read_csv`` takes for a missing value, quoted or not."""


def one_line(text: str, limit: int = 0) -> str:
    """``text`` on one line: no control, escape or direction characters; cut to ``limit`` characters unless 0."""
    text = _ANSI.sub("", text).translate(_BIDI)
    text = " ".join("".join(" " if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} else c for c in text).split())
    return text if not limit or len(text) <= limit else text[: limit - 1].rstrip() + "…"


def printable(text: str) -> str:
    """``text`` with its line breaks, but without other control, escape or direction characters."""
    lines = _ANSI.sub("", text).translate(_BIDI).splitlines()
    kept = ("".join(c for c in line if c == "\t" or unicodedata.category(c) not in {"Cc", "Cs"}) for line in lines)
    return "\n".join(kept)


def tsv_escape(text: str) -> str:
    r"""``text`` as one TSV field on one line, undone by :func:`tsv_unescape`.

    Backslash, tab, line feed and carriage return become ``\\``, ``\t``, ``\n`` and ``\r``; other control characters
    ``\xNN`` or ``\uNNNN``. So does the first character of a text that pandas would take for a missing value, or a
    spreadsheet for a formula.
    """
    escaped = _TSV_UNSAFE.sub(lambda match: _TSV_NAMES.get(match[0]) or _numeric(match[0]), text)
    if text in _MISSING or text.startswith(_FORMULA):
        escaped = _numeric(text[0]) + escaped[1:]
    return escaped


def tsv_unescape(text: str) -> str:
    """The text that :func:`tsv_escape` was given."""
    names = {value[1:]: key for key, value in _TSV_NAMES.items()}
    return _TSV_ESCAPE.sub(lambda match: names.get(match[1]) or chr(int(match[1][1:], 16)), text)


def _numeric(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def xml_text(text: str) -> str:
    """``text`` without the characters that XML 1.0 forbids, and without terminal escapes."""
    return _NOT_XML.sub("", _ANSI.sub("", text))
