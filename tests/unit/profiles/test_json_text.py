"""Lossless FHIR JSON: what is read is written back as it was spelled; what is hostile is refused with its place."""

from __future__ import annotations

import copy
import json
import pickle
import time
from decimal import Decimal
from typing import Any

import pytest
import r4_package
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import build, json_text
from profiles.json_text import JsonError, Number, parse, pretty, write

LEXEMES = [
    *("0", "-1", "72", "2147483648", "123456789012345678901234567890"),
    *("72.50", "0.000000100", "-0", "-0.0", "0.0", "1.0", "1e2", "1E2", "1e+2", "1e-2", "1.50e-07", "-1.5E+10"),
    *(
        "0e0",
        "0.00e5",
        "1e1000",
        "1e-1000",
        "9" * 1000,
        "0." + "0" * 900 + "1",
        "3.14159265358979323846264338327950288",
    ),
]


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lexeme", LEXEMES, ids=lambda lexeme: lexeme[:24])
def test_a_number_is_written_as_it_was_read(lexeme: str) -> None:
    text = f'{{"value":{lexeme}}}'
    read = parse(text)
    assert write(read) == text
    assert parse(pretty(read)) == read
    assert read["value"] == Decimal(lexeme)
    plain_integer = lexeme.lstrip("-").isdigit() and lexeme != "-0"
    assert type(read["value"]) is (int if plain_integer else Number)


def test_a_number_is_a_decimal_that_keeps_its_spelling_when_copied() -> None:
    number = parse('{"v":1.50e2}')["v"]
    assert isinstance(number, Number)
    assert number == 150
    assert number + 1 == Decimal(151)
    assert hash(number) == hash(Decimal(150))
    for twin in (copy.copy(number), copy.deepcopy(number), pickle.loads(pickle.dumps(number))):  # noqa: S301 - our own bytes
        assert twin.lexeme == "1.50e2"
    assert write(copy.deepcopy({"v": [number]})) == '{"v":[1.50e2]}'
    assert repr(number) == "Number('1.50e2')"


def test_numbers_can_be_made_from_text_integers_and_decimals() -> None:
    assert Number("72.50").lexeme == "72.50"
    assert Number(7).lexeme == "7"
    assert Number(Decimal("1E+2")).lexeme == "100"
    assert Number(Decimal("0.0000001")).lexeme == "0.0000001"
    for bad in ("", "NaN", "1,5", "01", ".5", "1.", "+1", "1e1001", "1e-99999999999999999999", "9" * 1001, "１"):
        with pytest.raises(ValueError, match="number"):
            Number(bad)
    for worse in (Decimal("NaN"), Decimal("Infinity"), Decimal("1e999999999")):
        with pytest.raises(ValueError, match="number"):
            Number(worse)


def test_a_decimal_that_was_computed_is_written_plainly() -> None:
    assert write({"a": Decimal("1E+3"), "b": Decimal("72.50"), "c": Decimal("1e-7")}) == (
        '{"a":1000,"b":72.50,"c":0.0000001}'
    )
    assert write({"a": 0.1, "b": True, "c": None, "d": [1, -2]}) == '{"a":0.1,"b":true,"c":null,"d":[1,-2]}'


# --- text -----------------------------------------------------------------------------------------------------------


def test_key_order_and_characters_beyond_ascii_are_kept() -> None:
    text = '{"z":"Éloïse 😀","a":{"y":[],"b":{}},"_z":null}'
    assert write(parse(text)) == text
    assert list(parse(text)) == ["z", "a", "_z"]


def test_escapes_are_read_and_written_in_their_shortest_form() -> None:
    assert parse(r'{"a":"\u00c9\ud83d\ude00\/\n\t\"\\"}') == {"a": 'É😀/\n\t"\\'}
    assert write({"a": 'É😀/\n\t"\\\x01'}) == r'{"a":"É😀/\n\t\"\\\u0001"}'
    assert parse(r'{"a":"\\u0000 \\ud800"}') == {"a": r"\u0000 \ud800"}
    assert write(parse(r'{"a":"\\u0000 1.5","b":1.5}')) == r'{"a":"\\u0000 1.5","b":1.5}'


def test_bytes_and_text_are_read_with_or_without_a_byte_order_mark() -> None:
    assert parse(b'\xef\xbb\xbf {"a":"\xc3\xa9"} \r\n') == {"a": "é"}
    assert parse('\ufeff{"a":1}') == {"a": 1}


