"""DICOMweb answers: what is accepted, what is refused, and the bytes, read back by the email package."""

import email.parser
import email.policy
import json
from collections.abc import Iterable
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import archive, sample, web
from dicom_node.contexts import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, JPEG_BASELINE
from dicom_node.header import Identifier
from dicom_node.web import NotAcceptable

EXAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
NATIVE, IMPLICIT, BIG = (
    EXAMPLES / "MR_small.dcm",
    EXAMPLES / "MR_small_implicit.dcm",
    EXAMPLES / "MR_small_bigendian.dcm",
)
J2K, RLE = EXAMPLES / "MR_small_jp2klossless.dcm", EXAMPLES / "MR_small_RLE.dcm"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.dcm"
    path.write_bytes(sample.clip(patient_id=Identifier("1"), patient_name="X"))
    return path


def wholes(*paths: Path) -> list[web.Whole]:
    def whole(path: Path) -> web.Whole:
        return web.Whole(archive.file_meta(path).transfer_syntax_uid, lambda: iter([path.read_bytes()]))

    return [whole(path) for path in paths]


def parts(answer: tuple[str, Iterable[bytes]]) -> tuple[str, list[tuple[str, bytes]]]:
    """(outer type parameter, [(Content-Type, content)...])."""
    content_type, body = answer
    raw = b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + b"".join(body)
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(raw)
    assert message.get_content_type() == "multipart/related" and not message.defects
    boundary = str(message.get_boundary()).encode()
    found = []
    for part in raw.split(b"\r\n\r\n", 1)[1].split(b"--" + boundary)[1:-1]:
        head, content = part.split(b"\r\n\r\n", 1)
        found.append((head.decode().partition(": ")[2].strip(), content[:-2]))
    return str(message.get_param("type")), found


def frames(path: Path, accept: str, *numbers: int) -> tuple[str, Iterable[bytes]]:
    return web.frames(path, archive.frame_table(path), numbers or (1,), accept)


JPEG_PART = f"image/jpeg; transfer-syntax={JPEG_BASELINE}"


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        'multipart/related; type="image/jpeg"',
        "multipart/related;type=image/jpeg;transfer-syntax=*",
        f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG_BASELINE}',
        'multipart/related; type="image/*"',
        'multipart/related; type="application/octet-stream"; q=0.9, multipart/related; type="image/jpeg"; q=0.5',
        "multipart/related",
        "text/html, */*;q=0.1",
    ],
)
def test_jpeg_frames_are_given_as_they_are(clip: Path, accept: str) -> None:
    table = archive.frame_table(clip)
    outer, found = parts(frames(clip, accept, 3, 1))
    assert outer == "image/jpeg"
    assert found == [(JPEG_PART, archive.frame(clip, table, n)) for n in (3, 1)]


@pytest.mark.parametrize("accept", ["image/jpeg", "image/*", "image/jpeg; transfer-syntax=*"])
def test_one_frame_may_come_alone(clip: Path, accept: str) -> None:
    content_type, body = frames(clip, accept, 30)
    assert content_type == JPEG_PART
    assert b"".join(body) == archive.frame(clip, archive.frame_table(clip), 30)
    with pytest.raises(NotAcceptable):
        frames(clip, accept, 1, 2)


