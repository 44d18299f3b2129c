"""Our mail over real sockets with the sandbox operator of `conformance`, well-behaved and not."""

from __future__ import annotations

import imaplib
import os
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mail_samples import DATA, DELIVERY, HOST, PDF, REQUESTER, ROOT, SENDER, message

from conformance.peers import mail as sandbox
from mssante import envelope, imap, smtp
from mssante.channel import Credentials, tls_context


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[sandbox.Running]:
    running = sandbox.Running(
        sandbox.Settings(
            tmp_path / "mail", 0, 0, unknown=frozenset({"nobody@requerant.mssante.fr"}), size_limit=200_000
        )
    )
    yield running
    running.stop()


def send(operator: sandbox.Running, *recipients: str, **changed: Any) -> smtp.Accepted:
    asked: dict[str, Any] = {"envelope_id": DELIVERY, "security": "none", "timeout": 5.0, "answer_timeout": 5.0}
    raw = changed.pop("message", message())
    return smtp.send(
        (HOST, operator.smtp_port),
        SENDER,
        recipients or (REQUESTER,),
        raw,
        **{**asked, **changed},
    )


def opened(operator: sandbox.Running, user: str, **changed: Any) -> imap.Mailbox:
    asked: dict[str, Any] = {"security": "none", "timeout": 5.0}
    return imap.Mailbox((HOST, operator.imap_port), user, "secret", **{**asked, **changed})


def test_our_mail_arrives_intact_and_its_delivery_is_confirmed(operator: sandbox.Running) -> None:
    accepted = send(operator)
    assert (accepted.code, accepted.dsn, accepted.encrypted) == (250, True, False)
    assert "queued" in accepted.text
    with opened(operator, REQUESTER) as box:
        (arrived,) = box.unseen_messages()
        assert arrived.raw is not None and arrived.raw.endswith(message())
        got = envelope.read(arrived.raw)
        assert got.kind == "xdm" and got.xdm and got.refused is None
        assert got.xdm.documents[0].content == (DATA / "doc0001.xml").read_bytes()
        assert got.attachments[0].content == PDF
        assert box.unseen() == (arrived.uid,)
        box.mark_seen(arrived.uid, arrived.uid_validity)
        assert box.unseen() == () and box.uids() == (arrived.uid,)
    with opened(operator, SENDER) as box:
        (report,) = box.unseen_messages()
        notice = envelope.read(report.raw or b"")
        assert notice.kind == "dsn" and notice.automatic and notice.dsn
        assert notice.dsn.envelope_id == DELIVERY
        assert notice.dsn.original_message_id == f"<{DELIVERY}@expert.mssante.fr>"
        assert [(r.recipient, r.original_recipient, r.action) for r in notice.dsn.recipients] == [
            (REQUESTER, REQUESTER, "delivered")
        ]


def test_an_unknown_address_comes_back_as_a_failure(operator: sandbox.Running) -> None:
    send(operator, "nobody@requerant.mssante.fr", REQUESTER)
    with opened(operator, SENDER) as box:
        notices = [envelope.read(fetched.raw or b"") for fetched in box.unseen_messages()]
    actions = sorted((r.action, r.recipient, r.status) for n in notices if n.dsn for r in n.dsn.recipients)
    assert actions == [("delivered", REQUESTER, "2.0.0"), ("failed", "nobody@requerant.mssante.fr", "5.1.1")]
    assert {notice.dsn.envelope_id for notice in notices if notice.dsn} == {DELIVERY}


def test_what_was_not_asked_for_is_not_reported(operator: sandbox.Running) -> None:
    send(operator, "nobody@requerant.mssante.fr", REQUESTER, notify=["NEVER"])
    send(operator, REQUESTER, notify=["FAILURE"])
    with opened(operator, SENDER) as box:
        assert box.uids() == ()


FAULTS = [
    ({"at": "connect", "do": "close"}, "connect", 0),
    ({"at": "connect", "do": "421 4.3.2 too busy"}, "connect", 421),
    ({"at": "mail", "do": "451 4.7.1 try later"}, "mail", 451),
    ({"at": "mail", "do": "close"}, "mail", 0),
    ({"at": "rcpt", "do": "550 5.1.1 no such user"}, "rcpt", 550),
    ({"at": "rcpt", "do": "451 4.2.0 try later"}, "rcpt", 451),
    ({"at": "rcpt", "do": "close"}, "rcpt", 0),
    ({"at": "data", "do": "452 4.3.1 disk full"}, "data", 452),
    ({"at": "data", "do": "554 5.7.1 not wanted"}, "data", 554),
    ({"at": "data", "do": "close"}, "answer", 0),
    ({"at": "stored", "do": "close"}, "answer", 0),
    ({"at": "stored", "do": "hang"}, "answer", 0),
]


