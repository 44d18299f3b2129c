"""A small MSSanté operator for demos and tests: SMTP in, real delivery notices back, IMAP out, all on loopback.

Mail for any `@*.mssante.fr` address is stored durably before `250`. It behaves as the référentiel asks of operators: it
announces DSN, SIZE and 8BITMIME, sends a success report when NOTIFY asks for one, and a failure report for an address
listed as unknown.

    python -m conformance.peers.mail --data DIR --smtp-port 1025 --imap-port 1143 --unknown nobody@ch-x.mssante.fr

Faults are read at each step from `faults.json` in the data folder, so that they can change while it runs:
    [{"at": "rcpt", "do": "550 5.1.1 no such user", "match": "nobody@", "times": 1}]
`at` is connect, mail, rcpt, data (before the message is stored) or stored (after); `do` is a reply, `close`, or `hang`;
`match` is a part of the recipient or sender, `times` how often (absent: always). No code is shared with the product.
Sources: RFC 5321, 3461 (DSN), 3464 (report format), 1870 (SIZE), 6152 (8BITMIME).
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import ipaddress
import json
import logging
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult

from conformance.peers import mailbox
from conformance.peers.mail_imap import Imap
from conformance.peers.mailbox import Box

HOST_NAME = "sandbox.mssante.fr"
SIZE_LIMIT = 25 * 1024 * 1024
_PARAMETER = re.compile(r"\s+([A-Za-z0-9-]+)(?:=(\S*))?")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_DSN_ON_MAIL = frozenset({"RET", "ENVID"})
_DSN_ON_RCPT = frozenset({"NOTIFY", "ORCPT"})


@dataclass(frozen=True, slots=True)
class Settings:
    """How the operator behaves. `domain` and its sub-domains are its own; any other recipient is refused (550)."""

    data: Path
    smtp_port: int = 1025
    imap_port: int = 1143
    host: str = "127.0.0.1"
    domain: str = "mssante.fr"
    unknown: frozenset[str] = frozenset()
    password: str = ""
    dsn: bool = True
    size_limit: int = SIZE_LIMIT


@dataclass
class _Post:
    """The shared state: the open boxes and the settings. Used from one event loop only."""

    settings: Settings
    boxes: dict[str, Box] = field(default_factory=dict)

    def box(self, address: str) -> Box:
        key = address.lower()
        if not self.is_ours(key):
            raise ValueError(f"not an address of this operator: {address[:80]!r}")
        if key not in self.boxes:
            self.boxes[key] = Box(self.settings.data, key)
        return self.boxes[key]

    def is_ours(self, address: str) -> bool:
        domain = address.rpartition("@")[2].lower()
        own = domain == self.settings.domain or domain.endswith("." + self.settings.domain)
        return own and mailbox.is_address(address)

    def fault(self, at: str, *about: str) -> str:
        """What the script says to do at this step, '' for nothing; a counted fault is used up."""
        path = self.settings.data / "faults.json"
        try:
            script: list[dict[str, Any]] = json.loads(path.read_text())
        except FileNotFoundError:
            return ""
        for fault in script:
            if fault.get("at") != at or not any(fault.get("match", "") in item for item in about or ("",)):
                continue
            if fault.get("times", 1) <= 0:
                continue
            if "times" in fault:
                fault["times"] -= 1
                set_faults(self.settings.data, script)
            return str(fault["do"])
        return ""


def set_faults(data: Path, script: Iterable[dict[str, Any]]) -> None:
    """Write the script of faults of the operator that works in `data`; an empty one cures it."""
    draft = data / f"faults.{secrets.token_hex(4)}"
    draft.write_text(json.dumps(list(script)))
    draft.rename(data / "faults.json")


@dataclass(frozen=True, slots=True)
class _Recipient:
    address: str
    notify: frozenset[str]
    original: str


class _Server(SMTP):  # type: ignore[misc]  # aiosmtpd ships no types, and is extended by subclassing
    """aiosmtpd with the DSN parameters it does not know, the null sender, and a fault on connection.

    `sender`, `options` (of MAIL) and `asked` (of the last RCPT) are what the handler reads beside the envelope.
    """

    line_length_limit = 12288  # a token in AUTH may be that long (RFC 4954 section 4)

    def __init__(self, post: _Post) -> None:
        settings = post.settings
        super().__init__(
            _Handler(post), data_size_limit=settings.size_limit, hostname=HOST_NAME, ident="sandbox", timeout=300,
            auth_require_tls=False, authenticator=_anybody, loop=asyncio.get_running_loop(),
        )  # fmt: skip
        # An ORCPT may repeat a long address (RFC 3461 5.4); aiosmtpd's own limits are shared by all connections.
        self.command_size_limits: dict[str, int] = collections.defaultdict(lambda: 2048)
        self._post = post
        self._known = (_DSN_ON_MAIL, _DSN_ON_RCPT) if settings.dsn else (frozenset(), frozenset())
        self.sender = ""
        self.options: dict[str, str] = {}
        self.asked: dict[str, str] = {}
        self.recipients: list[_Recipient] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        do = self._post.fault("connect")
        if do == "close":
            self.transport.abort()
        elif do:
            self.transport.write(do.encode() + b"\r\n")
            self.transport.close()

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802 - named as aiosmtpd calls it
        known, options = _taken(arg or "", self._known[0])
        # aiosmtpd takes `<>` for a missing address; a notice that travels on has no other sender.
        null = re.match(r"FROM:\s*<>", known, re.IGNORECASE)
        sender = "" if null else known.rpartition("<")[2].partition(">")[0]
        do = self._post.fault("mail", sender)
        if do:
            await self.push(await broken(self, do))
            return
        await super().smtp_MAIL(known.replace("<>", "<null@null.invalid>", 1) if null else known)
        self.sender, self.options, self.recipients = sender, options, []

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802 - named as aiosmtpd calls it
        known, self.asked = _taken(arg or "", self._known[1])
        await super().smtp_RCPT(known)

    async def auth_XOAUTH2(self, server: Any, args: list[str]) -> Any:  # noqa: N802 - named as aiosmtpd calls it
        """Any token opens: the sandbox has no Pro Santé Connect to ask."""
        if len(args) == 1:
            await self.challenge_auth("")
        return AuthResult(success=True)


@dataclass(frozen=True, slots=True)
class _Handler:
    """What aiosmtpd calls back: who is accepted, and what becomes of a message."""

    post: _Post

    async def handle_EHLO(  # noqa: N802 - named as aiosmtpd calls it
        self, server: _Server, session: Any, envelope: Any, name: str, lines: list[str]
    ) -> list[str]:
        session.host_name = name
        return [*lines[:-1], "250-DSN", lines[-1]] if self.post.settings.dsn else lines

    async def handle_RCPT(  # noqa: N802 - named as aiosmtpd calls it
        self, server: _Server, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        do = self.post.fault("rcpt", address)
        if do:
            return await broken(server, do)
        if not self.post.is_ours(address):
            return f"550 5.7.1 {address} is not in our domain"
        notify = frozenset(server.asked.get("NOTIFY", "FAILURE").upper().split(","))
        server.recipients.append(_Recipient(address, notify, server.asked.get("ORCPT", "")))
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: _Server, session: Any, envelope: Any) -> str:  # noqa: N802 - named as aiosmtpd calls it
        about = (server.sender, *(recipient.address for recipient in server.recipients))
        do = self.post.fault("data", *about)
        if do:
            return await broken(server, do)
        number = secrets.token_hex(6).upper()
        trace = (
            f"Received: from {session.host_name} by {HOST_NAME} with ESMTP id {number}; {formatdate(localtime=True)}"
        )
        _accept(self.post, server, trace, bytes(envelope.original_content))
        do = self.post.fault("stored", *about)
        return await broken(server, do) if do else f"250 2.0.0 Ok: queued as {number}"


def _anybody(*_: object) -> Any:
    return AuthResult(success=True)


async def broken(server: _Server, do: str) -> str:
    """Carry out a fault: the scripted reply, or no reply at all."""
    if do == "hang":
        await asyncio.get_running_loop().create_future()  # until the client goes away
    if do == "close":
        server.transport.abort()
    return "421 4.3.2 closing" if do == "close" else do


def _taken(arg: str, names: frozenset[str]) -> tuple[str, dict[str, str]]:
    """Cut the DSN parameters out of a MAIL or RCPT argument: what is left for aiosmtpd, and the parameters, decoded."""
    address, angle, tail = arg.rpartition(">")
    kept, taken = address + angle, {}
    for found in _PARAMETER.finditer(tail if angle else ""):
        name, value = found.group(1).upper(), found.group(2) or ""
        if name in names:
            taken[name] = _XTEXT.sub(lambda code: chr(int(code.group(1), 16)), value)
        else:
            kept += found.group(0)
    return (kept, taken) if angle else (arg, {})


def _accept(post: _Post, server: _Server, trace: str, content: bytes) -> None:
    """Store the message in each box, then the reports in the sender's; all durable when this returns."""
    unknown, sender = post.settings.unknown, server.sender
    for recipient in server.recipients:
        if recipient.address.lower() not in unknown:
            top = _lines([f"Return-Path: <{sender}>", f"Delivered-To: {recipient.address}", trace])
            post.box(recipient.address).deliver(top + content)
    if not sender or not post.is_ours(sender):
        return  # a report is never answered by a report (RFC 3464 2)
    for action, wanted in (("delivered", "SUCCESS"), ("failed", "FAILURE")):
        told = [
            recipient
            for recipient in server.recipients
            if wanted in recipient.notify and (recipient.address.lower() in unknown) == (action == "failed")
        ]
        if told:
            post.box(sender).deliver(_report(action, sender, server.options, told, content))


