"""FHIR R4 REST, one resource at a time: capabilities, create, read, vread, update, delete, history.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import uuid
from email.utils import parsedate_to_datetime
from typing import Any

from conformance.runner import check
from conformance.target import Context
from conformance.verdict import Failed, Skipped, expect
from conformance.wire_fhir import MEDIA_TYPE, Answer, Lexeme, differences

HTTP = "https://hl7.org/fhir/R4/http.html"
SYSTEM = "https://example.org/conformance-kit"
"""The namespace of every identifier that the kit invents."""


def patient(at: Context, identifier: str | None = None) -> dict[str, Any]:
    """A new fictitious Patient with an identifier of the kit's own namespace."""
    born = at.options.birth_date
    return {
        "resourceType": "Patient",
        "identifier": [{"system": SYSTEM, "value": identifier or at.unique()}],
        "name": [{"use": "official", "family": at.options.family, "given": [at.options.given]}],
        "gender": {"F": "female", "M": "male"}.get(at.options.sex, "unknown"),
        "birthDate": f"{born[:4]}-{born[4:6]}-{born[6:8]}",
    }


def observation() -> dict[str, Any]:
    """An Observation rich in what servers lose: decimal precision, non-ASCII text, extensions."""
    unit = {"unit": "kg", "system": "http://unitsofmeasure.org", "code": "kg"}
    return {
        "resourceType": "Observation",
        "extension": [{"url": f"{SYSTEM}/extension", "valueDecimal": Lexeme("1.000")}],
        "status": "final",
        "code": {
            "coding": [{"system": "http://loinc.org", "code": "29463-7"}],
            "text": "Poids, pesé à l’arrivée — 体重",
        },
        "effectiveDateTime": "2024-03-06T11:11:54.120+01:00",
        "_effectiveDateTime": {"extension": [{"url": f"{SYSTEM}/extension", "valueString": "estimé"}]},
        "valueQuantity": {"value": Lexeme("72.50"), **unit},
        "referenceRange": [{"low": {"value": Lexeme("0.000000100"), **unit}, "text": 'ligne 1\nligne 2 "citée"'}],
    }


def stored(answer: Answer, kind: str, rid: str) -> dict[str, Any]:
    """The resource of a read, with the id that was asked for."""
    value = answer.expect(200).resource(kind)
    expect(value.get("id") == rid, f"id {rid}", value.get("id"))
    return value


def version_of(resource: dict[str, Any]) -> str:
    """meta.versionId, '' when there is none."""
    meta = resource.get("meta")
    return str(meta.get("versionId", "")) if isinstance(meta, dict) else ""


@check(
    id="fhir.metadata",
    title="GET metadata gives the CapabilityStatement of an R4 (4.0.1) server with JSON among its formats",
    verifies=(f"{HTTP}#capabilities", "https://hl7.org/fhir/R4/capabilitystatement.html"),
    wire="fhir",
    hint="Is the address the service base URL? Try it in a browser with /metadata behind it.",
)
def metadata(at: Context) -> None:
    statement = at.fhir.get("metadata").expect(200).resource("CapabilityStatement")
    expect(statement.get("fhirVersion") == "4.0.1", "fhirVersion 4.0.1", statement.get("fhirVersion"))
    formats = statement.get("format")
    known = isinstance(formats, list) and {"json", "application/json", MEDIA_TYPE} & set(map(str, formats))
    expect(known, f"{MEDIA_TYPE} or json among the formats", formats)
    for name in ("status", "date", "kind"):
        expect(statement.get(name), f"CapabilityStatement.{name}, which is mandatory", "none")
    rest = statement.get("rest")
    modes = [one.get("mode") for one in rest if isinstance(one, dict)] if isinstance(rest, list) else []
    expect("server" in modes, "a rest entry with mode server", modes)


