"""The header reader, with pydicom as the judge on every file pydicom ships, and against hostile bytes."""

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filewriter import write_dataset

from dicom_node import header as headers
from dicom_node.archive import file_meta
from dicom_node.contexts import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, TRANSFER_SYNTAXES
from dicom_node.elements import Encoding, Truncated, Unreadable, elements, items
from dicom_node.header import Code, Header, Identifier

EXAMPLES = Path(pydicom.__file__).parent / "data"
FIELDS = {
    "sop_class_uid": "SOPClassUID", "sop_instance_uid": "SOPInstanceUID", "study_instance_uid": "StudyInstanceUID",
    "series_instance_uid": "SeriesInstanceUID", "modality": "Modality", "study_date": "StudyDate",
    "rows": "Rows", "columns": "Columns", "photometric_interpretation": "PhotometricInterpretation",
    "number_of_frames": "NumberOfFrames", "manufacturer": "Manufacturer", "patient_sex": "PatientSex",
}  # fmt: skip


def encoded(ds: Dataset, *, implicit: bool = False, little: bool = True) -> bytes:
    target: Any = pydicom.filebase.DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = implicit, little
    write_dataset(target, ds)
    return bytes(target.getvalue())


def rich() -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    ds.Modality, ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = "US", "Élan^Zoé", "8001", "CHU"
    ds.AccessionNumber, ds.Rows, ds.Columns = "ACC42", 480, 640
    qualifier, other, issuer, request, code = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    qualifier.UniversalEntityID, qualifier.UniversalEntityIDType = "1.2.250.1.213.1.4.10", "ISO"
    ds.IssuerOfPatientIDQualifiersSequence = [qualifier]
    other.PatientID, other.IssuerOfPatientID = "279035121518989", "INS"
    ds.OtherPatientIDsSequence = [other]
    issuer.LocalNamespaceEntityID = "RIS"
    ds.IssuerOfAccessionNumberSequence = [issuer]
    request.AccessionNumber = "REQ1"
    ds.RequestAttributesSequence = [request]
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "12000", "99CHU", "Échographie"
    ds.ProcedureCodeSequence = [code]
    return ds


EXPECTED = Header(
    specific_character_set="ISO_IR 192",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.6.1",
    sop_instance_uid="1.2.3.4",
    study_instance_uid="1.2.3",
    series_instance_uid="1.2.3.1",
    modality="US",
    patient_name="Élan^Zoé",
    rows="480",
    columns="640",
    patient_id=Identifier("8001", "CHU", "1.2.250.1.213.1.4.10", "ISO"),
    other_patient_ids=(Identifier("279035121518989", "INS"),),
    accession_number=Identifier("ACC42", "RIS"),
    requested_accession_numbers=(Identifier("REQ1"),),
    procedure_codes=(Code("12000", "99CHU", "Échographie"),),
)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_header_agrees_with_pydicom_on_every_file_it_ships() -> None:
    compared = 0
    for path in sorted(EXAMPLES.rglob("*.dcm")):
        try:
            meta = file_meta(path)
        except Unreadable:
            continue
        if meta.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            continue
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        found = headers.read(path.read_bytes()[meta.offset :], meta.transfer_syntax_uid)
        for name, keyword in FIELDS.items():
            value = ds.get(keyword)
            assert getattr(found, name) == ("" if value is None else str(value)), (path.name, keyword)
        name = str(ds.get("PatientName") or "")
        assert found.patient_name.rstrip("=") == name.rstrip("=") and found.patient_id.value == str(
            ds.get("PatientID") or ""
        )
        compared += 1
    assert compared > 90


@pytest.mark.parametrize(
    ("syntax", "implicit", "little"),
    [(EXPLICIT_LE, False, True), (IMPLICIT_LE, True, True), (EXPLICIT_BE, False, False)],
)
def test_identifiers_issuers_and_codes_are_read_in_every_encoding(syntax: str, implicit: bool, little: bool) -> None:
    assert headers.read(encoded(rich(), implicit=implicit, little=little), syntax) == EXPECTED


