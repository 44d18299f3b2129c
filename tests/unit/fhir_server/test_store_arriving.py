"""Messages that arrive at once on PostgreSQL: one commit for several, and the rules of the inbox for each."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest
from test_store_together import until

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, NewMessage, Received, waiting

pytestmark = pytest.mark.needs("postgresql")


WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'inbox'::regclass"


def message(control_id: str, raw: bytes = b"MSH|", **more: str) -> NewMessage:
    keys = (("msh-10", control_id), ("case", f"Case/{control_id}"), ("iep", ""), ("msh-10", control_id))
    return NewMessage("mllp", raw, endpoint="mllp:1", peer="p", sender="A|B", control_id=control_id, keys=keys, **more)


def together(store: Store, url: str, messages: list[NewMessage]) -> dict[int, Received | Exception]:
    """Bring the messages while the first statement waits for a lock, so that all but the first travel together."""
    outcomes: dict[int, Received | Exception] = {}

    def bring(number: int) -> None:
        try:
            outcomes[number] = store.receive(messages[number])
        except Exception as fault:
            outcomes[number] = fault

    threads = [threading.Thread(target=bring, args=(number,)) for number in range(len(messages))]
    line = store._arriving._line  # type: ignore[union-attr]  # PostgreSQL has one
    with store._database.once(steady=True) as session:
        session.run("SET lock_timeout = '30s'")  # it is the only one of its kind, and used again
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE inbox IN EXCLUSIVE MODE")
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: line._busy and line.waiting == number)  # type: ignore[misc]  # a default has no type
            if not number:
                until(lambda: other.execute(WAITS).fetchone() == (1,))
        other.rollback()
    for thread in threads:
        thread.join(30)
    return outcomes


def test_messages_that_wait_share_one_commit_and_keep_their_own_rows(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    store = open_url(migrated_postgres)
    wanted = [message(f"M{n}", b"\xff\x00\\ message %d" % n) for n in range(9)]
    got = together(store, migrated_postgres, wanted)
    assert all(isinstance(one, Received) and one.state == "received" and not one.known for one in got.values())
    with store.read(SYSTEM) as snapshot:
        assert len(snapshot.view.db.rows("SELECT DISTINCT xmin::text FROM inbox")) == 2
        for number, one in got.items():
            assert isinstance(one, Received)
            row = snapshot.message(one.id)
            assert row is not None and (row.control_id, row.case_key) == (f"M{number}", f"Case/M{number}")
            assert snapshot.message_raw(one.id) == wanted[number].raw
            assert snapshot.message_keys(one.id) == (("case", f"Case/M{number}"), ("msh-10", f"M{number}"))


def test_repeats_and_rivals_among_those_that_wait_are_told_apart(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    store = open_url(migrated_postgres)
    before = store.receive(message("OLD"))
    wanted = [message("X"), message("OLD"), message("M"), message("M"), message("M", b"other"), message("")]
    got = together(store, migrated_postgres, [*wanted, message("")])
    ones = [one for _, one in sorted(got.items()) if isinstance(one, Received)]
    assert (ones[1].id, ones[1].known) == (before.id, True)
    same = [one for one in ones[2:5] if not one.conflict]
    with store.read(SYSTEM) as snapshot:
        rows = {row.id: row for row in snapshot.messages(InboxFilter(limit=99))}
        held = [row for row in rows.values() if row.control_id == "M"]
        assert sorted(row.state for row in held) == ["conflict", "received"] and len(rows) == 6
        rival = next(row for row in held if row.state == "conflict")
        assert rows[rival.rival].state == "received"
        assert sum(row.repeats for row in held) == 1, "three came under one control id: an original, a rival, a repeat"
    assert len(same) >= 1 and ones[5].id != ones[6].id


def test_one_that_cannot_be_stored_harms_no_other(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres)
    got = together(store, migrated_postgres, [message("A"), message("B"), message("C", media_type="\0"), message("D")])
    assert isinstance(got.pop(2), psycopg.Error)
    assert all(isinstance(one, Received) and not one.known for one in got.values())


def test_one_that_no_row_can_hold_is_refused_alone_too(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres)
    with pytest.raises(psycopg.Error):
        store.receive(message("A", media_type="text\0more"))
    with store.read(SYSTEM) as snapshot:
        assert not snapshot.messages(InboxFilter())


def test_what_a_list_would_read_as_a_sign_is_kept_as_text(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    store = open_url(migrated_postgres)
    texts = ["first", 'a"b', "\\", "{x,y}", "NULL", "a,b", " blank ", "line\nend\t", "é\U0001f600", "'\"\\\\\"'"]
    wanted = [message(text) for text in texts]
    got = together(store, migrated_postgres, wanted)
    with store.read(SYSTEM) as snapshot:
        for number, text in enumerate(texts):
            one = got[number]
            assert isinstance(one, Received) and not one.known
            row = snapshot.message(one.id)
            assert row is not None and (row.control_id, row.case_key) == (text, f"Case/{text}")
            assert snapshot.message_keys(one.id) == (("case", f"Case/{text}"), ("msh-10", text))


def test_messages_are_numbered_as_they_came(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres)
    names = ["M", "Z", "C", "A", "Y", "B"]
    together(store, migrated_postgres, [message(name) for name in names])
    with store.read(SYSTEM) as snapshot:
        rows = waiting(snapshot.view, "mllp", "mllp:1", 9)
    assert [row.control_id for row in rows] == names


def test_one_that_must_wait_for_another_process_makes_no_other_wait(
    open_url: Callable[..., Store], migrated_postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It stores the same control id and is slow to commit; nobody is told to come again."""
    store, outcomes = open_url(migrated_postgres), dict[int, object]()
    names = ["HELD", "B", "HELD", "A", "C"]

    def bring(number: int) -> None:
        try:
            outcomes[number] = store.receive(message(names[number]))
        except Exception as fault:
            outcomes[number] = fault

    threads = [threading.Thread(target=bring, args=(number,)) for number in range(len(names))]
    with psycopg.connect(migrated_postgres) as other:
        other.execute(
            "INSERT INTO inbox (id, channel, endpoint, sha256, size, raw, sender, control_id, received_at, state, "
            "original) VALUES ('first', 'mllp', '', '', 1, 'x', 'A|B', 'HELD', 1, 'received', 1)"
        )
        for thread in threads:
            thread.start()
        until(lambda: len(outcomes) == 3)
        assert all(isinstance(outcomes[number], Received) for number in (1, 3, 4))
        other.rollback()
    for thread in threads:
        thread.join(30)
    assert all(isinstance(one, Received) for one in outcomes.values()) and len(outcomes) == 5
    assert sum(isinstance(one, Received) and one.known for one in outcomes.values()) == 1
    told = [one for one in caplog.records if one.name == "passerelle.store"]
    assert told and all("LockNotAvailable (55P03)" in one.getMessage() and one.exc_info is None for one in told)


