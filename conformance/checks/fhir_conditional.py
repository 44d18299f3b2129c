"""FHIR R4 REST under conditions: stale versions, lost updates, conditional read, create and update.

https://hl7.org/fhir/R4/http.html#concurrency
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conformance.checks.fhir_rest import HTTP, SYSTEM, patient, stored, version_of
from conformance.runner import check
from conformance.target import Context
from conformance.verdict import expect

WRITERS = 4
_VERSIONED = ("fhir:Patient.create", "fhir:Patient.read", "fhir:Patient.update", "fhir:Patient.versioned")


def matches(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    """The resources of a searchset that match; included ones and outcomes left out."""
    entries = [one for one in bundle.get("entry") or [] if isinstance(one, dict)]
    kept = [one for one in entries if (one.get("search") or {}).get("mode", "match") == "match"]
    return [one.get("resource") or {} for one in kept]


def found(at: Context, identifier: str) -> list[str]:
    """Ids of the Patients with this identifier of the kit, by a search."""
    answer = at.fhir.get(f"Patient?identifier={SYSTEM}%7C{identifier}").expect(200)
    return [str(one.get("id")) for one in matches(answer.resource("Bundle"))]


@check(
    id="fhir.stale-if-match",
    title="An update with a stale If-Match is answered 412 (or 409) and makes no new version",
    verifies=(f"{HTTP}#concurrency",),
    wire="fhir",
    needs=_VERSIONED,
    hint="Compare If-Match with the current version inside the transaction that writes.",
)
def stale_if_match(at: Context) -> None:
    sent = patient(at)
    made = at.fhir.prepare(sent)
    second = {**sent, "id": made.id, "birthDate": "1980-01-01"}
    current = {"If-Match": f'W/"{made.version}"'}
    at.fhir.request("PUT", made.path, second, current).expect(200, why="If-Match names the current version")
    before = stored(at.fhir.get(made.path), "Patient", made.id)
    third = {**second, "birthDate": "1981-01-01"}
    at.fhir.request("PUT", made.path, third, current).expect(412, 409, why="If-Match is stale")
    now = stored(at.fhir.get(made.path), "Patient", made.id)
    expect(now.get("birthDate") == "1980-01-01", "the content of the second version", now.get("birthDate"))
    expect(version_of(now) == version_of(before), f"version {version_of(before)}", version_of(now))


@check(
    id="fhir.lost-update",
    title=f"Of {WRITERS} simultaneous updates with the same If-Match exactly one succeeds",
    verifies=(f"{HTTP}#concurrency",),
    wire="fhir",
    level="N2",
    needs=_VERSIONED,
    hint="Checking the version and then writing is not enough: both must be one atomic step.",
)
def lost_update(at: Context) -> None:
    sent = patient(at)
    made = at.fhir.prepare(sent)

    def write(year: int) -> int:
        client = at.fhir.another()
        try:
            body = {**sent, "id": made.id, "birthDate": f"{year}-01-01"}
            return client.request("PUT", made.path, body, {"If-Match": f'W/"{made.version}"'}).status
        finally:
            client.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        statuses = list(pool.map(write, range(1980, 1980 + WRITERS)))
    winners = [1980 + n for n, status in enumerate(statuses) if status == 200]
    expect(len(winners) == 1, "one 200, the others refused", statuses)
    now = stored(at.fhir.get(made.path), "Patient", made.id)
    expect(
        now.get("birthDate") == f"{winners[0]}-01-01", "the content of the update that succeeded", now.get("birthDate")
    )


@check(
    id="fhir.conditional-read",
    title="A read with If-None-Match of the current version is answered 304",
    verifies=(f"{HTTP}#cread",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient.read", "fhir:Patient.conditionalRead"),
)
def conditional_read(at: Context) -> None:
    made = at.fhir.prepare(patient(at))
    at.fhir.get(made.path, {"If-None-Match": f'W/"{made.version}"'}).expect(304)
    at.fhir.get(made.path, {"If-None-Match": 'W/"999999"'}).expect(200)


@check(
    id="fhir.conditional-create",
    title="If-None-Exist: no match creates (201), one match does not (200), several are refused (412)",
    verifies=(f"{HTTP}#ccreate",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient?identifier", "fhir:Patient.conditionalCreate"),
)
def conditional_create(at: Context) -> None:
    identifier = at.unique()
    condition = {"If-None-Exist": f"identifier={SYSTEM}|{identifier}"}
    body = patient(at, identifier)
    _, first, _ = at.fhir.request("POST", "Patient", body, condition).expect(201, why="no match").location()
    at.until(lambda: first in found(at, identifier))
    at.fhir.request("POST", "Patient", body, condition).expect(200, why="one match")
    ids = found(at, identifier)
    expect(ids == [first], "still one Patient with the identifier", ids)
    at.fhir.prepare(body)
    at.until(lambda: len(found(at, identifier)) == 2)
    at.fhir.request("POST", "Patient", body, condition).expect(412, why="two matches")


@check(
    id="fhir.conditional-update",
    title="PUT with search parameters: no match creates (201), one match updates (200), several are refused (412)",
    verifies=(f"{HTTP}#cond-update",),
    wire="fhir",
    needs=("fhir:Patient.create", "fhir:Patient?identifier", "fhir:Patient.conditionalUpdate"),
)
def conditional_update(at: Context) -> None:
    identifier = at.unique()
    query = f"Patient?identifier={SYSTEM}%7C{identifier}"
    body: dict[str, Any] = patient(at, identifier)
    _, first, _ = at.fhir.request("PUT", query, body).expect(201, why="no match").location()
    at.until(lambda: first in found(at, identifier))
    changed = {**body, "birthDate": "1980-01-01"}
    at.fhir.request("PUT", query, changed).expect(200, why="one match")
    now = stored(at.fhir.get(f"Patient/{first}"), "Patient", first)
    expect(now.get("birthDate") == "1980-01-01", "the match updated", now.get("birthDate"))
    at.fhir.prepare(body)
    at.until(lambda: len(found(at, identifier)) == 2)
    at.fhir.request("PUT", query, changed).expect(412, why="two matches")
