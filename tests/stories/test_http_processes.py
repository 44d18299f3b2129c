"""Several HTTP processes on one port: one is killed while requests flow, the parent is killed, all are stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from house import House

pytestmark = [pytest.mark.needs("postgresql"), pytest.mark.xdist_group("http processes")]
CLIENTS = 4
SETTINGS = {"http_processes": 2}
JSON = {"content-type": "application/fhir+json"}


@pytest.fixture
def house(lasting_house: House) -> House:
    """The server of all these tests, running; one that a test ended is started again."""
    if lasting_house.process is None or lasting_house.process.poll() is not None:
        lasting_house.start()
    # One process answers before the other does.
    until(lambda: lasting_house.log().count("passerelle is ready") == lasting_house.starts)
    until(lambda: len(children(lasting_house)) == 2)
    return lasting_house


def children(house: House) -> set[int]:
    """The server's HTTP processes."""
    assert house.process is not None
    found: set[int] = set()
    for thread in Path(f"/proc/{house.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end while its list is read
            found |= {int(pid) for pid in (thread / "children").read_text().split()}
    return {pid for pid in found if b"web_process" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def asked(
    house: House, method: str, path: str, body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own, so that any process may take it."""
    connection = http.client.HTTPConnection("127.0.0.1", house.ports["http"], timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


class Traffic:
    """Clients that write and read what they wrote, each request on a new connection."""

    def __init__(self, house: House) -> None:
        self.house, self.stop = house, threading.Event()
        self.answered, self.cut, self.wrong = [0] * CLIENTS, [0] * CLIENTS, list[str]()
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def _run(self, number: int) -> None:
        turn = 0
        while not self.stop.is_set():
            turn += 1
            try:
                basic = {"resourceType": "Basic", "id": f"b{number}", "code": {"text": str(turn)}}
                status, _, body = asked(self.house, "PUT", f"/fhir/Basic/b{number}", json.dumps(basic), **JSON)
                if status not in (200, 201):
                    self.wrong.append(body.decode())
                status, _, body = asked(self.house, "GET", f"/fhir/Basic/b{number}")
                if status != 200 or json.loads(body)["code"]["text"] != str(turn):
                    self.wrong.append(body.decode())
                self.answered[number] += 1
            except (OSError, http.client.HTTPException):
                self.cut[number] += 1

    def grew(self, by: int = 5) -> None:
        """Waits until every client got that many more answers."""
        before = list(self.answered)
        until(lambda: all(now >= then + by for now, then in zip(self.answered, before, strict=True)))


@contextmanager
def traffic(house: House) -> Iterator[Traffic]:
    flowing = Traffic(house)
    for thread in flowing.threads:
        thread.start()
    try:
        yield flowing
    finally:
        flowing.stop.set()
        for thread in flowing.threads:
            thread.join(40)


def test_a_killed_process_takes_its_own_requests_along_and_nothing_else(house: House) -> None:
    with traffic(house) as flowing:
        for kills in range(1, 4):
            flowing.grew()
            before = children(house)
            os.kill(min(before), signal.SIGKILL)
            flowing.grew()  # the other one goes on, or this one again
            until(lambda before=before: len(children(house) - {min(before)}) == 2)  # type: ignore[misc]  # a default has no type
            assert max(flowing.cut) <= kills, "a client lost more than what was under way"
        flowing.grew()
    assert flowing.wrong == []
    assert asked(house, "GET", "/readyz")[0] == 200
    log = house.log()
    assert "ended (signal 9); it is started again" in log and "process http-2 serves" in log


def test_the_processes_leave_when_their_parent_is_killed(house: House) -> None:
    pids = children(house)
    house.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)
    house.start()
    assert asked(house, "GET", "/fhir/metadata")[0] == 200


def test_an_asynchronous_answer_is_fetched_from_any_process(house: House) -> None:
    status, headers, _ = asked(house, "GET", "/fhir/Organization", prefer="respond-async")
    assert status == 202
    where = "/fhir/" + headers["content-location"].partition("/fhir/")[2]
    until(lambda: asked(house, "GET", where)[0] == 200)
    for _ in range(20):
        status, _, manifest = asked(house, "GET", where)
        assert status == 200, manifest
        (output,) = json.loads(manifest)["output"]
        assert asked(house, "GET", "/fhir/" + output["url"].partition("/fhir/")[2])[0] == 200
    assert asked(house, "DELETE", where)[0] == 202
    assert [asked(house, "GET", where)[0] for _ in range(6)] == [404] * 6


def test_a_page_link_is_good_in_every_process(house: House) -> None:
    for key in "abcdefghij":
        basic = {"resourceType": "Basic", "id": key, "code": {"coding": [{"system": "urn:test", "code": "paged"}]}}
        assert asked(house, "PUT", f"/fhir/Basic/{key}", json.dumps(basic), **JSON)[0] == 201
    path, found = "/fhir/Basic?code=urn:test|paged&_count=1&_sort=_id", []
    while path:
        status, _, body = asked(house, "GET", path)
        assert status == 200, body
        page = json.loads(body)
        found += [entry["resource"]["id"] for entry in page["entry"]]
        links = {link["relation"]: link["url"] for link in page["link"]}
        path = "/fhir/" + links["next"].partition("/fhir/")[2] if "next" in links else ""
    assert found == list("abcdefghij")


def test_a_stop_ends_every_process(house: House) -> None:
    pids = children(house)
    assert house.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
