"""A MIME reader that cannot be made to work hard: one pass a level, few levels, few parts, bounded headers.

The standard library's parser recurses once a nested part and tests every line against every open boundary; a mail of
two megabytes can hold it for minutes. This one only splits; the library still decodes single header values.
Sources: RFC 5322, RFC 2045-2047, RFC 2231.
"""

from __future__ import annotations

import binascii
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.errors import MessageError
from email.header import decode_header
from email.message import Message

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"([!-9;-~]{1,128})[ \t]*:(.*)", re.DOTALL)
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_LINE = re.compile(rb"\r?\n")
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))
_VALUE_LIMIT = 64 * 1024
_DECODE_LIMIT = 8 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a mail may weigh: `size` and `header` (of one part) in bytes, `depth` of multiparts, `parts` in all."""

    size: int = 40 * 1024 * 1024
    header: int = 256 * 1024
    fields: int = 1000
    depth: int = 8
    parts: int = 100


DEFAULT_LIMITS = Limits()


class MimeRefused(ValueError):
    """The mail is beyond the limits. `code` is a short fixed word."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its header fields in order (lower-case name, raw value), its own parts, or its raw body."""

    fields: tuple[tuple[str, bytes], ...]
    body: bytes
    parts: tuple[Part, ...] = ()

    def header(self, name: str) -> str:
        """A header value as text, RFC 2047 words decoded, '' when absent. The first one when it is repeated."""
        return next((decoded(value) for key, value in self.fields if key == name.lower()), "")

    def raw(self, name: str) -> str:
        """A header value with its RFC 2047 words left as they are: an encoded display name may hold quotes, commas."""
        return next((_text(value) for key, value in self.fields if key == name.lower()), "")

    @property
    def type(self) -> str:
        """The media type in lower case, `text/plain` when absent or unreadable."""
        return str(self._typed().get_content_type())

    def parameter(self, name: str, header: str = "content-type") -> str:
        """A parameter of Content-Type or Content-Disposition, RFC 2231 and RFC 2047 decoded, '' when absent."""
        raw = next((value for key, value in self.fields if key == header), b"")
        holder = Message()
        holder[header] = _text(raw[:_DECODE_LIMIT])
        try:
            found = holder.get_param(name, header=header)
            value = found[2] if isinstance(found, tuple) else found
            if isinstance(found, tuple):
                value = found[2].encode("latin-1", "replace").decode(found[0] or "utf-8", "replace")
        except (ValueError, LookupError, TypeError, MessageError):
            return ""
        return decoded(value.encode("utf-8", "replace")) if isinstance(value, str) else ""

    @property
    def file_name(self) -> str:
        """The attachment's name, '' when it has none."""
        return self.parameter("filename", "content-disposition") or self.parameter("name")

    def content(self) -> bytes:
        """The body with its transfer encoding undone, as well as it can be."""
        encoding = self.header("content-transfer-encoding").strip().lower()
        if encoding == "base64":
            return _unbase64(self.body)
        if encoding == "quoted-printable":
            return quopri.decodestring(self.body)
        return self.body

    def text(self) -> str:
        """The content as text in its own character set, undecodable bytes replaced, line ends as `\\n`."""
        charset = self.parameter("charset") or "utf-8"
        try:
            read = self.content().decode(charset, "replace")
        except (LookupError, ValueError):
            read = self.content().decode("utf-8", "replace")
        return read.replace("\r\n", "\n")

    def walk(self) -> Iterator[Part]:
        """This part and all its parts, outermost first."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def _typed(self) -> Message:
        holder = Message()
        raw = next((value for key, value in self.fields if key == "content-type"), b"text/plain")
        holder["content-type"] = _text(raw[:_DECODE_LIMIT])
        return holder


def parse(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> Part:
    """Split a whole mail. Time is linear in size x depth. Raises MimeRefused; never fails on malformed content."""
    if len(raw) > limits.size:
        raise MimeRefused("too-big", f"the mail weighs {len(raw)} bytes, at most {limits.size} are read")
    return _part(raw, 0, len(raw), limits, 0, [0])


def fields(block: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[tuple[str, bytes], ...]:
    """Read a block of header fields; lines that are none are left out."""
    if len(block) > limits.header:
        raise MimeRefused("header", f"a header weighs {len(block)} bytes, at most {limits.header} are read")
    lines = _LINE.split(_FOLD.sub(b"", block))
    if len(lines) > limits.fields:
        raise MimeRefused("header", f"a header has {len(lines)} fields, at most {limits.fields} are read")
    found = (_FIELD.fullmatch(line) for line in lines)
    return tuple((m.group(1).decode("ascii").lower(), m.group(2).strip()[:_VALUE_LIMIT]) for m in found if m)


def header_block(raw: bytes) -> bytes:
    """The header of a mail, up to the first blank line."""
    return raw[: _header_end(raw, 0, len(raw))[0]]


def _header_end(raw: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the header that begins at `start` ends, and where the body after its blank line begins."""
    for newline in (b"\r\n", b"\n"):
        if raw.startswith(newline, start, end):
            return start, start + len(newline)
    found = _BLANK_LINE.search(raw, start, end)
    return found.span() if found else (end, end)


