"""What holds a delivery back before it leaves, who lets it go, lanes that are fetched, and what monitoring sees."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hubs
import pytest
from delivery_hub import FIRST, RECIPIENT, SECOND, SENDER, Shifted, attempts, deliver, hub_of, queue, row, until
from hubs import EXPERT, SYSTEM

from conformance.peers.mllp import Peer
from fhir_server import pull, watch
from fhir_server.changes import Hub, view_of
from fhir_server.config import ConfigError, load
from fhir_server.context import Caller
from fhir_server.delivery.workers import Workers
from fhir_server.desk import lanes, outbox, table, words
from fhir_server.errors import Conflict, Forbidden, Invalid, NotFound, RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.outbox_desk import Policy
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise.consequences import Context
from profiles.json_text import parse

INS = "2790555180013"
MERGED = {"type": "replaced-by", "other": {"reference": "Patient/y"}}


@pytest.fixture
def clock() -> Shifted:
    return Shifted()


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str, clock: Shifted) -> Hub:
    return hub_of(open_url(sqlite_url, clock=clock), clock)


def resource(hub: Hub, kind: str, **content: Any) -> None:
    """Writes a resource past the rules: what matters here is what the outbox makes of it."""
    whole = {"resourceType": kind, "id": "x"} | content

    def work(tx: Any) -> None:
        known = tx.get(kind, "x")
        (tx.create if known is None else tx.update)(parse(json.dumps(whole)), hubs.IndexRows())

    hub.store.write(SYSTEM, work)


def patient(hub: Hub, ins: str = INS, **more: Any) -> None:
    reliability = {
        "url": "https://hl7.fr/ig/fhir/core/StructureDefinition/fr-core-identity-reliability",
        "extension": [{"url": "identityStatus", "valueCoding": {"code": "VALI"}}],
    }
    identifiers = [{"use": "official", "system": "urn:oid:1.2.250.1.213.1.4.10", "value": ins}] if ins else []
    resource(hub, "Patient", **({"identifier": identifiers, "extension": [reliability]} | more))


def report(hub: Hub, status: str = "final", **more: Any) -> None:
    resource(hub, "DiagnosticReport", status=status, **({"conclusion": "Tout va bien."} | more))


@pytest.fixture
def frozen(hub: Hub) -> Hub:
    """A report about a patient, frozen for a partner, and another delivery about somebody else behind it."""
    patient(hub)
    report(hub)
    about: dict[str, Any] = {"patient": "Patient/x", "document": "DiagnosticReport/x", "keys": (("ins", INS),)}
    queue(hub, "mllp://127.0.0.1:9", FIRST, on_stuck="skip", **about)
    return hub


def sent(hub: Hub) -> list[str]:
    """What a partner gets once it listens."""
    with Peer() as peer:
        endpoint = f"mllp://127.0.0.1:{peer.port}"
        hub.store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE delivery SET endpoint = ?", (endpoint,)))
        while deliver(hub):
            pass
        return [frame.control_id for frame in peer.received]


EVENTS: tuple[tuple[str, Callable[[Hub], object], str], ...] = (
    ("nothing", lambda hub: None, ""),
    ("tagged", lambda hub: report(hub, meta={"tag": [{"code": "x"}]}), ""),
    ("renamed", lambda hub: patient(hub, name=[{"family": "Autre"}]), ""),
    ("merged", lambda hub: patient(hub, link=[MERGED]), "Patient/x was merged into Patient/y"),
    ("ins lost", lambda hub: patient(hub, extension=[]), "has no qualified INS any more"),
    ("ins taken", lambda hub: patient(hub, ins=""), "has no qualified INS any more"),
    ("other ins", lambda hub: patient(hub, ins="1790555180013"), "has another INS now; these bytes carry " + INS),
    ("deleted", lambda hub: hub.store.write(SYSTEM, lambda tx: tx.delete("Patient", "x")), "was deleted"),
    ("withdrawn", lambda hub: report(hub, "entered-in-error"), "DiagnosticReport/x is entered-in-error now"),
    ("amended", lambda hub: report(hub, "amended", conclusion="Autre."), "was replaced by version 2 (amended)"),
    ("rewritten", lambda hub: report(hub, conclusion="Autre."), "was replaced by version 2 (final)"),
    ("report deleted", lambda hub: hub.store.write(SYSTEM, lambda tx: tx.delete("DiagnosticReport", "x")),
     "was deleted"),
)  # fmt: skip


@pytest.mark.parametrize(("event", "words"), [event[1:] for event in EVENTS], ids=[event[0] for event in EVENTS])
def test_what_was_overtaken_by_events_is_held_before_it_is_sent(
    frozen: Hub, event: Callable[[Hub], object], words: str
) -> None:
    event(frozen)
    assert sent(frozen) == ([] if words else [FIRST])
    stopped = row(frozen)
    assert (stopped.state, stopped.error_class) == (("held", "overtaken") if words else ("sent", ""))
    assert words in stopped.error
    if words:
        told = outbox.outbox_show(frozen.store, {"id": FIRST})["why"]
        assert told.startswith(f"held: {stopped.error}")
        try:
            outbox.outbox_release(frozen.store, {"id": FIRST})
        except RuleBroken:
            assert told.endswith("; nobody releases it while that is so")
        else:
            assert told == f"held: {stopped.error}; release it as it is, regenerate it, or cancel it"


def test_a_held_one_is_released_by_a_person_and_held_again_for_another_reason(frozen: Hub) -> None:
    patient(frozen, ins="")
    assert sent(frozen) == []
    outbox.outbox_retry(frozen.store, {"id": FIRST})
    assert sent(frozen) == [], "trying again changes nothing"
    told = outbox.outbox_release(frozen.store, {"id": FIRST})
    assert "no qualified INS" in told["set_aside"]
    report(frozen, "corrected")
    patient(frozen)
    assert sent(frozen) == [], "that reason was not set aside"
    outbox.outbox_release(frozen.store, {"id": FIRST})
    assert sent(frozen) == [FIRST]


# --- regenerate ------------------------------------------------------------------------------------------------------


def context_of(hub: Hub) -> Callable[[Snapshot], Context]:
    return lambda snapshot: Context(SYSTEM, view_of(snapshot), hub.settings, hub.sites, hub.clock())


def test_a_person_regenerates_a_held_report_under_a_new_id(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = hubs.directory(hubs.hub_on(open_url(sqlite_url)))
    hubs.asked(hub, state="in_progress")
    hubs.put(hub, EXPERT, hubs.opinion(hub))
    old = next(one for one in hubs.deliveries(hub) if one.protocol == "mail")
    with pytest.raises(RuleBroken, match="only a held or failed one"):
        outbox.outbox_regenerate(hub.store, {"id": old.id}, context_of(hub))
    outbox.outbox_hold(hub.store, {"id": old.id, "reason": "relire"})
    made = outbox.outbox_regenerate(hub.store, {"id": old.id}, context_of(hub))
    new, after = row(hub, made["id"]), row(hub, old.id)
    assert (new.state, new.parent, new.lane, new.document) == ("queued", old.id, old.lane, old.document)
    assert new.sha256 != old.sha256 and new.second_leg == old.second_leg
    assert (after.state, after.error) == ("cancelled", f"regenerated as {new.id}; it was held: relire")
    with hub.store.read(SYSTEM) as snapshot:
        assert new.id.encode() in snapshot.payload(new.id)
    assert len(hubs.found(hub, "DocumentReference")) == 2, "what was sent can be read again"


def test_what_was_made_from_nothing_cannot_be_regenerated(frozen: Hub) -> None:
    outbox.outbox_hold(frozen.store, {"id": FIRST})
    with pytest.raises(RuleBroken, match="cannot be made again"):
        outbox.outbox_regenerate(frozen.store, {"id": FIRST}, context_of(frozen))
    with pytest.raises(NotFound):
        outbox.outbox_regenerate(frozen.store, {"id": "nobody"}, context_of(frozen))


# --- leases, long mails, stopping ------------------------------------------------------------------------------------


def running(hub: Hub, **settings: Any) -> tuple[Hub, Workers]:
    changed = dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, **settings))
    workers = Workers(changed, {}, senders=2)
    workers.start()
    return changed, workers


def test_a_conversation_longer_than_its_lease_keeps_its_lane(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = hub_of(open_url(sqlite_url))
    with Peer(script=("late:6.5",)) as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND)
        hub, workers = running(hub, lease_seconds=3.0, send_timeout_seconds=15.0)
        until(lambda: row(hub, SECOND).state == "sent", 40)
        workers.close()
        assert [frame.control_id for frame in peer.received] == [FIRST, SECOND]
    assert [one.outcome for one in attempts(hub)] == ["sent"]


def test_a_destination_may_take_longer_than_the_installation_and_the_lease_allow(hub: Hub) -> None:
    with Peer(script=("late:3.5",)) as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST)
        lanes.lane_policy(hub.store, {"lane": "dpi", "answer_seconds": "60"})
        hub, workers = running(hub, lease_seconds=3.0, send_timeout_seconds=0.3)
        until(lambda: row(hub).state == "sent", 40)
        workers.close()
        assert len(peer.received) == 1
    assert [one.outcome for one in attempts(hub)] == ["sent"]


def test_a_destination_may_have_less_time_than_the_installation_allows(hub: Hub) -> None:
    hub = replace(hub, settings=replace(hub.settings, send_timeout_seconds=600.0))
    with Peer(script=("silence",)) as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST)
        lanes.lane_policy(hub.store, {"lane": "dpi", "answer_seconds": "1", "on_silence": "hold"})
        assert deliver(hub)
    assert (row(hub).state, row(hub).error_class, row(hub).error) == (
        "held",
        "ambiguous",
        "timeout no answer came within 1 s",
    )


def test_stopping_beside_a_silent_partner_takes_seconds_and_leaves_the_delivery_in_doubt(
    open_url: Callable[..., Store], sqlite_url: str
) -> None:
    hub = hub_of(open_url(sqlite_url))
    with Peer(script=("silence",)) as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST)
        hub, workers = running(hub, send_timeout_seconds=600.0)
        peer.wait_for(1)
        began = time.monotonic()
        workers.close()
        assert time.monotonic() - began < 5
    assert not any(thread.is_alive() for thread in workers.threads)
    assert (row(hub).state, row(hub).error_class) == ("queued", "ambiguous")
    assert [one.outcome for one in attempts(hub)] == ["retry"]


def test_a_conversation_beyond_the_limit_is_cut(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = hub_of(open_url(sqlite_url))
    with Peer(script=("silence",)) as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST)
        more = {"lease_seconds": 1.0, "send_timeout_seconds": 600.0, "send_limit_seconds": 0.5}
        hub, workers = running(hub, **more)
        until(lambda: row(hub).state == "sent", 20)
        workers.close()
    assert [one.error_class for one in attempts(hub)] == ["ambiguous", ""]


@pytest.mark.parametrize("behind", [False, True], ids=["nothing waits", "all waits for a person"])
def test_idle_workers_wait_for_the_bell(open_url: Callable[..., Store], sqlite_url: str, behind: bool) -> None:
    store, looked = open_url(sqlite_url), [0]
    if behind:
        queue(hub_of(store), "mllp://127.0.0.1:9", SECOND, "B" * 20, lane="blocked")
        store.write(SYSTEM, lambda tx: tx.hold(SECOND, "look"))
    real = store.take

    def counted(*args: Any, **kwargs: Any) -> Any:
        looked[0] += 1
        return real(*args, **kwargs)

    store.take = counted  # type: ignore[method-assign]  # to be counted
    with Peer() as peer:
        hub, workers = running(hub_of(store))
        threading.Event().wait(1.5)
        assert looked[0] <= 2 + 3, "each once, and the one that looks out every second"
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST)
        peer.wait_for(1)
        workers.close()


@pytest.mark.parametrize(
    "given",
    [
        {"lease_seconds": "0.5"},
        {"send_timeout_seconds": "0"},
        {"send_timeout_seconds": "2000"},
        {"mail_answer_seconds": "1800"},
        {"send_limit_seconds": "20"},
    ],
)
def test_times_that_do_not_fit_are_refused_at_the_start(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="_seconds"):
        load(given, environ={})


# --- lanes a partner fetches -----------------------------------------------------------------------------------------


NORD = Caller("", "CH-NORD", frozenset({"partner"}), channel="http", client="CH-NORD")


def test_a_partner_fetches_and_acknowledges_in_order(hub: Hub) -> None:
    queue(hub, "pull:CH-NORD?application=DPI", FIRST, SECOND, lane="nord")
    assert deliver(hub) is False
    one = pull.fetch(hub.store, NORD)
    assert one is not None and (one.id, FIRST.encode() in one.payload) == (FIRST, True)
    assert pull.fetch(hub.store, NORD, "nord") is None, "one at a time"
    assert pull.acknowledge(hub.store, NORD, FIRST, one.token, "AA", "intégré") == "sent"
    assert pull.acknowledge(hub.store, NORD, FIRST, one.token, "AE") == "sent", "its first word counts"
    two = pull.fetch(hub.store, NORD, "nord")
    assert two is not None and two.id == SECOND
    assert pull.acknowledge(hub.store, NORD, SECOND, two.token, "AE", "patient inconnu") == "error"
    assert row(hub, SECOND).error == "AE patient inconnu"
    assert pull.fetch(hub.store, NORD) is None
    with hub.store.read(SYSTEM) as snapshot:
        told = [(one.event, one.display) for one in snapshot.audit_rows() if one.entity_id == FIRST]
    assert told == [("pull-ack", "CH-NORD"), ("pull-next", "CH-NORD")], "an answer that changed nothing is no event"


def test_what_was_fetched_and_not_acknowledged_is_handed_out_again_and_a_late_answer_counts(
    hub: Hub, clock: Shifted
) -> None:
    queue(hub, "pull:CH-NORD", FIRST, lane="nord")
    one = pull.fetch(hub.store, NORD)
    clock.advance(pull.LEASE_SECONDS + 1)
    again = pull.fetch(hub.store, NORD)
    assert one is not None and again is not None
    assert (again.id, again.payload, again.token > one.token) == (FIRST, one.payload, True)
    assert pull.acknowledge(hub.store, NORD, FIRST, one.token, "AA") == "sent"
    assert pull.acknowledge(hub.store, NORD, FIRST, again.token, "AR") == "sent"


def test_nobody_fetches_or_acknowledges_what_is_not_theirs(hub: Hub) -> None:
    queue(hub, "pull:CH-NORD", FIRST, lane="nord")
    queue(hub, "mllp://127.0.0.1:9", SECOND)
    with pytest.raises(Conflict, match="not handed out under token 7"):
        pull.acknowledge(hub.store, NORD, FIRST, 7, "AA")
    with pytest.raises(Invalid, match="AA, AE, AR"):
        pull.acknowledge(hub.store, NORD, FIRST, 1, "OK")
    for lane in ("dpi", "nowhere"):
        with pytest.raises(NotFound):
            pull.fetch(hub.store, NORD, lane)
    with pytest.raises(NotFound):
        pull.acknowledge(hub.store, NORD, SECOND, 1, "AA")
    other = replace(NORD, client="CH-SUD")
    with pytest.raises(NotFound):
        pull.fetch(hub.store, other, "nord")
    with pytest.raises(NotFound):
        pull.acknowledge(hub.store, other, FIRST, 1, "AA")
    for nobody in (replace(NORD, client=""), replace(NORD, who="PractitionerRole/garnier")):
        with pytest.raises(Forbidden):
            pull.fetch(hub.store, nobody, "nord")
    assert row(hub).state == "queued"


def test_what_was_made_for_another_partner_waits_for_a_person(hub: Hub) -> None:
    queue(hub, "pull:CH-NORD", FIRST, lane="nord")
    queue(hub, "pull:CH-SUD", SECOND, lane="nord")
    assert pull.fetch(hub.store, replace(NORD, client="CH-SUD")) is None
    assert (row(hub).state, "pull:CH-NORD" in row(hub).error) == ("held", True)
    outbox.outbox_release(hub.store, {"id": FIRST})
    found = pull.fetch(hub.store, replace(NORD, client="CH-SUD"))
    assert found is not None and found.id == FIRST, "a person said so"


# --- destinations and monitoring -------------------------------------------------------------------------------------


def test_a_destination_is_paused_throttled_and_explained(hub: Hub) -> None:
    queue(hub, "mllp://127.0.0.1:9", FIRST)
    store = hub.store
    assert lanes.lane_pause(store, {"lane": "dpi", "reason": "travaux"}) == {"lane": "dpi", "paused": True}
    assert outbox.outbox_show(store, {"id": FIRST})["why"] == "its lane is paused: travaux"
    lanes.lane_resume(store, {"lane": "dpi"})
    shown = lanes.lane_policy(store, {"lane": "dpi", "on_stuck": "skip", "on_silence": "hold", "per_second": "2"})
    assert (shown["on_stuck"], shown["on_silence"], shown["per_second"], shown["paused"]) == (
        "skip",
        "hold",
        2.0,
        False,
    )
    assert outbox.outbox_show(store, {"id": FIRST})["why"] == "it is next; its destination takes 2 a second"
    assert lanes.lane_policy(store, {"lane": "dpi", "on_silence": "default"})["on_silence"] == ""
    shown = lanes.lane_policy(store, {"lane": "dpi", "answer_seconds": "45.5", "keep_open_seconds": "0.25"})
    assert (shown["answer_seconds"], shown["keep_open_seconds"], shown["per_second"]) == (45.5, 0.25, 2.0)
    shown = lanes.lane_policy(store, {"lane": "dpi", "answer_seconds": "0"})
    assert (shown["answer_seconds"], shown["keep_open_seconds"]) == (0, 0.25), "what is not named stays"
    for bad in (
        {"on_stuck": "maybe"}, {"on_silence": "x"}, {"per_second": "quick"}, {"per_second": "-1"},
        {"answer_seconds": "0.5"}, {"answer_seconds": "601"}, {"answer_seconds": "nan"}, {"answer_seconds": "-1"},
        {"keep_open_seconds": "3601"}, {"keep_open_seconds": "inf"}, {"keep_open_seconds": "-0.1"},
    ):  # fmt: skip
        with pytest.raises(Invalid):
            lanes.lane_policy(store, {"lane": "dpi"} | bad)
    assert lanes.lane_list(store, {"lane": "dpi"}) == [shown], "what was refused changed nothing"
    with pytest.raises(Invalid, match="name the lane"):
        lanes.lane_pause(store, {})
    json.dumps(lanes.lane_list(store, {}))


@pytest.mark.parametrize(
    ("endpoint", "asked", "words"),
    [
        ("pull:CH-NORD", {"answer_seconds": "45"}, "answer_seconds of dpi: its partner fetches"),
        ("pull:CH-NORD", {"keep_open_seconds": "60", "per_second": "2"}, "keep_open_seconds of dpi: its partner fetch"),
        (f"mssante:{RECIPIENT}?from={SENDER}", {"keep_open_seconds": "60"}, "a mail has a session of its own"),
    ],
)
def test_what_means_nothing_to_a_destination_is_refused(
    hub: Hub, endpoint: str, asked: dict[str, str], words: str
) -> None:
    queue(hub, endpoint, FIRST)
    before = lanes.lane_list(hub.store, {"lane": "dpi"})
    with pytest.raises(Invalid, match=words) as refused:
        lanes.lane_policy(hub.store, {"lane": "dpi"} | asked)
    assert refused.value.issues[0].expression == next(iter(asked))
    assert lanes.lane_list(hub.store, {"lane": "dpi"}) == before, "nothing of it is kept"
    shown = lanes.lane_policy(hub.store, {"lane": "dpi", "per_second": "2"} | dict.fromkeys(asked, "0"))
    assert (shown["answer_seconds"], shown["keep_open_seconds"]) == (0, 0)


def test_the_policy_of_a_destination_decides_about_silence(hub: Hub) -> None:
    with Peer(script=("silence", "silence")) as peer:
        for lane, key in (("asks", FIRST), ("repeats", SECOND)):
            queue(hub, f"mllp://127.0.0.1:{peer.port}", key, lane=lane)
        hub.store.write(SYSTEM, lambda tx: tx.set_policy("asks", Policy(on_silence="hold")))
        assert deliver(hub) and deliver(hub)
    assert (row(hub).state, row(hub, SECOND).state) == ("held", "queued")


def test_business_keys_are_columns_and_narrow_the_lists(hub: Hub) -> None:
    keys = (("ins", INS), ("ipp", "1"), ("ipp", "2"), ("accession", "A7"))
    queue(hub, "mllp://127.0.0.1:9", FIRST, keys=keys)
    queue(hub, "mllp://127.0.0.1:9", SECOND)
    (found,) = outbox.outbox_list(hub.store, {"accession": "A7"})
    assert [found[name] for name in words.KEYS] == [INS, "1, 2", "", "A7", "", "", FIRST]
    assert [one["id"] for one in outbox.outbox_list(hub.store, {"msh-10": SECOND})] == [SECOND]
    assert outbox.outbox_list(hub.store, {"ipp": INS}) == [], "a kind is that kind"
    with pytest.raises(Invalid, match="one business key at a time"):
        outbox.outbox_list(hub.store, {"ipp": "1", "ins": INS})


def test_a_replay_is_a_new_delivery_that_the_first_one_shows(hub: Hub) -> None:
    queue(hub, "mllp://127.0.0.1:9", FIRST)
    assert sent(hub) == [FIRST]
    made = hubs.replayed(hub.store, {"id": FIRST})
    assert outbox.outbox_show(hub.store, {"id": FIRST})["replays"] == [made["id"]]
    assert sent(hub) == [FIRST], "the bytes are the same, MSH-10 too"
    assert row(hub, made["id"]).state == "sent"


def test_sending_again_concerns_one_destination_alone(hub: Hub) -> None:
    for lane, key in (("one", FIRST), ("other", SECOND)):
        queue(hub, "mllp://127.0.0.1:9", key, lane=lane, document="DiagnosticReport/x", patient="Patient/x")
    assert sorted(sent(hub)) == [FIRST, SECOND]
    before = replace(row(hub, SECOND), endpoint=""), lanes.lane_list(hub.store, {"lane": "other"})
    made = hubs.replayed(hub.store, {"id": FIRST})
    assert (row(hub, made["id"]).lane, sent(hub)) == ("one", [FIRST])
    assert (replace(row(hub, SECOND), endpoint=""), lanes.lane_list(hub.store, {"lane": "other"})) == before


def test_every_metric_has_a_name_that_is_documented(hub: Hub, clock: Shifted) -> None:
    from fhir_server.store.inbox import NewMessage

    queue(hub, "mllp://127.0.0.1:9", FIRST)
    queue(hub, f"mssante:{RECIPIENT}?from={SENDER}", SECOND, lane='a "b"\\c', protocol="mail", second_leg="dsn")
    claim = hub.store.claim("w", 1)
    assert claim is not None and claim.delivery.id == FIRST
    deliver(hub)
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE delivery SET state = 'sent' WHERE id = ?", (SECOND,)))
    hub.store.receive(NewMessage("mllp", b"MSH|"))
    clock.advance(100)
    found = watch.metrics(hub.store)
    assert {one.name for one in found} == set(watch.NAMES), "each is seen here, and none that is not promised"
    manual = (Path(__file__).parents[3] / "docs" / "delivery.md").read_text(encoding="utf-8")
    section = manual.partition("## Metrics and alerts")[2]
    assert set(re.findall(r"^\| `(passerelle_\w+)`", section, re.M)) == set(watch.NAMES)
    told = watch.text(found)
    assert "passerelle_inbox_received_total 1\n" in told
    assert 'passerelle_outbox_waiting{lane="a \\"b\\"\\\\c"} 0\n' in told
    assert 'passerelle_inbox_unsettled{channel="mllp",state="received"} 1\n' in told
    oldest = next(one for one in found if one.name.endswith("oldest_seconds") and one.labels == (("lane", "dpi"),))
    assert 100 <= oldest.value < 130
    assert {one["name"] for one in table.metrics(hub.store, {"name": "unconfirmed"})} == {
        "passerelle_outbox_unconfirmed",
        "passerelle_outbox_unconfirmed_oldest_seconds",
    }


def test_alerts_are_data_with_their_limits(hub: Hub, clock: Shifted) -> None:
    assert watch.alerts(hub.store, {}) == []
    queue(hub, "mllp://127.0.0.1:9", FIRST, SECOND, on_stuck="skip")
    outbox.outbox_hold(hub.store, {"id": FIRST})
    for _ in range(12):
        deliver(hub)
    clock.advance(1000)
    told = {one["alert"]: one for one in watch.alerts(hub.store, {})}
    assert set(told) == {"stuck", "oldest", "failed"}
    assert (told["failed"]["value"], told["failed"]["limit"], told["stuck"]["value"]) == (1.0, 0.5, 1)
    assert "waits for 10" in told["oldest"]["text"] and told["oldest"]["subject"] == "dpi"
    calm = {"oldest_seconds": "5000", "failed_ratio": "1"}
    assert [one["alert"] for one in watch.alerts(hub.store, calm)] == ["stuck"]
    with pytest.raises(Invalid):
        watch.alerts(hub.store, {"oldest_seconds": "long"})


def test_every_alert_is_raised_by_what_it_names_and_by_nothing_less(hub: Hub, clock: Shifted) -> None:
    from fhir_server.store.inbox import NewMessage

    queue(hub, "mllp://127.0.0.1:9", FIRST, lane="refuses")
    queue(hub, f"mssante:{RECIPIENT}?from={SENDER}", SECOND, lane="mail", protocol="mail", second_leg="dsn")
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE delivery SET state = 'sent' WHERE id = ?", (SECOND,)))
    for _ in range(9):
        assert deliver(hub)
    lanes.lane_pause(hub.store, {"lane": "refuses", "reason": "travaux"})
    message = hub.store.receive(NewMessage("mllp", b"MSH|"))
    clock.advance(900)
    told = {one["alert"]: one for one in watch.alerts(hub.store, {"oldest_seconds": "10000"})}
    assert told == {}, "nine failures are too few, a message that waits is no fault, and two days are not over"
    (paused,) = (one for one in watch.alerts(hub.store, {"oldest_seconds": "800"}))
    assert (paused["alert"], paused["subject"]) == ("oldest", "refuses") and "paused: travaux" in paused["text"]
    lanes.lane_resume(hub.store, {"lane": "refuses"})
    assert deliver(hub)
    hub.store.reject(message.id, "no segment PID", "", None)
    clock.advance(2 * 86_400)
    told = {one["alert"]: one for one in watch.alerts(hub.store, {"oldest_seconds": "1e9"})}
    assert set(told) == {"failed", "unconfirmed", "inbox"}
    assert (told["failed"]["subject"], told["failed"]["text"]) == (
        "refuses", "10 of the last 10 attempts to refuses failed",
    )  # fmt: skip
    assert (told["unconfirmed"]["subject"], told["unconfirmed"]["limit"]) == ("dsn", 172_800)
    assert (told["inbox"]["subject"], told["inbox"]["value"]) == ("mllp error", 1)
