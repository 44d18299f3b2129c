"""Who gets a report, by which road, and never by two: the plan of the distribution and the frozen deliveries."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import EXPERT, PARTNER, REQUESTER, SYSTEM, directory, hub_on, opinion, put, read
from rest_calls import ask
from test_distribution_plan import REPORT

from fhir_server.changes import Hub
from fhir_server.delivery.transports import AMBIGUOUS
from fhir_server.demo import people
from fhir_server.desk import outbox, story
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.teleexpertise import notes as case_notes
from fhir_server.teleexpertise.distribution import dmp_open, dmp_refusal
from hl7v2.message import Message, parse
from mappers.fhir_to_report import Code
from mssante import envelope

Resource = dict[str, Any]
MAIL = "mssante:claire.moreau@ch-demo.mssante.fr"


DMP_URL = "urn:passerelle:dmp"
PI = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "PI"}]}


@pytest.fixture
def new_hub(open_url: Callable[..., Store], sqlite_url: str) -> Callable[..., Hub]:
    return lambda **more: directory(hub_on(open_url(sqlite_url), **more))


@pytest.fixture
def hub(new_hub: Callable[..., Hub]) -> Hub:
    return new_hub()


def finished(hub: Hub) -> list[Delivery]:
    """The deliveries of one finished case."""
    hubs.asked(hub, state="in_progress")
    put(hub, EXPERT, opinion(hub))
    return hubs.deliveries(hub)


def payload(hub: Hub, delivery: Delivery) -> bytes:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.payload(delivery.id)


def sent_by(hub: Hub, found: list[Delivery], lane: str) -> Message:
    return parse(payload(hub, next(one for one in found if one.lane == lane)))


def endpoint(key: str, **changes: Any) -> Resource:
    """The hospital's Endpoint `dpi` or `pfi` with changes."""
    found = {one["id"]: one for one in people.structures("127.0.0.1:9", "127.0.0.1:10")}
    return copy.deepcopy(found[key]) | changes


def flag(message: Message, code: str) -> str:
    """The value of a routing OBX such as DESTDMP."""
    return next((obx.text(5) for obx in message.all("OBX") if obx.text(3) == code), "")


def with_dmp(hub: Hub, *parts: tuple[str, str]) -> None:
    """What the hospital last said of the DMP of patient-01; nothing without parts."""
    patient = read(hub, "Patient/patient-01")
    others = [extension for extension in patient["extension"] if extension["url"] != DMP_URL]
    said = [{"url": name, "valueCode": value} for name, value in parts]
    dmp = [{"url": DMP_URL, "extension": said}] if said else []
    put(hub, PARTNER, patient | {"extension": [*others, *dmp]})


def notes(hub: Hub, key: str = "r") -> list[str]:
    """What the case's Task says of who did not get the report."""
    return case_notes.not_reached(read(hub, f"Task/{key}"))


def lanes(hub: Hub) -> set[str]:
    return {one.lane for one in finished(hub)}


def test_dpi_platform_and_requester_get_the_report_once_each(hub: Hub) -> None:
    found = finished(hub)
    roads = {(one.lane, one.protocol, one.second_leg) for one in found}
    assert roads == {("Endpoint/dpi", "hl7", "none"), ("Endpoint/pfi", "hl7", "zam"), (MAIL, "mail", "dsn")}
    assert all(one.state == "queued" and one.document == "DiagnosticReport/r" for one in found)
    assert {one.endpoint.split(":")[0] for one in found} <= set(AMBIGUOUS)
    task = read(hub, "Task/r")
    assert notes(hub) == [] and "statusReason" not in task and "coding" not in task["businessStatus"]


