"""Our mail over real sockets with Postfix and Dovecot."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from mail_samples import DELIVERY, FILES, HOST, PDF, message, until
from mail_servers import DOMAIN, PASSWORD, REFUSED, MailServers, mail_servers

from mssante import envelope, imap, smtp
from mssante.channel import tls_context
from mssante.received import Received

OURS = f"passerelle@{DOMAIN}"
THEIRS = f"requerant@{DOMAIN}"

# One process for all: each would start both servers.
pytestmark = pytest.mark.xdist_group("postfix and dovecot")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServers]:
    def find() -> int:
        with socket.create_server((HOST, 0)) as probe:
            return int(probe.getsockname()[1])

    if os.geteuid() != 0 and os.environ.get("REQUIRE_ALL") != "1":
        pytest.skip("Postfix and Dovecot change users: they need root")
    running = mail_servers(tmp_path_factory.mktemp("mail"), find)
    yield running
    running.stop()


def handed(servers: MailServers, recipient: str, **changed: Any) -> smtp.Accepted:
    asked: dict[str, Any] = {"envelope_id": DELIVERY, "security": "none"}
    return smtp.send(
        ("localhost", servers.smtp_port),
        OURS,
        [recipient],
        message(recipient),
        **{**asked, **changed},
    )


def next_mail(servers: MailServers, user: str, **changed: Any) -> Received:
    """The next unseen mail of a mailbox of Dovecot, marked as seen."""
    found: list[Received] = []

    def look() -> bool:
        asked: dict[str, Any] = {"security": "none", **changed}
        with imap.Mailbox(("localhost", servers.imap_port), user, PASSWORD, **asked) as box:
            for fetched in box.unseen_messages():
                assert fetched.raw is not None
                found.append(envelope.read(fetched.raw))
                box.mark_seen(fetched.uid, fetched.uid_validity)
                return True
        return False

    until(look, 40)
    return found[0]


@pytest.mark.needs("postfix", "dovecot")
@pytest.mark.parametrize("security", ["none", "starttls"])
def test_postfix_delivers_intact_and_its_report_is_correlated(servers: MailServers, security: str) -> None:
    context = tls_context(authorities=servers.certificate)
    accepted = handed(servers, THEIRS, security=security, context=context)
    assert (accepted.code, accepted.dsn, accepted.encrypted) == (250, True, security == "starttls")
    got = next_mail(servers, THEIRS, security=security, context=context)
    assert got.kind == "xdm" and got.refused is None and got.xdm
    assert got.message_id == f"<{DELIVERY}@expert.mssante.fr>"
    assert got.xdm.documents[0].content == FILES["DOC0001.XML"]
    assert got.attachments[0].content == PDF
    notice = next_mail(servers, OURS)
    assert notice.kind == "dsn" and notice.dsn
    assert notice.dsn.envelope_id == DELIVERY
    assert notice.dsn.original_message_id == got.message_id
    assert [(r.recipient, r.action, r.status[:1]) for r in notice.dsn.recipients] == [(THEIRS, "delivered", "2")]


@pytest.mark.needs("postfix", "dovecot")
def test_postfix_bounces_are_correlated_and_refusals_are_facts(servers: MailServers) -> None:
    handed(servers, f"inconnu@{DOMAIN}", envelope_id="BOUNCE")
    notice = next_mail(servers, OURS)
    assert notice.kind == "dsn" and notice.dsn and notice.dsn.envelope_id == "BOUNCE"
    assert [(r.recipient, r.action, r.status) for r in notice.dsn.recipients] == [
        (f"inconnu@{DOMAIN}", "failed", "5.1.1")
    ]
    with pytest.raises(smtp.SmtpFault) as caught:
        handed(servers, REFUSED)
    assert (caught.value.stage, caught.value.code) == ("rcpt", 550)
    assert "boite fermee" in caught.value.text


@pytest.mark.needs("postfix", "dovecot")
def test_an_operator_that_nobody_vouches_for_is_not_spoken_to(servers: MailServers) -> None:
    for context in (tls_context(), None):
        with pytest.raises(smtp.SmtpFault) as caught:
            handed(servers, THEIRS, security="starttls", context=context)
        assert caught.value.stage == "tls" and "certificate" in caught.value.text
        with pytest.raises(imap.ImapFault) as failed:
            imap.Mailbox(("localhost", servers.imap_port), OURS, PASSWORD, context=context)
        assert failed.value.stage == "tls"


@pytest.mark.needs("postfix", "dovecot")
def test_dovecot_refuses_a_wrong_password_as_a_fact(servers: MailServers) -> None:
    with pytest.raises(imap.ImapFault) as caught:
        imap.Mailbox((HOST, servers.imap_port), OURS, "wrong", security="none")
    assert (caught.value.stage, caught.value.code) == ("auth", "NO")


@pytest.mark.needs("postfix", "dovecot")
def test_postfix_announces_its_size_and_it_is_respected(servers: MailServers) -> None:
    with pytest.raises(smtp.SmtpFault) as caught:
        smtp.send(
            (HOST, servers.smtp_port), OURS, [THEIRS], b"Subject: x\r\n\r\n" + (b"x" * 78 + b"\r\n") * 260_000,
            envelope_id="x", security="none",
        )  # fmt: skip
    assert (caught.value.stage, caught.value.code) == ("mail", 552)


def injecting(servers: MailServers, lines: list[bytes]) -> int:
    """A TLS server that says more than it should just before TLS begins; the port it listens on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(servers.certificate, servers.root / "key.pem")
    listener = socket.create_server((HOST, 0))

    def work() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                for line in lines[:-1]:
                    connection.sendall(line)
                    connection.recv(65536)
                connection.sendall(lines[-1])
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as encrypted:
                    encrypted.recv(65536)

    threading.Thread(target=work, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.mark.needs("postfix", "dovecot")
def test_words_slipped_in_before_tls_are_not_believed(servers: MailServers) -> None:
    context = tls_context(authorities=servers.certificate)
    said = [b"220 a\r\n", b"250-a\r\n250 STARTTLS\r\n", b"220 go\r\n250-a\r\n250 AUTH PLAIN\r\n"]
    with pytest.raises(smtp.SmtpFault, match="after STARTTLS") as caught:
        smtp.send(("localhost", injecting(servers, said)), OURS, [THEIRS], b"\r\n", envelope_id="x", context=context)
    assert caught.value.stage == "tls"
