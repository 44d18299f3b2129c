"""A system that hangs, floods or lies cannot hang the judge, fill its memory or learn the user's token."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from conformance import runner
from conformance.target import Target, target

Behaviour = Callable[[socket.socket], None]
Serve = Callable[[Behaviour], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves connections by a function on a free loopback port, each in its thread, until the test ends."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(behave: Behaviour) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                behave(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threads.append(threading.Thread(target=one, args=(connection,), daemon=True))
                    threads[-1].start()

        threads.append(threading.Thread(target=accept, daemon=True))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(12)


ADDRESSES = {
    "fhir": ("fhir=http://127.0.0.1:{}/fhir", "fhir.metadata"),
    "hl7v2": ("hl7v2=mllp://127.0.0.1:{}", "hl7v2.adt-a01"),
    "dicom": ("dicom=dicom://AE@127.0.0.1:{}", "dicom.echo"),
}


def judged(wire: str, port: int, *settings: str) -> tuple[runner.Result, float]:
    """The result of the wire's first check, and the seconds it took."""
    address, check = ADDRESSES[wire]
    begun = time.monotonic()
    (result,) = runner.run(target([address.format(port)], ["timeout=0.5", *settings]), only=[check]).results
    return result, time.monotonic() - begun


def until_closed(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def trickle(first: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(first)
        with contextlib.suppress(TimeoutError):
            while True:
                connection.sendall(b"a")
                connection.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(4096):
                        return

    return behave


def flood(first: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(first)
        while True:
            connection.sendall(b"a" * 65536)

    return behave


@pytest.mark.parametrize("wire", ADDRESSES)
def test_silence_is_a_failure_after_the_time_out(serve: Serve, wire: str) -> None:
    result, took = judged(wire, serve(until_closed))
    assert result.status == "fail"
    assert "silence for 0.5 s" in result.found
    assert took < 40


@pytest.mark.parametrize("wire", ADDRESSES)
def test_hanging_up_is_a_failure(serve: Serve, wire: str) -> None:
    result, took = judged(wire, serve(lambda connection: None), "timeout=10")
    assert result.status == "fail"
    assert took < 40


@pytest.mark.parametrize(
    ("wire", "first"),
    [
        ("fhir", b"HTTP/1.1 200 OK\r\nX-Slow: "),
        ("fhir", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        ("hl7v2", b"\x0bMSH|"),
        ("dicom", b"\x02\x00\x00\x00\xff\xff"),
    ],
)
def test_an_answer_that_trickles_for_ever_ends_with_the_time_out(serve: Serve, wire: str, first: bytes) -> None:
    result, took = judged(wire, serve(trickle(first)))
    assert result.status == "fail"
    assert took < 40


@pytest.mark.parametrize(
    ("wire", "first"),
    [
        ("fhir", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("fhir", b"HTTP/1.1 200 OK\r\nX-Long: "),
        ("hl7v2", b"\x0bMSH|"),
        ("dicom", b"\x02\x00\xff\xff\xff\xff"),
    ],
)
def test_an_endless_answer_is_cut_off(serve: Serve, wire: str, first: bytes) -> None:
    result, took = judged(wire, serve(flood(first)), "timeout=10")
    assert result.status == "fail"
    assert took < 40
    assert sum(map(len, result.evidence)) < 50_000


@pytest.mark.parametrize("wire", ADDRESSES)
def test_rubbish_is_a_failure(serve: Serve, wire: str) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(bytes(range(256)) * 4)

    result, _ = judged(wire, serve(behave))
    assert result.status == "fail"


@pytest.mark.parametrize("wire", ADDRESSES)
def test_nobody_listening_is_an_error_and_no_verdict(free_port: Callable[[], int], wire: str) -> None:
    result, _ = judged(wire, free_port())
    assert result.status == "error"
    assert "no connection to" in result.message


def answer(body: str, extra: str = "") -> bytes:
    kind = "application/fhir+json"
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n{body}".encode()


def test_a_link_to_another_host_never_carries_the_token_there(serve: Serve) -> None:
    heard: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        heard.append(connection.recv(4096))

    elsewhere = serve(listen)
    asked: list[bytes] = []

    def lure(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            asked.append(data)
            if data.startswith(b"{"):
                continue  # the body of a POST, sent apart from its header
            if data.startswith(b"POST"):
                connection.sendall(
                    b"HTTP/1.1 201 Created\r\nLocation: Patient/1/_history/1\r\nContent-Length: 0\r\n\r\n"
                )
                continue
            found = '{"resource":{"resourceType":"Patient","id":"1"}}'
            link = f'{{"relation":"next","url":"http://127.0.0.1:{elsewhere}/other?page=2"}}'
            connection.sendall(answer(f'{{"resourceType":"Bundle","entry":[{found}],"link":[{link}]}}'))

    judge = target([f"fhir=http://127.0.0.1:{serve(lure)}/fhir"], ["timeout=2", "settle=0.1", "token=s3cr3t"])
    (result,) = runner.run(judge, only=["fhir.paging"]).results
    assert result.status == "fail"
    assert any(b"Authorization: Bearer s3cr3t" in one for one in asked)
    assert heard == []
    assert "s3cr3t" not in repr(result)


def test_a_server_that_echoes_the_token_does_not_get_it_into_the_report(serve: Serve) -> None:
    def echo(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(answer('{"resourceType":"' + data.decode().partition("Bearer ")[2][:6] + '"}'))

    result, _ = judged("fhir", serve(echo), "token=s3cr3t")
    assert result.status == "fail"
    assert "s3cr3t" not in repr(result)


def test_a_connection_that_the_server_closed_while_idle_is_opened_again(serve: Serve) -> None:
    def one_answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer('{"resourceType":"Bundle"}'))

    from conformance.target import Context

    at = Context(target([f"fhir=http://127.0.0.1:{serve(one_answer)}/fhir"], ["timeout=5"]))
    first = at.fhir.get("Patient")
    connection = at.fhir._open
    assert connection is not None
    connection.sock.settimeout(5)
    assert (
        connection.sock.recv(1, socket.MSG_PEEK) == b""
    )  # wait for the server's FIN, so that the next request meets it
    assert (first.status, at.fhir.get("Patient").status) == (200, 200)
    at.close()


def test_the_bearer_token_is_sent_and_a_further_header_too(serve: Serve) -> None:
    asked: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            asked.append(data)
            connection.sendall(answer("{}"))

    judged("fhir", serve(listen), "token=abc", "header=X-Tenant: nine")
    assert b"Authorization: Bearer abc\r\n" in asked[0]
    assert b"X-Tenant: nine\r\n" in asked[0]


def test_a_target_without_any_address_judges_nothing() -> None:
    run = runner.run(Target())
    assert {one.status for one in run.results} == {"skip"}
    assert run.exit_code == 1
