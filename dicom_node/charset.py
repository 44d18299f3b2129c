"""Text of a data set: bytes and Specific Character Set (0008,0005) in, str out; never an exception.

Hides ISO 2022 code extension and the wrong declarations of real devices: bytes that do not fit the declared set
are read as UTF-8, else as Latin-1, which loses nothing.

Sources: PS3.3 C.12.1.1.2 (defined terms and escape sequences), PS3.5 section 6.1 (reset at delimiters).
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.12.html#sect_C.12.1.1.2
"""

from __future__ import annotations

import re
from functools import lru_cache

_SINGLE = {
    "": "ascii", "6": "ascii", "13": "shift_jis", "100": "latin_1", "101": "iso8859_2", "109": "iso8859_3",
    "110": "iso8859_4", "126": "iso8859_7", "127": "iso8859_6", "138": "iso8859_8", "144": "iso8859_5",
    "148": "iso8859_9", "166": "tis_620", "192": "utf_8", "203": "iso8859_15",
}  # fmt: skip
_WHOLE = {"GB18030": "gb18030", "GBK": "gbk"}
# Escape sequence -> codec of what follows it; the multi-byte codecs want their own escape sequence back.
_ESCAPES = {
    b"\x1b(B": ("ascii", b""), b"\x1b-A": ("latin_1", b""), b"\x1b-B": ("iso8859_2", b""),
    b"\x1b-C": ("iso8859_3", b""), b"\x1b-D": ("iso8859_4", b""), b"\x1b-F": ("iso8859_7", b""),
    b"\x1b-G": ("iso8859_6", b""), b"\x1b-H": ("iso8859_8", b""), b"\x1b-L": ("iso8859_5", b""),
    b"\x1b-M": ("iso8859_9", b""), b"\x1b-b": ("iso8859_15", b""), b"\x1b-T": ("tis_620", b""),
    b"\x1b)I": ("shift_jis", b""), b"\x1b(J": ("shift_jis", b""), b"\x1b$B": ("iso2022_jp", b"\x1b$B"),
    b"\x1b$(D": ("iso2022_jp_2", b"\x1b$(D"), b"\x1b$)C": ("euc_kr", b""), b"\x1b$)A": ("gb2312", b""),
}  # fmt: skip
_ESCAPE = re.compile(rb"(\x1b(?:\$[()]?[A-D]|[-()][A-Za-z]))")
_DELIMITER = re.compile(rb"[\\\r\n\f^=]")


def decode(value: bytes, declared: str) -> str:
    """Text of `value` under `declared` (the value of (0008,0005), backslash-separated), padding removed."""
    codec = _codec(declared)
    text = _extended(value, codec) if b"\x1b" in value else _tolerant(value, codec)
    return text.strip(" \0")


@lru_cache(64)
def _codec(declared: str) -> str:
    """Codec of the first declared term; further terms only announce escape sequences."""
    term = declared.split("\\")[0].strip().upper()
    return _WHOLE.get(term) or _SINGLE.get(term.removeprefix("ISO_IR").removeprefix("ISO 2022 IR").strip(), "ascii")


def _extended(value: bytes, initial: str) -> str:
    """Each escape sequence holds until the next one or the next delimiter, which brings the initial set back."""
    pieces = _ESCAPE.split(value)
    text = _tolerant(pieces[0], initial)
    for escape, content in zip(pieces[1::2], pieces[2::2], strict=True):
        codec, prefix = _ESCAPES.get(escape, ("latin_1", b""))
        # A two-byte set in G0 uses the delimiters' own codes for its characters, and is left by an escape only.
        until = None if prefix else _DELIMITER.search(content)
        cut = until.start() if until else len(content)
        text += _tolerant(prefix + content[:cut], codec) + _tolerant(content[cut:], initial)
    return text


def _tolerant(value: bytes, codec: str) -> str:
    for candidate in (codec, "utf_8"):
        try:
            return value.decode(candidate)
        except UnicodeDecodeError:
            continue
    return value.decode("latin_1")
