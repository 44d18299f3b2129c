"""What became of a delivery that was repeated very often: each repetition is asked, however long the chain is."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hubs import SYSTEM, NewDelivery, hub_on
from test_correction_attacks import run

from fhir_server.changes import Hub
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx
from fhir_server.teleexpertise import overtaken

LENGTH = sys.getrecursionlimit() + 100


@pytest.fixture
def hub(open_url: Callable[..., Store], database_url: str) -> Hub:
    return hub_on(open_url(database_url))


@pytest.fixture
def chain(hub: Hub) -> list[str]:
    """A delivery, a replay of it, a replay of that one, and so on; none has left."""

    def send(tx: Tx) -> list[str]:
        made = [""]
        for _ in range(LENGTH):
            made.append(tx.send(NewDelivery("l", "mllp://127.0.0.1:9", "hl7", b"x", parent=made[-1])))
        return made[1:]

    return hub.store.write(SYSTEM, send)


def test_a_replay_that_left_is_found_at_the_end_of_a_long_chain(hub: Hub, chain: list[str]) -> None:
    run(hub, "UPDATE delivery SET state = 'cancelled'")
    with hub.store.read(SYSTEM) as snapshot:
        assert overtaken.handed(snapshot, chain[0]) == "ended"
    run(hub, "UPDATE delivery SET state = 'sent' WHERE id = ?", chain[-1])
    with hub.store.read(SYSTEM) as snapshot:
        assert overtaken.handed(snapshot, chain[0]) == "gone"


def test_a_long_chain_is_given_up_to_its_last_replay(hub: Hub, chain: list[str]) -> None:
    hub.store.write(SYSTEM, lambda tx: overtaken.give_up(tx, chain[:1], "replaced"))
    with hub.store.read(SYSTEM) as snapshot:
        last = snapshot.delivery(chain[-1])
        assert last is not None and last.state == "cancelled"
        assert overtaken.handed(snapshot, chain[0]) == "ended"
