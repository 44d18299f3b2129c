"""Updates write the index rows that differ, and leave exactly those that a new resource of the same content would have.

Contents, deletions, several changes in one transaction and search parameters that come and go are drawn at random;
afterwards the rows of every resource are compared with those of its content, by themselves and by `check`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhir_server.context import SYSTEM, Caller
from fhir_server.search import index
from fhir_server.search.rows import IndexRows
from fhir_server.store.check import check
from fhir_server.store.dialect import Row
from fhir_server.store.engine import Store
from fhir_server.store.gathered import LARGE
from fhir_server.store.resources import index_values
from fhir_server.store.session import Tx
from fhir_server.store.tables import INDEX_TABLES, SCOPE
from profiles.definitions import SearchParameter, search_parameters

Resource = dict[str, Any]
_runs = itertools.count()


def parameter(code: str, kind: str, expression: str) -> SearchParameter:
    known = next(one for one in search_parameters("Patient") if one.type == kind)
    url = f"http://example.org/SearchParameter/{code}"
    return dataclasses.replace(known, url=url, code=code, expression=expression, bases=("Patient",))


MARITAL = parameter("marital", "token", "Patient.maritalStatus")
BIRTH = parameter("birth-order", "string", "Patient.name.prefix")


@pytest.fixture(autouse=True)
def standard_parameters_again() -> Iterator[None]:
    yield
    index.install(())


def extract(resource: Resource) -> IndexRows:
    rows = index.rows(resource)
    rows.scopes = [("patient", one["value"]) for one in resource.get("identifier", ())]
    return rows


names = st.lists(st.fixed_dictionaries({"family": st.sampled_from(["Durand", "Ñandú", "x" * 3000])},
                                       optional={"prefix": st.just(["Mme"])}), max_size=2)  # fmt: skip
identifiers = st.lists(st.sampled_from(["1", "2", "3"]), max_size=3, unique=True).map(
    lambda values: [{"system": "urn:oid:1.2", "value": value} for value in values]
)
contained = st.sampled_from([[], [{"resourceType": "Organization", "id": "o", "name": "Hôpital"}],
                             [{"resourceType": "Organization", "id": "o", "name": "Clinique"},
                              {"resourceType": "Patient", "id": "q", "birthDate": "1970"}]])  # fmt: skip
contents = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "identifier": identifiers,
        "contained": contained,
        "birthDate": st.sampled_from(["1980", "1980-02-03"]),
        "gender": st.sampled_from(["male", "female"]),
        "maritalStatus": st.sampled_from(["M", "S"]).map(lambda code: {"coding": [{"code": code}]}),
        "text": st.sampled_from(["un mot", "deux mots"]).map(
            lambda words: {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{words}</div>'}
        ),
        "generalPractitioner": st.just([{"reference": "Practitioner/p"}]),
        "deceasedBoolean": st.booleans(),
    },
).map(lambda content: {name: value for name, value in content.items() if value not in ([], {})})
works = st.lists(st.tuples(st.sampled_from("abc"), st.none() | contents), min_size=1, max_size=4)
installed = st.sampled_from([(), ((MARITAL, True),), ((MARITAL, True), (BIRTH, False))])
steps = st.lists(st.tuples(installed, works), min_size=1, max_size=6)


def apply(tx: Tx, work: list[tuple[str, Resource | None]], key: str) -> None:
    for name, content in work:
        resource = None if content is None else {"resourceType": "Patient", "id": f"{key}-{name}", **content}
        held = tx.get("Patient", f"{key}-{name}")
        if resource is None:
            if held is not None:
                tx.delete("Patient", f"{key}-{name}")
        elif held is None:
            tx.create(resource, extract(resource), absent=True)
        else:
            tx.expect_many({("Patient", f"{key}-{name}"): held.version}, writing={("Patient", f"{key}-{name}")})
            tx.update(resource, extract(resource))


def rows_of(tx: Tx, rid: int) -> list[Counter[Row]]:
    """The stored rows of a resource and of what it contains, table by table."""
    found = []
    for bulk in (*INDEX_TABLES, SCOPE):
        own = f"SELECT {bulk.names} FROM {bulk.table} WHERE rid = ?"
        inner = f"SELECT {bulk.names} FROM {bulk.table} WHERE rid IN (SELECT number FROM contained WHERE rid = ?)"
        found.append(Counter(tx.view.db.rows(own, (rid,)) + tx.view.db.rows(inner, (rid,))))
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_any_sequence_of_changes_leaves_the_rows_of_a_new_resource(store: Store, steps: Any) -> None:
    key = f"run{next(_runs)}"
    last: dict[str, tuple[Any, Resource | None]] = {}
    for added, work in steps:
        index.install(added)
        store.write(SYSTEM, partial(apply, work=work, key=key))
        last |= {name: (added, content) for name, content in work}
    for name, (added, content) in last.items():
        stored = store.get(SYSTEM, "Patient", f"{key}-{name}")
        if stored is None:
            continue
        index.install(added)  # the rows are those of the parameters that were known when it was written
        with store.read(SYSTEM) as snapshot:
            found = rows_of(Tx(snapshot.view), stored.rid)
        *there, scopes = found
        wanted = IndexRows() if content is None else extract(stored.resource())
        assert there == [Counter(values) for values in index_values(stored.rid, wanted)]
        assert content is None or scopes == Counter((stored.rid, *one) for one in wanted.scopes)
    index.install(())
    store.write(SYSTEM, partial(apply, work=[(name, {}) for name in "abc"], key=key))
    assert check(store, extract).ok


def places(store: Store, rid: int) -> dict[tuple[str, Row], Any]:
    """Where each index row lies: it stays there as long as it is not written again."""
    place = "rowid" if store.engine == "sqlite" else "ctid::text || ' ' || xmin::text"
    with store.read(SYSTEM) as snapshot:
        return {
            (bulk.table, row[1:]): row[0]
            for bulk in (*INDEX_TABLES, SCOPE)
            for row in snapshot.view.db.rows(f"SELECT {place}, {bulk.names} FROM {bulk.table} WHERE rid = ?", (rid,))
        }


def test_a_row_that_stays_the_same_is_not_written_again(store: Store) -> None:
    first = {"resourceType": "Patient", "id": "a", "gender": "male", "birthDate": "1980-02-03",
             "identifier": [{"system": "urn:oid:1.2", "value": "1"}], "name": [{"family": "Durand"}]}  # fmt: skip
    other = [{"system": "urn:oid:1.2", "value": "1"}, {"system": "urn:oid:1.2", "value": "2"}]
    made = store.write(SYSTEM, lambda tx: tx.create(first, extract(first)))
    before = places(store, made.rid)
    second = first | {"identifier": other, "gender": "female"}
    store.write(SYSTEM, lambda tx: tx.update(second, extract(second)))
    after = places(store, made.rid)
    kept = before.keys() & after.keys()
    assert {row for row in kept if before[row] != after[row]} == set()
    assert {table for table, _ in before.keys() - after.keys()} == {"idx_token", "idx_text"}
    assert {table for table, _ in after.keys() - before.keys()} == {"idx_token", "idx_text", "scope"}


def test_many_resources_are_replaced_in_one_transaction(store: Store) -> None:
    """Each from what another has: nothing of one is taken for that of another."""
    keys = [f"p{number:03}" for number in range(120)]

    def write(tx: Tx, shift: int) -> None:
        if shift:
            names = {("Patient", key): shift for key in keys}
            tx.expect_many(names, writing=names)
        for number, key in enumerate(keys):
            value = str((number + shift) % 7)
            one = {"resourceType": "Patient", "id": key, "identifier": [{"system": "urn:oid:1.2", "value": value}],
                   "name": [{"family": "Durand" if number % 2 else "Martin"}]}  # fmt: skip
            tx.update(one, extract(one)) if shift else tx.create(one, extract(one), absent=True)

    for shift in range(3):
        store.write(SYSTEM, partial(write, shift=shift))
    assert check(store, extract, deep=True).ok
    assert {one.version for one in (store.get(SYSTEM, "Patient", key) for key in keys) if one} == {3}


def test_what_is_deleted_beside_an_update_keeps_the_scopes_that_show_its_history(store: Store) -> None:
    """An update names the table of scopes, a deletion leaves it out: its own stay."""

    def seen_by_its_group(resource: Resource) -> IndexRows:
        rows = index.rows(resource)
        rows.scopes = [("organisation", "HealthcareService/g")]
        return rows

    def write(tx: Tx) -> None:
        tx.expect_many(dict.fromkeys(names, 1), writing=names)
        for kind, key in names[:-1]:
            tx.delete(kind, key)
        changed = patients[-1] | {"gender": "male"}
        tx.update(changed, seen_by_its_group(changed))

    patients = [{"resourceType": "Patient", "id": key, "birthDate": "1980"} for key in ("a", "b", "c")]
    names = [("Patient", one["id"]) for one in patients]
    for one in patients:
        store.write(SYSTEM, partial(Tx.create, resource=one, rows=seen_by_its_group(one)))
    store.write(SYSTEM, write)
    member = Caller("", "", frozenset(), groups=frozenset(["HealthcareService/g"]), everything=False)
    for key in "abc":
        stored = store.get(member, "Patient", key)
        assert stored is not None and (stored.version, stored.deleted) == (2, key != "c")
        former = store.version(member, "Patient", key, 1)
        assert former is not None and former.resource()["birthDate"] == "1980"
    assert check(store, seen_by_its_group).ok


@pytest.mark.parametrize("size", [0, LARGE + 1])
def test_large_texts_are_replaced_like_small_ones(store: Store, size: int) -> None:
    def patient(family: str) -> Resource:
        return {"resourceType": "Patient", "id": "a", "name": [{"family": family + "é" * size}]}

    store.write(SYSTEM, lambda tx: tx.create(patient("A"), extract(patient("A")), absent=True))
    store.write(SYSTEM, lambda tx: tx.update(patient("B"), extract(patient("B"))))
    store.write(SYSTEM, lambda tx: tx.delete("Patient", "a"))
    last = store.write(SYSTEM, lambda tx: tx.update(patient("C"), extract(patient("C"))))
    assert last.version == 4 and store.get(SYSTEM, "Patient", "a") == last
    former = store.version(SYSTEM, "Patient", "a", 2)
    assert former is not None and former.resource()["name"][0]["family"].startswith("B")
    assert check(store, extract, deep=True).ok
