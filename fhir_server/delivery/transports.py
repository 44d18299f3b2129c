"""How frozen bytes leave the house, by URL scheme, and what each outcome means: one literal table.

Wires raise plain facts (stage, code, text); here a fact becomes sent, transient, ambiguous or permanent.
Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1 (AA integrated, AE do not resend, AR may be resent);
RFC 5321 section 4.2.1 (2yz, 4yz, 5yz replies).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from fhir_server.config import Settings
from fhir_server.delivery.connections import Connections, Way, tls_files
from fhir_server.delivery.line import Line
from fhir_server.security.addresses import Refused, allowed_by, destination
from fhir_server.security.certificates import mail_credentials, towards_partners
from fhir_server.store.leases import Claim
from hl7v2 import ack
from hl7v2.mllp import MllpFault, Sender
from mssante import smtp

Verdict = Literal["sent", "transient", "ambiguous", "permanent", "held"]

# (scheme, stage, class of code) -> verdict. The class is the whole code, its first character + "yz", or "*".
TABLE: Mapping[tuple[str, str, str], Verdict] = {
    ("mllp", "ack", "AA"): "sent",
    ("mllp", "ack", "CA"): "sent",
    ("mllp", "ack", "AE"): "permanent",
    ("mllp", "ack", "CE"): "permanent",
    ("mllp", "ack", "AR"): "transient",
    ("mllp", "ack", "CR"): "transient",
    ("mllp", "ack", "*"): "ambiguous",
    ("mllp", "connect", "*"): "transient",
    ("mllp", "send", "framing"): "permanent",
    ("mllp", "send", "*"): "transient",
    ("mllp", "answer", "*"): "ambiguous",
    ("mssante", "answer", "250"): "sent",
    ("mssante", "connect", "*"): "transient",
    ("mssante", "tls", "*"): "transient",
    ("mssante", "auth", "*"): "transient",
    ("mssante", "mail", "4yz"): "transient",
    ("mssante", "mail", "5yz"): "permanent",
    ("mssante", "rcpt", "4yz"): "transient",
    ("mssante", "rcpt", "5yz"): "permanent",
    ("mssante", "data", "4yz"): "transient",
    ("mssante", "data", "5yz"): "permanent",
    ("mssante", "answer", "4yz"): "transient",
    ("mssante", "answer", "5yz"): "permanent",
    ("mssante", "answer", "*"): "ambiguous",
}
# Sent, no answer: send the same bytes again (the receiver knows the MSH-10 or Message-ID), or wait for a person. A
# destination may have its own policy (`lane.on_silence`).
AMBIGUOUS: Mapping[str, Literal["resend", "hold"]] = {
    "mllp": "resend",
    "mssante": "resend",
    "pull": "resend",
}
# What an answer has in any case, however long the way there took.
_LEAST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one attempt: the verdict, the partner's own words, and the acknowledgement's bytes if any.
    `answer` is what came instead of one: for another message, or not to be read."""

    verdict: Verdict
    code: str
    text: str
    ack: bytes = b""
    answer: bytes | None = None


def classify(scheme: str, stage: str, code: str) -> Verdict:
    """The verdict of a fact; an unknown fact before anything was sent is transient, afterwards ambiguous."""
    for key in (code, f"{code[:1]}yz", "*"):
        verdict = TABLE.get((scheme, stage, key))
        if verdict:
            return verdict
    return "ambiguous" if stage in ("answer", "ack") else "transient"


def on_silence(claim: Claim) -> Literal["resend", "hold"]:
    """What to do with a delivery that was sent and not answered: the destination's policy, else its transport's."""
    return claim.on_silence or AMBIGUOUS.get(claim.delivery.endpoint.split(":")[0], "resend")


def send(claim: Claim, payload: bytes, settings: Settings, line: Line, connections: Connections) -> Receipt:
    """Send a claimed delivery once, over one of `connections` where its destination wants that. Never raises for what
    a partner does; LeaseLost when `line` forbids it."""
    endpoint = claim.delivery.endpoint
    try:
        sender = _SENDERS.get(urlsplit(endpoint).scheme)
        if sender is None:
            return Receipt("permanent", "scheme", f"no transport speaks {endpoint}; correct the Endpoint's address")
        return sender(claim, payload, settings, line, connections)
    except ValueError as error:
        # A port or a mail address nobody can use: it will not become one by waiting.
        return Receipt("permanent", "address", f"{endpoint} cannot be used: {error}")


def _answer_seconds(claim: Claim, default: float) -> float:
    """How long the destination has to answer: its own policy, else the installation's."""
    return claim.answer_within / 1_000_000 or default


def _send_mllp(claim: Claim, payload: bytes, settings: Settings, line: Line, connections: Connections) -> Receipt:

    def converse(way: Way, made: Callable[[], Sender]) -> Receipt:
        with connections.borrowed(claim, way, made) as sender:
            sender.before_send = line.may_send
            raw = sender.send(payload, timeout=_answer_seconds(claim, settings.send_timeout_seconds))
            line.let_go()
        return _acknowledged(raw)

    return _by_mllp(claim.delivery.endpoint, settings, converse)


