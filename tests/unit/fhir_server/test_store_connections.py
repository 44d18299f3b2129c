"""A connection on which a statement failed does not carry the failure into later transactions."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store.blobs import Blobs
from fhir_server.store.engine import Store
from fhir_server.store.inbox import NewMessage
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


def ended(connection: psycopg.Connection[Any]) -> None:
    """Returns once the server has closed a connection."""
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLRDHUP)
    assert watch.poll(20_000)


IMPATIENT = "SET LOCAL idle_in_transaction_session_timeout = 50"


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize(("last", "said"), [("", "nothing was written: repeat"), (ASKED, "could not do this now")])
def test_a_transaction_that_stood_idle_too_long_is_not_said_to_be_written_perhaps(
    single: Store, last: str, said: str
) -> None:
    """Nobody asked for its commit yet."""

    def frozen(tx: Tx) -> None:
        tx.next_epoch()
        tx.view.db.run(IMPATIENT)
        tx.epoch()
        ended(tx.view.db._connection)  # type: ignore[attr-defined]  # PostgreSQL's own
        if last:
            tx.view.db.run(last, ("tx",))

    before = single.epoch
    with pytest.raises(errors.Unavailable, match=said):
        single.write(SYSTEM, frozen)
    assert single.epoch == before and single.write(SYSTEM, lambda tx: tx.next_epoch()) == before + 1


@pytest.mark.needs("postgresql")
def test_answers_that_wait_are_not_taken_for_the_end_of_the_connection(single: Store) -> None:
    """Before a commit, what nobody asked the answer of yet may have come: errors among it are still told."""

    def many(tx: Tx) -> None:
        tx.next_epoch()
        for _ in range(300):
            tx.view.db.run("SELECT repeat('x', 1000)")

    before = single.epoch
    single.write(SYSTEM, many)
    assert single.epoch == before + 1

    def failing(tx: Tx) -> None:
        many(tx)
        tx.view.db.run(FAILING)

    with pytest.raises(psycopg.errors.UniqueViolation):
        single.write(SYSTEM, failing)
    assert single.epoch == before + 1


@pytest.mark.needs("postgresql")
def test_a_snapshot_lasts_while_content_is_read(
    single: Store, migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = b"x" * 100_000
    got = single.receive(NewMessage("mllp", raw))
    real = Blobs.read

    def slow(blobs: Blobs, sha256: str) -> bytes:
        """Stands idle for as long as it takes until the server ends another transaction that stands idle."""
        other = psycopg.connect(migrated_postgres)
        other.execute(IMPATIENT)
        ended(other)
        other.close()
        return real(blobs, sha256)

    monkeypatch.setattr(Blobs, "read", slow)
    with single.read(SYSTEM) as snapshot:
        assert snapshot.message(got.id) is not None
        snapshot.view.db.run(IMPATIENT)
        assert snapshot.message_raw(got.id) == raw
        assert snapshot.message(got.id) is not None


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