@pytest.mark.parametrize(("fault", "stage", "code"), FAULTS, ids=[f"{f['at']} {f['do']}" for f, _, _ in FAULTS])
def test_each_failure_says_where_and_why(
    operator: sandbox.Running, fault: dict[str, str], stage: str, code: int
) -> None:
    sandbox.set_faults(operator.settings.data, [{**fault, "times": 1}])
    with pytest.raises(smtp.SmtpFault) as caught:
        send(operator, answer_timeout=0.5)
    assert (caught.value.stage, caught.value.code) == (stage, code)
    assert caught.value.text
    if code:
        assert caught.value.text in fault["do"]
    assert send(operator).code == 250


def test_one_refused_recipient_stops_the_sending_to_all(operator: sandbox.Running) -> None:
    sandbox.set_faults(operator.settings.data, [{"at": "rcpt", "do": "451 4.2.0 later", "match": "late@"}])
    with pytest.raises(smtp.SmtpFault) as caught:
        send(operator, REQUESTER, "late@requerant.mssante.fr", "somebody@example.org")
    assert caught.value.refused == {
        "late@requerant.mssante.fr": (451, "4.2.0 later"),
        "somebody@example.org": (550, "5.7.1 somebody@example.org is not in our domain"),
    }
    assert (caught.value.stage, caught.value.code) == ("rcpt", 550)
    with opened(operator, REQUESTER) as box:
        assert box.uids() == ()


def test_a_message_beyond_the_announced_size_is_not_even_begun(operator: sandbox.Running) -> None:
    with pytest.raises(smtp.SmtpFault) as caught:
        send(operator, message=b"Subject: x\r\n\r\n" + b"x" * 78 + b"\r\n" * 100_000)
    assert (caught.value.stage, caught.value.code) == ("mail", 552)


def test_eight_bit_content_is_sent_to_a_server_that_takes_it(operator: sandbox.Running) -> None:
    raw = "Subject: été\r\n\r\n.été\r\n..\r\n".encode()
    send(operator, message=raw)
    with opened(operator, REQUESTER) as box:
        (fetched,) = box.unseen_messages()
        assert fetched.raw is not None and fetched.raw.endswith(raw)


def test_a_server_without_dsn_gets_no_dsn_parameter(tmp_path: Path) -> None:
    running = sandbox.Running(sandbox.Settings(tmp_path / "mail", 0, 0, dsn=False))
    try:
        assert send(running).dsn is False
        with opened(running, SENDER) as box:
            assert box.uids() == ()
    finally:
        running.stop()


@pytest.mark.parametrize("mechanism", ["plain", "xoauth2"])
def test_a_password_and_a_long_token_open_the_session(operator: sandbox.Running, mechanism: Any) -> None:
    credentials = Credentials(SENDER, "t" * 900 if mechanism == "xoauth2" else "pässword", mechanism)
    assert "t" * 20 not in repr(credentials)
    assert send(operator, credentials=credentials).code == 250
    with opened(operator, REQUESTER, mechanism=mechanism) as box:
        assert len(box.unseen()) == 1


def test_a_mechanism_that_is_not_offered_is_told(operator: sandbox.Running) -> None:
    with pytest.raises(smtp.SmtpFault) as caught:
        send(operator, credentials=Credentials(SENDER, mechanism="external"))
    assert (caught.value.stage, caught.value.code) == ("auth", 0)
    assert "EXTERNAL" in caught.value.text


def test_starttls_is_never_skipped(operator: sandbox.Running) -> None:
    with pytest.raises(smtp.SmtpFault) as caught:
        send(operator, security="starttls")
    assert caught.value.stage == "tls"
    with pytest.raises(imap.ImapFault) as failed:
        opened(operator, SENDER, security="starttls")
    assert failed.value.stage == "tls"


