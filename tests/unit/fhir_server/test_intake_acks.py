"""ZAM coming in: which business acknowledgement settles the second leg of a delivery, and which is only kept."""

from __future__ import annotations

import threading
from typing import Any

import hubs
import pytest
from hubs import at_once, hub_on

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import intake
from fhir_server.store.blobs import Blobs
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from fhir_server.store.lanes import NewDelivery
from hl7v2 import ack
from hl7v2.ack import Ack
from hl7v2.overlays import METADATA

PEER = "192.0.2.7:5001"


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def say(hub: Hub, raw: bytes) -> Ack:
    return ack.read(intake.on_message(hub, raw, PEER))


def rows(hub: Hub, **wanted: Any) -> list[InboxRow]:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter(**wanted))


def codes(told: Ack) -> list[tuple[str, str]]:
    return [(error.location, error.code) for error in told.errors]


def zam(control_id: str, about: str, answer: str = "Y", trigger: str = "Z01", error: str = "") -> bytes:
    name = {"Z01": "ACK_RECEPTION_DMP", "Z02": "ACK_RECEPTION_MSS", "Z03": "ACK_LECTURE_MSS"}[trigger]
    lines = [
        f"MSH|^~\\&|PFI|CH-DEMO|PASSERELLE|CH-DEMO|20261121100000||ZAM^{trigger}^ZAM_{trigger}|{control_id}|T|2.6"
        "|||||FRA|UNICODE UTF-8|||2.1^CISIS_CDA_HL7_V2",
        "EVN||20261121100000",
        f"OBX|1|CWE|{name}^Accusé^AckMetierZAM|{about}|{answer}^^expandedYes-NoIndicator||||||F|",
        *([error] if error else []),
    ]
    return ("\r".join(lines) + "\r").encode()


@pytest.fixture
def sent(store: Store) -> tuple[Hub, str]:
    """A hub and the id of a delivery to the platform, which waits for its business acknowledgement."""
    hub = hub_on(store)
    return hub, hubs.delivered(hub, "hl7", "zam")


def leg(hub: Hub, key: str) -> tuple[str, str]:
    delivery = next(d for d in hubs.deliveries(hub) if d.id == key)
    return delivery.leg_state, delivery.leg_text