def test_a_viewer_that_takes_octets_in_any_syntax_gets_the_stored_ones(clip: Path) -> None:
    outer, found = parts(frames(clip, "multipart/related; type=application/octet-stream; transfer-syntax=*"))
    assert (outer, found[0][0]) == (
        "application/octet-stream",
        f"application/octet-stream; transfer-syntax={JPEG_BASELINE}",
    )
    assert found[0][1][:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    "accept",
    [
        'multipart/related; type="application/octet-stream"',
        f'multipart/related; type="application/octet-stream"; transfer-syntax={EXPLICIT_LE}',
        'multipart/related; type="image/jp2"',
        f'multipart/related; type="image/jpeg"; transfer-syntax={EXPLICIT_LE}',
        "image/jpeg; q=0",
        "text/html",
        "nonsense",
    ],
)
def test_what_would_need_transcoding_is_refused_and_says_what_is_there(clip: Path, accept: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        frames(clip, accept)
    assert caught.value.available == (JPEG_PART,) and "transfer-syntax=*" in str(caught.value)


@pytest.mark.parametrize(("path", "media_type"), [(J2K, "image/jp2"), (RLE, "image/dicom-rle")])
def test_the_media_type_follows_the_transfer_syntax(path: Path, media_type: str) -> None:
    syntax = archive.file_meta(path).transfer_syntax_uid
    outer, found = parts(frames(path, f'multipart/related; type="{media_type}"'))
    assert (outer, found[0][0]) == (media_type, f"{media_type}; transfer-syntax={syntax}")


@pytest.mark.parametrize("path", [NATIVE, IMPLICIT])
@pytest.mark.parametrize("accept", ["", 'multipart/related; type="application/octet-stream"', "*/*"])
def test_native_frames_are_octets_in_explicit_little_endian(path: Path, accept: str) -> None:
    outer, found = parts(frames(path, accept))
    assert outer == "application/octet-stream"
    assert found == [(f"application/octet-stream; transfer-syntax={EXPLICIT_LE}", pydicom.dcmread(path).PixelData)]


def test_big_endian_words_are_not_served_as_frames() -> None:
    assert archive.file_meta(BIG).transfer_syntax_uid == EXPLICIT_BE
    with pytest.raises(NotAcceptable):
        frames(BIG, "")


def test_a_frame_that_does_not_exist_fails_before_the_first_byte(clip: Path) -> None:
    for numbers in ((31,), (1, 0), (-1,)):
        with pytest.raises(IndexError):
            frames(clip, "", *numbers)


def test_instances_are_whole_files_in_multipart(clip: Path) -> None:
    outer, found = parts(
        web.instances(wholes(clip, clip), 'multipart/related; type="application/dicom"; transfer-syntax=*')
    )
    assert outer == "application/dicom"
    assert found == [(f"application/dicom; transfer-syntax={JPEG_BASELINE}", clip.read_bytes())] * 2


@pytest.mark.parametrize("accept", ["application/dicom", "application/dicom; transfer-syntax=*"])
def test_one_instance_may_come_alone(clip: Path, accept: str) -> None:
    content_type, body = web.instances(wholes(clip), accept)
    assert content_type == f"application/dicom; transfer-syntax={JPEG_BASELINE}" and b"".join(body) == clip.read_bytes()
    with pytest.raises(NotAcceptable):
        web.instances(wholes(clip, clip), accept)


def test_without_a_transfer_syntax_only_what_the_standard_allows_is_given(clip: Path) -> None:
    """PS3.18 8.7.3: the default is Explicit VR Little Endian, unless the pixel data exist in a lossy form only."""
    plain = 'multipart/related; type="application/dicom"'
    for path in (NATIVE, clip):
        assert parts(web.instances(wholes(path), plain))[1][0][1] == path.read_bytes()
    for path in (J2K, IMPLICIT):
        with pytest.raises(NotAcceptable):
            web.instances(wholes(path), plain)
        syntax = archive.file_meta(path).transfer_syntax_uid
        for given_syntax in ("*", syntax):
            answer = web.instances(wholes(path), f"{plain}; transfer-syntax={given_syntax}")
            assert parts(answer)[1] == [(f"application/dicom; transfer-syntax={syntax}", path.read_bytes())]
    assert archive.file_meta(IMPLICIT).transfer_syntax_uid == IMPLICIT_LE


def test_a_jpeg_frame_is_rendered_without_decoding(clip: Path) -> None:
    table = archive.frame_table(clip)
    content_type, body = web.rendered(clip, table, 5)
    assert (content_type, b"".join(body)) == ("image/jpeg", archive.frame(clip, table, 5))
    with pytest.raises(NotAcceptable):
        web.rendered(NATIVE, archive.frame_table(NATIVE), 1)


@pytest.mark.parametrize("accept", ["", "application/dicom+json", "*/*", "application/json"])
def test_metadata_are_one_json_array(clip: Path, accept: str) -> None:
    content_type, body = web.metadata([archive.metadata_json(clip)] * 2, accept)
    assert content_type == ("application/json" if accept == "application/json" else "application/dicom+json")
    assert [model["00280008"]["Value"] for model in json.loads(b"".join(body))] == [[30], [30]]
    assert json.loads(b"".join(web.metadata([])[1])) == []


def test_metadata_as_xml_are_refused(clip: Path) -> None:
    with pytest.raises(NotAcceptable):
        web.metadata([], 'multipart/related; type="application/dicom+xml"')


@given(st.text(max_size=300) | st.text(alphabet='multipart/reld;,="*q=0.1 ', max_size=300))
def test_any_accept_header_is_read(header: str) -> None:
    ranges = web.parse_accept(header)
    assert list(ranges) == sorted(ranges, key=lambda r: -r.quality) and all(r.quality > 0 for r in ranges)


def test_an_accept_header_without_end_is_read_in_part() -> None:
    assert len(web.parse_accept(",".join(["image/jpeg"] * 10_000))) == 64
