"""Where what a message became came from, as an operator asks it of the inbox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from hubs import ADMIN, SYSTEM

from fhir_server import app
from fhir_server.changes import Hub
from fhir_server.config import version
from fhir_server.delivery import intake
from fhir_server.demo import story
from fhir_server.errors import NotFound
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, NewMessage

DATA = Path(__file__).parents[2] / "data" / "hl7v2"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hubs.hub_on(open_url(sqlite_url))


def asked(hub: Hub) -> dict[str, Any]:
    with hub.store.read(SYSTEM) as snapshot:
        (row,) = snapshot.messages(InboxFilter())
    told: dict[str, Any] = app.operate(hub, ADMIN, "sources-show", {"id": row.id})
    return told


def test_the_elements_of_a_stored_patient_are_told_with_their_fields(hub: Hub) -> None:
    raw = story.admission("S1")
    assert b"MSA|AA" in intake.on_message(hub, raw, "127.0.0.1:1")
    told = asked(hub)
    assert told["mapper"] == version() and "mapped again" in told["remark"] and told["left_out"] == []
    (patient,) = hubs.found(hub, "Patient")
    said = {one["element"]: one for one in told["elements"]}
    family = said["Patient.name[0].family"]
    assert family["value"] == patient["name"][0]["family"] and family["how"] == "value"
    assert [place.split("[")[0].split(".")[0] for place in family["from"]] == ["PID-5"]
    assert said["Patient.active"] == {"element": "Patient.active", "value": "true", "from": [], "how": "fixed"}
    with hub.store.read(SYSTEM) as snapshot:
        assert any(row.event == "sources-show" for row in snapshot.audit_rows())


def test_a_message_nobody_maps_says_so(hub: Hub) -> None:
    intake.on_message(hub, b"MSH|^~\\&|A|B|C|D|20260302||BAR^P01|1|T|2.5\r", "127.0.0.1:1")
    with pytest.raises(NotFound, match="is not mapped from HL7 v2; mapped: ADT, ORU"):
        asked(hub)


@pytest.mark.parametrize("raw", [b"", b"no message", b"MSH|^~\\&|A|B|C|D|20260302||ADT^A01|1|T|2.5\r"])
def test_bytes_that_map_to_nothing_say_why(hub: Hub, raw: bytes) -> None:
    hub.store.receive(NewMessage(channel="mllp", raw=raw, endpoint="mllp", peer="p", message_type=""))
    with pytest.raises(NotFound, match=r"maps to nothing: |not mapped"):
        asked(hub)


def test_a_mail_is_no_hl7_message(hub: Hub) -> None:
    hub.store.receive(NewMessage(channel="mail", raw=story.admission(), endpoint="imap", peer="p", message_type=""))
    with pytest.raises(NotFound, match="not mapped from HL7 v2"):
        asked(hub)
