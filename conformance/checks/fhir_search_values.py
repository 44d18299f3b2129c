"""FHIR R4 search, one parameter at a time: what a string, token, date, quantity or reference matches, and what not.

Every check makes its own few resources under an identifier of its own, so that a filled server judges as an empty one.

https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from conformance.checks.fhir_conditional import matches
from conformance.checks.fhir_rest import SYSTEM, patient
from conformance.checks.fhir_search import SEARCH
from conformance.runner import check
from conformance.target import Context
from conformance.verdict import expect
from conformance.wire_fhir import Lexeme

UCUM = "http://unitsofmeasure.org"
PATIENT = ("fhir:Patient.create", "fhir:Patient.search-type", "fhir:Patient?identifier")
OBSERVATION = (*PATIENT, "fhir:Observation.create", "fhir:Observation.search-type", "fhir:Observation?subject")


class Stock:
    """Resources of one check, by name: Patients that share an identifier, and Observations of the first of them."""

    def __init__(self, at: Context, **patients: dict[str, Any]) -> None:
        """A Patient for each name; its members replace those of the kit's Patient, and None takes one away."""
        self.at = at
        self.identifier = at.unique()
        self.ids: dict[str, str] = {}
        for name, members in (patients or {"only": {}}).items():
            self._make(name, {**patient(at, self.identifier), **members})
        self.patient = next(iter(self.ids.values()))
        self._settle(lambda: set(self.ids.values()) <= set(self._ids(f"Patient?identifier={self.token}")))

    @property
    def token(self) -> str:
        return f"{SYSTEM}%7C{self.identifier}"

    def observe(self, **observations: dict[str, Any]) -> Stock:
        """An Observation of the first Patient for each name."""
        code = {"coding": [{"system": SYSTEM, "code": self.identifier}]}
        subject = {"reference": f"Patient/{self.patient}"}
        plain = {"resourceType": "Observation", "status": "final", "code": code, "subject": subject}
        made = {name: self._make(name, {**plain, **members}) for name, members in observations.items()}
        self._settle(lambda: set(made.values()) <= set(self._ids(f"Observation?subject=Patient/{self.patient}")))
        return self

    def _make(self, name: str, resource: dict[str, Any]) -> str:
        body = {key: value for key, value in resource.items() if value is not None}
        self.ids[name] = self.at.fhir.prepare(body).id
        return self.ids[name]

    def _settle(self, holds: Any) -> None:
        # Not found in time is no verdict: the check that follows sees it, and says what it missed.
        self.at.until(holds)

    def _ids(self, url: str) -> list[str]:
        return [str(one.get("id")) for one in matches(self.at.fhir.get(url).expect(200).resource("Bundle"))]

    def expect_patients(self, query: str, *wanted: str) -> None:
        """Expects that a query finds the named Patients of ours, and no other of ours."""
        self._expect(f"Patient?identifier={self.token}&{query}", query, wanted)

    def expect_observations(self, query: str, *wanted: str) -> None:
        """Expects that a query finds the named Observations of ours, and no other of ours."""
        self._expect(f"Observation?subject=Patient/{self.patient}&{query}", query, wanted)

    def expect_only(self, url: str, *wanted: str) -> None:
        """Expects that any query finds the named resources, and nothing else on the whole server."""
        self._expect(url, url, wanted)

    def _expect(self, url: str, query: str, wanted: tuple[str, ...]) -> None:
        names = {rid: name for name, rid in self.ids.items()}
        got = sorted(names.get(rid, "?") for rid in self._ids(url))
        told = ", ".join(sorted(wanted)) or "nothing"
        expect(got == sorted(wanted), f"{query} to find {told}", ", ".join(got) or "nothing")


def quantity(value: str, unit: str = "kg") -> dict[str, Any]:
    """Members of an Observation with a quantity, spelled as given."""
    return {"valueQuantity": {"value": Lexeme(value), "unit": unit, "system": UCUM, "code": unit}}


def family(name: str) -> dict[str, Any]:
    """Members of a Patient with this family name."""
    return {"name": [{"family": name, "given": ["Ana"]}]}


