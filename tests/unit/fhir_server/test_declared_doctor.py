"""The declared médecin traitant gets the report too, unless they asked or signed, or the patient does not want it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from corrected import correct, received, waiting
from hubs import EXPERT, PARTNER, SYSTEM, asked, directory, hub_on, put, read
from lxml import etree

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.desk import outbox
from fhir_server.errors import RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.teleexpertise import notes as case_notes
from mappers.fhir_to_cda import CDA
from mssante import envelope

Resource = dict[str, Any]
ASKER, DOCTOR = "mssante:claire.moreau@ch-demo.mssante.fr", "mssante:paul.lefevre@ch-demo.mssante.fr"
RPPS = {"system": people.RPPS, "value": "99000000029"}


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def declared(hub: Hub, *doctors: Resource) -> None:
    put(hub, PARTNER, people.patient(0) | ({"generalPractitioner": list(doctors)} if doctors else {}))


def mailed(hub: Hub) -> list[str]:
    asked(hub, state="completed")
    return sorted(one.lane for one in hubs.deliveries(hub) if one.protocol == "mail")


def untold(hub: Hub) -> list[str]:
    return case_notes.not_reached(read(hub, "Task/r"))


@pytest.mark.parametrize(
    "named",
    [
        {"reference": "Practitioner/lefevre"},
        {"reference": "PractitionerRole/lefevre"},
        {"type": "Practitioner", "identifier": RPPS, "display": "Paul LEFEVRE"},
    ],
    ids=["person", "role", "as a ROL names them"],
)
def test_the_declared_doctor_is_mailed(hub: Hub, named: Resource) -> None:
    declared(hub, named)
    assert mailed(hub) == [ASKER, DOCTOR]
    one = next(one for one in hubs.deliveries(hub) if one.lane == DOCTOR)
    with hub.store.read(SYSTEM) as snapshot:
        mail = envelope.read(snapshot.payload(one.id))
    assert mail.xdm is not None and one.second_leg == "dsn"
    assert untold(hub) == []


MASKED = {"security": [{"system": "urn:oid:1.2.250.1.213.1.1.4.13", "code": "MASQUE_PS"}]}


def test_what_is_masked_to_professionals_goes_to_who_asked_and_not_to_the_declared_doctor(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/lefevre")
    own = read(hub, "Endpoint/dpi") | {"id": "own", "address": "mllp://127.0.0.1:9?application=LGC&facility=CABINET"}
    put(hub, PARTNER, own, role | {"endpoint": [{"reference": "Endpoint/own"}]})
    declared(hub, {"reference": "Practitioner/lefevre"})
    asked(hub, state="in_progress")
    (done, *_) = put(hub, EXPERT, hubs.opinion(hub) | {"meta": MASKED})
    assert {one.lane for one in hubs.deliveries(hub)} == {"Endpoint/dpi", "Endpoint/pfi", ASKER}
    (note,) = untold(hub)
    assert (
        note
        == "Compte rendu non remis à DR Paul LEFEVRE (médecin traitant) : document masqué aux professionnels de santé."
    )
    assert note in done.notes


@pytest.mark.parametrize("still", [True, False], ids=["declared still", "declared no more"])
def test_a_doctor_who_holds_a_version_does_not_get_the_masked_one_and_the_one_after_it_again(
    hub: Hub, still: bool
) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    assert mailed(hub) == [ASKER, DOCTOR]
    received(hub)
    if not still:
        declared(hub)
    correct(hub, meta=MASKED)
    assert {ASKER} == {one for one in waiting(hub) if one.startswith("mssante:")}
    (note,) = [
        one for one in case_notes.noted(read(hub, "Task/r")) if one.startswith("Correction du compte rendu non remise")
    ]
    assert note.endswith("masqué aux professionnels de santé ; la version précédente reste entre ses mains.")
    received(hub)
    correct(hub, "Levé.", meta={"security": [{"code": "N"}]})
    with hub.store.read(SYSTEM) as snapshot:
        mail = envelope.read(snapshot.payload(waiting(hub)[DOCTOR].id))
    assert mail.subject.startswith("[REMPLACE]") or "annule et remplace" in mail.text


def masked_since(hub: Hub) -> dict[str, Delivery]:
    """The first version by lane, which everybody received and which the second one masks."""
    declared(hub, {"reference": "Practitioner/lefevre"})
    assert mailed(hub) == [ASKER, DOCTOR]
    first = waiting(hub)
    received(hub)
    correct(hub, meta=MASKED)
    received(hub)
    return first


def test_a_version_of_before_the_mask_is_sent_again_to_who_may_see_it_alone(hub: Hub) -> None:
    first = masked_since(hub)
    masked = "version 2 of DiagnosticReport/r is masked to professionals .*paul.lefevre.* neither asked nor signs"
    with pytest.raises(RuleBroken, match=masked) as told:
        hubs.replayed(hub.store, {"id": first[DOCTOR].id})
    assert "is not sent again" in told.value.diagnostics and DOCTOR not in waiting(hub)
    for lane in (ASKER, "Endpoint/dpi", "Endpoint/pfi"):
        hubs.replayed(hub.store, {"id": first[lane].id})
    assert set(waiting(hub)) == {ASKER, "Endpoint/dpi", "Endpoint/pfi"}
    received(hub)
    correct(hub, "Levé.", meta={"security": [{"code": "N"}]})
    assert hubs.replayed(hub.store, {"id": first[DOCTOR].id})["state"] == "queued", "it is not masked any more"


def test_a_mailbox_of_which_nothing_says_whose_it_is_is_sent_no_version_of_before_the_mask(hub: Hub) -> None:
    first = masked_since(hub)
    for one in hubs.found(hub, "DocumentReference", "related=DiagnosticReport/r"):
        hubs.write_past_the_rules(hub, {name: part for name, part in one.items() if name != "extension"})
    with pytest.raises(RuleBroken, match="masked to professionals"):
        hubs.replayed(hub.store, {"id": first[ASKER].id})
    hubs.replayed(hub.store, {"id": first["Endpoint/dpi"].id})


def test_what_repeats_a_version_that_is_masked_since_by_its_label_alone_is_let_go_by_nobody(hub: Hub) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    mailed(hub)
    received(hub)
    correct(hub)
    second = waiting(hub)[DOCTOR]
    received(hub)
    again = hubs.replayed(hub.store, {"id": second.id})["id"]
    outbox.outbox_hold(hub.store, {"id": again})
    correct(hub, meta=MASKED)
    for act in (outbox.outbox_release, outbox.outbox_retry):
        with pytest.raises(RuleBroken, match="masked to professionals"):
            act(hub.store, {"id": again})


def test_the_requester_who_has_no_mailbox_any_more_gets_the_masked_correction_where_they_were_mailed(hub: Hub) -> None:
    assert mailed(hub) == [ASKER]
    received(hub)
    role = {name: value for name, value in read(hub, "PractitionerRole/moreau").items() if name != "telecom"}
    person = {name: value for name, value in read(hub, "Practitioner/moreau").items() if name != "telecom"}
    put(hub, PARTNER, role, person)
    correct(hub, meta=MASKED)
    assert ASKER in waiting(hub)


@pytest.mark.parametrize("who", ["moreau", "garnier"])
def test_who_asked_or_signed_gets_no_second_copy_as_the_doctor(hub: Hub, who: str) -> None:
    declared(hub, {"reference": f"Practitioner/{who}"}, {"reference": f"PractitionerRole/{who}"})
    assert mailed(hub) == [ASKER] and untold(hub) == []


def test_a_doctor_who_shares_the_requesters_mailbox_is_in_that_mail(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/lefevre")
    put(hub, PARTNER, role | {"telecom": read(hub, "PractitionerRole/moreau")["telecom"]})
    declared(hub, {"reference": "PractitionerRole/lefevre"})
    assert mailed(hub) == [ASKER]


def test_a_doctor_named_twice_is_mailed_once(hub: Hub) -> None:
    declared(
        hub, {"reference": "Practitioner/lefevre"}, {"reference": "PractitionerRole/lefevre"}, {"identifier": RPPS}
    )
    assert mailed(hub) == [ASKER, DOCTOR]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"reference": "Practitioner/none"}, "n'est pas enregistré ici"),
        ({"identifier": {"system": people.RPPS, "value": "99000000099"}, "display": "Jean PETIT"}, "Jean PETIT"),
        ({"identifier": {"value": "X"}}, "n'est pas enregistré ici"),
        ({"display": "Jean PETIT"}, "n'est pas enregistré ici"),
    ],
)
def test_a_doctor_nobody_knows_here_is_told(hub: Hub, named: Resource, words: str) -> None:
    declared(hub, named)
    assert mailed(hub) == [ASKER]
    assert len(untold(hub)) == 1 and "médecin traitant" in untold(hub)[0] and words in untold(hub)[0]


def document(hub: Hub) -> Any:
    """The CDA of the report."""
    (told,) = hubs.found(hub, "DocumentReference", "related=DiagnosticReport/r")
    url = next(one["attachment"]["url"] for one in told["content"] if one["attachment"]["contentType"] == "text/xml")
    return etree.fromstring(base64.b64decode(read(hub, url)["data"]))


PRIVACY = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}],
}
ATTENDING = "h:participant[@typeCode='INF'][h:functionCode/@code='PCP']//h:family/text()"


def test_the_document_names_the_declared_doctor(hub: Hub) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    asked(hub, state="completed")
    assert document(hub).xpath(ATTENDING, namespaces={"h": CDA}) == ["LEFEVRE"]


def test_the_document_names_a_declared_doctor_of_whom_only_the_name_is_known(hub: Hub) -> None:
    put(hub, PARTNER, {"resourceType": "Practitioner", "id": "bourg", "name": [{"family": "PETIT", "given": ["Jean"]}]})
    declared(hub, {"reference": "Practitioner/bourg"})
    asked(hub, state="completed")
    made = document(hub)
    assert made.xpath(ATTENDING, namespaces={"h": CDA}) == ["PETIT"]
    assert made.xpath("//h:participant[@typeCode='INF']/h:associatedEntity/h:id", namespaces={"h": CDA}) == []


@pytest.mark.parametrize("why", ["opposed", "no name", "unknown", "none"])
def test_the_document_names_no_doctor_who_is_not_known_or_not_wanted(hub: Hub, why: str) -> None:
    if why == "opposed":
        put(hub, PARTNER, refusal("Practitioner/lefevre", scope=PRIVACY))
    if why == "no name":
        put(hub, PARTNER, {k: v for k, v in read(hub, "Practitioner/lefevre").items() if k != "name"})
    named = {"display": "Jean PETIT"} if why == "unknown" else {"reference": "Practitioner/lefevre"}
    declared(hub, *([] if why == "none" else [named]))
    asked(hub, state="completed")
    assert document(hub).xpath(ATTENDING, namespaces={"h": CDA}) == []


def test_a_doctor_without_a_mailbox_is_told(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/lefevre")
    put(hub, PARTNER, {name: value for name, value in role.items() if name != "telecom"})
    declared(hub, {"reference": "Practitioner/lefevre"})
    assert mailed(hub) == [ASKER]
    assert "Paul LEFEVRE (médecin traitant)" in untold(hub)[0] and "aucune boîte MSSanté" in untold(hub)[0]


def refusal(actor: str, **changes: Any) -> Resource:
    """The patient does not want the report to go to somebody."""
    role = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "PRCP"}]}
    provision = {"type": "deny", "actor": [{"role": role, "reference": {"reference": actor}}]}
    return people.consent("refus", 0) | {"provision": provision} | changes


@pytest.mark.parametrize("actor", ["Practitioner/lefevre", "PractitionerRole/lefevre"])
def test_a_patient_who_does_not_want_it_is_heard(hub: Hub, actor: str) -> None:
    put(hub, PARTNER, refusal(actor, scope=PRIVACY))
    declared(hub, {"reference": "Practitioner/lefevre"})
    assert mailed(hub) == [ASKER]
    assert untold(hub) == [
        "Compte rendu non remis à DR Paul LEFEVRE (médecin traitant) : une opposition à cet envoi est enregistrée."
    ]


@pytest.mark.parametrize("change", [{"status": "inactive"}, {"patient": {"reference": "Patient/patient-02"}}])
def test_a_refusal_that_is_over_or_of_somebody_else_stops_nothing(hub: Hub, change: Resource) -> None:
    put(hub, PARTNER, refusal("Practitioner/lefevre", scope=PRIVACY, **change))
    declared(hub, {"reference": "Practitioner/lefevre"})
    assert mailed(hub) == [ASKER, DOCTOR]


def test_a_doctor_whose_own_software_is_served_is_not_mailed_too(hub: Hub) -> None:
    lgc = next(one for one in people.structures("127.0.0.1:9", "127.0.0.1:10") if one["id"] == "dpi")
    lgc = lgc | {
        "id": "lgc",
        "name": "Logiciel du médecin",
        "address": "mllp://127.0.0.1:11?application=LGC&facility=CABINET",
    }
    role = read(hub, "PractitionerRole/lefevre") | {"endpoint": [{"reference": "Endpoint/lgc"}]}
    put(hub, PARTNER, lgc, role)
    declared(hub, {"reference": "Practitioner/lefevre"})
    assert mailed(hub) == [ASKER]
    assert "Endpoint/lgc" in {one.lane for one in hubs.deliveries(hub)}


def test_a_doctor_who_changed_is_still_told_of_the_correction_of_what_they_got(hub: Hub) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    asked(hub, state="completed")
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE delivery SET state = 'sent'"))
    declared(hub)
    put(hub, hubs.EXPERT, read(hub, "DiagnosticReport/r") | {"status": "amended", "conclusion": "Autre."})
    again = {one.lane: one for one in hubs.deliveries(hub) if one.state == "queued"}
    assert DOCTOR in again
    with hub.store.read(SYSTEM) as snapshot:
        assert envelope.read(snapshot.payload(again[DOCTOR].id)).subject.startswith("[Annule et remplace] ")
