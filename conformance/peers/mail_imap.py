"""The reading side of the sandbox operator: the part of IMAP4rev1 that mail fetchers use, over the mailboxes on disk.

CAPABILITY NOOP LOGIN AUTHENTICATE (PLAIN, XOAUTH2) LIST STATUS SELECT EXAMINE SEARCH FETCH STORE EXPUNGE CLOSE CHECK
LOGOUT, by sequence number or UID. Any password opens any mailbox unless one is set: it listens on loopback only.
Source: RFC 3501.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate

from conformance.peers.mailbox import FLAGS, Box, Message

CAPABILITIES = "IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR LITERAL+"
_LINE_LIMIT = 64 * 1024
_LITERAL = re.compile(rb"\{(\d{1,6})(\+?)\}\Z")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\([^()]*\))|([^\s()]+)')
_BODY = re.compile(r"BODY(?:\.PEEK)?\[(|HEADER|TEXT)\](?:<(\d+)\.(\d+)>)?|RFC822(?:\.HEADER|\.TEXT)?", re.IGNORECASE)
_FETCH_ITEM = re.compile(r"BODY(?:\.PEEK)?\[[^\]]*\](?:<\d+\.\d+>)?|[A-Z0-9.]+", re.IGNORECASE)


class _Refusal(Exception):
    """The command fails: NO or BAD, with the words shown to the client."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class _Session:
    """One client: its streams, who it is, the selected box and its messages in sequence order."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    box: Box | None = None
    selected: bool = False
    read_only: bool = False
    messages: list[Message] = field(default_factory=list)

    def tell(self, line: str) -> None:
        self.writer.write(f"* {line}\r\n".encode())

    def opened(self) -> Box:
        if self.box is None:
            raise _Refusal("NO", "log in first")
        return self.box

    def chosen(self) -> Box:
        if not self.selected:
            raise _Refusal("BAD", "select a mailbox first")
        return self.opened()


@dataclass(frozen=True)
class Imap:
    """The server's settings: where a user's box is found, the password ('' accepts any), how long a client may idle."""

    box_of: Callable[[str], Box]
    password: str = ""
    idle: float = 1800.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from greeting to close."""
        session = _Session(reader, writer)
        writer.write(f"* OK [CAPABILITY {CAPABILITIES}] sandbox ready\r\n".encode())
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.LimitOverrunError):
                while await self._turn(session):
                    await writer.drain()
        finally:
            writer.close()

    async def _turn(self, session: _Session) -> bool:
        """Read one command and answer it; False when the connection ends."""
        line = await asyncio.wait_for(_command(session), self.idle)
        tag, _, rest = line.partition(" ")
        name, _, rest = rest.partition(" ")
        name = name.upper()
        by_uid = name == "UID"
        if by_uid:
            name, _, rest = rest.partition(" ")
            name = name.upper()
        if not tag or not name:
            session.tell("BAD no command")
            return bool(line)
        try:
            handler = _UID_COMMANDS.get(name) if by_uid else _COMMANDS.get(name)
            if handler is None:
                raise _Refusal("BAD", f"{name[:20]} is not known here")
            done = await handler(self, session, rest.strip(), by_uid)
            answer = f"{tag} OK {done or name + ' done'}"
        except _Refusal as refusal:
            answer = f"{tag} {refusal.status} {refusal.text}"
        session.writer.write(answer.encode() + b"\r\n")
        return name != "LOGOUT"

    def admit(self, session: _Session, user: str, secret: str) -> None:
        """Open the box of a user, or refuse."""
        if self.password and secret != self.password:
            raise _Refusal("NO", "[AUTHENTICATIONFAILED] wrong password")
        try:
            session.box = self.box_of(user)
        except ValueError:
            raise _Refusal("NO", "[AUTHENTICATIONFAILED] no such mailbox") from None


async def _command(session: _Session) -> str:
    """One command line with its literals put back in as quoted strings."""
    whole = b""
    while True:
        line = (await session.reader.readuntil(b"\n")).rstrip(b"\r\n")
        whole += line
        if len(whole) > _LINE_LIMIT:
            raise asyncio.LimitOverrunError("command too long", 0)
        literal = _LITERAL.search(line)
        if literal is None:
            return whole.decode("utf-8", "replace")
        size = int(literal.group(1))
        if size > _LINE_LIMIT:
            raise asyncio.LimitOverrunError("literal too long", 0)
        if not literal.group(2):
            session.writer.write(b"+ go on\r\n")
            await session.writer.drain()
        content = await session.reader.readexactly(size)
        quoted = content.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        whole = whole[: -len(literal.group())] + b'"' + quoted + b'"'


def _words(text: str) -> list[str]:
    return [
        re.sub(r"\\(.)", r"\1", found.group(1)) if found.group(1) is not None else found.group(2) or found.group(3)
        for found in _WORD.finditer(text)
    ]


