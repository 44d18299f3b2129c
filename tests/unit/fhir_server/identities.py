"""Persons as they arrive, for the tests of matching and of what may be written: the demo's, bent in one way each."""

from __future__ import annotations

import copy
from typing import Any

from hubs import PARTNER

from fhir_server.changes import Applied, Change, Hub, apply
from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.patients.identity import RECONCILE_TAG
from fhir_server.patients.sites import load_sites

SITES_ = load_sites(SITES)
INS = people.ins(people.PATIENTS[0][5])
QUERY = f"identifier={people.INS_SYSTEM}|{INS}"
NIR, NIA = "urn:oid:1.2.250.1.213.1.4.8", "urn:oid:1.2.250.1.213.1.4.9"


def person(index: int = 0, *, without: str = "", **changes: Any) -> dict[str, Any]:
    """One of the demo's patients; `without` is the system of identifiers to leave out."""
    out = copy.deepcopy(people.patient(index))
    out["identifier"] = [one for one in out["identifier"] if one["system"] != without]
    return out | changes


def without(patient: dict[str, Any], system: str) -> dict[str, Any]:
    return patient | {"identifier": [i for i in patient["identifier"] if i["system"] != system]}


def named(given: str = "LUCIE", family: str = "MARTIN-TEST", **changes: Any) -> dict[str, Any]:
    return person(name=[{"use": "official", "family": family, "given": [given]}], **changes)


CHANGES: dict[str, dict[str, Any]] = {
    "family": {"family": "DURAND-TEST"},
    "given": {"given": "ANNE"},
    "birth_date": {"birthDate": "1994-02-12"},
    "gender": {"gender": "male"},
}


def changed(*traits: str, qualified: bool = True) -> dict[str, Any]:
    out = named(id="new", **{name: value for trait in traits for name, value in CHANGES[trait].items()})
    return out if qualified else unqualified(out)


def unqualified(patient: dict[str, Any]) -> dict[str, Any]:
    """The same person in a message that says nothing of status and INS."""
    out = without(patient, people.INS_SYSTEM)
    return out | {"extension": [e for e in out["extension"] if "reliability" not in e["url"]]}


def with_status(patient: dict[str, Any], code: str) -> dict[str, Any]:
    out = copy.deepcopy(patient)
    out["extension"][0]["extension"][0]["valueCoding"]["code"] = code
    return out


def with_ins(value: str, system: str = people.INS_SYSTEM, **changes: Any) -> dict[str, Any]:
    out = person(**changes)
    out["identifier"][0] |= {"system": system, "value": value}
    return out


def provisional(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A person whose identity is not qualified, as it must come: without INS."""
    out = person(index, without=people.INS_SYSTEM, **changes)
    out["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    return out


def doubtful(key: str, **changes: Any) -> dict[str, Any]:
    return person(id=key, without=people.INS_SYSTEM, meta={"tag": [RECONCILE_TAG]}, **changes)


def about(query: str) -> Change:
    basic = {"resourceType": "Basic", "code": {"text": "x"}, "subject": {"reference": f"Patient?{query}"}}
    return Change("create", "Basic", resource=basic)


def in_a_bundle(hub: Hub, *patients: dict[str, Any]) -> list[Applied]:
    changes = [
        Change(
            "create", "Patient", resource=patient, full_url=f"urn:uuid:{n}", expression=f"Bundle.entry[{n}].resource"
        )
        for n, patient in enumerate(patients)
    ]
    return apply(hub, PARTNER, changes)
