"""Addresses and settings, right and wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from conformance.target import Context, Options, Target, UsageError, option_help, target


def test_three_addresses_make_a_target() -> None:
    found = target(["fhir=http://h:8080/fhir/", "hl7v2=mllps://h:2575", "dicom=dicom://PASSERELLE@h:11112"])
    assert str(found.fhir) == "http://h:8080/fhir"
    assert str(found.hl7v2) == "mllps://h:2575"
    assert str(found.dicom) == "dicom://PASSERELLE@h:11112"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("fhir=https://example.org", "https://example.org:443"),
        ("fhir=http://[::1]:8080/r4", "http://::1:8080/r4"),
        ("dicom=dicom://MY%20AE@h:104", "dicom://MY AE@h:104"),
    ],
)
def test_unusual_addresses_are_understood(address: str, text: str) -> None:
    found = target([address])
    assert str(found.fhir or found.dicom) == text


@pytest.mark.parametrize(
    "address",
    [
        "", "fhir", "fhir=", "smtp=smtp://h", "fhir=ftp://h", "fhir=http://", "fhir=http://h:99999/", "fhir=http://u@h/x",
        "hl7v2=mllp://h", "hl7v2=h:2575", "hl7v2=mllp://h:port", "dicom=dicom://h:104", "dicom=dicom://AE@h",
        "dicom=dicom://SEVENTEENLETTERSX@h:104", "dicom=dicom://%C3%89@h:104",
    ],
)  # fmt: skip
def test_a_wrong_address_is_a_usage_error_that_shows_the_right_form(address: str) -> None:
    with pytest.raises(UsageError, match="fhir=http://HOST:PORT/PATH"):
        target([address])


def test_no_address_and_two_addresses_of_a_wire_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="no --target"):
        target([])
    with pytest.raises(UsageError, match="one address a wire"):
        target(["hl7v2=mllp://h:1", "hl7v2=mllp://h:2"])


def test_settings_are_read_by_type() -> None:
    options = target(["hl7v2=mllp://h:1"], ["timeout=2.5", "keep=yes", "authority=CHU&1.2.3&ISO"]).options
    assert (options.timeout, options.keep, options.authority) == (2.5, True, "CHU&1.2.3&ISO")


@pytest.mark.parametrize(
    "setting", ["timeout", "timeout=", "timeout=-1", "timeout=nan", "timeout=inf", "keep=true", "no_such=1", "=1"]
)
def test_a_wrong_setting_is_a_usage_error(setting: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        target(["hl7v2=mllp://h:1"], [setting])


def test_every_setting_has_a_help_text() -> None:
    names = [name for name, _, _ in option_help()]
    assert names == [one.name for one in dataclasses.fields(Options)]
    assert all(len(told) > 3 for _, _, told in option_help())


def test_the_token_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert Target(options=Options(token_file=str(tmp_path / "token"))).bearer() == "abc"
    with pytest.raises(UsageError, match="token_file"):
        Target(options=Options(token_file=str(tmp_path / "absent"))).bearer()


def test_a_certificate_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    keyed = target(["hl7v2=mllps://h:2575"], [f"ca_file={tmp_path / 'absent.pem'}"])
    with pytest.raises(UsageError, match="TLS files"):
        Context(keyed).mllp()


def test_unique_names_fit_msh_10_and_do_not_repeat() -> None:
    at = Context(Target())
    names = {at.unique() for _ in range(200)}
    assert len(names) == 200
    assert all(len(name) == 20 and name.isalnum() for name in names)


def test_until_gives_up_after_its_time() -> None:
    asked: list[int] = []

    def never() -> bool:
        asked.append(1)
        return False

    at = Context(Target())
    assert not at.until(never, 0.06)
    assert asked
    assert at.until(lambda: True, 0.01)
