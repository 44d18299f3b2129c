"""Characters of HL7 v2: separators, escape sequences, character sets.

Hides which byte means what: the encoding characters a message declares in MSH-1 and MSH-2, the escape sequences
of its text, and the codec behind MSH-18, with the fallbacks that real senders make necessary.

Sources: HL7 v2.5 and v2.6 chapter 2 (2.5.4 delimiters, 2.7 escape sequences, MSH-18), HL7 table 0211,
http://www.hl7.eu/HL7v2x/v25/std25/ch02.html; windows-1252 as last resort because French senders use it undeclared.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

NULL: Final = '""'
"""The explicit null of HL7: delete what you hold (2.5.3). Distinct from an empty and from an absent element."""

UTF8: Final = "UNICODE UTF-8"
LATIN9: Final = "8859/15"

CODECS: Final = {
    "ASCII": "ascii",
    "8859/1": "iso8859-1",
    "8859/2": "iso8859-2",
    "8859/15": "iso8859-15",
    "UNICODE UTF-8": "utf-8",
    # Spellings met in the field that the table does not hold.
    "UTF-8": "utf-8",
    "UTF8": "utf-8",
    "UNICODE": "utf-8",
    "UNICODE UTF8": "utf-8",
    "8859-1": "iso8859-1",
    "ISO-8859-1": "iso8859-1",
    "ISO 8859-1": "iso8859-1",
    "8859-15": "iso8859-15",
    "ISO-8859-15": "iso8859-15",
    "ISO 8859-15": "iso8859-15",
    "WINDOWS-1252": "cp1252",
    "CP1252": "cp1252",
}
"""HL7 table 0211 value (upper case) -> Python codec."""

_TYPOGRAPHY: Final = {
    "‘": "'", "’": "'", "‚": ",", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "‑": "-", "‐": "-",
    "…": "...", "•": "-", "\u202f": " ", "\u2009": " ", "\u2003": " ", "→": "->", "≥": ">=", "≤": "<=",
    "œ": "oe", "Œ": "OE", "€": "EUR", "Æ": "AE", "æ": "ae", "Ø": "O", "ø": "o", "ß": "ss",
}  # fmt: skip
"""What a narrow character set writes instead of the typographic signs that word processors put everywhere."""


@dataclass(frozen=True, slots=True)
class Separators:
    """The delimiters of one message. An empty string means the message declares none at that level."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"
    truncation: str = ""

    @property
    def encoding_characters(self) -> str:
        """MSH-2."""
        return self.component + self.repetition + self.escape + self.subcomponent + self.truncation


STANDARD: Final = Separators()


@dataclass(frozen=True, slots=True)
class Charset:
    """How the bytes become text: the codec, what MSH-18 declared, and a remark when the two differ."""

    codec: str
    declared: str
    note: str = ""

    def decode(self, data: bytes) -> str:
        """Never raises: bytes without a meaning in the codec become U+FFFD (the message keeps the bytes)."""
        return data.decode(self.codec, "replace")


@lru_cache(maxsize=64)
def _escapes(separators: Separators) -> dict[int, str]:
    mark = separators.escape
    letters = {
        separators.field: "F",
        separators.component: "S",
        separators.repetition: "R",
        separators.escape: "E",
        separators.subcomponent: "T",
        separators.truncation: "P",
    }
    table = {code: f"{mark}X{code:02X}{mark}" for code in (*range(0x20), 0x7F)}
    return table | {ord(sign): f"{mark}{letter}{mark}" for sign, letter in letters.items() if sign}


@lru_cache(maxsize=64)
def _sequences(separators: Separators) -> tuple[re.Pattern[str], dict[str, str]]:
    mark = re.escape(separators.escape)
    letters = {
        "F": separators.field,
        "S": separators.component,
        "R": separators.repetition,
        "E": separators.escape,
        "T": separators.subcomponent,
        "P": separators.truncation,
    }
    return re.compile(f"{mark}([^{mark}]*){mark}"), {letter: sign for letter, sign in letters.items() if sign}


def escape(text: str, separators: Separators = STANDARD) -> str:
    """Text as it stands in a field: delimiters as \\F\\ \\S\\ \\R\\ \\E\\ \\T\\ (\\P\\), control characters as \\Xhh\\.

    Control characters include CR (which would end the segment) and VT and FS (which would end the MLLP frame).
    `unescape(escape(t)) == t` for every text. Raises ValueError when the message declares no escape character
    and the text needs one.
    """
    table = _escapes(separators)
    if not separators.escape and any(ord(sign) in table for sign in text):
        raise ValueError("this message declares no escape character in MSH-2, so this text cannot be written in it")
    return text.translate(table)


