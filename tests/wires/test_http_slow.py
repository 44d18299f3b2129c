"""What a slow, large or hostile client costs the others at the HTTP edge: bodies and heads that do not end."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time

import pytest
from edge_calls import HOST, PATIENT, answer_of, closed, connected, get, put_head, raw, said

from fhir_server import web
from fhir_server.rest import asgi


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
