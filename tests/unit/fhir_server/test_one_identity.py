"""One person, five spellings: HL7 v2, FHIR, CDA, XDM and DICOM all lead to the one stored Patient, through the site
record and nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import hubs
import pydicom
import pytest
from hubs import EXPERT, PARTNER, SYSTEM, directory, found, hub_on, post, put, read

from dicom_node import header as dicom_header
from dicom_node import sample
from dicom_node.header import Identifier
from fhir_server.changes import Hub, view_of
from fhir_server.delivery import intake
from fhir_server.demo import people, story
from fhir_server.patients import identity
from fhir_server.patients.sites import Sites
from fhir_server.store.engine import open_store
from hl7v2 import ack
from hl7v2.message import parse
from mappers import cda_to_fhir, dicom_to_fhir, hl7v2_to_fhir
from mssante import envelope, metadata, received

Key = tuple[str, str]
IPP_OID = people.IPP_SYSTEM.removeprefix("urn:oid:")
INS_OID = people.INS_SYSTEM.removeprefix("urn:oid:")


@dataclass(frozen=True)
class House:
    """A hub in which ALICE arrived by HL7 v2 and her case is finished: the documents of her report were rendered."""

    hub: Hub
    patient: str
    clinical: bytes
    mail: bytes

    def resolve(self, keys: list[Key]) -> set[str]:
        """The stored Patients these (system, value) pairs lead to."""
        with self.hub.store.read(SYSTEM) as snapshot:
            view = view_of(snapshot)
            return {f"Patient/{p['id']}" for key in keys for p in identity.patient_at(view, key)}


def by_oid(sites: Sites, pairs: list[Key]) -> list[Key]:
    """(value, bare OID) pairs as CDA and XDM write them, in the site's FHIR spelling."""
    out = []
    for value, oid in pairs:
        owner = sites.of_oid(oid)
        if owner is not None:
            out.append((owner[1].fhir_system, value))
    return out


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("one")
    store = open_store(f"sqlite:///{folder / 'db'}", folder)
    hub = directory(hub_on(store), patients=0)
    assert ack.read(intake.on_message(hub, story.admission(), "peer")).code == "AA"
    patient = found(hub, "Patient")[0]
    consent = people.consent("r", 0) | {"patient": {"reference": f"Patient/{patient['id']}"}}
    asked = hubs.request(subject={"reference": f"Patient/{patient['id']}"})
    put(hub, hubs.REQUESTER, consent, asked)
    hubs.take(hub)
    put(hub, EXPERT, hubs.opinion(hub))
    mail = next(one for one in hubs.deliveries(hub) if one.protocol == "mail")
    with store.read(SYSTEM) as snapshot:
        raw = snapshot.payload(mail.id)
    xdm = envelope.read(raw).xdm
    assert xdm is not None
    yield House(hub, f"Patient/{patient['id']}", xdm.documents[0].content, raw)
    store.close()


def the_ids(house: House) -> tuple[Key, Key]:
    return (people.INS_SYSTEM, story.INS), (people.IPP_SYSTEM, story.IPP)


def test_pid_3_of_an_adt_leads_to_her(house: House) -> None:
    result = hl7v2_to_fhir.adt(parse(story.admission("A0002")), house.hub.sites.default).value
    assert result.ins == the_ids(house)[0]
    assert result.local_ids == (the_ids(house)[1],)
    assert house.resolve([*result.local_ids, *([result.ins] if result.ins else [])]) == {house.patient}
    with house.hub.store.read(SYSTEM) as snapshot:
        assert identity.match(view_of(snapshot), result.patient, house.hub.sites).reference == house.patient


