"""fhirclient (SMART on FHIR) against a running server: typed models, searches, pages, and what it raises.

https://github.com/smart-on-fhir/client-py. The library has no calls for If-Match, If-None-Exist and PATCH; they go
through the `requests` session it keeps, with the same headers.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fhirclient.client import FHIRClient
from fhirclient.models.binary import Binary
from fhirclient.models.bundle import Bundle
from fhirclient.models.fhirdate import FHIRDate
from fhirclient.models.fhirreference import FHIRReference
from fhirclient.models.fhirsearch import FHIRSearch
from fhirclient.models.humanname import HumanName
from fhirclient.models.observation import Observation
from fhirclient.models.operationoutcome import OperationOutcome
from fhirclient.models.patient import Patient
from fhirclient.server import FHIRNotFoundException, FHIRServer, FHIRUnauthorizedException
from requests import HTTPError
from told import Running

SYSTEM = "https://hospital.example/patients"


@pytest.fixture
def remote(server: Running) -> Iterator[FHIRServer]:
    base, token = server.base, server.token
    # snippet: connect
    remote = FHIRClient({"app_id": "dpi", "api_base": base}).server
    remote.session.headers["Authorization"] = f"Bearer {token}"
    # end
    yield remote
    remote.session.close()


def patient(remote: FHIRServer, family: str = "Martin") -> Patient:
    """A patient that is on the server, read back."""
    made = Patient({"name": [{"family": family}]}).create(remote)
    return Patient.read(made["id"], remote)


def observations(remote: FHIRServer, who: Patient, count: int) -> None:
    """As many observations of the patient."""
    for number in range(count):
        told = {"status": "final", "code": {"text": str(number)}, "subject": {"reference": who.relativePath()}}
        Observation(told).create(remote)


def test_the_capability_statement_is_a_valid_model_and_read_without_a_token(server: Running) -> None:
    client = FHIRClient({"app_id": "dpi", "api_base": server.base})
    assert client.prepare() and client.ready
    with pytest.raises(FHIRUnauthorizedException):
        Patient.read("1", client.server)
    stated = client.server.capabilityStatement
    assert stated.fhirVersion == "4.0.1"
    assert "Patient" in {one.type for one in stated.rest[0].resource}
    client.server.session.close()


def test_a_resource_is_created_read_and_read_again_by_version(remote: FHIRServer) -> None:
    # snippet: create
    new = Patient()
    new.name = [HumanName({"family": "Martin", "given": ["Zoé"]})]
    new.birthDate = FHIRDate("1980-02-29")
    made = new.create(remote)
    read = Patient.read(made["id"], remote)
    # end
    assert read.name[0].family == "Martin" and read.name[0].given == ["Zoé"]
    assert read.birthDate.isostring == "1980-02-29" and read.meta.versionId == "1"
    read.active = True
    changed = Patient(read.update())
    assert changed.meta.versionId == "2" and changed.active is True
    assert Patient.read_from(f"Patient/{read.id}/_history/1", remote).active is None


def test_an_update_with_the_version_read_succeeds_and_with_an_older_one_is_refused(remote: FHIRServer) -> None:
    read = patient(remote)
    read.active = True
    # snippet: if-match
    address = remote.base_uri + read.relativePath()
    headers = {"If-Match": f'W/"{read.meta.versionId}"', "Content-Type": "application/fhir+json"}
    answer = remote.session.put(address, json=read.as_json(), headers=headers)
    # end
    assert answer.status_code == 200 and answer.headers["etag"] == 'W/"2"'
    late = remote.session.put(address, json=read.as_json(), headers=headers)
    assert late.status_code == 412
    with pytest.raises(HTTPError):
        remote.raise_for_status(late)
    assert OperationOutcome(late.json()).issue[0].code == "conflict"


def test_a_patch_is_applied(remote: FHIRServer) -> None:
    read = patient(remote)
    answer = remote.session.patch(
        remote.base_uri + read.relativePath(),
        json=[{"op": "add", "path": "/gender", "value": "female"}],
        headers={"Content-Type": "application/json-patch+json"},
    )
    assert Patient(answer.json()).gender == "female"


def test_a_conditional_create_makes_one_resource_only(remote: FHIRServer) -> None:
    value = str(uuid.uuid4())
    body = Patient({"identifier": [{"system": SYSTEM, "value": value}]}).as_json()
    # snippet: conditional create
    headers = {"If-None-Exist": f"identifier={SYSTEM}|{value}", "Content-Type": "application/fhir+json"}
    first = remote.session.post(remote.base_uri + "Patient", json=body, headers=headers)
    # end
    again = remote.session.post(remote.base_uri + "Patient", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]


def test_a_transaction_resolves_its_own_references(remote: FHIRServer) -> None:
    # snippet: transaction
    who = f"urn:uuid:{uuid.uuid4()}"
    seen = {"status": "final", "code": {"text": "taille"}, "subject": {"reference": who}}
    bundle = Bundle(
        {
            "type": "transaction",
            "entry": [
                {
                    "fullUrl": who,
                    "resource": {"resourceType": "Patient", "name": [{"family": "Petit"}]},
                    "request": {"method": "POST", "url": "Patient"},
                },
                {
                    "resource": {"resourceType": "Observation"} | seen,
                    "request": {"method": "POST", "url": "Observation"},
                },
            ],
        }
    )
    done = Bundle(bundle.create(remote))
    # end
    assert [entry.response.status.split()[0] for entry in done.entry] == ["201", "201"]
    places = [entry.response.location.split("/_history")[0].split("/fhir/")[-1] for entry in done.entry]
    stored = Observation.read_from(places[1], remote)
    assert isinstance(stored.subject, FHIRReference) and stored.subject.reference == places[0]
    assert stored.subject.resolved(Patient).name[0].family == "Petit"


def test_a_search_is_walked_page_by_page_with_what_it_includes(remote: FHIRServer) -> None:
    who = patient(remote)
    observations(remote, who, 5)
    # snippet: search
    search = Observation.where({"subject": who.relativePath(), "_sort": "-_lastUpdated", "_count": "2"})
    texts = [one.code.text for one in search.perform_resources_iter(remote)]
    # end
    assert texts == ["4", "3", "2", "1", "0"]
    pages: list[Any] = list(
        FHIRSearch(Observation, {"subject": who.id, "_count": "2"}).include("subject").perform_iter(remote)
    )
    assert [[entry.search.mode for entry in page.entry] for page in pages] == [
        ["match", "match", "include"],
        ["match", "match", "include"],
        ["match", "include"],
    ]
    assert {page.entry[-1].resource.id for page in pages} == {who.id}
    both = Patient.where({"_id": who.id}).include("subject", Observation, reverse=True).perform_resources_iter(remote)
    assert sorted(one.resource_type for one in both) == ["Observation"] * 5 + ["Patient"]


def test_what_went_before_is_in_the_history_and_what_is_deleted_is_gone(remote: FHIRServer) -> None:
    read = patient(remote)
    read.active = True
    read.update()
    assert read.delete() is None
    with pytest.raises(HTTPError) as gone:
        Patient.read(read.id, remote)
    assert gone.value.response.status_code == 410
    with pytest.raises(FHIRNotFoundException):
        Patient.read("never-there", remote)
    past = Bundle.read_from(f"Patient/{read.id}/_history", remote)
    assert past.type == "history"
    assert [entry.request.method for entry in past.entry] == ["DELETE", "PUT", "POST"]


def test_a_refusal_arrives_as_an_operation_outcome(remote: FHIRServer) -> None:
    told = OperationOutcome({"issue": []}, strict=False)
    # snippet: refusal
    try:
        Patient({"gender": "unknwon", "name": [{"use": "nobody"}]}).create(remote)
    except HTTPError as refused:
        told = OperationOutcome(refused.response.json())
    # end
    assert {issue.expression[0] for issue in told.issue} == {"Patient.gender", "Patient.name[0].use"}


def test_a_binary_keeps_its_bytes_as_a_resource_and_as_itself(remote: FHIRServer) -> None:
    data = bytes(range(256))
    made = Binary({"contentType": "image/png", "data": base64.b64encode(data).decode()}).create(remote)
    read = Binary.read(made["id"], remote)
    assert base64.b64decode(read.data) == data
    assert remote.request_data(f"Binary/{made['id']}", {"Accept": "image/png"}) == data


def test_the_same_resource_is_read_as_xml(remote: FHIRServer) -> None:
    read = patient(remote, "Ménard & fils")
    text = remote.request_data(read.relativePath(), {"Accept": "application/fhir+xml"}).decode()
    assert '<family value="Ménard &amp; fils"/>' in text


def test_its_operators_of_old_are_refused_and_prefixes_are_not(remote: FHIRServer) -> None:
    with pytest.raises(HTTPError) as refused:
        list(Patient.where({"birthdate": {"$gt": "2026-01-01"}}).perform_iter(remote))
    assert refused.value.response.status_code == 400
    assert [page.type for page in Patient.where({"birthdate": "ge2100-01-01"}).perform_iter(remote)] == ["searchset"]
