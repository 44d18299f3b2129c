"""FHIR R4 search across resources and the shape of its answer: chains, includes, sorting, counts, entries, refusals.

https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from typing import Any

from conformance.checks.fhir_conditional import matches
from conformance.checks.fhir_rest import SYSTEM
from conformance.checks.fhir_search import SEARCH
from conformance.checks.fhir_search_values import BORN, OBSERVATION, PATIENT, Stock
from conformance.runner import check
from conformance.target import Context
from conformance.verdict import expect
from conformance.wire_fhir import split_location

_HTTP = "https://hl7.org/fhir/R4/http.html"


def entries(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a Bundle that are objects."""
    return [one for one in bundle.get("entry") or [] if isinstance(one, dict)]


def by_mode(bundle: dict[str, Any]) -> dict[str, list[str]]:
    """search.mode -> `Type/id` of its entries."""
    told: dict[str, list[str]] = {}
    for one in entries(bundle):
        resource = one.get("resource") or {}
        mode = str((one.get("search") or {}).get("mode"))
        told.setdefault(mode, []).append(f"{resource.get('resourceType')}/{resource.get('id')}")
    return told


@check(
    id="fhir.search-nothing",
    title="A search that finds nothing is answered 200 with an empty searchset, not 404",
    verifies=(f"{_HTTP}#search",),
    wire="fhir",
    needs=("fhir:Patient.search-type", "fhir:Patient?identifier"),
)
def search_nothing(at: Context) -> None:
    bundle = at.fhir.get(f"Patient?identifier={SYSTEM}%7C{at.unique()}").expect(200).resource("Bundle")
    expect(bundle.get("type") == "searchset", "a Bundle of type searchset", bundle.get("type"))
    expect(not matches(bundle), "no match", matches(bundle)[:1])


@check(
    id="fhir.search-entries",
    title="Each entry says where its resource is (fullUrl) and why it is there (search.mode)",
    verifies=(f"{SEARCH}#results", "https://hl7.org/fhir/R4/bundle.html#searchset"),
    wire="fhir",
    needs=PATIENT,
)
def search_entries(at: Context) -> None:
    stock = Stock(at)
    bundle = at.fhir.get(f"Patient?identifier={stock.token}").expect(200).resource("Bundle")
    (entry,) = entries(bundle)[:1] or [{}]
    place = split_location(str(entry.get("fullUrl", "")))[:2]
    expect(
        place == ("Patient", stock.patient), f"a fullUrl that ends with Patient/{stock.patient}", entry.get("fullUrl")
    )
    mode = (entry.get("search") or {}).get("mode")
    expect(mode == "match", "search.mode match", mode)


@check(
    id="fhir.search-id",
    title="A search by _id finds the resources of these ids and no other",
    verifies=(f"{SEARCH}#id",),
    wire="fhir",
    needs=PATIENT,
)
def search_id(at: Context) -> None:
    stock = Stock(at, first={}, second={}, third={})
    query = f"_id={stock.ids['first']},{stock.ids['third']}"
    stock.expect_only(f"Patient?{query}", "first", "third")


