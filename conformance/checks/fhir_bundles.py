"""FHIR R4 batch and transaction: all or nothing, references inside a bundle, independent entries.

https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

import uuid
from typing import Any

from conformance.checks.fhir_conditional import found
from conformance.checks.fhir_rest import HTTP, observation, patient, stored, version_of
from conformance.runner import check
from conformance.target import Context
from conformance.verdict import expect
from conformance.wire_fhir import split_location

_SEARCH = ("fhir:Patient.read", "fhir:Patient.search-type", "fhir:Patient?identifier")


def bundle(kind: str, *entries: dict[str, Any]) -> dict[str, Any]:
    """A Bundle to be posted to the base."""
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def entry(method: str, url: str, resource: dict[str, Any] | None = None, **more: str) -> dict[str, Any]:
    """One entry, with a fullUrl when it has a resource; `more` are further elements of request, such as ifMatch."""
    request = {"method": method, "url": url, **more}
    if resource is None:
        return {"request": request}
    return {"fullUrl": f"urn:uuid:{uuid.uuid4()}", "resource": resource, "request": request}


def responses(at: Context, answer: dict[str, Any], kind: str, count: int) -> list[dict[str, Any]]:
    """The response elements of a response bundle of `kind`; what it created is cleaned up later."""
    expect(answer.get("type") == kind, f"a Bundle of type {kind}", answer.get("type"))
    entries = [one for one in answer.get("entry") or [] if isinstance(one, dict)]
    expect(len(entries) == count, f"{count} entries, one for each of the request", len(entries))
    told = [one.get("response") or {} for one in entries]
    for one in told:
        resource_type, rid, _ = split_location(str(one.get("location", "")))
        if rid and str(one.get("status", "")).startswith("201"):
            at.fhir.made.append(f"{resource_type}/{rid}")
    return told


@check(
    id="fhir.transaction-atomic",
    title="A transaction with one faulty entry fails as a whole: nothing of it is stored",
    verifies=(f"{HTTP}#trules",),
    wire="fhir",
    level="N2",
    needs=("fhir:transaction", *_SEARCH, "fhir:Patient.update", "fhir:Patient.versioned"),
    hint="All entries belong in one database transaction; the stale ifMatch of the PUT must undo the POST before it.",
)
def transaction_atomic(at: Context) -> None:
    # First a good one: only then does the absence of what the bad one wanted to create mean anything.
    control, lost = at.unique(), at.unique()
    answer = at.fhir.request("POST", "", bundle("transaction", entry("POST", "Patient", patient(at, control))))
    responses(at, answer.expect(200).resource("Bundle"), "transaction-response", 1)
    expect(at.until(lambda: len(found(at, control)) == 1), "the Patient of a good transaction found", "nothing")

    kept = patient(at)
    made = at.fhir.prepare(kept)
    changed = {**kept, "id": made.id, "birthDate": "1980-01-01"}
    at.fhir.request("PUT", made.path, changed).expect(200)
    before = version_of(stored(at.fhir.get(made.path), "Patient", made.id))
    stale = entry("PUT", made.path, {**kept, "id": made.id}, ifMatch=f'W/"{made.version}"')
    good = entry("POST", "Patient", patient(at, lost))
    refused = at.fhir.request("POST", "", bundle("transaction", good, stale))
    expect(400 <= refused.status < 600, "a status of 400 or more: the ifMatch of the PUT is stale", refused.status)
    refused.outcome()
    now = version_of(stored(at.fhir.get(made.path), "Patient", made.id))
    expect(now == before, f"version {before} as before", now)
    expect(
        not at.until(lambda: bool(found(at, lost)), min(0.3, at.options.settle)),
        "nothing of the failed transaction stored",
        found(at, lost),
    )


@check(
    id="fhir.transaction-references",
    title="References between entries of a transaction (urn:uuid) become references to the stored resources",
    verifies=(f"{HTTP}#trules", f"{HTTP}#transaction-response"),
    wire="fhir",
    needs=("fhir:transaction", "fhir:Patient.create", "fhir:Observation.create", "fhir:Observation.read"),
)
def transaction_references(at: Context) -> None:
    subject = entry("POST", "Patient", patient(at))
    dependent = entry("POST", "Observation", {**observation(), "subject": {"reference": subject["fullUrl"]}})
    answer = at.fhir.request("POST", "", bundle("transaction", dependent, subject)).expect(200).resource("Bundle")
    told = responses(at, answer, "transaction-response", 2)
    places = [split_location(str(one.get("location", ""))) for one in told]
    kinds = [one[0] for one in places]
    expect(kinds == ["Observation", "Patient"], "the locations of Observation and Patient, in this order", kinds)
    reference = stored(at.fhir.get(f"Observation/{places[0][1]}"), "Observation", places[0][1]).get("subject", {})
    target = split_location(str(reference.get("reference", "")))[:2]
    expect(target == places[1][:2], f"subject Patient/{places[1][1]}", reference)


@check(
    id="fhir.batch-independent",
    title="In a batch a failing entry does not stop the others, and each has its own status",
    verifies=(f"{HTTP}#transaction", f"{HTTP}#transaction-response"),
    wire="fhir",
    needs=("fhir:batch", "fhir:Patient.create", "fhir:Patient.read"),
)
def batch_independent(at: Context) -> None:
    entries = (entry("GET", f"Patient/{uuid.uuid4()}"), entry("POST", "Patient", patient(at)))
    answer = at.fhir.request("POST", "", bundle("batch", *entries)).expect(200).resource("Bundle")
    told = responses(at, answer, "batch-response", 2)
    statuses = [str(one.get("status", ""))[:3] for one in told]
    expect(statuses == ["404", "201"], "statuses 404, then 201", statuses)
    _, rid, _ = split_location(str(told[1].get("location", "")))
    stored(at.fhir.get(f"Patient/{rid}"), "Patient", rid)
