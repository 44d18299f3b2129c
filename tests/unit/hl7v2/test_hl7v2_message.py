"""The lossless reader: bytes in, the same bytes out, every element where HL7 counts it."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hl7v2.layout import MAX_SEGMENTS
from hl7v2.message import MAX_PARTS, NULL, Message, Unreadable, parse, path

DATA = Path(__file__).resolve().parents[2] / "data" / "hl7v2"
SAMPLES = sorted(DATA.glob("*.er7"))
HEAD = b"MSH|^~\\&|GAM|CH|||20260302||ADT^A01^ADT_A01|C1|T|2.5^FRA^2.11|||||FRA|UNICODE UTF-8\r"
ENDS = {"CR": b"\r", "LF": b"\n", "CRLF": b"\r\n"}


def with_ends(raw: bytes, end: bytes) -> bytes:
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", end)


def content(msg: Message) -> list[bytes]:
    return [segment.raw for segment in msg.segments]


# --- lossless ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
@pytest.mark.parametrize("end", ENDS)
def test_our_samples_come_back_byte_for_byte(sample: Path, end: str) -> None:
    raw = with_ends(sample.read_bytes(), ENDS[end])
    msg = parse(raw)
    assert msg.raw == raw
    assert content(msg) == [line for line in raw.replace(b"\n", b"\r").split(b"\r") if line]
    assert msg.control_id


@pytest.mark.needs("shared")
@pytest.mark.parametrize("end", ["CR", "LF"])
def test_the_national_samples_come_back_byte_for_byte(shared: Path, end: str) -> None:
    samples = [p for p in sorted((shared / "ans-hl7v2").iterdir()) if p.suffix in (".er7", ".hl7")]
    assert len(samples) == 7
    for sample in samples:
        raw = with_ends(sample.read_bytes(), ENDS[end])
        msg = parse(raw)
        assert msg.raw == raw
        lines = [line for line in raw.replace(b"\n", b"\r").split(b"\r") if line]
        assert content(msg) == lines, sample.name
        for segment, line in zip(msg.segments, lines, strict=True):
            # The fields found one by one are those of a plain split.
            fields = line.split(b"|")
            got = {number: value.raw for number, value in segment.fields()}
            if segment.name == "MSH":
                assert got == {1: b"|", **{number + 1: field for number, field in enumerate(fields) if number}}
            else:
                assert got == {number: field for number, field in enumerate(fields) if number}
            assert all(segment.field(number).raw == raw_field for number, raw_field in got.items())


@pytest.mark.needs("shared")
def test_the_admission_sample_keeps_what_other_libraries_drop(shared: Path) -> None:
    msg = parse((shared / "ans-hl7v2" / "sgl-adt-a01-admission.er7").read_bytes())
    assert [segment.name for segment in msg.segments] == ["MSH", "EVN", "PID", "PV1", "ZBE", "ZFA"]
    assert msg.get("ZBE-1.2") == "CHU-X"
    assert msg.get("PID-3[2].4.2") == "1.2.250.1.213.1.4.10"
    assert msg.get("PID-32") == "VALI"


@pytest.mark.needs("shared")
def test_the_document_of_a_message_is_read_without_being_copied(shared: Path) -> None:
    msg = parse((shared / "ans-hl7v2" / "mdm-t02-initial-base64.er7").read_bytes())
    document = msg.encapsulated(msg.all("OBX")[0])
    assert (document.type, document.subtype, document.encoding) == ("text", "XML", "Base64")
    assert document.decode().startswith(b"<ClinicalDocument")


def test_a_byte_order_mark_a_start_block_and_blank_lines_are_tolerated_and_noted() -> None:
    raw = b"\xef\xbb\xbf\x0b\r\n" + HEAD + b"\r\r\nPID|1\r\n \r\nPV1|1|I"
    msg = parse(raw)
    assert msg.raw == raw
    assert [segment.name for segment in msg.segments] == ["MSH", "PID", "PV1"]
    told = " ".join(text for _, text in msg.notes)
    for word in ("byte order mark", "start block", "CRLF", "no segment end"):
        assert word in told


def test_a_line_feed_inside_a_field_does_not_end_the_segment_of_a_cr_message() -> None:
    msg = parse(HEAD + b"NTE|1||two\nlines\nPID|1\r")
    assert [segment.name for segment in msg.segments] == ["MSH", "NTE", "PID"]
    assert msg.get("NTE-3") == "two\nlines"


def test_unknown_and_broken_segments_are_kept_in_their_place() -> None:
    msg = parse(HEAD + b"ZZZ|x\rnot a segment\rpid|1\rPIDX|1\rPV1\rZ9\rOBX\r")
    assert [segment.name for segment in msg.segments] == ["MSH", "ZZZ", "", "", "", "PV1", "", "OBX"]
    assert msg.get("OBX-1") is None


@pytest.mark.parametrize(
    "raw",
    [b"", b"MSH", b"MSH|", b"garbage", b"PID|1\r", b"\0\0\0", b"MSHA^~", b"MSH\r^~\\&|", b"FHS|^~\\&|", b"BHS|^~\\&|"],
)
def test_what_is_no_message_is_refused_with_a_location(raw: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(raw)
    assert caught.value.location.startswith("MSH^1")
    assert caught.value.code in ("100", "200")


@settings(deadline=None)
@given(st.binary(max_size=400))
@example(b"MSH|^~\\&")
@example(b"MSH||||")
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        msg = parse(raw)
    except Unreadable:
        return
    assert msg.raw == raw
    assert isinstance(msg.get("MSH-9.1"), str | None)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_body_behind_a_header_can_be_walked(body: bytes) -> None:
    msg = parse(HEAD + body)
    for segment in msg.segments:
        for number, value in segment.fields():
            assert segment.field(number).raw == value.raw
            for rep in value.repetitions():
                for component in rep.parts():
                    assert isinstance(component.text, str)


# --- addressing ----------------------------------------------------------------------------------------------------

ADT = parse(
    HEAD + b'PID|1||1^^^A&1.2.3&ISO^PI~2^^^B^INS||NOM^PRENOM||""|F|^^|\rOBX|1|ST|C||one\rOBX|2|ST|C||two^b&c~three\r'
)


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("MSH-1", "|"),
        ("MSH-2", "^~\\&"),
        ("MSH-3", "GAM"),
        ("MSH-9", "ADT"),
        ("MSH-9.2", "A01"),
        ("PID-3", "1"),
        ("PID-3[1].4", "A"),
        ("PID-3[1].4.2", "1.2.3"),
        ("PID-3.4.2", "1.2.3"),
        ("PID-3[2].5", "INS"),
        ("PID-3[2].4.2", None),
        ("PID-3[3]", None),
        ("PID-2", ""),
        ("PID-7", '""'),
        ("PID-7.1", '""'),
        ("PID-7.2", None),
        ("PID-9", ""),
        ("PID-9.3", ""),
        ("PID-9.4", None),
        ("PID-10", ""),
        ("PID-11", None),
        ("OBX-5", "one"),
        ("OBX[2]-5", "two"),
        ("OBX[2]-5[1].2.2", "c"),
        ("OBX[2]-5[2]", "three"),
        ("OBX[3]-5", None),
        ("PV1-1", None),
    ],
)
def test_elements_are_found_where_hl7_counts_them(where: str, text: str | None) -> None:
    assert ADT.get(where) == text
    assert ADT.text(where) == ("" if text in (None, NULL) else text)


def test_absent_empty_and_null_are_three_things() -> None:
    assert [ADT.at(where).state for where in ("PID-11", "PID-2", "PID-7", "PID-8")] == [
        "absent", "empty", "null", "valued",
    ]  # fmt: skip
    assert not ADT.at("PID-9").valued
    assert ADT.at("PID-9").state == "valued"


@pytest.mark.parametrize("where", ["PID", "PID-0", "PID-3[0]", "PID[0]-3", "pid-3", "PID-3.", "PID-3.1.1.1", "PID-3 "])
def test_a_path_that_is_none_is_an_error_of_the_caller(where: str) -> None:
    with pytest.raises(ValueError, match="HL7"):
        path(where)


def test_other_delimiters_than_the_usual_ones_are_obeyed() -> None:
    msg = parse(b"MSH#*%!$#GAM#####ADT*A01###2.3\rPID###1***A$B%2#!F!!S!!R!!T!!E!\r")
    assert msg.get("PID-3[1].4.2") == "B"
    assert msg.get("PID-3[2]") == "2"
    assert msg.get("PID-4") == "#*%$!"


def test_missing_and_doubled_delimiters_leave_the_rest_readable() -> None:
    assert parse(b"MSH|^\rPID|||a^b~c\r").get("PID-3.2") == "b~c"
    assert parse(b"MSH||A\rPID|||a^b\r").get("PID-3") == "a^b"
    assert parse(b"MSH|^^^^|A\rPID|||a^b\r").get("PID-3.2") == "b"
    assert parse(b"MSH||||||\rPID|||a\r").get("PID-3") == "a"


def test_the_truncation_character_of_version_2_7_is_known() -> None:
    msg = parse(b"MSH|^~\\&#|A\rNTE|1||a\\P\\b\r")
    assert msg.get("MSH-2") == "^~\\&#"
    assert msg.get("NTE-3") == "a#b"


def test_text_is_unescaped_and_ed_5_is_not() -> None:
    msg = parse(HEAD + rb"OBX|1|ED|C||^text^XML^A^\F\data\r".replace(rb"\r", b"\r") + b"OBX|2|ST|C||\\F\\\r")
    assert msg.get("OBX-5.5") == "\\F\\data"
    assert msg.all("OBX")[0].field(5).component(5).text == "\\F\\data"
    assert msg.get("OBX[2]-5") == "|"


def test_ed_data_that_are_not_what_they_say_are_refused() -> None:
    msg = parse(HEAD + b"OBX|1|ED|C||^text^XML^Base64^abc!\rOBX|2|ED|C||^text^^Hex^6869\rOBX|3|ED|C||^text^^A^hi\r")
    with pytest.raises(Unreadable):
        msg.encapsulated(msg.all("OBX")[0]).decode()
    assert [msg.encapsulated(segment).decode() for segment in msg.all("OBX")[1:]] == [b"hi", b"hi"]


def test_the_charset_is_that_of_msh_18() -> None:
    body = "PID|1||||Éléonore^Zoë\r"
    for charset, codec in (("UNICODE UTF-8", "utf-8"), ("8859/15", "iso8859-15"), ("8859/1", "iso8859-1")):
        raw = HEAD.replace(b"UNICODE UTF-8", charset.encode()) + body.encode(codec)
        assert parse(raw).get("PID-5") == "Éléonore"
        assert not parse(raw).notes
    wrong = parse(HEAD + body.encode("cp1252"))
    assert wrong.get("PID-5") == "Éléonore"
    assert wrong.notes[0][0] == "MSH-18"
    assert parse(HEAD + body.encode("cp1252"), charset="windows-1252").notes == ()


# --- changing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "value", "segment"),
    [
        ("PID-8", "M", b'PID|1||1^^^A&1.2.3&ISO^PI~2^^^B^INS||NOM^PRENOM||""|M|^^|'),
        ("PID-3[2].4.2", "9|9", b'PID|1||1^^^A&1.2.3&ISO^PI~2^^^B&9\\F\\9^INS||NOM^PRENOM||""|F|^^|'),
        ("PID-3[2]", None, b'PID|1||1^^^A&1.2.3&ISO^PI~||NOM^PRENOM||""|F|^^|'),
        ("PID-5.1", NULL, b'PID|1||1^^^A&1.2.3&ISO^PI~2^^^B^INS||""^PRENOM||""|F|^^|'),
        ("PID-13[2].3.2", "x", b'PID|1||1^^^A&1.2.3&ISO^PI~2^^^B^INS||NOM^PRENOM||""|F|^^||||~^^&x'),
    ],
)
def test_a_change_touches_nothing_else(where: str, value: str | None, segment: bytes) -> None:
    changed = ADT.set(where, value)
    assert changed.get(where) == (value or "")
    before, after = content(ADT), content(changed)
    assert after[1] == segment
    assert before[:1] + before[2:] == after[:1] + after[2:]
    assert ADT.set("PID-8", "M").set("PID-8", "F").raw == ADT.raw


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.text(max_size=20).filter(bool))
def test_what_is_set_is_read_back(field: int, rep: int, comp: int, sub: int, text: str) -> None:
    where = f"PID-{field}[{rep}].{comp}.{sub}"
    try:
        changed = ADT.set(where, text)
    except UnicodeEncodeError:
        assert any(0xD800 <= ord(sign) < 0xE000 for sign in text)
        return
    assert changed.get(where) == text
    assert len(changed.segments) == len(ADT.segments)
    assert content(changed)[2:] == content(ADT)[2:]


def test_changes_that_cannot_be_are_refused() -> None:
    with pytest.raises(KeyError):
        ADT.set("PV1-2", "I")
    with pytest.raises(ValueError, match="delimiters"):
        ADT.set("MSH-2", "^~")
    with pytest.raises(ValueError, match="codec can't encode"):
        parse(HEAD.replace(b"UNICODE UTF-8", b"8859/15") + b"PID|1\r").set("PID-5", "日本")


def test_the_data_of_a_document_are_set_as_they_are() -> None:
    msg = parse(HEAD + b"OBX|1|ED|C||^text^XML^Base64^QQ==\r")
    assert msg.set("OBX-5.5", "QUJD").raw.endswith(b"^Base64^QUJD\r")


# --- hostile input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"\r" * 2_000_000, b"A\r" * 1_000_000, b" \r" * 1_000_000, b"\n" * 2_000_000 + b"\r", b"\0" * 5_000_000],
    ids=["blank lines", "short lines", "spaces", "line feeds", "NULs"],
)
def test_millions_of_lines_are_refused_or_skipped_quickly(body: bytes) -> None:
    began = time.process_time()
    try:
        assert len(parse(HEAD + body).spans) <= MAX_SEGMENTS
    except Unreadable as error:
        assert error.code == "198"
    assert time.process_time() - began < 60


@pytest.mark.parametrize("sign", ["|", "~", "^", "&", "\\"])
def test_millions_of_separators_are_bounded(sign: str) -> None:
    msg = parse(HEAD + b"PID|1||" + sign.encode() * 5_000_000 + b"\rPV1|1|I\r")
    began = time.process_time()
    assert msg.get("PV1-2") == "I"
    assert msg.get("PID-3") in ("", sign * 5_000_000)
    assert sum(1 for _ in msg.all("PID")[0].fields()) <= MAX_PARTS
    if sign == "~":
        with pytest.raises(Unreadable):
            msg.at("PID-3").repetitions()
    if sign == "^":
        with pytest.raises(Unreadable):
            msg.at("PID-3").repetition(1).parts()
    assert time.process_time() - began < 60


def test_a_large_document_is_not_copied_by_reading_around_it() -> None:
    raw = HEAD + "PID|1||||Éa\r".encode() + b"OBX|1|ED|C||^text^XML^Base64^" + b"QUJD" * 5_000_000 + b"\rPV1|1|I\r"
    tracemalloc.start()
    msg = parse(raw)
    assert (msg.get("PV1-2"), msg.get("PID-5"), msg.get("OBX-5.4")) == ("I", "Éa", "Base64")
    assert len(msg.encapsulated(msg.all("OBX")[0]).data) == 20_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


_FIFTY = r"""
from pathlib import Path
from hl7v2.check import check, errors
from hl7v2.message import parse