@check(
    id="fhir.search-last-updated",
    title="Parameter _lastUpdated separates what was written before a moment from what came after",
    verifies=(f"{SEARCH}#lastUpdated",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient.read"),
)
def search_last_updated(at: Context) -> None:
    stock = Stock(at)
    moment = at.fhir.get(f"Patient/{stock.patient}").expect(200).json().get("meta", {}).get("lastUpdated", "")
    expect(moment, "meta.lastUpdated of the resource", "none")
    exact = str(moment).replace("+", "%2B")
    for query, wanted in (("ge2000-01-01", ("only",)), ("lt2000-01-01", ()), (f"ge{exact}", ("only",))):
        stock.expect_patients(f"_lastUpdated={query}", *wanted)


@check(
    id="fhir.search-chain",
    title="A chained parameter follows a reference: Observations by the identifier of their Patient",
    verifies=(f"{SEARCH}#chaining",),
    wire="fhir",
    needs=OBSERVATION,
)
def search_chain(at: Context) -> None:
    Stock(at).observe(theirs={})
    stock = Stock(at).observe(ours={})
    query = f"subject:Patient.identifier={stock.token}"
    stock.expect_only(f"Observation?{query}", "ours")


@check(
    id="fhir.search-has",
    title="Reverse chaining (_has) finds Patients by the Observations that refer to them",
    verifies=(f"{SEARCH}#has",),
    wire="fhir",
    needs=(*OBSERVATION, "fhir:Observation?code"),
)
def search_has(at: Context) -> None:
    stock = Stock(at, measured={}, unmeasured={}).observe(weight={})
    query = f"_has:Observation:subject:code={stock.token}"
    stock.expect_only(f"Patient?{query}", "measured")


@check(
    id="fhir.search-include",
    title="An _include adds the resource referred to, as search.mode include",
    verifies=(f"{SEARCH}#include",),
    wire="fhir",
    needs=(*OBSERVATION, "fhir:Observation?code"),
)
def search_include(at: Context) -> None:
    stock = Stock(at).observe(weight={}, height={})
    url = f"Observation?code={stock.token}&_include=Observation:subject"
    told = by_mode(at.fhir.get(url).expect(200).resource("Bundle"))
    wanted = sorted(f"Observation/{stock.ids[name]}" for name in ("weight", "height"))
    expect(sorted(told.get("match", [])) == wanted, f"the matches {wanted}", told)
    expect(told.get("include") == [f"Patient/{stock.patient}"], f"Patient/{stock.patient} included once", told)


@check(
    id="fhir.search-revinclude",
    title="A _revinclude adds the resources that refer to a match, as search.mode include",
    verifies=(f"{SEARCH}#revinclude",),
    wire="fhir",
    needs=OBSERVATION,
)
def search_revinclude(at: Context) -> None:
    stock = Stock(at).observe(weight={})
    url = f"Patient?identifier={stock.token}&_revinclude=Observation:subject"
    told = by_mode(at.fhir.get(url).expect(200).resource("Bundle"))
    expect(told.get("match") == [f"Patient/{stock.patient}"], f"the match Patient/{stock.patient}", told)
    wanted = [f"Observation/{stock.ids['weight']}"]
    expect(told.get("include") == wanted, f"{wanted[0]} included", told)


@check(
    id="fhir.search-sort",
    title="With _sort the server orders the matches, and a minus sign turns the order round",
    verifies=(f"{SEARCH}#sort",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?birthdate"),
)
def search_sort(at: Context) -> None:
    shuffled = ("june", "y1979", "y1981", "may")
    stock = Stock(at, **{name: {"birthDate": BORN[name]} for name in shuffled})
    for query, wanted in (("birthdate", sorted(BORN.values())), ("-birthdate", sorted(BORN.values(), reverse=True))):
        bundle = at.fhir.get(f"Patient?identifier={stock.token}&_sort={query}").expect(200).resource("Bundle")
        days = [one.get("birthDate") for one in matches(bundle)]
        expect(days == wanted, f"_sort={query} to give {wanted}", days)


@check(
    id="fhir.search-total",
    title="With _total=accurate the answer tells how many match, not how many stand on the page",
    verifies=(f"{SEARCH}#total",),
    wire="fhir",
    needs=PATIENT,
)
def search_total(at: Context) -> None:
    stock = Stock(at, first={}, second={}, third={})
    url = f"Patient?identifier={stock.token}&_total=accurate&_count=1"
    bundle = at.fhir.get(url).expect(200).resource("Bundle")
    expect(bundle.get("total") == 3, "total 3", bundle.get("total"))


@check(
    id="fhir.search-summary-count",
    title="With _summary=count a search gives the total and no entries",
    verifies=(f"{SEARCH}#summary",),
    wire="fhir",
    needs=PATIENT,
)
def search_summary_count(at: Context) -> None:
    stock = Stock(at, first={}, second={})
    bundle = at.fhir.get(f"Patient?identifier={stock.token}&_summary=count").expect(200).resource("Bundle")
    expect(bundle.get("total") == 2, "total 2", bundle.get("total"))
    expect(not bundle.get("entry"), "no entries", f"{len(bundle.get('entry') or [])} entries")


@check(
    id="fhir.search-elements",
    title="With _elements the server leaves out other elements and marks the resource SUBSETTED",
    verifies=(f"{SEARCH}#elements",),
    wire="fhir",
    needs=PATIENT,
    hint="A client that does not see the mark may write the cut resource back.",
)
def search_elements(at: Context) -> None:
    stock = Stock(at)
    bundle = at.fhir.get(f"Patient?identifier={stock.token}&_elements=birthDate").expect(200).resource("Bundle")
    (resource,) = matches(bundle)[:1] or [{}]
    expect("birthDate" in resource and "name" not in resource, "birthDate without name", sorted(resource))
    tags = [one.get("code") for one in (resource.get("meta") or {}).get("tag") or [] if isinstance(one, dict)]
    expect("SUBSETTED" in tags, "the tag SUBSETTED", tags)


@check(
    id="fhir.search-compartment",
    title="Patient/[id]/Observation finds the Observations of that Patient",
    verifies=(f"{_HTTP}#vsearch", "https://hl7.org/fhir/R4/compartmentdefinition-patient.html"),
    wire="fhir",
    needs=(*OBSERVATION, "fhir:compartment/patient"),
)
def search_compartment(at: Context) -> None:
    stock, others = Stock(at).observe(ours={}), Stock(at).observe(theirs={})
    stock.expect_only(f"Patient/{stock.patient}/Observation", "ours")
    others.expect_only(f"Patient/{others.patient}/Observation", "theirs")


@check(
    id="fhir.search-bad-value",
    title="A date that is none is refused with 400, not answered with everybody",
    verifies=(f"{SEARCH}#errors",),
    wire="fhir",
    needs=("fhir:Patient.search-type", "fhir:Patient?birthdate"),
)
def search_bad_value(at: Context) -> None:
    at.fhir.get("Patient?birthdate=yesterday").expect(400).outcome()


@check(
    id="fhir.search-unknown-modifier",
    title="A modifier the server does not support is refused",
    verifies=(f"{SEARCH}#modifiers",),
    wire="fhir",
    needs=("fhir:Patient.search-type", "fhir:Patient?gender"),
    hint="Servers SHALL reject a search with a modifier they do not support, lenient or not.",
)
def search_unknown_modifier(at: Context) -> None:
    at.fhir.get("Patient?gender:no-such-modifier=female").expect(400, 422, 501).outcome()
