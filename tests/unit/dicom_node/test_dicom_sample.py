"""The clip of the demonstration: valid, fictitious, always the same."""

import io
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicom_node import header as headers
from dicom_node import sample
from dicom_node.archive import file_meta
from dicom_node.contexts import valid_uid
from dicom_node.header import Identifier

ARGUMENTS: dict[str, Any] = {
    "patient_id": Identifier("279035121518989", "INS", "1.2.250.1.213.1.4.10", "ISO"),
    "patient_name": "ÉLAN^Zoé^Marie",
    "birth_date": "19790302",
    "sex": "F",
    "accession_number": "TLX0000000000042",
}


def read(raw: bytes) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(raw))


def test_the_same_arguments_make_the_same_bytes() -> None:
    assert sample.clip(**ARGUMENTS) == sample.clip(**ARGUMENTS)


def test_pixel_data_are_those_of_the_template_and_nothing_else_is_left_of_it() -> None:
    template = pydicom.dcmread(str(get_testdata_file("examples_ybr_color.dcm", download=False)))
    ds = read(sample.clip(**ARGUMENTS))
    assert ds.PixelData == template.PixelData
    assert not any(element.tag.is_private for element in ds)
    text = str(ds).replace("Ultrasound Multi-frame", "")
    assert not any(trace in text for trace in ("SonoSite", "2016", "PLA'", "1.2.840.114340"))


def test_the_caller_names_the_patient_the_request_and_the_uids(tmp_path: Path) -> None:
    path = tmp_path / "clip.dcm"
    path.write_bytes(sample.clip(**ARGUMENTS, study_uid="1.2.3", series_uid="1.2.3.1", instance_uid="1.2.3.1.1"))
    meta = file_meta(path)
    found = headers.read(path.read_bytes()[meta.offset :], meta.transfer_syntax_uid)
    assert meta.sop_instance_uid == found.sop_instance_uid == "1.2.3.1.1"
    assert (found.study_instance_uid, found.series_instance_uid) == ("1.2.3", "1.2.3.1")
    assert (found.patient_id, found.patient_name) == (ARGUMENTS["patient_id"], "ÉLAN^Zoé^Marie")
    assert (found.patient_birth_date, found.patient_sex) == ("19790302", "F")
    assert found.accession_number == Identifier("TLX0000000000042") and not found.tolerated


@pytest.mark.parametrize(
    "other",
    [
        {"accession_number": "B"},
        {"patient_id": Identifier("2")},
        {"taken": datetime(2026, 3, 3, 9)},  # noqa: DTZ001 - DICOM times have no zone
    ],
)
def test_another_patient_request_or_time_is_another_study(other: dict[str, Any]) -> None:
    one, two = read(sample.clip(**ARGUMENTS)), read(sample.clip(**{**ARGUMENTS, **other}))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert one[keyword].value != two[keyword].value and valid_uid(one[keyword].value)


def test_two_clips_of_one_study_share_its_series() -> None:
    one, two = read(sample.clip(**ARGUMENTS)), read(sample.clip(**ARGUMENTS, number=2))
    assert one.SeriesInstanceUID == two.SeriesInstanceUID and one.SOPInstanceUID != two.SOPInstanceUID