def test_a_business_acknowledgement_settles_the_second_leg(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    assert leg(hub, key)[0] == "waiting"
    assert say(hub, zam("Z1", key)).code == "AA"
    assert leg(hub, key) == ("confirmed", "Z01 accepted")
    row = rows(hub, control_id="Z1")[0]
    assert (row.case_key, row.state) == ("ServiceRequest/r", "done")


def test_a_refusal_is_kept_in_the_platforms_own_words_and_a_later_yes_counts(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    error = "ERR|||207^Erreur^HL70357|E|901^Le DMP du patient est fermé"
    assert say(hub, zam("Z1", key, "N", error=error)).code == "AA"
    state, text = leg(hub, key)
    assert state == "refused" and "901" in text and "fermé" in text
    say(hub, zam("Z2", key))
    assert leg(hub, key)[0] == "confirmed"
    say(hub, zam("Z3", key, "N", error=error))
    assert leg(hub, key)[0] == "confirmed"
    assert "was settled before" in rows(hub, control_id="Z3")[0].note


def test_the_same_business_acknowledgement_again_gets_the_same_answer(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    answers = hubs.results(at_once(*[lambda: intake.on_message(hub, zam("Z1", key), PEER)] * 3))
    assert len(set(answers)) == 1 and ack.read(answers[0]).code == "AA"
    assert intake.on_message(hub, zam("Z1", key), PEER) == answers[0]


def test_what_a_business_acknowledgement_is_about_is_read_before_anything_is_locked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = b"MSH|^~\\&|PASSERELLE|CH-DEMO|PFI|CH-DEMO|20261121||MDM^T02^MDM_T02|X|T|2.6\rNTE|1||" + b"x" * 100_000
    delivery = hub.store.keep(NewDelivery("pfi", "mllp://h:1", "hl7", payload, second_leg="zam"))
    key = hub.store.write(SYSTEM, lambda tx: tx.send(delivery))
    real, readers = Blobs.read, list[str]()

    def noted(blobs: Blobs, sha256: str) -> bytes:
        readers.append(threading.current_thread().name)
        return real(blobs, sha256)

    monkeypatch.setattr(Blobs, "read", noted)
    assert say(hub, zam("Z1", key)).code == "AA" and leg(hub, key)[0] == "confirmed"
    assert readers == [threading.current_thread().name], "SQLite writes in a thread of its own"


def test_an_acknowledgement_of_what_was_never_sent_is_refused_and_kept(hub: Hub) -> None:
    told = say(hub, zam("Z1", "NEVERSENTNEVERSENT22"))
    assert (told.code, codes(told)) == ("AE", [("OBX^1^4", "204")])
    assert rows(hub, state="error")[0].message_type == "ZAM^Z01"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (zam("Z1", "X", "?"), "103"),
        (zam("Z1", ""), "101"),
        (zam("Z1", "X").replace(b"ACK_RECEPTION_DMP", b"SOMETHING"), "103"),
        (zam("Z1", "X").replace(b"ZAM^Z01", b"ZAM^Z09"), "201"),
    ],
)
def test_a_broken_business_acknowledgement_is_refused_with_its_place(hub: Hub, raw: bytes, code: str) -> None:
    told = say(hub, raw)
    assert told.code == "AE"
    assert code in {error.code for error in told.errors}
    assert all(error.location for error in told.errors)


def mdm(hub: Hub, **more: Any) -> str:
    """A document that went to the platform, MSH-5 and MSH-6 told; its delivery."""
    payload = b"MSH|^~\\&|PASSERELLE|CH-DEMO|PFI|CH-DEMO|20261121||MDM^T02^MDM_T02|X|T|2.6\r"
    delivery = NewDelivery("pfi", "mllp://h:1", "hl7", payload, second_leg="zam", **more)
    return hub.store.write(SYSTEM, lambda tx: tx.send(delivery))


@pytest.mark.parametrize(
    ("sender", "state", "noted"),
    [
        ("PFI|CH-DEMO", "confirmed", ""),
        ("DPI|CH-DEMO", "confirmed", "from DPI|CH-DEMO, the document went to PFI|CH-DEMO"),
        ("PFI|ELSEWHERE", "waiting", "settles nothing"),
        ("|", "waiting", "settles nothing"),
    ],
)
def test_a_business_acknowledgement_settles_only_from_where_the_document_went(
    hub: Hub, sender: str, state: str, noted: str
) -> None:
    key = mdm(hub)
    raw = zam("Z1", key).replace(b"PFI|CH-DEMO", sender.encode(), 1)
    assert say(hub, raw).code == "AA", "to be kept and read, not repeated for ever"
    assert leg(hub, key)[0] == state
    note = rows(hub, control_id="Z1")[0].note
    assert (noted in note) if noted else note == "Z01 accepted"


def test_an_acknowledgement_nobody_awaits_is_noted(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    for control_id, about in (("Z1", hubs.delivered(hub, "hl7", "none")), ("Z2", hubs.delivered(hub))):
        assert say(hub, zam(control_id, about)).code == "AA"
        assert "none was awaited" in rows(hub, control_id=control_id)[0].note
    assert say(hub, zam("Z3", key, trigger="Z03")).code == "AA"
    assert rows(hub, control_id="Z3")[0].note == "Z03 accepted (not asked for)"
    assert leg(hub, key) == ("waiting", "Z03 accepted"), "that it was read says nothing of the DMP"
    assert say(hub, zam("Z4", key)).code == "AA"
    assert leg(hub, key) == ("confirmed", "Z01 accepted; Z03 accepted")


def asking(hub: Hub, *codes: str) -> str:
    """A document whose metadata say Y to some codes and N to the others; its delivery."""
    yes_no = "".join(
        f"OBX|{n}|CWE|{code}^x^MetaDMPMSS||{'Y' if code in codes else 'N'}^^expandedYes-NoIndicator||||||F\r"
        for n, code in enumerate(METADATA, 2)
    )
    head = "MSH|^~\\&|PASSERELLE|CH-DEMO|PFI|CH-DEMO|20261121||MDM^T02^MDM_T02|X|T|2.6\r"
    delivery = NewDelivery("pfi", "mllp://h:1", "hl7", (head + yes_no).encode(), second_leg="zam")
    return hub.store.write(SYSTEM, lambda tx: tx.send(delivery))


@pytest.mark.parametrize(
    ("codes", "settles"),
    [
        (("ACK_RECEPTION", "DESTDMP"), "Z01"),
        (("ACK_RECEPTION", "DESTDMP", "DESTMSSANTEPS", "ACK_LECTURE_MSS"), "Z01"),
        (("ACK_RECEPTION", "DESTMSSANTEPS"), "Z02"),
        (("ACK_RECEPTION", "DESTMSSANTEPAT", "ACK_LECTURE_MSS"), "Z02"),
        (("ACK_LECTURE_MSS", "DESTMSSANTEPS"), "Z03"),
        ((), "Z01"),
    ],
)
@pytest.mark.parametrize("answer", ["Y", "N"])
def test_what_a_document_asks_for_decides_which_acknowledgement_settles(
    hub: Hub, codes: tuple[str, ...], settles: str, answer: str
) -> None:
    key = asking(hub, *codes)
    others = [trigger for trigger in ("Z03", "Z02", "Z01") if trigger != settles]
    for trigger in others:
        assert say(hub, zam(f"A{trigger}", key, trigger=trigger)).code == "AA"
    assert leg(hub, key) == ("waiting", "; ".join(f"{one} accepted" for one in others))
    error = "" if answer == "Y" else "ERR|||207^Application internal error^x|E|422^boîte pleine^SMTPERRORCODE"
    assert say(hub, zam("Z9", key, answer, settles, error)).code == "AA"
    state, text = leg(hub, key)
    assert state == ("confirmed" if answer == "Y" else "refused") and text.startswith(settles)
    assert ("422 boîte pleine" in text) is (answer == "N")
    assert all(f"{one} accepted" in text for one in others)


def test_a_refusal_beside_what_settled_is_seen(hub: Hub) -> None:
    key = asking(hub, "ACK_RECEPTION", "DESTDMP", "DESTMSSANTEPS")
    assert say(hub, zam("Z1", key)).code == "AA"
    full = "ERR|||207^Application internal error^x|E|422^boîte pleine^SMTPERRORCODE"
    assert say(hub, zam("Z2", key, "N", "Z02", full)).code == "AA"
    assert leg(hub, key) == ("confirmed", "Z01 accepted; Z02 refused 422 boîte pleine")
    assert rows(hub, control_id="Z2")[0].note == "Z02 refused 422 boîte pleine (Z01 settles)"


def test_a_partner_that_acknowledges_for_ever_fills_no_leg(hub: Hub) -> None:
    key = asking(hub, "ACK_RECEPTION", "DESTDMP")
    for number in range(60):
        assert say(hub, zam(f"R{number}", key, trigger="Z03")).code == "AA"
    assert len(leg(hub, key)[1]) < 600
