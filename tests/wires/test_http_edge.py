"""The HTTP edge on a real socket: who may call, what is answered to strange requests, and an orderly start and end."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from edge_calls import HOST, PATIENT, answer_of, closed, connected, get, put_head, raw, said, settings

from fhir_server.app import Ports, Server
from fhir_server.config import ConfigError
from fhir_server.context import SYSTEM
from fhir_server.errors import Unavailable

# --- who may call ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "192.0.2.1:8080"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize("path", ["/fhir/metadata", "/dicomweb/studies/1.2", "/fhir/Patient/p"])
def test_a_page_or_a_name_from_elsewhere_is_refused(port: int, headers: dict[str, str], path: str) -> None:
    answer = get(port, path, **headers)
    assert answer[0] == 403
    assert "loopback" in said(answer) or "origin" in said(answer)


def test_an_operators_call_from_a_page_elsewhere_is_refused(port: int) -> None:
    for name, value in (("Host", "evil.example"), ("Origin", "https://evil.example")):
        told = {"Host": f"{HOST}:{port}", "Content-Type": "application/json", "Content-Length": "2"} | {name: value}
        lines = [f"{key}: {text}" for key, text in told.items()]
        assert raw(port, "POST /admin/outbox-list HTTP/1.1", *lines, body=b"{}")[0] == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_page_may_send_without_asking_reaches_no_operation(port: int, kind: str) -> None:
    lines = ("POST /admin/outbox-list HTTP/1.1", f"Host: {HOST}", f"Content-Type: {kind}", "Content-Length: 2")
    assert raw(port, *lines, body=b"{}")[0] == 415


def test_loopback_names_are_answered(port: int) -> None:
    for host in (f"{HOST}:{port}", "localhost", f"[::1]:{port}"):
        status, _, body = get(port, "/fhir/metadata", Host=host, Origin="http://localhost:3000")
        assert status == 200
        assert json.loads(body)["implementation"]["url"] == f"http://{host}/fhir"


def test_who_is_not_known_is_told_so(port: int) -> None:
    answer = get(port, "/fhir/metadata", Authorization="Bearer demo:nobody")
    assert answer[0] == 401 and "PractitionerRole" in said(answer)


# --- addresses and methods -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/fhir/Nothing/1", 404),
        ("/fhir/Patient/none", 404),
        ("/fhir/Patient/a%00b", 404),
        ("/fhir/Patient/%ff%fe", 404),
        ("/fhir/Patient/a%3Fb%23c", 404),
        ("/fhir/Patient/" + "x" * 200, 404),
        ("/fhir/" + "x/" * 200, 404),
        ("/fhir/..%2f..%2fadmin/outbox-list", 404),
        ("/fhir/Patient?" + "&".join(f"name={n}" for n in range(300)), 413),
        ("/fhir/Patient?" + "&".join(f"a{n}=1" for n in range(2500)), 400),
        ("/fhir/Patient?name=%00", 400),
        ("/fhir/Patient?name=%ff", 400),
        ("/fhir/Patient?nonsense=1", 400),
        ("/fhir/Patient?_page=AAAA", 400),
        ("/fhir/Patient?_count=-1", 400),
        ("/dicomweb/nothing", 404),
        ("/dicomweb/studies/1.2.3", 404),
        ("/dicomweb/studies/1.2.3/series/1/instances/1/frames/" + "9" * 40, 404),
    ],
)
def test_a_strange_address_gets_an_answer_in_the_language_of_the_api(port: int, path: str, status: int) -> None:
    answer = get(port, path)
    assert answer[0] == status, answer
    if status >= 400:
        assert said(answer)


def test_what_is_nowhere_is_told_where_to_look(port: int) -> None:
    status, _, body = get(port, "/nowhere")
    assert status == 404 and "/fhir" in json.loads(body)["try"]


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "LOCK"])
def test_a_method_nobody_offers_is_405(port: int, method: str) -> None:
    answer = raw(port, f"{method} /fhir/Patient HTTP/1.1", f"Host: {HOST}")
    assert answer[0] == 405 and method in said(answer)


@pytest.mark.parametrize("before", [0, 1])
def test_a_method_no_parser_knows_is_405_too(port: int, before: int) -> None:
    with connected(port) as sock:
        for _ in range(before):  # the connection may have served already
            sock.sendall(f"GET /fhir/Patient/none HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert answer_of(sock)[0] == 404
        sock.sendall(f"FOO /fhir/Patient HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        answer = answer_of(sock)
    assert answer[0] == 405 and "FOO" in said(answer)
    assert "GET" in answer[1]["allow"] and answer[1]["connection"] == "close"


@pytest.mark.parametrize("last", ["FOO /fhir/Patient HTTP/1.1", "GET /fhir/Patient HTTP/1.1\r\nno header"])
def test_what_is_sent_in_one_breath_before_a_bad_request_is_answered_first(port: int, last: str) -> None:
    before = (
        f"GET /fhir/metadata HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET /fhir/Patient/none HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    )
    with connected(port) as sock:
        sock.sendall(f"{before}{last}\r\nHost: {HOST}\r\n\r\nGET /livez HTTP/1.1\r\n\r\n".encode())
        told = closed(sock)
    first, second, third = told.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ") and second.startswith(b"404 ")
    head, _, body = third.partition(b"\r\n\r\n")
    assert head.startswith(b"405 " if last.startswith("FOO") else b"400 ")
    outcome = json.loads(body)
    assert outcome["resourceType"] == "OperationOutcome" and outcome["issue"][0]["expression"]
    assert ("FOO" in outcome["issue"][0]["diagnostics"]) == last.startswith("FOO")


def test_junk_within_a_body_ends_the_connection_at_once(port: int) -> None:
    with connected(port) as sock:
        sock.sendall("\r\n".join([*put_head(port, "Transfer-Encoding: chunked"), "", "no length\r\n"]).encode())
        answer = answer_of(sock)
    assert answer[0] == 400 and said(answer)


def test_an_address_too_long_for_the_parser_is_414(port: int) -> None:
    answer = get(port, "/fhir/Patient?name=" + "x" * 70_000)
    assert answer[0] == 414 and "_search" in said(answer)
    answer = get(port, "/fhir/Patient?name=" + "x" * 60_000)
    assert answer[0] == 413 and said(answer), "one the parser takes is refused by the search itself"


def test_a_head_that_cannot_be_read_is_400_in_the_language_of_the_api(port: int) -> None:
    answer = raw(port, "GET /fhir/Patient HTTP/1.1", f"Host: {HOST}", "no header")
    assert answer[0] == 400 and said(answer)
    answer = raw(port, "FOO /elsewhere HTTP/1.1", f"Host: {HOST}")
    assert answer[0] == 405 and answer[1]["content-type"].startswith("text/plain")


def test_an_address_with_bytes_no_address_has_is_400_in_the_language_of_the_api(port: int) -> None:
    for path in ("/fhir/Patient/é", "/fhir/Patient?name=\xff\xfe", "/dicomweb/studies/\x80"):
        answer = raw(port, f"GET {path} HTTP/1.1", f"Host: {HOST}")
        assert answer[0] == 400 and said(answer)
    assert raw(port, "GET /é HTTP/1.1", f"Host: {HOST}")[1]["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("line", "more", "status"),
    [
        ("PUT /fhir/Patient/big HTTP/1.1", ["Content-Length: 999999999999"], 413),
        (f"GET /fhir/Patient?name={'x' * 70_000} HTTP/1.1", [], 414),
        ("FOO /fhir/Patient/1 HTTP/1.1", [], 405),
        ("TRACE /fhir/Patient HTTP/1.1", [], 405),
        ("GET /fhir/Patient/é HTTP/1.1", [], 400),
    ],
)
def test_what_is_refused_at_the_edge_names_the_type_of_its_address(
    port: int, line: str, more: list[str], status: int
) -> None:
    answer = raw(port, line, f"Host: {HOST}", *more)
    assert (answer[0], json.loads(answer[2])["issue"][0]["expression"]) == (status, ["Patient"])


@pytest.mark.parametrize(
    ("charset", "status"), [("utf-16", 415), ('"ISO-8859-1"', 415), ('"UTF-8"', 200), ("utf8", 200)]
)
def test_a_body_in_another_charset_than_utf_8_is_415(port: int, charset: str, status: int) -> None:
    answer = raw(
        port,
        "PUT /fhir/Patient/p HTTP/1.1",
        f"Host: {HOST}",
        f"Content-Type: application/fhir+json; charset={charset}",
        f"Content-Length: {len(PATIENT)}",
        body=PATIENT,
    )
    assert answer[0] in ((200, 201) if status < 300 else (status,))
    assert status < 300 or "UTF-8" in said(answer)


def test_what_is_no_http_is_refused_and_the_server_goes_on(port: int) -> None:
    for junk in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\x00" * 100, b"MSH|^~\\&|" + b"\r" * 50):
        with connected(port) as sock:
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                sock.recv(1000)
    assert get(port, "/livez")[0] == 200


def test_a_host_header_with_a_path_changes_no_address(port: int) -> None:
    for host in (f"{HOST}/admin/x?", f"{HOST}#", f"{HOST} x"):
        status, _, body = get(port, "/fhir/metadata", Host=host)
        assert status in (400, 403), body


def test_each_answer_names_its_request_and_the_audit_trail_does_too(running: tuple[Server, Ports]) -> None:
    server, ports = running
    lines = ["PUT /fhir/Patient/p HTTP/1.1", f"Host: {HOST}", "Content-Type: application/fhir+json"]
    for told in ("", "X-Request-Id: abc-1"):
        more = [told] if told else []
        answer = raw(ports.http, *lines, *more, f"Content-Length: {len(PATIENT)}", body=PATIENT)
        assert answer[0] in (200, 201)
        with server.hub.store.read(SYSTEM) as snapshot:
            rows = snapshot.audit_rows()
        assert answer[1]["x-request-id"] in {row.request_id for row in rows}
    assert answer[1]["x-request-id"] == "abc-1"


# --- many at once ----------------------------------------------------------------------------------------------------


def test_requests_sent_in_one_breath_are_answered_in_order(port: int) -> None:
    kinds = ["Patient", "Observation", "Nothing", "Task"]
    with connected(port) as sock:
        sock.sendall(b"".join(f"GET /fhir/{kind}?_count=0 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() for kind in kinds))
        stream = sock.makefile("rb")
        seen = []
        for _ in kinds:
            status = int(stream.readline().split()[1])
            length = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            seen.append((status, json.loads(stream.read(length))))
        stream.close()
    assert [status for status, _ in seen] == [200, 200, 404, 200]
    links = [bundle["link"][0]["url"] for _, bundle in seen if "link" in bundle]
    assert [kind in link for kind, link in zip(("Patient", "Observation", "Task"), links, strict=True)] == [True] * 3


def test_many_clients_at_once_are_all_answered(port: int) -> None:
    outcomes: list[int] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=30)
        body = json.dumps({"resourceType": "Patient", "id": f"c{number}"})
        for method, content in (("PUT", body), ("GET", None), ("GET", None), ("DELETE", None)):
            connection.request(method, f"/fhir/Patient/c{number}", content, {"content-type": "application/fhir+json"})
            reply = connection.getresponse()
            reply.read()
            outcomes.append(reply.status)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == sorted([201, 200, 200, 204] * 16)


# --- start and end ---------------------------------------------------------------------------------------------------


def test_ready_is_said_only_when_every_listener_answers(tmp_path: Path, free_port: Callable[[], int]) -> None:
    wanted = {"http_port": free_port(), "mllp_port": free_port(), "dicom_port": free_port()}
    server = Server(settings(tmp_path, **wanted))
    seen: list[tuple[int, bool]] = []
    done = threading.Event()

    def listens(name: str) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, wanted[name]), timeout=1):
            return True
        return False

    def watch() -> None:
        while not done.is_set():
            try:
                with urllib.request.urlopen(f"http://{HOST}:{wanted['http_port']}/readyz", timeout=5) as reply:
                    status = reply.status
            except urllib.error.HTTPError as error:
                status = error.code
                error.close()
            except OSError:
                continue
            seen.append((status, listens("mllp_port") and listens("dicom_port")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ports = server.start()
        assert (ports.http, ports.mllp, ports.dicom) == tuple(wanted.values())
        status, _, told = get(ports.http, "/readyz")
        lines = ["ready", f"HTTP {ports.http}", f"HL7 v2 (MLLP) {ports.mllp} (mllp_port)", f"DICOM {ports.dicom}", ""]
        assert (status, told.decode().split("\n")) == (200, lines)
        server.ready = False
        assert get(ports.http, "/readyz")[::2] == (503, b"starting or stopping\n")
    finally:
        done.set()
        watcher.join(10)
        server.close()
    assert all(others for status, others in seen if status == 200)
    assert not any(listens(name) for name in wanted)


@pytest.mark.parametrize("name", ["http_port", "mllp_port", "dicom_port"])
def test_a_port_in_use_is_told_with_its_setting_and_frees_the_rest(tmp_path: Path, name: str) -> None:
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        server = Server(settings(tmp_path, **{name: taken}))
        with pytest.raises(ConfigError, match=f"port {taken} .*PASSERELLE_{name.upper()}"):
            server.start()
        assert server.ready is False
    server = Server(settings(tmp_path))
    server.start()
    server.close()


def test_one_process_serves_a_folder(tmp_path: Path) -> None:
    server = Server(settings(tmp_path))
    server.start()
    try:
        with pytest.raises(Unavailable, match="already serves"):
            Server(settings(tmp_path)).start()
    finally:
        server.close()


def test_an_end_finishes_what_is_under_way_and_keeps_what_was_answered(tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    server = Server(settings(tmp_path))
    port = server.start().http
    with connected(port) as sock, connected(port) as idle:
        idle.sendall(f"GET /livez HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert answer_of(idle)[0] == 200
        head = "\r\n".join(
            ["PUT /fhir/Patient/p HTTP/1.1", *put_head(port, f"Content-Length: {len(PATIENT)}")[1:], "", ""]
        )
        sock.sendall(head.encode() + PATIENT[:20])
        closing = threading.Thread(target=server.close)
        closing.start()
        sock.sendall(PATIENT[20:])
        status = answer_of(sock)[0]
        closing.join(30)
        assert not closing.is_alive()
    assert {thread.name for thread in threading.enumerate()} <= before | {"MainThread"}
    again = Server(settings(tmp_path))
    port = again.start().http
    try:
        assert (get(port, "/fhir/Patient/p")[0] == 200) == (status == 201)
    finally:
        again.close()


# --- reads on the loop -----------------------------------------------------------------------------------------------


def test_a_read_answers_the_same_on_the_loop_and_in_a_thread(port: int) -> None:
    said_so = ("PUT /fhir/Patient/p HTTP/1.1", f"Host: {HOST}", "Content-Type: application/fhir+json")
    assert raw(port, *said_so, f"Content-Length: {len(PATIENT)}", body=PATIENT)[0] in (200, 201)
    for path in ("/fhir/Patient/p", "/fhir/Patient/p/_history/1", "/fhir/Patient/none", "/fhir/Patient/p/_history/99"):
        here, there = get(port, path), get(port, path + "?_format=json")
        assert (here[0], here[2]) == (there[0], there[2])
        changing = ("x-request-id", "date")
        assert all(there[1][name] == value for name, value in here[1].items() if name not in changing)


def test_the_description_of_the_interface_is_served(port: int) -> None:
    status, _, body = get(port, "/openapi.json")
    assert status == 200 and json.loads(body)["openapi"].startswith("3.1")