def test_pretty_text_is_indented_by_two_spaces() -> None:
    assert pretty(parse('{"a":[1.0,{"b":"é"}]}')) == '{\n  "a": [\n    1.0,\n    {\n      "b": "é"\n    }\n  ]\n}'


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[bytes | str, int, int, str, str]] = [
    # text, line, column, path, part of the message
    ("", 1, 1, "", "object is expected"),
    ("[]", 1, 1, "", "object is expected"),
    ('"text"', 1, 1, "", "object is expected"),
    ("null", 1, 1, "", "object is expected"),
    ("<Patient/>", 1, 1, "", "object is expected"),
    ("{", 1, 2, "", "property name"),
    ('{"a":1,}', 1, 8, "a", "property name"),
    ("{'a':1}", 1, 2, "", "property name"),
    ("{a:1}", 1, 2, "", "property name"),
    ('{"a" 1}', 1, 6, "a", "colon"),
    ('{"a":1 "b":2}', 1, 8, "a", "comma"),
    ('{"a":[1,]}', 1, 9, "a[1]", "value is expected"),
    ('{"a":[1 2]}', 1, 9, "a[0]", "comma"),
    ('{"a":}', 1, 6, "a", "value is expected"),
    ('{"a":tru}', 1, 6, "a", "value is expected"),
    ('{"a":01}', 1, 7, "a", "comma"),
    ('{"a":.5}', 1, 6, "a", "value is expected"),
    ('{"a":+1}', 1, 6, "a", "value is expected"),
    ('{"a":1.}', 1, 7, "a", "comma"),
    ('{"a":0x1F}', 1, 7, "a", "comma"),
    ('{"a":１}', 1, 6, "a", "value is expected"),
    ('{"a":NaN}', 1, 6, "a", "NaN is no JSON value"),
    ('{"a":[Infinity]}', 1, 7, "a[0]", "Infinity is no JSON value"),
    ('{"a":-Infinity}', 1, 6, "a", "-Infinity is no JSON value"),
    ('{"a":1e999999999}', 1, 6, "a", "beyond 1e1000"),
    ('{"a":1e-999999999}', 1, 6, "a", "beyond 1e1000"),
    ('{"a":0e999999999}', 1, 6, "a", "beyond 1e1000"),
    ('{"a":1e99999999999999999999999}', 1, 6, "a", "beyond 1e1000"),
    ('{"a":' + "9" * 100_000 + "}", 1, 6, "a", "more than 1000 characters"),
    ('{"a":-1.' + "9" * 100_000 + "}", 1, 6, "a", "more than 1000 characters"),
    ('{"a":"b', 1, 6, "a", "no closing quote"),
    ('{"a":"b\nc"}', 1, 8, "a", "control character"),
    ('{"a":"\x00"}', 1, 7, "a", "control character"),
    ('{"a":"\\x41"}', 1, 7, "a", "backslash"),
    ('{"a":"\\u00g0"}', 1, 8, "a", "hexadecimal"),
    ('{"a":"\\u0000"}', 1, 7, "a", "NUL"),
    ('{"\\u0000":1}', 1, 3, "", "NUL"),
    ('{"a":"\\ud800"}', 1, 7, "a", "surrogate"),
    ('{"a":"\\uDC00"}', 1, 7, "a", "surrogate"),
    ('{"a":"\\ud83dx\\ude00"}', 1, 7, "a", "surrogate"),
    ('{"a":"\\ud83d\\ud83d\\ude00"}', 1, 7, "a", "surrogate"),
    ('{"a":"\ud800"}', 1, 7, "a", "surrogate"),
    (b'{"a":"\xed\xa0\x80"}', 1, 7, "a", "UTF-8"),
    (b'{"a":"\xff"}', 1, 7, "a", "UTF-8"),
    ('{"a":"é"}'.encode("utf-16"), 1, 1, "", "UTF-8"),
    ('{"a":1}{"b":2}', 1, 8, "", "text follows"),
    ('{"a":1}\n\n  x', 3, 3, "", "text follows"),
    ('{"a":1}\x00', 1, 8, "", "text follows"),
    ('{"a":1,\n  "a":2}', 2, 3, "a", "'a' stands twice"),
    ('{"a":1,"\\u0061":2}', 1, 8, "a", "'a' stands twice"),
    (
        '{"resourceType":"Patient",\n "name":[{"family":"a"},\n  {"family":"b","given":["c"],\n   "family":"d"}]}',
        4,
        4,
        "Patient.name[1].family",
        "'family' stands twice",
    ),
    (
        '{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Patient","active":truth}}]}',
        1,
        82,
        "Bundle.entry[0].resource.active",
        "value is expected",
    ),
    ('{"é":"é","b":\n"é","c":1.}', 2, 10, "c", "comma"),
]


