"""A connection on which a statement failed does not carry the failure into later transactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx

ASKED = "SELECT value FROM counter WHERE name = ?"
FAILING = "INSERT INTO counter (name, value) VALUES ('epoch', 1)"


@pytest.fixture
def single(open_url: Callable[..., Store], migrated_postgres: str) -> Store:
    """One connection, on which a work was refused before anything was prepared."""
    store = open_url(migrated_postgres, connections=1)
    with pytest.raises(errors.RuleBroken):
        store.write(SYSTEM, refused)
    return store


def refused(tx: Tx) -> None:
    tx.next_epoch()
    raise errors.RuleBroken("no")


def ask(tx: Tx) -> Any:
    return tx.view.db.rows(ASKED, ("epoch",))


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("before", range(7))
def test_what_was_sent_behind_a_failure_can_be_sent_again(single: Store, before: int) -> None:
    """The driver prepares a statement at its sixth use; here some of these uses are never run."""

    def failing(tx: Tx) -> None:
        tx.view.db.run(FAILING)
        tx.view.db.run(ASKED, ("tx",))
        tx.view.db.rows(FAILING)

    for _ in range(before):
        single.write(SYSTEM, ask)
    for _ in range(3):
        with pytest.raises(psycopg.errors.UniqueViolation):
            single.write(SYSTEM, failing)
        assert [single.write(SYSTEM, ask) for _ in range(7)] == [[(1,)]] * 7


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("before", [0, 4, 5, 6])
def test_a_failure_hidden_by_another_is_noticed(single: Store, before: int) -> None:
    """The statement's failure would be told later; the work raises first, for its own reason."""

    def stopping(tx: Tx) -> None:
        tx.view.db.run(FAILING)
        tx.view.db.run(ASKED, ("tx",))
        raise errors.RuleBroken("no")

    for _ in range(before):
        single.write(SYSTEM, ask)
    for _ in range(3):
        with pytest.raises((errors.RuleBroken, psycopg.errors.UniqueViolation)):
            single.write(SYSTEM, stopping)
        assert [single.write(SYSTEM, ask) for _ in range(7)] == [[(1,)]] * 7


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("before", [0, 4, 5, 6])
def test_a_read_that_fails_harms_no_later_read(single: Store, before: int) -> None:
    def read(sql: str = ASKED) -> Any:
        with single.read(SYSTEM) as snapshot:
            if sql != ASKED:
                snapshot.view.db.run(sql)
                snapshot.view.db.run(ASKED, ("tx",))
            return snapshot.view.db.rows(ASKED, ("epoch",))

    for _ in range(before):
        read()
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            read("SELECT 1 / 0")
        assert [read() for _ in range(7)] == [[(1,)]] * 7


@pytest.mark.needs("postgresql")
def test_a_refusal_keeps_its_connection(single: Store) -> None:
    """Only a failed statement costs a connection; a work that changes its mind does not."""

    def backend(tx: Tx) -> Any:
        return tx.view.db.rows("SELECT pg_backend_pid()")[0][0]

    first = single.write(SYSTEM, backend)
    for _ in range(10):
        with pytest.raises(errors.RuleBroken):
            single.write(SYSTEM, refused)
    assert single.write(SYSTEM, backend) == first and single.epoch == 1


@pytest.mark.needs("postgresql")
def test_statements_stay_prepared_over_reads_and_refusals(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    single = open_url(migrated_postgres, connections=1)

    def prepared(tx: Tx) -> set[str]:
        return {row[0] for row in tx.view.db.rows("SELECT statement FROM pg_prepared_statements")}

    for _ in range(7):
        single.write(SYSTEM, ask)
        with single.read(SYSTEM) as snapshot:
            snapshot.journal_head()
    before = single.write(SYSTEM, prepared)
    assert any("counter" in statement for statement in before) and any("journal" in statement for statement in before)
    for _ in range(3):
        with pytest.raises(errors.RuleBroken):
            single.write(SYSTEM, refused)
        with pytest.raises(ZeroDivisionError), single.read(SYSTEM) as snapshot:
            snapshot.journal_head()
            raise ZeroDivisionError
    assert before <= single.write(SYSTEM, prepared)
