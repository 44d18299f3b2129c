"""The operator's word with a partner: whether it takes connections, and one HL7 v2 message sent by hand.

Hides that neither is a delivery: nothing is queued, frozen or repeated, and nothing waits its turn. The rules about
addresses and the TLS are those of a delivery all the same.
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
from fhir_server.errors import Invalid, NotFound, RuleBroken, Unavailable
from fhir_server.store.outbox_desk import Lane
from hl7v2 import ack
from hl7v2.ack import control_id_of

Args = Mapping[str, str]
_SCHEMES = ("mllp://", "mllps://")
# Short enough for the audit row to hold it whole, and nothing in it that is not where the message goes.
_ADDRESS = re.compile(r"mllps?://([A-Za-z0-9.-]{1,80}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


def reached(hub: Hub, caller: Caller, args: Args) -> dict[str, Any]:
    """Whether a destination takes connections from this server. Raises Unavailable when it does not."""
    lane = _lane(hub, caller, args.get("lane", ""))
    told = transports.reach(lane.endpoint, hub.settings)
    if told.verdict != "sent":
        raise Unavailable(f"{lane.name} is not reached ({told.code}): {told.text}")
    return {"lane": lane.name, "endpoint": lane.endpoint, "reached": True, "text": told.text}


def sent(hub: Hub, caller: Caller, args: Args) -> dict[str, Any]:
    """Send one HL7 v2 message, once, and tell its acknowledgement, whatever it says. `to` is a destination as
    `lane list` names it, or `mllp://host:port` (`mllps://`) under the rules of deliveries; the message is `content`
    (text, sent as UTF-8, its lines ended by CR) or `data` (base64, sent as it is, without LF).

    Raises Invalid for what is no message, NotFound for an unknown destination, RuleBroken where nothing may be sent,
    Unavailable when nobody answered.
    """
    to, message, seconds = args.get("to", ""), _message(args), 0.0
    endpoint = to
    if to.startswith(_SCHEMES):
        if not _ADDRESS.fullmatch(to):
            raise Invalid("an address is mllp://host:port or mllps://host:port", expression="to", http=400)
    else:
        lane = _lane(hub, caller, to)
        if lane.paused:
            raise RuleBroken(f"{lane.name} is paused: {lane.paused_note}")
        endpoint, seconds = lane.endpoint, lane.answer_within / 1_000_000
    told = transports.once(endpoint, message, hub.settings, seconds)
    if not told.ack:
        failure = RuleBroken if told.verdict in ("held", "permanent") else Unavailable
        raise failure(f"{to} did not answer ({told.code}): {told.text}")
    answer = ack.read(told.ack)
    errors = [{"location": one.location, "code": one.code, "text": one.text} for one in answer.errors]
    raw = told.ack.decode("utf-8", "replace").replace("\r", "\n")
    text = {"code": answer.code, "control_id": answer.control_id, "text": answer.text, "errors": errors}
    return {"to": to, "endpoint": endpoint, **text, "answer": raw}


def _lane(hub: Hub, caller: Caller, name: str) -> Lane:
    with hub.store.read(caller) as snapshot:
        found = snapshot.lanes(name) if name else []
    if not found:
        raise NotFound(f"there is no lane {name[:80]}; `passerelle lane list` shows them")
    return found[0]


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