@pytest.mark.parametrize(("text", "line", "column", "path", "message"), REFUSED, ids=lambda value: str(value)[:24])
def test_a_refusal_says_what_is_wrong_and_where(
    text: bytes | str, line: int, column: int, path: str, message: str
) -> None:
    with pytest.raises(JsonError) as caught:
        parse(text)
    fault = caught.value
    assert message in fault.message
    assert (fault.line, fault.column, fault.path) == (line, column, path)
    assert f"line {line}, column {column}" in str(fault)
    assert isinstance(fault, ValueError)


@pytest.mark.parametrize(
    "value",
    [
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": Decimal("NaN")},
        {"a": Decimal("1e5000")},
        {"a": "\0"},
        {"a": "\x001.5"},
        {"\0": 1},
        {"a": 'x"\x00123"'},
        {"a": "\ud800"},
    ],
    ids=repr,
)
def test_what_could_not_be_read_back_is_not_written(value: Any) -> None:
    for writer in (write, pretty):
        with pytest.raises(ValueError, match=r".+"):
            writer(value)


def test_a_foreign_type_is_not_written() -> None:
    with pytest.raises(TypeError, match="set"):
        write({"a": {1, 2}})


# --- limits ---------------------------------------------------------------------------------------------------------


def _nested(depth: int) -> str:
    """An object that holds depth - 1 arrays in one another."""
    return '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def test_depth_is_limited_exactly() -> None:
    assert parse(_nested(100))
    with pytest.raises(JsonError, match="more than 100 deep"):
        parse(_nested(101))
    assert parse(_nested(200), max_depth=200)
    with pytest.raises(JsonError, match="more than 7 deep") as caught:
        parse('{"a":\n' * 8 + "1" + "}" * 8, max_depth=7)
    assert (caught.value.line, caught.value.column) == (8, 1)


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    text = json.dumps({"a": "[{" * 500, 'b"\\': '\\"[{\\\\' * 300, "c": [[["[" * 200]]]})
    assert parse(text) == json.loads(text)


def test_many_siblings_do_not_count_as_depth() -> None:
    text = json.dumps({"a": [[{"b": []}] for _ in range(5000)]})
    assert parse(text) == json.loads(text)


def test_size_and_number_of_values_are_limited() -> None:
    with pytest.raises(JsonError, match="longer than 10 bytes"):
        parse(b'{"a":"123456"}', max_bytes=10)
    assert parse('{"a":[1,2,3]}', max_values=5)
    with pytest.raises(JsonError, match="more than 10 values"):
        parse('{"a":[' + "1," * 20 + "1]}", max_values=10)
    assert parse('{"a":"' + ",[{" * 50 + '"}', max_values=10)


