"""Deliveries leaving: what each fact on the wire means, one lane at a time, and the same bytes every time."""

from __future__ import annotations

import base64
import dataclasses
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from delivery_hub import FIRST, SECOND, attempts, message, queue, row
from hubs import hub_on

from conformance.peers.mllp import Peer
from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, new_delivery_id, new_message_id
from fhir_server.delivery import workers
from fhir_server.delivery.line import ticks
from fhir_server.delivery.transports import TABLE, classify
from fhir_server.delivery.workers import Lines, backoff
from fhir_server.errors import Invalid, NotFound, RuleBroken, Unavailable
from fhir_server.store.blob_seal import Keys
from fhir_server.store.blobs import Blobs
from fhir_server.store.engine import Store
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.session import Snapshot
from hl7v2 import mllp


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url), retry_first_seconds=0.0, retry_cap_seconds=0.0, send_timeout_seconds=0.3)


def send(hub: Hub, endpoint: str, *keys: str, **more: Any) -> None:
    """Deliveries that wait, in a lane that goes on when one of them is stuck."""
    queue(hub, endpoint, *keys, on_stuck="skip", **more)


def deliver_one(hub: Hub) -> bool:
    return workers.deliver_one(hub, Lines(hub))


# What an operator is promised (docs/delivery.md), fact by fact: MSA-1 and MllpFault, reply codes of RFC 5321 and
# SmtpFault.
VERDICTS = """
    mllp    ack     AA           sent
    mllp    ack     CA           sent
    mllp    ack     AE           permanent
    mllp    ack     CE           permanent
    mllp    ack     AR           transient
    mllp    ack     CR           transient
    mllp    ack     unreadable   ambiguous
    mllp    ack     wrong-msa-2  ambiguous
    mllp    connect refused      transient
    mllp    connect unreachable  transient
    mllp    connect name         transient
    mllp    connect tls          transient
    mllp    connect timeout      transient
    mllp    send    framing      permanent
    mllp    send    reset        transient
    mllp    send    timeout      transient
    mllp    answer  timeout      ambiguous
    mllp    answer  reset        ambiguous
    mllp    answer  closed       ambiguous
    mllp    answer  incomplete   ambiguous
    mssante connect refused      transient
    mssante connect 421          transient
    mssante tls     0            transient
    mssante auth    535          transient
    mssante mail    451          transient
    mssante mail    550          permanent
    mssante rcpt    450          transient
    mssante rcpt    550          permanent
    mssante data    452          transient
    mssante data    554          permanent
    mssante answer  250          sent
    mssante answer  451          transient
    mssante answer  554          permanent
    mssante answer  0            ambiguous
"""
FACTS = [tuple(line.split()) for line in VERDICTS.strip().splitlines()]


@pytest.mark.parametrize(("scheme", "stage", "code", "verdict"), FACTS)
def test_each_fact_has_its_verdict(scheme: str, stage: str, code: str, verdict: str) -> None:
    assert classify(scheme, stage, code) == verdict


def test_every_row_of_the_table_is_met_by_a_fact() -> None:
    """A row nobody wrote a fact down for would be decided by nobody."""
    met = {
        next((scheme, stage, one) for one in (code, f"{code[:1]}yz", "*") if (scheme, stage, one) in TABLE)
        for scheme, stage, code, _ in FACTS
    }
    assert met == set(TABLE)


@pytest.mark.parametrize(
    ("scheme", "stage", "code", "verdict"),
    [
        ("mllp", "ack", "wrong-msa-2", "ambiguous"),
        ("mllp", "ack", "", "ambiguous"),
        ("mllp", "connect", "refused", "transient"),
        ("mssante", "answer", "0", "ambiguous"),
        ("mssante", "rcpt", "550", "permanent"),
        ("mssante", "mail", "0", "transient"),
        ("fax", "answer", "busy", "ambiguous"),
        ("fax", "dial", "busy", "transient"),
    ],
)
def test_an_unknown_fact_is_ambiguous_once_something_was_sent(scheme: str, stage: str, code: str, verdict: str) -> None:
    assert classify(scheme, stage, code) == verdict


