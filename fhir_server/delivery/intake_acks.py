"""ZAM: a platform tells what became of a document we sent. It settles the second leg of that delivery.

Source: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, business acknowledgements.
"""

from __future__ import annotations

from fhir_server.context import SYSTEM
from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.store.session import Tx
from hl7v2 import ack
from hl7v2.message import Message
from mappers import hl7v2_to_fhir


def zam(arrival: Arrival) -> Decide:
    """What a business acknowledgement means. Raises Refused as the mapper does; Rejected (204) when writing."""
    said = hl7v2_to_fhir.zam(arrival.msg)
    text = f"{said.event} {'accepted' if said.ok else 'refused'} {said.error_code} {said.error_text}".strip()
    sent = _sent(arrival, said.control_id)

    def decide(_: Draft) -> Taken:
        taken = Taken()

        def settle(tx: Tx) -> str:
            delivery = tx.delivery(said.control_id)
            if delivery is None or sent is None:
                raise rejected(f"no message with MSH-10 {said.control_id[:50]} was sent from here", "OBX^1^4", "204")
            taken.keys[:] = [("delivery", delivery.id), ("case", delivery.case_key), ("patient", delivery.patient)]
            if delivery.second_leg != "zam" or said.event != "Z01":
                return f"{text} (none was awaited)"
            known, stranger = _speaks_for(arrival, sent)
            if not known:
                return f"{text} ({stranger}, which no establishment declares: settles nothing)"
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