def test_plain_text_leaves_the_machine_never() -> None:
    with pytest.raises(ValueError, match="loopback"):
        smtp.send(("192.0.2.1", 25), SENDER, [REQUESTER], message(), envelope_id=DELIVERY, security="none")
    with pytest.raises(ValueError, match="loopback"):
        imap.Mailbox(("192.0.2.1", 143), SENDER, "", security="none")


@pytest.mark.parametrize(
    "changed",
    [
        {"message": b"Subject: x\n\nlone line feed\n"},
        {"message": b"Subject: x\r\n\r\na\rb\r\n"},
        {"notify": ["SUCCESS\r\nDATA"]},
        {"notify": ["SUCCESS", "NEVER"]},
    ],
)
def test_what_could_be_read_two_ways_is_not_sent(operator: sandbox.Running, changed: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        send(operator, **changed)


@pytest.mark.parametrize(
    "recipient", ["a@b.fr>\r\nRCPT TO:<x@y.fr", "a@b.fr> NOTIFY=NEVER", "", "a b@c.fr", "é@c.fr", "<a@b.fr>"]
)
def test_a_recipient_cannot_carry_a_command(operator: sandbox.Running, recipient: str) -> None:
    with pytest.raises(ValueError, match="address"):
        send(operator, recipient)


def test_the_envelope_id_survives_strange_characters(operator: sandbox.Running) -> None:
    assert smtp.xtext("a+b=c é") == "a+2Bb+3Dc+20+C3+A9"
    send(operator, envelope_id="a+b=c")
    with opened(operator, SENDER) as box:
        (report,) = box.unseen_messages()
        notice = envelope.read(report.raw or b"").dsn
        assert notice and notice.envelope_id == "a+b=c"


def scripted(lines: list[bytes], *, drip: float = 0.0) -> tuple[int, threading.Thread]:
    """A server that says its lines one by one, each after it has read something (the first at once)."""
    listener = socket.create_server((HOST, 0))

    def work() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                for number, line in enumerate(lines):
                    try:
                        if number:
                            connection.recv(65536)
                        for octet in [line] if not drip else [line[n : n + 1] for n in range(len(line))]:
                            connection.sendall(octet)
                            threading.Event().wait(drip)
                    except OSError:
                        return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return listener.getsockname()[1], thread


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("lines", "drip", "stage"),
    [
        ([b"220 hello\r\n", b"250-x\r\n" * 400_000], 0.0, "connect"),
        ([b"220 " + b"x" * 100_000], 0.0, "connect"),
        ([b"220 " + b"x" * 500], 0.05, "connect"),
        ([b"SSH-2.0-x\r\n"], 0.0, "connect"),
        ([b"220 a\r\n", b"250 a\r\n", b"25"], 0.0, "mail"),
        ([b"220 a\r\n", b"250 a\r\n", b"250 a\r\n", b"250 a\r\n", b"250 a\r\n"], 0.0, "data"),
        ([b"220 a\r\n", b"250 a\r\n", b"250 a\r\n", b"250 a\r\n", b"354 a\r\n", b"nonsense\r\n"], 0.0, "answer"),
        ([b"220 a\r\n", b"250 a\r\n", b"250 a\r\n", b"250 a\r\n", b"354 a\r\n", b"250-half\r\n"], 0.0, "answer"),
    ],
    ids=["endless", "long line", "dripping", "other protocol", "cut", "no 354", "nonsense", "half an answer"],
)
def test_a_server_that_misbehaves_is_cut_off(lines: list[bytes], drip: float, stage: str) -> None:
    port, thread = scripted(lines, drip=drip)
    started = time.monotonic()
    with pytest.raises(smtp.SmtpFault) as caught:
        smtp.send(
            (HOST, port), SENDER, [REQUESTER], b"Subject: x\r\n\r\nx\r\n", envelope_id="x", security="none",
            timeout=1.0, answer_timeout=1.0,
        )  # fmt: skip
    assert caught.value.stage == stage
    assert time.monotonic() - started < 10
    thread.join(15)


def test_nobody_listening_is_a_connect_fault(free_port: Callable[[], int]) -> None:
    with pytest.raises(smtp.SmtpFault) as caught:
        smtp.send((HOST, free_port()), SENDER, [REQUESTER], b"\r\n", envelope_id="x", security="none")
    assert (caught.value.stage, caught.value.code) == ("connect", 0)
    with pytest.raises(imap.ImapFault) as failed:
        imap.Mailbox((HOST, free_port()), SENDER, "x", security="none")
    assert failed.value.stage == "connect"


