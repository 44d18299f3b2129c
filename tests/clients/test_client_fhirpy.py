"""fhirpy against a running server: what a Python programmer writes, and what the library makes of our answers.

https://github.com/beda-software/fhir-py. Its partial update (`patch`) and its `get_or_create` are dialects of another
server; the last tests say what ours answers, `docs/clients.md` what to write instead.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fhirpy import AsyncFHIRClient, SyncFHIRClient
from fhirpy.base.exceptions import AuthorizationError, MultipleResourcesFound, OperationOutcome, ResourceNotFound
from told import Running

SYSTEM = "https://hospital.example/patients"
BINARY = bytes(range(256))


@pytest.fixture
def client(server: Running) -> Iterator[SyncFHIRClient]:
    base, token = server.base, server.token
    # snippet: connect
    client = SyncFHIRClient(base, authorization=f"Bearer {token}")
    # end
    yield client


def with_headers(client: SyncFHIRClient, **headers: str) -> SyncFHIRClient:
    """The same server, with more request headers (underscores stand for hyphens)."""
    told = {name.replace("_", "-"): text for name, text in headers.items()}
    return SyncFHIRClient(client.url, client.authorization, told)


def patient(client: SyncFHIRClient, **more: Any) -> Any:
    """A patient that is on the server."""
    made = client.resource("Patient", name=[{"family": "Martin"}], **more)
    made.save()
    return made


def test_the_capability_statement_is_read(client: SyncFHIRClient) -> None:
    stated = client.execute("metadata", method="get")
    assert stated.resourceType == "CapabilityStatement"
    assert stated.fhirVersion == "4.0.1"
    assert "Patient" in {one.type for one in stated.rest[0].resource}


def test_a_resource_is_created_read_and_read_again_by_version(client: SyncFHIRClient) -> None:
    # snippet: create
    made = client.resource("Patient", name=[{"family": "Martin", "given": ["Zoé"]}], birthDate="1980-02-29")
    made.save()
    read = client.get("Patient", made.id)
    # end
    assert read == dict(made)
    assert read["meta"]["versionId"] == "1"
    assert read["name"] == [{"family": "Martin", "given": ["Zoé"]}]
    made["active"] = True
    made.save()
    assert made.meta["versionId"] == "2"
    first = client.execute(f"Patient/{made.id}/_history/1", method="get")
    assert "active" not in first and first.meta.versionId == "1"


def test_a_refresh_of_what_has_not_changed_costs_no_body(client: SyncFHIRClient) -> None:
    made = patient(client)
    kept = dict(made)
    made.refresh()
    assert dict(made) == kept
    # The library sends the version as it is, without the quotes of an ETag.
    asked = {"If-None-Match": made.meta["versionId"]}
    assert client._do_request("get", made.reference, extra_headers=asked, returning_status=True) == (None, 304)
    client.execute(f"Patient/{made.id}", method="put", data=kept | {"active": False})
    made.refresh()
    assert made["active"] is False and made.meta["versionId"] == "2"


def test_an_update_with_the_version_read_succeeds_and_with_an_older_one_is_refused(client: SyncFHIRClient) -> None:
    made = patient(client)
    body = made.serialize() | {"active": True}
    # snippet: if-match
    careful = SyncFHIRClient(client.url, client.authorization, {"If-Match": f'W/"{made.meta["versionId"]}"'})
    changed = careful.execute(made.reference, method="put", data=body)
    # end
    assert changed.meta.versionId == "2"
    # The library calls every 412 by this name; the text is our OperationOutcome.
    with pytest.raises(MultipleResourcesFound, match="OperationOutcome"):
        careful.execute(made.reference, method="put", data=body | {"active": False})
    assert client.get("Patient", made.id)["active"] is True


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/json-patch+json", [{"op": "add", "path": "/gender", "value": "female"}]),
        (
            "application/fhir+json",
            {
                "resourceType": "Parameters",
                "parameter": [
                    {
                        "name": "operation",
                        "part": [
                            {"name": "type", "valueCode": "add"},
                            {"name": "path", "valueString": "Patient"},
                            {"name": "name", "valueString": "gender"},
                            {"name": "value", "valueCode": "female"},
                        ],
                    }
                ],
            },
        ),
    ],
    ids=["json patch", "fhirpath patch"],
)
def test_a_patch_is_applied(client: SyncFHIRClient, media_type: str, body: Any) -> None:
    made = patient(client)
    changed = with_headers(client, content_type=media_type).execute(made.reference, method="patch", data=body)
    assert changed.gender == "female" and changed.name == [{"family": "Martin"}]


def test_a_conditional_create_makes_one_resource_only(client: SyncFHIRClient) -> None:
    value = str(uuid.uuid4())
    body = {"resourceType": "Patient", "identifier": [{"system": SYSTEM, "value": value}]}
    # snippet: conditional create
    once = SyncFHIRClient(client.url, client.authorization, {"If-None-Exist": f"identifier={SYSTEM}|{value}"})
    made = once.execute("Patient", data=body)
    again = once.execute("Patient", data=body)
    # end
    assert made.id == again.id
    assert len(client.resources("Patient").search(identifier=f"{SYSTEM}|{value}").fetch_all()) == 1


def test_a_conditional_update_creates_then_updates(client: SyncFHIRClient) -> None:
    value = f"{SYSTEM}|{uuid.uuid4()}"
    identifier = [dict(zip(("system", "value"), value.split("|"), strict=True))]
    found = client.resources("Patient").search(identifier=value)
    made, created = found.update(client.resource("Patient", identifier=identifier))
    again, created_again = found.update(client.resource("Patient", identifier=identifier, active=True))
    assert (created, created_again) == (True, False)
    assert again.id == made.id and again.active is True


def test_a_transaction_resolves_its_own_references(client: SyncFHIRClient) -> None:
    # snippet: transaction
    who = f"urn:uuid:{uuid.uuid4()}"
    answer = client.resource(
        "Bundle",
        type="transaction",
        entry=[
            {
                "fullUrl": who,
                "resource": {"resourceType": "Patient", "name": [{"family": "Petit"}]},
                "request": {"method": "POST", "url": "Patient"},
            },
            {
                "resource": {
                    "resourceType": "Observation",
                    "status": "final",
                    "code": {"text": "taille"},
                    "subject": {"reference": who},
                },
                "request": {"method": "POST", "url": "Observation"},
            },
        ],
    )
    done = client.execute("", data=answer.serialize())
    # end
    assert [entry.response.status.split()[0] for entry in done.entry] == ["201", "201"]
    places = [entry.response.location.split("/_history")[0].split("/fhir/")[-1] for entry in done.entry]
    seen = client.reference(reference=places[1]).to_resource()
    assert seen.subject.reference == places[0]
    assert seen.subject.to_resource().name[0]["family"] == "Petit"


def test_a_search_is_walked_page_by_page_with_what_it_includes(client: SyncFHIRClient) -> None:
    who = patient(client)
    for number in range(5):
        seen = client.resource("Observation", status="final", code={"text": str(number)}, subject=who.to_reference())
        seen.save()
    # snippet: search
    found = client.resources("Observation").search(subject=who).sort("-_lastUpdated").limit(2)
    texts = [one.code["text"] for one in found]
    # end
    assert texts == ["4", "3", "2", "1", "0"]
    page = found.include("Observation", "subject").search(_total="accurate").fetch_raw()
    assert [entry.search.mode for entry in page.entry] == ["match", "match", "include"]
    assert page.entry[2].resource.id == who.id and page.total == 5
    assert client.resources("Observation").search(subject=who).first().subject.id == who.id


def test_what_went_before_is_in_the_history_and_what_is_deleted_is_gone(client: SyncFHIRClient) -> None:
    made = patient(client)
    made["active"] = True
    made.save()
    made.delete()
    with pytest.raises(ResourceNotFound, match="deleted"):
        client.get("Patient", made.id)
    with pytest.raises(ResourceNotFound):
        client.get("Patient", "never-there")
    past = client.execute(f"Patient/{made.id}/_history", method="get")
    assert [entry.request.method for entry in past.entry] == ["DELETE", "PUT", "POST"]


def test_a_refusal_arrives_as_an_operation_outcome(client: SyncFHIRClient) -> None:
    issues: list[dict[str, Any]] = []
    # snippet: refusal
    try:
        client.resource("Patient", gender="unknwon", birthDate="1980-02-30").save()
    except OperationOutcome as refused:
        issues = refused.resource["issue"]
    # end
    assert {issue["expression"][0] for issue in issues} == {"Patient.gender", "Patient.birthDate"}
    assert all(issue["severity"] == "error" and issue["diagnostics"] for issue in issues)


def test_a_binary_keeps_its_bytes(client: SyncFHIRClient) -> None:
    made = client.resource("Binary", contentType="image/png", data=base64.b64encode(BINARY).decode())
    made.save()
    read = client.get("Binary", made.id)
    assert base64.b64decode(read["data"]) == BINARY and read["contentType"] == "image/png"


def test_the_asynchronous_client_reads_and_writes_at_the_same_time(client: SyncFHIRClient) -> None:
    async def story() -> list[str]:
        remote = AsyncFHIRClient(client.url, client.authorization)
        made = [remote.resource("Patient", name=[{"family": f"Martin {number}"}]) for number in range(8)]
        await asyncio.gather(*(one.save() for one in made))
        read = await asyncio.gather(*(remote.reference("Patient", one.id).to_resource() for one in made))
        return [one.name[0]["family"] for one in read]

    assert asyncio.run(story()) == [f"Martin {number}" for number in range(8)]


def test_without_a_token_nothing_is_read_but_the_capability_statement(client: SyncFHIRClient) -> None:
    stranger = SyncFHIRClient(client.url)
    assert stranger.execute("metadata", method="get").fhirVersion == "4.0.1"
    with pytest.raises(AuthorizationError, match="OperationOutcome"):
        stranger.resources("Patient").first()


# --- dialects of another server --------------------------------------------------------------------------------------


def test_a_partial_update_in_plain_json_is_refused_with_the_patches_there_are(client: SyncFHIRClient) -> None:
    made = patient(client)
    with pytest.raises(OperationOutcome, match=r"application/json-patch\+json"):
        made.patch(active=True)


def test_the_count_needs_leniency_for_a_parameter_fhir_does_not_know(client: SyncFHIRClient) -> None:
    who = patient(client)
    found = client.resources("Patient").search(_id=who.id)
    with pytest.raises(OperationOutcome, match="_totalMethod"):
        found.count()
    lenient = with_headers(client, prefer="handling=lenient")
    assert lenient.resources("Patient").search(_id=who.id).count() == 1


def test_a_resource_is_validated_before_it_is_sent(client: SyncFHIRClient) -> None:
    assert client.resource("Patient", gender="female").is_valid()
    assert not client.resource("Patient", gender="neither").is_valid()


def test_a_create_with_a_query_is_refused_rather_than_made_twice(client: SyncFHIRClient) -> None:
    value = f"{SYSTEM}|{uuid.uuid4()}"
    with pytest.raises(OperationOutcome, match="If-None-Exist"):
        client.resources("Patient").search(identifier=value).get_or_create(client.resource("Patient"))
