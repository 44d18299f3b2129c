"""Where a delivery may go: names are judged by their addresses, and the address judged is the one connected to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey as Key
from hubs import hub_on

from fhir_server.changes import Hub
from fhir_server.config import ConfigError, Settings
from fhir_server.context import SYSTEM, new_delivery_id
from fhir_server.delivery.workers import Lines, deliver_one
from fhir_server.demo import story
from fhir_server.security.addresses import Refused, allowed, allowed_by, destination
from fhir_server.security.certificates import mail_credentials, on_port, towards_partners
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery, NewDelivery
from hl7v2 import ack
from hl7v2.conversation import Policy
from hl7v2.mllp import Listener

ANYWHERE = allowed("")
DEMO = allowed_by(Settings(auth="none"))


def to(host: str, rules: Any, *addresses: str) -> tuple[str, int]:
    return destination(host, 2575, rules, lambda name, port: list(addresses or (name,)))


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.9", "172.16.0.1", "203.0.113.5", "fd12::1", "2001:db8::1"])
def test_without_a_list_a_hospitals_and_a_public_address_are_partners(address: str) -> None:
    assert to("dpi.chu", ANYWHERE, address) == (address, 2575)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.0.1", "127.0.0.1", "127.9.9.9", "0.0.0.0", "224.0.0.1", "255.255.255.255",
        "100.100.100.200", "::1", "::", "fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254", "::ffff:169.254.169.254",
        "::ffff:127.0.0.1", "2002:a9fe:a9fe::1",
    ],
)  # fmt: skip
def test_no_partner_lives_at_this_machine_or_at_a_metadata_service(address: str) -> None:
    with pytest.raises(Refused):
        to("dpi.chu", ANYWHERE, address)


def test_one_bad_address_among_several_refuses_the_name() -> None:
    with pytest.raises(Refused, match=r"dpi\.chu \(169\.254\.169\.254\)"):
        to("dpi.chu", ANYWHERE, "10.0.0.1", "169.254.169.254")


def test_the_address_that_was_judged_is_handed_back_so_that_a_second_answer_changes_nothing() -> None:
    answers = iter([["10.0.0.1"], ["169.254.169.254"]])
    assert destination("dpi.chu", 1, ANYWHERE, lambda *_: next(answers)) == ("10.0.0.1", 1)


def test_a_list_of_networks_and_names_is_all_there_is() -> None:
    rules = allowed("10.1.0.0/16, dpi.chu.example, *.partner.example, 2001:db8::/32")
    assert to("anything", rules, "10.1.9.9") == ("10.1.9.9", 2575)
    assert to("DPI.chu.example.", rules, "192.0.2.1")[0] == "192.0.2.1"
    assert to("a.b.partner.example", rules, "192.0.2.2")[0] == "192.0.2.2"
    assert to("x", rules, "2001:db8::7")[0] == "2001:db8::7"
    for host in ("10.2.0.1", "partner.example", "evilpartner.example", "dpi.chu.example.evil"):
        with pytest.raises(Refused, match="delivery_networks"):
            to(host, rules, "10.2.0.1")
    with pytest.raises(Refused):
        to("dpi.chu.example", rules, "169.254.169.254")
    assert to("box", allowed("169.254.7.0/24"), "169.254.7.1")[0] == "169.254.7.1"
    with pytest.raises(Refused):
        to("box", allowed("0.0.0.0/0"), "169.254.7.1")


def test_the_demo_speaks_to_this_machine_only() -> None:
    assert to("127.0.0.1", DEMO)[0] == "127.0.0.1" and to("localhost", DEMO, "::1")[0] == "::1"
    with pytest.raises(Refused):
        to("dpi", DEMO, "10.0.0.1")
    assert allowed_by(Settings(auth="smart")).anywhere
    assert allowed_by(Settings(auth="none", delivery_networks="10.0.0.0/8")) == allowed("10.0.0.0/8")


@pytest.mark.parametrize("text", ["10.0.0.0/99", "a b", "*.", "*", "host_name!", "http://x"])
def test_what_is_neither_network_nor_name_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="delivery_networks"):
        allowed(text)


def test_a_name_without_an_address_is_no_refusal() -> None:
    with pytest.raises(OSError, match="no address"):
        destination("dpi", 1, ANYWHERE, lambda *_: [])


# --- in the transport ------------------------------------------------------------------------------------------------


def sent(hub: Hub, endpoint: str) -> Delivery:
    """What became of a delivery to an address after one turn of a worker."""
    key = new_delivery_id()
    one = NewDelivery("Endpoint/x", endpoint, "mllp", story.admission(key), id=key)
    hub.store.write(SYSTEM, lambda tx: tx.send(one))
    assert deliver_one(hub, Lines(hub))
    with hub.store.read(SYSTEM) as snapshot:
        found = snapshot.delivery(key)
    assert found is not None
    return found


@pytest.fixture
def open_hub(open_url: Callable[..., Store], sqlite_url: str) -> Callable[..., Hub]:
    return lambda **settings: hub_on(open_url(sqlite_url), **settings)


def test_a_delivery_to_a_refused_address_is_held_with_words(open_hub: Callable[..., Hub]) -> None:
    held = sent(open_hub(), "mllp://169.254.169.254:80")
    assert held.state == "held" and "169.254.169.254 is no address of a partner" in held.error


def test_a_list_decides_and_its_name_is_told(open_hub: Callable[..., Hub]) -> None:
    held = sent(open_hub(delivery_networks="10.1.0.0/16"), "mllp://127.0.0.1:9")
    assert held.state == "held" and "delivery_networks" in held.error


def certificates(folder: Path) -> dict[str, str]:
    """An authority and one certificate for 127.0.0.1, good for both ends, as PEM files."""
    now = datetime.now(UTC)

    def made(name: str, issuer: str, key: Key, signer: Key, authority: bool) -> x509.Certificate:
        usage = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
        subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(subject_key, critical=False)
            .add_extension(signed_by, critical=False)
            .sign(signer, hashes.SHA256())
        )

    authority_key, own_key = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    pem = serialization.Encoding.PEM
    files = {
        "ca": made("Autorité", "Autorité", authority_key, authority_key, True).public_bytes(pem),
        "cert": made("127.0.0.1", "Autorité", own_key, authority_key, False).public_bytes(pem),
        "key": own_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"hush")
        ),
        "plain": own_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }
    for name, content in files.items():
        (folder / f"{name}.pem").write_bytes(content)
    return {name: str(folder / f"{name}.pem") for name in files}


def test_mllps_shows_our_certificate_and_checks_the_partners(open_hub: Callable[..., Hub], tmp_path: Path) -> None:
    files = certificates(tmp_path)
    partner = Settings(server_certificate=files["cert"], server_key=files["plain"], server_authorities=files["ca"])
    seen: list[str] = []

    def take(raw: bytes, peer: str) -> bytes:
        seen.append(peer)
        return ack.build(raw, "AA", now=datetime.now(UTC), control_id="1")

    listener = Listener(("127.0.0.1", 0), take, policy=Policy(tls=on_port(partner, "mutual")))
    listener.start()
    ours = {"client_certificate": files["cert"], "client_key": files["key"], "client_key_password": "hush"}
    try:
        to_partner = f"mllps://127.0.0.1:{listener.port}"
        assert sent(open_hub(client_authorities=files["ca"], **ours), to_partner).state == "sent"
        assert "CN=127.0.0.1" in seen[0]
        unknown = sent(open_hub(**ours), to_partner)
        assert (unknown.state, unknown.error_class) == ("queued", "transient") and "tls" in unknown.error
        assert len(seen) == 1
    finally:
        listener.close()


def test_files_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    with pytest.raises(ConfigError, match="client_certificate"):
        towards_partners(Settings(client_certificate=files["cert"], client_key=files["ca"]))
    with pytest.raises(ConfigError, match="server_certificate"):
        on_port(Settings(server_certificate=files["key"]), "tls")
    assert on_port(Settings(), "none") is None


def test_who_we_are_to_the_operators_mail_server() -> None:
    assert mail_credentials(Settings()) is None
    known = mail_credentials(Settings(smtp_user="u", smtp_password="hush"))
    assert known is not None and (known.user, known.secret, known.mechanism) == ("u", "hush", "plain")
    assert "hush" not in repr(known)
    outer = mail_credentials(Settings(mail_mechanism="external"))
    assert outer is not None and outer.mechanism == "external"
