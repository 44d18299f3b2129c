"""A report that was sent is corrected, corrected again and withdrawn, on the real wires: every partner can follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from house import House

from conformance.peers.mllp import Peer
from fhir_server.demo import story
from fhir_server.demo.story import STEPS, Broken, World
from hl7v2.message import Message, parse
from mssante import envelope
from mssante.received import Received

REPORT = f"DiagnosticReport/{story.REQUEST}"
REASON = "http://hl7.org/fhir/StructureDefinition/event-statusReason"


def change(world: World, **changes: Any) -> None:
    held = story.call(world, "GET", REPORT, expect=(200,))[1]
    story.call(world, "PUT", REPORT, held | changes, who=story.EXPERT, expect=(200,))


def because(words: str) -> list[dict[str, Any]]:
    return [{"url": REASON, "valueCodeableConcept": {"text": words}}]


def settled(world: World, count: int) -> list[dict[str, Any]]:
    """The case's deliveries once `count` of them were handed over and confirmed, and none is left."""

    def look() -> list[dict[str, Any]] | None:
        rows = story.operation(world, "outbox-list", {"key": f"ServiceRequest/{story.REQUEST}"})
        done = [
            r for r in rows if r["state"] == "sent" and (r["second_leg"] == "none" or r["leg_state"] == "confirmed")
        ]
        idle = all(row["state"] in ("sent", "cancelled") for row in rows)
        return rows if idle and len(done) == count else None

    found: list[dict[str, Any]] = story._wait(world, f"{count} deliveries handed over and confirmed", look)
    return found


def refused(row: dict[str, Any]) -> bool:
    """Whether a delivery was tried, did not get there, and waits."""
    return bool(row["attempts"]) and row["state"] == "queued"


def messages(house: House, name: str) -> list[Message]:
    """What a partner got, each control id once, in the order of arrival."""
    seen: dict[str, bytes] = {}
    for frame in house.peers[name].received:
        seen.setdefault(frame.control_id, frame.raw)
    return [parse(raw) for raw in seen.values()]


def mails(world: World) -> list[Received]:
    found = {mail.message_id: mail for mail in map(envelope.read, story._mails(world) or [])}
    return list(found.values())


def chain(told: list[Message]) -> None:
    """T02, T10, T10, T04: each names the document the one before brought."""
    assert [one.text("MSH-9.2") for one in told] == ["T02", "T10", "T10", "T04"]
    assert [one.text("ORC-1") for one in told] == ["NW", "RO", "RO", "CA"]
    assert [one.text("OBX-11") for one in told] == ["F", "C", "C", "D"]
    ids = [one.text("TXA-12") for one in told]
    assert [one.text("TXA-13") for one in told] == ["", ids[0], ids[1], ""]
    assert len(set(ids)) == 3 and ids[3] == ids[2], "what is withdrawn is what they hold"


def test_a_report_is_corrected_twice_and_withdrawn_on_every_road(
    build: Callable[..., House], story_database: str
) -> None:
    house = build(story_database)
    house.peer("dpi")
    house.peer("pfi")
    house.start()
    world = house.world(say=lambda line: None)
    try:
        for _, step in STEPS[:7]:
            step(world)
        change(world, status="corrected", conclusion="Contrôle à 2 semaines.", extension=because("erreur de mesure"))
        settled(world, 6)
        change(world, status="amended", conclusion="Contrôle à 1 semaine.")
        settled(world, 9)
        change(world, status="entered-in-error", extension=because("compte rendu d'une autre patiente"))
        settled(world, 12)
    except Broken as broken:
        pytest.fail(f"{broken}\n{house.log()[-4000:]}")
    chain(messages(house, "dpi"))
    chain(messages(house, "pfi"))
    got = story._wait(world, "four mails", lambda: found if len(found := mails(world)) == 4 else None)
    heads = [mail.subject.partition("CR de")[0] for mail in got]
    assert heads == [
        "XDM/1.0/DDM+",
        "[Annule et remplace] XDM/1.0/DDM+",
        "[Annule et remplace] XDM/1.0/DDM+",
        "[Retrait] ",
    ]
    assert "erreur de mesure" in got[1].text and "une autre patiente" in got[3].text
    assert [mail.xdm is not None for mail in got] == [True, True, True, False]
    documents = story.search(world, "DocumentReference", f"related={REPORT}")
    assert sorted(one["status"] for one in documents) == ["entered-in-error", "superseded", "superseded"]
    assert story.call(world, "GET", f"ServiceRequest/{story.REQUEST}")[1]["status"] == "completed"
    lines = [line["text"] for line in story.operation(world, "trace", {"id": story.REQUEST})]
    for word in ("compte rendu signé", "compte rendu corrigé", "compte rendu retiré"):
        assert any(word in line for line in lines), word
    assert any("Compte rendu retiré le" in line and "une autre patiente" in line for line in lines)
    assert house.stop() == 0


def test_who_was_away_gets_the_corrected_report_alone_and_as_a_first_one(build: Callable[..., House]) -> None:
    house = build()
    house.peer("pfi")
    house.start()
    world = house.world(say=lambda line: None)
    for _, step in STEPS[:6]:
        step(world)
    lane = {"lane": "Endpoint/dpi"}
    story._wait(world, "an attempt", lambda: story.operation(world, "outbox-list", lane)[0]["attempts"])
    story._wait(world, "the others", lambda: len(story.operation(world, "outbox-list", {"state": "sent"})) == 2)
    # What may be arriving just as the report changes waits for a person (the next test): here no attempt is under way.
    story.operation(world, "lane-pause", lane)
    story._wait(world, "its end", lambda: refused(story.operation(world, "outbox-list", lane)[0]))
    change(world, status="corrected", conclusion="Contrôle à 2 semaines.")
    house.peer("dpi")
    story.operation(world, "lane-resume", lane)
    settled(world, 5)
    assert [one.text("MSH-9.2") for one in messages(house, "dpi")] == ["T02"]
    assert [one.text("MSH-9.2") for one in messages(house, "pfi")] == ["T02", "T10"]
    states = sorted(row["state"] for row in story.operation(world, "outbox-list", lane))
    assert states == ["cancelled", "sent"]


def test_a_correction_never_overtakes_the_report_it_corrects(build: Callable[..., House]) -> None:
    """A partner that took the report and died before it answered: nobody knows, so a person decides."""
    house = build()
    house.settings["send_timeout_seconds"] = 1.0
    house.peer("pfi")
    house.peer("dpi", script=("silence",) * 50)
    house.start()
    world = house.world(say=lambda line: None)
    for _, step in STEPS[:6]:
        step(world)
    lane = {"lane": "Endpoint/dpi"}
    story._wait(world, "an unanswered attempt", lambda: len(house.peers["dpi"].received) >= 1)
    change(world, status="corrected", conclusion="Contrôle à 2 semaines.")

    def first() -> dict[str, Any]:
        rows: list[dict[str, Any]] = story.operation(world, "outbox-list", lane)
        return min(rows, key=lambda row: row["lane_seq"])

    held = story._wait(world, "the first one held", lambda: row if (row := first())["state"] == "held" else None)
    assert "was replaced by version 2" in held["error"]
    assert {one.text("MSH-9.2") for one in messages(house, "dpi")} == {"T02"}
    house.peers["dpi"].close()
    house.peers["dpi"] = Peer(port=house.ports["dpi"]).start()
    story.operation(world, "outbox-release", {"id": held["id"]})
    story._wait(world, "both", lambda: len(messages(house, "dpi")) == 2)
    assert [one.text("MSH-9.2") for one in messages(house, "dpi")] == ["T02", "T10"]