def test_the_requester_is_mailed_by_us_and_by_nobody_else(hub: Hub) -> None:
    found = finished(hub)
    platform = sent_by(hub, found, "Endpoint/pfi")
    assert flag(platform, "DESTMSSANTEPS") == "N"
    assert flag(platform, "DESTMSSANTEPAT") in ("", "N")
    mail = next(one for one in found if one.protocol == "mail")
    assert mail.endpoint == "mssante:claire.moreau@ch-demo.mssante.fr?from=teleexpertise@ch-demo.mssante.fr"


def test_every_frozen_message_carries_its_delivery_id(hub: Hub) -> None:
    for one in finished(hub):
        raw = payload(hub, one)
        assert len(one.id) == 20 and one.sha256
        if one.protocol == "hl7":
            assert parse(raw).control_id == one.id
        else:
            assert envelope.read(raw).message_id.strip("<>").startswith(f"{one.id}@")


def test_each_hospital_system_gets_its_own_profile_and_its_own_name(hub: Hub) -> None:
    found = finished(hub)
    for lane, profile, application in (
        ("Endpoint/dpi", "CISIS_CDA_HL7_LPS", "DPI"),
        ("Endpoint/pfi", "CISIS_CDA_HL7_V2", "PFI"),
    ):
        message = sent_by(hub, found, lane)
        assert profile in message.text("MSH-21.2")
        assert (message.text("MSH-5"), message.text("MSH-6")) == (application, "CH-DEMO")


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ((), "N"),
        ((("status", "ACTIF"),), "Y"),
        ((("status", "ACTIF"), ("feed", "INO")), "Y"),
        ((("status", "ACTIF"), ("feed", "IO")), "N"),
        ((("status", "FERME"),), "N"),
        ((("status", "INEXISTANT"), ("feed", "INO")), "N"),
    ],
)
def test_the_platform_feeds_the_dmp_only_when_it_is_open_and_not_opposed(
    hub: Hub, parts: tuple[tuple[str, str], ...], wanted: str
) -> None:
    with_dmp(hub, *parts)
    found = finished(hub)
    if wanted == "N":
        assert {one.lane for one in found} == {"Endpoint/dpi", MAIL}, "a message with nothing but N is for nobody"
        assert len(notes(hub)) == 1 and "DMP" in notes(hub)[0] and "Plateforme" in notes(hub)[0]
        return
    message = sent_by(hub, found, "Endpoint/pfi")
    assert (flag(message, "DESTDMP"), flag(message, "ACK_RECEPTION")) == ("Y", "Y")
    leg = next(one.second_leg for one in found if one.lane == "Endpoint/pfi")
    assert leg == "zam", "the DMP answers with a business acknowledgement"
    assert notes(hub) == []


