"""The load generator against small servers: framing, failures, marks, deletions; the limit's note and repetition."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.fhir_target import FhirTarget
from benchmarks.load import MARK, Plan, ceiling, drive
from benchmarks.rounds import QUICK
from benchmarks.target import Address, Series


class _Fhir(BaseHTTPRequestHandler):
    """Just enough of a FHIR server, in memory; answers in chunks when the id is even."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str, bytes]]] = []
    closing = False
    count = 0
    guard = threading.Lock()

    def log_message(self, format: str, *args: object) -> None:
        return

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.closing:
            self.send_header("Connection", "close")
            self.close_connection = True
        if len(self.seen) % 2:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) if body else b"")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.guard:
            type(self).count += 1
            number = self.count
            self.seen.append((self.command, self.path, body))
        if self.path.endswith("/bad"):
            self._answer(422, b'{"resourceType":"OperationOutcome"}')
        elif self.command == "POST" and self.path == "/fhir":
            self._answer(200, b'{"resourceType":"Bundle"}')
        elif self.command == "POST":
            where = f"http://127.0.0.1{self.path}/{number}/_history/1"
            self._answer(201, body, Location=where)
        else:
            self._answer(204 if self.command == "DELETE" else 200, b"" if self.command == "DELETE" else b"{}")

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names the server looks for


@pytest.fixture
def peer() -> Iterator[tuple[Address, type[_Fhir]]]:
    handler = type("Handler", (_Fhir,), {"seen": [], "count": 0, "closing": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Address("127.0.0.1", server.server_address[1], "/fhir"), handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_request_is_sent_once_and_weighed(peer: tuple[Address, type[_Fhir]]) -> None:
    address, server = peer
    requests = [address.request(b"POST", b"/Patient", b'{"a":"%s"}' % MARK) for _ in range(6)]
    outcome = drive(Plan(address, requests, 2, count=6, first_mark=40, weights=[1, 2, 3, 4, 5, 6], keep_locations=True))
    assert (len(outcome.times), outcome.failures, outcome.weight) == (6, 0, 21)
    assert sorted(body for _, _, body in server.seen) == [b'{"a":"bench-%011d"}' % n for n in range(40, 46)]
    assert sorted(outcome.locations) == [f"/Patient/{n}" for n in range(1, 7)]


def test_failures_are_counted_and_the_first_is_kept(peer: tuple[Address, type[_Fhir]]) -> None:
    address, _ = peer
    requests = [address.request(b"GET", b"/Patient/1"), address.request(b"GET", b"/bad")]
    outcome = drive(Plan(address, requests, 1, count=4))
    assert (len(outcome.times), outcome.failures, outcome.weight) == (4, 2, 2)
    assert "422" in outcome.first_failure
    assert "OperationOutcome" in outcome.first_failure


def test_a_server_that_closes_after_each_answer_is_reached_again(peer: tuple[Address, type[_Fhir]]) -> None:
    address, server = peer
    server.closing = True
    outcome = drive(Plan(address, [address.request(b"GET", b"/Patient/1")], 2, count=6))
    assert (len(outcome.times), outcome.failures) == (6, 0)


def test_the_kinds_of_work_send_what_they_say(peer: tuple[Address, type[_Fhir]]) -> None:
    address, server = peer
    target = FhirTarget("peer", address.url, QUICK)
    target.seed()
    for work, method in (("create", "POST"), ("read", "GET"), ("vread", "GET"), ("update", "PUT")):
        before = len(server.seen)
        assert target.run(work, 2, 0.05).failures == 0
        assert {sent[0] for sent in server.seen[before:]} == {method}
    before = len(server.seen)
    target.run("mixed", 2, 0.3)
    assert {sent[0] for sent in server.seen[before:]} >= {"GET", "POST", "PUT"}
    updates = [json.loads(body) for method, _, body in server.seen if method == "PUT"]
    numbers = [update["identifier"][-1]["value"] for update in updates]
    assert len(set(numbers)) == len(numbers)


def test_a_mixed_run_deletes_only_what_it_created(peer: tuple[Address, type[_Fhir]]) -> None:
    address, server = peer
    target = FhirTarget("peer", address.url, QUICK)
    target.seed()
    seeded = {path for path, _ in target.seeds}
    target.run("mixed", 2, 0.3)
    deleted = [path.removeprefix("/fhir") for method, path, _ in server.seen if method == "DELETE"]
    assert not seeded.intersection(deleted)
    assert len(deleted) == len(set(deleted))


def test_the_generator_alone_is_far_faster_than_any_server_here() -> None:
    outcome = ceiling(2, 0.2)
    assert outcome.failures == 0
    assert outcome.rate > 1000


def test_a_series_tells_the_median_of_its_rounds(peer: tuple[Address, type[_Fhir]]) -> None:
    address, _ = peer
    request = [address.request(b"GET", b"/Patient/1")]
    series = Series([drive(Plan(address, request, 1, count=count)) for count in (1, 2, 3)])
    assert series.low <= series.rate <= series.high
    assert series.answers == 6
    assert 0 < series.percentiles(50)[0] <= series.percentiles(99)[0]


@pytest.mark.needs("postgresql")
def test_the_limit_writes_the_rows_that_the_server_writes(empty_postgres: str, tmp_path: Path) -> None:
    import psycopg

    from benchmarks.limit import LimitTarget

    limit = LimitTarget(empty_postgres, tmp_path, QUICK)
    try:
        for work in ("create", "transaction", "update", "read", "vread"):
            outcome = limit.run(work, 2, 0.05)
            assert outcome.weight > 0, work
    finally:
        limit.close()
    with psycopg.connect(empty_postgres) as connection:

        def count(sql: str) -> int:
            row = connection.execute(sql).fetchone()
            assert row is not None
            return int(row[0])

        assert count("SELECT count(*) - count(DISTINCT (type, id)) FROM resource") == 0
        # Each text was written with the same index rows, whether by the server or by the limit.
        uneven = """SELECT count(*) FROM (SELECT md5(r.text) AS same, count(DISTINCT n) AS kinds FROM (
            SELECT r.rid, r.text, (SELECT count(*) FROM idx_token t WHERE t.rid = r.rid) AS n FROM resource r
            WHERE r.version = 1) r GROUP BY 1) c WHERE kinds > 1"""
        assert count(uneven) == 0
