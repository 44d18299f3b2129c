"""The inbox on both databases: original bytes first, repeats recognised, conflicts kept."""

from __future__ import annotations

import threading

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store import inbox
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow, NewMessage, Received
from fhir_server.store.session import Tx
from fhir_server.store.view import Stale

ADT = b"MSH|^~\\&|A|B|C|D|20260101||ADT^A01|M1|P|2.5\rPID|1||1^^^X\r"


def message(raw: bytes = ADT, control_id: str = "M1", **more: object) -> NewMessage:
    return NewMessage("mllp", raw, endpoint="2575", peer="127.0.0.1:4", sender="A|B", control_id=control_id, **more)  # type: ignore[arg-type]  # keywords of any type


def shown(store: Store, inbox_id: str) -> InboxRow:
    with store.read(SYSTEM) as snapshot:
        row = snapshot.message(inbox_id)
    assert row is not None
    return row


def test_a_message_is_stored_whole_before_anything_else(store: Store) -> None:
    got = store.receive(message(message_type="ADT^A01", keys=[("IPP", "1"), ("IPP", "1"), ("INS", "")]))
    assert got == Received(got.id, "received", False, None)
    assert len(got.id) == 20
    row = shown(store, got.id)
    assert (row.channel, row.size, row.state, row.control_id) == ("mllp", len(ADT), "received", "M1")
    with store.read(SYSTEM) as snapshot:
        assert snapshot.message_raw(got.id) == ADT
        assert snapshot.message_keys(got.id) == (("IPP", "1"),)


def test_a_large_message_goes_to_the_blobs(store: Store) -> None:
    raw = ADT + b"x" * 200_000
    got = store.receive(message(raw))
    assert store.blobs.exists(shown(store, got.id).sha256)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.message_raw(got.id) == raw


def test_the_same_message_again_gets_the_stored_acknowledgement(store: Store) -> None:
    first = store.receive(message())
    store.write(SYSTEM, lambda tx: tx.integrate(first.id, b"AA", keys=[("case", "ServiceRequest/1")], note="1 patient"))
    again = store.receive(message())
    assert again == Received(first.id, "done", True, b"AA")
    row = shown(store, first.id)
    assert row.repeats == 1 and row.case_key == "ServiceRequest/1" and row.note == "1 patient"
    with store.read(SYSTEM) as snapshot:
        assert len(snapshot.messages()) == 1


def test_other_bytes_under_the_same_control_id_are_kept_as_a_conflict(store: Store) -> None:
    first = store.receive(message())
    rival = store.receive(message(ADT + b"ZZZ|other\r"))
    assert rival.conflict and rival.rival == first.id and not rival.known
    store.reject(rival.id, "MSH-10 M1 was used before", "MSH^1^10", b"AE")
    row = shown(store, rival.id)
    assert (row.state, row.error, row.location, row.ack) == ("conflict", "MSH-10 M1 was used before", "MSH^1^10", b"AE")
    again = store.receive(message(ADT + b"ZZZ|other\r"))
    assert (again.id, again.known, again.state, again.ack) == (rival.id, True, "conflict", b"AE")
    assert shown(store, first.id).state == "received"


def test_another_sender_may_use_the_same_control_id(store: Store) -> None:
    first = store.receive(message())
    other = store.receive(NewMessage("mllp", b"other", sender="Z|Z", control_id="M1"))
    assert other.id != first.id and other.state == "received"


def test_messages_without_control_id_are_always_new(store: Store) -> None:
    ids = {store.receive(message(b"", control_id="")).id for _ in range(3)}
    assert len(ids) == 3


def test_a_message_taken_in_twice_at_once_counts_once(store: Store) -> None:
    first = store.receive(message())
    store.write(SYSTEM, lambda tx: tx.integrate(first.id, b"AA"))
    with pytest.raises(Stale):
        store.write(SYSTEM, lambda tx: tx.integrate(first.id, b"AA again"))
    assert shown(store, first.id).ack == b"AA"
    with pytest.raises(Stale):
        store.reject(first.id, "late fault", "", b"AE")
    with pytest.raises(errors.NotFound):
        store.write(SYSTEM, lambda tx: tx.integrate("nobody", b""))