def test_without_a_qualified_ins_nothing_goes_to_the_dmp(hub: Hub) -> None:
    provisional = read(hub, "Patient/patient-01")
    provisional["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    provisional["identifier"] = provisional["identifier"][1:]
    put(hub, PARTNER, provisional)
    assert lanes(hub) == {"Endpoint/dpi", MAIL}
    assert "INS qualifiée" in notes(hub)[0]


def test_the_dmp_takes_only_documents_of_its_types(hub: Hub) -> None:
    report = dataclasses.replace(REPORT, type=Code("11111-1", "autre", "2.16.840.1.113883.6.1"))
    assert "11111-1" in dmp_refusal(report, {})
    assert "11111-1" not in dmp_refusal(REPORT, {})


def test_the_dmp_status_is_read_as_the_adt_mapper_writes_it() -> None:
    from fhir_server.demo import story
    from fhir_server.demo.run import SITES
    from fhir_server.patients.sites import load_sites
    from mappers import hl7v2_to_fhir

    site = load_sites(SITES).default
    for zfa, wanted in ((b"ZFA|ACTIF|", True), (b"ZFA|FERME|", False)):
        raw = story.admission().replace(b"ZFA|ACTIF|", zfa)
        assert dmp_open(hl7v2_to_fhir.adt(parse(raw), site).value.patient) is wanted
    opposed = story.admission().replace(b"|INO|", b"|IO|")
    assert dmp_open(hl7v2_to_fhir.adt(parse(opposed), site).value.patient) is False


@pytest.mark.parametrize("status", ["off", "suspended", "error", "entered-in-error", "test"])
def test_an_endpoint_that_is_not_active_gets_nothing(hub: Hub, status: str) -> None:
    put(hub, PARTNER, endpoint("dpi", status=status))
    assert lanes(hub) == {"Endpoint/pfi", MAIL}
    assert status in notes(hub)[0] and "Dossier patient" in notes(hub)[0]


def test_an_endpoint_of_another_kind_is_left_alone(hub: Hub) -> None:
    other = [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any"}]}]
    unknown = [{"coding": [{"system": "urn:passerelle:profil", "code": "future-9"}]}]
    references = [{"reference": f"Endpoint/{key}"} for key in ("dpi", "pfi", "gone")]
    put(hub, PARTNER, read(hub, "Organization/ch-demo") | {"endpoint": references})
    put(hub, PARTNER, endpoint("dpi", payloadType=other), endpoint("pfi", payloadType=unknown))
    assert lanes(hub) == {MAIL}
    assert len(notes(hub)) == 2, "a profile we do not speak, and the reference that leads nowhere"
    assert any("future-9" in note for note in notes(hub)) and any("Endpoint/gone" in note for note in notes(hub))


def test_two_endpoints_with_one_address_are_one_road(hub: Hub) -> None:
    address = endpoint("dpi")["address"]
    twins = [endpoint("dpi", id="twin"), endpoint("dpi", id="shout", address=address.replace("127.0.0.1", "LOCALHOST"))]
    twins.append(endpoint("dpi", id="small", address=address.replace("127.0.0.1", "localhost")))
    references = [{"reference": f"Endpoint/{key}"} for key in ("dpi", "dpi", "twin", "pfi", "shout", "small", "gone")]
    put(hub, PARTNER, *twins, read(hub, "Organization/ch-demo") | {"endpoint": references})
    found = finished(hub)
    assert sorted(one.lane for one in found) == ["Endpoint/dpi", "Endpoint/pfi", MAIL]


def test_one_receiver_at_two_addresses_gets_a_report_once_and_that_is_told(hub: Hub) -> None:
    address = endpoint("dpi")["address"]
    twins = [endpoint("dpi", id="local", address=address.replace("127.0.0.1", "localhost"))]
    twins.append(endpoint("dpi", id="second", address=address.replace("127.0.0.1:9", "192.0.2.7:2576")))
    references = [{"reference": f"Endpoint/{key}"} for key in ("dpi", "local", "second", "pfi")]
    put(hub, PARTNER, *twins, read(hub, "Organization/ch-demo") | {"endpoint": references})
    found = finished(hub)
    assert sorted(one.lane for one in found) == ["Endpoint/dpi", "Endpoint/pfi", MAIL]
    told = [note["text"] for note in read(hub, "Task/r").get("note", ())]
    assert len(told) == 1 and "à une autre adresse" in told[0]


def only_ins(hub: Hub) -> None:
    """patient-01 without any number of the hospital."""
    foreign = people.patient(0)
    put(hub, PARTNER, foreign | {"identifier": foreign["identifier"][:1]})


def test_a_patient_known_by_the_ins_alone_is_filed_under_it(hub: Hub) -> None:
    only_ins(hub)
    found = finished(hub)
    assert {one.lane for one in found} == {"Endpoint/dpi", "Endpoint/pfi", MAIL}
    for lane in ("Endpoint/dpi", "Endpoint/pfi"):
        message = sent_by(hub, found, lane)
        assert (message.text("PID-3.1"), message.text("PID-3.5")) == (people.ins(people.PATIENTS[0][5]), "INS")
        assert (message.text("PID-3[2].1"), message.text("PID-32")) == ("", "VALI")


def profiled(code: str) -> list[Resource]:
    return [{"coding": [{"system": "urn:passerelle:profil", "code": code}]}]


def test_a_receiver_of_base_hl7_needs_a_number_of_its_own(hub: Hub) -> None:
    only_ins(hub)
    put(hub, PARTNER, endpoint("dpi", payloadType=profiled("plain-oru")))
    assert lanes(hub) == {"Endpoint/pfi", MAIL}
    assert "pas de numéro de patient" in notes(hub)[0]


def test_a_patient_nobody_can_file_is_told(hub: Hub) -> None:
    foreign = people.patient(0)
    foreign["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    put(hub, PARTNER, foreign | {"identifier": [{"system": "urn:oid:1.2.3", "value": "X", "type": PI}]})
    assert lanes(hub) == {MAIL}
    assert len(notes(hub)) == 2 and all("ni INS qualifiée" in note for note in notes(hub))


@pytest.mark.parametrize(
    ("code", "kind", "profile"),
    [
        ("lps-1.1", ("MDM", "2.6"), "CISIS_CDA_HL7_LPS"),
        ("plain-mdm", ("MDM", "2.5"), ""),
        ("plain-oru", ("ORU", "2.5"), ""),
        ("push-2.1", ("MDM", "2.6"), "CISIS_CDA_HL7_V2"),
        ("push-2.1-oru", ("ORU", "2.5"), "CISIS_CDA_HL7_V2"),
    ],
)
def test_the_endpoint_chooses_the_flavour(hub: Hub, code: str, kind: tuple[str, str], profile: str) -> None:
    put(hub, PARTNER, endpoint("dpi", payloadType=profiled(code)), endpoint("pfi", status="off"))
    message = sent_by(hub, finished(hub), "Endpoint/dpi")
    assert (message.text("MSH-9.1"), message.text("MSH-12")) == kind
    assert message.text("MSH-21.2") == profile
    pdf = b"JVBERi0" in message.raw
    assert pdf is code.startswith("plain"), "the PDF stands bare only where no CDA is read"


# --- who takes part --------------------------------------------------------------------------------------------------


def elsewhere(hub: Hub) -> None:
    """The expert and the group work in another structure than the hospital whose patient it is."""
    house = {"reference": "Organization/maison-tilleuls"}
    put(
        hub,
        PARTNER,
        read(hub, "PractitionerRole/garnier") | {"organization": house},
        read(hub, "HealthcareService/avis-echo") | {"providedBy": house},
    )


def test_a_hospital_that_only_knows_the_patient_gets_nothing(hub: Hub) -> None:
    elsewhere(hub)
    assert lanes(hub) == {MAIL}
    assert notes(hub) == [], "whoever has no part in the case is no road that is shut"


def test_the_hospital_whose_number_the_request_carries_gets_it(hub: Hub) -> None:
    elsewhere(hub)
    ipp = {"system": people.IPP_SYSTEM, "value": people.PATIENTS[0][7]}
    hub_case(hub, subject={"reference": "Patient/patient-01", "identifier": ipp})
    assert {one.lane for one in hubs.deliveries(hub)} == {"Endpoint/dpi", "Endpoint/pfi", MAIL}


@pytest.mark.parametrize("value", ["DEMO0002", "", "demo0001"])
def test_a_number_of_somebody_else_opens_no_road(hub: Hub, value: str) -> None:
    elsewhere(hub)
    ipp = {"system": people.IPP_SYSTEM} | ({"value": value} if value else {})
    hub_case(hub, subject={"reference": "Patient/patient-01", "identifier": ipp})
    assert {one.lane for one in hubs.deliveries(hub)} == {MAIL}


def hub_case(hub: Hub, **changes: Any) -> None:
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(**changes))
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))


