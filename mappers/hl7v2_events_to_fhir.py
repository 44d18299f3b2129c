"""What each ADT event of IHE PAM France means for the Patient and for the Encounter, as one literal table.

Hides the event codes. Whoever stores the result reads actions only: which record is created, updated, merged, moved
or taken back, and what state the stay is in afterwards. A cancellation carries in PV1 the state that is true again,
so that it is an update like any other; only the cancellation of what began a stay cancels the stay itself.

Sources: IHE PAM France 2.11 (ITI-30, ITI-31, ZBE); HL7 v2.5 chapter 3; HL7 v2-to-FHIR Event[EncounterStatus].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

PatientAction = Literal["create", "update", "merge", "change-ids", "keep"]
"""create and update both mean "this is the person": the hub matches first. `keep`: the event says nothing of traits."""
StayAction = Literal["none", "create", "update", "cancel", "move"]
Action = Literal["identity", "movement", "merge", "change-ids"]


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `status` is Encounter.status afterwards ('' = no stay); `cancels` the event it takes back.

    `pending` events announce: nothing of the stay changes yet, whatever PV1 says. `ends` allows PV1-45 to end the stay.
    """

    name: str
    patient: PatientAction
    stay: StayAction = "none"
    status: str = ""
    cancels: str = ""
    pending: bool = False
    ends: bool = True


EVENTS: Final[Mapping[str, Event]] = {
    # ITI-30, identities
    "A28": Event("identity created", "create"),
    "A31": Event("identity updated", "update"),
    "A40": Event("identities merged", "merge"),
    "A47": Event("identifiers changed", "change-ids"),
    # ITI-31, a stay begins
    "A01": Event("admission", "update", "create", "in-progress"),
    "A04": Event("outpatient registered", "update", "create", "in-progress"),
    "A11": Event("admission cancelled", "update", "cancel", "cancelled", cancels="A01"),
    "A05": Event("pre-admission", "update", "create", "planned", ends=False),
    "A38": Event("pre-admission cancelled", "update", "cancel", "cancelled", cancels="A05"),
    "A14": Event("pending admission", "update", "create", "planned", pending=True, ends=False),
    "A27": Event("pending admission cancelled", "update", "cancel", "cancelled", cancels="A14"),
    # it changes
    "A06": Event("outpatient becomes inpatient", "update", "update", "in-progress"),
    "A07": Event("inpatient becomes outpatient", "update", "update", "in-progress"),
    "A02": Event("transfer", "update", "update", "in-progress"),
    "A12": Event("transfer cancelled", "update", "update", "in-progress", cancels="A02"),
    "A54": Event("attending doctor changed", "update", "update", "in-progress"),
    "A55": Event("change of attending doctor cancelled", "update", "update", "in-progress", cancels="A54"),
    "A21": Event("leave of absence", "update", "update", "onleave"),
    "A52": Event("leave cancelled", "update", "update", "in-progress", cancels="A21"),
    "A22": Event("return from leave", "update", "update", "in-progress"),
    "A53": Event("return from leave cancelled", "update", "update", "onleave", cancels="A22"),
    "A44": Event("stay moved to another patient", "keep", "move"),
    "A15": Event("pending transfer", "update", "update", "in-progress", pending=True, ends=False),
    "A26": Event("pending transfer cancelled", "update", "update", "in-progress", cancels="A15", pending=True,
                 ends=False),
    "A16": Event("pending discharge", "update", "update", "in-progress", pending=True, ends=False),
    "A25": Event("pending discharge cancelled", "update", "update", "in-progress", cancels="A16", pending=True,
                 ends=False),
    # it ends
    "A03": Event("discharge", "update", "update", "finished"),
    "A13": Event("discharge cancelled", "update", "update", "in-progress", cancels="A03", ends=False),
    # a correction: what it means depends on ZBE-4 and ZBE-6
    "Z99": Event("movement corrected", "update", "update", "in-progress"),
    # base HL7 only: of a stay that nobody announced it does not tell the state
    "A08": Event("update", "update", "update", "unknown"),
}  # fmt: skip

CANCELLED_BY: Final[Mapping[str, str]] = {
    **{event.cancels: trigger for trigger, event in EVENTS.items() if event.cancels},
    "A04": "A11",
}
"""Event -> the event that takes it back; A11 serves A01 and A04."""

_ACTIONS: Final[Mapping[str, Action]] = {"merge": "merge", "change-ids": "change-ids"}


def action_of(trigger: str) -> Action:
    """What a message is about in one word."""
    event = EVENTS.get(trigger)
    if event is None:
        return "movement"
    return _ACTIONS.get(event.patient, "identity" if event.stay == "none" else "movement")


def effective(trigger: str, action: str, original: str) -> str:
    """The event whose effect a message has: for Z99 that of ZBE-6, and its cancellation when ZBE-4 is CANCEL.

    `action` is ZBE-4, `original` ZBE-6. A Z99 that names no event corrects the admission.
    """
    if trigger != "Z99":
        return trigger
    if original not in EVENTS or original == "Z99":
        return "A01" if action != "CANCEL" else "Z99"
    return CANCELLED_BY.get(original, original) if action == "CANCEL" else original


def stay_action(trigger: str, action: str, original: str) -> StayAction:
    """What happens to the stay: a Z99 that corrects an admission is an update, that cancels one a cancellation."""
    event = EVENTS.get(effective(trigger, action, original))
    if event is None:
        return "none"
    return "update" if trigger == "Z99" and event.stay == "create" else event.stay
