"""One message sent by hand over a real socket: whatever came back is told, and nobody waits for long."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from delivery_hub import FIRST, message, queue
from hubs import IndexRows, hub_on

from conformance.peers.mllp import Peer
from fhir_server import cli
from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import partner_desk
from fhir_server.errors import RuleBroken, Silent, Unavailable
from fhir_server.store.engine import Store

# Step of the peer -> what MSA-2 says, words that tell what came, and a piece of it.
STRAYS = [
    ("wrong-msa-2", "NOTBYHAND1", "the answer is for message 'NOTBYHAND1', 'BYHAND1' was sent", "MSA|AA|NOTBYHAND1"),
    ("no-msa", "", "the answer has no MSA-1", "MSH|"),
    ("garbage", "", "the answer cannot be read", "%PDF-1.4 this is no answer"),
]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url), send_timeout_seconds=20.0)


def sent(hub: Hub, to: str) -> dict[str, Any]:
    told: dict[str, Any] = operate(hub, SYSTEM, "send-hl7", {"to": to, "content": message("BYHAND1").decode()})
    return told


@pytest.mark.parametrize(("step", "number", "words", "piece"), STRAYS)
def test_an_answer_that_settles_nothing_is_told_as_it_came(
    hub: Hub, step: str, number: str, words: str, piece: str
) -> None:
    with Peer(default=step) as peer:
        told = sent(hub, f"mllp://127.0.0.1:{peer.port}")
        assert len(peer.received) == 1
    assert (told["outcome"], told["code"], told["control_id"], told["errors"]) == ("unknown", "", number, [])
    assert told["text"].startswith("sent, outcome unknown: ") and words in told["text"] and piece in told["answer"]


@pytest.mark.parametrize(("step", "code"), [("AA", "AA"), ("AE", "AE"), ("CA", "CA")])
def test_an_acknowledgement_is_told_as_an_answer_whatever_it_says(hub: Hub, step: str, code: str) -> None:
    with Peer(default=step) as peer:
        told = sent(hub, f"mllp://127.0.0.1:{peer.port}")
    assert (told["outcome"], told["code"], told["control_id"]) == ("answered", code, "BYHAND1")


def test_what_was_sent_and_not_answered_is_told_apart_from_what_was_not_sent(
    hub: Hub, free_port: Callable[[], int]
) -> None:
    with Peer(default="half") as peer:
        with pytest.raises(Silent, match=r"sent, outcome unknown: .* did not answer \(incomplete\)") as half:
            sent(hub, f"mllp://127.0.0.1:{peer.port}")
    with pytest.raises(Unavailable, match=r"was not sent the message \(refused\)") as refused:
        sent(hub, f"mllp://127.0.0.1:{free_port()}")
    assert (half.value.status, refused.value.status) == (504, 503)


def test_by_hand_a_partner_has_less_time_than_its_lane_gives_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partner_desk, "SEND_SECONDS", 0.3)
    with Peer(default="silence") as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, lane="slow")
        operate(hub, SYSTEM, "lane-policy", {"lane": "slow", "answer_seconds": "600"})
        words = r"no answer came within 0\.3 s; by hand it has 0\.3 s, a delivery 600 s"
        began = time.monotonic()
        with pytest.raises(Silent, match=words):
            sent(hub, "slow")
        assert time.monotonic() - began < 10


def test_a_partner_that_lets_a_handshake_hang_keeps_nobody_for_long(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partner_desk, "ECHO_SECONDS", 0.4)
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        queue(hub, f"mllps://127.0.0.1:{deaf.getsockname()[1]}", FIRST, lane="deaf")
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"deaf is not reached \(tls\)"):
            operate(hub, SYSTEM, "lane-echo", {"lane": "deaf"})
        assert time.monotonic() - began < 5, "the settings would have given it ten"


@pytest.mark.parametrize(("step", "number", "words", "piece"), STRAYS)
def test_the_command_line_says_the_same_in_words_and_as_json(
    step: str,
    number: str,
    words: str,
    piece: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.er7").write_bytes(message("BYHAND1"))
    with Peer(script=[step, "AA", step], default="AA") as peer:
        call = ["send", "hl7", "a.er7", "a.er7", "--to", f"mllp://127.0.0.1:{peer.port}"]
        assert cli.main(call) == 1
        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith("a.er7: sent, outcome unknown: ") and words in first and piece in first
        assert second == "a.er7: AA BYHAND1", "the next file is sent all the same"
        assert cli.main([*call, "--json"]) == 1
        unknown, known = json.loads(capsys.readouterr().out)
    assert (unknown["outcome"], unknown["code"], unknown["control_id"]) == ("unknown", "", number)
    assert words in unknown["text"] and piece in unknown["answer"]
    assert (known["file"], known["outcome"], known["code"]) == ("a.er7", "answered", "AA")


def test_the_command_line_says_what_was_sent_and_not_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.er7").write_bytes(message("BYHAND1"))
    with Peer(script=["AA"], default="close") as peer:
        call = ["send", "hl7", "a.er7", "a.er7", "--json", "--to", f"mllp://127.0.0.1:{peer.port}"]
        assert cli.main(call) == 1
    told = capsys.readouterr()
    assert "a.er7: sent, outcome unknown: closed" in told.err
    assert [one["code"] for one in json.loads(told.out)] == ["AA"], "what was answered before is not lost"


def test_a_destination_that_moved_is_shown_asked_and_sent_to_where_it_is_now(
    hub: Hub, free_port: Callable[[], int]
) -> None:
    before = f"mllp://127.0.0.1:{free_port()}"
    queue(hub, before, FIRST, lane="Endpoint/dpi")
    with Peer() as peer:
        now = f"mllp://127.0.0.1:{peer.port}"
        moved = {"resourceType": "Endpoint", "id": "dpi", "status": "active", "address": now}
        hub.store.write(SYSTEM, lambda tx: tx.create(moved, IndexRows()))
        (shown,) = operate(hub, SYSTEM, "lane-list", {})
        assert (shown["address"], shown["endpoint"]) == (now, before)
        assert operate(hub, SYSTEM, "lane-echo", {"lane": "Endpoint/dpi"})["endpoint"] == now
        assert (sent(hub, "Endpoint/dpi")["code"], len(peer.received)) == ("AA", 1)
        hub.store.write(SYSTEM, lambda tx: tx.delete("Endpoint", "dpi"))
        (shown,) = operate(hub, SYSTEM, "lane-list", {})
        assert (shown["address"], shown["endpoint"]) == ("", before)
        with pytest.raises(RuleBroken, match="no address any more"):
            operate(hub, SYSTEM, "lane-echo", {"lane": "Endpoint/dpi"})
