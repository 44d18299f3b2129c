"""What everyday questions to the outbox cost does not grow with what was delivered long ago.

Counted in steps of SQLite's virtual machine, which are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fhir_server.context import SYSTEM, now
from fhir_server.store import outbox_desk
from fhir_server.store.engine import Store, open_store
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.session import Tx
from fhir_server.store.sqlite import SqliteSession, connect
from fhir_server.store.view import View

FINISHED = 2_000
QUESTIONS: dict[str, Callable[[View], object]] = {
    "second legs that wait": outbox_desk.waiting_legs,
    "the lanes": outbox_desk.lanes,
    "the totals": outbox_desk.totals,
    "how the latest attempts ended": lambda view: outbox_desk.rates(view, last=10),
}


def steps(store: Store, folder: Path, question: Callable[[View], object]) -> int:
    """How many steps the answer takes."""
    counted = [0]

    def step() -> int:
        counted[0] += 1
        return 0

    connection = connect(folder / "passerelle.db", read_only=True)
    try:
        session = SqliteSession(connection, 30.0)
        connection.set_progress_handler(step, 1)
        question(View(session, SYSTEM, store.blobs, now))
    finally:
        connection.close()
    return counted[0]


def delivered(store: Store, many: int) -> None:
    """Deliveries that were sent, answered and, one leg in two, confirmed."""

    def queue(tx: Tx) -> None:
        for number in range(many):
            tx.send(NewDelivery("dpi", "mllp://dpi:2575", "hl7", b"MSH|", second_leg="zam" if number % 2 else "none"))

    def settle(tx: Tx) -> None:
        tx.view.db.run(
            "INSERT INTO attempt (delivery_id, n, worker, token, started_at, ended_at, outcome) "
            "SELECT id, 1, 'w', 1, created_at, created_at, 'sent' FROM delivery WHERE state = 'queued'"
        )
        tx.view.db.run(
            "UPDATE delivery SET state = 'sent', leg_state = CASE leg_state WHEN 'waiting' THEN 'confirmed' ELSE '' END"
        )

    store.write(SYSTEM, queue)
    store.write(SYSTEM, settle)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=list(QUESTIONS))
def test_a_question_costs_the_same_however_much_was_delivered(
    tmp_path: Path, question: Callable[[View], object]
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'passerelle.db'}", tmp_path)
    try:
        delivered(store, 20)
        few = steps(store, tmp_path, question)
        delivered(store, FINISHED)
        assert 0 < steps(store, tmp_path, question) < few + FINISHED // 10
    finally:
        store.close()
