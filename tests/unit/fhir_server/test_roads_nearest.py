"""Whom a message is meant for: the application that ordered, the person whose software it is, who took the request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hubs
import pytest
from corrected import DPI, MAIL, correct, message, received, waiting, withdraw
from hubs import REQUESTER, SYSTEM, asked, directory, hub_on, put, read
from test_distribution import notes
from test_order_record import BOTH, CARDIO, ECHO, ask, groups, of, told
from test_orders import PLACER, asks_for
from test_report_recipient import OWN, own_software, recipient

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.store.engine import Store

ENDS = [{"reference": OWN}]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


# --- the application that ordered ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ({"status": "off"}, "n'est pas en service"),
        ({"address": "mllp://127.0.0.1:1?application=RIS1"}, "ne nomme pas l'application"),
    ],
    ids=["off", "without names"],
)
def test_an_answer_that_cannot_reach_who_ordered_goes_to_no_other_application(
    hub: Hub, first: dict[str, Any], why: str
) -> None:
    """The structure's own software asks for answers to orders of its own."""
    ris = {"id": "ris", "name": "RIS", "address": "mllp://127.0.0.1:1?application=RIS1&facility=X"} | first
    other = asks_for("lps-1.1", "tlr-1.0", id="own", address="mllp://127.0.0.1:2?application=DPI2&facility=Y")
    desk = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/ris"}]}
    put(hub, SYSTEM, asks_for("tlr-1.0", **ris), other, desk)
    put(hub, SYSTEM, read(hub, "Organization/cabinet-lilas") | {"endpoint": ENDS})
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(status="active", identifier=[PLACER]))
    hubs.take(hub)
    assert hubs.deliveries(hub) == []
    (note,) = notes(hub)
    assert note.startswith("Réponse à la demande non remise à RIS : ") and why in note


# --- the person whose software it is ---------------------------------------------------------------------------------


def test_the_software_that_an_expert_shares_with_the_hospital_names_the_requester(hub: Hub) -> None:
    put(hub, SYSTEM, read(hub, "PractitionerRole/garnier") | {"endpoint": [{"reference": DPI}]})
    asked(hub, state="completed")
    for trigger, change in (("T02", correct), ("T10", withdraw), ("T04", None)):
        assert (message(hub, DPI).trigger, recipient(message(hub, DPI))[0]) == (trigger, "MOREAU")
        received(hub)
        if change:
            change(hub)


def test_the_software_that_the_expert_and_the_requester_share_names_the_requester(hub: Hub) -> None:
    own_software(hub, "garnier")
    put(hub, SYSTEM, read(hub, "PractitionerRole/moreau") | {"endpoint": ENDS})
    asked(hub, state="completed")
    assert recipient(message(hub, OWN))[0] == "MOREAU"


def test_an_expert_who_was_asked_in_another_role_is_the_recipient_in_their_own_software(hub: Hub) -> None:
    own_software(hub, "garnier")
    second = read(hub, "PractitionerRole/garnier") | {"id": "garnier-2"}
    put(hub, SYSTEM, second)
    both = [{"reference": one} for one in ("HealthcareService/avis-echo", "PractitionerRole/garnier-2")]
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(performer=both))
    hubs.take(hub)
    put(hub, hubs.EXPERT, hubs.opinion(hub))
    assert recipient(message(hub, OWN))[0] == "GARNIER"


def test_a_requester_whose_structure_lists_their_software_too_is_not_mailed(hub: Hub) -> None:
    own_software(hub, "moreau")
    put(hub, SYSTEM, read(hub, "Organization/cabinet-lilas") | {"endpoint": ENDS})
    asked(hub, state="completed")
    assert recipient(message(hub, OWN))[0] == "MOREAU" and MAIL not in waiting(hub)


# --- who took the request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [("echo",), BOTH], ids=["one group", "two groups"])
def test_the_group_in_whose_name_somebody_takes_a_request_keeps_the_order(hub: Hub, parties: tuple[str, ...]) -> None:
    """Their role in the directory does not name the group, the access token does."""
    groups(hub)
    role = read(hub, "PractitionerRole/garnier")
    put(hub, SYSTEM, {name: value for name, value in role.items() if name != "healthcareService"})
    ask(hub, **of(*parties))
    hubs.take(hub)
    assert hubs.status(hub) == "in_progress"
    others = [(CARDIO, "CA"), (CARDIO, "NW")] if "cardio" in parties else []
    assert sorted(told(hub)) == [*others, (ECHO, "NW")]
