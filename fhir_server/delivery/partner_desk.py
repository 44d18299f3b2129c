"""The operator's word with a partner: whether it takes connections, and one HL7 v2 message sent by hand.

Hides that neither is a delivery: nothing is queued, frozen or repeated, and nothing waits its turn. The rules about
addresses and the TLS are those of a delivery all the same. A destination is where its Endpoint says now, not where
deliveries were addressed that still wait.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.delivery import transports
from fhir_server.delivery.answers import UNKNOWN, acknowledged, unsettled
from fhir_server.delivery.transports import Receipt
from fhir_server.desk.lanes import address_of
from fhir_server.errors import Invalid, NotFound, PasserelleError, RuleBroken, Silent, Unavailable
from fhir_server.store.outbox_desk import Lane
from hl7v2.ack import control_id_of

Args = Mapping[str, str]
# Whoever asks by HTTP keeps a thread of the server until there is an answer: no destination's own patience counts here.
ECHO_SECONDS, SEND_SECONDS = 30.0, 60.0
_SCHEMES = ("mllp://", "mllps://")
# Short enough for the audit row to hold it whole, and nothing in it that is not where the message goes.
_ADDRESS = re.compile(r"mllps?://([A-Za-z0-9.-]{1,80}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


def reached(hub: Hub, caller: Caller, args: Args) -> dict[str, Any]:
    """Whether a destination takes connections from this server, within 30 s. Raises Unavailable when it does not."""
    lane, address = _lane(hub, caller, args.get("lane", ""))
    told = transports.reach(address, hub.settings, at_most=ECHO_SECONDS)
    if told.verdict != "sent":
        raise Unavailable(f"{lane.name} is not reached ({told.code}): {told.text}")
    return {"lane": lane.name, "endpoint": address, "reached": True, "text": told.text}


def sent(hub: Hub, caller: Caller, args: Args) -> dict[str, Any]:
    """Send one HL7 v2 message, once, and tell its acknowledgement, whatever it says, or (`outcome` unknown) what came
    instead of one. `to` is a destination as `lane list` names it, or `mllp://host:port` (`mllps://`) under the rules of
    deliveries; the message is `content` (text, sent as UTF-8, its lines ended by CR) or `data` (base64, sent as it is,
    without LF). The partner has 60 s, or less where it is to answer sooner.

    Raises Invalid for what is no message, NotFound for an unknown destination, RuleBroken where nothing may be sent,
    Unavailable when it was not sent, Silent when it was and nothing came.
    """
    to, message, seconds = args.get("to", ""), _message(args), hub.settings.send_timeout_seconds
    endpoint = to
    if to.startswith(_SCHEMES):
        if not _ADDRESS.fullmatch(to):
            raise Invalid("an address is mllp://host:port or mllps://host:port", expression="to", http=400)
    else:
        lane, endpoint = _lane(hub, caller, to)
        if lane.paused:
            raise RuleBroken(f"{lane.name} is paused: {lane.paused_note}")
        seconds = lane.answer_within / 1_000_000 or seconds
    told = transports.once(endpoint, message, hub.settings, seconds, at_most=SEND_SECONDS)
    where = {"to": to, "endpoint": endpoint}
    if told.answer is not None:
        return where | unsettled(told.text, told.answer)
    if not told.ack:
        raise _unanswered(to, told, seconds)
    return where | acknowledged(told.ack)


def _unanswered(to: str, told: Receipt, seconds: float) -> PasserelleError:
    """Nothing came: the message did not leave, or nobody knows what became of it."""
    if told.verdict in ("held", "permanent"):
        return RuleBroken(f"{to} was sent nothing ({told.code}): {told.text}")
    if told.verdict == "transient":
        return Unavailable(f"{to} was not sent the message ({told.code}): {told.text}")
    longer = f"; by hand it has {SEND_SECONDS:g} s, a delivery {seconds:g} s" if seconds > SEND_SECONDS else ""
    return Silent(f"{UNKNOWN}: {to} did not answer ({told.code}): {told.text}{longer}")


def _lane(hub: Hub, caller: Caller, name: str) -> tuple[Lane, str]:
    """A destination and where it is now."""
    with hub.store.read(caller) as snapshot:
        found = snapshot.lanes(name) if name else []
        address = address_of(snapshot, found[0]) if found else ""
    if not found:
        raise NotFound(f"there is no lane {name[:80]}; `passerelle lane list` shows them")
    if not address:
        raise RuleBroken(f"{name} has no address any more: its Endpoint was deleted")
    return found[0], address


def _message(args: Args) -> bytes:
    content, data = args.get("content", ""), args.get("data", "")
    if bool(content) == bool(data):
        raise Invalid("give the message as `content` (text) or as `data` (base64)", expression="content", http=400)
    try:
        raw = base64.b64decode(data, validate=True) if data else content.encode()
    except binascii.Error as error:
        raise Invalid(f"data is no base64: {error}", expression="data", http=400) from error
    if content:
        raw = raw.replace(b"\r\n", b"\r").replace(b"\n", b"\r")
    given = "data" if data else "content"
    if not raw.startswith(b"MSH"):
        raise Invalid("an HL7 v2 message begins with MSH", expression=given, http=400)
    if b"\n" in raw:
        # What listens for lines at an address gets none it could take for its own language.
        raise Invalid("the lines of an HL7 v2 message end by CR, without LF", expression=given, http=400)
    try:
        number = control_id_of(raw)
    except ValueError as error:
        raise Invalid(f"no HL7 v2 message: {error}", expression=given, http=400) from error
    if not number:
        raise Invalid("MSH-10 is missing, which the acknowledgement names", expression=given, http=400)
    return raw
