"""What a delivery of a report was, before it is made again: what it fed, and what its addressee has shown never to have
got.

A delivery that may have arrived counts as held by its addressee, so that nobody gets two first documents. When a person
has given it up and the application then refuses what should replace it, because it does not know the one that is
replaced, both say that it never came: made again, the replacement is a first document.

Source: error-codes of the CI-SIS volet "Transmission d'un document CDA-R2 en HL7v2" towards an LPS (ERR-5 900: not the
version that the receiver has); HL7 table 0357 (204 unknown key identifier, in TXA: that of the document).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fhir_server.context import View
from fhir_server.store.lanes import Delivery
from fhir_server.store.outbox_desk import Attempt
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise import overtaken, succession
from hl7v2 import ack

# ERR-5 that speaks of the document; without one, ERR-3 with a place in TXA.
_NOT_THE_VERSION, _UNKNOWN_KEY = "900", "204"


@dataclass(frozen=True, slots=True)
class Remade:
    """A delivery to be made again: its `lane`, whether it `fed` the DMP or was to take something back there, and the
    earlier ones that never came (`lost`)."""

    lane: str
    fed: bool = False
    lost: frozenset[str] = frozenset()


def remade(snapshot: Snapshot, delivery: Delivery, view: View) -> Remade:
    """What is to be known of a delivery that is made again; `view` reads the same snapshot."""
    chain = list(_chain(snapshot, delivery))
    return Remade(delivery.lane, any(one.second_leg == "zam" for one in chain), frozenset(_lost(snapshot, chain, view)))


def _chain(snapshot: Snapshot, delivery: Delivery) -> Iterator[Delivery]:
    """A delivery, what it was made of, and so on to the first."""
    found: Delivery | None = delivery
    while found is not None:
        yield found
        found = snapshot.delivery(found.parent) if found.parent else None


def _lost(snapshot: Snapshot, chain: list[Delivery], view: View) -> Iterator[str]:
    disowned = [one for one in chain if any(map(_unknown_there, snapshot.attempts(one.id)))]
    if not disowned:
        return
    lines = succession.recorded(view.find("DocumentReference", f"related={chain[0].document}"))
    for one in disowned:
        # Its bytes may be those of the one that it repeats, which is on record.
        recorded = next((lines[made.id] for made in chain[chain.index(one) :] if made.id in lines), None)
        before = snapshot.delivery(recorded[2]) if recorded and recorded[2] else None
        if before is not None and _given_up(snapshot, before):
            yield before.id


def _given_up(snapshot: Snapshot, before: Delivery) -> bool:
    """Whether a delivery was cancelled, nothing in its place may have arrived, and no late word says that it did."""
    told = any(one.outcome == "late: sent" for one in snapshot.attempts(before.id))
    instead = (overtaken.handed(snapshot, again) for again in snapshot.replays(before.id))
    return before.state == "cancelled" and not told and all(fate == "ended" for fate in instead)


def _unknown_there(attempt: Attempt) -> bool:
    """Whether the application at the other end refused because it does not know the document that is replaced."""
    if attempt.outcome.removeprefix("late: ") != "error" or not attempt.ack:
        return False
    try:
        said = ack.read(attempt.ack)
    except ValueError:
        return False
    if said.code != "AE" or said.application_code:
        return said.code == "AE" and said.application_code == _NOT_THE_VERSION
    return any(one.code == _UNKNOWN_KEY and one.location.startswith("TXA") for one in said.errors)