def test_a_message_too_big_is_listed_but_not_read(operator: sandbox.Running) -> None:
    send(operator)
    with opened(operator, REQUESTER, max_bytes=1000) as box:
        (fetched,) = box.unseen_messages()
        assert fetched.raw is None and fetched.size > len(message())


def test_messages_are_found_again_after_a_point_and_vanished_ones_are_none(operator: sandbox.Running) -> None:
    for _ in range(3):
        send(operator, notify=["NEVER"])
    with opened(operator, REQUESTER) as box:
        assert box.uids() == (1, 2, 3)
        assert box.uids(after=2) == (3,) and box.uids(after=3) == () and box.unseen(after=9) == ()
        assert box.fetch(77) is None
        with pytest.raises(imap.ImapFault) as caught:
            box.mark_seen(1, box.uid_validity + 1)
        assert caught.value.stage == "validity"


def test_a_wrong_password_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    running = sandbox.Running(sandbox.Settings(tmp_path / "mail", 0, 0, password="right"))
    try:
        for mechanism in ("plain", "xoauth2"):
            with pytest.raises(imap.ImapFault) as caught:
                opened(running, SENDER, mechanism=mechanism)
            assert (caught.value.stage, caught.value.code) == ("auth", "NO")
        with pytest.raises(imap.ImapFault) as caught:
            imap.Mailbox((HOST, running.imap_port), SENDER, "right", security="none", folder="Sent")
        assert (caught.value.stage, caught.value.code) == ("select", "NO")
        with pytest.raises(ValueError, match="control character"):
            imap.Mailbox((HOST, running.imap_port), "a\r\nb", "right", security="none")
    finally:
        running.stop()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "lines",
    [
        [b"* BYE busy\r\n"],
        [b"SSH-2.0\r\n"],
        [b"* OK hello\r\n" + b"* OK noise\r\n" * 600_000],
        [b"* OK {4000000000}\r\n"],
        [b"* OK " + b"x" * 3_000_000],
        [b"* OK hello\r\n"],
    ],
    ids=["busy", "other protocol", "endless", "huge literal", "long line", "silent"],
)
def test_an_imap_server_that_misbehaves_is_cut_off(lines: list[bytes]) -> None:
    port, thread = scripted(lines)
    with pytest.raises(imap.ImapFault):
        imap.Mailbox((HOST, port), SENDER, "x", security="none", timeout=1.0)
    thread.join(15)


def test_two_readers_see_each_other_s_marks_and_uids_never_come_back(operator: sandbox.Running) -> None:
    send(operator, notify=["NEVER"])
    with opened(operator, REQUESTER) as first, opened(operator, REQUESTER) as second:
        first.mark_seen(1)
        assert second.unseen() == ()
        fetched = second.fetch(1)
        assert fetched is not None and fetched.raw is not None
    other = imaplib.IMAP4(HOST, operator.imap_port)
    other.login(REQUESTER, "x")
    other.select()
    assert other.store("1", "+FLAGS", "(\\Deleted)")[0] == "OK"
    assert other.expunge() == ("OK", [b"1"])
    assert other.status("INBOX", "(MESSAGES)")[1] == [
        f"INBOX (MESSAGES 0 UNSEEN 0 UIDNEXT 2 UIDVALIDITY {first.uid_validity})".encode()
    ]
    other.logout()
    send(operator, notify=["NEVER"])
    with opened(operator, REQUESTER) as box:
        assert box.uids() == (2,)


