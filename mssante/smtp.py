"""One mail handed to one operator over SMTP, and exactly at which step it failed when it did.

Raises plain facts; whether a failure is transient, ambiguous or permanent is decided by the caller's table.
Sources: RFC 5321 (SMTP), 3461 (DSN), 1870 (SIZE), 6152 (8BITMIME), 3207 (STARTTLS), 4954 (AUTH).
"""

from __future__ import annotations

import base64
import contextlib
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mssante import channel
from mssante.channel import Credentials, Security

Stage = Literal["connect", "tls", "auth", "mail", "rcpt", "data", "answer"]

_ADDRESS = re.compile(r"[!-~]{1,64}@[A-Za-z0-9.-]{1,255}")
_SAFE = re.compile(r"[!-*,-<>-~]")  # RFC 3461 4: printable ASCII but `+` and `=`
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})
_Ask = Callable[[], tuple[int, bytes]]
_Asked = Callable[[socket.socket], None]
_REPLIES = 1024 * 1024
_CHUNK = 64 * 1024


class SmtpFault(Exception):
    """A sending that did not end with an acceptance.

    `stage` is where it stopped. `code` is the server's reply code, 0 when it gave none (and 552 for a message beyond
    the announced SIZE, 554 for 8-bit content to a 7-bit server, both found before sending); `text` the server's words.
    `answer` means the message was sent whole and no readable answer came: it may have been accepted.
    `refused` lists the recipients refused at `rcpt`: address -> (code, text); nothing was sent to the others.
    """

    def __init__(
        self, stage: Stage, code: int, text: str, refused: Mapping[str, tuple[int, str]] | None = None
    ) -> None:
        super().__init__(f"{stage}: {code} {text}".strip())
        self.stage: Stage = stage
        self.code = code
        self.text = text
        self.refused = dict(refused or {})


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server took responsibility: its reply, and whether it will report on delivery (DSN offered)."""

    code: int
    text: str
    dsn: bool
    encrypted: bool


def send(
    address: tuple[str, int],
    sender: str,
    recipients: Sequence[str],
    message: bytes,
    *,
    envelope_id: str,
    notify: Sequence[str] = ("SUCCESS", "FAILURE", "DELAY"),
    ret: Literal["HDRS", "FULL"] = "HDRS",
    security: Security = "starttls",
    context: ssl.SSLContext | None = None,
    credentials: Credentials | None = None,
    helo: str = "",
    timeout: float = 60.0,
    answer_timeout: float = 600.0,
    before_send: Callable[[socket.socket], None] | None = None,
) -> Accepted:
    """Send the bytes of one message to all recipients or to none.

    `message` has CRLF line ends and is sent untouched (dots doubled on the wire). ENVID, RET, NOTIFY and ORCPT go only
    to a server that offers DSN. `timeout` bounds each wait in seconds, `answer_timeout` the wait for the last reply
    (RFC 5321 4.5.3.2.6 asks for ten minutes). Plain text goes to loopback only. `before_send` is handed the connected
    socket, and again before the final dot, from which on the server has the message: what it raises stops it there.
    Raises SmtpFault; ValueError for arguments that could not be a mail (addresses, line ends).
    """
    _check(sender, recipients, message)
    if not set(notify) <= _NOTIFY and list(notify) != ["NEVER"]:
        raise ValueError(f"NOTIFY is NEVER or some of {', '.join(sorted(_NOTIFY))}, not {list(notify)}")
    domain = sender.rpartition("@")[2] or "localhost"
    asked = before_send or _nobody
    with _session(address, helo or domain, security, context, timeout, asked) as smtp:
        if credentials is not None:
            _authenticate(smtp, credentials)
        _announce(smtp, sender, message, envelope_id, ret)
        _name_recipients(smtp, recipients, notify)
        encrypted = isinstance(smtp.sock, ssl.SSLSocket)
        code, text = _transmit(smtp, message, timeout, answer_timeout, asked)
        with contextlib.suppress(smtplib.SMTPException, OSError):
            smtp.docmd("QUIT")
        return Accepted(code, text, smtp.has_extn("dsn"), encrypted)


def _nobody(_: socket.socket) -> None:
    """Nobody wants to be asked before a message leaves."""


def xtext(text: str) -> str:
    """RFC 3461 section 4: `+` and two hexadecimal digits for what may not stand in an ESMTP parameter."""
    return "".join(c if _SAFE.fullmatch(c) else "".join(f"+{octet:02X}" for octet in c.encode()) for c in text)


def _check(sender: str, recipients: Sequence[str], message: bytes) -> None:
    if not recipients:
        raise ValueError("a mail needs a recipient")
    for address in (*([sender] if sender else []), *recipients):
        if not _ADDRESS.fullmatch(address) or set(address) & set('<>\\"(),;:'):
            raise ValueError(f"not a mail address: {address[:80]!r}")
    if _BARE.search(message):
        raise ValueError("the message has a lone CR or LF: another server could read it otherwise (SMTP smuggling)")


@contextlib.contextmanager
def _session(
    address: tuple[str, int],
    helo: str,
    security: Security,
    context: ssl.SSLContext | None,
    timeout: float,
    asked: _Asked,
) -> Iterator[smtplib.SMTP]:
    """A greeted, encrypted session; the socket is closed whatever happens."""
    smtp = smtplib.SMTP(local_hostname=helo, timeout=timeout)
    with contextlib.ExitStack() as held:
        try:
            smtp.sock = channel.connect(address, security, context, timeout)
        except ssl.SSLError as problem:
            raise SmtpFault("tls", 0, str(problem)) from None
        except OSError as problem:
            raise SmtpFault("connect", 0, str(problem) or type(problem).__name__) from None
        held.callback(lambda: _close(smtp))
        asked(smtp.sock)
        # Our own reader instead of smtplib's: a server that drips bytes or replies for ever is cut off.
        smtp.file = channel.Reader(lambda: _socket(smtp), timeout, _REPLIES)
        _expect(smtp, "connect", smtp.getreply, 220)
        _expect(smtp, "connect", smtp.ehlo, 250)
        if security == "starttls":
            _start_tls(smtp, address[0], context)
        yield smtp


def _socket(smtp: smtplib.SMTP) -> socket.socket:
    if smtp.sock is None:
        raise OSError("the connection is closed")
    return smtp.sock


def _close(smtp: smtplib.SMTP) -> None:
    sock, smtp.sock, smtp.file = smtp.sock, None, None
    if sock is not None:
        sock.close()


def _start_tls(smtp: smtplib.SMTP, host: str, context: ssl.SSLContext | None) -> None:
    if not smtp.has_extn("starttls"):
        raise SmtpFault("tls", 0, "the server offers no STARTTLS")
    _expect(smtp, "tls", partial(smtp.docmd, "STARTTLS"), 220)
    try:
        smtp.sock = channel.encrypt(_socket(smtp), host, context)
    except OSError as problem:
        raise SmtpFault("tls", 0, str(problem)) from None
    _expect(smtp, "tls", smtp.ehlo, 250)


def _authenticate(smtp: smtplib.SMTP, credentials: Credentials) -> None:
    mechanism = credentials.mechanism.upper()
    offered = smtp.esmtp_features.get("auth", "").upper().split()
    if mechanism not in offered:
        raise SmtpFault("auth", 0, f"the server offers no AUTH {mechanism} (it offers: {' '.join(offered) or 'none'})")
    response = base64.b64encode(credentials.initial_response()).decode("ascii")
    if len(response) > 480:  # a command line holds 512 characters; a token is often longer (RFC 4954 section 4)
        _expect(smtp, "auth", partial(smtp.docmd, "AUTH", mechanism), 334)
        code, text = _reply(smtp, "auth", partial(smtp.docmd, response))
    else:
        code, text = _reply(smtp, "auth", partial(smtp.docmd, "AUTH", f"{mechanism} {response}"))
    if code == 334:  # XOAUTH2 explains its refusal in a challenge, and waits for an empty line
        code, text = _reply(smtp, "auth", partial(smtp.docmd, ""))
    if code != 235:
        raise SmtpFault("auth", code, text)


def _announce(smtp: smtplib.SMTP, sender: str, message: bytes, envelope_id: str, ret: str) -> None:
    limit = smtp.esmtp_features.get("size", "").strip()
    if limit.isdigit() and 0 < int(limit) < len(message):
        raise SmtpFault("mail", 552, f"the server takes {limit} bytes at most, the message has {len(message)}")
    options = [f"SIZE={len(message)}"] if smtp.has_extn("size") else []
    if not message.isascii():
        if not smtp.has_extn("8bitmime"):
            raise SmtpFault("mail", 554, "the message has 8-bit content, which the server does not take")
        options.append("BODY=8BITMIME")
    if smtp.has_extn("dsn"):
        options += [f"RET={ret}", f"ENVID={xtext(envelope_id)}"]
    _expect(smtp, "mail", partial(smtp.docmd, "MAIL", " ".join([f"FROM:<{sender}>", *options])), 250)


def _name_recipients(smtp: smtplib.SMTP, recipients: Sequence[str], notify: Sequence[str]) -> None:
    """RCPT for each; one refusal refuses all, so that a resend can never reach somebody twice."""
    dsn = smtp.has_extn("dsn")
    refused: dict[str, tuple[int, str]] = {}
    for recipient in recipients:
        options = f" NOTIFY={','.join(notify)} ORCPT=rfc822;{xtext(recipient)}" if dsn and notify else ""
        command = f"TO:<{recipient}>{options}"
        code, text = _reply(smtp, "rcpt", partial(smtp.docmd, "RCPT", command))
        if code not in (250, 251):
            refused[recipient] = (code, text)
        if code == 421:
            break
    if refused:
        with contextlib.suppress(smtplib.SMTPException, OSError):
            smtp.docmd("QUIT")
        # The permanent refusal first: it is the one that no resend cures.
        code, text = max(refused.values(), key=lambda answer: answer[0])
        raise SmtpFault("rcpt", code, text, refused)


def _transmit(
    smtp: smtplib.SMTP, message: bytes, timeout: float, answer_timeout: float, asked: _Asked
) -> tuple[int, str]:
    _expect(smtp, "data", partial(smtp.docmd, "DATA"), 354)
    doubled = re.sub(rb"(?m)^\.", b"..", message)
    doubled += b"" if doubled.endswith(b"\r\n") else b"\r\n"
    sock = _socket(smtp)
    try:
        for start in range(0, len(doubled), _CHUNK):
            sock.settimeout(timeout)
            sock.sendall(doubled[start : start + _CHUNK])
    except OSError as problem:
        raise SmtpFault("data", 0, str(problem) or type(problem).__name__) from None
    asked(sock)
    # From the final dot on, only a readable reply tells whether the server has the message.
    reader = smtp.file
    assert isinstance(reader, channel.Reader)
    reader.timeout = answer_timeout
    try:
        sock.settimeout(timeout)
        sock.sendall(b".\r\n")
        code, words = smtp.getreply()
    except (smtplib.SMTPException, OSError) as problem:
        raise SmtpFault("answer", 0, str(problem) or type(problem).__name__) from None
    finally:
        reader.timeout = timeout
    text = words.decode("utf-8", "replace")
    if 200 <= code < 300:
        return code, text
    if 400 <= code < 600:
        raise SmtpFault("data", code, text)
    raise SmtpFault("answer", 0, f"an unreadable answer: {code} {text}")


def _reply(smtp: smtplib.SMTP, stage: Stage, ask: _Ask) -> tuple[int, str]:
    try:
        code, words = ask()
    except smtplib.SMTPResponseException as problem:
        raise SmtpFault(stage, 0, f"an unreadable answer: {problem.smtp_error!r}") from None
    except (smtplib.SMTPException, OSError) as problem:
        raise SmtpFault(stage, 0, str(problem) or type(problem).__name__) from None
    return code, words.decode("utf-8", "replace")


def _expect(smtp: smtplib.SMTP, stage: Stage, ask: _Ask, expected: int) -> None:
    code, text = _reply(smtp, stage, ask)
    if code != expected:
        raise SmtpFault(stage, code if code > 0 else 0, text)
