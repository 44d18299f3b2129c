"""Frame tables and metadata of stored files, with pydicom as the judge."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames

from dicom_node import archive, sample
from dicom_node.archive import FrameTable, NoFrames
from dicom_node.contexts import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, JPEG_BASELINE
from dicom_node.elements import Unreadable
from dicom_node.header import Identifier

EXAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
JPEG2000 = "1.2.840.10008.1.2.4.90"


def written(folder: Path, syntax: str = JPEG_BASELINE, **values: Any) -> Path:
    """A minimal image object."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.3"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated = 4, 6, 1, 8
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 7, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    if "PixelData" in ds:
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = pydicom.uid.UID(syntax).is_encapsulated
    path = folder / "object.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def frames_of(path: Path) -> list[bytes]:
    table = archive.frame_table(path)
    return [archive.frame(path, table, n + 1) for n in range(len(table.frames))]


def test_the_frames_of_the_clip_are_those_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "clip.dcm"
    path.write_bytes(sample.clip(patient_id=Identifier("1"), patient_name="X"))
    table = archive.frame_table(path)
    assert (table.transfer_syntax, table.photometric, table.samples) == (JPEG_BASELINE, "YBR_FULL_422", 3)
    assert (table.rows, table.columns, table.bits, len(table.frames)) == (240, 320, 8, 30)
    original = pydicom.dcmread(EXAMPLES / "examples_ybr_color.dcm").PixelData
    assert frames_of(path) == list(generate_frames(original, number_of_frames=30))
    assert all(frame[:2] == b"\xff\xd8" for frame in frames_of(path))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_frames_of_every_example_are_those_pydicom_finds() -> None:
    compared = 0
    for path in sorted(EXAMPLES.rglob("*.dcm")):
        try:
            found = frames_of(path)
        except (NoFrames, Unreadable):
            continue
        ds = pydicom.dcmread(path)
        count = int(ds.get("NumberOfFrames") or 1)
        if ds.file_meta.TransferSyntaxUID.is_encapsulated:
            expected = list(generate_frames(ds.PixelData, number_of_frames=count))
        else:
            pixels = ds[next(t for t in (0x7FE00010, 0x7FE00008, 0x7FE00009) if t in ds)].value
            size = len(found[0])
            expected = [pixels[n * size : (n + 1) * size] for n in range(count)]
        assert found == expected, path.name
        compared += 1
    assert compared > 50


FRAMES = [bytes([0xFF, 0xD8, n]) + bytes(range(n, n + 40)) + b"\xff\xd9" for n in range(5)]


def even(frames: list[bytes]) -> list[bytes]:
    return [frame + b"\0" * (len(frame) % 2) for frame in frames]


@settings(max_examples=40, deadline=None)
@given(fragments=st.integers(1, 4), count=st.integers(1, 5), table=st.sampled_from(["basic", "extended", "none"]))
def test_frames_are_found_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, fragments: int, count: int, table: str
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    values: dict[str, Any] = {"NumberOfFrames": count}
    if table == "extended":
        pixels, offsets, lengths = encapsulate_extended(FRAMES[:count])
        values |= {"PixelData": pixels, "ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    else:
        values["PixelData"] = encapsulate(FRAMES[:count], fragments_per_frame=fragments, has_bot=table == "basic")
    path = written(folder, **values)
    assert frames_of(path) == even(FRAMES[:count])
    if table == "basic":
        assert {len(spans) for spans in archive.frame_table(path).frames} == {fragments}


def test_an_extended_offset_table_groups_fragments(tmp_path: Path) -> None:
    frames = [b"\0" * 10, b"\1" * 20, b"\2" * 30]
    pixels = encapsulate(frames, fragments_per_frame=2, has_bot=False)
    starts = struct.pack("<3Q", 0, 10 + 16, 10 + 16 + 20 + 16)
    path = written(tmp_path, JPEG2000, NumberOfFrames=3, PixelData=pixels, ExtendedOffsetTable=starts)
    assert frames_of(path) == frames


def test_fragments_that_cannot_be_told_apart_are_not_guessed(tmp_path: Path) -> None:
    pixels = encapsulate([b"\0" * 10, b"\1" * 20], fragments_per_frame=3, has_bot=False)
    with pytest.raises(NoFrames, match="6 fragments"):
        archive.frame_table(written(tmp_path, JPEG2000, NumberOfFrames=2, PixelData=pixels))


@pytest.mark.parametrize("offsets", [(0, 7), (0, 1 << 31), (26, 0), (0, 0)])
def test_a_lying_offset_table_is_not_followed(tmp_path: Path, offsets: tuple[int, int]) -> None:
    pixels = bytearray(encapsulate(FRAMES[:2], fragments_per_frame=2, has_bot=True))
    struct.pack_into("<2L", pixels, 8, *offsets)
    assert frames_of(written(tmp_path, NumberOfFrames=2, PixelData=bytes(pixels))) == even(FRAMES[:2])


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE])
def test_native_frames_are_cut_by_their_size(tmp_path: Path, syntax: str) -> None:
    pixels = bytes(range(72))
    path = written(tmp_path, syntax, NumberOfFrames=3, PixelData=pixels)
    assert frames_of(path) == [pixels[:24], pixels[24:48], pixels[48:]]


