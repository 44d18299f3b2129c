"""Escapes and character sets of HL7 v2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hl7v2.text import STANDARD, Separators, codec_of, detect, encode, escape, unescape

ODD = Separators("#", "*", "%", "!", "$")
V27 = Separators(truncation="#")
MARKS = st.sampled_from("|^~\\&#FSTREXHN.br0Dd é\r\n\x0b\x1c\x00")


@settings(deadline=None)
@given(st.text() | st.text(MARKS), st.sampled_from([STANDARD, ODD, V27]))
def test_unescape_undoes_escape_for_every_text(text: str, separators: Separators) -> None:
    written = escape(text, separators)
    assert unescape(written, separators) == text
    for sign in (*separators.encoding_characters.replace(separators.escape, ""), separators.field):
        assert sign not in written
    assert not any(ord(sign) < 0x20 or ord(sign) == 0x7F for sign in written)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"a\F\b\S\c\T\d\R\e\E\f", "a|b^c&d~e\\f"),
        (r"A\.br\B", r"A\.br\B"),
        (r"\H\grave\N\ ", r"\H\grave\N\ "),
        (r"\X0D\\X0A\ ", "\r\n "),
        (r"\XC3A9\ ", "é "),
        (r"\XC3\ ", r"\XC3\ "),
        (r"\XZZ\ ", r"\XZZ\ "),
        (r"\C2842\ \M2A2B\ \Zfoo\ ", r"\C2842\ \M2A2B\ \Zfoo\ "),
        (r"a lone \ stays", r"a lone \ stays"),
        (r"C:\temp\x", r"C:\temp\x"),
        (r"\E\.br\E\ ", r"\.br\ "),
        ("\\\\", "\\\\"),
    ],
)
def test_sequences_without_plain_text_meaning_are_kept(written: str, text: str) -> None:
    assert unescape(written) == text


def test_hex_data_are_read_in_the_charset_of_the_message() -> None:
    assert unescape(r"\XE9\ ", codec="iso8859-15") == "é "


def test_text_that_needs_an_escape_character_that_is_not_declared_is_refused() -> None:
    bare = Separators("|", "^", "~", "", "&")
    assert escape("plain", bare) == "plain"
    with pytest.raises(ValueError, match="MSH-2"):
        escape("a^b", bare)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("UNICODE UTF-8", "utf-8"),
        ("unicode utf-8", "utf-8"),
        (" 8859/15 ", "iso8859-15"),
        ("8859/1", "iso8859-1"),
        ("ASCII", "ascii"),
        ("windows-1252", "cp1252"),
        ("UNICODE UTF-16", ""),
        ("utf-16", ""),
        ("utf-7", ""),
        ("hex", ""),
        ("\0", ""),
        ("", ""),
    ],
)
def test_charset_names(name: str, codec: str) -> None:
    assert codec_of(name) == codec


@pytest.mark.parametrize(
    ("raw", "declared", "codec", "noted"),
    [
        ("été".encode(), "UNICODE UTF-8", "utf-8", False),
        ("été".encode("latin-1"), "8859/1", "iso8859-1", False),
        ("œuf à 3 €".encode("iso8859-15"), "8859/15", "iso8859-15", False),
        (b"plain", "", "ascii", False),
        (b"plain", "8859/15", "iso8859-15", False),
        ("été".encode(), "", "utf-8", True),
        ("été".encode("cp1252"), "", "cp1252", True),
        ("été’".encode("cp1252"), "UNICODE UTF-8", "cp1252", True),
        ("l’été".encode("cp1252"), "8859/1", "cp1252", True),
        ("été".encode(), "ASCII", "utf-8", True),
        ("été".encode(), "UNICODE UTF-16", "utf-8", True),
        (b"\x81\x8d\xff", "", "cp1252", True),
    ],
)
def test_the_charset_is_declared_or_found_and_then_noted(raw: bytes, declared: str, codec: str, noted: bool) -> None:
    found = detect(raw, declared)
    assert found.codec == codec
    assert bool(found.note) is noted
    assert isinstance(found.decode(raw), str)


def test_a_partner_setting_overrules_the_message() -> None:
    assert detect("é".encode(), "UNICODE UTF-8", "windows-1252").codec == "cp1252"
    with pytest.raises(ValueError, match="unknown character set"):
        detect(b"", "", "klingon")


def test_what_a_charset_cannot_hold_is_written_as_the_nearest_sign_and_told() -> None:
    assert encode("l’œuf – 3 €", "iso8859-15") == ("l'œuf - 3 €".encode("iso8859-15"), ("’", "–"))
    assert encode("œ", "iso8859-1") == (b"oe", ("œ",))
    assert encode("日本", "iso8859-15") == (b"??", ("日", "本"))
    assert encode("\ud800", "utf-8") == (b"?", ("\ud800",))
    assert encode("tout", "ascii") == (b"tout", ())