def test_integration_is_undone_with_its_transaction(store: Store) -> None:
    first = store.receive(message())

    def work(tx: Tx) -> None:
        tx.integrate(first.id, b"AA")
        raise errors.Conflict("no")

    with pytest.raises(errors.Conflict):
        store.write(SYSTEM, work)
    assert shown(store, first.id).state == "received"


def test_a_refused_message_can_be_taken_in_later(store: Store) -> None:
    first = store.receive(message())
    store.reject(first.id, "the database is stopping", "", b"AR", state="refused")
    again = store.receive(message())
    assert (again.state, again.ack) == ("refused", b"AR")
    store.write(SYSTEM, lambda tx: tx.integrate(first.id, b"AA"))
    row = shown(store, first.id)
    assert (row.state, row.error) == ("done", "")


def test_a_rejected_message_can_be_reopened_and_a_done_one_cannot(store: Store) -> None:
    first = store.receive(message())
    store.reject(first.id, "no PID", "PID", b"AE")
    store.write(SYSTEM, lambda tx: tx.reopen(first.id))
    assert (shown(store, first.id).state, shown(store, first.id).ack) == ("received", None)
    store.write(SYSTEM, lambda tx: tx.integrate(first.id, b"AA"))
    with pytest.raises(errors.RuleBroken):
        store.write(SYSTEM, lambda tx: tx.reopen(first.id))


def test_a_person_refuses_what_was_answered_or_is_by_the_refusal(store: Store) -> None:
    first, second = store.receive(message()), store.receive(message(control_id="M2", raw=ADT + b"2"))
    store.reject(first.id, "a defect", "", None)
    store.reject(second.id, "a rule", "", b"AE of then")
    with pytest.raises(errors.RuleBroken, match="cannot be refused"):
        store.write(SYSTEM, lambda tx: inbox.refuse(tx.view, first.id, "refused: no"))
    assert shown(store, first.id).state == "error"
    store.write(SYSTEM, lambda tx: inbox.refuse(tx.view, first.id, "refused: no", b"AE"))
    store.write(SYSTEM, lambda tx: inbox.refuse(tx.view, second.id, "refused: no", b"AE"))
    rows = [shown(store, one.id) for one in (first, second)]
    assert [(row.state, bytes(row.ack or b"")) for row in rows] == [("refused", b"AE"), ("refused", b"AE of then")]


def test_many_threads_sending_the_same_message_make_one_row(store: Store) -> None:
    got: list[Received] = []
    threads = [threading.Thread(target=lambda: got.append(store.receive(message()))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({one.id for one in got}) == 1
    assert sorted(one.known for one in got) == [False] + [True] * 11
    assert shown(store, got[0].id).repeats == 11


def test_hostile_text_from_a_wire_is_stored(store: Store) -> None:
    got = store.receive(
        NewMessage(
            "mllp", b"\x00\xff", peer="\x00", sender="s\x00", control_id="c\x00\udcff" * 900, message_type="\x00"
        )
    )
    store.reject(got.id, "bad \x00 \ud800 text" * 999, "MSH\x00", None, keys=[("IPP", "\x00")])
    row = shown(store, got.id)
    assert "\x00" not in row.error + row.control_id + row.location and len(row.error) <= 4000


def test_the_list_filters_and_pages(store: Store) -> None:
    ids = [store.receive(message(b"%d" % n, control_id=f"M{n}", keys=[("INS", f"{n % 2}")])).id for n in range(6)]
    store.reject(ids[2], "broken", "", b"AE", keys=[("case", "c")])
    with store.read(SYSTEM) as snapshot:
        assert [row.id for row in snapshot.messages()] == ids[::-1]
        page = snapshot.messages(InboxFilter(limit=2))
        assert [row.id for row in snapshot.messages(InboxFilter(limit=2, before=page[-1].seq))] == [ids[3], ids[2]]
        assert [row.id for row in snapshot.messages(InboxFilter(state="error"))] == [ids[2]]
        assert [row.id for row in snapshot.messages(InboxFilter(key=("INS", "1")))] == [ids[5], ids[3], ids[1]]
        assert [row.id for row in snapshot.messages(InboxFilter(key=("", "0"), control_id="M4"))] == [ids[4]]
        assert [row.id for row in snapshot.messages(InboxFilter(case_key="c"))] == [ids[2]]
        assert snapshot.messages(InboxFilter(until=1)) == []
        assert snapshot.unsettled() == {("mllp", "received"): 5, ("mllp", "error"): 1}
        assert snapshot.message("nobody") is None
