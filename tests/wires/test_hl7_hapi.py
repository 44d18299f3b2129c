"""HAPI HL7 v2 as a real peer: it receives what we send and sends what we receive, plain, by TLS and mutual TLS.

What we send are the samples of every profile an Endpoint may ask for, which are all the kinds of messages we write, and
the golden files of the mappers.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from hl7v2 import ack
from hl7v2.message import parse
from hl7v2.mllp import Listener, MllpFault, Policy, send
from mappers.identity import Namespace, Site
from mappers.interface_sample import MAKERS, samples

# One process for all: each would compile the peer and start it four times.
pytestmark = [pytest.mark.needs("java"), pytest.mark.timeout(300), pytest.mark.xdist_group("hapi hl7v2")]
PEER = Path(__file__).parents[1] / "peers" / "hapi_hl7v2" / "build.py"
DATA = Path(__file__).parents[1] / "data" / "hl7v2"
PATIENTS = Namespace("ipp", "PI", ("CHEXEMPLE", "2.25.31", "ISO"), "2.25.31", "urn:oid:2.25.31", "PI")
STAYS = Namespace("sejours", "VN", ("CHEXEMPLE", "2.25.32", "ISO"), "2.25.32", "urn:oid:2.25.32", "VN")
SITE = Site(
    key="exemple", name="Centre hospitalier d’Exemple", finess_eg="510999025", finess_ej="510999900", mode="test",
    application="PASSERELLE", facility="CH EXEMPLE", sending_applications=(), ae_titles=(), ae_namespaces=(),
    mailboxes=(), namespaces=(PATIENTS, STAYS), document_oid="2.25.39",
)  # fmt: skip
NOW = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
SECRET = "changeit"
OURS = (
    "mdm-t02-push-2.1.golden.hl7", "mdm-t10-push-2.1.golden.hl7", "mdm-t04-push-2.1.golden.hl7",
    "mdm-t02-lps-1.1.golden.hl7", "mdm-t10-lps-1.1.golden.hl7", "mdm-t04-lps-1.1.golden.hl7",
    "oru-r01-push-2.1.golden.hl7", "plain-mdm.golden.hl7", "plain-oru.golden.hl7", "oru-r01-tlr-accord.golden.hl7",
    "orm-o01-tlr.golden.hl7", "siu-s12.golden.hl7",
)  # fmt: skip
SENT = ("adt-a01-admission.er7", "adt-a40-fusion.er7", "orm-o01-tlr-demande.er7", "siu-s12-reservation.er7",
        "mdm-t02-lps-recu.er7")  # fmt: skip


@pytest.fixture(scope="module")
def hapi(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    spec = importlib.util.spec_from_file_location("hapi_hl7v2_build", PEER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.command(tmp_path_factory.mktemp("classes"))
    return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One certificate for `localhost`: PEM for us, a key store and a trust store for HAPI; and one nobody knows."""
    root = tmp_path_factory.mktemp("keys")
    for words in (
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=stranger",
         "-keyout", "other-key.pem", "-out", "other.pem"],
        ["openssl", "pkcs12", "-export", "-in", "cert.pem", "-inkey", "key.pem", "-out", "key.p12", "-passout",
         f"pass:{SECRET}"],
        ["keytool", "-importcert", "-noprompt", "-file", "cert.pem", "-keystore", "trust.p12", "-storetype", "PKCS12",
         "-storepass", SECRET],
    ):  # fmt: skip
        subprocess.run(words, cwd=root, check=True, capture_output=True, timeout=60)
    return root


def stores(keys: Path) -> list[str]:
    found = {"keyStore": "key.p12", "trustStore": "trust.p12"}
    out = [f"-Djavax.net.ssl.{name}={keys / file}" for name, file in found.items()]
    return out + [f"-Djavax.net.ssl.{name}Password={SECRET}" for name in found]


class Receiver:
    """A running HAPI server and the facts it tells."""

    def __init__(self, words: list[str], port: int, security: str) -> None:
        command = [*words, "Hl7Peer", "receive", str(port), security]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = port
        assert self.fact() == ["ready"]
        self._reached()

    def _reached(self) -> None:
        """HAPI says it started a moment before its port is open."""
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except ConnectionRefusedError:
                assert time.monotonic() < deadline and self.process.poll() is None

    def fact(self) -> list[str]:
        """The next line of facts; HAPI that dies or falls silent is ended by the deadline and tells nothing."""
        assert self.process.stdout
        alarm = threading.Timer(60, self.process.kill)
        alarm.start()
        try:
            return self.process.stdout.readline().rstrip("\n").split("\t")
        finally:
            alarm.cancel()

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", params=["plain", "tls", "mutual"])
def receiver(request: pytest.FixtureRequest, hapi: list[str], keys: Path) -> Iterator[tuple[Receiver, str]]:
    found = Receiver([*hapi, *stores(keys)], port(), request.param)
    yield found, request.param
    found.close()


