"""The mail we freeze: its headers, its parts, and that nothing put in can become a header."""

from __future__ import annotations

import email
import email.policy
import io
import zipfile
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mssante import archive, envelope
from mssante.letter import Address, Letter, capitals, pdf_name, plain, subject

DATA = Path(__file__).resolve().parents[2] / "data" / "mssante"
LETTER = Letter(
    label="CR de télémédecine", family="Pat-Trois", given="Dominique", birth_date=date(1979, 3, 28),
    performed=date(2025, 1, 10), codes=("85208-7",), qualified=True, text="Bonjour,\nvoilà.\n",
)  # fmt: skip
SENDER = Address("tlx.app@expert.mssante.fr", "Plateforme Téléexpertise")
EXPERT = Address("dumas.olivier@expert.mssante.fr", "Dr_Olivier_DUMAS_CH, Expert")
REQUESTER = Address("bernard.vacquier@medecin.mssante.fr", "Bernard VACQUIER")
DATE = datetime(2025, 1, 10, 15, 31, 5, tzinfo=timezone(timedelta(hours=1)))
FILES = {"INDEX.HTM": b"i\r\n", "README.TXT": b"r\r\n", "METADATA.XML": b"<m/>", "DOC0001.XML": b"<d/>" * 400}
PDF = bytes(range(256)) * 33


def sent(letter: Letter = LETTER, **changed: Any) -> bytes:
    given: dict[str, Any] = {
        "delivery_id": "AB7K2M4QX9ZT3WLR6PCD", "date": DATE, "sender": SENDER, "recipients": [REQUESTER],
        "reply_to": EXPERT, "product": "PASSERELLE-0.1", "xdm": envelope.xdm_zip(FILES), "pdf": PDF,
    }  # fmt: skip
    return envelope.mail(letter, **{**given, **changed})


def parsed(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def test_the_headers_are_those_of_the_national_rules() -> None:
    message = parsed(sent())
    assert message["From"].addresses[0].display_name == "Plateforme Téléexpertise"
    assert message["From"].addresses[0].addr_spec == "tlx.app@expert.mssante.fr"
    assert message["Reply-To"].addresses[0].display_name == "Dr_Olivier_DUMAS_CH, Expert"
    assert message["To"].addresses[0].addr_spec == "bernard.vacquier@medecin.mssante.fr"
    assert message["Subject"] == "XDM/1.0/DDM+CR de télémédecine PAT-TROIS Dominique 28/03/1979"
    assert message["Message-ID"] == "<AB7K2M4QX9ZT3WLR6PCD@expert.mssante.fr>"
    assert message["Date"] == "Fri, 10 Jan 2025 15:31:05 +0100"
    assert message["Disposition-Notification-To"].split()[-1] == "<tlx.app@expert.mssante.fr>"
    assert (message["X-MSS-CODECDA"], message["X-MSS-INS"], message["X-MSS-NIL"]) == ("85208-7", "O", "PASSERELLE-0.1")
    assert message["X-MSS-MES"] is None


def test_the_parts_are_the_text_the_archive_and_the_pdf_with_intact_bytes() -> None:
    message = parsed(sent())
    text, zipped, pdf = message.iter_parts()
    assert message.get_content_type() == "multipart/mixed"
    assert text.get_content_type() == "text/plain" and text.get_content() == "Bonjour,\r\nvoilà.\r\n"
    assert (zipped.get_content_type(), zipped.get_filename()) == ("application/zip", "IHE_XDM.ZIP")
    assert zipped.get_content() == envelope.xdm_zip(FILES)
    assert pdf.get_content_type() == "application/pdf"
    assert pdf.get_filename() == "20250110_CR de télémédecine_PAT-TROIS_Dominique.pdf"
    assert pdf.get_content() == PDF


def test_the_mail_is_seven_bit_with_crlf_and_short_lines() -> None:
    raw = sent(replace(LETTER, given="Éléonore-" * 30), sender=replace(SENDER, display="Œ" * 200))
    assert raw.isascii()
    assert raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
    assert max(map(len, raw.split(b"\r\n"))) <= 78


def test_the_same_values_give_the_bytes_of_the_golden_file() -> None:
    assert sent() == sent()
    assert sent(xdm=b"PK", pdf=b"%PDF") == (DATA / "mail.golden.eml").read_bytes()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"label": "Compte rendu d'une téléexpertise d'échographie obstétricale"},
         "XDM/1.0/DDM+Compte rendu d'une téléexpertise d'échog PAT-TROIS Dominique 28/03/1979"),
        ({"family": "d'Ærœskøbing  Lefèvre"},
         "XDM/1.0/DDM+CR de télémédecine D'AEROESKØBING LEFEVRE Dominique 28/03/1979"),
        ({"birth_date": None}, "XDM/1.0/DDM+CR de télémédecine PAT-TROIS Dominique"),
        ({"replaces": True}, "[Annule et remplace] XDM/1.0/DDM+CR de télémédecine PAT-TROIS Dominique 28/03/1979"),
        ({"label": "2 documents"}, "XDM/1.0/DDM+2 documents PAT-TROIS Dominique 28/03/1979"),
    ],
)  # fmt: skip
def test_the_subject_follows_the_rule(changed: dict[str, Any], expected: str) -> None:
    letter = replace(LETTER, **changed)
    assert subject(letter) == expected
    assert parsed(sent(letter))["Subject"] == expected