def test_deliveries_of_a_lane_leave_in_order_one_after_the_other_at_once(hub: Hub) -> None:
    with Peer() as peer:
        send(hub, f"mllp://127.0.0.1:{peer.port}?application=DPI", FIRST, SECOND)
        assert [deliver_one(hub), deliver_one(hub), deliver_one(hub)] == [True, True, False]
        assert [frame.control_id for frame in peer.received] == [FIRST, SECOND]
    assert (row(hub).state, row(hub, SECOND).state) == ("sent", "sent")
    assert row(hub).ack is not None


@pytest.mark.parametrize("step", ["AR", "silence", "wrong-msa-2", "garbage", "close", "half", "reset"])
def test_what_may_have_failed_is_sent_again_byte_by_byte(hub: Hub, step: str) -> None:
    with Peer(script=(step,)) as peer:
        send(hub, f"mllp://127.0.0.1:{peer.port}", FIRST)
        assert deliver_one(hub) is True
        assert row(hub).state == "queued" and row(hub).error
        assert deliver_one(hub) is True
        assert {frame.raw for frame in peer.received} == {message(FIRST)}
    assert row(hub).state == "sent"
    assert [one.outcome for one in attempts(hub)] == ["retry", "sent"]


@pytest.mark.parametrize("step", ["AE", "CE"])
def test_what_a_partner_refuses_waits_for_a_person_in_its_own_words(hub: Hub, step: str) -> None:
    with Peer(script=(step,)) as peer:
        send(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND)
        deliver_one(hub)
        assert (row(hub).state, row(hub).error_class) == ("error", "permanent")
        assert row(hub).error.startswith(step)
        assert deliver_one(hub) is True, "the lane goes on"
        hub.store.write(SYSTEM, lambda tx: tx.retry(FIRST))
        assert deliver_one(hub) is True
    assert (row(hub).state, row(hub, SECOND).state) == ("sent", "sent")


def test_a_partner_that_is_down_is_waited_for(hub: Hub, free_port: Callable[[], int]) -> None:
    port = free_port()
    send(hub, f"mllp://127.0.0.1:{port}", FIRST)
    deliver_one(hub)
    assert (row(hub).state, row(hub).error_class) == ("queued", "transient")
    with Peer(port=port) as peer:
        deliver_one(hub)
        assert len(peer.received) == 1


@pytest.mark.parametrize(
    ("endpoint", "protocol", "code"),
    [
        ("fax://1.2.3.4:1", "hl7", "scheme"),
        ("", "hl7", "scheme"),
        ("mllp://127.0.0.1", "hl7", "address"),
        ("mllp://127.0.0.1:99999", "hl7", "address"),
        ("mllp://[::1", "hl7", "address"),
        ("mssante:not an address?from=a@b.fr", "mail", "address"),
        ("mssante:a@b.fr", "mail", "address"),
    ],
)
def test_an_address_nobody_can_use_is_told_and_stops_nothing(hub: Hub, endpoint: str, protocol: str, code: str) -> None:
    send(hub, endpoint, FIRST, protocol=protocol)
    assert deliver_one(hub) is True
    assert (row(hub).state, row(hub).error.split(" ")[0]) == ("error", code)
    assert deliver_one(hub) is False


def test_a_mail_waits_until_an_operator_is_configured(hub: Hub) -> None:
    send(hub, "mssante:a@b.fr?from=c@d.fr", FIRST, protocol="mail")
    without = dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, smtp=""))
    deliver_one(without)
    assert (row(hub).state, "no MSSanté operator" in row(hub).error) == ("queued", True)


