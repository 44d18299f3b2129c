"""PV1 of what we send: the stay of the request for the establishment that counts it, class N for everybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hubs
import pytest
from corrected import correct, received, withdraw
from hubs import EXPERT, PARTNER, REQUESTER, SYSTEM, directory, hub_on, opinion, put, read
from test_distribution import endpoint, payload, profiled
from test_orders import PLACER, asks_for, slot

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.store.engine import Store
from hl7v2.check import check
from hl7v2.message import Message, parse

Resource = dict[str, Any]
ROOT = people.IPP_SYSTEM[:-1]
STAY = {
    "resourceType": "Encounter", "id": "stay", "status": "in-progress", "class": {"code": "IMP"},
    "subject": {"reference": "Patient/patient-01"}, "serviceProvider": {"reference": "Organization/ch-demo"},
    "identifier": [{"system": f"{ROOT}3", "value": "V7"}, {"system": f"{ROOT}5", "value": "D7"}],
    "period": {"start": "2026-11-20T08:00:00+01:00"},
}  # fmt: skip
TOLD = ("I", "V7^^^CH-DEMO&990000018&M^VN", "20261120080000+0100", "D7^^^CH-DEMO&990000018&M^AN")
NONE = ("N", "", "", "")


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def ask(hub: Hub, **changes: Any) -> None:
    put(hub, PARTNER, STAY)
    stay = {"encounter": {"reference": "Encounter/stay"}}
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(**(stay | changes)))


def sent(hub: Hub, lane: str) -> list[Message]:
    """The messages of a lane, oldest first."""
    return [parse(payload(hub, one)) for one in reversed(hubs.deliveries(hub)) if one.lane == lane]


def signed(hub: Hub) -> None:
    ask(hub)
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))


def every_version(hub: Hub, lane: str) -> list[Message]:
    """What a lane gets of a report that is signed, corrected and withdrawn."""
    signed(hub)
    received(hub)
    correct(hub)
    received(hub)
    withdraw(hub)
    return sent(hub, lane)


def stay_in(msg: Message) -> tuple[str, ...]:
    assert check(msg) == []
    return tuple(msg.at(place).encoded for place in ("PV1-2", "PV1-19", "PV1-44", "PID-18"))


@pytest.mark.parametrize("code", ["push-2.1", "push-2.1-oru", "plain-mdm", "plain-oru", "lps-1.1"])
def test_every_version_names_the_stay_to_the_establishment_it_is_in(hub: Hub, code: str) -> None:
    put(hub, PARTNER, endpoint("dpi", payloadType=profiled(code)), endpoint("pfi", status="off"))
    told = every_version(hub, "Endpoint/dpi")
    assert len(told) == 3
    # A document that came by mail knows no stay: the LPS profile says N always.
    assert {stay_in(msg) for msg in told} == {NONE if code == "lps-1.1" else TOLD}


def test_a_withdrawal_names_the_stay_that_the_first_version_named(hub: Hub) -> None:
    """An Endpoint may say nothing of who manages it: it is that of the structure that has it."""
    dpi = endpoint("dpi", payloadType=profiled("push-2.1"))
    unmanaged = {name: part for name, part in dpi.items() if name != "managingOrganization"}
    put(hub, PARTNER, unmanaged, endpoint("pfi", status="off"))
    told = every_version(hub, "Endpoint/dpi")
    assert [msg.text("MSH-9.2") for msg in told] == ["T02", "T10", "T04"]
    assert [stay_in(msg) for msg in told] == [TOLD] * 3


def test_another_establishment_is_told_no_number_of_a_stay_elsewhere(hub: Hub) -> None:
    served = {"endpoint": [{"reference": "Endpoint/pfi"}]}
    elsewhere = {name: part for name, part in endpoint("pfi").items() if name != "managingOrganization"}
    put(hub, PARTNER, read(hub, "Organization/cabinet-lilas") | served, elsewhere)
    put(hub, PARTNER, read(hub, "Organization/ch-demo") | {"endpoint": [{"reference": "Endpoint/dpi"}]})
    signed(hub)
    assert [stay_in(msg) for msg in sent(hub, "Endpoint/pfi")] == [NONE]


def test_a_stay_of_somebody_else_is_never_named(hub: Hub) -> None:
    ask(hub)
    hubs.take(hub)
    hubs.write_past_the_rules(hub, STAY | {"subject": {"reference": "Patient/patient-02"}})
    put(hub, EXPERT, opinion(hub))
    assert [stay_in(msg) for msg in sent(hub, "Endpoint/pfi")] == [NONE]


def test_answers_and_appointments_name_it_too(hub: Hub) -> None:
    desk = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/dpi"}]}
    put(hub, SYSTEM, asks_for("tlr-1.0", "siu-2.5"), desk)
    ask(hub, identifier=[PLACER])
    put(hub, REQUESTER, slot())
    hubs.take(hub)
    told = sent(hub, "Endpoint/dpi")
    assert [(msg.kind, stay_in(msg)) for msg in told] == [("SIU", TOLD), ("ORU", TOLD)]