async def _capability(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    session.tell(f"CAPABILITY {CAPABILITIES}")
    return ""


async def _noop(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    if session.selected:
        _refresh(session, session.opened())
    return ""


async def _login(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    words = _words(rest)
    if len(words) != 2:
        raise _Refusal("BAD", "LOGIN user password")
    server.admit(session, *words)
    return f"[CAPABILITY {CAPABILITIES}] logged in"


async def _authenticate(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    mechanism, _, initial = rest.partition(" ")
    if not initial:
        session.writer.write(b"+ \r\n")
        await session.writer.drain()
        initial = (await session.reader.readuntil(b"\n")).decode("ascii", "replace").strip()
    try:
        response = base64.b64decode(initial, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise _Refusal("BAD", "not base64") from None
    if mechanism.upper() == "PLAIN" and response.count("\0") == 2:
        server.admit(session, *response.split("\0")[1:])
    elif mechanism.upper() == "XOAUTH2" and response.startswith("user=") and "\1auth=Bearer " in response:
        user, _, token = response.removeprefix("user=").partition("\1auth=Bearer ")
        server.admit(session, user, token.rstrip("\1"))
    else:
        raise _Refusal("NO", "mechanism or response not accepted")
    return "authenticated"


async def _list(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    session.opened()
    session.tell('LIST () "/" INBOX')
    return ""


async def _status(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    box = session.opened()
    held = box.messages()
    unseen = sum("\\Seen" not in message.flags for message in held)
    counts = f"MESSAGES {len(held)} UNSEEN {unseen} UIDNEXT {box.next_uid()} UIDVALIDITY {box.uid_validity}"
    session.tell(f"STATUS INBOX ({counts})")
    return ""


async def _select(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    return _open(session, rest, read_only=False)


async def _examine(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    return _open(session, rest, read_only=True)


def _open(session: _Session, rest: str, *, read_only: bool) -> str:
    box = session.opened()
    if [word.upper() for word in _words(rest)] != ["INBOX"]:
        raise _Refusal("NO", "[NONEXISTENT] only INBOX is here")
    session.selected, session.read_only, session.messages = True, read_only, box.messages()
    session.tell(f"{len(session.messages)} EXISTS")
    session.tell("0 RECENT")
    session.tell(f"FLAGS ({' '.join(FLAGS)})")
    session.tell(f"OK [PERMANENTFLAGS ({'' if read_only else ' '.join(FLAGS)})] as they are")
    session.tell(f"OK [UIDVALIDITY {box.uid_validity}] stable")
    session.tell(f"OK [UIDNEXT {box.next_uid()}] next")
    return "[READ-ONLY] opened" if read_only else "[READ-WRITE] opened"


def _refresh(session: _Session, box: Box) -> None:
    """Tell what changed on disk since the last look (RFC 3501 5.2): what went first, then how many there are."""
    now = {message.uid: message for message in box.messages()}
    before = len(session.messages)
    for number in range(before, 0, -1):
        if session.messages[number - 1].uid not in now:
            session.tell(f"{number} EXPUNGE")
            del session.messages[number - 1]
    session.messages = list(now.values())
    if len(session.messages) != before:
        session.tell(f"{len(session.messages)} EXISTS")


def _numbered(session: _Session, text: str, by_uid: bool) -> list[tuple[int, Message]]:
    """The messages of a sequence set such as `1,3:5,7:*`, each with its sequence number."""
    if not re.fullmatch(r"[0-9*:,]{1,2000}", text):
        raise _Refusal("BAD", "not a message set")
    keys = [message.uid if by_uid else number for number, message in enumerate(session.messages, 1)]
    last = keys[-1] if keys else 0
    ranges = []
    for item in text.split(","):
        ends = [last if end == "*" else int(end or 0) for end in item.split(":")[:2]]
        ranges.append((min(ends), max(ends)))
    return [
        (number, message)
        for number, (key, message) in enumerate(zip(keys, session.messages, strict=True), 1)
        if any(low <= key <= high for low, high in ranges)
    ]


def _present(session: _Session, box: Box, text: str, by_uid: bool) -> list[tuple[int, Message]]:
    """As `_numbered`, as they are on disk now: another client may have changed flags or removed some."""
    now = {message.uid: message for message in box.messages()}
    return [(number, now[held.uid]) for number, held in _numbered(session, text, by_uid) if held.uid in now]


async def _search(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    box = session.chosen()
    if by_uid:  # sequence numbers may not change under a command that uses them (RFC 3501 7.4.1)
        _refresh(session, box)
    found = list(enumerate(session.messages, 1))
    words = [word.upper() for word in _words(rest)]
    while words:
        word = words.pop(0)
        if word in _SEARCH_FLAGS:
            flag, wanted = _SEARCH_FLAGS[word]
            found = [item for item in found if (flag in item[1].flags) is wanted]
        elif word == "UID" and words:
            kept = {message.uid for _, message in _numbered(session, words.pop(0), True)}
            found = [item for item in found if item[1].uid in kept]
        elif word == "CHARSET" and words:
            words.pop(0)
        elif word != "ALL":
            raise _Refusal("BAD", f"SEARCH {word[:20]} is not known here")
    session.tell(" ".join(["SEARCH", *(str(message.uid if by_uid else number) for number, message in found)]))
    return ""


_SEARCH_FLAGS = {
    "UNSEEN": ("\\Seen", False), "SEEN": ("\\Seen", True), "DELETED": ("\\Deleted", True),
    "UNDELETED": ("\\Deleted", False), "ANSWERED": ("\\Answered", True), "UNANSWERED": ("\\Answered", False),
    "FLAGGED": ("\\Flagged", True), "UNFLAGGED": ("\\Flagged", False),
}  # fmt: skip


async def _fetch(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    box = session.chosen()
    numbers, _, wanted = rest.partition(" ")
    items = [item.upper() for item in _FETCH_ITEM.findall(wanted)]
    items = [*items, "UID"] if by_uid and "UID" not in items else items
    for number, message in _present(session, box, numbers, by_uid):
        content = b" ".join([_item(item, message) for item in items])
        session.writer.write(f"* {number} FETCH (".encode() + content + b")\r\n")
        await session.writer.drain()
        if not session.read_only and any(item.startswith(("BODY[", "RFC822")) and "SIZE" not in item for item in items):
            session.messages[number - 1] = box.set_flags(message, message.flags | {"\\Seen"})
    return ""


def _item(item: str, message: Message) -> bytes:
    if item == "UID":
        return f"UID {message.uid}".encode()
    if item == "FLAGS":
        return f"FLAGS ({' '.join(sorted(message.flags))})".encode()
    if item == "RFC822.SIZE":
        return f"RFC822.SIZE {message.size}".encode()
    if item == "INTERNALDATE":
        when = formatdate(message.path.stat().st_mtime)[5:].replace(" ", "-", 2).replace("-0000", "+0000")
        return f'INTERNALDATE "{when}"'.encode()
    named = _BODY.fullmatch(item)
    if named is None:
        raise _Refusal("BAD", f"FETCH {item[:20]} is not known here")
    section = named.group(1) if item.startswith("BODY") else item.removeprefix("RFC822").removeprefix(".")
    content = message.path.read_bytes()
    header, gap, body = content.partition(b"\r\n\r\n")
    content = {"": content, "HEADER": header + gap, "TEXT": body}[section]
    label = item.replace(".PEEK", "")
    if named.group(2):
        start, size = int(named.group(2)), int(named.group(3))
        content, label = content[start : start + size], f"{label.partition('<')[0]}<{start}>"
    return f"{label} {{{len(content)}}}\r\n".encode() + content


async def _store(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    box = session.chosen()
    if session.read_only:
        raise _Refusal("NO", "[READ-ONLY] opened with EXAMINE")
    numbers, _, change = rest.partition(" ")
    action, _, names = change.partition(" ")
    named = re.fullmatch(r"([+-]?)FLAGS(\.SILENT)?", action, re.IGNORECASE)
    if named is None:
        raise _Refusal("BAD", "STORE FLAGS, +FLAGS or -FLAGS")
    by_name = {flag.lower(): flag for flag in FLAGS}
    flags = frozenset(by_name[word.lower()] for word in names.strip("() ").split() if word.lower() in by_name)
    for number, message in _present(session, box, numbers, by_uid):
        after = {"+": message.flags | flags, "-": message.flags - flags, "": flags}[named.group(1)]
        changed = box.set_flags(message, after)
        session.messages[number - 1] = changed
        if not named.group(2):
            uid = f" UID {changed.uid}" if by_uid else ""
            session.tell(f"{number} FETCH (FLAGS ({' '.join(sorted(changed.flags))}){uid})")
    return ""


async def _expunge(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    box = session.chosen()
    if session.read_only:
        raise _Refusal("NO", "[READ-ONLY] opened with EXAMINE")
    box.expunge()
    _refresh(session, box)
    return ""


async def _close(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    box = session.chosen()
    if not session.read_only:
        box.expunge()
    session.selected, session.messages = False, []
    return ""


async def _logout(server: Imap, session: _Session, rest: str, by_uid: bool) -> str:
    session.tell("BYE goodbye")
    return ""


_Handler = Callable[[Imap, _Session, str, bool], Awaitable[str]]
_COMMANDS: dict[str, _Handler] = {
    "CAPABILITY": _capability, "NOOP": _noop, "CHECK": _noop, "LOGIN": _login, "AUTHENTICATE": _authenticate,
    "LIST": _list, "STATUS": _status, "SELECT": _select, "EXAMINE": _examine, "SEARCH": _search, "FETCH": _fetch,
    "STORE": _store, "EXPUNGE": _expunge, "CLOSE": _close, "LOGOUT": _logout,
}  # fmt: skip
_UID_COMMANDS: dict[str, _Handler] = {"SEARCH": _search, "FETCH": _fetch, "STORE": _store, "EXPUNGE": _expunge}