def test_sequences_of_undefined_length_are_read_and_skipped() -> None:
    ds = rich()
    nested, inner = Dataset(), Dataset()
    inner.TextValue = "deep"
    nested.ContentSequence = [inner]
    nested["ContentSequence"].is_undefined_length = True
    ds.add_new(0x00081115, "SQ", [nested])
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
    assert headers.read(encoded(ds), EXPLICIT_LE) == EXPECTED
    assert headers.read(encoded(ds, implicit=True), IMPLICIT_LE) == EXPECTED


def test_a_deflated_data_set_is_read() -> None:
    deflater = zlib.compressobj(wbits=-15)
    raw = deflater.compress(encoded(rich())) + deflater.flush()
    assert headers.read(raw, DEFLATED_LE) == EXPECTED


@pytest.mark.parametrize(("announced", "written"), [(EXPLICIT_LE, True), (IMPLICIT_LE, False)])
def test_the_other_vr_form_is_read_and_noted(announced: str, written: bool) -> None:
    found = headers.read(encoded(rich(), implicit=written), announced)
    assert found.patient_id == EXPECTED.patient_id and len(found.tolerated) == 1


def test_the_first_bytes_are_enough_and_fewer_are_truncated() -> None:
    ds = rich()
    ds.add_new(0x00091001, "OB", b"\0" * 70000)
    ds.add_new(0x00090010, "LO", "PRIVATE")
    raw = encoded(ds)
    with pytest.raises(Truncated):
        headers.read(raw[:65536], EXPLICIT_LE)
    assert headers.read(raw, EXPLICIT_LE) == EXPECTED
    ds = rich()
    ds.PixelData = b"\0" * 100000
    ds["PixelData"].VR = "OW"
    assert headers.read(encoded(ds)[:4096], EXPLICIT_LE) == EXPECTED


def test_a_header_survives_json() -> None:
    import json

    assert headers.from_dict(json.loads(json.dumps(headers.as_dict(EXPECTED)))) == EXPECTED
    assert headers.from_dict({}) == Header()


def test_an_endless_value_is_cut() -> None:
    ds = rich()
    ds.add(pydicom.DataElement("StudyDescription", "LO", "x" * 50000, validation_mode=pydicom.config.IGNORE))
    assert len(headers.read(encoded(ds), EXPLICIT_LE).study_description) == 1024


@given(st.binary(max_size=600), st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE]))
def test_garbage_is_unreadable_or_read_but_nothing_else(raw: bytes, syntax: str) -> None:
    try:
        headers.read(raw, syntax)
    except Unreadable:
        pass


@given(st.data())
def test_a_damaged_header_is_unreadable_or_read_but_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(encoded(rich()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        headers.read(bytes(raw[: data.draw(st.integers(0, len(raw)))]), EXPLICIT_LE)
    except Unreadable:
        pass


def test_nesting_without_end_is_refused() -> None:
    deep = struct.pack("<HH2sHL", 8, 0x1115, b"SQ", 0, 0xFFFFFFFF)
    level = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + deep
    with pytest.raises(Unreadable, match="nested"):
        headers.read(deep + level * 1000, EXPLICIT_LE)


def test_a_deflate_bomb_stays_small_and_quick() -> None:
    deflater = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(256)) + deflater.flush()
    began = time.monotonic()
    with pytest.raises(Unreadable):
        headers.read(bomb, DEFLATED_LE)
    assert time.monotonic() - began < 60


def test_an_item_longer_than_its_sequence_is_refused() -> None:
    raw = struct.pack("<HH2sHLHHL", 8, 0x51, b"SQ", 0, 8, 0xFFFE, 0xE000, 99)
    (element,) = elements(raw, 0, len(raw), Encoding(True, True))
    with pytest.raises(Truncated):
        list(items(raw, element, Encoding(True, True)))


def test_a_stray_delimiter_of_the_wrong_kind_is_refused() -> None:
    raw = struct.pack("<HH2sHLHHL", 8, 0x51, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE00D, 0)
    with pytest.raises(Unreadable):
        list(elements(raw, 0, len(raw), Encoding(True, True)))


def test_the_header_of_an_in_memory_file_is_that_of_the_file() -> None:
    ds = rich()
    target = io.BytesIO()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT_LE
    ds.save_as(target, enforce_file_format=True)
    raw = target.getvalue()
    assert headers.read(raw, EXPLICIT_LE, raw.index(b"\x08\0\x05\0CS")) == EXPECTED