MEGABYTE = 1024 * 1024
ATTACKS: dict[str, bytes] = {
    "open arrays": b'{"a":' + b"[" * 4 * MEGABYTE,
    "open objects": b'{"a":' * MEGABYTE,
    "balanced arrays": b'{"a":' + b"[" * 2 * MEGABYTE + b"]" * 2 * MEGABYTE + b"}",
    "quotes": b'{"a":' + b'"' * 4 * MEGABYTE,
    "backslashes": b'{"a":"' + b"\\" * 4 * MEGABYTE,
    "digits": b'{"a":' + b"7" * 4 * MEGABYTE + b"}",
    "fraction": b'{"a":0.' + b"7" * 4 * MEGABYTE + b"}",
    "exponent": b'{"a":1e' + b"7" * 4 * MEGABYTE + b"}",
    "minus signs": b'{"a":' + b"-" * 4 * MEGABYTE + b"}",
    "white space": b'{"a":1}' + b" " * 4 * MEGABYTE + b"x",
    "line ends": b'{"a":1' + b"\n" * 4 * MEGABYTE + b"x",
    "late duplicate": b'{"a":[' + b'{"k":"v"},' * 200_000 + b'{"b":1,"b":2}]}',
    "late surrogate": b'{"a":"' + b"\\ud83d\\ude00" * 300_000 + b'\\ud800"}',
    "huge duplicate key": b'{"' + b"k" * MEGABYTE + b'":1,"' + b"k" * MEGABYTE + b'":2}',
    "deep in a long key": b'{"' + b"k" * MEGABYTE + b'":[}',
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_bounded_time(name: str) -> None:
    started = time.process_time()
    with pytest.raises(JsonError) as caught:
        parse(ATTACKS[name])
    assert time.process_time() - started < 60
    assert len(str(caught.value)) < 600


def test_the_refusal_does_not_depend_on_the_depth_of_the_caller() -> None:
    def from_below(frames: int) -> None:
        if frames:
            from_below(frames - 1)
        else:
            with pytest.raises(JsonError):
                parse('{"a":' + "[" * 300, max_depth=10_000)

    from_below(700)


# --- properties -----------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
EXPONENTS = st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from("eE"), st.integers(-40, 40)))
FRACTIONS = st.one_of(st.just(""), st.text("0123456789", min_size=1, max_size=12).map(lambda digits: f".{digits}"))
SPELLINGS = st.builds("{}{}{}{}".format, st.sampled_from(["", "-"]), st.integers(0, 10**20), FRACTIONS, EXPONENTS)
SCALARS = st.one_of(st.none(), st.booleans(), TEXTS, SPELLINGS.map(lambda text: parse(f'{{"v":{text}}}')["v"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=30,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


def _shape(value: Any) -> Any:
    """A value with numbers replaced by their spelling and objects by ordered pairs."""
    if isinstance(value, dict):
        return [(key, _shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return ("number", value.lexeme) if isinstance(value, Number) else value


@given(OBJECTS)
@settings(deadline=None)
def test_everything_survives_writing_and_reading(value: dict[str, Any]) -> None:
    for text in (write(value), pretty(value)):
        assert _shape(parse(text)) == _shape(value)
        assert _shape(parse(text.encode("utf-8"))) == _shape(value)
        assert json.loads(text, parse_float=Decimal) == value
    assert write(parse(pretty(value))) == write(value)


@given(OBJECTS, TEXTS, st.data())
@settings(deadline=None)
def test_a_repeated_key_is_found_wherever_it_stands(value: dict[str, Any], key: str, data: st.DataObject) -> None:
    quoted = json.dumps(key)
    twice = f"{{{quoted}:1,{quoted}:2}}"
    holder = data.draw(st.sampled_from(["{}", '[0,"]",{}]', '{{"x":{}}}', '{{"x":[[{}]]}}']))
    text = f'{{"before":{write(value)},"at":{holder.format(twice)},"after":{write(value)}}}'
    with pytest.raises(JsonError, match="stands twice") as caught:
        parse(text)
    place = text.index(twice) + len(f"{{{quoted}:1,")
    before = text[:place]
    assert caught.value.line == before.count("\n") + 1
    assert caught.value.column == place - before.rfind("\n")


@given(st.binary(max_size=60) | TEXTS | st.text(max_size=30))
@settings(deadline=None)
def test_noise_is_refused_with_a_json_error_and_nothing_else(noise: bytes | str) -> None:
    for text in (noise, b'{"a":' + noise + b"}" if isinstance(noise, bytes) else '{"a":' + noise + "}"):
        try:
            read = parse(text)
        except JsonError as fault:
            assert fault.line >= 1
            assert fault.column >= 1
        else:
            assert parse(write(read)) == read


@given(OBJECTS, st.integers(0, 10**6), st.sampled_from(['"', "{", "}", "[", "]", ",", ":", "\\", "0", "e", "-", "\0"]))
@settings(deadline=None)
def test_a_damaged_text_is_read_alike_or_refused(value: dict[str, Any], at: int, mark: str) -> None:
    text = write(value)
    place = at % (len(text) + 1)
    damaged = text[:place] + mark + text[place:]
    try:
        read = parse(damaged)
    except JsonError:
        return
    assert read == json.loads(damaged, parse_float=Decimal)


# --- speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_official_example_is_read_and_written_losslessly() -> None:
    count = 0
    for name, data in build.files(r4_package.located()):
        text = write(parse(data))
        assert write(parse(text)) == text, name
        kept = json.loads(text, parse_float=str, object_pairs_hook=list)
        assert kept == json.loads(data.decode("utf-8-sig"), parse_float=str, object_pairs_hook=list), name
        count += 1
    assert count == 5306


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_text_of_the_largest_size_is_settled_in_bounded_time() -> None:
    size = json_text.MAX_BYTES - 20
    started = time.process_time()
    assert len(parse(b'{"a":"' + b"x" * size + b'"}')["a"]) == size
    for body in (b"[" * size, b'"' * size, b"[" + b'{"a":1},' * (size // 8), b"1" * size, b"-" * size):
        with pytest.raises(JsonError):
            parse(b'{"a":' + body)
    with pytest.raises(JsonError, match="longer than"):
        parse(b"{" + b" " * 100_000_000)
    assert time.process_time() - started < 300