@check(
    id="fhir.search-string",
    title="A string matches from its beginning, whatever the case",
    verifies=(f"{SEARCH}#string",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?family"),
    hint="Without a modifier, a string matches a value that equals or starts with it, case folded.",
)
def search_string(at: Context) -> None:
    stock = Stock(at, longer=family("Martineau"), other=family("Saint-Martin"))
    stock.expect_patients("family=mARTIN", "longer")


@check(
    id="fhir.search-string-accents",
    title="A string matches without its accents, and with them",
    verifies=(f"{SEARCH}#string",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?family"),
    hint="Fold both sides before they are compared: Lefèvre is found by lefevre, and Lefevre by lefèvre.",
)
def search_string_accents(at: Context) -> None:
    stock = Stock(at, accented=family("Lefèvre"), plain=family("Lefevre"), other=family("Legrand"))
    for query in ("family=lefevre", f"family={quote('lefèvre')}"):
        stock.expect_patients(query, "accented", "plain")


@check(
    id="fhir.search-string-exact",
    title="With :exact a parameter matches the whole string, with its case and accents",
    verifies=(f"{SEARCH}#string", f"{SEARCH}#modifiers"),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?family"),
)
def search_string_exact(at: Context) -> None:
    stock = Stock(at, exact=family("Martin"), lower=family("martin"), longer=family("Martineau"))
    stock.expect_patients("family:exact=Martin", "exact")


@check(
    id="fhir.search-string-contains",
    title="With :contains a parameter matches anywhere in the string, whatever the case",
    verifies=(f"{SEARCH}#string", f"{SEARCH}#modifiers"),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?family"),
)
def search_string_contains(at: Context) -> None:
    stock = Stock(at, inside=family("Saint-Martin"), front=family("Martineau"), other=family("Bernard"))
    stock.expect_patients("family:contains=mart", "inside", "front")


@check(
    id="fhir.search-token-forms",
    title="A token matches as a code alone, with its system, by its system alone, and as a code of no system",
    verifies=(f"{SEARCH}#token",),
    wire="fhir",
    needs=PATIENT,
    hint="|code means a code without any system; code alone means a code of any system.",
)
def search_token_forms(at: Context) -> None:
    bare = {"identifier": [{"value": (shared := at.unique())}]}
    stock = Stock(at, own={}, bare=bare)
    own = stock.identifier
    ours = f"_id={','.join(stock.ids.values())}"
    for query, wanted in (
        (f"identifier={own}", ["own"]), (f"identifier={SYSTEM}%7C", ["own"]), (f"identifier=%7C{shared}", ["bare"]),
        (f"identifier=%7C{own}", []),
    ):  # fmt: skip
        stock.expect_only(f"Patient?{query}" + (f"&{ours}" if query.endswith("%7C") else ""), *wanted)


@check(
    id="fhir.search-token-not",
    title="With :not a search finds every resource without that code, those without any value too",
    verifies=(f"{SEARCH}#token", f"{SEARCH}#modifiers"),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?gender"),
    hint="A Patient whose gender is unknown to the server has no gender female either.",
)
def search_token_not(at: Context) -> None:
    stock = Stock(at, woman={"gender": "female"}, man={"gender": "male"}, none={"gender": None})
    stock.expect_patients("gender:not=female", "man", "none")


@check(
    id="fhir.search-or",
    title="Values joined by commas are alternatives",
    verifies=(f"{SEARCH}#combining",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?gender"),
)
def search_or(at: Context) -> None:
    stock = Stock(at, woman={"gender": "female"}, man={"gender": "male"}, other={"gender": "other"})
    stock.expect_patients("gender=female,other", "woman", "other")


@check(
    id="fhir.search-and",
    title="A parameter given twice must match twice",
    verifies=(f"{SEARCH}#combining",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?given"),
    hint="A query string parsed into a map keeps only one of two values of a name.",
)
def search_and(at: Context) -> None:
    def called(*given: str) -> dict[str, Any]:
        return {"name": [{"family": "Essai", "given": list(given)}]}

    stock = Stock(at, both=called("Ana", "Lou"), first=called("Ana"), second=called("Lou"))
    for query in ("given=Ana&given=Lou", "given=Lou&given=Ana"):
        stock.expect_patients(query, "both")


@check(
    id="fhir.search-escaped",
    title="A comma behind a backslash belongs to the value",
    verifies=(f"{SEARCH}#escaping",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?family"),
)
def search_escaped(at: Context) -> None:
    stock = Stock(at, comma=family("Roy,Ana"), other=family("Roy"), last=family("Ana"))
    stock.expect_patients("family:exact=Roy%5C,Ana", "comma")


@check(
    id="fhir.search-missing",
    title="With :missing=true a search finds resources without a value, :missing=false those with one",
    verifies=(f"{SEARCH}#modifiers",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?birthdate"),
)
def search_missing(at: Context) -> None:
    stock = Stock(at, without={"birthDate": None}, born={"birthDate": "1980-05-01"})
    stock.expect_patients("birthdate:missing=true", "without")
    stock.expect_patients("birthdate:missing=false", "born")


BORN = {"y1979": "1979-12-31", "may": "1980-05-01", "june": "1980-06-15", "y1981": "1981-01-01"}


@check(
    id="fhir.search-date-precision",
    title="A date of a year or month matches all its days",
    verifies=(f"{SEARCH}#date",),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?birthdate"),
)
def search_date_precision(at: Context) -> None:
    stock = Stock(at, **{name: {"birthDate": day} for name, day in BORN.items()})
    stock.expect_patients("birthdate=1980", "may", "june")
    stock.expect_patients("birthdate=1980-05", "may")


@check(
    id="fhir.search-date-prefixes",
    title="The prefixes gt, ge, lt, le and ne compare with the whole interval of the date",
    verifies=(f"{SEARCH}#prefix", f"{SEARCH}#date"),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?birthdate"),
    hint="gt1980 begins after 1980 ends; a date of 1980 is not greater than 1980.",
)
def search_date_prefixes(at: Context) -> None:
    stock = Stock(at, **{name: {"birthDate": day} for name, day in BORN.items()})
    for query, wanted in (
        ("gt1980-05-01", ("june", "y1981")), ("ge1980-05-01", ("may", "june", "y1981")), ("lt1980-05-01", ("y1979",)),
        ("le1980-05-01", ("y1979", "may")), ("ne1980-05-01", ("y1979", "june", "y1981")), ("gt1980", ("y1981",)),
    ):  # fmt: skip
        stock.expect_patients(f"birthdate={query}", *wanted)


@check(
    id="fhir.search-date-range",
    title="Two bounds on a date make a range",
    verifies=(f"{SEARCH}#date", f"{SEARCH}#combining"),
    wire="fhir",
    needs=(*PATIENT, "fhir:Patient?birthdate"),
)
def search_date_range(at: Context) -> None:
    stock = Stock(at, **{name: {"birthDate": day} for name, day in BORN.items()})
    query = "birthdate=ge1980-01-01&birthdate=lt1980-06-01"
    stock.expect_patients(query, "may")


@check(
    id="fhir.search-date-zone",
    title="A moment is found in another time zone than it was written in",
    verifies=(f"{SEARCH}#date",),
    wire="fhir",
    needs=(*OBSERVATION, "fhir:Observation?date"),
    hint="Compare instants, not the digits they are written with.",
)
def search_date_zone(at: Context) -> None:
    stock = Stock(at).observe(
        late={"effectiveDateTime": "2024-03-06T00:30:00+01:00"}, next={"effectiveDateTime": "2024-03-06T12:00:00+01:00"}
    )
    query = "date=ge2024-03-05T23:00:00Z&date=lt2024-03-06T00:00:00Z"
    stock.expect_observations(query, "late")


@check(
    id="fhir.search-quantity",
    title="A quantity with its system and unit matches that value in that unit alone",
    verifies=(f"{SEARCH}#quantity",),
    wire="fhir",
    needs=(*OBSERVATION, "fhir:Observation?value-quantity"),
)
def search_quantity(at: Context) -> None:
    stock = Stock(at).observe(same=quantity("72.5"), other=quantity("73.5"), unit=quantity("72.5", "cm"))
    query = f"value-quantity=72.5%7C{UCUM}%7Ckg"
    stock.expect_observations(query, "same")


@check(
    id="fhir.search-quantity-precision",
    title="A number without prefix matches what rounds to it: 72.5 finds 72.52, not 72.56",
    verifies=(f"{SEARCH}#number", f"{SEARCH}#quantity"),
    wire="fhir",
    needs=(*OBSERVATION, "fhir:Observation?value-quantity"),
    hint="100 means [99.5, 100.5) and 72.5 means [72.45, 72.55).",
)
def search_quantity_precision(at: Context) -> None:
    stock = Stock(at).observe(near=quantity("72.52"), beyond=quantity("72.56"))
    stock.expect_observations("value-quantity=72.5", "near")


@check(
    id="fhir.search-quantity-prefixes",
    title="The prefixes gt, ge, lt and le compare quantities as numbers",
    verifies=(f"{SEARCH}#prefix", f"{SEARCH}#quantity"),
    wire="fhir",
    needs=(*OBSERVATION, "fhir:Observation?value-quantity"),
)
def search_quantity_prefixes(at: Context) -> None:
    stock = Stock(at).observe(nine=quantity("9"), ten=quantity("10"), hundred=quantity("100"))
    for query, wanted in (
        ("gt10", ("hundred",)), ("ge10", ("ten", "hundred")), ("lt10", ("nine",)), ("le10", ("nine", "ten")),
    ):  # fmt: skip
        full = f"value-quantity={query}%7C{UCUM}%7Ckg"
        stock.expect_observations(full, *wanted)


@check(
    id="fhir.search-reference",
    title="A reference matches as Type/id and as id alone",
    verifies=(f"{SEARCH}#reference",),
    wire="fhir",
    needs=OBSERVATION,
)
def search_reference(at: Context) -> None:
    stock = Stock(at, first={}, second={}).observe(ours={})
    for query in (f"subject=Patient/{stock.patient}", f"subject={stock.patient}"):
        stock.expect_only(f"Observation?{query}", "ours")
    other = f"subject=Patient/{stock.ids['second']}"
    stock.expect_only(f"Observation?{other}")
