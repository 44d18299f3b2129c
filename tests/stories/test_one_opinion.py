"""One opinion, end to end, on real wires and both databases; then with everything that can go wrong."""

from __future__ import annotations

import http.client
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from house import House, demo_site, operators

from dicom_node import sample
from dicom_node.header import Identifier
from dicom_node.scu import DicomFault
from fhir_server.demo import story
from fhir_server.demo.story import STEPS, Broken, World
from hl7v2.mllp import MllpFault

NATIONAL_NAMESPACES = {
    "ipp": ["CHU-X", "000897406", "N"],
    "venue": ["CHU-X", "000897406", "M"],
}


def national_site(domain: str) -> dict[str, object]:
    """The demo site with the identifier namespaces of the national sample."""
    site = demo_site(domain, sending_applications=[["GAM", "CHU-X"], ["PFI", "CH-DEMO"]])
    for namespace in site["namespaces"]:
        namespace["hd"] = NATIONAL_NAMESPACES.get(namespace["name"], namespace["hd"])
    return site


def dcmtk(world: World, path: Path) -> None:
    """Send the clip with dcmtk's storescu, proposing JPEG, Nagle left on as devices do."""
    host, port = world.dicom
    done = subprocess.run(
        ["storescu", "-xy", "-aec", world.ae_title, "-aet", "ECHO1", host, str(port), str(path)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.needs("shared", "dcmtk", "postfix", "dovecot")
@pytest.mark.parametrize(
    ("story_database", "line_end"),
    [
        pytest.param("sqlite", b"\n", id="sqlite-raw"),
        pytest.param("postgresql", b"\r", id="postgresql-CR", marks=pytest.mark.needs("postgresql")),
    ],
    indirect=["story_database"],
)
def test_the_national_admission_starts_a_story_told_by_foreign_tools(
    build: Callable[..., House], story_database: str, shared: Path, tmp_path: Path, line_end: bytes
) -> None:
    mail = operators(tmp_path)
    house = build(story_database, mail, site=national_site(mail.domain))
    adt = (shared / "ans-hl7v2" / "sgl-adt-a01-admission.er7").read_bytes().replace(b"\n", line_end)
    house.peer("dpi")
    house.peer("pfi")
    house.start()
    query = "identifier=urn:oid:1.2.250.1.213.1.4.10|279035121518989"
    said: list[str] = []
    try:
        story.tell(house.world(adt=adt, patient_query=query, send_clip=dcmtk, say=said.append))
    except Broken as broken:
        pytest.fail(f"{broken}\n{house.log()[-4000:]}")
    assert len(said) == len(STEPS)
    assert house.stop() == 0


def test_the_story_holds_with_our_own_data_on_both_databases(build: Callable[..., House], story_database: str) -> None:
    house = build(story_database)
    house.peer("dpi")
    house.peer("pfi")
    house.start()
    try:
        story.tell(house.world(say=lambda line: None))
    except Broken as broken:
        pytest.fail(f"{broken}\n{house.log()[-4000:]}")
    assert house.stop() == 0


def test_a_listener_that_is_down_is_waited_for_and_gets_the_report_once(build: Callable[..., House]) -> None:
    house = build()
    house.peer("pfi")
    house.start()
    world = house.world(say=lambda line: None)
    for _, step in STEPS[:6]:
        step(world)
    lane = {"lane": "Endpoint/dpi"}
    story._wait(world, "a failed attempt", lambda: story.operation(world, "outbox-list", lane)[0]["attempts"] >= 2)
    shown = story.operation(world, "outbox-show", {"id": story.operation(world, "outbox-list", lane)[0]["id"]})
    assert shown["state"] == "queued"
    assert "attempts failed" in shown["why"]
    house.peer("dpi")
    story.delivery(world)
    assert len(house.peers["dpi"].received) == 1


def test_a_partner_that_says_not_now_is_asked_again_and_one_that_refuses_is_shown(build: Callable[..., House]) -> None:
    house = build()
    house.peer("dpi", script=("AR", "silence", "AA"))
    house.peer("pfi", script=("AE",))
    house.settings["send_timeout_seconds"] = 1.0
    house.start()
    world = house.world(say=lambda line: None)
    for _, step in STEPS[:6]:
        step(world)

    def row(name: str) -> dict[str, object]:
        found: dict[str, object] = story.operation(world, "outbox-list", {"lane": f"Endpoint/{name}"})[0]
        return found

    story._wait(world, "the report at the DPI", lambda: row("dpi")["state"] == "sent")
    assert row("dpi")["attempts"] == 3
    frames = {frame.raw for frame in house.peers["dpi"].received}
    assert len(frames) == 1, "a resend carries the same bytes"
    story._wait(world, "the refusal of the platform", lambda: row("pfi")["state"] == "error")
    assert "AE" in str(row("pfi")["error"])
    story.operation(world, "outbox-retry", {"id": str(row("pfi")["id"])})
    story._wait(world, "the platform's business ack", lambda: row("pfi")["leg_state"] == "confirmed")


def test_images_that_come_before_their_request_find_it_later(build: Callable[..., House]) -> None:
    house = build()
    house.start()
    world = house.world(say=lambda line: None)
    story.people_arrive(world)
    early = story.admission().replace(b"HISTOIRE0001", b"HISTOIRE0000")
    clip = house.folder / "early.dcm"
    clip.write_bytes(
        sample.clip(
            patient_id=Identifier(story.IPP),
            patient_name=f"{story.FAMILY}^{story.GIVEN}",
            birth_date=story.BIRTH,
            sex="F",
            accession_number="EARLY01",
        )
    )
    story._send_clip(world, clip)

    def study() -> dict[str, object]:
        rows = story.operation(world, "studies-list", {})
        return rows[0] if rows and not rows[0]["dirty"] else {}

    story._wait(world, "the study in the list", study)
    assert story._wait(world, "the study, quiet", study)["match_state"] == "unmatched"
    assert story.search(world, "ImagingStudy", "_count=5")[0]["subject"].get("reference") is None
    story._hl7(world, early, "AA")
    story._wait(world, "its patient", lambda: study().get("match_state") == "patient")
    story.patient(world)
    story.request(world)
    asked = story.call(world, "GET", f"ServiceRequest/{story.REQUEST}", expect=(200,))[1]
    story.call(world, "GET", f"Task/{story.REQUEST}", expect=(200,))
    quiet = story._wait(world, "the study, matched again", study)
    by_hand = {"study": str(quiet["study_uid"]), "request": asked["id"]}
    assert story.operation(world, "studies-attach", by_hand)["state"] == "manual"
    story._wait(world, "the request", lambda: story._linked_study(world))
    house.stop()
    house.start()
    story._wait(world, "the decision of a person, kept", lambda: study().get("match_state") == "manual")


def through_crashes(house: House, kills: int, seed: int) -> None:
    """Tell the story while the server is killed and started again at random moments."""
    chance = random.Random(seed)
    world = house.world(say=lambda line: None)
    world.patience = 60.0
    told = threading.Event()
    done: list[int] = []

    def disturb() -> None:
        while len(done) < kills and not told.is_set():
            told.wait(chance.uniform(0.02, 0.9))
            house.kill()
            house.start()
            done.append(1)

    house.start()
    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for title, step in STEPS:
            _insist(world, title, step, disturber)
    finally:
        told.set()
        disturber.join(120)
    story.delivery(world)
    story.trace(world)


def _insist(world: World, title: str, step: Callable[[World], str], disturber: threading.Thread) -> None:
    deadline = time.monotonic() + 240
    while True:
        try:
            step(world)
            return
        except (OSError, http.client.HTTPException, MllpFault, DicomFault, Broken, ValueError) as problem:
            # While the server is being killed any step may fail; afterwards it must hold.
            assert time.monotonic() < deadline, f"{title}: {problem}"
            if not disturber.is_alive():
                deadline = min(deadline, time.monotonic() + 120)
            time.sleep(0.05)


def check_after_crashes(house: House) -> None:
    """Nothing lost, nothing twice with other bytes, index rows that agree."""
    world = house.world(say=lambda line: None)
    for name in ("dpi", "pfi"):
        by_id: dict[str, set[bytes]] = {}
        for frame in house.peers[name].received:
            by_id.setdefault(frame.control_id, set()).add(frame.raw)
        assert all(len(bytes_) == 1 for bytes_ in by_id.values()), "a resend with other bytes"
        assert len(by_id) == 1, f"{name} got the report under {len(by_id)} control ids"
    assert len(story.search(world, "Patient", world.patient_query)) == 1
    assert len(story.search(world, "DocumentReference", f"related=DiagnosticReport/{story.REQUEST}")) == 1
    assert len(story.search(world, "ImagingStudy", f"basedon=ServiceRequest/{story.REQUEST}")) == 1


@pytest.mark.timeout(300)
def test_the_story_ends_the_same_when_the_server_is_killed_at_any_moment(
    build: Callable[..., House], story_database: str
) -> None:
    house = build(story_database)
    house.peer("dpi")
    house.peer("pfi")
    through_crashes(house, kills=3, seed=20261121)
    check_after_crashes(house)


@pytest.mark.long(minutes=2)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(6))
def test_the_story_survives_many_kills(build: Callable[..., House], story_database: str, seed: int) -> None:
    house = build(story_database)
    house.peer("dpi")
    house.peer("pfi")
    through_crashes(house, kills=10, seed=seed)
    check_after_crashes(house)
