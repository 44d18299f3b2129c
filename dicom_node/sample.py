"""A fictitious ultrasound clip for demonstrations: 30 JPEG Baseline frames, 320 x 240, from pydicom's own examples.

Hides where the pixels come from (a file inside the pydicom wheel, no download) and removes everything its device
wrote about a patient or itself; the pixel data bytes stay as they are.

Sources: PS3.3 A.7 (US Multi-frame), C.2.3 (issuer of Patient ID), PS3.10 section 7.1.
"""

from __future__ import annotations

import io
import uuid
from datetime import datetime
from typing import Any

from dicom_node.contexts import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_node.header import Identifier

_TEMPLATE = "examples_ybr_color.dcm"
_KEPT = frozenset(
    {
        "SOPClassUID", "ImageType", "Modality", "FrameTime", "SequenceOfUltrasoundRegions", "SamplesPerPixel",
        "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "FrameIncrementPointer", "Rows",
        "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression",
        "LossyImageCompressionRatio", "PixelData",
    }
)  # fmt: skip
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:passerelle:sample")


def uid(*names: str) -> str:
    """A UID made of names: the same names give the same UID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_SPACE, '|'.join(names)).int}"


def clip(
    *,
    patient_id: Identifier,
    patient_name: str,
    birth_date: str = "",
    sex: str = "",
    accession_number: str = "",
    taken: datetime = datetime(2026, 3, 2, 9, 30),  # noqa: DTZ001 - DICOM times are local and zone-less
    description: str = "Échocardiographie",
    referrer: str = "",
    study_uid: str = "",
    series_uid: str = "",
    instance_uid: str = "",
    number: int = 1,
) -> bytes:
    """A complete Part 10 file. `patient_name`, `referrer` as DICOM PN (`DURAND^Alix`); `birth_date` YYYYMMDD.

    Same arguments, same bytes: UIDs left empty are made of the patient, the accession number and the date.
    """
    import pydicom
    from pydicom.data import get_testdata_file

    template: Any = pydicom.dcmread(str(get_testdata_file(_TEMPLATE, download=False)))
    ds = pydicom.Dataset()
    for element in template:
        if element.keyword in _KEPT:
            ds.add(element)
    key = (patient_id.value, accession_number, taken.isoformat())
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPInstanceUID = instance_uid or uid("instance", *key, str(number))
    ds.StudyInstanceUID = study_uid or uid("study", *key)
    ds.SeriesInstanceUID = series_uid or uid("series", *key)
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = taken.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = taken.strftime("%H%M%S")
    ds.Manufacturer, ds.ManufacturerModelName, ds.StationName = "Passerelle", "Fictitious ultrasound", "DEMO"
    ds.StudyDescription = ds.SeriesDescription = description
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, number
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.PatientOrientation = accession_number, referrer, ""
    _patient(ds, patient_id, patient_name, birth_date, sex)
    return _part10(ds, str(template.file_meta.TransferSyntaxUID))


def _patient(ds: Any, patient_id: Identifier, name: str, birth_date: str, sex: str) -> None:
    import pydicom

    ds.PatientName, ds.PatientBirthDate, ds.PatientSex = name, birth_date, sex
    ds.PatientID = patient_id.value
    if patient_id.issuer:
        ds.IssuerOfPatientID = patient_id.issuer
    if patient_id.universal_id:
        qualifier = pydicom.Dataset()
        qualifier.UniversalEntityID = patient_id.universal_id
        qualifier.UniversalEntityIDType = patient_id.universal_id_type or "ISO"
        ds.IssuerOfPatientIDQualifiersSequence = [qualifier]


def _part10(ds: Any, transfer_syntax: str) -> bytes:
    import pydicom

    meta: Any = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
    ds.file_meta = meta
    ds["PixelData"].is_undefined_length = True
    written = io.BytesIO()
    ds.save_as(written, enforce_file_format=True)
    return written.getvalue()
