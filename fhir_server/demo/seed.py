"""What a fresh demo holds: everyone of `people`, and requests in every state, made by the same steps as real ones."""

from __future__ import annotations

from typing import Any

from fhir_server.changes import Change, Hub, apply
from fhir_server.context import SYSTEM, Caller, Role
from fhir_server.demo import people

# id, patient (from 0), requester, group, expert, steps after `ask` (or `draft` alone), reason
REQUESTS: tuple[tuple[str, int, str, str, str, tuple[str, ...], str], ...] = (
    (
        "demo-01",
        0,
        "moreau",
        "avis-echo",
        "garnier",
        ("draft",),
        "Échographie T2 : ventricules latéraux à la limite haute",
    ),
    (
        "demo-02",
        1,
        "moreau",
        "avis-echo",
        "garnier",
        (),
        "Échographie T1 : clarté nucale à 2,9 mm, avis sur la conduite à tenir",
    ),
    ("demo-03", 2, "lefevre", "avis-echo", "garnier", ("take",), "Métrorragies à 9 SA, vitalité à confirmer"),
    ("demo-04", 3, "moreau", "avis-echo", "garnier", ("take", "question"), "Placenta bas inséré à 32 SA"),
    ("demo-05", 6, "lefevre", "avis-cardio", "benali", ("take", "question", "answer"), "Palpitations, ECG joint"),
    (
        "demo-06",
        7,
        "lefevre",
        "avis-cardio",
        "benali",
        ("take", "report"),
        "Fibrillation atriale récente, anticoagulation ?",
    ),
    ("demo-07", 4, "moreau", "avis-echo", "garnier", ("take", "refuse"), "Mesure de col à 24 SA"),
    ("demo-08", 5, "moreau", "avis-echo", "garnier", ("cancel",), "Doppler utérin à 22 SA"),
    ("demo-09", 8, "lefevre", "avis-echo", "garnier", ("void",), "Saisie sur le mauvais dossier"),
)
_STATUS = {"refuse": "revoked", "cancel": "revoked", "void": "entered-in-error"}


def seed(hub: Hub, dpi: str, pfi: str) -> None:
    """Fill an empty store. `dpi` and `pfi` are host:port of the peers that play the hospital."""
    first = [*people.structures(dpi, pfi), *people.professionals(), *(people.patient(i) for i in range(12))]
    site = _stored(hub, "Organization/ch-demo")
    endpoints = [{"reference": "Endpoint/dpi"}, {"reference": "Endpoint/pfi"}]
    first.append({**site, "endpoint": endpoints})
    apply(hub, SYSTEM, [Change("update", r["resourceType"], r["id"], r) for r in first])
    for key, index, requester, group, expert, steps, reason in REQUESTS:
        if _known(hub, f"ServiceRequest/{key}"):
            continue  # an earlier start was cut off while seeding
        asked = people.request(key, index, requester, group, reason, "draft" if steps == ("draft",) else "active")
        agreed = people.consent(key, index)
        me = caller(requester)
        changes = [Change("update", "Consent", key, agreed), Change("update", "ServiceRequest", key, asked)]
        apply(hub, me, changes)
        for step in steps:
            _step(hub, step, key, me, caller(expert, group))


def moved(hub: Hub, dpi: str, pfi: str) -> None:
    """The hospital's endpoints point to the ports its peers have this time."""
    changes = []
    for wanted in people.structures(dpi, pfi):
        if wanted["resourceType"] == "Endpoint":
            stored = _stored(hub, f"Endpoint/{wanted['id']}")
            if stored["address"] != wanted["address"]:
                changes.append(Change("update", "Endpoint", wanted["id"], stored | {"address": wanted["address"]}))
    if changes:
        apply(hub, SYSTEM, changes)


def caller(key: str, group: str = "") -> Caller:
    """The demo's person as a Caller."""
    person = next(p for p in people.PROFESSIONALS if p[0] == key)
    display = " ".join(part for part in (person[2], person[3], person[4]) if part)
    roles: frozenset[Role] = frozenset({"requester", "expert"} if group else {"requester"})
    groups = frozenset({f"HealthcareService/{group}"} if group else set())
    return Caller(
        f"PractitionerRole/{key}",
        display,
        roles,
        groups,
        practitioner=f"Practitioner/{key}",
        channel="cli",
    )


def _step(hub: Hub, name: str, key: str, requester: Caller, expert: Caller) -> None:
    if name == "take":
        task = _stored(hub, f"Task/{key}") | {"status": "in-progress"}
        apply(hub, expert, [Change("update", "Task", key, task)])
    elif name in ("question", "answer"):
        texts = {
            "question": "Pouvez-vous préciser le terme et joindre une image ?",
            "answer": "Terme confirmé, image jointe.",
        }
        message: dict[str, Any] = {
            "resourceType": "Communication",
            "id": f"{key}-{name}",
            "status": "completed",
            "basedOn": [{"reference": f"ServiceRequest/{key}"}],
            "payload": [{"contentString": texts[name]}],
        }
        if name == "answer":
            message["inResponseTo"] = [{"reference": f"Communication/{key}-question"}]
        apply(
            hub,
            expert if name == "question" else requester,
            [Change("update", "Communication", message["id"], message)],
        )
    elif name == "report":
        apply(
            hub,
            expert,
            [Change("update", "DiagnosticReport", key, opinion(key, _stored(hub, f"ServiceRequest/{key}")))],
        )
    elif name in _STATUS:
        request = _stored(hub, f"ServiceRequest/{key}") | {"status": _STATUS[name]}
        apply(hub, expert if name == "refuse" else requester, [Change("update", "ServiceRequest", key, request)])


def opinion(key: str, request: dict[str, Any]) -> dict[str, Any]:
    """A final DiagnosticReport for a request."""
    return {
        "resourceType": "DiagnosticReport",
        "id": key,
        "basedOn": [{"reference": f"ServiceRequest/{request['id']}"}],
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "85208-7", "display": "CR de télémédecine"}]},
        "subject": request["subject"],
        "conclusion": "Anticoagulation indiquée ; contrôle de la fonction rénale puis consultation de cardiologie.",
    }


def _known(hub: Hub, reference: str) -> bool:
    kind, _, key = reference.partition("/")
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.get(kind, key) is not None


def _stored(hub: Hub, reference: str) -> dict[str, Any]:
    kind, _, key = reference.partition("/")
    with hub.store.read(SYSTEM) as snapshot:
        stored = snapshot.get(kind, key)
    assert stored is not None
    return {name: value for name, value in stored.resource().items() if name != "meta"}
