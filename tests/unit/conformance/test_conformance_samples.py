"""The test data are what they claim to be: a PAM France admission, a readable ultrasound image."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from conformance.samples import admission, ultrasound
from conformance.target import Options

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"


def segments(message: bytes, codec: str = "utf-8") -> dict[str, list[str]]:
    assert message.endswith(b"\r")
    return {line[:3]: line.split("|") for line in message.decode(codec).split("\r")[:-1]}


def test_the_admission_has_the_segments_of_pam_france_in_order() -> None:
    found = segments(admission(Options(), "ID1", "P1"))
    assert list(found) == ["MSH", "EVN", "PID", "PV1", "ZBE"]
    header = found["MSH"]
    assert header[:2] == ["MSH", "^~\\&"]
    assert header[2:6] == ["CONFORMITE", "KIT", "PASSERELLE", "PASSERELLE"]
    assert header[8:12] == ["ADT^A01^ADT_A01", "ID1", "D", "2.5^FRA^2.11"]
    assert header[16:18] == ["FRA", "UNICODE UTF-8"]
    assert found["PID"][3] == "P1^^^KIT&999999999&M^PI"
    assert found["PID"][5] == "CONFORMITE^ESSAI^ESSAI^^^^L"
    assert (found["PID"][7], found["PID"][8], found["PID"][32]) == ("19790328", "F", "PROV")
    assert found["PV1"][2] == "I"
    assert found["PV1"][19] == "VP1^^^KIT&999999999&M^VN"
    assert (found["ZBE"][4], found["ZBE"][5], found["ZBE"][9]) == ("INSERT", "N", "HMS")


@pytest.mark.needs("shared")
def test_its_fields_stand_where_those_of_the_national_sample_stand(shared: Path) -> None:
    national = segments((shared / "ans-hl7v2" / "sgl-adt-a01-admission.er7").read_bytes().replace(b"\n", b"\r"))
    ours = segments(admission(Options(ins="279035121518989"), "ID1", "P1"))
    for name in ("MSH", "EVN", "PID", "ZBE"):
        extra = {n for n, value in enumerate(ours[name]) if value} - {n for n, v in enumerate(national[name]) if v}
        assert extra == set(), (name, extra)


def test_an_ins_makes_the_identity_qualified() -> None:
    found = segments(admission(Options(ins="279035121518989"), "ID1", "P1"))
    assert "~279035121518989^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS" in found["PID"][3]
    assert found["PID"][32] == "VALI"


def test_segments_can_be_left_out() -> None:
    assert "PID" not in segments(admission(Options(), "ID1", "P1", without=("PID",)))


def test_the_charset_of_msh_18_is_that_of_the_bytes() -> None:
    message = admission(Options(family="LECŒUR"), "ID1", "P1", charset="8859/15")
    assert segments(message, "iso8859-15")["PID"][5].startswith("LECŒUR^")
    assert b"LEC\xbcUR" in message


def test_a_name_with_separators_is_escaped() -> None:
    found = segments(admission(Options(family="A|B^C&D\\E~F\rG"), "ID1", "P1"))
    assert found["PID"][5].startswith("A\\F\\B\\S\\C\\T\\D\\E\\E\\R\\F G^")


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_another_library_reads_the_image(syntax: str) -> None:
    from pydicom.filereader import read_dataset

    instance, data = ultrasound(Options(family="LECŒUR"), syntax)
    image = read_dataset(BytesIO(data), is_implicit_VR=syntax == IMPLICIT, is_little_endian=True)
    assert instance == image.SOPInstanceUID
    assert str(image.PatientName) == "LECŒUR^ESSAI"
    assert (image.Rows, image.Columns, len(image.PixelData)) == (8, 8, 64)
    assert [one.tag for one in image] == sorted(one.tag for one in image)


def test_no_two_images_share_an_instance_uid() -> None:
    assert ultrasound(Options(), EXPLICIT)[0] != ultrasound(Options(), EXPLICIT)[0]
