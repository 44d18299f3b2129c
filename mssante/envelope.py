"""The MSSanté mail as frozen bytes: one patient, IHE_XDM.ZIP, the same document as PDF beside it, the X-MSS headers.

Written by hand rather than by a mail library, so that the same values give the same bytes on every Python version and
no value can add a header. Sources: RFC 5322, 2045-2047, 2183, 2231, 8098; référentiel socle MSSanté #2, ECO.2.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from mssante import archive, received
from mssante.letter import SUBJECT_PREFIX, Address, Letter, pdf_name, plain, subject
from mssante.received import Received

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")
_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ATOM_TEXT = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")
_LINE = 76
SUBJECT_WITHDRAWN = "[Retrait] "


def xdm_zip(files: Mapping[str, bytes], *, at: datetime | None = None) -> bytes:
    """Write IHE_XDM.ZIP from INDEX.HTM, README.TXT, METADATA.XML, DOC0001.XML... See `archive.pack`."""
    return archive.pack(files, at=at)


def read(raw: bytes) -> Received:
    """Classify an incoming mail within the default bounds. Never raises. See `received.read`."""
    return received.read(raw)


def mail(
    letter: Letter,
    *,
    delivery_id: str,
    date: datetime,
    sender: Address,
    recipients: Sequence[Address],
    product: str,
    xdm: bytes,
    pdf: bytes | None = None,
    reply_to: Address | None = None,
    notify_to: Address | None = None,
    about: str = "",
) -> bytes:
    """Write the whole message, CRLF, 7-bit; the same arguments give the same bytes.

    `delivery_id` becomes the Message-ID `<delivery_id@domain of the sender>`; `date` is aware; `product` is the
    X-MSS-NIL reference; `xdm` the bytes of IHE_XDM.ZIP; `pdf` the PDF/A-1 attached beside it, byte for byte.
    `notify_to` receives the MDN and is the sender unless told otherwise: a receiver may not answer by itself when it
    differs from the return path (RFC 8098 2.1). `about` is the Message-ID of an earlier mail this one follows. Raises
    ValueError for an address or an id that is not well formed.
    """
    head = _head(subject(letter), letter, delivery_id, date, sender, recipients, product, reply_to, notify_to, about)
    parts = [_text(letter), _file("application/zip", archive.FILE_NAME, xdm)]
    if pdf is not None:
        parts.append(_file("application/pdf", pdf_name(letter), pdf))
    return _written(head, parts)


def notice(
    letter: Letter,
    *,
    delivery_id: str,
    date: datetime,
    sender: Address,
    recipients: Sequence[Address],
    product: str,
    reply_to: Address | None = None,
    notify_to: Address | None = None,
    about: str = "",
    prefix: str = SUBJECT_WITHDRAWN,
) -> bytes:
    """A mail without documents, such as one that takes back what an earlier one brought: text alone, arguments as for
    `mail`; `prefix` begins its subject.

    No archive and so neither the prefix of ECO.2.1.3 nor X-MSS-CODECDA: a software would file what it is told to drop.
    """
    named = prefix + subject(replace(letter, replaces=False)).removeprefix(SUBJECT_PREFIX)
    bare = replace(letter, codes=())
    head = _head(named, bare, delivery_id, date, sender, recipients, product, reply_to, notify_to, about)
    return _written(head, [_text(letter)])


def _head(
    named: str,
    letter: Letter,
    delivery_id: str,
    date: datetime,
    sender: Address,
    recipients: Sequence[Address],
    product: str,
    reply_to: Address | None,
    notify_to: Address | None,
    about: str,
) -> list[tuple[str, str]]:
    if date.tzinfo is None:
        raise ValueError("the date of a mail needs a time zone")
    if not recipients:
        raise ValueError("a mail needs a recipient")
    return [
        _people("From", [sender]),
        *([_people("Reply-To", [reply_to])] if reply_to else []),
        _people("To", recipients),
        _text_field("Subject", named),
        ("Message-ID", message_id_of(delivery_id, sender.address)),
        *([("In-Reply-To", about), ("References", about)] if about else []),
        ("Date", rfc5322_date(date)),
        _people("Disposition-Notification-To", [notify_to or sender]),
        *([_text_field("X-MSS-CODECDA", ",".join(letter.codes))] if letter.codes else []),
        ("X-MSS-INS", "O" if letter.qualified else "N"),
        _text_field("X-MSS-NIL", product),
        *([("X-MSS-MES", "FIN")] if letter.last_word else []),
        ("MIME-Version", "1.0"),
    ]


def _text(letter: Letter) -> bytes:
    text = "\r\n".join(letter.text.splitlines()) + "\r\n"
    return _part("text/plain; charset=utf-8", "", text.encode())


def _written(headers: list[tuple[str, str]], parts: Sequence[bytes]) -> bytes:
    # base64 lines never begin with "--": the boundary cannot occur in the content.
    message_id = dict(headers)["Message-ID"]
    boundary = "=_" + hashlib.sha256(message_id.encode()).hexdigest()[:40]
    headers.append(("Content-Type", f'multipart/mixed;\r\n boundary="{boundary}"'))
    top = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("ascii")
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + part for part in parts)
    return top + b"\r\n" + body + b"--" + boundary.encode() + b"--\r\n"


def message_id_of(delivery_id: str, address: str) -> str:
    """The Message-ID of a delivery: `<delivery id@domain of the sender>`."""
    if not _TOKEN.fullmatch(delivery_id):
        raise ValueError(f"not a delivery id: {delivery_id[:80]!r}")
    if not is_address(address):
        raise ValueError(f"not a mail address: {address[:80]!r}")
    return f"<{delivery_id}@{address.rpartition('@')[2].lower()}>"


def is_address(text: str) -> bool:
    """Whether a text is a plain ASCII address (no quoted local part, no domain literal: MSSanté has neither)."""
    local = text.partition("@")[0]
    dots = local.startswith(".") or local.endswith(".") or ".." in local
    return bool(_ADDRESS.fullmatch(text)) and not dots and len(text) <= 254


def mailbox(address: Address, used: int = 1) -> str:
    """An address as a header value: `"Display" <address>`, the display name encoded when it is not ASCII.

    `used` is how many characters the line already holds.
    """
    if not is_address(address.address):
        raise ValueError(f"not a mail address: {address.address[:80]!r}")
    display = plain(address.display)
    if not display:
        return address.address
    if display.isascii() and len(display) + used + 2 <= _LINE and "=?" not in display:
        if not _ATOM_TEXT.fullmatch(display):
            display = '"' + display.replace("\\", "\\\\").replace('"', '\\"') + '"'
    else:
        display = _words(display, used)
    separator = "\r\n " if used + len(display) + len(address.address) + 3 > _LINE else " "
    return f"{display}{separator}<{address.address}>"


def _people(name: str, people: Sequence[Address]) -> tuple[str, str]:
    used = [len(name) + 2] + [1] * (len(people) - 1)
    return name, ",\r\n ".join(mailbox(person, room) for person, room in zip(people, used, strict=True))


def _text_field(name: str, text: str) -> tuple[str, str]:
    """An unstructured field: as it is when short ASCII, else RFC 2047 base64 words."""
    line, used = plain(text), len(name) + 2
    return name, line if line.isascii() and len(line) + used <= _LINE and "=?" not in line else _words(line, used)


def rfc5322_date(moment: datetime) -> str:
    """An aware datetime as an RFC 5322 date, in its own offset, with English names whatever the locale."""
    day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return f"{day}, {moment.day:02d} {month} {moment.year:04d} " + moment.strftime("%H:%M:%S %z")[:14]


def _words(text: str, used: int) -> str:
    """RFC 2047 encoded words on lines of at most 76 characters; a character is never cut in two.

    The first word stands on the field's own line: some parsers keep the blank of a fold right after the colon.
    """
    words: list[str] = []
    piece = b""
    room = (_LINE - used - 12) // 4 * 3
    for character in text:
        octets = character.encode("utf-8", "replace")
        if len(piece) + len(octets) > room:
            words.append(piece.decode())
            piece, room = b"", 45
        piece += octets
    words.append(piece.decode())
    return "\r\n ".join("=?utf-8?b?" + base64.b64encode(word.encode()).decode() + "?=" for word in words)


def _part(content_type: str, disposition: str, content: bytes) -> bytes:
    head = f"Content-Type: {content_type}\r\n"
    head += f"Content-Disposition: {disposition}\r\n" if disposition else ""
    head += "Content-Transfer-Encoding: base64\r\n\r\n"
    return head.encode("ascii") + base64.encodebytes(content).replace(b"\n", b"\r\n")


def _file(media_type: str, name: str, content: bytes) -> bytes:
    return _part(media_type + _parameter("name", name), "attachment" + _parameter("filename", name), content)


def _parameter(attribute: str, value: str) -> str:
    """A MIME parameter; RFC 2231 with continuations when the value is not short plain ASCII."""
    if value.isascii() and len(value) <= 50 and not set(value) & set('"\\'):
        return f';\r\n {attribute}="{value}"'
    octets = value.encode("utf-8", "replace")
    quoted = [chr(octet) if octet in _UNRESERVED else f"%{octet:02X}" for octet in octets]
    pieces = [quoted[at : at + 18] for at in range(0, len(quoted), 18)]
    pieces[0].insert(0, "utf-8''")
    if len(pieces) == 1:
        return f";\r\n {attribute}*=" + "".join(pieces[0])
    return "".join(f";\r\n {attribute}*{number}*=" + "".join(piece) for number, piece in enumerate(pieces))
