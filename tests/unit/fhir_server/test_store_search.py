"""Plans run on both databases: each parameter type, combinations, chains, order, pages, includes, access."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM, Caller
from fhir_server.search import index, query
from fhir_server.search.plan import Clause, Include, Plan, Prefix, Sort, Value
from fhir_server.search.rows import IndexRows
from fhir_server.search.values import bounded
from fhir_server.store.engine import Store
from fhir_server.store.query import Page
from fhir_server.store.value_tests import prefix_end

NAME, CODE, DATE, NUMBER, QUANTITY, SUBJECT, URI, OTHER = range(101, 109)


def put(store: Store, reference: str, rows: IndexRows | None = None) -> None:
    kind, key = reference.split("/")
    store.write(SYSTEM, lambda tx: tx.create({"resourceType": kind, "id": key}, rows or IndexRows()))


def page(
    store: Store, *clauses: Clause, types: tuple[str, ...] = ("Patient",), caller: Caller = SYSTEM, **more: object
) -> Page:
    plan = Plan(types, clauses, **{"sort": (Sort("_id", "token", 0),), **more})  # type: ignore[arg-type]  # keywords of any type
    with store.read(caller) as snapshot:
        return snapshot.search(plan)


def ids(found: Page) -> str:
    return " ".join(one.id for one in found.matches)


def test_every_resource_of_the_type_is_found_newest_first(store: Store) -> None:
    for key in ("Patient/a", "Patient/b", "Group/c", "Patient/d"):
        put(store, key)
    store.write(SYSTEM, lambda tx: tx.delete("Patient", "d"))
    assert ids(page(store, sort=())) == "b a"
    assert ids(page(store, types=("Patient", "Group"), sort=())) == "c b a"
    assert ids(page(store, types=(), sort=())) == "c b a"
    assert page(store).total is None
    assert page(store, total="accurate").total == 2
    nothing = page(store, count=0)
    assert (nothing.matches, nothing.total, nothing.next) == ((), 2, None)


def strings(store: Store) -> None:
    for key, folded, exact in (
        ("a", "durand", "Durand"),
        ("b", "durant", "DURANT"),
        ("c", "le_du%rand", "Le_Du%rand"),
        ("d", "", ""),
        ("e", bounded("x" * 3000), bounded("X" * 3000)),
    ):
        put(store, f"Patient/{key}", IndexRows(string=[(NAME, folded, exact)]))
    put(store, "Patient/none")


@pytest.mark.parametrize(
    ("modifier", "text", "expected"),
    [
        ("", "duran", "a b"),
        ("", "durand", "a"),
        ("", "du%", ""),
        ("", "\U0010ffff", ""),
        ("contains", "du%r", "c"),
        ("contains", "_", "c"),
        ("contains", "ran", "a b c"),
        ("exact", "DURANT", "b"),
        ("exact", "durand", ""),
        ("exact", "Durand", "a"),
        ("exact", bounded("X" * 3000), "e"),
        ("", "x" * 900, "e"),
    ],
)
def test_strings(store: Store, modifier: str, text: str, expected: str) -> None:
    strings(store)
    assert ids(page(store, Clause("name", "string", NAME, (Value(text=text),), modifier))) == expected


def test_missing_and_present(store: Store) -> None:
    strings(store)
    assert ids(page(store, Clause("name", "string", NAME, missing=True))) == "none"
    assert ids(page(store, Clause("name", "string", NAME, missing=False))) == "a b c d e"


def tokens(store: Store) -> None:
    put(store, "Patient/a", IndexRows(token=[(CODE, "http://s", "1", "one"), (CODE, "http://t", "2", "two")]))
    put(store, "Patient/b", IndexRows(token=[(CODE, "", "1", "uno")]))
    put(store, "Patient/c", IndexRows(token=[(OTHER, "http://s", "1", "one")]))


@pytest.mark.parametrize(
    ("values", "modifier", "expected"),
    [
        ([Value(code="1")], "", "a b"),
        ([Value(system="http://s", code="1")], "", "a"),
        ([Value(system="", code="1")], "", "b"),
        ([Value(system="http://t")], "", "a"),
        ([Value(system="http://s", code="2")], "", ""),
        ([Value(code="2"), Value(system="", code="1")], "", "a b"),
        ([Value(code="2"), Value(code="3")], "", "a"),
        ([Value(code="1")], "not", "c"),
        ([Value(code="2")], "not", "b c"),
        ([Value(text="un")], "text", "b"),
    ],
)
def test_tokens(store: Store, values: list[Value], modifier: str, expected: str) -> None:
    tokens(store)
    assert ids(page(store, Clause("code", "token", CODE, tuple(values), modifier))) == expected


def test_a_thousand_alternatives_are_answered(store: Store) -> None:
    tokens(store)
    values = (*tuple(Value(system=f"http://{n}", code="1") for n in range(1000)), Value(system="http://s", code="1"))
    assert ids(page(store, Clause("code", "token", CODE, values))) == "a"
    dates = tuple(Value(low=n, high=n + 1) for n in range(1000))
    assert ids(page(store, Clause("date", "date", DATE, dates))) == ""
    with pytest.raises(errors.TooLarge, match="at most 2000"):
        page(store, Clause("code", "token", CODE, (Value(code="1"),) * 2001))


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("eq", "in"),
        ("ne", "above after before below over"),
        ("gt", "above after over"),
        ("lt", "before below over"),
        ("ge", "above after in over"),
        ("le", "before below in over"),
        ("sa", "after"),
        ("eb", "before"),
        ("ap", "above below in over"),
    ],
)
@pytest.mark.parametrize("kind", ["date", "number", "quantity"])
def test_ranges(store: Store, kind: str, prefix: Prefix, expected: str) -> None:
    """Searched: [100, 200). Stored: before, across the lower end, inside, across the upper end, after, around it."""
    ranges = {"before": (0, 90), "below": (90, 110), "in": (120, 130), "above": (190, 210), "after": (210, 300)}
    for key, (low, high) in {**ranges, "over": (50, 250)}.items():
        rows = IndexRows()
        if kind == "date":
            rows.date = [(DATE, low, high)]
        elif kind == "number":
            rows.number = [(NUMBER, float(low), float(high))]
        else:
            rows.quantity = [(QUANTITY, "http://ucum", "mm", float(low), float(high), "", 0.0, 0.0)]
        put(store, f"Patient/{key}", rows)
    put(store, "Patient/without")
    pid = {"date": DATE, "number": NUMBER, "quantity": QUANTITY}[kind]
    clause = Clause("x", kind, pid, (Value(prefix=prefix, low=100, high=200),))  # type: ignore[arg-type]  # a word the test gives
    assert ids(page(store, clause)) == expected


def test_dates_are_half_open_and_numbers_closed(store: Store) -> None:
    put(store, "Patient/a", IndexRows(date=[(DATE, 100, 200)], number=[(NUMBER, 5.0, 5.0)]))
    assert ids(page(store, Clause("d", "date", DATE, (Value(prefix="sa", low=50, high=100),)))) == "a"
    assert ids(page(store, Clause("d", "date", DATE, (Value(prefix="ap", low=50, high=100),)))) == ""
    assert ids(page(store, Clause("n", "number", NUMBER, (Value(prefix="sa", low=5, high=5),)))) == ""
    assert ids(page(store, Clause("n", "number", NUMBER, (Value(prefix="ap", low=4, high=5),)))) == "a"


def test_quantities_by_unit(store: Store) -> None:
    put(store, "Patient/a", IndexRows(quantity=[(QUANTITY, "http://u", "mm", 5.0, 5.0, "m", 0.005, 0.005)]))
    put(store, "Patient/b", IndexRows(quantity=[(QUANTITY, "http://u", "cm", 5.0, 5.0, "m", 0.05, 0.05)]))

    def by(**more: str) -> str:
        return ids(page(store, Clause("q", "quantity", QUANTITY, (Value(low=4, high=6, **more),))))  # type: ignore[arg-type]  # keywords of any type

    assert by() == "a b"
    assert by(code="mm") == "a"
    assert by(code="cm", system="http://u") == "b"
    assert by(code="cm", system="http://v") == ""


def graph(store: Store) -> None:
    """Observations o1, o2 of patient p1 (Durand), o3 of p2 (Martin); report r of o1."""

    def refers(kind: str, key: str, pid: int = SUBJECT) -> list[tuple[int, str, str, str, str, str]]:
        return [(pid, kind, key, "", "", "")]

    put(store, "Patient/p1", IndexRows(string=[(NAME, "durand", "Durand")]))
    put(store, "Patient/p2", IndexRows(string=[(NAME, "martin", "Martin")]))
    for key, subject, code in (("o1", "p1", "x"), ("o2", "p1", "y"), ("o3", "p2", "y")):
        put(store, f"Observation/{key}", IndexRows(reference=refers("Patient", subject), token=[(CODE, "", code, "")]))
    put(store, "DiagnosticReport/r", IndexRows(reference=refers("Observation", "o1", OTHER)))
    external = [(SUBJECT, "", "", "http://elsewhere/Patient/9", "", ""), (SUBJECT, "", "", "", "urn:ins", "42")]
    put(store, "Observation/o4", IndexRows(reference=external))  # type: ignore[arg-type]  # a row as a plain tuple


NAMED = Clause("name", "string", NAME, (Value(text="durand"),))
OBSERVATION = ("Observation",)


@pytest.mark.parametrize(
    ("value", "modifier", "expected"),
    [
        (Value(type="Patient", id="p1"), "", "o1 o2"),
        (Value(id="p2"), "", "o3"),
        (Value(type="Group", id="p1"), "", ""),
        (Value(text="http://elsewhere/Patient/9"), "", "o4"),
        (Value(system="urn:ins", code="42"), "identifier", "o4"),
        (Value(code="42"), "identifier", "o4"),
        (Value(system="urn:ins"), "identifier", "o4"),
        (Value(system="urn:other", code="42"), "identifier", ""),
    ],
)
def test_references(store: Store, value: Value, modifier: str, expected: str) -> None:
    graph(store)
    clause = Clause("subject", "reference", SUBJECT, (value,), modifier)
    assert ids(page(store, clause, types=OBSERVATION)) == expected


def test_chains_follow_references_forwards_and_backwards(store: Store) -> None:
    graph(store)
    chain = Clause("subject", "reference", SUBJECT, chain_types=("Patient",), chain=(NAMED,))
    assert ids(page(store, chain, types=OBSERVATION)) == "o1 o2"
    assert ids(page(store, replace(chain, chain_types=("Group",)), types=OBSERVATION)) == ""
    two_hops = Clause("result", "reference", OTHER, chain_types=OBSERVATION, chain=(chain,))
    assert ids(page(store, two_hops, types=("DiagnosticReport",))) == "r"
    has = Clause(
        "_has", "token", 0, reverse=("Observation", SUBJECT), chain=(Clause("code", "token", CODE, (Value(code="x"),)),)
    )
    assert ids(page(store, has)) == "p1"
    by_report = Clause(
        "_has", "token", 0, reverse=("DiagnosticReport", OTHER), chain=(Clause("_id", "token", 0, (Value(code="r"),)),)
    )
    assert ids(page(store, replace(has, chain=(by_report,)))) == "p1"
    assert ids(page(store, has, NAMED)) == "p1"


def test_a_chain_does_not_lead_through_deleted_resources(store: Store) -> None:
    graph(store)
    store.write(SYSTEM, lambda tx: tx.delete("Patient", "p1"))
    chain = Clause("subject", "reference", SUBJECT, chain_types=("Patient",), chain=(NAMED,))
    assert ids(page(store, chain, types=OBSERVATION)) == ""


def test_a_chain_that_is_too_long_is_refused(store: Store) -> None:
    clause = NAMED
    for _ in range(25):
        clause = Clause("subject", "reference", SUBJECT, chain=(clause,))
    with pytest.raises(errors.TooLarge):
        page(store, clause)


@pytest.mark.parametrize(
    ("modifier", "uri", "expected"),
    [
        ("", "http://a/b", "ab"),
        ("below", "http://a", "a ab abc"),
        ("below", "http://a/b", "ab abc"),
        ("above", "http://a/b/c", "a ab abc"),
        ("above", "http://a", "a"),
    ],
)
def test_uris(store: Store, modifier: str, uri: str, expected: str) -> None:
    for key, value in {"a": "http://a", "ab": "http://a/b", "abc": "http://a/b/c", "z": "http://ab"}.items():
        put(store, f"Patient/{key}", IndexRows(uri=[(URI, value)]))
    assert ids(page(store, Clause("url", "uri", URI, (Value(text=uri),), modifier))) == expected


def test_ids_and_instants_are_columns(store: Store) -> None:
    for key in ("a", "b", "c"):
        put(store, f"Patient/{key}")
    found = store.get(SYSTEM, "Patient", "b")
    assert found is not None
    at = found.last_updated
    assert ids(page(store, Clause("_id", "token", 0, (Value(code="a"), Value(code="c"))))) == "a c"
    for prefix, expected in {"eq": "b", "gt": "c", "lt": "a", "ge": "b c", "le": "a b", "ne": "a c"}.items():
        value = Value(prefix=prefix, low=at, high=at + 1)  # type: ignore[arg-type]  # a word the test gives
        assert ids(page(store, Clause("_lastUpdated", "date", 0, (value,)))) == expected, prefix


@pytest.mark.parametrize("modifier", ["above", "in", "of-type"])
def test_what_is_not_supported_is_an_error(store: Store, modifier: str) -> None:
    with pytest.raises(errors.Unsupported, match=f"code:{modifier}") as caught:
        page(store, Clause("code", "token", CODE, (Value(code="1"),), modifier))
    assert caught.value.status == 400


def walk(store: Store, plan: Plan) -> list[str]:
    """Every id, page by page."""
    found: list[str] = []
    while True:
        with store.read(SYSTEM) as snapshot:
            one = snapshot.search(plan)
        found += [match.id for match in one.matches]
        if one.next is None:
            return found
        plan = replace(plan, after=one.next)


SORTS = {
    "newest": ((), "f e d c b a"),
    "oldest": ((Sort("_lastUpdated", "date", 0),), "a b c d e f"),
    "id": ((Sort("_id", "token", 0, True),), "f e d c b a"),
    "name": ((Sort("name", "string", NAME), Sort("_id", "token", 0)), "c b d a e f"),
    "name down": ((Sort("name", "string", NAME, True), Sort("_id", "token", 0)), "a b d c e f"),
    "date, then name": ((Sort("d", "date", DATE), Sort("name", "string", NAME, True)), "a b c d f e"),
    "id up, instant down": ((Sort("_id", "token", 0), Sort("_lastUpdated", "date", 0, True)), "a b c d e f"),
}


@pytest.mark.parametrize("count", [1, 2, 5, 50])
@pytest.mark.parametrize("sort", SORTS)
def test_pages_follow_one_another_in_every_order(store: Store, sort: str, count: int) -> None:
    names: dict[str, list[str]] = {
        "a": ["zoe"],
        "b": ["bob", "yan"],
        "c": ["al"],
        "d": ["bob", "yan"],
        "e": [],
        "f": [],
    }
    for position, (key, values) in enumerate(names.items()):
        rows = IndexRows(string=[(NAME, value, value) for value in values])
        if key < "d":
            rows.date = [(DATE, position // 3, position // 3 + 1)]
        put(store, f"Patient/{key}", rows)
    by, expected = SORTS[sort]
    assert " ".join(walk(store, Plan(("Patient",), sort=by, count=count))) == expected


@pytest.mark.parametrize("sort", [(), (Sort("_lastUpdated", "date", 0),), (Sort("name", "string", NAME),)])
def test_paging_under_writes_shows_the_unchanged_once_and_the_changed_at_most_once(
    store: Store, sort: tuple[Sort, ...]
) -> None:
    def rows(key: str) -> IndexRows:
        return IndexRows(string=[(NAME, key, key)])

    keys = [f"k{n:02}" for n in range(30)]
    for key in keys:
        put(store, f"Patient/{key}", rows(key))
    plan, found, turn, changed = Plan(("Patient",), sort=sort, count=4), [], 0, set()
    while True:
        with store.read(SYSTEM) as snapshot:
            one = snapshot.search(plan)
        found += [match.id for match in one.matches]
        if one.next is None:
            break
        for number in (turn, 29 - turn):
            key = keys[number]
            changed.add(key)
            renamed = rows("zz" + key)
            store.write(
                SYSTEM, lambda tx, key=key, renamed=renamed: tx.update({"resourceType": "Patient", "id": key}, renamed)
            )  # type: ignore[misc]  # a default has no type
        put(store, f"Patient/new{turn}", rows("zzz"))
        turn += 1
        plan = replace(plan, after=one.next)
    assert len(found) == len(set(found))
    assert set(keys) - changed <= set(found)


def test_a_link_of_another_search_is_refused(store: Store) -> None:
    for key in ("a", "b"):
        put(store, f"Patient/{key}")
    first = page(store, count=1, sort=(Sort("name", "string", NAME), Sort("_id", "token", 0)))
    with pytest.raises(errors.Malformed):
        page(store, count=1, sort=(Sort("name", "string", NAME),), after=first.next)


def test_includes_bring_each_resource_once(store: Store) -> None:
    graph(store)
    with_subject = page(store, types=OBSERVATION, includes=(Include("Observation", SUBJECT, ("Patient",)),))
    assert ids(with_subject) == "o1 o2 o3 o4"
    assert [one.id for one in with_subject.includes] == ["p1", "p2"]
    backwards = page(store, NAMED, includes=(Include("Observation", SUBJECT, reverse=True),))
    assert [one.id for one in backwards.includes] == ["o1", "o2"]
    iterating = page(
        store,
        types=("DiagnosticReport",),
        includes=(
            Include("DiagnosticReport", OTHER, ("Observation",)),
            Include("Observation", SUBJECT, ("Patient",), iterate=True),
        ),
    )
    assert [one.id for one in iterating.includes] == ["o1", "p1"]
    once = page(store, types=("DiagnosticReport",), includes=(Include("Observation", SUBJECT, ("Patient",)),))
    assert once.includes == ()
    everything = page(store, types=OBSERVATION, includes=(Include("Observation", 0),))
    assert [one.id for one in everything.includes] == ["p1", "p2"]


def test_includes_in_a_ring_end(store: Store) -> None:
    put(store, "Patient/a", IndexRows(reference=[(SUBJECT, "Patient", "b", "", "", "")]))
    put(store, "Patient/b", IndexRows(reference=[(SUBJECT, "Patient", "a", "", "", "")]))
    found = page(
        store, Clause("_id", "token", 0, (Value(code="a"),)), includes=(Include("Patient", SUBJECT, iterate=True),)
    )
    assert [one.id for one in found.includes] == ["b"]


def test_includes_are_bounded_and_say_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fhir_server.store.query.MAX_INCLUDED", 2)
    graph(store)
    cut = page(store, types=("Patient",), includes=(Include("Observation", SUBJECT, reverse=True),))
    assert len(cut.includes) == 2 and cut.cut


def test_access_holds_at_every_step_of_a_search(store: Store) -> None:
    """Mine: patient m, observation mo. Theirs: patient t, observations to (of t) and tm (of m)."""
    mine = [("organisation", "HealthcareService/cardio")]
    theirs = [("organisation", "HealthcareService/derm")]

    def refers(key: str) -> list[tuple[int, str, str, str, str, str]]:
        return [(SUBJECT, "Patient", key, "", "", "")]

    name = [(NAME, "durand", "Durand")]
    put(store, "Patient/m", IndexRows(string=name, scopes=mine))
    put(store, "Patient/t", IndexRows(string=name, scopes=theirs))
    put(store, "Observation/mo", IndexRows(reference=refers("m"), scopes=mine))
    put(store, "Observation/mt", IndexRows(reference=refers("t"), scopes=mine))
    put(store, "Observation/to", IndexRows(reference=refers("t"), scopes=theirs))
    put(store, "Observation/tm", IndexRows(reference=refers("m"), token=[(CODE, "", "x", "")], scopes=theirs))
    caller = Caller("P/x", "X", frozenset({"expert"}), frozenset({"HealthcareService/cardio"}), everything=False)
    assert ids(page(store, NAMED, caller=caller, total="accurate")) == "m"
    assert page(store, NAMED, caller=caller, total="accurate").total == 1
    chain = Clause("subject", "reference", SUBJECT, chain_types=("Patient",), chain=(NAMED,))
    assert ids(page(store, chain, types=OBSERVATION, caller=caller)) == "mo"
    has = Clause(
        "_has", "token", 0, reverse=("Observation", SUBJECT), chain=(Clause("code", "token", CODE, (Value(code="x"),)),)
    )
    assert ids(page(store, has, caller=caller)) == ""
    include = page(store, types=OBSERVATION, caller=caller, includes=(Include("Observation", SUBJECT, ("Patient",)),))
    assert (ids(include), [one.id for one in include.includes]) == ("mo mt", ["m"])
    back = page(store, NAMED, caller=caller, includes=(Include("Observation", SUBJECT, reverse=True),))
    assert [one.id for one in back.includes] == ["mo"]


def test_a_search_can_be_explained(store: Store) -> None:
    with store.read(SYSTEM) as snapshot:
        told = snapshot.explain(Plan(("Patient",), (NAMED,)))
    assert "idx_string" in told.sql and told.params[0] == "Patient" and told.plan


def test_the_end_of_a_prefix() -> None:
    assert prefix_end("ab") == "ac"
    assert prefix_end("a\ud7ff") == "a\ue000"
    assert prefix_end("a\U0010ffff") == "b"
    assert prefix_end("\U0010ffff") is None


def test_a_name_on_several_types_looks_at_all_their_rows(store: Store) -> None:
    put(store, "Patient/p", IndexRows(string=[(NAME, "durand", "Durand")]))
    put(store, "Group/g", IndexRows(string=[(OTHER, "durand", "Durand")]))
    clause = replace(NAMED, pids=(NAME, OTHER))
    assert ids(page(store, clause, types=("Patient", "Group"))) == "g p"
    assert ids(page(store, replace(clause, values=(), missing=True), types=("Patient", "Group"))) == ""


@pytest.mark.parametrize(
    ("near", "expected"),
    [("48.85|2.35|5", "paris"), ("48.85|2.35|20", "paris versailles"), ("-17.5|-179.9|100", "fiji"), ("0|0|1", "")],
)
def test_places_near_a_point(store: Store, near: str, expected: str) -> None:
    places = {"paris": (48.857, 2.352), "versailles": (48.805, 2.12), "fiji": (-17.4, 179.8)}
    for key, (latitude, longitude) in places.items():
        put(store, f"Location/{key}", IndexRows(coords=[(URI, latitude, longitude)]))
    clause = Clause("near", "special", URI, (Value(text=near),))
    assert ids(page(store, clause, types=("Location",))) == expected


PEOPLE = {
    "durand": {
        "name": [{"family": "DURAND", "given": ["Élodie"]}],
        "identifier": [{"system": "urn:oid:1.2.250.1.213.1.4.10", "value": "255069999999934"}],
        "birthDate": "1955-06-01",
        "gender": "female",
        "managingOrganization": {"reference": "Organization/chu"},
    },
    "martin": {"name": [{"family": "Martin"}], "birthDate": "1980", "active": True},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("family=durand", "durand"),
        ("given=elodie", "durand"),
        ("family:exact=DURAND", "durand"),
        ("family:exact=Durand", ""),
        ("identifier=urn:oid:1.2.250.1.213.1.4.10|255069999999934", "durand"),
        ("identifier=255069999999934", "durand"),
        ("birthdate=lt1960", "durand"),
        ("birthdate=1980", "martin"),
        ("birthdate=ge1955-06-01&gender=female", "durand"),
        ("gender:not=female", "martin"),
        ("gender:missing=true", "martin"),
        ("active=true", "martin"),
        ("organization=Organization/chu", "durand"),
        ("organization.name=centre", "durand"),
        ("_id=martin,durand", "durand martin"),
        ("family=durand,martin&_sort=-family", "martin durand"),
        ("family=nobody", ""),
    ],
)
@pytest.mark.parametrize("few", [2000, -1], ids=["from the index", "from the resources"])
def test_real_resources_are_found_by_real_queries(
    store: Store, monkeypatch: pytest.MonkeyPatch, text: str, expected: str, few: int
) -> None:
    """However the search is run: starting from the rows of a clause, or walking the resources."""
    monkeypatch.setattr("fhir_server.store.query.FEW", few)
    organization = {"resourceType": "Organization", "id": "chu", "name": "Centre hospitalier"}
    everybody = [{"resourceType": "Patient", "id": key, **rest} for key, rest in PEOPLE.items()]
    for resource in [organization, *everybody]:
        store.write(SYSTEM, lambda tx, one=resource: tx.create(one, index.rows(one)))  # type: ignore[misc]  # a default has no type
    pairs = [tuple(pair.split("=", 1)) for pair in text.split("&")]
    plan = query.parse("Patient", pairs)  # type: ignore[arg-type]  # pairs of any strings
    plan = plan if plan.sort else replace(plan, sort=(Sort("_id", "token", 0),))
    with store.read(SYSTEM) as snapshot:
        assert ids(snapshot.search(plan)) == expected
