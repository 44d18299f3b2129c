"""Two records of one person, as the tests of merges find them, and what they are known by."""

from __future__ import annotations

from typing import Any

from hubs import put
from sylve import IPP, patient, person, say, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.demo import people

Resource = dict[str, Any]
SURVIVOR, GIVEN_UP = "000417", "000399"


def ids(resource: Resource, system: str = IPP) -> dict[str, str]:
    return {i["value"]: i.get("use", "") for i in resource.get("identifier", ()) if i.get("system") == system}


def ref(hub: Hub, ipp: str) -> str:
    return f"Patient/{patient(hub, ipp)['id']}"


def two(hub: Hub) -> tuple[str, str]:
    """The survivor and the record to be given up, the latter with an observation, a request of a téléexpertise..."""
    tell(hub, "adt-a01-admission")
    assert say(hub, person(GIVEN_UP, "LECOCQ", "Noémie", "19840523")).code == "AA"
    source = ref(hub, GIVEN_UP)
    put(
        hub,
        SYSTEM,
        *people.structures("127.0.0.1:9", "127.0.0.1:10"),
        *people.professionals(),
        people.consent("fusion", 0) | {"patient": {"reference": source}},
        people.request("fusion", 0, "moreau", "avis-echo", "Avis", "draft") | {"subject": {"reference": source}},
        {
            "resourceType": "Observation",
            "id": "o1",
            "status": "final",
            "code": {"text": "Poids"},
            "subject": {"reference": source},
        },
    )
    return ref(hub, SURVIVOR), source