def test_a_database_that_is_gone_is_told_to_everybody(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres)
    store.close()
    with pytest.raises(errors.Unavailable, match="stopping"):
        store.receive(message("A"))


@pytest.mark.parametrize("count", [0, 1, 24])
def test_one_that_comes_alone_keeps_its_bytes_and_every_key(
    open_url: Callable[..., Store], migrated_postgres: str, count: int
) -> None:
    store = open_url(migrated_postgres)
    keys = tuple(("rpps", f"'{{\"\\é?%s{number}") for number in range(count))
    raw = bytes(range(256))
    got = store.receive(NewMessage("mllp", raw, endpoint="mllp:1", sender="A|'\\x", control_id="M'1", keys=keys))
    assert (got.state, got.known) == ("received", False)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.message_raw(got.id) == raw
        assert sorted(snapshot.view.db.rows("SELECT kind, value FROM message_key")) == sorted(keys)
        row = snapshot.message(got.id)
    assert row is not None and (row.sender, row.control_id) == ("A|'\\x", "M'1")


def test_a_connection_that_ends_while_it_stores_tells_that_nothing_is_known_now(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    store = open_url(migrated_postgres)
    store.receive(message("M0"))
    with store._database.once(steady=True) as session:
        session.run("SET lock_timeout = '30s'")
    told: list[Exception] = []

    def bring() -> None:
        try:
            store.receive(message("M1"))
        except Exception as fault:
            told.append(fault)

    bringing = threading.Thread(target=bring)
    with psycopg.connect(migrated_postgres) as other:
        other.execute("LOCK TABLE inbox IN EXCLUSIVE MODE")
        bringing.start()
        until(lambda: other.execute(WAITS).fetchone() == (1,))
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        bringing.join(30)
    assert [type(fault) for fault in told] == [errors.Unavailable]
    assert store.receive(message("M1")).state == "received"


def test_names_are_kept_whatever_character_set_the_connection_is_asked_for(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    store = open_url(migrated_postgres + ("&" if "?" in migrated_postgres else "?") + "client_encoding=LATIN1")
    first = store.receive(message("É-1"))
    again = store.receive(message("É-1"))
    assert (again.id, again.known) == (first.id, True)
    with store.read(SYSTEM) as snapshot:
        assert [row.control_id for row in snapshot.messages(InboxFilter())] == ["É-1"]
