"""MSH-18 that cannot be true: ISO 8859 with bytes that mean nothing there."""

from __future__ import annotations

import pytest

from hl7v2.text import detect


@pytest.mark.parametrize("declared", ["8859/1", "8859/15", "8859/2"])
def test_bytes_that_an_iso_8859_has_no_sign_for_are_read_in_the_partners_character_set(declared: str) -> None:
    raw = "D’ARC l’été".encode("cp1252")
    found = detect(raw, declared)
    assert found.decode(raw) == "D’ARC l’été"
    assert found.note == f"MSH-18 says {declared}, read as windows-1252"


@pytest.mark.parametrize("declared", ["8859/1", "8859/15", "8859/2"])
def test_utf_8_that_is_declared_as_an_iso_8859_is_read_as_utf_8_where_it_cannot_be_that(declared: str) -> None:
    raw = "Noémie É ’".encode()
    found = detect(raw, declared)
    assert found.decode(raw) == "Noémie É ’"
    assert found.note == f"MSH-18 says {declared}, read as UTF-8"


def test_msh_18_is_believed_as_long_as_it_can_be_true() -> None:
    raw = "Noémie".encode()
    found = detect(raw, "8859/1")
    assert (found.decode(raw), found.note) == ("NoÃ©mie", "")


def test_the_partners_own_character_set_is_asked_before_windows_1252() -> None:
    raw = "Привет".encode("cp1251")
    found = detect(b"\x98" + raw[1:], "8859/15", None, "koi8-r")
    assert (found.codec, found.note) == ("koi8-r", "MSH-18 says 8859/15, read as koi8-r")


def test_a_partners_iso_8859_that_cannot_be_true_either_gives_way_to_windows_1252() -> None:
    raw = "D’ARC".encode("cp1252")
    for declared in ("", "8859/15"):
        found = detect(raw, declared, None, "8859/15")
        assert found.decode(raw) == "D’ARC"
        assert "read as windows-1252: 8859/15 has no sign" in found.note
