"""Decoding of text values, against the worked examples of PS3.5 annexes H, I and J as pydicom ships them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.charset import decode


@pytest.mark.parametrize(
    ("declared", "raw", "text"),
    [
        ("ISO_IR 100", "Buc^Jérôme".encode("latin_1"), "Buc^Jérôme"),
        ("ISO_IR 192", "Zoé^Noël ".encode(), "Zoé^Noël"),
        ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        ("ISO_IR 203", "œuvre €".encode("iso8859_15"), "œuvre €"),
        ("\\ISO 2022 IR 100", b"Buc^J\x1b-A\xe9r\xf4me", "Buc^Jérôme"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", b"J\xe9r\xf4me=\x1b-L\xbb\xee=J\xe9", "Jérôme=Лю=Jé"),
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        ("\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
    ],
)
def test_text_is_read_in_its_declared_character_set(declared: str, raw: bytes, text: str) -> None:
    assert decode(raw, declared) == text


@pytest.mark.parametrize("declared", ["", "ISO_IR 6", "ISO_IR 192", "nonsense", "ISO_IR 999\\x"])
def test_accents_sent_without_saying_so_survive(declared: str) -> None:
    assert decode("Zoé".encode("latin_1"), declared) == "Zoé"


def test_utf8_sent_without_saying_so_survives() -> None:
    assert decode("Zoé".encode(), "") == "Zoé"


def test_padding_is_removed() -> None:
    assert decode(b"CHU \0", "") == "CHU"


@given(st.binary(max_size=200), st.sampled_from(["", "ISO_IR 100", "\\ISO 2022 IR 87", "GB18030", "ISO_IR 13"]))
def test_any_bytes_become_text(raw: bytes, declared: str) -> None:
    assert isinstance(decode(raw, declared), str)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_escape_sequence_becomes_text(before: bytes, after: bytes) -> None:
    for escape in (b"\x1b$B", b"\x1b-A", b"\x1b(J", b"\x1b$)C", b"\x1b$(D", b"\x1b-Z"):
        assert isinstance(decode(before + escape + after, "\\ISO 2022 IR 87"), str)