@check(
    id="fhir.media-type",
    title="A resource is served as application/fhir+json",
    verifies=(f"{HTTP}#mime-type",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.read"),
)
def media_type(at: Context) -> None:
    answer = at.fhir.get(at.fhir.prepare(patient(at)).path, {"Accept": MEDIA_TYPE}).expect(200)
    kind = answer.headers.get("content-type", "")
    expect(kind.partition(";")[0].strip().lower() == MEDIA_TYPE, f"Content-Type {MEDIA_TYPE}", kind or "none")


@check(
    id="fhir.create",
    title="A create is answered 201, with the new id in Location",
    verifies=(f"{HTTP}#create",),
    wire="fhir",
    needs=("fhir:Patient.create",),
    hint="Location is [base]/Patient/[id]/_history/[vid].",
)
def create(at: Context) -> None:
    answer = at.fhir.request("POST", "Patient", patient(at)).expect(201)
    kind, rid, _ = answer.location()
    location = answer.headers.get("location", "no Location")
    expect(kind == "Patient" and rid, "a Location that ends in Patient/[id]/_history/[vid]", location)


@check(
    id="fhir.create-version",
    title="The answer to a create carries the new version, the same in Location and ETag",
    verifies=(f"{HTTP}#create", f"{HTTP}#versioning"),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.versioned"),
    hint='Location is [base]/Patient/[id]/_history/[vid]; ETag is W/"[vid]".',
)
def create_version(at: Context) -> None:
    answer = at.fhir.request("POST", "Patient", patient(at)).expect(200, 201)
    _, _, version = answer.location()
    expect(version, "the version in Location: Patient/[id]/_history/[vid]", answer.headers.get("location", "none"))
    expect(
        answer.version == version, f'ETag W/"{version}", the version of Location', answer.headers.get("etag", "none")
    )


@check(
    id="fhir.create-ignores-id",
    title="The id and version that a client puts into a create are replaced by the server's",
    verifies=(f"{HTTP}#create",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.read"),
    hint="A client that wishes for an id uses PUT.",
)
def create_ignores_id(at: Context) -> None:
    wished = f"wished-{uuid.uuid4()}"
    body = {**patient(at), "id": wished, "meta": {"versionId": "777", "lastUpdated": "2001-01-01T00:00:00Z"}}
    made = at.fhir.prepare(body)
    expect(made.id != wished, "an id chosen by the server", made.id)
    meta = stored(at.fhir.get(made.path), "Patient", made.id).get("meta") or {}
    told = (meta.get("versionId"), meta.get("lastUpdated"))
    expect(told[0] != "777" and not str(told[1]).startswith("2001"), "version and time set by the server", told)


@check(
    id="fhir.read-back",
    title="A read gives back every value of the create: 72.50 stays 72.50, extensions and accents stay",
    verifies=(f"{HTTP}#create", "https://hl7.org/fhir/R4/datatypes.html#decimal", "https://hl7.org/fhir/R4/json.html"),
    wire="fhir",
    needs=("fhir:Observation.create", "fhir:Observation.read"),
    hint="Binary floats lose the trailing zero of 72.50: keep the digits as they were written.",
)
def read_back(at: Context) -> None:
    sent = observation()
    made = at.fhir.prepare(sent)
    lost = list(differences(sent, stored(at.fhir.get(made.path), "Observation", made.id)))
    expect(not lost, "every value as it was sent", "; ".join(lost[:5]))


@check(
    id="fhir.read-headers",
    title="A read carries ETag and Last-Modified that agree with meta",
    verifies=(f"{HTTP}#read", f"{HTTP}#versioning", f"{HTTP}#concurrency"),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.read", "fhir:Patient.versioned"),
)
def read_headers(at: Context) -> None:
    made = at.fhir.prepare(patient(at))
    answer = at.fhir.get(made.path)
    resource = stored(answer, "Patient", made.id)
    version = version_of(resource)
    expect(version, "meta.versionId", "none")
    expect(answer.version == version, f'ETag W/"{version}", the meta.versionId', answer.headers.get("etag", "none"))
    modified = answer.headers.get("last-modified", "")
    try:
        moment = parsedate_to_datetime(modified).strftime("%Y-%m-%dT%H:%M")
    except ValueError:
        raise Failed("an HTTP date in Last-Modified", modified or "none") from None
    updated = str(resource["meta"].get("lastUpdated", ""))
    # Compared only where both are in UTC: a zone in meta moves the digits, and that is legal.
    agrees = updated.startswith(moment) or not updated.endswith(("Z", "+00:00"))
    expect(agrees, f"Last-Modified of the moment {updated}", modified)


@check(
    id="fhir.unknown-id",
    title="A read of an unknown id is answered 404 with an OperationOutcome",
    verifies=(f"{HTTP}#read", f"{HTTP}#ops"),
    wire="fhir",
    needs=("fhir:Patient.read",),
)
def unknown_id(at: Context) -> None:
    at.fhir.get(f"Patient/{uuid.uuid4()}").expect(404).outcome()


@check(
    id="fhir.unknown-type",
    title="A read of a type that FHIR does not have is answered 404 with an OperationOutcome",
    verifies=(f"{HTTP}#create", f"{HTTP}#ops"),
    wire="fhir",
)
def unknown_type(at: Context) -> None:
    at.fhir.get("Nonsense/1").expect(404).outcome()


@check(
    id="fhir.vread",
    title="An earlier version stays readable as it was, under its own version id",
    verifies=(f"{HTTP}#vread",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.update", "fhir:Patient.vread"),
)
def vread(at: Context) -> None:
    sent = patient(at)
    made = at.fhir.prepare(sent)
    changed = {**sent, "id": made.id, "birthDate": "1980-01-01"}
    at.fhir.request("PUT", made.path, changed).expect(200)
    first = stored(at.fhir.get(f"{made.path}/_history/{made.version}"), "Patient", made.id)
    expect(version_of(first) == made.version, f"meta.versionId {made.version}", version_of(first))
    lost = list(differences(sent, first))
    expect(not lost, "the first version as it was sent", "; ".join(lost[:5]))


@check(
    id="fhir.update",
    title="An update is answered 200 with a new version, and a read gives the new content",
    verifies=(f"{HTTP}#update",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.read", "fhir:Patient.update", "fhir:Patient.versioned"),
)
def update(at: Context) -> None:
    sent = patient(at)
    made = at.fhir.prepare(sent)
    changed = {**sent, "id": made.id, "birthDate": "1980-01-01"}
    answer = at.fhir.request("PUT", made.path, changed).expect(200)
    expect(
        answer.version not in {"", made.version}, f"a new version in ETag, not {made.version}", answer.version or "none"
    )
    now = stored(at.fhir.get(made.path), "Patient", made.id)
    expect(version_of(now) == answer.version, f"meta.versionId {answer.version}", version_of(now))
    lost = list(differences(changed, now))
    expect(not lost, "the updated content", "; ".join(lost[:5]))


@check(
    id="fhir.update-creates",
    title="An update to an unused id creates the resource there, with 201",
    verifies=(f"{HTTP}#upsert",),
    wire="fhir",
    needs=("fhir:Patient.update", "fhir:Patient.read", "fhir:Patient.updateCreate"),
)
def update_creates(at: Context) -> None:
    rid = f"kit-{uuid.uuid4()}"
    at.fhir.made.append(f"Patient/{rid}")
    at.fhir.request("PUT", f"Patient/{rid}", {**patient(at), "id": rid}).expect(201)
    stored(at.fhir.get(f"Patient/{rid}"), "Patient", rid)


@check(
    id="fhir.id-mismatch",
    title="An update whose body has another id than its address is answered 400 and changes nothing",
    verifies=(f"{HTTP}#update",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.read", "fhir:Patient.update"),
)
def id_mismatch(at: Context) -> None:
    sent = patient(at)
    made = at.fhir.prepare(sent)
    wrong = {**sent, "id": f"kit-{uuid.uuid4()}", "birthDate": "1980-01-01"}
    at.fhir.request("PUT", made.path, wrong).expect(400)
    now = stored(at.fhir.get(made.path), "Patient", made.id)
    expect(now.get("birthDate") == sent["birthDate"], "the resource unchanged", now.get("birthDate"))


@check(
    id="fhir.deleted",
    title="A read of a deleted resource is answered 410",
    verifies=(f"{HTTP}#delete", f"{HTTP}#read"),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.read", "fhir:Patient.delete"),
    hint="404 is for ids that never existed; only a server that keeps no trace of deleted resources may say it here.",
)
def deleted(at: Context) -> None:
    made = at.fhir.prepare(patient(at))
    at.fhir.request("DELETE", made.path).expect(200, 202, 204)
    answer = at.fhir.get(made.path).expect(410, 404)
    if answer.status == 404:
        history = at.fhir.get(f"{made.path}/_history")
        if history.status != 200:
            raise Skipped("the system keeps no trace of deleted resources, which the clause allows")
        raise Failed("status 410, since the history still knows the resource", answer.status)


@check(
    id="fhir.history",
    title="The history of a resource lists its versions, newest first, each with its request",
    verifies=(f"{HTTP}#history",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.update", "fhir:Patient.history-instance"),
)
def history(at: Context) -> None:
    sent = patient(at)
    made = at.fhir.prepare(sent)
    changed = {**sent, "id": made.id, "birthDate": "1980-01-01"}
    second = at.fhir.request("PUT", made.path, changed).expect(200).version
    bundle = at.fhir.get(f"{made.path}/_history").expect(200).resource("Bundle")
    expect(bundle.get("type") == "history", "a Bundle of type history", bundle.get("type"))
    entries = [one for one in bundle.get("entry") or [] if isinstance(one, dict)]
    versions = [version_of(one.get("resource") or {}) for one in entries]
    wanted = [second or "(the new version)", made.version]
    expect(len(versions) == 2, f"two versions, {wanted}", versions)
    dates = [str((one.get("resource") or {}).get("birthDate")) for one in entries]
    expect(dates == ["1980-01-01", sent["birthDate"]], "the newest version first", f"birthDate {dates}")
    methods = [(one.get("request") or {}).get("method") for one in entries]
    expect(methods == ["PUT", "POST"], "request.method PUT, then POST", methods)
