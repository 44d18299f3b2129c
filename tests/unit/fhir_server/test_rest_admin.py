"""The operator's JSON API: called by name with a JSON object, and refused in JSON."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import hubs
import pytest
from hubs import PARTNER, SYSTEM, hub_on

from dicom_node.scp import AssociationInfo
from fhir_server import app, cli, upkeep
from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.delivery.knocks import Knocks, admits, host_of
from fhir_server.demo import story
from fhir_server.errors import Conflict, PasserelleError
from fhir_server.rest import admin
from fhir_server.rest.http import Request
from fhir_server.security.identity import operator
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url))


def call(
    hub: Hub, name: str, body: bytes = b"{}", method: str = "POST", kind: str = "application/json"
) -> tuple[int, Any]:
    headers = {"content-type": kind}
    answer = admin.answer(hub, Request(method, f"/{name}", (), headers, body, PARTNER, "http://x/admin", {}))
    assert dict(answer.headers)["content-type"].startswith("application/json")
    return answer.status, json.loads(answer.body)


def test_an_operation_is_called_by_its_name(hub: Hub) -> None:
    assert call(hub, "inbox-list") == (200, [])
    assert call(hub, "outbox-list", b"") == (200, [])
    assert call(
        hub, "studies-list", '{"state":"à rapprocher","limit":5}'.encode(), kind="application/json; charset=utf-8"
    ) == (200, [])


@pytest.mark.parametrize(
    ("name", "body", "method", "kind", "status", "word"),
    [
        ("nothing", b"{}", "POST", "application/json", 404, "inbox-list"),
        ("", b"{}", "POST", "application/json", 404, "known:"),
        ("inbox-show", b"{}", "POST", "application/json", 400, "name the id"),
        ("inbox-show", b'{"id":"x"}', "POST", "application/json", 404, "passerelle inbox list"),
        ("inbox-list", b"{}", "GET", "application/json", 405, "POST"),
        ("inbox-list", b"{}", "POST", "text/plain", 415, "application/json"),
        ("inbox-list", b"{}", "POST", "", 415, "application/json"),
        ("inbox-list", b"{", "POST", "application/json", 400, "no JSON"),
        ("inbox-list", b"[]", "POST", "application/json", 400, "object"),
        ("inbox-list", b"\xff", "POST", "application/json", 400, "no JSON"),
        ("inbox-list", b"[" * 100_000, "POST", "application/json", 400, "no JSON"),
        ("outbox-hold", b'{"id":"x\\u0000y"}', "POST", "application/json", 404, "x"),
        ("outbox-hold", b'{"id":"\\ud800"}', "POST", "application/json", 404, ""),
        ("trace", b'{"id":["a"]}', "POST", "application/json", 404, "ServiceRequest"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_what_would(
    hub: Hub, name: str, body: bytes, method: str, kind: str, status: int, word: str
) -> None:
    told = call(hub, name, body, method, kind)
    assert told[0] == status, told
    assert word in told[1]["error"]


# --- who did it ------------------------------------------------------------------------------------------------------


def rows_of(hub: Hub, event: str) -> list[AuditRow]:
    with hub.store.read(SYSTEM) as snapshot:
        return [row for row in snapshot.audit_rows() if row.event == event]


def test_each_operation_runs_as_the_person_and_is_audited_even_when_it_fails(hub: Hub) -> None:
    marie = dataclasses.replace(operator("marie"), peer="192.0.2.8")
    admin.run(hub, marie, "inbox-list", {"state": "error"})
    (read,) = rows_of(hub, "inbox-list")
    assert (read.action, read.display, read.role, read.channel, read.peer, read.outcome) == (
        "R", "marie (ligne de commande)", "admin", "cli", "192.0.2.8", "0",
    )  # fmt: skip
    assert "state=error" in read.text
    with pytest.raises(PasserelleError):
        admin.run(hub, marie, "outbox-cancel", {"id": "NOPE", "reason": "test"})
    (failed,) = rows_of(hub, "outbox-cancel")
    assert (failed.outcome, failed.action) == ("8", "E")
    assert (failed.entity_type, failed.entity_id) == ("Communication", "NOPE") and "NOPE" in failed.text


def test_a_change_and_its_audit_row_are_there_together_or_not_at_all(hub: Hub) -> None:
    key = hubs.delivered(hub)
    admin.run(hub, operator("marie"), "outbox-hold", {"id": key, "reason": "test"})
    (held,) = rows_of(hub, "outbox-hold")
    assert (held.outcome, held.display, held.entity_id) == ("0", "marie (ligne de commande)", key)

    def torn(inner: Hub, caller: Caller, args: Mapping[str, str]) -> Any:
        def work(tx: Tx) -> None:
            tx.cancel(key, "gone")
            raise RuntimeError("the power went")

        inner.store.write(SYSTEM, work)

    with pytest.raises(RuntimeError):
        admin.run(hub, operator("marie"), "torn", {}, {"torn": torn})
    (told,) = rows_of(hub, "torn")
    assert told.outcome == "8" and "RuntimeError" in told.text, "what was rolled back is not told as done"
    with hub.store.read(SYSTEM) as snapshot:
        assert snapshot.waiting(key).delivery.state == "held"


def test_an_operation_that_changes_nothing_is_audited_once(hub: Hub) -> None:
    admin.run(hub, operator("marie"), "alerts", {})
    assert [row.outcome for row in rows_of(hub, "alerts")] == ["0"]


def test_what_an_operation_writes_is_written_in_the_persons_name(hub: Hub) -> None:
    seen: list[str] = []
    marie = operator("marie")

    def strange(inner: Hub, caller: Caller, args: Mapping[str, str]) -> Any:
        inner.store.write(SYSTEM, lambda tx: seen.append(tx.view.caller.display))
        with inner.store.read(SYSTEM) as snapshot:
            seen.append(snapshot.view.caller.display)
        return {}

    admin.run(hub, marie, "strange", {}, {"strange": strange})
    assert seen == [marie.display, marie.display]


def test_unknown_callers_are_listed_and_forgotten(hub: Hub) -> None:
    knocks = Knocks(hub)
    known, unknown = story.admission("K1"), story.admission("K2").replace(b"|GAM|CH-DEMO|", b"|NEU|AILLEURS|")
    for raw in (known, unknown, unknown, b"junk"):
        knocks.message(raw, "192.0.2.1:4000")
    knocks.association(AssociationInfo("ECHO1", "PASSERELLE", "192.0.2.2", 1))
    knocks.association(
        AssociationInfo("SCANNER", "PASSERELLE", "192.0.2.2", 1, ended="rejected", reason="not in the table")
    )
    listed = call(hub, "partners-list")[1]
    assert {(row["channel"], row["name"], row["outcome"]) for row in listed} == {
        ("mllp", "NEU|AILLEURS", "accepted"), ("mllp", "|", "accepted"), ("dicom", "SCANNER", "refused"),
    }  # fmt: skip
    assert call(hub, "partners-forget", b'{"id": "SCANNER"}')[0] == 200
    assert call(hub, "partners-forget", b'{"id": "SCANNER"}')[0] == 404


def test_a_flood_of_names_stays_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fhir_server.delivery.knocks.HELD", 5)
    knocks = Knocks(hub)
    for number in range(20):
        knocks.association(AssociationInfo(f"AE{number}", "PASSERELLE", "192.0.2.2", 1))
    assert len(call(hub, "partners-list")[1]) == 6


@pytest.mark.parametrize(
    ("host", "told"), [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("10.2.0.1", False), ("", False)]
)
def test_a_port_may_be_for_some_networks_only(host: str, told: bool) -> None:
    assert admits("10.1.0.0/16, fd00::/8", host) is told and admits("", host)
    assert (host_of("[fd00::1]:4000 CN=x"), host_of("10.0.0.1:1")) == ("fd00::1", "10.0.0.1")


def test_who_is_not_admitted_gets_an_answer_and_nothing_is_stored(hub: Hub) -> None:
    answer = Knocks(hub).turned_away(story.admission("K3"), "192.0.2.1:4000")
    assert b"MSA|AE|K3" in answer
    assert call(hub, "inbox-list")[1] == [] and call(hub, "partners-list")[1][0]["outcome"] == "refused"
    assert b"MSA|AE" in Knocks(hub).turned_away(b"junk", "192.0.2.1:4000")


# --- long operations -------------------------------------------------------------------------------------------------


def done(hub: Hub, job: Mapping[str, Any]) -> Any:
    deadline = time.monotonic() + 30
    while job["state"] == "running":
        assert time.monotonic() < deadline
        job = call(hub, "job-show", json.dumps({"id": job["id"]}).encode())[1]
    return job


def test_any_process_tells_of_a_job_and_none_begins_another(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    going, ending = threading.Event(), threading.Event()

    def long(_: Hub, __: upkeep.Args, tell: upkeep.Tell) -> dict[str, Any]:
        tell("half of it")
        going.set()
        assert ending.wait(20)
        return {"ok": True}

    monkeypatch.setitem(upkeep.JOBS, "check", long)
    one, other = upkeep.Jobs(), upkeep.Jobs()
    job = one.start(hub, "check", {})
    assert going.wait(20)
    seen = other.get(hub, job.id)
    assert seen is not None and (seen.state, seen.told) == ("running", "half of it")
    with pytest.raises(Conflict, match=job.id):
        other.start(hub, "check", {})
    ending.set()
    deadline = time.monotonic() + 20
    while (seen := other.get(hub, job.id)) is None or seen.state == "running":
        assert time.monotonic() < deadline
    assert (seen.state, seen.result) == ("done", {"ok": True})


def test_a_job_whose_process_died_is_over(hub: Hub) -> None:
    folder = hub.store.blobs.root.parent / "jobs"
    folder.mkdir()
    (folder / "0123456789ab.json").write_text(json.dumps(dataclasses.asdict(upkeep.Job("0123456789ab", "check"))))
    status, told = call(hub, "job-show", b'{"id": "0123456789ab"}')
    assert status == 200 and told["state"] == "failed" and "ended" in told["told"]
    assert done(hub, call(hub, "check")[1])["state"] == "done", "it holds up no other"
    assert call(hub, "job-show", b'{"id": "../../x"}')[0] == 404


def test_a_long_operation_is_a_job_that_tells_how_far_it_is(hub: Hub) -> None:
    job = done(hub, call(hub, "check")[1])
    assert job["state"] == "done" and job["result"]["ok"] is True and job["result"]["resources"] > 0
    assert call(hub, "job-show", b'{"id": "x"}')[0] == 404
    wrong = done(hub, call(hub, "retention", b'{"keep_days": "0"}')[1])
    assert wrong["state"] == "failed" and "keep_days" in wrong["told"]
    assert done(hub, call(hub, "backup", b'{"name": "../x"}')[1])["state"] == "failed"


def test_a_check_repairs_index_rows_that_disagree(hub: Hub) -> None:
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run("DELETE FROM idx_token"))
    broken = done(hub, call(hub, "check")[1])["result"]
    assert broken["ok"] is False and broken["counts"]["index"] > 0
    mended = done(hub, call(hub, "check", b'{"repair": "true"}')[1])["result"]
    assert mended["ok"] is True and mended["repaired"]["changed"] > 0


def test_every_operation_has_a_command() -> None:
    offered = {command.operation or command.path.replace(" ", "-") for command in cli.COMMANDS}
    inner = {"job-show", "note", "sources-show"}  # the last one: `inbox show --sources`
    assert {name for name in admin.names(app._WIRES) if name not in inner} <= offered


def test_a_search_is_explained_and_that_is_audited(hub: Hub) -> None:
    status, told = call(hub, "search-explain", b'{"query": "Patient?family=du&birthdate=lt1960"}')
    assert status == 200 and told["words"][0] == "of Patient" and "idx_string" in told["sql"]
    assert told["plan"] and told["rows"] >= 0 and told["milliseconds"] >= 0 and told["database"] == "sqlite"
    (row,) = rows_of(hub, "search-explain")
    assert row.action == "R" and "family=du" in row.text
    for query, word in ((b"Patient?nonsense=1", "nonsense"), (b"Nobody?x=1", "no resource type"), (b"", "name a")):
        status, told = call(hub, "search-explain", b'{"query": "%s"}' % query)
        assert status == 400 and word in told["error"]