def test_the_operator_as_a_process_keeps_its_mail_through_a_kill(tmp_path: Path, free_port: Callable[[], int]) -> None:
    ports = free_port(), free_port()
    command = [
        sys.executable, "-m", "conformance.peers.mail", "--data", str(tmp_path / "mail"),
        "--smtp-port", str(ports[0]), "--imap-port", str(ports[1]),
    ]  # fmt: skip

    @contextmanager
    def started() -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == f"mail ready smtp={HOST}:{ports[0]} imap={HOST}:{ports[1]}\n"
                yield process
            finally:
                process.kill()

    with started():
        smtp.send((HOST, ports[0]), SENDER, [REQUESTER], message(), envelope_id=DELIVERY, security="none")
    with started() as second:
        with imap.Mailbox((HOST, ports[1]), REQUESTER, "x", security="none") as box:
            (arrived,) = box.unseen_messages()
            assert arrived.raw is not None and arrived.raw.endswith(message())
        clash = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
        assert clash.returncode == 1 and clash.stderr.startswith("mail: ")
        held = [socket.create_connection((HOST, port)) for port in ports]
        assert [connection.recv(3) for connection in held] == [b"220", b"* O"]
        second.send_signal(signal.SIGTERM)
        assert second.wait(10) == 0
        for connection in held:
            connection.close()


def test_the_sandbox_listens_on_loopback_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loopback"):
        sandbox.Running(sandbox.Settings(tmp_path / "mail", 0, 0, host="0.0.0.0"))


def test_an_ordinary_client_can_talk_to_the_sandbox(operator: sandbox.Running) -> None:
    with smtplib.SMTP(HOST, operator.smtp_port, local_hostname="x") as client:
        assert client.ehlo()[0] == 250 and client.has_extn("dsn") and client.has_extn("8bitmime")
        assert client.noop()[0] == 250 and client.rset()[0] == 250
        assert client.mail("") == (250, b"OK")
        assert client.rcpt(REQUESTER)[0] == 250
        assert client.data(b"Subject: x\r\n\r\nx\r\n")[0] == 250
        assert client.mail("a@b.fr", ["SIZE=999999999"])[0] == 552
    assert os.listdir(operator.settings.data / "boxes") == [REQUESTER]


def fetched(client: imaplib.IMAP4, numbers: str, what: str) -> Any:
    """The first item of the answer to FETCH."""
    return client.fetch(numbers, what)[1][0]


def test_a_curious_client_can_read_in_every_way(operator: sandbox.Running) -> None:
    send(operator, notify=["NEVER"], message=b"Subject: x\r\n\r\nbody\r\n")
    client = imaplib.IMAP4(HOST, operator.imap_port)
    assert "IMAP4REV1" in client.capabilities
    for refused in (lambda: client.select(), lambda: client.login("somebody@example.org", "x")):
        with pytest.raises(imaplib.IMAP4.error):
            refused()
    client.send(b"a1 LOGIN {%d}\r\n" % len(REQUESTER))
    assert client.readline().startswith(b"+")
    client.send(REQUESTER.encode() + b' "p\\"w"\r\n')
    assert client.readline().startswith(b"a1 OK")
    client.state = "AUTH"
    assert client.list()[1] == [b'() "/" INBOX']
    assert client.select("INBOX", readonly=True)[1] == [b"1"]
    assert client.search(None, "UNSEEN")[1] == [b"1"]
    assert client.search(None, "SEEN")[1] == [b""]
    assert client.uid("SEARCH", "UID", "5:*", "UNDELETED")[1] == [b"1"]
    assert fetched(client, "1", "(BODY.PEEK[TEXT] FLAGS)")[1] == b"body\r\n"
    assert fetched(client, "1:*", "BODY.PEEK[]<0.12>")[1] == b"Return-Path:"
    assert b"INTERNALDATE" in fetched(client, "1", "(INTERNALDATE)")
    assert client.uid("STORE", "1", "+FLAGS", "(\\Seen)")[0] == "NO"
    assert client.close()[0] == "OK"
    client.select()
    assert fetched(client, "1", "(RFC822.HEADER)")[1].endswith(b"Subject: x\r\n\r\n")
    assert client.store("1", "FLAGS", "(\\Answered \\Unknown)")[1] == [b"1 (FLAGS (\\Answered))"]
    assert client.store("1", "-FLAGS", "(\\Answered)")[1] == [b"1 (FLAGS ())"]
    with pytest.raises(imaplib.IMAP4.error, match="BAD"):
        client.search(None, "NONSENSE")
    with pytest.raises(imaplib.IMAP4.error, match="BAD"):
        client.fetch("1", "(BODYSTRUCTURE)")
    assert client.logout()[0] == "BYE"


def test_the_client_context_follows_the_national_rules() -> None:
    context = tls_context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
    older = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.2"}
    assert older == {
        "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-SHA384",
        "ECDHE-RSA-AES128-SHA256",
    }  # fmt: skip