def _acknowledged(raw: bytes) -> Receipt:
    told = ack.read(raw)
    words = told.text or "; ".join(error.text for error in told.errors if error.text)
    return Receipt(classify("mllp", "ack", told.code), told.code, words, raw)


def _by_mllp(endpoint: str, settings: Settings, converse: Callable[[Way, Callable[[], Sender]], Receipt]) -> Receipt:
    """What came of a conversation with an MLLP partner, or of the attempt to hold one: `converse` is handed the way
    there, and what makes a connection."""
    parts = urlsplit(endpoint)
    if not parts.hostname or not parts.port:
        return Receipt("permanent", "address", f"{endpoint} has no host and port")
    try:
        address, secured = destination(parts.hostname, parts.port, allowed_by(settings)), parts.scheme == "mllps"
        way = Way(address, parts.hostname, tls_files(settings) if secured else None)

        def made() -> Sender:
            tls = towards_partners(settings) if secured else None
            return Sender(address, timeout=settings.send_timeout_seconds, tls=tls, server_name=way.host)

        return converse(way, made)
    except Refused as refused:
        return Receipt("held", "address", str(refused))
    except socket.gaierror as unknown:
        return Receipt(classify("mllp", "connect", "name"), "name", f"{parts.hostname} has no address now: {unknown}")
    except MllpFault as fault:
        came = fault.answer if fault.stage == "ack" else None
        return Receipt(classify("mllp", fault.stage, fault.code), fault.code, fault.text, answer=came)


def _send_mail(claim: Claim, payload: bytes, settings: Settings, line: Line, _connections: Connections) -> Receipt:
    host, _, port = settings.smtp.rpartition(":")
    if not host or not port.isdigit():
        return Receipt("transient", "address", "no MSSanté operator is configured (setting `smtp`, host:port)")
    address = urlsplit(claim.delivery.endpoint)
    sender = parse_qs(address.query).get("from", [""])[0]
    if not sender:
        raise ValueError("it names no sender (?from=)")
    try:
        accepted = smtp.send(
            (host, int(port)),
            sender,
            [address.path],
            payload,
            envelope_id=claim.delivery.id,
            security=settings.smtp_security,
            context=towards_partners(settings) if settings.smtp_security != "none" else None,
            credentials=mail_credentials(settings),
            timeout=settings.send_timeout_seconds,
            answer_timeout=_answer_seconds(claim, max(settings.send_timeout_seconds, settings.mail_answer_seconds)),
            before_send=line.may_send,
        )
    except smtp.SmtpFault as fault:
        return Receipt(classify("mssante", fault.stage, str(fault.code)), str(fault.code), fault.text)
    return Receipt("sent", "250", accepted.text)


def reach(endpoint: str, settings: Settings, *, at_most: float) -> Receipt:
    """Whether a destination takes connections from here, by the rules and the TLS of a sending; nothing is sent. "sent"
    when it does. Once its name is looked up, it has `at_most` seconds for that."""

    def connect(way: Way, made: Callable[[], Sender]) -> Receipt:
        with closing(made()) as sender:
            sender.connect()
        return Receipt("sent", "connected", f"{way.host}:{way.address[1]} takes connections; nothing was sent")

    # The connection has one half of it, the handshake the other.
    limited = replace(settings, send_timeout_seconds=min(settings.send_timeout_seconds, at_most / 2))
    return _by_hand(endpoint, limited, connect)


def once(endpoint: str, payload: bytes, settings: Settings, answer_seconds: float, *, at_most: float) -> Receipt:
    """Send bytes that are no delivery to an MLLP partner, by the rules and the TLS of one, and never again.
    `answer_seconds` is how long it may take to answer; no more than `at_most` seconds go by until it is connected to
    and has answered, beside those in which it is slow to read (as many again, and 8 s for a megabyte)."""
    until = time.monotonic() + at_most

    def converse(_: Way, made: Callable[[], Sender]) -> Receipt:
        with closing(made()) as sender:
            sender.connect()
            left = max(round(until - time.monotonic(), 1), _LEAST_SECONDS)
            return _acknowledged(sender.send(payload, timeout=min(answer_seconds, left)))

    return _by_hand(endpoint, settings, converse)


def _by_hand(endpoint: str, settings: Settings, converse: Callable[[Way, Callable[[], Sender]], Receipt]) -> Receipt:
    try:
        scheme = urlsplit(endpoint).scheme
        if scheme in ("mllp", "mllps"):
            return _by_mllp(endpoint, settings, converse)
    except ValueError as error:
        return Receipt("permanent", "address", f"{endpoint} cannot be used: {error}")
    if scheme == "pull":
        return Receipt("held", "pull", "its partner fetches: there is nobody to connect to")
    return Receipt("held", "scheme", f"whether {endpoint} is there is known by sending: look at its last attempts")


_SENDERS: Mapping[str, Callable[[Claim, bytes, Settings, Line, Connections], Receipt]] = {
    "mllp": _send_mllp,
    "mllps": _send_mllp,
    "mssante": _send_mail,
}
