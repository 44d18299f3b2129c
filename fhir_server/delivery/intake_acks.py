"""ZAM: a platform tells what became of a document we sent. It settles the second leg of that delivery, or adds to it.

A message asks by its metadata what it is to be told: reception by the DMP (Z01), by the recipient's mail server (Z02),
reading (Z03). The first of these that it asks for settles; the others stand beside what settled, a refusal as well.

Source: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, business acknowledgements, ACK_RECEPTION and
ACK_LECTURE_MSS.
"""

from __future__ import annotations

from typing import Final

from fhir_server.context import SYSTEM
from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.store.session import Tx
from hl7v2 import ack
from hl7v2.message import Message, Unreadable, parse
from mappers import hl7v2_to_fhir

_MAILED: Final = ("DESTMSSANTEPS", "DESTMSSANTEPAT")
_ASKED: Final = (
    ("Z01", "ACK_RECEPTION", ("DESTDMP",)),
    ("Z02", "ACK_RECEPTION", _MAILED),
    ("Z03", "ACK_LECTURE_MSS", _MAILED),
)
"""What a message asks to be told: event, the metadata that asks, and the roads one of which must be taken."""


def zam(arrival: Arrival) -> Decide:
    """What a business acknowledgement means. Raises Refused as the mapper does; Rejected (204) when writing."""
    said = hl7v2_to_fhir.zam(arrival.msg)
    parts = (said.event, "accepted" if said.ok else "refused", said.recipient, said.error_code, said.error_text)
    text = " ".join(filter(None, parts))
    sent = _sent(arrival, said.control_id)
    asked = _asked(sent or b"")

    def decide(_: Draft) -> Taken:
        taken = Taken()

        def settle(tx: Tx) -> str:
            delivery = tx.delivery(said.control_id)
            if delivery is None or sent is None:
                raise rejected(f"no message with MSH-10 {said.control_id[:50]} was sent from here", "OBX^1^4", "204")
            taken.keys[:] = [("delivery", delivery.id), ("case", delivery.case_key), ("patient", delivery.patient)]
            if delivery.second_leg != "zam":
                return f"{text} (none was awaited)"
            known, stranger = _speaks_for(arrival, sent)
            if not known:
                return f"{text} ({stranger}, which no establishment declares: settles nothing)"
            if said.event != asked[0]:
                tx.remark(delivery.id, text)
                why = f"{asked[0]} settles" if said.event in asked else "not asked for"
                return f"{text} ({'; '.join(filter(None, (why, stranger)))})"
            state = "confirmed" if said.ok else "refused"
            settled = tx.confirm(delivery.id, state, text, arrival.inbox_id)
            remarks = "; ".join(filter(None, ("" if settled else "was settled before", stranger)))
            return f"{text} ({remarks})" if remarks else text

        taken.also = settle
        return taken

    return decide


def _sent(arrival: Arrival, delivery_id: str) -> bytes | None:
    """What was sent under that id and may be acknowledged, None when nothing was sent. It never changes, and is no
    small thing to read while the transaction that settles it holds its locks."""
    with arrival.hub.store.read(SYSTEM) as snapshot:
        delivery = snapshot.delivery(delivery_id)
        if delivery is None:
            return None
        return snapshot.payload(delivery_id) if delivery.second_leg == "zam" else b""


def _asked(sent: bytes) -> tuple[str, ...]:
    """The events a message asks for; one that says nothing of it awaits the DMP."""
    try:
        msg = parse(sent)
    except Unreadable:
        return ("Z01",)
    said = {obx.text(3) for obx in msg.all("OBX") if obx.text(3, 3) == "MetaDMPMSS" and obx.text(5) == "Y"}
    found = tuple(event for event, asks, roads in _ASKED if asks in said and said.intersection(roads))
    return found or ("Z01",)


def _speaks_for(arrival: Arrival, sent: bytes) -> tuple[bool, str]:
    """Whether a sender may say what became of a message, and what is odd about it.

    The application and facility we wrote to (MSH-5, MSH-6) may; so may another one that an establishment declares,
    since a platform can acknowledge under a second name: that is noted.
    """
    ours = ack.header_of(sent)
    wanted, found = _pair(ours, 5) if ours else ("", ""), _pair(arrival.msg, 3)
    if not any(wanted) or found == wanted:
        return True, ""
    told = f"from {'|'.join(found)[:80]}, the document went to {'|'.join(wanted)[:80]}"
    return arrival.hub.sites.of_message(*found) is not None, told


def _pair(msg: Message, first: int) -> tuple[str, str]:
    return msg.text(f"MSH-{first}"), msg.text(f"MSH-{first + 1}")