head = (
    b"MSH|^~\\&|A|B|C|D|20260302083000||ORU^R01^ORU_R01|M1|P|2.5|||||FRA|UNICODE UTF-8\r"
    b"PID|1||1^^^B||\xc3\x89A^B\rPV1|1|I\rORC|RE\rOBR|1|||11502-2^x^LN\r"
    b"OBX|1|ED|11502-2^x^LN||^application^pdf^Base64^"
)
raw = b"".join((head, b"QUJD" * 12_500_000, b"||||||F\r"))
def peak():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

before = peak()
msg = parse(raw)
data = msg.encapsulated(msg.all("OBX")[0]).data
assert (len(data), msg.get("PID-5"), msg.get("OBX-11"), errors(check(msg))) == (50_000_000, "\u00c9A", "F", [])
assert msg.raw is raw
print((peak() - before) // 1024)
"""


def test_a_document_of_50_mb_is_parsed_read_and_judged_without_a_copy() -> None:
    """In a process of its own, whose highest use of memory is what is counted."""
    root = Path(__file__).parents[3]
    words = [sys.executable, "-c", _FIFTY]
    run = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 16, "MiB beyond the message itself"


# --- a second opinion ----------------------------------------------------------------------------------------------


def test_hl7apy_finds_the_same_values_where_it_works() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = pytest.importorskip("hl7apy.parser")
        raw = (DATA / "adt-a01-admission.er7").read_bytes().replace(b"\n", b"\r")
        # It knows neither MSH-12.2 nor the French segments, and reads text only.
        other = parser.parse_message(raw.decode().replace("2.5^FRA^2.11", "2.5"), find_groups=False)
    msg = parse(raw)
    assert other.pid.pid_3[1].cx_4.hd_2.to_er7() == msg.get("PID-3[2].4.2")
    assert other.pid.pid_5[0].xpn_2.to_er7() == msg.get("PID-5.2")
    assert other.pv1.pv1_19.cx_1.to_er7() == msg.get("PV1-19")
    assert other.msh.msh_9.to_er7() == msg.at("MSH-9").encoded


def test_every_byte_of_a_message_has_its_place() -> None:
    raw = HEAD + b"PID|1||A^B&C~D^E\rOBX|1\rOBX|2|ED\r??\r"
    msg = parse(raw)
    for value, place in (
        (b"GAM", "MSH-3"),
        (b"|GAM", "MSH-2"),
        (b"PID", "PID"),
        (b"A^B", "PID-3"),
        (b"C~", "PID-3[1].2"),
        (b"D^E", "PID-3[2].1"),
        (b"E\r", "PID-3[2].2"),
        (b"ED", "OBX[2]-2"),
        (b"??", ""),
    ):
        assert msg.place(raw.index(value)) == place, value
    assert msg.place(len(raw)) == msg.place(len(raw) + 9) == ""
    for name in ("MSH-9", "PID-3", "OBX[2]-2"):
        assert msg.place(msg.at(name).start) == name


def test_what_has_too_many_parts_is_unreadable_at_its_place() -> None:
    msg = parse(HEAD + b"PID|1||A\rNK1|1|" + b"~" * (MAX_PARTS + 1) + b"|\r")
    with pytest.raises(Unreadable) as caught:
        msg.at("NK1-2").repetitions()
    assert (caught.value.location, caught.value.code) == ("NK1-2", "198")


@pytest.mark.parametrize("filling", [b"", b"x" * 400])
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 258, 300])
def test_every_field_of_a_long_segment_is_found_and_none_behind_it(count: int, filling: bytes) -> None:
    """Also where its places are not all remembered, and where it is too large to be taken apart at once."""
    segment = b"ZZZ|" + b"|".join(b"%d" % number + filling for number in range(1, count + 1))
    msg = parse(b"MSH|^~\\&|A\r" + segment + b"\rZZY|1\r")
    line = msg.segments[1]
    for number in range(1, count + 1):
        assert line.field(number).raw == b"%d" % number + filling
    assert [line.field(number).state for number in (count + 1, count + 2, count + 400)] == ["absent"] * 3
    assert [(n, value.raw) for n, value in line.fields()] == [(n, line.field(n).raw) for n in range(1, count + 1)]


@pytest.mark.parametrize("ends", [b"", b"\n", b" "])
def test_base64_is_read_with_and_without_line_ends(ends: bytes) -> None:
    data = ends.join([b"JVBE", b"Ri0x", b"LjQ="])
    msg = parse(b"MSH|^~\\&|A\rOBX|1|ED|||^a^b^Base64^" + data + b"\r")
    assert msg.encapsulated(msg.segments[1]).decode() == b"%PDF-1.4"


_PLACES = [
    f"{segment}-{field}{rep}{part}"
    for segment in ("MSH", "PID", "PID[2]", "OBX", "ZZZ")
    for field in (1, 2, 3, 5, 6)
    for rep in ("", "[1]", "[2]")
    for part in ("", ".1", ".2", ".5", ".1.1", ".2.2", ".5.2")
]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.text('a ^~&\\|FST"é', max_size=14), min_size=2, max_size=5),
    st.sampled_from(["^~\\&", "^~", "^", "$%*@"]),
)
def test_a_text_read_at_once_is_the_one_read_step_by_step(contents: list[str], signs: str) -> None:
    names = ("PID|", "PID|", "OBX|1|ED|", "ZZZ|", "OBX|1|ST|")
    lines = [f"MSH|{signs}|A ^B&C~D|{contents[0]}", *map("".join, zip(names, contents, strict=False))]
    msg = parse("\r".join([*lines, ""]).encode())
    for place in _PLACES:
        assert msg.text(place) == msg.at(place).text, place
        assert msg.get(place) == msg.at(place).value, place
    for segment in msg.segments:
        for number in range(1, 8):
            assert segment.repeated(number) == len(segment.field(number).repetitions()), number
            for part, sub in ((1, 1), (2, 1), (2, 2), (5, 1), (5, 2)):
                told = segment.field(number).component(part).part(sub).text
                assert segment.text(number, part, sub) == told


@pytest.mark.parametrize("length", [10, 511, 512, 513, 5_000])
def test_a_field_is_read_alike_whatever_its_length(length: int) -> None:
    long = "x" * length
    msg = parse(f"MSH|^~\\&|A\rZZZ|{long}^b&c~d^{long}&e|~~{long}\r".encode())
    for place in (
        "ZZZ-1",
        "ZZZ-1.2.2",
        "ZZZ-1[2].2",
        "ZZZ-1[2].2.2",
        "ZZZ-1[3]",
        "ZZZ-1.3",
        "ZZZ-2",
        "ZZZ-2[3]",
        "ZZZ-3",
    ):
        assert msg.get(place) == msg.at(place).value, place
    assert (msg.get("ZZZ-1[2].2"), msg.get("ZZZ-1[3]"), msg.get("ZZZ-2[3]")) == (long, None, long)


def test_what_is_remembered_of_a_message_with_many_fields_stays_small() -> None:
    raw = b"MSH|^~\\&|A\r" + (b"ZZZ" + b"|" * 250 + b"\r") * 5_000
    msg = parse(raw)
    tracemalloc.start()
    try:
        for segment in msg.segments[1:]:
            assert segment.text(250) == "" and segment.field(250).state == "empty"
        assert tracemalloc.get_traced_memory()[0] < 12_000_000
    finally:
        tracemalloc.stop()