def decoded(value: bytes) -> str:
    """A header value as one line of text: RFC 2047 words and stray 8-bit bytes read, control characters dropped."""
    text = _text(value)
    if "=?" in text and len(text) <= _DECODE_LIMIT:
        try:
            text = "".join(_word(word, charset) for word, charset in decode_header(text))
        except (ValueError, LookupError, TypeError, MessageError):
            pass  # left as it came: shown, and nothing is lost
    return "".join(c if c >= " " and c != "\x7f" else " " for c in text).strip()


def _word(word: bytes | str, charset: str | None) -> str:
    if isinstance(word, str):
        return word
    try:
        return word.decode(charset or "utf-8", "replace")
    except LookupError:
        return word.decode("utf-8", "replace")


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _part(raw: bytes, start: int, end: int, limits: Limits, depth: int, count: list[int]) -> Part:
    # Offsets, not slices: only leaves copy their bytes, so memory stays at twice the mail whatever the nesting.
    count[0] += 1
    if count[0] > limits.parts:
        raise MimeRefused("parts", f"the mail has more than {limits.parts} parts")
    header, body = _header_end(raw, start, end)
    part = Part(fields(raw[start : min(header, start + limits.header + 1)], limits), b"")
    boundary = part.parameter("boundary") if part.type.startswith("multipart/") else ""
    if not boundary:
        return Part(part.fields, raw[body:end])
    if depth >= limits.depth:
        raise MimeRefused("depth", f"the mail nests more than {limits.depth} levels of parts")
    pieces = _pieces(raw, body, end, boundary[:200].encode("utf-8", "replace"), limits)
    return Part(part.fields, b"", tuple(_part(raw, *piece, limits, depth + 1, count) for piece in pieces))


def _pieces(raw: bytes, start: int, end: int, boundary: bytes, limits: Limits) -> list[tuple[int, int]]:
    delimiter = re.compile(rb"^--" + re.escape(boundary) + rb"(--)?[ \t]{0,80}\r?$", re.MULTILINE)
    pieces: list[tuple[int, int]] = []
    opened = -1
    for found in delimiter.finditer(raw, start, end):
        if opened >= 0:
            last = found.start()
            last -= raw.endswith(b"\n", opened, last)
            pieces.append((opened, last - raw.endswith(b"\r", opened, last)))
        if found.group(1):
            return pieces
        if len(pieces) > limits.parts:
            raise MimeRefused("parts", f"the mail has more than {limits.parts} parts")
        opened = min(found.end() + 1, end)
    if opened >= 0:  # the closing delimiter was cut off: the last part runs to the end
        pieces.append((opened, end))
    return pieces


def _unbase64(body: bytes) -> bytes:
    letters = body.translate(None, _NOT_BASE64)
    letters = letters[:-1] if len(letters) % 4 == 1 else letters
    try:
        return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))
    except binascii.Error:
        return b""
