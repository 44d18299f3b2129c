"""FHIR R4 search as far as every server must get it right: matches, self link, unknown parameters, POST, paging.

https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from conformance.checks.fhir_conditional import found, matches
from conformance.checks.fhir_rest import HTTP, SYSTEM, patient
from conformance.runner import check
from conformance.target import Context
from conformance.verdict import expect

SEARCH = "https://hl7.org/fhir/R4/search.html"
PAGES = 12
_NEEDS = ("fhir:Patient.create", "fhir:Patient.search-type", "fhir:Patient?identifier")


def link(bundle: dict[str, Any], relation: str) -> str:
    """The URL of the link with this relation, '' for none."""
    links = [one for one in bundle.get("link") or [] if isinstance(one, dict)]
    return next((str(one.get("url", "")) for one in links if one.get("relation") == relation), "")


@check(
    id="fhir.search-token",
    title="A search by identifier finds that resource and no other, in a searchset with a self link",
    verifies=(f"{SEARCH}#token", f"{HTTP}#search", f"{SEARCH}#conformance"),
    wire="fhir",
    needs=_NEEDS,
)
def search_token(at: Context) -> None:
    identifier = at.unique()
    made, _ = at.fhir.prepare(patient(at, identifier)), at.fhir.prepare(patient(at))
    at.until(lambda: made.id in found(at, identifier))
    answer = at.fhir.get(f"Patient?identifier={SYSTEM}%7C{identifier}").expect(200)
    bundle = answer.resource("Bundle")
    expect(bundle.get("type") == "searchset", "a Bundle of type searchset", bundle.get("type"))
    ids = [one.get("id") for one in matches(bundle)]
    expect(ids == [made.id], f"Patient {made.id} alone", ids)
    used = dict(parse_qsl(urlsplit(link(bundle, "self")).query))
    expect("identifier" in used, "identifier in the self link", link(bundle, "self") or "no self link")


@check(
    id="fhir.search-post",
    title="POST _search finds what GET finds",
    verifies=(f"{HTTP}#search",),
    wire="fhir",
    needs=_NEEDS,
    hint="The body is application/x-www-form-urlencoded; it keeps identities out of the logs of proxies.",
)
def search_post(at: Context) -> None:
    identifier = at.unique()
    made, _ = at.fhir.prepare(patient(at, identifier)), at.fhir.prepare(patient(at))
    at.until(lambda: made.id in found(at, identifier))
    form = f"identifier={SYSTEM.replace(':', '%3A').replace('/', '%2F')}%7C{identifier}".encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    bundle = at.fhir.request("POST", "Patient/_search", form, kind).expect(200).resource("Bundle")
    ids = [one.get("id") for one in matches(bundle)]
    expect(ids == [made.id], f"Patient {made.id} alone", ids)


@check(
    id="fhir.unknown-parameter",
    title="An unknown search parameter is refused, or left out of the self link: never silently ignored",
    verifies=(f"{SEARCH}#errors", f"{SEARCH}#conformance"),
    wire="fhir",
    needs=("fhir:Patient.search-type",),
    hint="A client that mistypes a filter gets everybody: refuse it with 400, or let the self link tell.",
)
def unknown_parameter(at: Context) -> None:
    answer = at.fhir.get("Patient?no-such-parameter=1&_count=1")
    if 400 <= answer.status < 500:
        answer.outcome()
        return
    bundle = answer.expect(200, 400).resource("Bundle")
    used = dict(parse_qsl(urlsplit(link(bundle, "self")).query, keep_blank_values=True))
    expect(link(bundle, "self"), "a self link with the parameters that were used", "no self link")
    expect("no-such-parameter" not in used, "a self link without no-such-parameter", link(bundle, "self"))


@check(
    id="fhir.deleted-not-found",
    title="A deleted resource is no longer found by a search",
    verifies=(f"{HTTP}#delete",),
    wire="fhir",
    needs=(*_NEEDS, "fhir:Patient.delete"),
)
def deleted_not_found(at: Context) -> None:
    identifier = at.unique()
    made = at.fhir.prepare(patient(at, identifier))
    expect(at.until(lambda: made.id in found(at, identifier)), "the new Patient found before it is deleted", "nothing")
    at.fhir.request("DELETE", made.path).expect(200, 202, 204)
    gone = at.until(lambda: not found(at, identifier))
    expect(gone, "no match after the deletion", found(at, identifier))


@check(
    id="fhir.paging",
    title="Following next links with _count=1 gives every match once",
    verifies=(f"{HTTP}#paging", f"{SEARCH}#count"),
    wire="fhir",
    level="N2",
    needs=_NEEDS,
    hint="_count is an upper bound; the next link must continue where the page ended.",
)
def paging(at: Context) -> None:
    identifier = at.unique()
    wanted = sorted(at.fhir.prepare(patient(at, identifier)).id for _ in range(3))
    at.until(lambda: len(found(at, identifier)) == len(wanted))
    seen: list[str] = []
    url = f"Patient?identifier={SYSTEM}%7C{identifier}&_count=1"
    for _ in range(PAGES):
        bundle = at.fhir.get(url).expect(200).resource("Bundle")
        page = [str(one.get("id")) for one in matches(bundle)]
        expect(len(page) <= 1, "at most one match a page, as _count=1 asks", page)
        seen += page
        url = link(bundle, "next")
        if not url:
            break
    expect(sorted(seen) == wanted, f"each of {wanted} once", sorted(seen))
