"""The tolerant and suspicious reader of incoming mail."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mssante import archive, envelope, metadata, mime, received
from mssante.letter import Address, Letter

DATA = Path(__file__).resolve().parents[2] / "data" / "mssante"
DELIVERY = "AB7K2M4QX9ZT3WLR6PCD"
MESSAGE_ID = f"<{DELIVERY}@expert.mssante.fr>"
LETTER = Letter(
    label="CR de télémédecine", family="PAT-TROIS", given="DOMINIQUE", birth_date=date(1979, 3, 28),
    performed=date(2025, 1, 10), codes=("85208-7",), qualified=True, text="Bonjour.\n",
)  # fmt: skip
FILES = {
    "INDEX.HTM": b"<html/>", "README.TXT": b"lisez", "DOC0001.XML": (DATA / "doc0001.xml").read_bytes(),
    "METADATA.XML": (DATA / "metadata.golden.xml").read_bytes(),
}  # fmt: skip
SUBSET = "IHE_XDM/SUBSET01/"


def mail(xdm: bytes | None = None, letter: Letter = LETTER) -> bytes:
    return envelope.mail(
        letter, delivery_id=DELIVERY, date=datetime(2025, 1, 10, 14, tzinfo=UTC),
        sender=Address("passerelle@expert.mssante.fr", "CH Expert"),
        recipients=[Address("Bernard.Vacquier@medecin.mssante.fr", "M, \"B\"")], product="P",
        xdm=envelope.xdm_zip(FILES) if xdm is None else xdm, pdf=b"%PDF-1.4",
    )  # fmt: skip


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return out.getvalue()


def inside(**changed: bytes) -> dict[str, bytes]:
    files = {SUBSET + "DOC0001.XML": FILES["DOC0001.XML"], SUBSET + "METADATA.XML": FILES["METADATA.XML"]}
    return {**files, **{SUBSET + name.replace("_", "."): content for name, content in changed.items()}}


def test_our_own_mail_is_read_back_whole() -> None:
    got = envelope.read(mail())
    assert (got.kind, got.refused, got.tolerated) == ("xdm", None, ())
    assert got.message_id == MESSAGE_ID
    assert got.subject == "XDM/1.0/DDM+CR de télémédecine PAT-TROIS DOMINIQUE 28/03/1979"
    assert got.sender == got.notify_to == "passerelle@expert.mssante.fr"
    assert got.to == ("bernard.vacquier@medecin.mssante.fr",)
    assert got.date == datetime(2025, 1, 10, 14, tzinfo=UTC)
    assert (got.codes, got.ins, got.product, got.last_word) == (("85208-7",), "O", "P", False)
    assert got.text == "Bonjour.\n"
    assert [(a.name, a.content) for a in got.attachments] == [
        ("20250110_CR de télémédecine_PAT-TROIS_DOMINIQUE.pdf", b"%PDF-1.4")
    ]
    assert got.xdm is not None
    assert got.xdm.patient == metadata.PatientId("279035121518989", "1.2.250.1.213.1.4.10", "NH")
    assert got.xdm.patient.is_ins
    assert got.xdm.traits.birth_date == date(1979, 3, 28)
    assert [(d.path, d.content, d.differences) for d in got.xdm.documents] == [
        (SUBSET + "DOC0001.XML", FILES["DOC0001.XML"], ())
    ]


@pytest.mark.needs("shared")
def test_the_national_archives_are_all_read_and_coherent(shared: Path) -> None:
    archives = sorted((shared / "ans-xdm").glob("*.zip"))
    assert len(archives) == 17
    for path in archives:
        got = envelope.read(mail(path.read_bytes()))
        assert got.refused is None, (path.name, got.refused)
        assert got.xdm and got.xdm.patient and got.xdm.patient.is_ins, path.name
        assert got.xdm.traits.birth_family and got.xdm.traits.birth_date, path.name
        assert [document.differences for document in got.xdm.documents] == [()], path.name


def test_a_delivered_notice_is_correlated_by_its_envelope_id() -> None:
    got = envelope.read((DATA / "dsn-delivered.eml").read_bytes())
    assert got.kind == "dsn" and got.automatic and got.dsn
    assert got.dsn.envelope_id == DELIVERY
    assert got.dsn.original_message_id == MESSAGE_ID
    assert got.dsn.reporter == "mx.expert.mssante.fr"
    assert got.dsn.recipients == (
        received.Notice(
            "bernard.vacquier@medecin.mssante.fr", "bernard.vacquier@medecin.mssante.fr", "delivered", "2.0.0",
            "250 2.0.0 Ok: queued as 7C1", "mx.medecin.mssante.fr",
        ),
    )  # fmt: skip


def test_a_bounce_without_envelope_id_is_correlated_by_the_copy_it_brings_back() -> None:
    got = envelope.read((DATA / "dsn-failed.eml").read_bytes())
    assert got.kind == "dsn" and got.dsn and got.xdm is None
    assert (got.dsn.envelope_id, got.dsn.original_message_id) == ("", MESSAGE_ID)
    failed, delayed = got.dsn.recipients
    assert (failed.recipient, failed.action, failed.status) == ("nobody@medecin.mssante.fr", "failed", "5.1.1")
    assert failed.diagnostic == "550 5.1.1 <nobody@medecin.mssante.fr>: Recipient address rejected"
    assert (delayed.action, delayed.status) == ("delayed", "4.2.2")


def test_a_notice_of_an_integration_refused_gives_the_national_code() -> None:
    got = envelope.read((DATA / "mdn-902.eml").read_bytes())
    assert got.kind == "mdn" and got.mdn
    assert got.mdn.original_message_id == MESSAGE_ID
    assert (got.mdn.mode, got.mdn.disposition) == ("automatic-action/mdn-sent-automatically", "processed")
    assert got.error == ("902", "Identifiant de patient inconnu")
    assert got.text == "Le patient n'est pas connu de notre système."


def test_a_notice_of_a_mail_displayed_has_no_error() -> None:
    got = envelope.read((DATA / "mdn-displayed.eml").read_bytes())
    assert got.kind == "mdn" and got.mdn and got.error is None
    assert (got.mdn.mode, got.mdn.disposition, got.mdn.recipient) == (
        "manual-action/mdn-sent-manually", "displayed", "bernard.vacquier@medecin.mssante.fr",
    )  # fmt: skip


def test_an_integration_error_by_ordinary_mail_is_no_document_to_integrate() -> None:
    got = envelope.read((DATA / "integration-error.eml").read_bytes())
    assert (got.kind, got.xdm, got.in_reply_to) == ("error", None, MESSAGE_ID)
    assert got.error == ("902", "902 Identifiant de patient inconnu")
    assert "Intégration refusée." in got.text


def test_an_ordinary_mail_is_just_a_mail() -> None:
    raw = b"From: A <a@b.fr>\nTo: c@d.fr\nSubject: [FIN]\nX-MSS-INS: n\n\nBonjour\n"
    got = envelope.read(raw)
    assert (got.kind, got.sender, got.text, got.last_word, got.ins) == ("other", "a@b.fr", "Bonjour\n", True, "N")


@pytest.mark.parametrize(
    ("name", "subject", "kind"),
    [
        ("IHE_XDM.ZIP", b"bonjour", "xdm"),
        ("ihe_xdm.zip", b"bonjour", "xdm"),
        ("document.zip", b"xdm/1.0/ddm+CR", "xdm"),
        ("document.zip", b"[Annule et remplace] XDM/1.0/DDM+CR", "xdm"),
        ("document.zip", b"bonjour", "other"),
    ],
)
def test_an_archive_is_known_by_its_name_or_by_the_subject(name: str, subject: bytes, kind: str) -> None:
    raw = mail().replace(b'"IHE_XDM.ZIP"', f'"{name}"'.encode())
    before, _, rest = raw.partition(b"Subject: ")
    after = rest[rest.index(b"\r\nMessage-ID") :]
    assert envelope.read(before + b"Subject: " + subject + after).kind == kind


def test_a_tolerable_layout_is_read_and_told() -> None:
    moved = {name.replace(SUBSET, "ihe_xdm\\subset01\\x\\").lower(): content for name, content in inside().items()}
    got = envelope.read(mail(zipped(moved)))
    assert got.refused is None and got.xdm and len(got.tolerated) == 1 and "instead of" in got.tolerated[0]
    renamed = {SUBSET + "METADATA.XML": FILES["METADATA.XML"], SUBSET + "CR.XML": FILES["DOC0001.XML"]}
    got = envelope.read(mail(zipped(renamed)))
    assert got.xdm and got.xdm.documents[0].path == SUBSET + "CR.XML" and "by its hash" in got.tolerated[0]


def test_a_changed_document_is_kept_and_its_differences_told() -> None:
    changed = FILES["DOC0001.XML"].replace(b"279035121518989", b"179035121518989")
    got = envelope.read(mail(zipped(inside(DOC0001_XML=changed))))
    assert got.xdm and {d.attribute for d in got.xdm.documents[0].differences} == {"hash", "patientId"}


def test_metadata_with_faults_of_the_national_samples_are_read() -> None:
    text = FILES["METADATA.XML"].decode().partition("?>")[2].replace("classifiedObject=", "registryObjectX=")
    swapped = text.replace("<Name>", "<Name xmlns:z='z'>")
    got = envelope.read(mail(zipped(inside(METADATA_XML=b"   \r\n " + swapped.encode()))))
    assert got.refused is None and got.xdm and got.xdm.patient
    typo = text.replace("urn:uuid:6b5aea1a-874d-4603-a4bc-96a0a7b38446", "urn:uuid:none")
    got = envelope.read(mail(zipped(inside(METADATA_XML=typo.encode()))))
    assert got.xdm and got.xdm.patient and got.xdm.patient.value == "279035121518989"


def lied_about_size(size: int) -> bytes:
    data = bytearray(zipped(inside()))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = size.to_bytes(4, "little")
    return bytes(data)


def overlapping() -> bytes:
    """Twenty entries of the directory that all unpack the same packed bytes."""
    data = zipped({"a": random.Random(1).randbytes(20000)})
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = b"".join(data[start:end].replace(b"a", bytes([97 + n])) for n in range(20))
    tail = bytearray(data[end:])
    tail[8:12] = (20).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    return data[:start] + entries + bytes(tail)


def encrypted() -> bytes:
    data = bytearray(zipped(inside()))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    return bytes(data)


DOCTYPE = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'
LOL = (
    b"<!DOCTYPE x [" + b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 10)) + b"]><x/>"
)

ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (lambda: zipped({**inside(), "a": bytes(28 * 1024 * 1024)}), "bomb"),
    "bigger than allowed": (lambda: zipped({**inside(), "a": bytes(31 * 1024 * 1024)}), "too-big"),
    "overlap": (overlapping, "bomb"),
    "many entries": (lambda: zipped({f"f{n}": b"" for n in range(400)}), "too-many"),
    "more than a hundred": (lambda: zipped({f"f{n}": b"" for n in range(105)}), "too-many"),
    "climbing": (lambda: zipped({**inside(), "../../etc/passwd": b"x"}), "name"),
    "absolute": (lambda: zipped({**inside(), "/etc/passwd": b"x"}), "name"),
    "drive": (lambda: zipped({**inside(), "C:\\x": b"x"}), "name"),
    "backslash": (lambda: zipped({**inside(), "a\\..\\..\\x": b"x"}), "name"),
    "same name twice": (lambda: zipped({**inside(), SUBSET + "metadata.xml": b"x"}), "name"),
    "control character": (lambda: zipped({**inside(), "a\nb": b"x"}), "name"),
    "long name": (lambda: zipped({**inside(), "a" * 300: b"x"}), "name"),
    "lying size": (lambda: lied_about_size(5), "damaged"),
    "encrypted": (encrypted, "encrypted"),
    "method": (lambda: zipped(inside(), zipfile.ZIP_BZIP2), "method"),
    "truncated": (lambda: zipped(inside())[:-30], "damaged"),
    "damaged": (lambda: zipped(inside(), zipfile.ZIP_STORED).replace(b"PAT-TROIS", b"PAT-QUATR"), "damaged"),
    "no zip": (lambda: b"PK\x03\x04 but no more", "damaged"),
    "empty": (lambda: b"", "damaged"),
    "no metadata": (lambda: zipped({"a.txt": b"x"}), "metadata"),
    "doctype": (lambda: zipped(inside(METADATA_XML=DOCTYPE)), "metadata"),
    "billion laughs": (lambda: zipped(inside(METADATA_XML=LOL)), "metadata"),
    "hidden doctype": (lambda: zipped(inside(METADATA_XML=DOCTYPE.decode().encode("utf-16"))), "metadata"),
    "utf-7": (lambda: zipped(inside(METADATA_XML=b'<?xml version="1.0" encoding="utf-7"?>+ADw-x/>')), "metadata"),
    "utf-16 without mark": (lambda: zipped(inside(METADATA_XML=DOCTYPE.decode().encode("utf-16-be"))), "metadata"),
    "document with doctype": (lambda: zipped(inside(DOC0001_XML=DOCTYPE)), "metadata"),
    "deep": (lambda: zipped(inside(METADATA_XML=b"<a>" * 90000 + b"</a>" * 90000), zipfile.ZIP_STORED), "metadata"),
    "huge metadata": (lambda: zipped(inside(METADATA_XML=b" " * 6_000_000 + b"<a/>"), zipfile.ZIP_STORED), "metadata"),
    "no document": (lambda: zipped(inside(METADATA_XML=b"<a/>")), "metadata"),
    "missing document": (lambda: zipped({SUBSET + "METADATA.XML": FILES["METADATA.XML"]}), "metadata"),
    "two patients": (
        lambda: zipped(inside(METADATA_XML=FILES["METADATA.XML"].replace(b"279035121518989^", b"179035121518989^", 1))),
        "metadata",
    ),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_archive_is_refused_and_its_sender_still_known(attack: str) -> None:
    make, code = ATTACKS[attack]
    got = envelope.read(mail(make()))
    assert got.refused is not None and got.refused[0] == code, got.refused
    assert (got.kind, got.xdm) == ("xdm", None)
    assert (got.sender, got.message_id) == ("passerelle@expert.mssante.fr", MESSAGE_ID)


def nested(depth: int) -> bytes:
    opened = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(depth))
    return b"From: a@b.fr\n" + opened + b"\n"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (nested(9), "depth"),
        (nested(50_000), "depth"),
        (b"From: a@b.fr\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 200, "parts"),
        (b"From: a@b.fr\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 1_000_000, "parts"),
        (b"From: a@b.fr\nX: " + b"y" * 300_000 + b"\n\n", "header"),
        (b"From: a@b.fr\n" + b"X: y\n" * 2000 + b"\n", "header"),
        (b"From: a@b.fr\n\n" + b"x" * (41 * 1024 * 1024), "too-big"),
    ],
    ids=["nine levels", "many levels", "parts", "very many parts", "long field", "many fields", "big"],
)
def test_a_mail_beyond_the_bounds_is_refused_in_bounded_time(raw: bytes, code: str) -> None:
    got = envelope.read(raw)
    assert got.refused is not None and got.refused[0] == code
    assert got.sender == "a@b.fr"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "raw",
    [
        b"From: " + b"(" * 60_000 + b"\n\n",
        b"From: " + b'"' * 60_001 + b"\n\n",
        b"From: " + b'"' + b'\\"' * 30_000 + b"\n\n",
        b"From: " + b"<" * 60_000 + b"\n\n",
        b"To: " + b"a@b.fr," * 9_000 + b"\n\n",
        b"From: " + b"a" * 60_000 + b"\n\n",
        b"Subject: " + b"=?" * 4_000 + b"\n\n",
        b"Subject: " + b"=?utf-8?q?" * 800 + b"\n\n",
        b"Subject: " + b"=?x?b?====?= " * 600 + b"\n\n",
        b"Subject: [KO" + b"]" * 60_000 + b"\n\n",
        b"Content-Type: multipart/mixed" + b";" * 60_000 + b'"\n\n',
        b'Content-Type: multipart/mixed; boundary="' + b";a=b" * 2_000 + b"\n\n",
        b"Content-Type: multipart/mixed; boundary*" + b"9" * 5_000 + b"*=a\n\n",
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b" + b" " * 3_000_000 + b"x\n",
        b"Content-Type: message/delivery-status\n\n" + b" " * 250_000 + b"\n\n",
        b"Content-Type: message/delivery-status\n\n" + b"\n \n" * 80_000,
        b"Content-Type: message/delivery-status\n\n" + b"Action: x\n\n" * 20_000,
        b"Content-Type: message/disposition-notification\n\nDisposition: a; b/" + b"9" * 60_000 + b"\n",
        b"Content-Type: text/plain; charset=idna\n\n" + b"a." * 20_000,
        b"Content-Type: text/plain; charset=zlib\n\nx",
        b"Date: Mon, 99 Jan 999999999999999999999 00:00:00 +9999999\n\n",
        b"Content-Transfer-Encoding: base64\n\n" + b"A" * 5,
        b"\n" * 100_000,
        b"Message-ID: " + b"<" * 30_000 + b">" * 30_000 + b"\n\n",
    ],
)  # fmt: skip
def test_a_field_made_to_slow_a_reader_does_not(raw: bytes) -> None:
    assert envelope.read(raw).refused is None


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=400))
def test_no_bytes_make_the_reader_fail(raw: bytes) -> None:
    envelope.read(raw)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["dsn-delivered", "dsn-failed", "mdn-902", "integration-error", "mail"]),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=6)), min_size=1, max_size=6),
)
def test_no_damage_to_a_real_mail_makes_the_reader_fail(name: str, edits: list[tuple[int, bytes]]) -> None:
    raw = mail() if name == "mail" else (DATA / f"{name}.eml").read_bytes()
    for at, piece in edits:
        at %= len(raw)
        raw = raw[:at] + piece + raw[at + len(piece) // 2 :]
    envelope.read(raw)


@settings(max_examples=100, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 20000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5))
def test_no_damage_to_an_archive_makes_the_reader_fail(edits: list[tuple[int, bytes]]) -> None:
    data = zipped(inside())
    for at, piece in edits:
        at %= len(data)
        data = data[:at] + piece + data[at + len(piece) :]
    try:
        archive.unpack(data)
    except archive.ArchiveRefused:
        pass


def test_limits_can_be_tightened() -> None:
    assert received.read(mail(), limits=replace(mime.DEFAULT_LIMITS, size=100)).refused is not None
    assert received.read(mail(), archive_limits=archive.Limits(total=100)).refused is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"Dr A, <x@y.fr>" <Real@z.fr>, other@z.fr', ("real@z.fr", "other@z.fr")),
        ("a@b.fr", ("a@b.fr",)),
        ("undisclosed-recipients:;", ()),
        ("=?utf-8?b?IsKhQDwsPg==?= <a@b.fr>", ("a@b.fr",)),
        ("", ()),
    ],
)
def test_addresses_are_read_without_their_display_names(value: str, expected: tuple[str, ...]) -> None:
    assert received.addresses(value) == expected


def test_a_file_name_never_keeps_a_path() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: application/pdf\n"
        b'Content-Disposition: attachment; filename="..\\\\..//etc/pass.pdf"\n\nx\n--b--\n'
    )
    assert [a.name for a in envelope.read(raw).attachments] == ["pass.pdf"]


def test_text_before_the_first_and_after_the_last_part_is_left_out() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\n\npreamble\n--b\n\none\n--b\n\ntwo\n--b--\nend\n--b\n\nthree\n"
    assert [part.body for part in mime.parse(raw).parts] == [b"one", b"two"]


def test_a_cut_mail_keeps_what_arrived_of_its_last_part() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\r\ntw"
    assert [part.body for part in mime.parse(raw).parts] == [b"one", b"tw"]


@pytest.mark.parametrize(
    ("before", "same"),
    [
        (b"", True),
        (b"Received: from a by b\r\n\t; now\r\nReturn-Path: <>\r\n", True),
        (b"DELIVERED-TO: a@b.fr\nX-Original-To: c@d.fr\nAuthentication-Results: x\nReceived-SPF: pass\n", True),
        (b"ARC-Seal: i=1\r\nARC-Message-Signature: i=1;\r\n\tb=x\r\narc-authentication-results: i=1\r\n", True),
        (b"DKIM-Signature: v=1; d=x.fr\r\nX-Spam-Status: No\r\nX-Spam-Score: 0\r\nX-Virus-Scanned: ok\r\n", True),
        (b"X-Received: by c\r\nEnvelope-To: a@b.fr\r\n", True),
        (b"ARC: x\r\n", False),
        (b"X-Spam: x\r\n", False),
        (b"X-MSS-CODECDA: x\r\n", False),
        (b"Subject: autre\r\n", False),
        (b"Received: x\r\nTo: autre@x.fr\r\n", False),
        (b"Received : x\r\n", False),
        (b"Receiveds: x\r\n", False),
        (b" Received: x\r\n", False),
        (b"\r\nReceived: x\r\n", False),
    ],
)
def test_copies_of_a_mail_differ_in_what_operators_put_before_it(before: bytes, same: bool) -> None:
    mail = b"From: a@x.fr\r\nReceived: the sender's own\r\n\r\nReceived: un\r\n"
    assert (received.carried(before + mail) == received.carried(b"Received: z\r\n" + mail) == mail) is same


@pytest.mark.parametrize(
    "raw",
    [b"", b"Received: " + b"x" * 3_000_000, b"Received: x\n" * 200_000, b"Received: x\n" + b" \n" * 1_000_000],
    ids=["empty", "long", "many", "folded"],
)
def test_a_head_of_nothing_but_trace_fields_ends(raw: bytes) -> None:
    assert len(received.carried(raw)) in (0, len(raw))
