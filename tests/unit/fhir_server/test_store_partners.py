"""The list of new partners and the number of an installation, on both databases."""

from __future__ import annotations

from collections.abc import Callable

from fhir_server.context import SYSTEM
from fhir_server.store import partners
from fhir_server.store.engine import Store
from fhir_server.store.installation import identity
from fhir_server.store.partners import Partner


def listed(store: Store) -> list[Partner]:
    with store.read(SYSTEM) as snapshot:
        return snapshot.partners()


def note(store: Store, name: str, **more: object) -> None:
    one = Partner("dicom", name, "192.0.2.1", "accepted", **more)  # type: ignore[arg-type]  # keywords of any type
    store.write(SYSTEM, lambda tx: tx.note_partner(one))


def test_a_caller_is_counted_once_and_the_last_comes_first(store: Store) -> None:
    note(store, "A")
    note(store, "B")
    note(store, "A", times=4)
    found = listed(store)
    assert [(one.name, one.times) for one in found] == [("A", 5), ("B", 1)]
    assert found[0].first_at < found[0].last_at
    assert store.write(SYSTEM, lambda tx: tx.forget_partner("A")) == 1
    assert [one.name for one in listed(store)] == ["B"]


def test_the_list_is_bounded_and_the_longest_silent_goes(store: Store) -> None:
    partners_kept, partners.KEPT = partners.KEPT, 3
    try:
        for name in "ABCDE":
            note(store, name)
    finally:
        partners.KEPT = partners_kept
    assert [one.name for one in listed(store)] == ["E", "D", "C"]


def test_a_hostile_name_fits(store: Store) -> None:
    note(store, "x\0y" * 10_000, reason="r" * 9_000)
    (found,) = listed(store)
    assert len(found.name) <= 100 and "\0" not in found.name and len(found.reason) <= 200


def test_a_database_has_one_number_for_good_and_no_other_has_it(open_at: Callable[..., Store]) -> None:
    first = open_at()
    told = identity(first)
    assert len(told) == 16 and told == identity(first) == identity(open_at())
    first.write(SYSTEM, lambda tx: tx.view.db.run("DELETE FROM counter WHERE name = 'installation'"))
    assert identity(first) != told
