"""A question about a request that came as an HL7 v2 order goes to its requester's mailbox; about no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import EXPERT, REQUESTER, SYSTEM, directory, hub_on, message, put, read
from test_distribution import notes, payload
from test_orders import PLACER

from fhir_server.changes import Hub, view_of
from fhir_server.demo import people
from fhir_server.desk import outbox, table
from fhir_server.errors import RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.teleexpertise.case import Context
from mssante import envelope

LANE = "mssante:claire.moreau@ch-demo.mssante.fr"
NewHub = Callable[..., Hub]


@pytest.fixture
def new_hub(open_url: Callable[..., Store], sqlite_url: str) -> NewHub:
    return lambda **more: directory(hub_on(open_url(sqlite_url), **more))


def taken(hub: Hub, **changes: Any) -> Hub:
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(**changes))
    hubs.take(hub)
    return hub


def mails(hub: Hub) -> list[Delivery]:
    return [one for one in hubs.deliveries(hub) if one.protocol == "mail"]


def test_the_requester_reads_the_question_where_their_order_came_from_nowhere_else(new_hub: NewHub) -> None:
    hub = taken(new_hub(public_url="https://hub.example/fhir"), identifier=[PLACER])
    phone = {"system": "phone", "use": "work", "value": "01 99 00 12 34"}
    role = read(hub, "PractitionerRole/garnier")
    old = {"system": "phone", "use": "old", "value": "01 99 00 00 00"}
    put(hub, SYSTEM, role | {"telecom": [old, phone, *role.get("telecom", ())]})
    put(hub, EXPERT, message("q1", text="Quel est le terme ?\nDate des dernières règles ?"))
    (one,) = mails(hub)
    assert (one.lane, one.case_key, one.patient) == (LANE, "ServiceRequest/r", "Patient/patient-01")
    assert (one.second_leg, one.state) == ("dsn", "queued")
    read_back = envelope.read(payload(hub, one))
    assert read_back.subject.startswith("[Question] Question de téléexpertise ") and "XDM" not in read_back.subject
    for told in ("Quel est le terme ?", "Date des dernières règles ?", "DEM-7", "GARNIER",
                 "appelez le 01 99 00 12 34", "Message de test"):  # fmt: skip
        assert told in read_back.text, told
    assert "hub.example" not in read_back.text, "there is no page behind it that a reader of mail could open"
    assert notes(hub) == [] and hubs.status(hub) == "on-hold"


def test_answers_and_further_questions_are_told_in_their_order(new_hub: NewHub) -> None:
    hub = taken(new_hub(), identifier=[PLACER])
    put(hub, EXPERT, message("q1"))
    put(hub, REQUESTER, message("a1", text="12 SA", answers="q1"))
    assert len(mails(hub)) == 1, "an answer is no question"
    put(hub, EXPERT, message("q2", text="Et le poids ?"))
    assert sorted(one.lane_seq for one in mails(hub)) == [1, 2] and {one.lane for one in mails(hub)} == {LANE}


def test_a_question_about_a_request_made_here_is_seen_here(new_hub: NewHub) -> None:
    hub = taken(new_hub())
    put(hub, EXPERT, message("q1"))
    assert mails(hub) == [] and notes(hub) == []


@pytest.mark.parametrize(("settings", "why"), [({"smtp": ""}, "aucun opérateur"), ({}, "aucune boîte")])
def test_a_question_that_reaches_nobody_stops_no_step_and_stands_on_the_task(
    new_hub: NewHub, settings: dict[str, Any], why: str
) -> None:
    hub = new_hub(**settings)
    if not settings:
        for reference in ("PractitionerRole/moreau", "Practitioner/moreau", "Organization/ch-demo"):
            put(hub, SYSTEM, {name: part for name, part in read(hub, reference).items() if name != "telecom"})
    taken(hub, identifier=[PLACER])
    put(hub, EXPERT, message("q1"))
    assert mails(hub) == [] and hubs.status(hub) == "on-hold"
    (note,) = notes(hub)
    assert note.startswith("Question non remise à ") and why in note


def test_who_has_no_name_is_spoken_of_in_good_french(new_hub: NewHub) -> None:
    hub = new_hub(smtp="")
    taken(hub, identifier=[PLACER])
    put(hub, SYSTEM, {n: part for n, part in read(hub, "Practitioner/moreau").items() if n != "name"})
    asked = read(hub, "ServiceRequest/r")
    hubs.write_past_the_rules(hub, asked | {"requester": {"reference": asked["requester"]["reference"]}})
    put(hub, EXPERT, message("q1"))
    (note,) = notes(hub)
    assert note.startswith("Question non remise à un requérant sans nom : ")


def test_text_of_a_question_becomes_no_header_and_no_other_recipient(new_hub: NewHub) -> None:
    hub = taken(new_hub(), identifier=[PLACER | {"value": "D7\r\nBcc: x@y.fr"}])
    put(hub, EXPERT, message("q1", text="Terme ?\r\n.\r\nBcc: intrus@x.mssante.fr\r\n\r\nX"))
    raw = payload(hub, mails(hub)[0])
    head = raw.partition(b"\r\n\r\n")[0]
    assert b"bcc" not in head.lower() and b"intrus" not in head
    assert "Bcc: intrus@x.mssante.fr" in envelope.read(raw).text


def test_a_question_is_sent_again_as_it_is_and_never_made_anew(new_hub: NewHub) -> None:
    hub = taken(new_hub(), identifier=[PLACER])
    put(hub, EXPERT, message("q1"))
    (one,) = mails(hub)
    table.OPERATIONS["outbox-hold"](hub.store, {"id": one.id})

    def context(snapshot: Any) -> Context:
        return Context(SYSTEM, view_of(snapshot), hub.settings, hub.sites, hub.clock())

    with pytest.raises(RuleBroken, match="no HL7 message"):
        outbox.outbox_regenerate(hub.store, {"id": one.id}, context)
