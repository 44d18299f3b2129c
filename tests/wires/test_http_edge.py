"""The HTTP edge on a real socket: who may call, what a slow, large or hostile client costs the others, and an orderly
start and end."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import quiet

from fhir_server import web
from fhir_server.app import Ports, Server
from fhir_server.config import ConfigError, Settings
from fhir_server.context import SYSTEM
from fhir_server.errors import Unavailable
from fhir_server.rest import asgi

HOST = "127.0.0.1"
PATIENT = b'{"resourceType":"Patient","id":"p","name":[{"family":"DURAND"}]}'


def settings(folder: Path, **more: Any) -> Settings:
    return quiet(folder, **({"max_body_mib": 1} | more))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Ports]]:
    server = Server(settings(tmp_path_factory.mktemp("edge")))
    yield server, server.start()
    server.close()


@pytest.fixture
def port(running: tuple[Server, Ports]) -> int:
    return running[1].http


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, port), timeout=20) as sock:
        yield sock


def answer_of(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One HTTP answer: status, headers, body."""
    reply = http.client.HTTPResponse(sock)
    reply.begin()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


def raw(port: int, *lines: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """A request written by hand."""
    with connected(port) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return answer_of(sock)


def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    told = {"Host": f"{HOST}:{port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return raw(port, f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()))


def said(answer: tuple[int, dict[str, str], bytes]) -> str:
    """The words of an OperationOutcome; every error under /fhir is one, with an expression."""
    outcome = json.loads(answer[2])
    assert outcome["resourceType"] == "OperationOutcome", outcome
    assert all(issue["expression"] for issue in outcome["issue"])
    assert answer[1]["content-type"].startswith("application/fhir+json")
    return str(outcome["issue"][0]["diagnostics"])


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


# --- bodies ----------------------------------------------------------------------------------------------------------


def put_head(port: int, *more: str) -> list[str]:
    return ["PUT /fhir/Patient/big HTTP/1.1", f"Host: {HOST}:{port}", "Content-Type: application/fhir+json", *more]


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(port: int) -> None:
    began = time.monotonic()
    answer = raw(port, *put_head(port, "Content-Length: 999999999999"))
    assert answer[0] == 413 and "1 MiB" in said(answer)
    assert time.monotonic() - began < 10


def test_the_rest_of_a_body_that_was_refused_early_is_no_head(port: int) -> None:
    rest = (1 << 20) + 500_000
    with connected(port) as sock:
        sock.sendall("\r\n".join([*put_head(port, f"Content-Length: {rest}"), "", ""]).encode())
        assert answer_of(sock)[0] == 413
        for start in range(0, rest, 50_000):
            sock.sendall(b" " * min(50_000, rest - start))
        sock.sendall(f"GET /fhir/Patient/none HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert answer_of(sock)[0] == 404


def test_a_body_that_turns_out_too_large_is_refused(port: int) -> None:
    with connected(port) as sock:
        sock.sendall("\r\n".join([*put_head(port, "Transfer-Encoding: chunked"), "", ""]).encode())
        chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(40):
                sock.sendall(chunk)
        answer = answer_of(sock)
    assert answer[0] == 413 and said(answer)


def test_a_body_of_the_largest_size_is_taken(port: int) -> None:
    padding = (1 << 20) - len(PATIENT)
    body = PATIENT.replace(b'"p"', b'"big"') + b" " * (padding - 2)
    answer = raw(port, *put_head(port, f"Content-Length: {len(body)}"), body=body)
    assert answer[0] in (200, 201)


@pytest.mark.parametrize("length", ["-1", "x", "1, 2", "+5", ""])
def test_a_length_that_is_none_breaks_nothing(port: int, length: str) -> None:
    with connected(port) as sock:
        sock.sendall("\r\n".join([*put_head(port, f"Content-Length: {length}"), "", ""]).encode() + PATIENT)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert answer_of(sock)[0] in (400, 408, 413, 422)
    assert get(port, "/livez")[0] == 200


def test_slow_bodies_cost_the_others_nothing(port: int) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(port)) for _ in range(60)]
        head = "\r\n".join([*put_head(port, f"Content-Length: {len(PATIENT)}"), "", ""]).encode()
        for sock in slow:
            sock.sendall(head + PATIENT[:5])
        began = time.monotonic()
        assert get(port, "/fhir/metadata")[0] == 200
        assert time.monotonic() - began < 10
        slow[0].sendall(PATIENT[5:])
        assert answer_of(slow[0])[0] == 400, "its id is not the address's"


def test_a_body_that_comes_too_slowly_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.2)
    with connected(port) as sock:
        sock.sendall("\r\n".join([*put_head(port, "Content-Length: 500"), "", ""]).encode() + b"{")
        answer = answer_of(sock)
        assert answer[0] == 408 and "slowly" in said(answer)
        assert answer[1]["connection"] == "close" and sock.recv(1) == b""


def test_a_client_that_hangs_up_leaves_nothing_behind(port: int) -> None:
    for _ in range(20):
        with connected(port) as sock:
            sock.sendall("\r\n".join([*put_head(port, "Content-Length: 500"), "", ""]).encode() + b"{")
    assert get(port, "/fhir/metadata")[0] == 200


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


# --- the head of a request -------------------------------------------------------------------------------------------


def closed(sock: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    received = b""
    sock.settimeout(15)
    while part := sock.recv(65536):
        received += part
    return received


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /fhir/metadata HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", b"\r\n\r\n", b"GET /livez HT"],
    ids=["nothing", "half a header", "empty lines", "half a line"],
)
def test_a_head_that_does_not_end_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.3)
    with connected(port) as sock:
        sock.sendall(sent)
        assert closed(sock).startswith(b"HTTP/1.1 408 ")
    assert get(port, "/livez")[0] == 200


def test_a_head_that_drips_is_given_up_however_often_a_drop_comes(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.5)
    with connected(port) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        sock.settimeout(0.05)
        received, deadline = b"", time.monotonic() + 10
        while not received:
            assert time.monotonic() < deadline
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                received = sock.recv(65536)
        assert received.startswith(b"HTTP/1.1 408 ")


def test_a_second_request_that_does_not_end_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.3)
    with connected(port) as sock:
        sock.sendall(f"GET /livez HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert answer_of(sock)[0] == 200
        sock.sendall(b"GET /fhir")
        assert closed(sock).startswith(b"HTTP/1.1 408 ")


def test_a_head_without_end_is_refused_before_it_fills_the_memory(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in range(4000):
                sock.sendall(f"X-Many-{number}: {'a' * 1000}\r\n".encode())
        with contextlib.suppress(ConnectionResetError):
            assert closed(sock).startswith(b"HTTP/1.1 431 ")
    assert get(port, "/livez")[0] == 200


def test_a_connection_waits_between_its_requests_and_a_slow_answer_is_not_cut(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.2)
    with connected(port) as sock:
        for _ in range(2):
            sock.sendall(f"GET /fhir/metadata HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert answer_of(sock)[0] == 200
            threading.Event().wait(0.5)


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