def test_the_patient_who_may_not_answer_and_the_unqualified_identity_are_told() -> None:
    message = parsed(sent(replace(LETTER, last_word=True, qualified=False, codes=("85208-7", "11502-2"))))
    assert (message["X-MSS-MES"], message["X-MSS-INS"], message["X-MSS-CODECDA"]) == ("FIN", "N", "85208-7,11502-2")


def test_the_pdf_name_holds_no_path_and_no_reserved_character() -> None:
    letter = replace(LETTER, label='a/b\\c:d*"<>|', family="..", given="../../etc", record="12/34")
    assert pdf_name(letter) == "20250110_a b c d_etc_12 34.pdf"


def test_capitals_drop_accents_only() -> None:
    assert capitals("Nuñez-Œdipe ß") == "NUNEZ-OEDIPE SS"


@pytest.mark.parametrize(
    "changed",
    [
        {"sender": Address("a@b.fr\r\nBcc: x@y.fr")},
        {"sender": Address("not an address")},
        {"recipients": [Address("é@b.fr")]},
        {"recipients": [Address("a..b@c.fr")]},
        {"recipients": []},
        {"reply_to": Address("<x@y.fr>")},
        {"delivery_id": "a\r\nb"},
        {"delivery_id": ""},
        {"date": datetime(2025, 1, 10)},  # noqa: DTZ001 - a moment without a zone is the fault
    ],
)
def test_what_is_no_address_id_or_moment_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        sent(**changed)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=120), display=st.text(max_size=120), product=st.text(max_size=40))
def test_no_text_can_add_a_header_or_be_lost(text: str, display: str, product: str) -> None:
    raw = sent(
        replace(LETTER, given=text, label=text, record=text), sender=replace(SENDER, display=display), product=product
    )
    message = parsed(raw)
    assert sorted(message.keys()) == sorted(parsed(sent()).keys())
    read = envelope.read(raw)
    assert read.subject == subject(replace(LETTER, given=text, label=text)).encode("utf-8", "replace").decode()
    assert read.sender == SENDER.address
    assert read.product == plain(product)
    assert [attachment.content for attachment in read.attachments] == [PDF]


def test_the_archive_is_written_in_the_national_order_and_always_the_same() -> None:
    data = envelope.xdm_zip(dict(reversed(FILES.items())))
    assert data == envelope.xdm_zip(FILES)
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.namelist() == [
            "INDEX.HTM", "README.TXT", "IHE_XDM/", "IHE_XDM/SUBSET01/", "IHE_XDM/SUBSET01/DOC0001.XML",
            "IHE_XDM/SUBSET01/METADATA.XML",
        ]  # fmt: skip
        assert read.testzip() is None
        assert {info.date_time for info in read.infolist()} == {archive.EPOCH}
        assert read.read("IHE_XDM/SUBSET01/DOC0001.XML") == FILES["DOC0001.XML"]


def test_a_style_sheet_goes_beside_the_document_and_the_time_of_the_entries_can_be_given() -> None:
    data = envelope.xdm_zip({**FILES, "FSTYLE.XSL": b"<x/>", "DOC0002.XML": b"<e/>"}, at=DATE)
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert [name.rpartition("/")[2] for name in read.namelist()][4:] == [
            "DOC0001.XML", "DOC0002.XML", "FSTYLE.XSL", "METADATA.XML",
        ]  # fmt: skip
        assert read.infolist()[0].date_time == (2025, 1, 10, 15, 31, 4)


@pytest.mark.parametrize("name", ["../X.XML", "LONGERNAME.XML", "lower.xml", "A.B.C", "X"])
def test_a_name_beyond_iso_9660_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"8\.3"):
        envelope.xdm_zip({**FILES, name: b""})


def test_an_archive_without_metadata_is_refused() -> None:
    with pytest.raises(ValueError, match=r"METADATA\.XML"):
        envelope.xdm_zip({"INDEX.HTM": b"", "README.TXT": b"", "DOC0001.XML": b""})
