"""ADT: which of the four things a message is about, and the movement it tells.

Sources: IHE PAM France 2.11 (ITI-30, ITI-31); `mappers.hl7v2_events_to_fhir.EVENTS` says what each event means.
"""

from __future__ import annotations

from fhir_server.delivery import intake_merges
from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.delivery.intake_patients import record_person, who
from fhir_server.delivery.intake_stays import check_cancel, record_stay
from hl7v2 import check
from mappers import hl7v2_to_fhir
from mappers.hl7v2_to_fhir import AdtResult


def adt(arrival: Arrival) -> Decide:
    """What an ADT means. Raises Rejected for an A08 where the port takes none, Refused as the mapper does."""
    msg = arrival.msg
    if msg.trigger == "A08" and arrival.port.a08 == "refuse" and check.is_pam_fr(msg):
        raise rejected("IHE PAM France has no A08; send A31, or Z99 to correct a movement", "MSH^1^9^1^2", "201")
    said = [hl7v2_to_fhir.adt(part, arrival.site) for part in hl7v2_to_fhir.split(msg)]

    def decide(draft: Draft) -> Taken:
        taken = Taken()
        for one in said:
            _one(arrival, draft, one.value, taken)
            taken.told(one.losses)
        return taken

    return decide


def _one(arrival: Arrival, draft: Draft, result: AdtResult, taken: Taken) -> None:
    if result.action == "merge":
        intake_merges.merged(arrival, draft, result, taken)
    elif result.action == "change-ids":
        intake_merges.renamed(arrival, draft, result, taken)
    elif result.stay_action == "move":
        intake_merges.moved(arrival, draft, result, taken)
    else:
        person = who(draft, result.patient, arrival.hub.sites)
        check_cancel(arrival, draft, result, person.reference)
        reference = record_person(arrival, draft, result, person, taken)
        if result.encounter is not None:
            record_stay(arrival, draft, result, reference, taken)