def test_a_fhir_patient_with_her_ins_or_her_number_is_her(house: House) -> None:
    held = read(house.hub, house.patient)
    for keep in (people.INS_SYSTEM, people.IPP_SYSTEM):
        same = held | {"identifier": [i for i in held["identifier"] if i["system"] == keep]}
        assert f"Patient/{post(house.hub, PARTNER, same).id}" == house.patient
    for system, value in the_ids(house):
        matches = found(house.hub, "Patient", f"identifier={system}|{value}")
        assert [f"Patient/{p['id']}" for p in matches] == [house.patient]


def test_the_ids_of_our_cda_lead_to_her(house: House) -> None:
    pairs = list(cda_to_fhir.patient_ids(house.clinical))
    assert set(pairs) == {(story.INS, INS_OID), (story.IPP, IPP_OID)}
    for pair in pairs:
        assert house.resolve(by_oid(house.hub.sites, [pair])) == {house.patient}


def test_the_metadata_of_our_xdm_lead_to_her(house: House) -> None:
    mail = received.read(house.mail)
    assert mail.xdm is not None and mail.xdm.patient is not None
    entry = mail.xdm.documents[0].entry
    named = [mail.xdm.patient, entry.patient, metadata.cx(entry.slot("sourcePatientId"))]
    pairs = [(one.value, one.oid) for one in named if one is not None]
    assert {(story.INS, INS_OID), (story.IPP, IPP_OID)} == set(pairs)
    for pair in pairs:
        assert house.resolve(by_oid(house.hub.sites, [pair])) == {house.patient}


DICOM: dict[str, tuple[Identifier, str]] = {
    "INS by OID": (Identifier(story.INS, universal_id=INS_OID, universal_id_type="ISO"), "ELSEWHERE"),
    "IPP by OID": (Identifier(story.IPP, universal_id=IPP_OID, universal_id_type="ISO"), "ELSEWHERE"),
    "IPP by local issuer": (Identifier(story.IPP, issuer="CH-DEMO"), "ELSEWHERE"),
    "IPP by the default of the AE": (Identifier(story.IPP), "ECHO1"),
}


@pytest.mark.parametrize("spelling", DICOM)
def test_every_spelling_of_a_dicom_header_leads_to_her(house: House, spelling: str) -> None:
    identifier, calling = DICOM[spelling]
    ds = pydicom.dcmread(io.BytesIO(sample.clip(patient_id=identifier, patient_name="X^Y")))
    written = io.BytesIO()
    pydicom.dcmwrite(written, ds, implicit_vr=False, little_endian=True, enforce_file_format=True)
    raw = written.getvalue()
    start = raw.index(b"DICM") + 4 + 12 + int.from_bytes(raw[140:144], "little")
    seen = dicom_header.read(raw, str(ds.file_meta.TransferSyntaxUID), start)
    keys = dicom_to_fhir.patient_ids(seen, house.hub.sites.default, calling)
    assert len(keys) == 1
    assert house.resolve(list(keys)) == {house.patient}


def test_the_same_value_in_another_namespace_is_nobody(house: House) -> None:
    strangers = [(people.IPP_SYSTEM, story.INS), ("urn:oid:1.2.250.1.213.1.4.8", story.INS), ("urn:oid:9.9", story.IPP)]
    assert house.resolve(strangers) == set()
    assert by_oid(house.hub.sites, [(story.IPP, "9.9")]) == []


def test_each_namespace_has_one_record_that_knows_all_its_spellings(house: House) -> None:
    hub = house.hub
    named = {n["id"]: n for n in found(hub, "NamingSystem")}
    ipp = {(one["type"], one["value"]) for one in named["ch-demo-ipp"]["uniqueId"]}
    assert {("oid", IPP_OID), ("uri", people.IPP_SYSTEM)} <= ipp
    assert any(kind == "other" and value.startswith("CH-DEMO&") for kind, value in ipp)
    for spelling in (hub.sites.of_oid(IPP_OID), hub.sites.of_system(people.IPP_SYSTEM)):
        assert spelling is not None and spelling[1].name == "ipp" and spelling[0].key == "ch-demo"
