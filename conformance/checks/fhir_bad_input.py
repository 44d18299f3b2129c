"""What a FHIR R4 server does with faulty requests: a 4xx with an OperationOutcome, and nothing stored.

https://hl7.org/fhir/R4/http.html#create, https://hl7.org/fhir/R4/operationoutcome.html
"""

from __future__ import annotations

from conformance.checks.fhir_rest import HTTP, patient
from conformance.runner import check
from conformance.target import Context
from conformance.wire_fhir import OUTCOME, to_json

_CREATE = ("fhir:Patient.create",)


@check(
    id="fhir.invalid-json",
    title="A body that is no JSON is answered 400 with an OperationOutcome",
    verifies=(f"{HTTP}#create", OUTCOME),
    wire="fhir",
    needs=_CREATE,
    hint="A parser's exception is the client's fault: 400, not 500.",
)
def invalid_json(at: Context) -> None:
    at.fhir.request("POST", "Patient", to_json(patient(at))[:-1]).expect(400).outcome()


@check(
    id="fhir.other-type-in-body",
    title="A create of one type with a body of another is refused (400 or 422) with an OperationOutcome",
    verifies=(f"{HTTP}#create", OUTCOME),
    wire="fhir",
    needs=_CREATE,
)
def other_type_in_body(at: Context) -> None:
    body = {"resourceType": "Basic", "code": {"text": "conformance kit"}}
    at.fhir.request("POST", "Patient", body).expect(400, 422).outcome()


@check(
    id="fhir.bad-date",
    title="A birthDate that is no date is refused (400 or 422) with an OperationOutcome",
    verifies=(f"{HTTP}#create", "https://hl7.org/fhir/R4/datatypes.html#date", OUTCOME),
    wire="fhir",
    needs=_CREATE,
    hint="What is stored once goes on to every partner: primitive formats are checked at the door.",
)
def bad_date(at: Context) -> None:
    at.fhir.request("POST", "Patient", {**patient(at), "birthDate": "28/03/1979"}).expect(400, 422).outcome()


@check(
    id="fhir.wrong-cardinality",
    title="An object where a list belongs is refused (400 or 422) with an OperationOutcome",
    verifies=(f"{HTTP}#create", "https://hl7.org/fhir/R4/json.html", OUTCOME),
    wire="fhir",
    needs=_CREATE,
)
def wrong_cardinality(at: Context) -> None:
    at.fhir.request("POST", "Patient", {**patient(at), "name": {"family": "SEUL"}}).expect(400, 422).outcome()


@check(
    id="fhir.unsupported-media-type",
    title="A body of a media type that FHIR does not have is answered 415",
    verifies=(f"{HTTP}#mime-type",),
    wire="fhir",
    needs=_CREATE,
)
def unsupported_media_type(at: Context) -> None:
    at.fhir.request("POST", "Patient", to_json(patient(at)), {"Content-Type": "text/plain"}).expect(415)
