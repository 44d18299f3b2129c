"""An order changes its draft (XO, RP): what it says is replaced, what people completed stays."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import found, put, stored
from sylve import sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery.order_drafts import rewritten
from fhir_server.delivery.ports import Port
from fhir_server.demo import people
from fhir_server.store.engine import Store
from fhir_server.store.retention import prune

Resource = dict[str, Any]
XO, ASKED = ("ORC|NW|", "ORC|XO|"), Port(group="avis-echo")
QUESTION, PHOTO = {"text": "Quelle conduite tenir ?"}, {"display": "photo jointe"}
MINE = {"url": "https://example.org/mine", "valueString": "x"}
LABEL = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = sylve(store)
    tell(hub, "adt-a01-admission")
    put(hub, SYSTEM, *people.structures("127.0.0.1:9", "127.0.0.1:10"), *people.professionals())
    return hub


def draft(hub: Hub) -> Resource:
    (one,) = found(hub, "ServiceRequest")
    return one


def order(hub: Hub, *changes: tuple[str, str], port: Port | None = ASKED) -> Resource:
    told = say(hub, sample("orm-o01-tlr-demande", *changes), port)
    assert told.code == "AA", told
    return draft(hub)


def complete(hub: Hub, **changes: Any) -> Resource:
    """What a person adds by FHIR, on lists behind what stands there; None takes an element away."""
    held = {name: value for name, value in draft(hub).items() if name != "meta"}
    for name, value in changes.items():
        held[name] = [*held.get(name, []), *value] if isinstance(value, list) else value
    put(hub, SYSTEM, {name: value for name, value in held.items() if value is not None})
    return draft(hub)


def test_what_a_person_completed_stays_when_the_order_is_changed(hub: Hub) -> None:
    before = order(hub)
    added = complete(hub, reasonCode=[QUESTION], supportingInfo=[PHOTO], extension=[MINE], patientInstruction="à jeun")
    after = order(hub, XO, ("Métrorragies au 2e trimestre", "Placenta praevia ?"))
    assert after["reasonCode"] == [{"text": "Placenta praevia ?"}, QUESTION]
    assert after["supportingInfo"] == added["supportingInfo"] and PHOTO in after["supportingInfo"]
    assert after["patientInstruction"] == "à jeun" and MINE in after["extension"]
    assert (after["id"], after["identifier"], after["status"]) == (before["id"], before["identifier"], "draft")
    assert [one["text"][:11] for one in after["note"]] == [one["text"][:11] for one in before["note"]]


def test_what_the_order_said_and_does_not_say_any_more_leaves(hub: Hub) -> None:
    before = order(hub)
    complete(hub, reasonCode=[QUESTION])
    weight = "OBX|3|NM|29463-7^Body weight^LN||68|kg^^UCUM|||||O\r"
    after = order(hub, XO, ("Métrorragies au 2e trimestre", ""), (weight, ""))
    assert after["reasonCode"] == [QUESTION] and "le motif" not in after["note"][-1]["text"]
    assert len(after["supportingInfo"]) == len(before["supportingInfo"]) - 1


def test_the_same_order_again_leaves_what_a_person_changed_of_it(hub: Hub) -> None:
    order(hub, port=None)
    chosen = [{"reference": "HealthcareService/avis-echo"}]
    who = {"reference": "PractitionerRole/moreau"}
    held = {**{k: v for k, v in draft(hub).items() if k != "meta"}, "performer": chosen, "requester": who}
    put(hub, SYSTEM, held | {"priority": "routine"})
    after = order(hub, XO, port=None)
    assert (after["performer"], after["requester"], after["priority"]) == (chosen, who, "routine")
    text = after["note"][-1]["text"]
    assert "le consentement" in text and "le groupe" not in text and "le professionnel" not in text
    after = order(hub, XO, ("TLR_OBR_PROCEDURE|S|", "TLR_OBR_PROCEDURE|A|"), port=None)
    assert after["priority"] == "asap" and after["performer"] == chosen, "the order says it otherwise"


def test_what_the_examination_told_stays_when_the_order_is_changed(hub: Hub) -> None:
    order(hub)
    tell(hub, "omi-o23-tlr-complement")
    told = draft(hub)
    after = order(hub, XO, ("Métrorragies", "Saignements"))
    assert after["reasonCode"] == [{"text": "Saignements au 2e trimestre"}]
    assert after["identifier"] == told["identifier"] and after["extension"] == told["extension"]
    assert "Visionneuse : /viewer/ACN101" in [one["text"] for one in after["note"]]
    assert all(one in after["supportingInfo"] for one in told["supportingInfo"])


def test_labels_of_a_draft_stay_and_its_tag_stands_once(hub: Hub) -> None:
    held = order(hub)
    put(hub, SYSTEM, held | {"meta": {"security": [LABEL], "tag": held["meta"]["tag"]}})
    order(hub, XO, ("Métrorragies", "Saignements"))
    row = stored(hub, f"ServiceRequest/{held['id']}")
    meta = row.resource()["meta"] if row else {}
    assert meta["security"] == [LABEL] and [tag["code"] for tag in meta["tag"]] == ["a-completer"]


def test_a_draft_whose_last_order_is_deleted_from_the_inbox_keeps_all_that_stands_there(hub: Hub) -> None:
    order(hub)
    complete(hub, reasonCode=[QUESTION], patientInstruction="à jeun")
    assert prune(hub.store, 0).messages
    after = order(hub, XO, ("Métrorragies", "Saignements"))
    said = ["Saignements au 2e trimestre", "Métrorragies au 2e trimestre", QUESTION["text"]]
    assert [one["text"] for one in after["reasonCode"]] == said and after["patientInstruction"] == "à jeun"
    assert len(after["note"]) == len({one["text"] for one in after["note"]})


def test_nothing_that_stands_there_is_lost_when_the_last_order_is_not_known() -> None:
    held = {"reasonCode": [{"text": "ancien"}, QUESTION], "priority": "stat", "patientInstruction": "à jeun"}
    made = rewritten(held, {}, {"reasonCode": [{"text": "nouveau"}], "priority": "asap"})
    assert made["reasonCode"] == [{"text": "nouveau"}, {"text": "ancien"}, QUESTION]
    assert (made["priority"], made["patientInstruction"]) == ("asap", "à jeun")
