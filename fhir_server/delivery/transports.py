"""How frozen bytes leave the house, by URL scheme, and what each outcome means: one literal table.

Wires raise plain facts (stage, code, text); here a fact becomes sent, transient, ambiguous or permanent.
Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1 (AA integrated, AE do not resend, AR may be resent);
RFC 5321 section 4.2.1 (2yz, 4yz, 5yz replies).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from fhir_server.config import Settings
from fhir_server.store.lanes import Claim
from hl7v2 import ack, mllp
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
# Sent, no answer: send the same bytes again (the receiver knows the MSH-10 or Message-ID), or wait for a person.
AMBIGUOUS: Mapping[str, Literal["resend", "hold"]] = {"mllp": "resend", "mssante": "resend"}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one attempt: the verdict, the partner's own words, and the acknowledgement's bytes if any."""

    verdict: Verdict
    code: str
    text: str
    ack: bytes = b""


def classify(scheme: str, stage: str, code: str) -> Verdict:
    """The verdict of a fact; an unknown fact before anything was sent is transient, afterwards ambiguous."""
    for key in (code, f"{code[:1]}yz", "*"):
        verdict = TABLE.get((scheme, stage, key))
        if verdict:
            return verdict
    return "ambiguous" if stage in ("answer", "ack") else "transient"


def send(claim: Claim, settings: Settings) -> Receipt:
    """Send a claimed delivery once. Never raises for what a partner does."""
    endpoint = claim.delivery.endpoint
    try:
        sender = _SENDERS.get(urlsplit(endpoint).scheme)
        if sender is None:
            return Receipt("permanent", "scheme", f"no transport speaks {endpoint}; correct the Endpoint's address")
        return sender(claim, settings)
    except ValueError as error:
        # A port or a mail address nobody can use: it will not become one by waiting.
        return Receipt("permanent", "address", f"{endpoint} cannot be used: {error}")


def _send_mllp(claim: Claim, settings: Settings) -> Receipt:
    parts = urlsplit(claim.delivery.endpoint)
    if not parts.hostname or not parts.port:
        return Receipt("permanent", "address", f"{claim.delivery.endpoint} has no host and port")
    try:
        raw = mllp.send((parts.hostname, parts.port), claim.payload, timeout=settings.send_timeout_seconds)
    except mllp.MllpFault as fault:
        return Receipt(classify("mllp", fault.stage, fault.code), fault.code, fault.text)
    told = ack.read(raw)
    words = told.text or "; ".join(error.text for error in told.errors if error.text)
    return Receipt(classify("mllp", "ack", told.code), told.code, words, raw)


def _send_mail(claim: Claim, settings: Settings) -> Receipt:
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
            claim.payload,
            envelope_id=claim.delivery.id,
            security=settings.smtp_security,
            timeout=max(2.0, min(settings.send_timeout_seconds, settings.lease_seconds / 12)),
            # Below the lease, or a second worker would send while the first still waits.
            answer_timeout=max(5.0, settings.lease_seconds / 3),
        )
    except smtp.SmtpFault as fault:
        return Receipt(classify("mssante", fault.stage, str(fault.code)), str(fault.code), fault.text)
    return Receipt("sent", "250", accepted.text)


_SENDERS: Mapping[str, Callable[[Claim, Settings], Receipt]] = {"mllp": _send_mllp, "mssante": _send_mail}
