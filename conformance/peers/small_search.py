"""Just enough FHIR search for the small FHIR server: right about what the checks look at, or wrong in one named way.

Hides how a query becomes matches, includes and a searchset. Every resource is looked at for every query.

https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlencode

from conformance.peers.fault import Fault
from conformance.wire_fhir import Lexeme

Resource = dict[str, Any]
Pairs = Sequence[tuple[str, str]]

FAULTS: Mapping[str, Fault] = {
    "search-without-self-link": Fault("a searchset has no self link", ("fhir.search-token",)),
    "ignores-unknown-parameter": Fault("an unknown parameter is ignored and echoed", ("fhir.unknown-parameter",)),
    "ignores-count": Fault("_count is not looked at", ("fhir.paging",)),
    "paging-loses-one": Fault("the next link skips a match", ("fhir.paging",)),
    "paging-without-end": Fault("the next link leads to the same page", ("fhir.paging",)),
    "string-anywhere": Fault("a string matches anywhere in the value", ("fhir.search-string",)),
    "accents-count": Fault("accents are not folded", ("fhir.search-string-accents",)),
    "exact-folds": Fault(":exact folds case", ("fhir.search-string-exact",)),
    "contains-as-prefix": Fault(":contains matches the beginning only", ("fhir.search-string-contains",)),
    "no-system-is-any": Fault("|code matches a code of any system", ("fhir.search-token-forms",)),
    "not-needs-a-value": Fault(":not leaves out resources without a value", ("fhir.search-token-not",)),
    "first-alternative": Fault("of codes joined by commas the first counts", ("fhir.search-or",)),
    "repeated-is-or": Fault("a string given twice must match once", ("fhir.search-and",)),
    "escapes-not-read": Fault("every comma separates", ("fhir.search-escaped",)),
    "missing-turned-round": Fault(":missing=true means present", ("fhir.search-missing",)),
    "year-is-a-day": Fault("a year means its first day", ("fhir.search-date-precision",)),
    "gt-is-ge": Fault("gt on a date means ge", ("fhir.search-date-prefixes",)),
    "last-bound-wins": Fault("of two bounds on a date the last counts", ("fhir.search-date-range",)),
    "zones-ignored": Fault("time zones are cut off", ("fhir.search-date-zone",)),
    "unit-ignored": Fault("the unit of a quantity is not looked at", ("fhir.search-quantity",)),
    "quantity-exact": Fault("a quantity matches its very digits", ("fhir.search-quantity-precision",)),
    "quantity-as-text": Fault("gt and lt compare quantities as text", ("fhir.search-quantity-prefixes",)),
    "reference-needs-type": Fault("a reference does not match as id alone", ("fhir.search-reference",)),
    "empty-is-collection": Fault("an empty searchset has another type", ("fhir.search-nothing",)),
    "no-full-url": Fault("entries have no fullUrl", ("fhir.search-entries",)),
    "first-id-only": Fault("of several _id the first counts", ("fhir.search-id",)),
    "last-updated-ignored": Fault("_lastUpdated is not looked at", ("fhir.search-last-updated",)),
    "chain-ignored": Fault("a chained parameter matches everything", ("fhir.search-chain",)),
    "has-ignored": Fault("_has matches everything", ("fhir.search-has",)),
    "include-twice": Fault("a resource is included once for each match", ("fhir.search-include",)),
    "revinclude-ignored": Fault("_revinclude is not looked at", ("fhir.search-revinclude",)),
    "descending-ignored": Fault("_sort does not see the minus sign", ("fhir.search-sort",)),
    "total-of-page": Fault("total counts the page", ("fhir.search-total",)),
    "count-with-entries": Fault("_summary=count lists entries", ("fhir.search-summary-count",)),
    "elements-not-marked": Fault("_elements cuts without the tag", ("fhir.search-elements",)),
    "compartment-of-all": Fault("a compartment holds everybody's", ("fhir.search-compartment",)),
    "bad-date-ignored": Fault("a date that is none is left out", ("fhir.search-bad-value",)),
    "modifier-ignored": Fault("an unknown modifier is left out", ("fhir.search-unknown-modifier",)),
}  # fmt: skip


class BadQuery(ValueError):
    """The query cannot be understood."""


def _names(resource: Resource, part: str) -> list[str]:
    names = resource.get("name") or []
    return [text for one in names for text in ([one["family"]] if part == "family" else one.get("given", []))]


def _codings(resource: Resource) -> list[tuple[str, str]]:
    return [(one.get("system", ""), one.get("code", "")) for one in resource.get("code", {}).get("coding", [])]


def _quantity(resource: Resource) -> list[tuple[Decimal, str, str]]:
    found = resource.get("valueQuantity")
    if not found:
        return []
    value = found["value"]
    return [
        (Decimal(value.text if isinstance(value, Lexeme) else value), found.get("system", ""), found.get("code", ""))
    ]


def _text(resource: Resource, name: str) -> list[str]:
    return [resource[name]] if name in resource else []


_COMMON: dict[str, tuple[str, Callable[[Resource], list[Any]]]] = {
    "_id": ("id", lambda r: [r["id"]]),
    "_lastUpdated": ("date", lambda r: [r["meta"]["lastUpdated"]]),
    "identifier": ("token", lambda r: [(i.get("system", ""), i.get("value", "")) for i in r.get("identifier", [])]),
}
PARAMETERS: Mapping[str, Mapping[str, tuple[str, Callable[[Resource], list[Any]]]]] = {
    "Patient": _COMMON | {
        "family": ("string", lambda r: _names(r, "family")),
        "given": ("string", lambda r: _names(r, "given")),
        "gender": ("token", lambda r: [("", code) for code in _text(r, "gender")]),
        "birthdate": ("date", lambda r: _text(r, "birthDate")),
    },
    "Observation": _COMMON | {
        "code": ("token", _codings),
        "subject": ("reference", lambda r: [r["subject"]["reference"]] if r.get("subject") else []),
        "date": ("date", lambda r: _text(r, "effectiveDateTime")),
        "value-quantity": ("quantity", _quantity),
    },
    "Basic": _COMMON,
}  # fmt: skip
_RESULT = {"_count", "_offset", "_sort", "_total", "_summary", "_elements", "_include", "_revinclude"}
_MODIFIERS = {"string": {"exact", "contains"}, "token": {"not"}}
_DAY = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?")
_PREFIX = re.compile(r"(eq|ne|gt|lt|ge|le)?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Search:
    """One state of the store to search in; `address` is the service base."""

    resources: Sequence[Resource]
    faults: frozenset[str]
    address: str

    def bundle(self, kind: str, query: Pairs) -> Resource:
        """The searchset of a query. Raises BadQuery."""
        given = dict(query)
        found = self.matches(kind, [pair for pair in query if pair[0] not in _RESULT])
        for key in reversed(given.get("_sort", "").split(",") if "_sort" in given else []):
            extract = PARAMETERS[kind][key.lstrip("-")][1]
            down = key.startswith("-") and "descending-ignored" not in self.faults
            found = sorted(found, key=lambda one: min(extract(one), default=""), reverse=down)
        offset, count = int(given.get("_offset", 0)), int(given.get("_count", 50))
        count = 50 if "ignores-count" in self.faults else count
        page = found[offset : offset + count]
        entries = [self._entry(self._cut(one, given.get("_elements", "")), "match") for one in page]
        entries += [self._entry(one, "include") for one in self._more(page, query)]
        if given.get("_summary") == "count" and "count-with-entries" not in self.faults:
            entries = []
        return {
            "resourceType": "Bundle",
            "type": "collection" if not found and "empty-is-collection" in self.faults else "searchset",
            "total": len(page if "total-of-page" in self.faults else found),
            "link": self._links(kind, query, offset, count, len(found)),
            "entry": entries,
        }

    def matches(self, kind: str, criteria: Pairs) -> list[Resource]:
        """The resources of a type that meet every criterion. Raises BadQuery."""
        if "repeated-is-or" in self.faults:
            kinds = {name: PARAMETERS[kind].get(name, ("",))[0] for name, _ in criteria}
            joined = {n: ",".join(v for m, v in criteria if m == n) for n in kinds if kinds[n] == "string"}
            criteria = [(name, joined.get(name, value)) for name, value in criteria]
        if "last-bound-wins" in self.faults:
            criteria = [(n, v) for i, (n, v) in enumerate(criteria)
                        if n != "birthdate" or n not in [m for m, _ in criteria[i + 1 :]]]  # fmt: skip
        found = [one for one in self.resources if one["resourceType"] == kind]
        for name, value in criteria:
            found = [one for one in found if self._meets(kind, one, name, value)]
        # A criterion is understood, or refused, also where there is nothing to try it on.
        for name, value in criteria:
            self._meets(kind, {"resourceType": kind, "id": "", "meta": {"lastUpdated": "2000"}}, name, value)
        return found

    def _meets(self, kind: str, resource: Resource, name: str, value: str) -> bool:
        if name.startswith("_has:"):
            return "has-ignored" in self.faults or self._has(resource, name, value)
        if "." in name:
            return "chain-ignored" in self.faults or self._chain(resource, name, value)
        name, _, modifier = name.partition(":")
        if name not in PARAMETERS[kind]:
            if "ignores-unknown-parameter" in self.faults:
                return True
            raise BadQuery(f"no parameter {name} of {kind}; known: {', '.join(PARAMETERS[kind])}")
        if name == "_lastUpdated" and "last-updated-ignored" in self.faults:
            return True
        type_, extract = PARAMETERS[kind][name]
        values = extract(resource)
        if modifier == "missing":
            return (value == "true") is (bool(values) if "missing-turned-round" in self.faults else not values)
        if modifier and modifier not in _MODIFIERS.get(type_, ()) and "modifier-ignored" not in self.faults:
            raise BadQuery(f"no modifier {modifier} of {name}")
        wanted = value.split(",") if "escapes-not-read" in self.faults else re.split(r"(?<!\\),", value)
        first = {"token": "first-alternative", "id": "first-id-only"}.get(type_)
        wanted = wanted[:1] if first in self.faults else wanted
        compare = getattr(self, f"_{type_}")
        hit = any(compare(one, text.replace("\\,", ","), modifier) for text in wanted for one in values or [None])
        if modifier == "not":
            return not hit and (bool(values) or "not-needs-a-value" not in self.faults)
        return hit

    def _id(self, value: Any, wanted: str, modifier: str) -> bool:
        return bool(value == wanted)

    def _string(self, value: Any, wanted: str, modifier: str) -> bool:
        if value is None:
            return False
        if modifier == "exact" and "exact-folds" not in self.faults:
            return bool(value == wanted)
        value, wanted = self._folded(value), self._folded(wanted)
        if modifier == "exact":
            return bool(value == wanted)
        anywhere = "contains-as-prefix" not in self.faults if modifier else "string-anywhere" in self.faults
        return wanted in value if anywhere else value.startswith(wanted)

    def _folded(self, text: str) -> str:
        if "accents-count" in self.faults:
            return text.casefold()
        return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)).casefold()

    def _token(self, value: Any, wanted: str, modifier: str) -> bool:
        if value is None:
            return False
        system, bar, code = wanted.rpartition("|")
        right_system = not bar or value[0] == system or (not system and "no-system-is-any" in self.faults)
        return bool(right_system and (not code or value[1] == code))

    def _date(self, value: Any, wanted: str, modifier: str) -> bool:
        prefix, text = _prefixed(wanted)
        try:
            low, high = self._interval(text)
        except ValueError:
            if "bad-date-ignored" in self.faults:
                return True
            raise BadQuery(f"{wanted} is no date") from None
        if value is None:
            return False
        if prefix == "eq" and "year-is-a-day" in self.faults:
            high = low + timedelta(days=1)
        prefix = "ge" if prefix == "gt" and "gt-is-ge" in self.faults else prefix
        begin, end = self._interval(value)
        within = low <= begin and end <= high
        above, below = end > high, begin < low
        met = {"eq": within, "ne": not within, "gt": above, "lt": below, "ge": within or above, "le": within or below}
        return met[prefix]

    def _interval(self, text: str) -> tuple[datetime, datetime]:
        digits = _DAY.fullmatch(text[:10])
        if digits is None:
            raise ValueError(text)
        parts = [int(one) for one in digits.groups() if one]
        if len(text) > 10:
            when = datetime.fromisoformat(text)
            when = when.replace(tzinfo=UTC) if "zones-ignored" in self.faults else when.astimezone(UTC)
            return when, when + timedelta(microseconds=1 if "." in text else 10**6)
        year, month, day = (*parts, 1, 1)[:3] if len(parts) < 3 else parts
        low = datetime(year, month, day, tzinfo=UTC)
        ends = {1: (year + 1, 1), 2: (year + month // 12, month % 12 + 1)}
        return low, datetime(*ends[len(parts)], 1, tzinfo=UTC) if len(parts) < 3 else low + timedelta(days=1)

    def _quantity(self, value: Any, wanted: str, modifier: str) -> bool:
        prefix, rest = _prefixed(wanted)
        digits, _, unit = rest.partition("|")
        system, _, code = unit.partition("|")
        try:
            number = Decimal(digits)
        except InvalidOperation:
            raise BadQuery(f"{digits} is no number") from None
        exponent = number.as_tuple().exponent
        if not isinstance(exponent, int):
            raise BadQuery(f"{digits} is no number to compare with")
        if value is None:
            return False
        if code and (system, code) != value[1:] and "unit-ignored" not in self.faults:
            return False
        half = Decimal(0) if "quantity-exact" in self.faults else Decimal((0, (5,), exponent - 1))
        if prefix in {"eq", "ne"}:
            return bool((number - half <= value[0] < number + half or value[0] == number) is (prefix == "eq"))
        order = (value[0] > number) - (value[0] < number)
        if "quantity-as-text" in self.faults:
            order = (str(value[0]) > str(number)) - (str(value[0]) < str(number))
        return bool({"gt": order > 0, "ge": order >= 0, "lt": order < 0, "le": order <= 0}[prefix])

    def _reference(self, value: Any, wanted: str, modifier: str) -> bool:
        if value is None or "/" in wanted:
            return bool(value == wanted)
        return "reference-needs-type" not in self.faults and bool(value.endswith(f"/{wanted}"))

    def _chain(self, resource: Resource, name: str, value: str) -> bool:
        step, _, rest = name.partition(".")
        reference, _, kind = step.partition(":")
        targets = PARAMETERS[resource["resourceType"]][reference][1](resource)
        return any(f"{kind}/{one['id']}" in targets for one in self.matches(kind, [(rest, value)]))

    def _has(self, resource: Resource, name: str, value: str) -> bool:
        _, kind, reference, rest = name.split(":", 3)
        place = f"{resource['resourceType']}/{resource['id']}"
        return any(place in PARAMETERS[kind][reference][1](one) for one in self.matches(kind, [(rest, value)]))

    def _more(self, page: Sequence[Resource], query: Pairs) -> list[Resource]:
        """What _include and _revinclude add to a page."""
        found: list[Resource] = []
        for name, value in query:
            kind, _, parameter = value.partition(":")
            if name == "_include":
                wanted = [place for one in page for place in PARAMETERS[kind][parameter][1](one)]
                wanted = wanted if "include-twice" in self.faults else list(dict.fromkeys(wanted))
                found += [one for place in wanted for one in self.resources if _place(one) == place]
            elif name == "_revinclude" and "revinclude-ignored" not in self.faults:
                places = {_place(one) for one in page}
                others = [one for one in self.resources if one["resourceType"] == kind]
                found += [one for one in others if places & set(PARAMETERS[kind][parameter][1](one))]
        return found

    def _cut(self, resource: Resource, elements: str) -> Resource:
        if not elements:
            return resource
        kept = {
            name: resource[name] for name in ("resourceType", "id", "meta", *elements.split(",")) if name in resource
        }
        tag = [] if "elements-not-marked" in self.faults else [{"code": "SUBSETTED"}]
        return kept | {"meta": {**resource["meta"], "tag": tag}}

    def _entry(self, resource: Resource, mode: str) -> Resource:
        place = {} if "no-full-url" in self.faults else {"fullUrl": f"{self.address}/{_place(resource)}"}
        return {**place, "resource": resource, "search": {"mode": mode}}

    def _links(self, kind: str, query: Pairs, offset: int, count: int, total: int) -> list[dict[str, str]]:
        links = [{"relation": "self", "url": f"{self.address}/{kind}?{urlencode(query)}"}]
        if "search-without-self-link" in self.faults:
            links = []
        if count > 0 and offset + count < total:
            step = {"paging-loses-one": count + 1, "paging-without-end": 0}
            following = offset + next((step[one] for one in step if one in self.faults), count)
            pairs = [pair for pair in query if pair[0] != "_offset"] + [("_offset", str(following))]
            links.append({"relation": "next", "url": f"{self.address}/{kind}?{urlencode(pairs)}"})
        return links


def _prefixed(text: str) -> tuple[str, str]:
    found = _PREFIX.fullmatch(text)
    return (found[1] or "eq", found[2]) if found else ("eq", text)


def _place(resource: Resource) -> str:
    return f"{resource['resourceType']}/{resource['id']}"
