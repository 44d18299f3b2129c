"""Whom a report of the LPS profile names as its recipient (PRT RCT): the person whose software gets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hubs
import pytest
from corrected import DPI, correct, message, received, withdraw
from hubs import PARTNER, SYSTEM, asked, directory, hub_on, put, read
from test_distribution import endpoint

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.store.engine import Store
from hl7v2.message import Message

OWN = "Endpoint/own"
REQUESTER, EXPERT, DOCTOR = "moreau", "garnier", "lefevre"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def recipient(msg: Message) -> tuple[str, str, str]:
    """Name, national number and mailbox."""
    (prt,) = (one for one in msg.all("PRT") if one.text(4) == "RCT")
    return prt.text(5, 2), prt.text(5, 1), prt.text(15, 4)


def own_software(hub: Hub, role: str) -> None:
    address = "mllp://127.0.0.1:99?application=LOGICIEL&facility=CABINET"
    desk = read(hub, f"PractitionerRole/{role}") | {"endpoint": [{"reference": OWN}]}
    put(hub, SYSTEM, endpoint("dpi", id="own", address=address), desk)


def reported(hub: Hub, doctor: str = "") -> None:
    named: dict[str, Any] = {"generalPractitioner": [{"reference": f"PractitionerRole/{doctor}"}]} if doctor else {}
    put(hub, PARTNER, people.patient(0) | named)
    asked(hub, state="completed")


@pytest.mark.parametrize(
    ("role", "doctor", "told"),
    [
        (REQUESTER, "", ("MOREAU", "899000000011", "claire.moreau@ch-demo.mssante.fr")),
        (EXPERT, "", ("GARNIER", "899000000037", "helene.garnier@ch-demo.mssante.fr")),
        (DOCTOR, DOCTOR, ("LEFEVRE", "899000000029", "paul.lefevre@ch-demo.mssante.fr")),
    ],
)
def test_the_software_of_a_person_reads_that_person_as_the_recipient_of_every_version(
    hub: Hub, role: str, doctor: str, told: tuple[str, str, str]
) -> None:
    own_software(hub, role)
    reported(hub, doctor)
    assert recipient(message(hub, OWN)) == told
    received(hub)
    correct(hub)
    assert recipient(message(hub, OWN)) == told
    received(hub)
    withdraw(hub)
    assert (message(hub, OWN).trigger, recipient(message(hub, OWN))) == ("T04", told)


def test_the_software_of_an_establishment_reads_the_requester(hub: Hub) -> None:
    reported(hub)
    assert recipient(message(hub, DPI))[0] == "MOREAU"
    assert len([one for one in hubs.deliveries(hub) if one.lane == DPI]) == 1