def sample(name: str) -> bytes:
    """A message as it goes over the wire: HAPI, like the standard, knows CR alone as the end of a segment."""
    return (DATA / name).read_bytes().replace(b"\r\n", b"\r").replace(b"\n", b"\r")


def context(keys: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    made = ssl.create_default_context(purpose, cafile=str(keys / "cert.pem"))
    if purpose is ssl.Purpose.CLIENT_AUTH:
        made.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    return made


def told(keys: Path, receiver: tuple[Receiver, str], raw: bytes) -> bytes:
    peer, security = receiver
    tls = None if security == "plain" else context(keys, ssl.Purpose.SERVER_AUTH)
    if tls and security == "mutual":
        tls.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    return send(("127.0.0.1", peer.port), raw, timeout=30, tls=tls, server_name="localhost" if tls else "")


def taken_in(receiver: tuple[Receiver, str], keys: Path, raw: bytes) -> str:
    """Sends a message; what HAPI read in it is what we wrote. Its kind and what happens by it."""
    answer = ack.read(told(keys, receiver, raw))
    msg = parse(raw)
    word, control, structure, family, digest, same = receiver[0].fact()
    assert (word, control, answer.code, answer.control_id) == ("received", msg.control_id, "AA", msg.control_id)
    assert structure == msg.text("MSH-9.3") and same == "same"
    assert family == msg.text("PID-5")
    data = next((obx.field(5).component(5).whole for obx in msg.all("OBX") if obx.text(2) == "ED"), "")
    assert digest == (hashlib.sha256(base64.b64decode(data)).hexdigest() if data else "")
    return f"{msg.kind} {msg.get('ORC-1') or msg.trigger}"


@pytest.mark.parametrize("name", OURS)
def test_hapi_takes_in_the_golden_messages(receiver: tuple[Receiver, str], keys: Path, name: str) -> None:
    assert taken_in(receiver, keys, sample(name))


SAMPLED = {
    "lps-1.1": "MDM NW, MDM RO, MDM CA", "push-2.1": "MDM NW, MDM RO, MDM CA", "push-2.1-oru": "ORU NW, ORU RO, ORU CA",
    "plain-mdm": "MDM T02, MDM T10, MDM T04", "plain-oru": "ORU RE", "tlr-1.0": "ORU OK, ORU OC",
    "tlr-1.0-orm": "ORM NW, ORM CA", "siu-2.5": "SIU S12, SIU S13, SIU S14, SIU S15",
}  # fmt: skip


@pytest.mark.parametrize("profile", sorted(MAKERS))
def test_hapi_takes_in_every_kind_of_message_we_write(receiver: tuple[Receiver, str], keys: Path, profile: str) -> None:
    made = [taken_in(receiver, keys, one.raw) for one in samples(profile, SITE, "HAPI", "EXEMPLE")]
    assert ", ".join(dict.fromkeys(made)) == SAMPLED[profile]


@pytest.fixture(scope="module")
def demanding(hapi: list[str], keys: Path) -> Iterator[Receiver]:
    """HAPI as a server that demands a certificate."""
    found = Receiver([*hapi, *stores(keys)], port(), "mutual")
    yield found
    found.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["none", "of somebody else"])
def test_hapi_that_demands_a_certificate_gets_no_message_without_one(
    demanding: Receiver, keys: Path, shown: str, version: ssl.TLSVersion
) -> None:
    """What it says is told in words, as a fault of connecting: nothing was taken in, and the same bytes may come again.
    Those with the right certificate are still served."""
    tls = context(keys, ssl.Purpose.SERVER_AUTH)
    tls.minimum_version = tls.maximum_version = version
    if shown != "none":
        tls.load_cert_chain(keys / "other.pem", keys / "other-key.pem")
    with pytest.raises(MllpFault) as caught:
        send(("127.0.0.1", demanding.port), sample(OURS[0]), timeout=30, tls=tls, server_name="localhost")
    assert (caught.value.stage, caught.value.code) == ("connect", "tls")
    words = "demands a certificate and got none" if shown == "none" else "certificate"
    assert words in caught.value.text and "alert" in caught.value.text
    good = context(keys, ssl.Purpose.SERVER_AUTH)
    good.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    raw = sample(OURS[1])
    send(("127.0.0.1", demanding.port), raw, timeout=30, tls=good, server_name="localhost")
    assert demanding.fact()[:2] == ["received", parse(raw).control_id], "the first thing it took in"