def test_subsampled_native_frames_are_two_thirds_as_long(tmp_path: Path) -> None:
    shape = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0}
    path = written(tmp_path, EXPLICIT_LE, NumberOfFrames=2, PixelData=bytes(96), **shape)
    assert [len(frame) for frame in frames_of(path)] == [48, 48]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"PixelData": b""},
        {"PixelData": bytes(24), "NumberOfFrames": 2},
        {"PixelData": bytes(24), "NumberOfFrames": 0},
        {"PixelData": bytes(24), "Rows": 0},
        {"PixelData": bytes(24), "BitsAllocated": 1, "Rows": 3, "Columns": 3, "NumberOfFrames": 2},
    ],
)
def test_what_has_no_frames_says_so(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(NoFrames):
        archive.frame_table(written(tmp_path, EXPLICIT_LE, **values))


def test_a_frame_that_does_not_exist_is_an_index_error(tmp_path: Path) -> None:
    path = written(tmp_path, EXPLICIT_LE, PixelData=bytes(24))
    for number in (0, 2, -1):
        with pytest.raises(IndexError):
            archive.frame(path, archive.frame_table(path), number)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_file_cut_short_is_unreadable_or_has_no_frames(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, NumberOfFrames=2, PixelData=encapsulate(FRAMES[:2]))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises((Unreadable, NoFrames)):
        archive.frame_table(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_gives_bytes_from_outside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("damage"), NumberOfFrames=3, PixelData=encapsulate(FRAMES[:3]))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(128, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        table: FrameTable = archive.frame_table(path)
    except (Unreadable, NoFrames):
        return
    for spans in table.frames:
        assert all(0 < offset <= offset + length <= len(raw) for offset, length in spans)


@pytest.mark.parametrize("content", [b"", b"x" * 131, b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM\x02\0", b"x" * 4000])
def test_what_is_no_dicom_file_is_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    for read in (archive.file_meta, archive.frame_table, archive.metadata_json):
        with pytest.raises(Unreadable):
            read(path)


def test_metadata_are_dicom_json_without_pixels(tmp_path: Path) -> None:
    path = tmp_path / "clip.dcm"
    path.write_bytes(sample.clip(patient_id=Identifier("8001", "CHU", "1.2.250.1.1"), patient_name="ÉLAN^Zoé"))
    model = archive.metadata_json(path)
    assert model["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "ÉLAN^Zoé"}]}
    assert model["00280008"]["Value"] == [30] and model["00083002"]["Value"] == [JPEG_BASELINE]
    assert model["00100024"]["Value"][0]["00400032"]["Value"] == ["1.2.250.1.1"]
    assert "7FE00010" not in model and not any(tag.startswith("0002") for tag in model)
    assert Dataset.from_json(json.loads(json.dumps(model))).Rows == 240


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_metadata_of_every_example_can_be_written_as_json() -> None:
    made = 0
    for path in sorted(EXAMPLES.rglob("*.dcm")):
        try:
            model = archive.metadata_json(path)
        except Unreadable:
            continue
        assert b"BulkDataURI" not in json.dumps(model).encode()
        made += 1
    assert made > 60


def test_a_deflate_bomb_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, DEFLATED_LE, PixelData=bytes(24))
    offset = archive.file_meta(path).offset
    deflater = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(80)) + deflater.flush()
    path.write_bytes(path.read_bytes()[:offset] + bomb)
    with pytest.raises(Unreadable, match="longer than"):
        archive.metadata_json(path)
