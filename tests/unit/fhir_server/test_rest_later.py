"""`Prefer: respond-async`: a status address at once, the answer when it is ready, bounds that are told."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hubs import ADMIN, PARTNER, hub_on
from rest_calls import BASE, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.errors import PasserelleError
from fhir_server.rest import later
from fhir_server.rest.asgi import Mounts
from fhir_server.rest.hands import Hands
from fhir_server.rest.http import Request, Response, error_response
from fhir_server.rest.room import LEAST, MIB, MOST, SMALL, Room
from fhir_server.store.engine import Store

BUNDLE: dict[str, Any] = {
    "resourceType": "Bundle",
    "type": "transaction",
    "entry": [{"resource": PATIENT, "request": {"method": "PUT", "url": "Patient/p"}}],
}


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def started(hub: Hub, method: str, url: str, body: Any = None) -> str:
    """The status address, without the base."""
    answer = ask(hub, method, url, body, prefer="respond-async, return=representation")
    assert answer.status == 202 and answer.body == b""
    return answer.headers["content-location"].removeprefix(f"{BASE}/")


def ended(hub: Hub, address: str) -> Answer:
    deadline = time.monotonic() + 20
    while (answer := ask(hub, "GET", address)).status == 202:
        assert answer.headers["retry-after"] and time.monotonic() < deadline
        threading.Event().wait(0.01)
    return answer


def test_a_search_is_answered_later_as_it_would_be_at_once(hub: Hub) -> None:
    stored(hub, PATIENT)
    manifest = ended(hub, started(hub, "GET", "Patient?_id=p")).json()
    assert manifest["request"] == f"{BASE}/Patient" and manifest["error"] == []
    (output,) = manifest["output"]
    assert output["type"] == "Bundle"
    lines = ask(hub, "GET", output["url"].removeprefix(f"{BASE}/"))
    assert lines.headers["content-type"] == later.NDJSON
    (line,) = lines.body.splitlines()
    at_once = ask(hub, "GET", "Patient?_id=p").json()
    assert {**json.loads(line), "timestamp": ""} == {**at_once, "timestamp": ""}


def test_a_transaction_is_done_later_once(hub: Hub) -> None:
    manifest = ended(hub, started(hub, "POST", "", BUNDLE)).json()
    line = ask(hub, "GET", manifest["output"][0]["url"].removeprefix(f"{BASE}/")).body
    (entry,) = json.loads(line)["entry"]
    assert entry["response"]["status"].startswith("201") and entry["resource"]["id"] == "p"
    assert ask(hub, "GET", "Patient/p").headers["etag"] == 'W/"1"'


def test_what_fails_says_so_at_the_status_address(hub: Hub) -> None:
    answer = ended(hub, started(hub, "GET", "Patient?nonsense=1"))
    assert answer.status == 400 and "nonsense" in answer.issue["diagnostics"]


def test_other_interactions_are_answered_at_once(hub: Hub) -> None:
    stored(hub, PATIENT)
    assert ask(hub, "GET", "Patient/p", prefer="respond-async").status == 200
    assert ask(hub, "PUT", "Patient/p", PATIENT, prefer="respond-async").status == 200


def test_a_result_belongs_to_who_asked(hub: Hub) -> None:
    address = started(hub, "GET", "Patient")
    ended(hub, address)
    for path in (address, f"{address}/1"):
        assert ask(hub, "GET", path, caller=ADMIN).status == 404
    assert ask(hub, "DELETE", address, caller=ADMIN).status == 404
    assert ask(hub, "GET", address).status == 200


@pytest.mark.parametrize("path", ["_async/0123456789abcdef", "_async/x/1"])
def test_what_is_not_known_is_told_with_what_may_have_become_of_it(hub: Hub, path: str) -> None:
    answer = ask(hub, "GET", path)
    assert answer.status == 404 and "restart" in answer.issue["diagnostics"]


def test_a_request_can_be_given_up(hub: Hub) -> None:
    address = started(hub, "GET", "Patient")
    ended(hub, address)
    assert ask(hub, "DELETE", address).status == 202
    assert ask(hub, "GET", address).status == 404
    assert ask(hub, "DELETE", address).status == 404


def test_only_so_many_are_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "MOST_JOBS", 3)
    addresses = [started(hub, "GET", "Patient") for _ in range(3)]
    refused = ask(hub, "GET", "Patient", prefer="respond-async")
    assert refused.status == 429 and refused.headers["retry-after"]
    for address in addresses:
        ended(hub, address)
    assert ask(hub, "DELETE", addresses[0]).status == 202
    started(hub, "GET", "Patient")


def test_the_oldest_results_go_when_all_are_too_large_and_all_go_in_time(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(hub, PATIENT)
    first, second = started(hub, "GET", "Patient"), ""
    size = len(ask(hub, "GET", f"{first}/1").body) if ended(hub, first) else 0
    monkeypatch.setattr(later, "MOST_BYTES", int(size * 1.5))
    second = started(hub, "GET", "Patient")
    ended(hub, second)
    assert [ask(hub, "GET", one).status for one in (first, second)] == [404, 200]
    monkeypatch.setattr(later, "KEPT_SECONDS", -1.0)
    assert ask(hub, "GET", second).status == 404


def test_what_a_process_that_died_worked_on_is_said_to_be_lost(hub: Hub) -> None:
    key = "0" * 32
    folder = hub.store.blobs.root.parent / "later"
    later._jobs(hub).kept.begin(key, {"owner": later._owner(PARTNER), "asked": f"{BASE}/Patient", "began": "now"})
    assert ask(hub, "GET", f"_async/{key}").status == 202
    long_ago = time.time() - later.SILENT_SECONDS - 1
    os.utime(folder / f"{key}.asked", (long_ago, long_ago))
    assert ask(hub, "GET", f"_async/{key}").status == 404
    assert list(folder.iterdir()) == []


def test_results_are_files_for_the_server_alone_and_any_process_answers_for_them(hub: Hub) -> None:
    stored(hub, PATIENT)
    address = started(hub, "GET", "Patient?_id=p")
    ended(hub, address)
    folder = hub.store.blobs.root.parent / "later"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    later._OF_STORE.clear()  # another process, which never heard of it
    assert ask(hub, "GET", address).status == 200 and b"Martin" in ask(hub, "GET", f"{address}/1").body


def test_a_request_that_works_for_long_shows_that_it_lives(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(later, "SILENT_SECONDS", 0.4)
    gate = threading.Event()

    def slow(_: Request) -> Response:
        gate.wait(20)
        return Response(200)

    request = Request("GET", "/Patient", (), {"prefer": "respond-async"}, b"", PARTNER, BASE, {})
    address = dict(later.start(hub, request, slow).headers)["content-location"].removeprefix(f"{BASE}/")
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert ask(hub, "GET", address).status == 202
        threading.Event().wait(0.05)
    gate.set()
    assert ended(hub, address).status == 200


async def sent(mounts: Mounts, body: bytes, **more: str) -> tuple[int, str]:
    """Status and Content-Location (or Retry-After) of a POST to `fhir`, as the HTTP server would hand it over."""
    told: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        told.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in more.items()]
    scope = {"type": "http", "method": "POST", "path": "/fhir", "query_string": b"", "headers": headers}
    await mounts(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in told[0]["headers"]}
    return int(told[0]["status"]), found.get("content-location") or found.get("retry-after", "")


class Gated:
    """A part of the interface that answers at once, or later when its gate opens."""

    def __init__(self) -> None:
        self.begun, self.gate = threading.Semaphore(0), threading.Event()

    def __call__(self, hub: Hub, request: Request) -> Response:
        return later.start(hub, request, self._slow) if "respond-async" in request.prefers() else Response(200)

    def _slow(self, _: Request) -> Response:
        self.begun.release()
        assert self.gate.wait(20)
        return Response(200, (), b"x")

    def mounts(self, hub: Hub) -> Mounts:
        mounts = Mounts(lambda: hub, {"fhir": lambda h, r: routed(self, h, r)}, lambda *_: PARTNER)
        mounts.room = Room(patience=0.05)
        return mounts


def routed(handler: Gated, hub: Hub, request: Request) -> Response:
    """What refuses becomes an answer, as the route table makes it one."""
    try:
        return handler(hub, request)
    except PasserelleError as error:
        return error_response(request, error)


def drained(hub: Hub) -> None:
    """Wait until nothing is in memory any more."""
    deadline = time.monotonic() + 20
    while later._jobs(hub).mine:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_large_requests_that_wait_shut_out_no_large_one_that_is_answered_at_once(hub: Hub) -> None:
    handler, large = Gated(), b" " * SMALL

    async def play() -> None:
        mounts = handler.mounts(hub)
        taken = [await sent(mounts, large, prefer="respond-async") for _ in range(later.MOST_WEIGHT // LEAST)]
        assert {status for status, _ in taken} == {202}
        assert await sent(mounts, large, prefer="respond-async") == (429, "5")
        assert (await sent(mounts, b"{}", prefer="respond-async"))[0] == 202
        assert (await sent(mounts, b" " * MOST))[0] == 200  # all the room there is
        handler.gate.set()
        mounts.hands.close()

    asyncio.run(play())
    drained(hub)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
def test_a_large_request_given_up_leaves_at_once_unless_it_has_begun(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    monkeypatch.setattr(later, "BEAT_SECONDS", 0.02)
    handler, large = Gated(), b" " * SMALL

    def given_up(address: str, left: int) -> None:
        key = address.rpartition("/")[2]
        if elsewhere:
            later._jobs(hub).kept.drop(key)
        else:
            assert ask(hub, "DELETE", f"_async/{key}").status == 202
        deadline = time.monotonic() + (20 if elsewhere else 0)
        while len(later._jobs(hub).mine) != left:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)

    async def play() -> None:
        mounts = handler.mounts(hub)
        taken = [(await sent(mounts, large, prefer="respond-async"))[1] for _ in range(later.MOST_WEIGHT // LEAST)]
        for _ in range(later.THREADS):
            assert handler.begun.acquire(timeout=20)
        given_up(taken[0], left=len(taken))  # it has begun, and is in memory until it has ended
        assert (await sent(mounts, large, prefer="respond-async"))[0] == 429
        given_up(taken[-1], left=len(taken) - 1)
        assert (await sent(mounts, large, prefer="respond-async"))[0] == 202
        handler.gate.set()
        drained(hub)
        assert later._jobs(hub).kept.answer(taken[0].rpartition("/")[2]) is None
        assert (await sent(mounts, b" " * MOST, prefer="respond-async"))[0] == 202  # alone, and larger than the room
        mounts.hands.close()

    asyncio.run(play())
    drained(hub)


def test_what_goes_wrong_while_an_answer_is_kept_ends_that_request_alone(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    def unkept(_: Request) -> Response:
        return Response(200, (("x-broken", "\ud800"),))  # no UTF-8, so no file

    request = Request("POST", "/", (), {"prefer": "respond-async"}, b" " * MOST, PARTNER, BASE, {})
    for _ in range(later.THREADS + 1):
        address = dict(later.start(hub, request, unkept).headers)["content-location"].removeprefix(f"{BASE}/")
        drained(hub)
        assert ask(hub, "GET", address).status == 404
    assert caplog.text.count("cannot be kept") == later.THREADS + 1
    assert ended(hub, started(hub, "GET", "Patient")).status == 200


def test_fifty_small_requests_that_wait_hold_their_bodies_and_little_more(hub: Hub) -> None:
    handler, size = Gated(), SMALL - 1

    async def play() -> tuple[int, int]:
        mounts = handler.mounts(hub)
        await sent(mounts, b"{}")  # what is made once is made
        tracemalloc.start()
        try:
            for _ in range(later.MOST_JOBS):
                assert (await sent(mounts, bytes(size), prefer="respond-async"))[0] == 202
            held = tracemalloc.get_traced_memory()[0]
            for _ in range(5):
                assert (await sent(mounts, bytes(size), prefer="respond-async"))[0] == 429
            refused = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        handler.gate.set()
        mounts.hands.close()
        return held, refused

    held, refused = asyncio.run(play())
    assert later.MOST_JOBS * size <= held < later.MOST_JOBS * size + 4 * MIB
    assert refused < held + MIB, "what is refused is not kept"
    drained(hub)


def test_bodies_that_come_packed_fill_no_memory_before_they_are_weighed(store: Store) -> None:
    hub, size = hub_on(store, max_body_mib=16), 16 * MIB
    packed, many = gzip.compress(bytes(size)), 12
    assert len(packed) < SMALL // 32

    async def play() -> tuple[list[tuple[int, str]], int]:
        mounts = Gated().mounts(hub)
        tracemalloc.start()
        try:
            every = [sent(mounts, packed, **{"content-encoding": "gzip"}) for _ in range(many)]
            answers = await asyncio.gather(*every)
            return answers, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            mounts.hands.close()

    answers, peak = asyncio.run(play())
    assert [status for status, _ in answers] == [200] * many
    assert size <= peak < 4 * size, "unpacked one after the other"


@pytest.mark.parametrize("room", ["unpacking", "room"])
def test_work_that_no_thread_takes_leaves_the_room_it_had(hub: Hub, monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    large, told = gzip.compress(bytes(2 * SMALL)), {"content-encoding": "gzip"}

    async def play() -> None:
        mounts = Gated().mounts(hub)
        run, given = Hands.run, [0]

        def refused(self: Hands, work: Callable[[], object]) -> object:
            given[0] += 1
            if given[0] == (2 if room == "unpacking" else 3):
                raise RuntimeError("can't start new thread")
            return run(self, work)

        with monkeypatch.context() as patch:
            patch.setattr(Hands, "run", refused)
            with pytest.raises(RuntimeError):
                await sent(mounts, large, **told)
        assert (mounts.unpacking._held, mounts.room._held) == (0, 0)
        assert (await sent(mounts, large, **told))[0] == 200
        mounts.hands.close()

    asyncio.run(play())


def test_who_waits_in_vain_to_be_unpacked_is_told_and_small_ones_pass_by(hub: Hub) -> None:
    async def play() -> None:
        mounts = Gated().mounts(hub)
        mounts.unpacking = Room(1, patience=0.05)
        await mounts.unpacking.enter(1)  # as if another were unpacked
        large, small = gzip.compress(bytes(2 * SMALL)), gzip.compress(bytes(SMALL - 1))
        told = {"content-encoding": "gzip"}
        assert await sent(mounts, large, **told) == (429, "5")
        assert (await sent(mounts, small, **told))[0] == 200
        mounts.unpacking.leave(1)
        for _ in range(2):
            assert (await sent(mounts, large, **told))[0] == 200
        assert (await sent(mounts, gzip.compress(bytes(65 * MIB)), **told))[0] == 413
        assert (await sent(mounts, large[:-9], **told))[0] == 400
        assert (await sent(mounts, large, **told))[0] == 200
        mounts.hands.close()

    asyncio.run(play())