def _report(action: str, sender: str, options: dict[str, str], told: list[_Recipient], content: bytes) -> bytes:
    """A delivery status notification, RFC 3464."""
    boundary = secrets.token_hex(12)
    subject, words, status, diagnostic = {
        "delivered": ("Successful Mail Delivery Report", "was delivered to", "2.0.0", "250 2.0.0 delivered to mailbox"),
        "failed": (
            "Undelivered Mail Returned to Sender",
            "could not be delivered to",
            "5.1.1",
            "550 5.1.1 no such user",
        ),
    }[action]
    about = [f"Reporting-MTA: dns; {HOST_NAME}"]
    about += [f"Original-Envelope-Id: {options['ENVID']}"] if "ENVID" in options else []
    about.append(f"Arrival-Date: {formatdate(localtime=True)}")
    for recipient in told:
        original = [f"Original-Recipient: {recipient.original}"] if recipient.original else []
        about += ["", f"Final-Recipient: rfc822; {recipient.address}", *original, f"Action: {action}"]
        about += [f"Status: {status}", f"Diagnostic-Code: smtp; {diagnostic}"]
    header = content.partition(b"\r\n\r\n")[0] + b"\r\n"
    full = options.get("RET", "").upper() == "FULL" and action == "failed"
    parts = [
        (
            "text/plain; charset=us-ascii",
            f"Your message {words}:\r\n".encode() + _lines(f"  {r.address}" for r in told),
        ),
        ("message/delivery-status", _lines(about)),
        ("message/rfc822", content) if full else ("text/rfc822-headers", header),
    ]
    fields = {
        "Return-Path": "<>", "Date": formatdate(localtime=True),
        "From": f"Mail Delivery System <MAILER-DAEMON@{HOST_NAME}>", "To": sender, "Subject": subject,
        "Auto-Submitted": "auto-replied", "Message-ID": f"<{secrets.token_hex(10)}@{HOST_NAME}>", "MIME-Version": "1.0",
        "Content-Type": f'multipart/report; report-type=delivery-status; boundary="{boundary}"',
    }  # fmt: skip
    top = _lines([*(f"{name}: {value}" for name, value in fields.items()), ""])
    mark = f"--{boundary}".encode()
    body = b"".join(mark + f"\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for kind, part in parts)
    return top + body + mark + b"--\r\n"


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()


def _begin(
    imap: Imap, sessions: set[asyncio.Task[None]], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One IMAP session as a task of ours: asyncio would print a traceback for one of its own that `run` cancels."""
    task = asyncio.get_running_loop().create_task(imap.serve(reader, writer))
    sessions.add(task)
    task.add_done_callback(sessions.discard)


async def run(settings: Settings, ready: Callable[[int, int], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set; `ready` is told the two ports (a port 0 is chosen by the system).

    Raises ValueError for a host beyond loopback, BlockingIOError when another process works in the same folder.
    """
    if not ipaddress.ip_address(settings.host).is_loopback:
        raise ValueError("the sandbox operator accepts anybody: it listens on loopback only")
    with mailbox.lock(settings.data):
        post = _Post(settings)
        imap = Imap(post.box, settings.password)
        loop, sessions = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        smtp_side = await loop.create_server(partial(_Server, post), settings.host, settings.smtp_port)
        imap_side = await asyncio.start_server(partial(_begin, imap, sessions), settings.host, settings.imap_port)
        ready(smtp_side.sockets[0].getsockname()[1], imap_side.sockets[0].getsockname()[1])
        await stop.wait()
        for server in (smtp_side, imap_side):
            server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Running:
    """The operator in a thread of this process, for tests and the demo; `stop` ends it. `smtp_port`, `imap_port`."""

    def __init__(self, settings: Settings, timeout: float = 10.0) -> None:
        self.settings = settings
        self.smtp_port = self.imap_port = 0
        self._failure: BaseException | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._work, name="sandbox-mail", daemon=True)
        self._thread.start()
        self._started.wait(timeout)
        if self._failure is not None:
            raise self._failure
        if not self.smtp_port:
            raise TimeoutError("the sandbox operator did not start in time")

    def stop(self, timeout: float = 10.0) -> None:
        """End the listeners and their connections, and wait for the thread."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)

    def _work(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as problem:  # handed to the thread that started us
            self._failure = problem
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await run(self.settings, self._ready, self._stop)

    def _ready(self, smtp_port: int, imap_port: int) -> None:
        self.smtp_port, self.imap_port = smtp_port, imap_port
        self._started.set()


def main(arguments: list[str] | None = None) -> int:
    """The command line; prints one line when ready and ends on SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m conformance.peers.mail", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the mailboxes; kept between runs")
    parser.add_argument("--smtp-port", type=int, default=1025)
    parser.add_argument("--imap-port", type=int, default=1143)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--unknown", action="append", default=[], help="an address that bounces; may be repeated")
    parser.add_argument("--password", default="", help="the password of every mailbox (default: any)")
    parser.add_argument("--no-dsn", action="store_true", help="do not offer delivery notices")
    parser.add_argument("--size-limit", type=int, default=SIZE_LIMIT, help="bytes announced with SIZE")
    asked = parser.parse_args(arguments)
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    settings = Settings(
        asked.data, asked.smtp_port, asked.imap_port, asked.host, unknown=frozenset(map(str.lower, asked.unknown)),
        password=asked.password, dsn=not asked.no_dsn, size_limit=asked.size_limit,
    )  # fmt: skip

    def ready(smtp_port: int, imap_port: int) -> None:
        print(f"mail ready smtp={settings.host}:{smtp_port} imap={settings.host}:{imap_port}", flush=True)

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run(settings, ready, stop)

    try:
        asyncio.run(serve())
    except (OSError, ValueError) as problem:
        print(f"mail: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