def test_the_place_of_the_stay_takes_part(hub: Hub) -> None:
    elsewhere(hub)
    stay = {
        "resourceType": "Encounter",
        "id": "stay",
        "status": "in-progress",
        "class": {"code": "IMP"},
        "subject": {"reference": "Patient/patient-01"},
        "serviceProvider": {"reference": "Organization/ch-demo"},
    }
    put(hub, PARTNER, stay)
    hub_case(hub, encounter={"reference": "Encounter/stay"})
    assert {one.lane for one in hubs.deliveries(hub)} == {"Endpoint/dpi", "Endpoint/pfi", MAIL}


OWN = {"address": "mllp://127.0.0.1:11?application=LGC&facility=CABINET", "managingOrganization": None}


def own_endpoint() -> Resource:
    made = endpoint("dpi", id="lgc", name="Logiciel du cabinet") | OWN
    return {name: value for name, value in made.items() if value is not None}


@pytest.mark.parametrize(
    "owner",
    ["Organization/cabinet-lilas", "HealthcareService/avis-echo", "PractitionerRole/garnier", "Organization/ch-demo"],
)
def test_the_endpoints_of_everybody_who_takes_part_are_served(hub: Hub, owner: str) -> None:
    held = read(hub, owner)
    references = [*held.get("endpoint", ()), {"reference": "Endpoint/lgc"}]
    put(hub, PARTNER, own_endpoint(), held | {"endpoint": references})
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi", "Endpoint/lgc", MAIL}


