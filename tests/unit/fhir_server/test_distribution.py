"""Who gets a report, by which road, and never by two: the plan of the distribution and the frozen deliveries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import EXPERT, PARTNER, SYSTEM, directory, hub_on, opinion, put, read

from fhir_server.changes import Hub
from fhir_server.delivery.transports import AMBIGUOUS
from fhir_server.demo import people
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.teleexpertise.distribution import dmp_open
from hl7v2.message import Message, parse
from mssante import envelope

Resource = dict[str, Any]
MAIL = "mssante:claire.moreau@ch-demo.mssante.fr"


DMP_URL = "urn:passerelle:dmp"


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
    if not parts:
        return
    patient = read(hub, "Patient/patient-01")
    dmp = {"url": DMP_URL, "extension": [{"url": name, "valueCode": value} for name, value in parts]}
    put(hub, PARTNER, patient | {"extension": [*patient["extension"], dmp]})


def test_dpi_platform_and_requester_get_the_report_once_each(hub: Hub) -> None:
    found = finished(hub)
    roads = {(one.lane, one.protocol, one.second_leg) for one in found}
    assert roads == {("Endpoint/dpi", "hl7", "none"), ("Endpoint/pfi", "hl7", "none"), (MAIL, "mail", "dsn")}
    assert all(one.state == "queued" and one.document == "DiagnosticReport/r" for one in found)
    assert {one.endpoint.split(":")[0] for one in found} <= set(AMBIGUOUS)


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
    assert flag(sent_by(hub, found, "Endpoint/pfi"), "DESTDMP") == wanted
    leg = next(one.second_leg for one in found if one.lane == "Endpoint/pfi")
    assert leg == ("zam" if wanted == "Y" else "none"), "only the DMP answers with a business acknowledgement"


def test_without_a_qualified_ins_nothing_goes_to_the_dmp(hub: Hub) -> None:
    with_dmp(hub, ("status", "ACTIF"))
    provisional = read(hub, "Patient/patient-01")
    provisional["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    put(hub, PARTNER, provisional)
    assert flag(sent_by(hub, finished(hub), "Endpoint/pfi"), "DESTDMP") == "N"


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
    assert {one.lane for one in finished(hub)} == {"Endpoint/pfi", MAIL}


def test_an_endpoint_of_another_kind_is_left_alone(hub: Hub) -> None:
    other = [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any"}]}]
    unknown = [{"coding": [{"system": "urn:passerelle:profil", "code": "future-9"}]}]
    put(hub, PARTNER, endpoint("dpi", payloadType=other), endpoint("pfi", payloadType=unknown))
    assert {one.lane for one in finished(hub)} == {MAIL}


def test_two_endpoints_with_one_address_are_one_road(hub: Hub) -> None:
    address = endpoint("dpi")["address"]
    twins = [endpoint("dpi", id="twin"), endpoint("dpi", id="shout", address=address.replace("127.0.0.1", "LOCALHOST"))]
    twins.append(endpoint("dpi", id="small", address=address.replace("127.0.0.1", "localhost")))
    references = [{"reference": f"Endpoint/{key}"} for key in ("dpi", "dpi", "twin", "pfi", "shout", "small", "gone")]
    put(hub, PARTNER, *twins, read(hub, "Organization/ch-demo") | {"endpoint": references})
    found = finished(hub)
    assert sorted(one.lane for one in found) == ["Endpoint/dpi", "Endpoint/pfi", "Endpoint/shout", MAIL]


def test_a_patient_the_hospital_does_not_know_goes_to_the_requester_alone(hub: Hub) -> None:
    foreign = people.patient(0)
    foreign["identifier"] = foreign["identifier"][:1]
    put(hub, PARTNER, foreign)
    assert {one.lane for one in finished(hub)} == {MAIL}


def test_a_requester_without_a_mailbox_is_not_mailed(hub: Hub) -> None:
    role = {name: value for name, value in read(hub, "PractitionerRole/moreau").items() if name != "telecom"}
    put(hub, PARTNER, role)
    assert {one.lane for one in finished(hub)} == {"Endpoint/dpi", "Endpoint/pfi"}


def test_an_ordinary_mail_address_is_no_mssante_mailbox(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/moreau") | {"telecom": [{"system": "email", "value": "claire@example.org"}]}
    put(hub, PARTNER, role)
    assert {one.lane for one in finished(hub)} == {"Endpoint/dpi", "Endpoint/pfi"}


def test_without_a_mail_operator_nothing_is_mailed(new_hub: Callable[..., Hub]) -> None:
    assert {one.lane for one in finished(new_hub(smtp=""))} == {"Endpoint/dpi", "Endpoint/pfi"}


@pytest.mark.parametrize("address", ["mllp://[::1", "mllp://host:99999", "ftp://host:1", "mllp://", "x"])
def test_an_address_nobody_can_use_keeps_no_report_back(hub: Hub, address: str) -> None:
    put(hub, PARTNER, endpoint("dpi", address=address))
    found = {one.lane: one for one in finished(hub)}
    assert set(found) == {"Endpoint/dpi", "Endpoint/pfi", MAIL}
    assert found["Endpoint/dpi"].endpoint == address, "it fails visibly in the outbox"
