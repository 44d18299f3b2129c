"""What the delivery topics fill the outbox with is what the product takes and settles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from benchmarks.delivery_target import Outbox, message
from fhir_server.context import SYSTEM
from fhir_server.store.engine import Store
from fhir_server.store.leases import Outcome
from hl7v2.check import check
from hl7v2.message import parse


def test_the_message_is_one_our_own_rules_take() -> None:
    msg = parse(message("B0000100000000000001"))
    assert [found for found in check(msg) if found.severity == "error"] == []
    assert msg.control_id == "B0000100000000000001"


def test_rows_written_in_bulk_are_deliveries(database_url: str, open_url: Callable[..., Store]) -> None:
    with closing(Outbox(database_url)) as outbox:
        lane, idle = outbox.lane("bench", "mllp://127.0.0.1:1"), outbox.lane("idle", "mllp://127.0.0.1:1")
        outbox.fill(lane, 3, "sent")
        outbox.fill(lane, 2)
        outbox.fill(idle, 1)
        outbox.open([lane])
        store = open_url(database_url)
        taken = []
        while (held := store.take("w", 30.0, lambda _, __: None)) is not None:
            assert parse(store.payload(held)).control_id == held.delivery.id
            taken.append(held.delivery.lane_seq)
            store.finish(held, Outcome("sent"))
        assert taken == [4, 5], "behind the finished ones, and nothing of a paused lane"
        assert (outbox.waiting(lane), outbox.waiting(idle)) == (0, 1)
        with store.read(SYSTEM) as snapshot:
            assert {len(snapshot.attempts(one.id)) for one in snapshot.deliveries() if one.lane == "bench"} == {1}
            assert all(snapshot.delivery_keys(one.id) == (("msh-10", one.id),) for one in snapshot.deliveries())
            assert snapshot.totals()[1] == 6