def unescape(text: str, separators: Separators = STANDARD, codec: str = "utf-8") -> str:
    """The text behind the escape sequences; those without a plain meaning (\\.br\\, \\H\\, \\Zxx\\) stay as they are.

    The bytes of \\Xhh..\\ are read in `codec`; when they mean nothing there, the sequence stays as it is.
    """
    mark = separators.escape
    if not mark or mark not in text:
        return text
    pattern, letters = _sequences(separators)

    def meaning(match: re.Match[str]) -> str:
        body = match.group(1)
        if body in letters:
            return letters[body]
        if body[:1] == "X" and len(body) > 1:
            try:
                return bytes.fromhex(body[1:]).decode(codec)
            except (ValueError, UnicodeDecodeError):
                return match.group(0)
        return match.group(0)

    return pattern.sub(meaning, text)


def codec_of(name: str) -> str:
    """Python codec of an HL7 table 0211 value (or of a codec name); '' when unknown."""
    known = CODECS.get(name.strip().upper())
    if known:
        return known
    try:
        info = codecs.lookup(name.strip()) if name.strip() else None
    except (LookupError, ValueError):
        return ""
    # Only codecs that leave the ASCII delimiters where the parser looks for them.
    ascii_bytes = bytes(range(0x20, 0x7F))
    try:
        return info.name if info and ascii_bytes.decode(info.name) == ascii_bytes.decode("ascii") else ""
    except (UnicodeDecodeError, LookupError, TypeError):
        return ""


def reads_anything(name: str) -> bool:
    """Whether a character set has a character for nearly every byte: what nothing else explains is read in it."""
    codec = codec_of(name)
    try:
        return bool(codec) and sum(bool(bytes([n]).decode(codec, "ignore")) for n in range(256)) > 200
    except LookupError:
        return False


def detect(raw: bytes, declared: str, override: str | None = None, fallback: str = "windows-1252") -> Charset:
    """The character set of a message: `override` (a partner's setting), else MSH-18, else what the bytes allow.

    Order when MSH-18 is absent or wrong: UTF-8 if the bytes are valid UTF-8, else the partner's `fallback`. An ISO 8859
    is wrong when there are bytes 80 to 9F: control characters there, letters and typographic signs in windows-1252.
    Reads the message in pieces: no second copy of a large document.
    """
    if override is not None:
        codec = codec_of(override)
        if not codec:
            raise ValueError(f"unknown character set {override!r}")
        return Charset(codec, declared)
    if raw.isascii():
        return Charset(codec_of(declared) or "ascii", declared)
    codec = codec_of(declared)
    if codec and codec != "ascii" and _readable(raw, codec) and not (_is_8859(codec) and _has_c1(raw)):
        return Charset(codec, declared)
    told = f"MSH-18 says {declared}" if declared else "MSH-18 is empty"
    if codec != "utf-8" and _readable(raw, "utf-8"):
        return Charset("utf-8", declared, f"{told}, read as UTF-8")
    last = codec_of(fallback) or "cp1252"
    if _is_8859(last) and _has_c1(raw):
        return Charset("cp1252", declared, f"{told}, read as windows-1252: {fallback} has no sign for some bytes")
    return Charset(last, declared, f"{told}, read as {fallback}")


def _readable(raw: bytes, codec: str, step: int = 1 << 20) -> bool:
    if len(raw) <= step:
        try:
            raw.decode(codec)
        except UnicodeDecodeError:
            return False
        return True
    decoder = codecs.getincrementaldecoder(codec)("strict")
    view = memoryview(raw)
    try:
        for start in range(0, len(raw), step):
            decoder.decode(view[start : start + step])
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def _is_8859(codec: str) -> bool:
    return codec.startswith("iso8859")


def _has_c1(raw: bytes) -> bool:
    """Whether there are bytes that ISO 8859 gives to control characters, which no text has, and others to letters."""
    return re.search(rb"[\x80-\x9f]", raw) is not None


def encode(text: str, codec: str) -> tuple[bytes, tuple[str, ...]]:
    """Text in a codec, and the characters it does not hold (written as the nearest sign, or `?`)."""
    try:
        return text.encode(codec), ()
    except UnicodeEncodeError:
        pass
    replaced: list[str] = []
    return "".join(_nearest(text, codec, replaced)).encode(codec), tuple(replaced)


def _nearest(text: str, codec: str, replaced: list[str]) -> Iterator[str]:
    for sign in text:
        try:
            sign.encode(codec)
            yield sign
            continue
        except UnicodeEncodeError:
            replaced.append(sign)
        flat = _TYPOGRAPHY.get(sign) or unicodedata.normalize("NFKD", sign)
        yield flat.encode("ascii", "ignore").decode("ascii") or "?"
