"""What a message of a téléexpertise brings along stays as it was sent."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import ADMIN, EXPERT, PARTNER, REQUESTER, Settings, asked, delete, directory, hub_on, message, put

from fhir_server import upkeep
from fhir_server.changes import Change, Hub, apply
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.store.engine import Store

Resource = dict[str, Any]
BASE = "https://hub.example.org/fhir"
PICTURE: Resource = {"resourceType": "Binary", "id": "picture", "contentType": "image/png", "data": "eA=="}
FORGED = {"data": base64.b64encode(b"another picture").decode()}


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url), public_url=BASE, base_aliases="http://alias.example.org/r4"))


def attached(key: str, url: str, **more: Any) -> Resource:
    return message(key) | {"payload": [{"contentAttachment": {"contentType": "image/png", "url": url}}]} | more


def version(hub: Hub) -> int:
    stored = hubs.stored(hub, "Binary/picture")
    assert stored is not None
    return stored.version


@pytest.mark.parametrize(
    "url",
    [
        "Binary/picture",
        f"{BASE}/Binary/picture",
        "http://alias.example.org/r4/Binary/picture",
        "Binary/picture/_history/1",
    ],
)
def test_what_a_sent_message_names_is_neither_overwritten_nor_deleted(hub: Hub, url: str) -> None:
    put(hub, EXPERT, PICTURE)
    put(hub, EXPERT, PICTURE | {"data": "eQ=="})
    asked(hub, state="in_progress")
    put(hub, EXPERT, attached("q", url))
    for who in (EXPERT, REQUESTER, PARTNER, ADMIN):
        for change in (
            Change("update", "Binary", "picture", PICTURE | FORGED),
            Change("patch", "Binary", "picture", patch=lambda held: held | FORGED),
            Change("delete", "Binary", "picture"),
        ):
            with pytest.raises(RuleBroken, match=r"rests on|deleting a Binary"):
                apply(hub, who, [change])
    assert version(hub) == 2
    again = put(hub, EXPERT, PICTURE | {"data": "eQ=="})[0]
    assert again.status == 200 and version(hub) == 2, "the same again is no change"


def test_a_payload_that_refers_to_it_holds_it_too(hub: Hub) -> None:
    put(hub, EXPERT, PICTURE)
    asked(hub, state="in_progress")
    put(hub, EXPERT, message("q") | {"payload": [{"contentReference": {"reference": "Binary/picture"}}]})
    with pytest.raises(RuleBroken):
        put(hub, EXPERT, PICTURE | FORGED)


def test_one_transaction_may_bring_both_and_then_it_stays(hub: Hub) -> None:
    asked(hub, state="in_progress")
    picture = {name: value for name, value in PICTURE.items() if name != "id"}
    sent = attached("q", "urn:uuid:5b1c0c3e-8a4f-4f5e-9d57-1f0d4e3b2a10")
    made = apply(
        hub,
        EXPERT,
        [
            Change("create", "Binary", resource=picture, full_url="urn:uuid:5b1c0c3e-8a4f-4f5e-9d57-1f0d4e3b2a10"),
            Change("update", "Communication", "q", sent),
        ],
    )
    key = made[0].id
    assert hubs.read(hub, "Communication/q")["payload"][0]["contentAttachment"]["url"] == f"Binary/{key}"
    with pytest.raises(RuleBroken):
        put(hub, EXPERT, PICTURE | FORGED | {"id": key})


def test_what_no_sent_message_of_a_case_names_is_free(hub: Hub) -> None:
    put(hub, EXPERT, PICTURE, PICTURE | {"id": "picture2"})
    asked(hub, state="in_progress")
    put(hub, EXPERT, attached("draft", "Binary/picture", status="preparation"))
    put(hub, EXPERT, attached("other", "Binary/picture2"))
    outside = {"resourceType": "Communication", "id": "outside", "status": "completed"}
    put(hub, PARTNER, outside | {"payload": [{"contentAttachment": {"url": "Binary/picture"}}]})
    put(hub, EXPERT, PICTURE | FORGED)
    delete(hub, EXPERT, "Binary/picture")


@pytest.mark.parametrize("url", ["Binary/none", f"{BASE}/Binary/none", "Binary/gone"])
def test_a_message_brings_along_what_is_here(hub: Hub, url: str) -> None:
    put(hub, EXPERT, PICTURE | {"id": "gone"})
    delete(hub, EXPERT, "Binary/gone")
    asked(hub, state="in_progress")
    with pytest.raises(Invalid, match="is not stored here") as told:
        put(hub, EXPERT, attached("q", url))
    assert told.value.issues[0].expression == "Communication.payload[0].contentAttachment.url"
    put(hub, EXPERT, attached("q", "https://elsewhere.example.org/fhir/Binary/none"))


def test_everybody_may_search_by_it_and_the_rows_agree(hub: Hub) -> None:
    put(hub, EXPERT, PICTURE)
    asked(hub, state="in_progress")
    put(hub, EXPERT, attached("q", "Binary/picture"))
    for query in ("payload-attachment=Binary/picture", "payload-attachment:below=Binary"):
        assert [one["id"] for one in hubs.found(hub, "Communication", query)] == ["q"]
    assert upkeep.check(hub, {}, print)["ok"]
    assert Settings().public_url == "", "without an address of our own the relative one is found"
