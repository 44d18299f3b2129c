"""TLS on MLLP connections: the handshake of a port of ours, and what a broken one means, in words for log and outbox.

Hides that a partner that refuses our certificate says so only after we believe to be connected (TLS 1.3): such an alert
is still about the handshake, and nothing that we sent behind it was read. Nothing but such an alert says so: after the
handshake whatever else breaks may come from a partner that has the message.

Source: RFC 8446 sections 4.4.2.4, 4.4.3 and 6.2 (https://www.rfc-editor.org/rfc/rfc8446).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from hl7v2.conversation import CHUNK, shut

# The alerts of one who was not content with the other's certificate, as the one who refused means them.
_ALERTS: Mapping[str, str] = {
    "CERTIFICATE_REQUIRED": "it demands a certificate and got none",
    "BAD_CERTIFICATE": "it demands a certificate and got none, or a damaged one",
    "UNSUPPORTED_CERTIFICATE": "it cannot use this kind of certificate",
    "CERTIFICATE_REVOKED": "it says that the certificate was revoked",
    "CERTIFICATE_EXPIRED": "it says that the certificate has expired",
    "CERTIFICATE_UNKNOWN": "it does not accept the certificate",
    "UNKNOWN_CA": "it does not know who issued the certificate",
    "ACCESS_DENIED": "the certificate gives no access there",
    "HANDSHAKE_FAILURE": "nothing was agreed on; perhaps it demands a certificate and got none",
}
# What only means this while a handshake runs: the same words may come when one side reads dirt later on.
_DURING: Mapping[str, str] = {
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks no version of TLS that is admitted here",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "this port demands a certificate and got none",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not one that is admitted here",
    "HTTP_REQUEST": "it speaks HTTP, and this port MLLP by TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS, which is demanded here",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS that is admitted here",
    "NO_SHARED_CIPHER": "no cipher is admitted on both sides",
}


class NoTls(ConnectionError):
    """A partner was turned away during the handshake; the words are the operator's."""


def welcome(secured: ssl.SSLSocket, seconds: float, farewell: float, stopping: threading.Event) -> None:
    """The server's side of the handshake, in so many seconds. Raises NoTls, else OSError; the caller closes.

    A partner that believes to be connected has begun to send: what comes is read away for `farewell` seconds, or until
    `stopping`, so that it sees why it was refused and not a reset.
    """
    secured.settimeout(seconds)
    try:
        secured.do_handshake()
    except OSError as error:
        told = no_tls(error)
        if not told:
            raise
        _read_away(secured, farewell, stopping)
        raise NoTls(told) from error


def common_name(secured: ssl.SSLSocket) -> str:
    """CN of the certificate that the partner showed and that was checked; '' for none."""
    certificate: Mapping[str, Any] = secured.getpeercert() or {}
    names = (pair for rdn in certificate.get("subject", ()) for pair in rdn)
    return next((str(value) for key, value in names if key == "commonName"), "")


def no_tls(error: OSError) -> str:
    """Why a handshake failed, in words; '' when the error says nothing of a refusal."""
    reason = _reason(error)
    told = _ALERTS.get(_alert(reason)) or _DURING.get(reason)
    detail = getattr(error, "verify_message", "") or reason.lower().replace("_", " ")
    return f"{told} ({detail})" if told else ""


def refused_unread(version: str, error: OSError) -> str:
    """Why a partner refused us behind a handshake that was over for us, in words: it read nothing that we sent since.

    `version` is what the handshake ended with (a broken connection has forgotten it). '' when that is not certain: by
    TLS 1.2 the handshake was over for both, and any error but an alert about our certificate (an answer in the clear,
    dirt on the line) may come after the message was read.
    """
    return no_tls(error) if version == "TLSv1.3" and _alert(_reason(error)) in _ALERTS else ""


def _reason(error: OSError) -> str:
    return (error.reason or "") if isinstance(error, ssl.SSLError) else ""


def _alert(reason: str) -> str:
    """The alert that a partner sent, '' for any other reason."""
    return reason.partition("ALERT_")[2]


def _read_away(secured: ssl.SSLSocket, seconds: float, stopping: threading.Event) -> None:
    shut(secured, socket.SHUT_WR)
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while not stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            secured.settimeout(left)
            if not socket.socket.recv(secured, CHUNK):
                return
