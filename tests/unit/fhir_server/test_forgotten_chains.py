"""What was repeated or made again until it left is held by its addressee, also when retention has been there since."""

from __future__ import annotations

from collections.abc import Callable

import hubs
import pytest
from corrected import DPI, waiting, withdraw
from hubs import asked, directory, hub_on
from test_delivery_policies import context_of
from test_order_record import BACK, BOTH, CARDIO, ECHO, act, ask, change, groups, of, orders, told

from fhir_server.changes import Hub
from fhir_server.desk import outbox
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.store.leases import Outcome
from fhir_server.store.retention import prune


@pytest.fixture
def two_groups(open_url: Callable[..., Store], database_url: str) -> Hub:
    return groups(directory(hub_on(open_url(database_url))))


def the(hub: Hub, key: str) -> Delivery:
    return next(one for one in hubs.deliveries(hub) if one.id == key)


def sent(hub: Hub) -> None:
    while (claim := hub.store.claim("w", 60.0)) is not None:
        hub.store.finish(claim, Outcome("sent"))


def made_again(hub: Hub, order: Delivery) -> Delivery:
    act(hub, "hold", order)
    return the(hub, outbox.outbox_regenerate(hub.store, {"id": order.id}, context_of(hub))["id"])


def repeated(hub: Hub, order: Delivery) -> Delivery:
    act(hub, "cancel", order)
    return the(hub, hubs.replayed(hub.store, {"id": order.id})["id"])


@pytest.mark.parametrize("again", [made_again, repeated])
@pytest.mark.parametrize("batches", [0, 1, 2, 9])
def test_an_order_that_left_at_the_third_try_is_taken_back(
    two_groups: Hub, again: Callable[[Hub, Delivery], Delivery], batches: int
) -> None:
    """However far the clean-up came."""
    hub = two_groups
    ask(hub)
    again(hub, again(hub, orders(hub)[0]))
    sent(hub)
    stops = iter([False] * batches)
    prune(hub.store, -3_600, batch=1, stop=lambda: next(stops, True))
    change(hub, **BACK)
    assert told(hub)[-1] == (ECHO, "CA")


def test_an_order_that_left_at_the_third_try_is_sent_no_second_time(two_groups: Hub) -> None:
    hub = two_groups
    ask(hub)
    made_again(hub, made_again(hub, orders(hub)[0]))
    sent(hub)
    prune(hub.store, -3_600)
    change(hub, **of(*BOTH))
    assert told(hub) == [(CARDIO, "NW")]


def test_a_report_that_left_at_the_third_try_is_withdrawn_from_who_holds_it(hub: Hub) -> None:
    asked(hub, state="completed")
    repeated(hub, repeated(hub, waiting(hub)[DPI]))
    sent(hub)
    prune(hub.store, -3_600)
    withdraw(hub)
    assert DPI in waiting(hub)
