"""Writing messages from Python values."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hl7v2.message import NULL, Separators, parse
from hl7v2.write import Raw, day, dtm, lines, message


def test_components_subcomponents_and_repetitions_find_their_place() -> None:
    msh: dict[int, Any] = {3: "US", 9: ("MDM", "T02", "MDM_T02"), 10: "1", 12: "2.6", 18: "UNICODE UTF-8"}
    pid: dict[int, Any] = {
        1: "1",
        3: [("9", None, None, ("CH", "1.2", "ISO"), "PI"), "8"],
        5: (("A",), "B|C"),
        7: NULL,
        9: "",
        11: None,
    }
    written = message([("MSH", msh), ("PID", pid), ("PV1", {2: "N"})])
    assert list(lines(written.raw)) == [
        b"MSH|^~\\&|US||||||MDM^T02^MDM_T02|1||2.6||||||UNICODE UTF-8",
        b'PID|1||9^^^CH&1.2&ISO^PI~8||A^B\\F\\C||""',
        b"PV1||N",
    ]
    assert written.raw.endswith(b"N\r")
    assert parse(written.raw).get("PID-5.2") == "B|C"


def test_raw_bytes_are_never_touched() -> None:
    written = message([("MSH", {3: "A"}), ("OBX", {2: "ED", 5: (None, "text", "XML", "Base64", Raw(b"QQ=="))})])
    assert written.raw.split(b"\r")[1] == b"OBX||ED|||^text^XML^Base64^QQ=="


def test_what_the_charset_cannot_hold_is_told_with_its_place() -> None:
    segments: list[tuple[str, dict[int, Any]]] = [
        ("MSH", {3: "A", 18: "8859/15"}),
        ("NTE", {3: "ok"}),
        ("NTE", {3: [("a", "l’œuf")]}),
    ]
    written = message(segments, charset="8859/15")
    assert written.replaced == (("NTE[2]-3.2", "’"),)
    assert "l'œuf" in written.raw.decode("iso8859-15")
    with pytest.raises(ValueError, match="unknown character set"):
        message(segments, charset="EBCDIC")


def test_the_bytes_depend_on_the_arguments_only() -> None:
    segments: list[tuple[str, dict[int, Any]]] = [("MSH", {3: "A"}), ("NTE", {3: "é"})]
    assert message(segments) == message(segments)


leaf = st.text(max_size=12)
component = leaf | st.tuples(leaf, leaf)
repetition = leaf | st.tuples(component, component, component)


@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 8), repetition | st.lists(repetition, min_size=1, max_size=3), max_size=6))
def test_whatever_is_written_is_one_segment_and_reads_back(fields: dict[int, Any]) -> None:
    written = message([("MSH", {3: "A", 18: "UNICODE UTF-8"}), ("ZZZ", fields)], charset="UNICODE UTF-8")
    msg = parse(written.raw)
    assert [segment.name for segment in msg.segments] == ["MSH", "ZZZ"]
    replaced = {sign for _, sign in written.replaced}
    for number, value in fields.items():
        for r, rep in enumerate(value if isinstance(value, list) else [value], 1):
            for c, part in enumerate(rep if isinstance(rep, tuple) else (rep,), 1):
                for s, text in enumerate(part if isinstance(part, tuple) else (part,), 1):
                    if not replaced & set(text):
                        assert (msg.get(f"ZZZ-{number}[{r}].{c}.{s}") or "") == text


def test_other_delimiters_can_be_used() -> None:
    written = message([("MSH", {3: ("A", "B#C")})], separators=Separators("#", "*", "%", "!", "$"))
    assert written.raw == b"MSH#*%!$#A*B!F!C\r"


def test_times_and_days() -> None:
    assert dtm(datetime(2026, 3, 2, 9, 5, 7, tzinfo=timezone(timedelta(hours=1)))) == "20260302090507+0100"
    assert dtm(datetime(2026, 3, 2, tzinfo=UTC)) == "20260302000000+0000"
    assert (day(date(2026, 3, 2)), day(date(912, 3, 2))) == ("20260302", "09120302")