def test_a_refusal_of_hapi_is_read_as_one(receiver: tuple[Receiver, str], keys: Path) -> None:
    raw = sample(OURS[0])
    control = parse(raw).control_id.encode()
    answer = ack.read(told(keys, receiver, raw.replace(control, b"AE" + control[2:], 1)))
    assert (answer.code, receiver[0].fact()[0]) == ("AE", "received")


def test_what_hapi_cannot_parse_is_answered_and_read(receiver: tuple[Receiver, str], keys: Path) -> None:
    raw = b"MSH|^~\\&|A|B|C|D|20260302083000||ADT^A01^ADT_A01|M77|T|9.9\rPID|1\r"
    answer = ack.read(told(keys, receiver, raw))
    assert answer.code in ("AE", "AR") and answer.control_id == "M77"
    assert receiver[0].fact()[0] == "refused"


@pytest.mark.parametrize("security", ["plain", "tls", "mutual"])
def test_hapi_sends_and_reads_our_answers(security: str, hapi: list[str], keys: Path, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def take(raw: bytes, peer: str) -> bytes:
        seen.append(raw)
        code: Literal["AA", "AE"] = "AE" if parse(raw).kind == "SIU" else "AA"
        return ack.build(raw, code, now=NOW, control_id=f"ACK{len(seen)}", text="refusé" if code == "AE" else "")

    tls = None if security == "plain" else context(keys, ssl.Purpose.CLIENT_AUTH)
    if tls and security == "mutual":
        tls.verify_mode = ssl.CERT_REQUIRED
    policy = Policy(clock=lambda: NOW, tls=tls) if tls else Policy(clock=lambda: NOW)
    listener = Listener(("127.0.0.1", 0), take, policy=policy)
    listener.start()
    try:
        files = [tmp_path / name for name in SENT]
        for file in files:
            file.write_bytes(sample(file.name))
        words = [
            *hapi,
            *stores(keys),
            "Hl7Peer",
            "send",
            str(listener.port),
            "tls" if tls else "plain",
            *map(str, files),
        ]
        run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    finally:
        listener.close()
    facts = [line.split("\t") for line in run.stdout.splitlines()]
    wanted = [parse(sample(name)).control_id for name in SENT]
    assert [fact[2] for fact in facts] == wanted, run.stderr[-2000:]
    assert [fact[1] for fact in facts] == ["AE" if "siu" in name else "AA" for name in SENT]
    assert [parse(raw).control_id for raw in seen] == wanted


def test_hapi_without_a_certificate_is_turned_away_and_told_why(
    hapi: list[str], keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason reaches Java's TLS as an alert (what HAPI throws depends on which of its threads sees it first); we
    log it and take in nothing. Others are served."""
    seen: list[bytes] = []

    def take(raw: bytes, peer: str) -> bytes:
        seen.append(raw)
        return ack.build(raw, "AA", now=NOW, control_id="ACK1")

    tls = context(keys, ssl.Purpose.CLIENT_AUTH)
    tls.verify_mode = ssl.CERT_REQUIRED
    listener = Listener(("127.0.0.1", 0), take, policy=Policy(clock=lambda: NOW, tls=tls))
    listener.start()
    file = tmp_path / "a01.er7"
    file.write_bytes(sample(SENT[0]))
    trusting = ["-Djavax.net.debug=ssl", "-Danswer.seconds=4", *(word for word in stores(keys) if "trustStore" in word)]
    runs = []
    try:
        for words in (trusting, stores(keys)):
            command = [*hapi, *words, "Hl7Peer", "send", str(listener.port), "tls", str(file)]
            with caplog.at_level(logging.WARNING):
                runs.append(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))
            if words is trusting:
                assert seen == []
    finally:
        assert listener.close()
    refused, served = runs
    assert refused.returncode != 0 and "answered" not in refused.stdout and "Exception" in refused.stderr
    assert "certificate_required" in refused.stderr + refused.stdout
    assert "refused: this port demands a certificate and got none" in caplog.text
    assert served.stdout.split("\t")[:2] == ["answered", "AA"] and len(seen) == 1


def test_the_pinned_jars_are_named_without_a_host() -> None:
    text = (PEER.parent / "artefacts.txt").read_text(encoding="utf-8")
    assert "://" not in text and all(len(line.split()[-1]) == 64 for line in text.splitlines()[1:])
