"""A destination that demands a certificate of us: without the right one nothing counts as sent, whatever its policy for
silence; with it the same bytes leave."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from delivery_hub import FIRST, attempts, deliver, hub_of, message, queue, row, until

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, now
from fhir_server.delivery import workers
from fhir_server.store.engine import Store
from fhir_server.store.outbox_desk import Policy as LanePolicy
from hl7v2 import ack
from hl7v2.frames import END, wrap
from hl7v2.mllp import Listener, Policy


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl") and os.environ.get("REQUIRE_ALL") != "1":
        pytest.skip("needs openssl: install the Debian package openssl")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("partner", "ours", "stranger"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    return folder


@contextmanager
def taking(keys: Path, version: ssl.TLSVersion, *admitted: str) -> Iterator[tuple[Listener, list[tuple[str, bytes]]]]:
    """A DPI that takes messages of the `admitted` alone, and from whom it took what."""
    seen: list[tuple[str, bytes]] = []

    def take(raw: bytes, peer: str) -> bytes:
        seen.append((peer, raw))
        return ack.build(raw, "AA", now=now(), control_id="ACK1")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(keys / "partner.pem", keys / "partner.key")
    for name in admitted:
        context.load_verify_locations(keys / f"{name}.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    listener = Listener(("127.0.0.1", 0), take, policy=Policy(tls=context))
    listener.start()
    yield listener, seen
    assert listener.close()


def with_certificate(hub: Hub, keys: Path, name: str = "") -> Hub:
    more: dict[str, Any] = {"client_authorities": str(keys / "partner.pem"), "send_timeout_seconds": 10.0}
    if name:
        more |= {"client_certificate": str(keys / f"{name}.pem"), "client_key": str(keys / f"{name}.key")}
    return dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, **more))


@pytest.mark.parametrize(
    ("shown", "words"),
    [("", "demands a certificate and got none"), ("stranger", "does not know who issued the certificate")],
)
def test_a_refused_certificate_is_a_fault_of_connecting_and_cured_by_the_right_one(
    open_url: Callable[..., Store],
    sqlite_url: str,
    keys: Path,
    shown: str,
    words: str,
) -> None:
    hub = hub_of(open_url(sqlite_url))
    with taking(keys, ssl.TLSVersion.TLSv1_3, "ours") as (listener, seen):
        queue(hub, f"mllps://127.0.0.1:{listener.port}", FIRST)
        hub.store.write(SYSTEM, lambda tx: tx.set_policy("dpi", LanePolicy(on_silence="hold")))
        deliver(with_certificate(hub, keys, shown))
        assert (row(hub).state, row(hub).error_class, seen) == ("queued", "transient", [])
        assert row(hub).error.startswith("tls no TLS with") and words in row(hub).error
        deliver(with_certificate(hub, keys, "ours"))
    assert (row(hub).state, [raw for _, raw in seen]) == ("sent", [message(FIRST)])
    assert [one.outcome for one in attempts(hub)] == ["retry", "sent"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_kept_connection_is_one_handshake_until_our_certificate_is_renewed(
    open_url: Callable[..., Store], sqlite_url: str, keys: Path, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    for end in ("pem", "key"):
        shutil.copy(keys / f"ours.{end}", tmp_path / f"now.{end}")
        shutil.copy(keys / f"partner.{end}", tmp_path)
    hub = with_certificate(hub_of(open_url(sqlite_url)), tmp_path, "now")
    lines = workers.Lines(hub)
    with taking(keys, version, "ours", "stranger") as (listener, seen):
        for number, key in enumerate(("1", "2", "3", "4")):
            if number == 3:
                for end in ("pem", "key"):
                    shutil.copy(keys / f"stranger.{end}", tmp_path / f"now.{end}")
            queue(hub, f"mllps://127.0.0.1:{listener.port}", f"AAAAAAAAAAAAAAAAAAA{key}")
            hub.store.write(SYSTEM, lambda tx: tx.set_policy("dpi", LanePolicy(keep_open_seconds=600)))
            assert workers.deliver_one(hub, lines)
        first, *rest, last = [peer for peer, _ in seen]
        assert rest == [first, first] and first.endswith(" CN=ours")
        assert last != first and last.endswith(" CN=stranger")
        lines.connections.close()
        until(lambda: listener.connections == 0)


class Terminator:
    """A partner's TLS terminator: each message is read (`seen`), then `answer(connection, message)` goes out as it is,
    past TLS. The handshake begins when `begin` is set."""

    def __init__(self, keys: Path, version: ssl.TLSVersion, answer: Callable[[Terminator, bytes], bytes]) -> None:
        self.seen: list[bytes] = []
        self.begin = threading.Event()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = self.context.maximum_version = version
        self.context.load_cert_chain(keys / "partner.pem", keys / "partner.key")
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Terminator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                with sock, suppress(OSError):
                    self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        assert self.begin.wait(10)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.secured = self.context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self._step(sock, self.secured.do_handshake)
        raw = b""
        while not raw.endswith(END):
            raw += self._step(sock, lambda: self.secured.read(1 << 16))
        self.seen.append(raw)
        sock.sendall(self._answer(self, raw))
        with suppress(OSError):
            while sock.recv(1 << 16):
                pass

    def _step(self, sock: socket.socket, work: Callable[[], Any]) -> Any:
        while True:
            try:
                done = work()
                sock.sendall(self.outgoing.read())
                return done
            except ssl.SSLWantReadError:
                sock.sendall(self.outgoing.read())
                data = sock.recv(1 << 16)
                if not data:
                    raise ConnectionError("the sender left") from None
                self.incoming.write(data)


def in_the_clear(_: Terminator, raw: bytes) -> bytes:
    return wrap(ack.build(raw[1:-2], "AA", now=now(), control_id="ACK1"))


def alerted(self: Terminator, _: bytes) -> bytes:
    """What TLS says when dirt comes on the line behind the message: an alert, and one of those of the handshake."""
    self.incoming.write(b"\x17\x09\x09\x00\x10" + b"x" * 16)
    with suppress(ssl.SSLError):
        self.secured.read(1)
    return self.outgoing.read()


def properly(self: Terminator, raw: bytes) -> bytes:
    self.secured.write(in_the_clear(self, raw))
    return self.outgoing.read()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("answer", [in_the_clear, alerted])
def test_a_message_that_was_read_is_in_doubt_whatever_tls_says_then(
    open_url: Callable[..., Store],
    sqlite_url: str,
    keys: Path,
    version: ssl.TLSVersion,
    answer: Callable[[Terminator, bytes], bytes],
) -> None:
    hub = with_certificate(hub_of(open_url(sqlite_url)), keys)
    with Terminator(keys, version, answer) as partner:
        partner.begin.set()
        queue(hub, f"mllps://127.0.0.1:{partner.port}", FIRST)
        hub.store.write(SYSTEM, lambda tx: tx.set_policy("dpi", LanePolicy(on_silence="hold")))
        deliver(hub)
        deliver(hub)
        assert partner.seen == [wrap(message(FIRST))], "never twice against its policy"
    assert (row(hub).state, row(hub).error_class) == ("held", "ambiguous")
    assert "the connection broke before the answer" in row(hub).error


def test_a_short_time_to_answer_does_not_shorten_the_handshake(
    open_url: Callable[..., Store], sqlite_url: str, keys: Path
) -> None:
    hub = with_certificate(hub_of(open_url(sqlite_url)), keys)
    with Terminator(keys, ssl.TLSVersion.TLSv1_3, properly) as partner:
        queue(hub, f"mllps://127.0.0.1:{partner.port}", FIRST)
        hub.store.write(SYSTEM, lambda tx: tx.set_policy("dpi", LanePolicy(answer_seconds=1)))
        later = threading.Timer(1.5, partner.begin.set)
        later.start()
        deliver(hub)
        later.join()
        assert (row(hub).state, partner.seen) == ("sent", [wrap(message(FIRST))])
