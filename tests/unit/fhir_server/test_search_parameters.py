"""Search parameters of users: checked when posted, indexed in the background, searched by when all is indexed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import custom, index, query, references
from fhir_server.store import check, parameters
from fhir_server.store.engine import Store

URL = "http://example.org/SearchParameter/marital"
MARITAL: dict[str, Any] = {
    "resourceType": "SearchParameter",
    "id": "marital",
    "url": URL,
    "name": "marital",
    "status": "active",
    "description": "marital status",
    "code": "marital",
    "base": ["Patient"],
    "type": "token",
    "expression": "Patient.maritalStatus",
}


@pytest.fixture(autouse=True)
def standard_parameters_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parameters, "GRACE_SECONDS", {"sqlite": 0.0, "postgresql": 0.0})
    yield
    index.install(())


def put(store: Store, one: dict[str, Any]) -> None:
    store.write(SYSTEM, lambda tx: tx.update(one, index.rows(one)) if tx.get(one["resourceType"], one["id"])
                else tx.create(one, index.rows(one)))  # fmt: skip


def patient(key: str, status: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": key, "maritalStatus": {"coding": [{"code": status}]}}


def married(store: Store) -> list[str]:
    with store.read(SYSTEM) as snapshot:
        plan = query.parse("Patient", [("marital", "M"), ("_sort", "_id"), ("_count", "1000")])
        return [one.id for one in snapshot.search(plan).matches]


def test_a_posted_parameter_is_active_when_everything_is_indexed(store: Store) -> None:
    for n in range(450):
        put(store, patient(f"p{n:03}", "M" if n % 2 else "S"))
    put(store, MARITAL)
    with pytest.raises(errors.Invalid, match="no search parameter"):
        married(store)
    assert parameters.note(store) and not parameters.note(store)
    epoch = parameters.refresh(store, 0)
    assert parameters.refresh(store, epoch) == epoch
    with pytest.raises(errors.Invalid, match="is being indexed"):
        married(store)
    put(store, patient("new", "M"))  # written while the walk has not begun: its writer makes the rows

    assert parameters.advance(store, index.rows)
    (half,) = parameters.listed(store)
    assert (half.state, half.seen, half.total) == ("indexing", 200, 450)
    index.install(())  # another process starts here and goes on
    parameters.refresh(store, 0)
    while parameters.advance(store, index.rows):
        pass
    (done,) = parameters.listed(store)
    assert (done.state, done.seen) == ("active", 451)
    parameters.refresh(store, epoch)
    assert married(store) == ["new", *(f"p{n:03}" for n in range(1, 450, 2))]
    assert check.check(store, index.rows).ok


def test_a_changed_parameter_is_indexed_again_and_a_retired_one_goes(store: Store) -> None:
    put(store, patient("a", "M"))
    put(store, MARITAL)
    parameters.note(store)
    parameters.refresh(store, 0)
    while parameters.advance(store, index.rows):
        pass
    put(store, MARITAL | {"expression": "Patient.maritalStatus.where(text = 'x')"})
    assert parameters.note(store)
    assert [one.state for one in parameters.listed(store)] == ["indexing"]
    put(store, MARITAL | {"status": "retired"})
    assert parameters.note(store) and not parameters.note(store)
    assert [one.state for one in parameters.listed(store)] == ["removed"]
    epoch = parameters.refresh(store, 0)
    assert epoch and "marital" not in index.parameters("Patient")
    while parameters.advance(store, index.rows):
        pass
    assert parameters.listed(store) == []


@pytest.mark.parametrize("ends", ["retired", "deleted"])
def test_the_rows_of_a_parameter_that_is_gone_are_removed(store: Store, ends: str) -> None:
    for n in range(3):
        put(store, patient(f"p{n}", "M"))
    put(store, MARITAL)
    parameters.note(store)
    parameters.refresh(store, 0)
    while parameters.advance(store, index.rows):
        pass
    parameters.refresh(store, 0)
    pid = index.pid("Patient", "marital")
    assert rows_of(store, pid) == 3 and len(married(store)) == 3
    if ends == "deleted":
        store.write(SYSTEM, lambda tx: tx.delete("SearchParameter", "marital"))
    else:
        put(store, MARITAL | {"status": "retired"})
    parameters.note(store)
    parameters.refresh(store, 0)
    with pytest.raises(errors.Invalid, match="no search parameter"):
        married(store)
    index.install(())  # another process goes on
    parameters.refresh(store, 0)
    while parameters.advance(store, index.rows):
        pass
    assert rows_of(store, pid) == 0 and parameters.listed(store) == []
    assert check.check(store, index.rows).ok


def test_a_parameter_posted_again_while_its_rows_go_is_indexed(store: Store) -> None:
    put(store, patient("a", "M"))
    put(store, MARITAL)
    parameters.note(store)
    put(store, MARITAL | {"status": "retired"})
    parameters.note(store)
    put(store, MARITAL)
    assert parameters.note(store)
    parameters.refresh(store, 0)
    while parameters.advance(store, index.rows):
        pass
    parameters.refresh(store, 0)
    assert married(store) == ["a"]


def through(store: Store) -> None:
    """Everything noted is worked off, as the processes do it."""
    parameters.note(store)
    parameters.refresh(store, 0)
    while parameters.advance(store, index.rows):
        pass
    parameters.refresh(store, 0)


NAMED = MARITAL | {"type": "string", "expression": "Patient.name.text | Person.name.text"}


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"base": ["Person"]}, 1),
        ({"base": ["Person"], "expression": "Person.name.text"}, 1),
        (
            {
                "base": ["Person", "Patient", "Practitioner"],
                "expression": NAMED["expression"] + "| Practitioner.name.text",
            },
            2,
        ),
        ({"expression": "Patient.name.exists()"}, 0),
        ({"type": "composite"}, 0),
        ({"url": URL + "2", "base": ["Person"]}, 0),
    ],
)
def test_no_row_is_left_of_the_types_a_changed_parameter_has_no_more(
    store: Store, changes: dict[str, Any], left: int
) -> None:
    for kind in ("Patient", "Person"):
        put(store, {"resourceType": kind, "id": "a", "name": [{"text": "Anne"}]})
    put(store, NAMED | {"base": ["Patient", "Person"]})
    through(store)
    old = index.pid("Patient", "marital")
    assert rows_of(store, old, "idx_string") == 2
    put(store, NAMED | {"base": ["Patient", "Person"]} | changes)
    through(store)
    kept = {index.pid(kind, "marital") for kind in ("Patient", "Person") if "marital" in index.parameters(kind)}
    assert sum(rows_of(store, pid, "idx_string") for pid in kept) == left
    assert old in kept or rows_of(store, old, "idx_string") == 0
    assert [one.state for one in parameters.listed(store)] == (["active"] if left else ["refused"])
    assert check.check(store, index.rows).ok


def test_no_row_is_left_when_a_parameter_is_posted_again_under_another_id_for_other_types(store: Store) -> None:
    for kind in ("Patient", "Person"):
        put(store, {"resourceType": kind, "id": "a", "name": [{"text": "Anne"}]})
    put(store, NAMED)
    through(store)
    store.write(SYSTEM, lambda tx: tx.delete("SearchParameter", "marital"))
    parameters.note(store)  # its rows go, and have not gone yet
    put(store, NAMED | {"id": "again", "base": ["Person"]})
    through(store)
    assert rows_of(store, index.pid("Person", "marital"), "idx_string") == 1
    assert [one.id for one in parameters.listed(store)] == ["again"]
    assert check.check(store, index.rows).ok


def test_of_two_parameters_with_one_url_the_first_stays(store: Store) -> None:
    put(store, patient("a", "M"))
    put(store, MARITAL)
    through(store)
    put(store, MARITAL | {"id": "second", "code": "other"})
    through(store)
    assert not parameters.note(store)
    states = {one.id: (one.state, one.note) for one in parameters.listed(store)}
    assert states["marital"] == ("active", "") and states["second"][0] == "refused"
    assert "SearchParameter/marital" in states["second"][1]
    assert married(store) == ["a"]


def rows_of(store: Store, pid: int, table: str = "idx_token") -> int:
    with store.read(SYSTEM) as snapshot:
        row = snapshot.view.db.one(f"SELECT count(*) FROM {table} WHERE pid = ?", (pid,))
    return int(row[0]) if row else 0


def test_references_by_a_parameter_of_users_are_among_what_refers_to_a_resource(store: Store) -> None:
    said = {"code": "seen-by", "type": "reference", "target": ["Practitioner"]}
    said["expression"] = "Patient.extension('http://x.org/e').value.as(Reference)"
    extension = [{"url": "http://x.org/e", "valueReference": {"reference": "Practitioner/d"}}]
    one = {"resourceType": "Patient", "id": "a", "extension": extension}
    for installed, expected in ((True, ["a"]), (False, [])):
        index.install([(custom.definition(MARITAL | said), True)] if installed else ())
        put(store, one)
        with store.read(SYSTEM) as snapshot:
            found = snapshot.search(references.referring("Practitioner", "d")).matches
        assert [match.id for match in found] == expected


def test_a_parameter_that_cannot_be_used_is_noted_with_the_reason(store: Store) -> None:
    put(store, MARITAL | {"expression": "Patient.maritalStatus.("})
    parameters.note(store)
    (one,) = parameters.listed(store)
    assert one.state == "refused" and "expression" in one.note
    parameters.refresh(store, 0)
    assert not parameters.advance(store, index.rows)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": ""}, "SearchParameter.url"),
        ({"url": "http://hl7.org/fhir/SearchParameter/Patient-link"}, "the standard's own"),
        ({"code": "a b"}, "a code is"),
        ({"code": "_count"}, "a code is"),
        ({"code": "gender"}, "already"),
        ({"type": "composite"}, "cannot be added"),
        ({"base": ["Patiente"]}, "resource types of R4"),
        ({"base": []}, "resource types of R4"),
        ({"expression": "Patient.name.("}, "cannot be read"),
        ({"expression": "Patient.name.exists()"}, "more than a path"),
        ({"expression": "Observation.code"}, "selects nothing of a Patient"),
        ({"expression": "Patient.birthDate"}, "not searched as token"),
        ({"expression": "Patient.name" + ".given" * 500}, "longer"),
        ({"expression": "(" * 900 + "Patient.name" + ")" * 900}, "expression"),
    ],
)
def test_what_makes_no_parameter_is_refused_with_its_element(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        custom.definition(MARITAL | changes)
    assert says in caught.value.diagnostics


def test_an_extension_can_be_searched_by() -> None:
    said = {"expression": "Patient.extension('http://x.org/e').value.as(string)", "type": "string", "code": "e"}
    index.install([(custom.definition(MARITAL | said), True)])
    one = {"resourceType": "Patient", "extension": [{"url": "http://x.org/e", "valueString": "Été"}]}
    assert [row[1] for row in index.rows(one).string] == ["ete"]
