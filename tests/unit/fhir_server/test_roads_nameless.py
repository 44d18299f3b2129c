"""An address without application and facility: nothing new goes there, what follows does, the check names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from corrected import DPI, PFI, correct, message, notes, payload, received, record, waiting, withdraw
from hubs import ADMIN, SYSTEM, asked, directory, found, hub_on, put, read
from test_correction_attacks import run
from test_distribution import endpoint, flag
from test_distribution import notes as not_reached
from test_order_record import BACK, ECHO, act, ask, change, groups, orders, records, told, unrecorded
from test_orders import asks_for, sent
from test_soundness import problems

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.search import index
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.scopes import scopes
from fhir_server.teleexpertise.succession import DISTRIBUTED
from hl7v2.message import parse
from mappers.fhir_to_report import oid_of

Resource = dict[str, Any]
NAMELESS = "mllp://127.0.0.1:9"
WHY = "ne nomme pas l'application et l'établissement destinataires"
PLATFORM = endpoint("pfi")["payloadType"]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def keep(hub: Hub, resource: Resource) -> None:
    """What an older release left in the store."""
    rows = index.rows(resource)
    rows.scopes = scopes(resource)
    hub.store.write(SYSTEM, lambda tx: tx.update(resource, rows))


def recorded_as(hub: Hub, lane: str, addressee: str) -> None:
    """The records of the documents name this addressee for what went into a lane."""
    for document in found(hub, "DocumentReference", "related=DiagnosticReport/r"):
        for part in document["extension"][0]["extension"]:
            told = {one["url"]: one for one in part.get("extension", ())}
            if told.get("lane", {}).get("valueString") == lane:
                told["addressee"]["valueString"] = addressee
        keep(hub, document)


def lost_names(hub: Hub) -> None:
    put(hub, SYSTEM, endpoint("dpi", address=NAMELESS))


def never_named(hub: Hub) -> None:
    """As a release left it that asked for no names."""
    lost_names(hub)
    recorded_as(hub, DPI, "mllp://localhost:9?")


def before_the_record(hub: Hub) -> None:
    """As a release left it that recorded nobody."""
    lost_names(hub)
    for document in found(hub, "DocumentReference", "related=DiagnosticReport/r"):
        keep(hub, document | {"extension": [one for one in document["extension"] if one["url"] != DISTRIBUTED]})


def number(hub: Hub) -> str:
    """TXA-12 of the version that stands."""
    return oid_of(record(hub)["id"])


# --- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", [lost_names, never_named, before_the_record])
def test_who_holds_a_report_at_an_address_without_names_gets_what_follows_it(
    hub: Hub, then: Callable[[Hub], None]
) -> None:
    asked(hub, state="completed")
    received(hub)
    then(hub)
    first = number(hub)
    correct(hub)
    second = number(hub)
    msg = message(hub, DPI)
    assert (msg.trigger, msg.text("TXA-12"), msg.text("TXA-13"), msg.text("MSH-5")) == ("T10", second, first, "")
    received(hub)
    withdraw(hub)
    msg = message(hub, DPI)
    assert (msg.trigger, msg.text("TXA-12")) == ("T04", second)
    assert not any(WHY in note for note in notes(hub))


def test_an_address_without_names_that_holds_nothing_gets_no_later_version_as_its_first(hub: Hub) -> None:
    put(hub, SYSTEM, endpoint("dpi", status="off"))
    asked(hub, state="completed")
    received(hub)
    lost_names(hub)
    correct(hub)
    assert set(waiting(hub)) & {DPI, PFI} == {PFI}
    assert any(WHY in note for note in not_reached(hub))


def test_an_address_that_lost_its_names_gets_no_first_version_when_its_application_is_reached_elsewhere(
    hub: Hub,
) -> None:
    asked(hub, state="completed")
    received(hub)
    lost_names(hub)
    ends = [{"reference": one} for one in (f"{DPI}2", DPI, PFI)]
    put(hub, SYSTEM, endpoint("dpi", id="dpi2"), read(hub, "Organization/ch-demo") | {"endpoint": ends})
    correct(hub)
    assert message(hub, f"{DPI}2").trigger == "T10" and DPI not in waiting(hub)
    assert any(WHY in note for note in not_reached(hub))


def test_the_dmp_gets_what_follows_by_a_platform_whose_address_has_no_names(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    put(hub, SYSTEM, endpoint("pfi", address=NAMELESS))
    first = number(hub)
    correct(hub)
    msg = message(hub, PFI)
    assert (msg.trigger, msg.text("TXA-13"), flag(msg, "DESTDMP")) == ("T10", first, "Y")


@pytest.mark.parametrize(
    ("key", "kind", "other"),
    [("pfi", endpoint("dpi")["payloadType"], "the DMP holds"), ("dpi", PLATFORM, "a patient file holds")],
    ids=["a platform became a patient file", "a patient file became a platform"],
)
def test_nothing_takes_the_place_of_what_somebody_else_holds_behind_the_same_lane(
    hub: Hub, key: str, kind: list[Resource], other: str
) -> None:
    asked(hub, state="completed")
    received(hub)
    put(hub, SYSTEM, endpoint("pfi", status="off"))
    put(hub, SYSTEM, endpoint(key, payloadType=kind, address=NAMELESS))
    correct(hub)
    assert f"Endpoint/{key}" not in waiting(hub), f"it would replace what {other}"


# --- orders ----------------------------------------------------------------------------------------------------------


def unnamed(hub: Hub) -> None:
    put(hub, SYSTEM, asks_for("tlr-1.0-orm", id="echo", address=NAMELESS))


def unnamed_before(hub: Hub) -> None:
    """As a release left it that asked for no names and kept no record."""
    unnamed(hub)
    unrecorded(hub)
    run(hub, "UPDATE delivery SET endpoint = ?", NAMELESS)


@pytest.mark.parametrize("then", [unnamed, unnamed_before])
def test_who_holds_an_order_at_an_address_without_names_is_told_its_end_and_told_it_again(
    hub: Hub, then: Callable[[Hub], None]
) -> None:
    groups(hub)
    ask(hub)
    sent(hub)
    then(hub)
    change(hub, **BACK)
    assert told(hub) == [(ECHO, "NW"), (ECHO, "CA")] and not_reached(hub) == [] and len(records(hub)) == 1
    end = orders(hub)[-1]
    act(hub, "hold", end)
    operate(hub, ADMIN, "outbox-regenerate", {"id": end.id})
    assert told(hub)[-1] == (ECHO, "CA")
    assert parse(payload(hub, orders(hub)[-1])).text("MSH-5") == ""


def test_an_address_without_names_gets_no_order(hub: Hub) -> None:
    groups(hub)
    unnamed(hub)
    ask(hub)
    assert told(hub) == []
    (note,) = not_reached(hub)
    assert note.startswith("Demande non remise à ") and WHY in note


# --- the check -------------------------------------------------------------------------------------------------------


def test_the_check_names_an_address_without_names_that_asks_for_messages(hub: Hub) -> None:
    kinds = {"a": "lps-1.1", "b": "tlr-1.0-orm", "c": "siu-2.5"}
    half = f"{NAMELESS}?application=DPI"
    put(hub, SYSTEM, *(asks_for(code, id=key, address=half) for key, code in kinds.items()))
    put(hub, SYSTEM, endpoint("dpi", status="off", address=half))
    put(hub, SYSTEM, endpoint("dpi", id="images", address=half, payloadType=[{"text": "images"}]))
    told = problems(hub)
    assert [(kind, subject) for kind, subject, _ in told] == [("endpoint", f"Endpoint/{key}") for key in kinds]
    assert all("application" in text and "facility" in text for _, _, text in told)