def test_a_defect_of_ours_holds_the_delivery_and_frees_the_lane(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with Peer() as peer:
        send(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND)
        with monkeypatch.context() as patch:
            patch.setattr(mllp.Sender, "send", broken)
            deliver_one(hub)
        assert (row(hub).state, "ZeroDivisionError" in row(hub).error) == ("held", True)
        deliver_one(hub)
        assert [frame.control_id for frame in peer.received] == [SECOND]


def test_a_dead_destination_costs_the_others_nothing(hub: Hub, free_port: Callable[[], int]) -> None:
    slow = dataclasses.replace(
        hub, settings=dataclasses.replace(hub.settings, retry_first_seconds=60.0, retry_cap_seconds=60.0)
    )
    with Peer() as peer:
        send(slow, f"mllp://127.0.0.1:{free_port()}", FIRST, lane="dead")
        send(slow, f"mllp://127.0.0.1:{peer.port}", SECOND, lane="alive")
        assert [deliver_one(slow), deliver_one(slow), deliver_one(slow)] == [True, True, False]
    assert (row(hub).state, row(hub, SECOND).state) == ("queued", "sent")


def test_the_pause_doubles_and_is_capped(hub: Hub) -> None:
    settings = dataclasses.replace(hub.settings, retry_first_seconds=5.0, retry_cap_seconds=900.0)
    patient = dataclasses.replace(hub, settings=settings)
    for failures, seconds in ((0, 5.0), (1, 10.0), (4, 80.0), (9, 900.0), (1_000_000, 900.0)):
        assert seconds <= backoff(patient, failures) <= seconds * 1.2


def large(key: str) -> NewDelivery:
    return NewDelivery("dpi", "mllp://127.0.0.1:1", "hl7", message(key) + b"NTE|1||" + b"x" * 100_000 + b"\r", id=key)


def test_content_that_cannot_be_read_now_leaves_later(hub: Hub) -> None:
    keys = Keys({"k": b"k" * 32}, "k")
    sealed = Blobs(hub.store.blobs.root, keys=keys)
    plain, hub.store.blobs = hub.store.blobs, sealed
    delivery = hub.store.keep(large(FIRST))
    hub.store.write(SYSTEM, lambda tx: tx.send(delivery))
    hub.store.blobs = plain  # a process without the key
    assert deliver_one(hub) is True
    assert (row(hub).state, row(hub).error_class) == ("queued", "transient")
    assert "key k" in row(hub).error
    hub.store.blobs = sealed
    assert deliver_one(hub) is True
    assert "refused" in row(hub).error, "it was tried: nobody listens"


def test_damaged_content_waits_for_a_person(hub: Hub) -> None:
    hub.store.blobs = Blobs(hub.store.blobs.root, keys=Keys({"k": b"k" * 32}, "k"))
    delivery = hub.store.keep(large(FIRST))
    hub.store.write(SYSTEM, lambda tx: tx.send(delivery))
    (path,) = hub.store.blobs.root.glob("??/??/*.gcm1")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    assert deliver_one(hub) is True
    assert (row(hub).state, row(hub).error_class) == ("held", "held")


@pytest.mark.parametrize("size", ["small", "large"])
def test_bytes_other_than_the_frozen_ones_never_leave(hub: Hub, sqlite_url: str, size: str) -> None:
    if size == "large":
        delivery = hub.store.keep(large(FIRST))
        hub.store.write(SYSTEM, lambda tx: tx.send(delivery))
        path = hub.store.blobs.root / delivery.kept.sha256[:2] / delivery.kept.sha256[2:4]  # type: ignore[union-attr]
        (found,) = path.iterdir()
        found.chmod(0o600)
        found.write_bytes(b"X" + found.read_bytes()[1:])
    else:
        send(hub, "mllp://127.0.0.1:1", FIRST)
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as db:
            assert db.execute("UPDATE delivery SET payload = CAST(payload || x'0d' AS BLOB)").rowcount == 1
    assert deliver_one(hub) is True
    assert (row(hub).state, row(hub).error_class) == ("held", "held")
    assert "not those that were frozen" in row(hub).error
    shown = operate(hub, SYSTEM, "outbox-show", {"id": FIRST})
    assert "not those that were frozen" in shown["content"] and shown["state"] == "held"


def test_an_outcome_is_written_once_when_the_next_delivery_cannot_be_taken(hub: Hub) -> None:
    """The next one is held back, so another is looked for in a transaction of its own; that one fails."""
    send(hub, "mllp://127.0.0.1:1", FIRST)
    send(hub, "mllp://127.0.0.1:1", SECOND, lane="other")
    send(hub, "mllp://127.0.0.1:1", "AAAAAAAAAAAAAAAAAAA3", lane="third")
    claim = hub.store.take("w", 30, lambda tx, one: None)
    assert claim is not None
    checked: list[str] = []

    def check(tx: Snapshot, one: Claim) -> Outcome:
        checked.append(one.delivery.id)
        if len(checked) > 1:
            raise Unavailable("the database went away")
        return Outcome("held", "overtaken", "no")

    later = hub.store.moment() + 10**9
    told = hub.store.pass_on(claim, Outcome("retry", "transient", "t", None, later), "w", 30, check)
    assert told == (True, None) and len(checked) == 2
    assert [(one.outcome, one.error) for one in attempts(hub)] == [("retry", "t")]


def test_a_partner_counts_as_slow_only_while_it_is_spoken_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SLOW_SECONDS", 0.0)
    send(hub, "mllp://127.0.0.1:1", FIRST)
    claim, lines = hub.store.take("w", 30, lambda tx, one: None), Lines(hub)
    assert claim is not None
    with lines.opened(claim, ticks() - 100) as line:
        assert lines.slow() == 0, "however long the database took"
        with line.talking():
            assert lines.slow() == 1
        assert lines.slow() == 0


@pytest.mark.parametrize("new", [new_delivery_id, new_message_id])
def test_an_id_fits_msh_10_whatever_the_version_and_is_not_drawn_twice(new: Callable[[], str]) -> None:
    drawn = [new() for _ in range(20_000)]
    assert len(set(drawn)) == len(drawn)
    assert all(re.fullmatch("[A-Z2-7]{20}", one) for one in drawn)
    assert all(len({one[place] for one in drawn}) == 32 for place in range(20)), "every character is drawn anew"


def test_the_id_of_a_delivery_is_not_drawn_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is copied while it runs must not give its partners the same MSH-10 twice."""
    monkeypatch.setattr("fhir_server.context.secrets.token_bytes", lambda count: bytes(count))
    new_delivery_id()
    monkeypatch.setattr("fhir_server.context.secrets.token_bytes", lambda count: bytes([1]) * count)
    assert new_delivery_id() == "B" * 20


def test_a_child_process_draws_ids_of_its_own() -> None:
    program = (
        "import os, sys\n"
        "from fhir_server.context import new_message_id\n"
        "new_message_id()\n"
        "child = os.fork()\n"
        "os.write(1, f'{new_message_id()}\\n'.encode())\n"
        "if child: sys.exit(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert len(set(done.stdout.split())) == 2


def of_trail(hub: Hub, event: str) -> list[tuple[str, str, str, str]]:
    with hub.store.read(SYSTEM) as snapshot:
        rows = [one for one in snapshot.audit_rows() if one.event == event]
    return [(one.action, f"{one.entity_type}/{one.entity_id}", one.outcome, one.text) for one in rows]


def test_one_message_is_sent_by_hand_and_its_answer_told(hub: Hub) -> None:
    text = message("BYHAND0000000000001").decode()
    with Peer() as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, lane="Endpoint/there")
        told = operate(hub, SYSTEM, "send-hl7", {"to": "Endpoint/there", "content": text.replace("\r", "\n")})
        assert (told["code"], told["control_id"], told["errors"]) == ("AA", "BYHAND0000000000001", [])
        assert told["answer"].startswith("MSH|") and told["endpoint"] == f"mllp://127.0.0.1:{peer.port}"
        exact = base64.b64encode(text.encode("latin-1") + b"ZZZ|\xe9\r").decode()
        address = f"mllp://127.0.0.1:{peer.port}"
        assert operate(hub, SYSTEM, "send-hl7", {"to": address, "data": exact})["code"] == "AA"
        assert [one.raw for one in peer.received] == [text.encode(), text.encode("latin-1") + b"ZZZ|\xe9\r"]
        assert row(hub).state == "queued" and len(attempts(hub)) == 0, "what waits there goes its own way"
        told_before = of_trail(hub, "send-hl7")
        assert {(action, outcome) for action, _, outcome, _ in told_before} == {("E", "0")}
        assert {entity for _, entity, _, _ in told_before} == {"Endpoint/there", "/"}
        assert all("BYHAND" not in words and "sha256:" in words for *_, words in told_before)
        operate(hub, SYSTEM, "lane-pause", {"lane": "Endpoint/there", "reason": "travaux"})
        with pytest.raises(RuleBroken, match="is paused: travaux"):
            operate(hub, SYSTEM, "send-hl7", {"to": "Endpoint/there", "content": text})
        assert len(peer.received) == 2


def test_a_refusal_is_an_answer_too(hub: Hub) -> None:
    with Peer(default="AE") as peer:
        address = f"mllp://127.0.0.1:{peer.port}"
        told = operate(hub, SYSTEM, "send-hl7", {"to": address, "content": message("N1").decode()})
    assert (told["code"], told["control_id"]) == ("AE", "N1") and "MSA|AE|N1" in told["answer"]


@pytest.mark.parametrize(
    ("to", "error", "words"),
    [
        ("mllp://169.254.1.1:80", RuleBroken, "(address)"),
        ("mllp://h:99999999", Invalid, "an address is mllp://host:port"),
        ("mllp://127.0.0.1", Invalid, "an address is mllp://host:port"),
        ("mllp://" + "a" * 100 + "@127.0.0.1:80", Invalid, "an address is mllp://host:port"),
        ("mllp://127.0.0.1:80/path?x=1", Invalid, "an address is mllp://host:port"),
        ("http://127.0.0.1:80", NotFound, "passerelle lane list"),
        ("file:///etc/passwd", NotFound, "passerelle lane list"),
        ("", NotFound, "passerelle lane list"),
        ("mail", RuleBroken, "known by sending"),
        ("fetches", RuleBroken, "its partner fetches"),
    ],
)
def test_by_hand_nothing_goes_where_no_delivery_may(hub: Hub, to: str, error: type[Exception], words: str) -> None:
    queue(hub, "mssante:a@b.fr?from=c@d.fr", new_delivery_id(), lane="mail")
    queue(hub, "pull:CH-NORD", new_delivery_id(), lane="fetches")
    with pytest.raises(error, match=re.escape(words)):
        operate(hub, SYSTEM, "send-hl7", {"to": to, "content": message("N2").decode()})
    assert [outcome for _, _, outcome, _ in of_trail(hub, "send-hl7")] in (["0", "8"], ["8", "0"])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"content": "MSH|^~\\&|A|B"},
        {"content": "MSH"},
        {"data": "TVNIfF5+XCZ8QQ0KRkxVU0hBTEwNCg=="},
        {"content": "GET / HTTP/1.1"},
        {"data": "%%%"},
        {"data": "R0VUIC8="},
        {"content": "MSH|", "data": "TVNIfA=="},
    ],
)
def test_by_hand_nothing_goes_but_hl7(hub: Hub, given: dict[str, str]) -> None:
    with Peer() as peer:
        with pytest.raises(Invalid):
            operate(hub, SYSTEM, "send-hl7", {"to": f"mllp://127.0.0.1:{peer.port}"} | given)
        assert peer.received == []


def test_whether_a_destination_is_there_is_audited_before_it_is_asked(hub: Hub, free_port: Callable[[], int]) -> None:
    queue(hub, f"mllp://127.0.0.1:{free_port()}", FIRST, lane="Endpoint/away")
    with pytest.raises(Unavailable):
        operate(hub, SYSTEM, "lane-echo", {"lane": "Endpoint/away"})
    trail = of_trail(hub, "lane-echo")
    assert sorted(row[:3] for row in trail) == [("R", "Endpoint/away", "0"), ("R", "Endpoint/away", "8")]


def test_a_destination_is_asked_for_without_being_sent_anything(hub: Hub, free_port: Callable[[], int]) -> None:
    with Peer() as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, lane="there")
        told = operate(hub, SYSTEM, "lane-echo", {"lane": "there"})
        assert (told["reached"], told["endpoint"]) == (True, f"mllp://127.0.0.1:{peer.port}")
        assert peer.received == [] and row(hub).state == "queued"
    for lane, endpoint, words in (
        ("away", f"mllp://127.0.0.1:{free_port()}", "away is not reached (refused)"),
        ("nameless", "mllp://partner.invalid:2575", "not reached (name)"),
        ("forbidden", "mllp://169.254.1.1:80", "not reached (address)"),
        ("strange", "mllp://h:99999999", "cannot be used"),
        ("fetches", "pull:CH-NORD", "its partner fetches"),
        ("mail", "mssante:a@b.fr?from=c@d.fr", "known by sending"),
    ):
        queue(hub, endpoint, new_delivery_id(), lane=lane)
        with pytest.raises(Unavailable, match=re.escape(words)):
            operate(hub, SYSTEM, "lane-echo", {"lane": lane})
    for unknown in ({"lane": "nowhere"}, {}):
        with pytest.raises(NotFound, match="passerelle lane list"):
            operate(hub, SYSTEM, "lane-echo", unknown)
