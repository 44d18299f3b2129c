"""Our code tables beside the concept maps of HL7 v2-to-FHIR: the same, or different for a listed reason."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from mappers import hl7v2_pid_to_fhir as pid
from mappers import hl7v2_types_to_fhir as types
from mappers.fhir_to_hl7v2_orders import PRIORITIES
from mappers.hl7v2_codes_to_fhir import INTERPRETATIONS
from mappers.hl7v2_events_to_fhir import EVENTS
from mappers.hl7v2_orders_to_fhir import ACTIONS, PRIORITY, STATUS
from mappers.hl7v2_pv1_to_fhir import CLASSES
from mappers.hl7v2_results_to_fhir import OBSERVATION_STATUS, REPORT_STATUS
from mappers.hl7v2_schedule_to_fhir import STATUS as APPOINTMENTS

OURS: Mapping[str, Mapping[str, str]] = {
    "AdministrativeSex": pid.GENDERS,
    "AddressType[Use]": {code: one.get("use", "") for code, one in types.ADDRESSES.items()},
    "AddressType[Type]": {code: one.get("type", "") for code, one in types.ADDRESSES.items()},
    "Event[EncounterStatus]": {code: event.status for code, event in EVENTS.items()},
    "ExtendedPriorityCodes": PRIORITY,
    "FillerStatusCodes[Appointment]": APPOINTMENTS,
    "InterpretationCodes": {code: code for code in INTERPRETATIONS},
    "MaritalStatus": pid.MARITAL,
    "NameType": types.NAME_USES,
    "ObservationResultStatusCodesInterpretation": OBSERVATION_STATUS,
    "OrderControlCode[ServiceRequest.status]": {code: STATUS[action] for code, action in ACTIONS.items()},
    "PatientClass[EncounterClass]": {code: one for code, (one, _) in CLASSES.items()},
    "ResultStatus[Non-Queries]": REPORT_STATUS,
    "TelecommunicationEquipmentType": types.TELECOM_SYSTEMS,
    "TelecommunicationUseCode": types.TELECOM_USES,
}
_NO_V3 = "the published code is of table 0004, not of the value set that FR Core binds; N is no stay"
_ACTED = "not asked of us by any flow of the téléradiologie guide: noted, not acted upon"
_OTHERS = ("AF", "CR", "DF", "DR", "FU", "HD", "HR", "OC", "OD", "OH", "OK", "PR", "PY", "RL", "RO", "RQ")
DIFFERENT: Mapping[str, Mapping[str, str]] = {
    "AdministrativeSex": dict.fromkeys("AON", "the INS knows male, female and unknown only; the code is noted"),
    "Event[EncounterStatus]": {
        "A04": "in PAM France A04 is an outpatient who is here, not one who is planned",
        "A08": "taken as A31 with the movement it repeats",
    },
    "MaritalStatus": {
        "T": "unreported says nothing", "U": "unknown says nothing", "O": "other is no code of the value set",
        "B": "unmarried is not told from single, widowed or divorced",
    },
    "NameType": {"R": "a registered name would be a second official one beside L, the birth name of PAM France"},
    "OrderControlCode[ServiceRequest.status]": {
        "NW": "an order carries no consent: it is a draft until somebody completes it",
        "CA": "the guide takes a request back by CA",
        **dict.fromkeys(_OTHERS, _ACTED),
    },
    "TelecommunicationEquipmentType": {"CP": "a phone; that it is mobile stands in ContactPoint.use"},
    "PatientClass[EncounterClass]": {
        "R": "séances have no class of their own: ambulatory",
        **dict.fromkeys("BCNU", _NO_V3),
    },
}  # fmt: skip


def published(folder: Path, name: str) -> dict[str, set[str]]:
    """The codes of a map that it gives an equivalent, with all it gives under some condition."""
    path = folder / f"HL7 Concept Map_ {name} - Sheet1.csv"
    found: dict[str, set[str]] = {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for row in list(csv.reader(lines))[2:]:
            if len(row) > 6 and row[0].strip() and row[6].strip():
                found.setdefault(row[0].strip(), set()).add(row[6].strip())
    return found


@pytest.mark.needs("shared")
@pytest.mark.parametrize("name", sorted(OURS))
def test_our_codes_are_the_published_ones_or_the_reason_is_listed(name: str, shared: Path) -> None:
    theirs = published(shared / "v2-to-fhir" / "codesystems", name)
    ours = {code.upper(): value for code, value in OURS[name].items()}
    assert theirs
    differ = {code for code, values in theirs.items() if ours.get(code.upper(), "") not in values}
    assert differ == set(DIFFERENT.get(name, {})), "ours and theirs, or a listed difference that is none any more"


@pytest.mark.needs("shared")
def test_every_priority_we_send_is_a_published_one(shared: Path) -> None:
    theirs = published(shared / "v2-to-fhir" / "codesystems", "ExtendedPriorityCodes")
    assert set(PRIORITIES.values()) <= set(theirs)
    assert all(PRIORITY[theirs_code] in theirs[theirs_code] for theirs_code in theirs)


def test_every_difference_has_a_reason_and_a_table() -> None:
    assert set(DIFFERENT) <= set(OURS)
    assert all(len(reason) > 15 for reasons in DIFFERENT.values() for reason in reasons.values())