def test_the_endpoints_of_the_house_a_structure_is_part_of_are_served(hub: Hub) -> None:
    served = {"endpoint": [{"reference": "Endpoint/lgc"}]}
    house = {"resourceType": "Organization", "id": "reseau", "name": "Réseau"} | served
    part = read(hub, "Organization/cabinet-lilas") | {"partOf": {"reference": "Organization/reseau"}}
    put(hub, PARTNER, own_endpoint(), house, part)
    assert "Endpoint/lgc" in lanes(hub)


def test_houses_that_are_part_of_each_other_end(hub: Hub) -> None:
    ring = read(hub, "Organization/cabinet-lilas") | {"partOf": {"reference": "Organization/cabinet-lilas"}}
    put(hub, PARTNER, ring)
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi", MAIL}


def test_a_requester_whose_own_software_gets_it_is_not_mailed_too(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/lgc"}]}
    put(hub, PARTNER, own_endpoint(), role)
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi", "Endpoint/lgc"}


def test_a_requester_whose_own_software_is_off_is_mailed(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/lgc"}]}
    put(hub, PARTNER, own_endpoint() | {"status": "off"}, role)
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi", MAIL}
    assert "Logiciel du cabinet" in notes(hub)[0]


def test_the_dmp_is_fed_by_one_platform(hub: Hub) -> None:
    second = endpoint(
        "pfi", id="pfi2", name="Deuxième plateforme", address="mllp://127.0.0.1:12?application=PFI2&facility=X"
    )
    references = [{"reference": f"Endpoint/{key}"} for key in ("dpi", "pfi", "pfi2")]
    put(hub, PARTNER, second, read(hub, "Organization/ch-demo") | {"endpoint": references})
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi", MAIL}
    assert "Deuxième plateforme" in notes(hub)[0] and "déjà alimenté" in notes(hub)[0]


# --- what cannot be sent is told -------------------------------------------------------------------------------------


def test_a_requester_without_a_mailbox_is_not_mailed(hub: Hub) -> None:
    role = {name: value for name, value in read(hub, "PractitionerRole/moreau").items() if name != "telecom"}
    put(hub, PARTNER, role)
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi"}
    assert "Claire MOREAU" in notes(hub)[0] and "boîte MSSanté" in notes(hub)[0]
    assert read(hub, "Task/r")["businessStatus"]["coding"] == [{"system": "urn:passerelle:remise", "code": "partielle"}]


def test_an_ordinary_mail_address_is_no_mssante_mailbox(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/moreau") | {"telecom": [{"system": "email", "value": "claire@example.org"}]}
    put(hub, PARTNER, role)
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi"}


def test_without_a_mail_operator_nothing_is_mailed(new_hub: Callable[..., Hub]) -> None:
    hub = new_hub(smtp="")
    assert lanes(hub) == {"Endpoint/dpi", "Endpoint/pfi"}
    assert "réglage smtp" in notes(hub)[0]


def test_a_report_with_no_road_at_all_is_signed_and_shouts(new_hub: Callable[..., Hub]) -> None:
    hub = new_hub(smtp="")
    put(hub, PARTNER, endpoint("dpi", status="off"), endpoint("pfi", status="off"))
    hubs.asked(hub, state="in_progress")
    done = put(hub, EXPERT, opinion(hub))[0]
    assert hubs.deliveries(hub) == [] and read(hub, "ServiceRequest/r")["status"] == "completed"
    assert len(notes(hub)) == 3, "the case keeps it"
    assert list(done.notes)[:3] == notes(hub), "the answer says it, before what the report leaves out"
    assert "chemin vers personne" in read(hub, "Task/r")["statusReason"]["text"]
    assert [one["id"] for one in hubs.found(hub, "Task", "business-status=urn:passerelle:remise|aucune")] == ["r"]
    told = " ".join(line["text"] for line in story.trace(hub.store, {"id": "r"}))
    assert all(note in told for note in notes(hub)), "the trace tells it"


def test_the_answer_to_a_signature_warns_of_who_is_not_reached(hub: Hub) -> None:
    put(hub, PARTNER, endpoint("dpi", status="off"))
    hubs.asked(hub, state="in_progress")
    wanted = {"prefer": "return=OperationOutcome"}
    issues = ask(hub, "PUT", "DiagnosticReport/r", opinion(hub), caller=EXPERT, **wanted).json()["issue"]
    assert {one["severity"] for one in issues[1:]} == {"warning"}
    left_out = "ServiceRequest.supportingInfo: stays in the record: the report does not print it"
    assert [one["diagnostics"] for one in issues[1:]] == [notes(hub)[0], left_out]
    assert len(ask(hub, "PUT", "DiagnosticReport/r", opinion(hub), caller=EXPERT, **wanted).json()["issue"]) == 1


def test_the_outbox_tells_with_a_delivery_who_was_not_reached(hub: Hub) -> None:
    put(hub, PARTNER, endpoint("dpi", status="off"))
    key = finished(hub)[0].id
    assert outbox.outbox_show(hub.store, {"id": key})["not_reached"] == notes(hub) != []


def test_what_the_server_noted_is_not_the_clients_to_take_away(hub: Hub) -> None:
    put(hub, PARTNER, endpoint("dpi", status="off"))
    finished(hub)
    before = read(hub, "Task/r")
    mine = [{"text": "rappelé le cabinet"}, {"authorString": "Passerelle", "text": "tout est parti"}]
    bare = {name: value for name, value in before.items() if name not in ("note", "statusReason")}
    put(hub, EXPERT, bare | {"note": mine, "businessStatus": {"text": "completed"}})
    after = read(hub, "Task/r")
    assert after["note"] == [mine[0], *before["note"]]
    assert after["businessStatus"] == before["businessStatus"]


@pytest.mark.parametrize("start", ["mllp://host:99999", "ftp://host:1", "mllp://", "x"])
def test_an_address_nobody_can_use_keeps_no_report_back(hub: Hub, start: str) -> None:
    address = f"{start}?application=DPI&facility=CH-DEMO"
    put(hub, PARTNER, endpoint("dpi", address=address))
    found = {one.lane: one for one in finished(hub)}
    assert set(found) == {"Endpoint/dpi", "Endpoint/pfi", MAIL}
    assert found["Endpoint/dpi"].endpoint == address, "it fails visibly in the outbox"
