"""A partner without an inbound port fetches its messages at the real HTTP edge and acknowledges them."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from delivery_hub import FIRST, SECOND, queue, row, until
from servers import quiet

from fhir_server.app import Server
from fhir_server.context import SYSTEM
from fhir_server.errors import Fault

Answer = tuple[int, dict[str, str], bytes]
Call = Callable[..., Answer]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(quiet(tmp_path / "data"))
    made.start()
    yield made
    made.close()


@pytest.fixture
def call(server: Server) -> Call:
    def ask(method: str, path: str, body: Any = None, who: str = "pull:CH-NORD", **headers: str) -> Answer:
        told = {"authorization": f"Bearer {who}"} if who else {}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None:
            told["content-type"] = "application/json"
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        line = http.client.HTTPConnection("127.0.0.1", server.bound.http, timeout=20)
        try:
            line.request(method, path, data, told)
            answer = line.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            line.close()

    return ask


def words(answer: Answer) -> str:
    told = json.loads(answer[2])
    return str(told["error"] if "error" in told else told["issue"][0]["diagnostics"])


def acknowledged(call: Call, key: str, token: int, code: str = "AA", **more: Any) -> Answer:
    return call("POST", f"/pull/{key}/ack", {"token": token, "code": code} | more)


def test_a_partner_fetches_the_bytes_and_acknowledges_each(server: Server, call: Call) -> None:
    queue(
        server.hub, "pull:CH-NORD?application=DPI", FIRST, SECOND, lane="Endpoint/nord", media_type="x-application/er7"
    )
    status, headers, body = call("POST", "/pull/next")
    assert (status, headers["content-type"], headers["x-passerelle-id"]) == (200, "x-application/er7", FIRST)
    assert (headers["x-passerelle-lane"], headers["cache-control"]) == ("Endpoint/nord", "no-store")
    assert headers["x-passerelle-sha256"] == hashlib.sha256(body).hexdigest() == row(server.hub).sha256
    assert call("POST", "/pull/next")[0] == 204, "one at a time"
    done = acknowledged(call, FIRST, int(headers["x-passerelle-token"]), text="intégré sous le n° 12")
    assert (done[0], json.loads(done[2])) == (200, {"id": FIRST, "state": "sent"})
    status, _, body = call("POST", "/pull/next", {"lane": "Endpoint/nord"}, accept="application/json")
    told = json.loads(body)
    assert (status, told["id"], told["lane"], told["media_type"]) == (200, SECOND, "Endpoint/nord", "x-application/er7")
    assert SECOND.encode() in base64.b64decode(told["content"])
    refused = acknowledged(call, SECOND, told["token"], "AE", text="patient inconnu")
    assert json.loads(refused[2])["state"] == "error" and row(server.hub, SECOND).error == "AE patient inconnu"
    assert call("POST", "/pull/next")[0] == 204
    assert json.loads(call("GET", "/pull")[2]) == [{"lane": "Endpoint/nord", "waiting": 0, "stuck": 1, "paused": False}]
    with server.hub.store.read(SYSTEM) as snapshot:
        audited = [(one.event, one.display, one.peer) for one in snapshot.audit_rows() if one.entity_id == FIRST]
    assert audited == [("pull-ack", "CH-NORD", "127.0.0.1"), ("pull-next", "CH-NORD", "127.0.0.1")]


def test_what_is_not_acknowledged_in_time_comes_again_and_the_first_answer_counts(server: Server, call: Call) -> None:
    queue(server.hub, "pull:CH-NORD", FIRST, lane="Endpoint/nord")
    one = call("POST", "/pull/next", {"lease_seconds": 1})
    answers: list[Answer] = []

    def again() -> bool:
        answers.append(call("POST", "/pull/next"))
        return answers[-1][0] == 200

    until(again, told=lambda: answers[-1:])
    assert answers[0][0] == 204, "not before the lease ended"
    assert answers[-1][2] == one[2], "the same bytes"
    first, second = (int(found[1]["x-passerelle-token"]) for found in (one, answers[-1]))
    assert second > first
    late = acknowledged(call, FIRST, first)
    assert (late[0], json.loads(late[2])["state"]) == (200, "sent"), "late, and still the partner's word"
    for token in (first, second):
        for code in ("AA", "AR", "AE"):
            told = acknowledged(call, FIRST, token, code)
            assert (told[0], json.loads(told[2])["state"]) == (200, "sent"), "what is acknowledged stays so"


def test_bytes_other_than_the_frozen_ones_are_handed_to_nobody(server: Server, call: Call) -> None:
    queue(server.hub, "pull:CH-NORD", FIRST, lane="Endpoint/nord")
    queue(server.hub, "pull:CH-NORD", SECOND, lane="Endpoint/sud")
    place = Path(server.settings.data_dir) / "passerelle.db"
    with closing(sqlite3.connect(place, isolation_level=None, timeout=20)) as db:
        db.execute("UPDATE delivery SET payload = CAST(payload || x'0d' AS BLOB) WHERE id = ?", (FIRST,))
    status, headers, _ = call("POST", "/pull/next")
    assert (status, headers["x-passerelle-id"]) == (200, SECOND), "the other lane goes on"
    held = row(server.hub)
    assert held.state == "held" and "not those that were frozen" in held.error
    assert call("POST", "/pull/next", {"lane": "Endpoint/nord"})[0] == 204
    with closing(sqlite3.connect(place, isolation_level=None, timeout=20)) as db:
        db.execute("UPDATE delivery SET state = 'sent' WHERE id = ?", (FIRST,))
    with pytest.raises(Fault, match="restore a backup"):
        server.hub.store.write(SYSTEM, lambda tx: tx.replay(FIRST))


def test_an_answer_not_now_puts_it_back(server: Server, call: Call) -> None:
    queue(server.hub, "pull:CH-NORD", FIRST, SECOND, lane="Endpoint/nord")
    one = call("POST", "/pull/next")
    told = acknowledged(call, FIRST, int(one[1]["x-passerelle-token"]), "AR", text="maintenance")
    assert json.loads(told[2])["state"] == "queued"
    assert call("POST", "/pull/next")[0] == 204, "nothing overtakes it, and it rests for a while"
    assert row(server.hub).error == "AR maintenance"


def test_another_partner_gets_nothing_and_learns_nothing(server: Server, call: Call) -> None:
    queue(server.hub, "pull:CH-NORD", FIRST, lane="Endpoint/nord")
    queue(server.hub, "pull:CH-SUD", SECOND, lane="Endpoint/sud")
    token = int(call("POST", "/pull/next")[1]["x-passerelle-token"])
    south = "pull:CH-SUD"
    for found in (
        call("POST", "/pull/next", {"lane": "Endpoint/nord"}, south),
        call("POST", "/pull/next", {"lane": "Endpoint/nowhere"}, south),
    ):
        assert found[0] == 404 and "is not yours" in words(found)
    for key in (FIRST, "nowhere"):
        found = call("POST", f"/pull/{key}/ack", {"token": token, "code": "AA"}, south)
        assert found[0] == 404 and "was handed to you" in words(found)
    assert row(server.hub).state == "sending"
    assert [one["lane"] for one in json.loads(call("GET", "/pull", who=south)[2])] == ["Endpoint/sud"]
    assert "nothing was ever addressed" in words(call("GET", "/pull", who="pull:CH-OUEST"))


@pytest.mark.parametrize(
    ("method", "path", "body", "more", "status"),
    [
        ("POST", "/pull/next", None, {"who": ""}, 403),
        ("POST", "/pull/next", None, {"who": "pull:"}, 403),
        ("POST", "/pull/next", None, {"who": "demo:nobody"}, 401),
        ("POST", "/pull/next", None, {"origin": "https://evil.example"}, 403),
        ("GET", "/pull/next", None, {}, 405),
        ("POST", "/pull", {}, {}, 405),
        ("POST", "/pull/a/b/c", {}, {}, 404),
        ("POST", "/pull/next", b"[]", {}, 400),
        ("POST", "/pull/next", b"{", {}, 400),
        ("POST", "/pull/next", b"[" * 100_000, {}, 400),
        ("POST", "/pull/next", b"a=b", {"content_type": "text/plain"}, 415),
        ("POST", "/pull/next", {"lease_seconds": "long"}, {}, 400),
        ("POST", "/pull/next", {"lease_seconds": 0}, {}, 400),
        ("POST", "/pull/next", {"lease_seconds": 1e9}, {}, 400),
        ("POST", "/pull/next", b'{"lease_seconds": NaN}', {}, 400),
        ("POST", f"/pull/{FIRST}/ack", {"token": 1, "code": "OK"}, {}, 400),
        ("POST", f"/pull/{FIRST}/ack", {"code": "AA"}, {}, 400),
        ("POST", f"/pull/{FIRST}/ack", {"token": "1", "code": "AA"}, {}, 400),
        ("POST", f"/pull/{FIRST}/ack", {"token": 10**30, "code": "AA"}, {}, 400),
        ("POST", f"/pull/{FIRST}/ack", {"token": 7, "code": "AA"}, {}, 409),
        ("POST", f"/pull/{SECOND}/ack", {"token": 1, "code": "AA", "text": "\x00\ud800"}, {}, 404),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(
    server: Server, call: Call, method: str, path: str, body: Any, more: dict[str, str], status: int
) -> None:
    queue(server.hub, "pull:CH-NORD", FIRST, lane="Endpoint/nord")
    found = call(method, path, body, **more)
    assert found[0] == status and words(found), found
    assert row(server.hub).state == "queued"
