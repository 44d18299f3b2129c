"""ZAM: a platform tells what became of a document we sent. It settles the second leg of that delivery.

Source: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, business acknowledgements.
"""

from __future__ import annotations

from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.store.session import Tx
from mappers import hl7v2_to_fhir


def zam(arrival: Arrival) -> Decide:
    """What a business acknowledgement means. Raises Refused as the mapper does; Rejected (204) when writing."""
    said = hl7v2_to_fhir.zam(arrival.msg)
    text = f"{said.event} {'accepted' if said.ok else 'refused'} {said.error_code} {said.error_text}".strip()

    def decide(_: Draft) -> Taken:
        taken = Taken()

        def settle(tx: Tx) -> str:
            delivery = tx.delivery(said.control_id)
            if delivery is None:
                raise rejected(f"no message with MSH-10 {said.control_id[:50]} was sent from here", "OBX^1^4", "204")
            awaited = delivery.second_leg == "zam" and said.event == "Z01"
            state = "confirmed" if said.ok else "refused"
            settled = awaited and tx.confirm(delivery.id, state, text, arrival.inbox_id)
            late = "was settled before" if awaited else "none was awaited"
            taken.keys[:] = [("delivery", delivery.id), ("case", delivery.case_key), ("patient", delivery.patient)]
            return text if settled else f"{text} ({late})"

        taken.also = settle
        return taken

    return decide
