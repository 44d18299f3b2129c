"""Hostile texts of every language read here: an error with its place, in bounded time and memory.

Each group runs in a process of its own with little memory to spare, so that what is measured is what it took.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MEMORY = 1536 * 1024 * 1024
PEAK_MB = 1024
SECONDS = 60
# No expression may hold a thread for long: the default budget ends within a second on the machine it was set on.
EXPRESSION_SECONDS = 2
MEGABYTE = 1024 * 1024

Place = tuple[int, int]

# A collection of 160,000 turns inside which a string or a list grown before stands as $total.
_TURNS = "name.first().aggregate(%resource.name.given.select(%resource.name.given.select({})), {})"
_LONG = "%resource.name.given.aggregate(iif($total.length() < 2000000, $total & $total, $total), 'abcdefgh')"
_MANY = "%resource.descendants()"
_TEN_THOUSANDS = "(1|2|3|4|5|6|7|8|9|10)" + ".select(1|2|3|4|5|6|7|8|9|10)" * 4 + ".select({})"
_ROWS = "%resource.name.given.select(%resource.name.given.select({}))"

# name: the expression, the line and column of the error, a part of what it says
FHIRPATH: dict[str, tuple[str, Place, str]] = {
    "nested brackets": ("(" * 5000 + "1" + ")" * 5000, (1, 101), "nested deeper"),
    "nested signs": ("-" * 5000 + "1", (1, 101), "nested deeper"),
    "nested iif": ("iif(true," * 5000 + "1" + ",2)" * 5000, (1, 896), "nested deeper"),
    "nested indexers": ("name[" * 5000 + "0" + "]" * 5000, (1, 501), "nested deeper"),
    "a chain of steps": (".".join(["name"] * 5000), (1, 23996), "hang on one another"),
    "a chain of sums": ("+".join(["1"] * 5000), (1, 9601), "hang on one another"),
    "a chain of calls": ("name" + ".where(true)" * 5000, (1, 57612), "hang on one another"),
    "too long a text": ("'" + "a" * 70_000 + "'", (1, 65537), "longer than 65536"),
    "comments never closed": ("1 +\n" + "/* " * 20_000, (2, 1), "never closed"),
    "a string never closed": ("1 +\n  '" + "\\'" * 30_000, (2, 3), "never closed"),
    "a huge integer": ("1 + " + "9" * 60_000, (1, 5), "more than 400 digits"),
    "a huge decimal": ("1 + 0." + "9" * 60_000, (1, 5), "more than 400 digits"),
    "a huge quantity": ("1 + " + "9" * 60_000 + " 'mg'", (1, 5), "more than 400 digits"),
    "a huge fraction of a second": ("@2024-01-01T00:00:00." + "9" * 60_000, (1, 1), "more than 400 digits"),
    "an exponent": ("1 + 1e999999999", (1, 6), "e999999999"),
    "a huge name": ("name." + "a" * 60_000 + "()", (1, 6), "there is no function"),
    "NUL": ("name = '\0'", (1, 9), "U+0000"),
    "NUL outside strings": ("name\n.\0", (2, 2), "U+0000"),
    "NUL spelled": ("name = '\\u0000'", (1, 8), "u0000"),
    "a lone surrogate": ("name = '\ud800'", (1, 9), "U+D800"),
    "a lone surrogate spelled": ("name = 'a\\ud83d'", (1, 8), "surrogate"),
    "a surrogate pair turned round": ("name = '\\ude00\\ud83d'", (1, 8), "surrogate"),
    "endless repeat": ("1.repeat($this + 1)", (1, 16), "too costly"),
    "growing repeat": ("'a'.repeat($this & $this)", (1, 18), "a string of more than"),
    "repeat of everything": (f"repeat(children() | {_MANY}.select({_MANY}.id)).count()", (1, 62), "too costly"),
    "combine doubled": ("(1 | 2)" + ".select($this.combine($this))" * 60, (1, 457), "too costly"),
    "aggregate doubled": ("name.given.aggregate($total.combine($total), 1)", (1, 29), "too costly"),
    "products of lists": ("(1|2|3|4|5|6|7|8|9|10)" + ".select((1|2|3|4|5|6|7|8|9|10))" * 12, (1, 148), "too costly"),
    "a string doubled": ("name.given.aggregate($total & $total, 'a')", (1, 29), "a string of more than"),
    "a string replaced": ("'a'" + ".replace('', 'aaaaaaaa')" * 20, (1, 149), "a string of more than"),
    "a string encoded": ("'a'" + ".encode('hex')" * 60, (1, 299), "a string of more than"),
    "a string escaped": ("'\\\\'" + ".escape('json')" * 60, (1, 321), "a string of more than"),
    "a string joined": (
        "name.first().aggregate(" + _ROWS.format("$total") + f".join(''), {_LONG})",
        (1, 141),
        "costly",
    ),
    "a unit doubled": ("name.given.aggregate($total * $total, 1 'm')", (1, 29), "unit of more than 255"),
    "slices of a long string": (_TURNS.format("$total.substring(1)", _LONG), (1, 145), "too costly"),
    "comparing a long string": (_TURNS.format("$total = ('a' & $total.substring(1))", _LONG), (1, 162), "too costly"),
    "likening a long string": (_TURNS.format("$total ~ $total", _LONG), (1, 141), "too costly"),
    "tails of a long list": (_TURNS.format("$total.tail().count()", _MANY), (1, 87), "too costly"),
    "types of a long list": (_TURNS.format("$total.ofType(Patient)", _MANY), (1, 87), "too costly"),
    "members of a long list": (_TURNS.format("$total.nothing", _MANY), (1, 87), "too costly"),
    "a string grown both ways": ("'a'.repeat(($this & 'a') | ($this & 'b'))", (1, 5), "too costly"),
    "decimals of many digits": ("1.5.repeat($this * 1.0000001)", (1, 5), "too costly"),
    "instants one after another": ("@2024-01-01T00:00:00Z.repeat($this + 1 second)", (1, 23), "too costly"),
    "quantities of two units": ("(1 'mg').repeat($this + 1 'kg')", (1, 10), "too costly"),
    "sums of nothing much": (_TEN_THOUSANDS.format("+".join(["1"] * 100)), (1, 204), "too costly"),
    "choices of nothing much": (
        _TEN_THOUSANDS.format("iif($this > 1, " * 20 + "1" + ", 2)" * 20),
        (1, 267),
        "too costly",
    ),
    "roots and logarithms": (_TEN_THOUSANDS.format("$this.sqrt().exp().ln()"), (1, 160), "too costly"),
    "powers": (_TEN_THOUSANDS.format("1.0000001.power(2147483647)"), (1, 157), "too costly"),
    "dates read": (_TEN_THOUSANDS.format("'2024-01-01T10:00:00Z'.toDateTime()"), (1, 170), "too costly"),
    "clocks read": (_TEN_THOUSANDS.format("now() | timeOfDay()"), (1, 155), "too costly"),
    "characters joined": (_TEN_THOUSANDS.format("'abcdefgh'.toChars().join('')"), (1, 168), "too costly"),
    "growing by a pattern": ("'a'.repeat($this.replaceMatches('a', 'aa'))", (1, 18), "costly"),
    "patterns never seen": (
        _TEN_THOUSANDS.format("'a'.matches('a+' & $this.toString() & $index.toString())"),
        (1, 151),
        "too costly",
    ),
    "a whole resource compared": (f"{_MANY}.select(%resource | %resource.name)", (1, 42), "too costly"),
    "extensions sought": (_TEN_THOUSANDS.format("%resource.name.extension('u')"), (1, 162), "too costly"),
    "nested walks": (f"{_MANY}.select({_MANY}.select({_MANY}))", (1, 73), "too costly"),
    "a catastrophic pattern": (f"\n'{'a' * 30_000}'.matches('{'a?' * 60}b')", (2, 30_004), "costly"),
    "a catastrophic pattern many times": (
        _ROWS.format(f"'{'a' * 3000}'.matches('(a|a?)+b')"),
        (1, 3060),
        "costly",
    ),
    "a catastrophic replacement": (f"'{'a' * 30_000}'.replaceMatches('{'a?' * 60}b', 'x')", (1, 30_004), "costly"),
    "replacing with a look to the end": (f"'{'a' * 4000}'.replaceMatches('(a*)*b|a', 'x')", (1, 4004), "costly"),
    "a pattern that is many": (f"'{'a' * 2000}'.matches('((a{{1000}}){{1000}}){{1000}}')", (1, 2004), "too large"),
}

# What has an answer, and soon: an overflow is empty (N1 section 6.6), an impossible unit compares with nothing.
ANSWERED: dict[str, list[str]] = {
    f"'{'a' * 30_000}'.matches('(a+)+b')": ["False"],
    f"'{'a' * 30_000}'.replaceMatches('(a|aa)+b', 'x').length()": ["30000"],
    "2.power(2147483647)": [],
    "2147483647.power(2147483647)": [],
    "1.0000001.power(2147483647).exists()": ["False"],
    "2147483647.0.exp()": [],
    "(-2147483647.0).exp()": [],
    "'1e999999999'.toDecimal()": [],
    "'1e999999999'.toInteger()": [],
    "('9' & '" + "9" * 50_000 + "').toDecimal()": [],
    "('9' & '" + "9" * 50_000 + "').toInteger()": [],
    "('9' & '" + "9" * 50_000 + "').toQuantity()": [],
    "1 'm' = 1 '10*999999999'": [],
    "1 '10*999999999' = 1 '10*999999998'": [],
    "(1 '10*999999999').toQuantity('m')": [],
    "1 '" + "(" * 30_000 + "' = 1 'm'": [],
    "'1 \\'10*999999999\\''.convertsToQuantity('m')": ["False"],
    "1.round(2147483647)": ["1.0000000000000000000000000000000"],
    "1.highBoundary(2147483647)": [],
    "@2024-01-01 + 2147483647 years": [],
    "@2024-01-01T00:00:00 + 9" + "9" * 300 + " seconds": [],
}

_DEEP = '{"resourceType":"Patient","a":' + "[" * 199
_DIV = '<text><status value="generated"/><div xmlns="http://www.w3.org/1999/xhtml">'


def _wide() -> bytes:
    return b"{" + b",".join(b'"k%d":1' % number for number in range(500_000)) + b"}"


JSON: dict[str, tuple[Callable[[], bytes], Place, str]] = {
    "200 deep": (lambda: (_DEEP + "]" * 199 + "}").encode(), (1, 130), "more than 100 deep"),
    "200 deep, never closed": (lambda: _DEEP.encode(), (1, 130), "more than 100 deep"),
    "200 objects deep, a line each": (lambda: b'{"a":\n' * 200 + b"1" + b"}" * 200, (101, 1), "more than 100 deep"),
    "100 MB of white space": (lambda: b"{" + b" " * 100 * MEGABYTE, (1, 1), "longer than"),
    "100 MB of one string": (lambda: b'{"a":"' + b"x" * 100 * MEGABYTE + b'"}', (1, 1), "longer than"),
    "2 MB of brackets": (lambda: b'{"a":' + b"[" * 2 * MEGABYTE, (1, 105), "more than 100 deep"),
    "60 MB of brackets": (lambda: b'{"a":' + b"[" * 60 * MEGABYTE, (1, 1), "more than 3000000 values"),
    "60 MB of numbers": (lambda: b'{"a":[' + b"1," * 30 * MEGABYTE + b"1]}", (1, 1), "more than 3000000 values"),
    "4 million keys in one object": (_wide, (1, 8892), "more than 1000 members"),
    "wide objects deep inside": (
        lambda: b'{"a":[' + b'{"b":{"c":[]}},' * 400_000 + b"\n" + _wide() + b"]}",
        (1, 1),
        "more than 1000 members",
    ),
    "3 million values, then a duplicate": (
        lambda: b'{"a":[' + b'"b",' * 2_999_990 + b'1],"b":1,"b":2}',
        (1, 1),
        "stands twice",
    ),
    "60 MB of one number": (lambda: b'{"a":' + b"7" * 60 * MEGABYTE + b"}", (1, 6), "1000 characters"),
    "60 MB of an exponent": (lambda: b'{"a":1e' + b"9" * 60 * MEGABYTE + b"}", (1, 6), "1000 characters"),
    "60 MB, then a duplicate": (
        lambda: b'{"a":"' + b"x" * 60 * MEGABYTE + b'",\n "b":1,"b":2}',
        (2, 8),
        "'b' stands twice",
    ),
    "an exponent": (lambda: b'{"a":1e999999999}', (1, 6), "beyond 1e1000"),
    "a negative exponent": (lambda: b'{\n"a":[0,\n 1e-999999999]}', (3, 2), "beyond 1e1000"),
    "NUL": (lambda: b'{"a":"b\0"}', (1, 8), "control character"),
    "NUL spelled": (lambda: b'{"a":\n"b\\u0000"}', (2, 3), "NUL"),
    "a lone surrogate": (lambda: b'{"a":"\\ud800"}', (1, 7), "surrogate"),
    "a lone surrogate in bytes": (lambda: b'{"a":"\xed\xa0\x80"}', (1, 7), "UTF-8"),
}


def _attributes(many: int) -> bytes:
    return b"".join(b' a%d="1"' % number for number in range(many))


_OPEN = '<Patient xmlns="http://hl7.org/fhir">'
XML: dict[str, tuple[Callable[[], bytes], Place, str]] = {
    "200 deep": (lambda: (_OPEN + '<extension url="u">' * 200).encode(), (1, 969), "deep"),
    "200 deep, a line each": (lambda: (_OPEN + '\n<extension url="u">' * 200).encode(), (51, 1), "deep"),
    "a narrative 300 deep": (lambda: (_OPEN + _DIV + "<b>" * 300).encode(), (1, 713), "deep"),
    "100 MB of white space": (lambda: _OPEN.encode() + b" " * 100 * MEGABYTE, (1, 1), "longer than"),
    "100 MB of elements": (lambda: _OPEN.encode() + b'<id value="a"/>' * 7 * MEGABYTE, (1, 1), "longer than"),
    "60 MB of tags": (lambda: _OPEN.encode() + b"<name>" * 10 * MEGABYTE, (1, 1), "tags"),
    "60 MB of text": (lambda: _OPEN.encode() + b"\n" + b"x" * 60 * MEGABYTE + b"</Patient>", (2, 1), "text stands"),
    "60 MB of an attribute": (
        lambda: _OPEN.encode() + b'\n<active value="' + b"x" * 60 * MEGABYTE + b'"/></Patient>',
        (2, 1),
        "true or false",
    ),
    "800,000 attributes": (
        lambda: b'<Patient xmlns="http://hl7.org/fhir">\n <name' + _attributes(800_000) + b"/></Patient>",
        (2, 2),
        "more than 100 attributes",
    ),
    "101 attributes": (
        lambda: (_OPEN + _DIV).encode() + b"a=b, " * 200 + b"<b" + _attributes(101) + b"/></div></text></Patient>",
        (1, 1113),
        "more than 100 attributes",
    ),
    "3 million attributes": (
        lambda: (_OPEN + _DIV).encode() + (b"<b" + _attributes(100) + b"/>") * 30_000,
        (1, 1),
        "more than 2000000 attributes",
    ),
    "a comment full of tags": (
        lambda: _OPEN.encode() + b"\n<!--" + (b"<" + b"x" * 70_000) * 800,
        (2, 1),
        "ends inside",
    ),
    "a huge exponent": (
        lambda: (_OPEN + '\n<extension url="u"><valueDecimal value="1e999999999"/></extension></Patient>').encode(),
        (2, 20),
        "1e1000",
    ),
    "NUL": (lambda: (_OPEN + '\n<id value="a\0"/></Patient>').encode(), (2, 13), "well-formed"),
    "NUL spelled": (lambda: (_OPEN + '\n<id value="a&#0;"/></Patient>').encode(), (2, 13), "no such character"),
    "a lone surrogate": (
        lambda: (_OPEN + '\n<id value="a&#xD800;"/></Patient>').encode(),
        (2, 13),
        "no such character",
    ),
    "a lone surrogate in bytes": (lambda: _OPEN.encode() + b'\n<id value="\xed\xa0\x80"/>', (2, 12), "UTF-8"),
}

# name: the code, the character that is wrong (0: the whole), a part of what is said
UCUM: dict[str, tuple[str, int, str]] = {
    "an exponent": ("10*999999999", 4, "beyond 99"),
    "an exponent after a unit": ("m/s999999999", 4, "beyond 99"),
    "a negative exponent": ("10*-999999999", 4, "beyond 99"),
    "a number": ("m." + "9" * 200, 3, "more than 30 digits"),
    "a long code": ("m." * 50_000 + "m", 0, "longer than 255"),
    "parentheses": ("(" * 100 + "m" + ")" * 100, 17, "more than 16 parentheses"),
    "powers of ten": ("10*99." * 42 + "1", 0, "too large"),
    "a large power of a large prefix": ("m.Ym99", 3, "too large"),
    "NUL": ("m\0", 2, "\\x00"),
    "a lone surrogate": ("m/\ud800", 3, "\\ud800"),
}


# --- the process that takes the blow ---------------------------------------------------------------------------------


def _fhirpath(expression: str) -> list[Any]:
    from profiles.fhirpath.engine import compile

    crowd = {"resourceType": "Patient", "name": [{"given": ["a", "b"]}] * 200}
    return [str(value) for value in compile(expression)(crowd)]


def _json(make: Callable[[], bytes]) -> None:
    from profiles.json_text import parse

    parse(make())


def _xml(make: Callable[[], bytes]) -> None:
    from profiles.xml_text import from_xml

    from_xml(make())


def _ucum(code: str) -> None:
    from profiles.ucum.units import parse

    parse(code)


GROUPS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "fhirpath": (_fhirpath, {name: case[0] for name, case in FHIRPATH.items()}),
    "answered": (_fhirpath, {expression: expression for expression in ANSWERED}),
    "json": (_json, {name: case[0] for name, case in JSON.items()}),
    "xml": (_xml, {name: case[0] for name, case in XML.items()}),
    "ucum": (_ucum, {name: case[0] for name, case in UCUM.items()}),
}


def suffer(group: str) -> dict[str, Any]:
    """Runs a group under the limit of memory: what each case said, and the largest memory of all."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run, cases = GROUPS[group]
    told: dict[str, Any] = {}
    for name, case in cases.items():
        started = time.process_time()
        fault: dict[str, Any] = {}
        result = None
        try:
            result = run(case)
        except ValueError as error:
            fault = {key: getattr(error, key, None) for key in ("message", "line", "column", "position")}
            fault |= {"kind": type(error).__name__, "text": str(error)}
        except (MemoryError, RecursionError) as error:
            fault = {"kind": type(error).__name__, "message": "", "text": ""}
        told[name] = {"fault": fault, "result": result, "seconds": time.process_time() - started}
    return {"cases": told, "peak": peak_megabytes()}


def peak_megabytes() -> float:
    """The most memory this program held; getrusage would also count what the process held that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.fixture(scope="module")
def suffered() -> Callable[[str], dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}

    def run(group: str) -> dict[str, Any]:
        if group not in known:
            done = subprocess.run([sys.executable, __file__, group], capture_output=True, timeout=600, check=True)
            known[group] = json.loads(done.stdout)
            assert known[group]["peak"] < PEAK_MB
        return known[group]["cases"]  # type: ignore[no-any-return]  # parsed JSON

    return run


Suffered = Callable[[str], dict[str, Any]]


def once(group: str) -> pytest.MarkDecorator:
    """The cases of a group are asked for by one process: it makes all of them suffer at once."""
    return pytest.mark.xdist_group(f"hostile {group}")


def refused(case: dict[str, Any], kind: str, part: str) -> dict[str, Any]:
    """The fault of a case, after what holds for all of them."""
    fault: dict[str, Any] = case["fault"]
    assert fault.get("kind") == kind, case
    assert part in fault["message"]
    assert len(fault["text"]) < 700
    assert case["seconds"] < SECONDS
    return fault


# --- what it reports -------------------------------------------------------------------------------------------------


@once("fhirpath")
@pytest.mark.timeout(660)
@pytest.mark.parametrize("name", FHIRPATH)
def test_a_hostile_expression_is_refused_with_its_place(name: str, suffered: Suffered) -> None:
    _, place, part = FHIRPATH[name]
    case = suffered("fhirpath")[name]
    fault = refused(case, "FhirPathError", part)
    assert case["seconds"] < EXPRESSION_SECONDS
    assert (fault["line"], fault["column"]) == place


@once("answered")
@pytest.mark.timeout(660)
@pytest.mark.parametrize("expression", ANSWERED, ids=lambda text: text[:40])
def test_a_computation_without_bounds_has_an_answer_soon(expression: str, suffered: Suffered) -> None:
    case = suffered("answered")[expression]
    assert case["fault"] == {}
    assert case["result"] == ANSWERED[expression]
    assert case["seconds"] < EXPRESSION_SECONDS


@pytest.mark.timeout(660)
@pytest.mark.parametrize(
    ("group", "name"),
    [pytest.param(group, name, marks=once(group)) for group, cases in (("json", JSON), ("xml", XML)) for name in cases],
)
def test_a_hostile_document_is_refused_with_its_place(group: str, name: str, suffered: Suffered) -> None:
    _, place, part = (JSON if group == "json" else XML)[name]
    fault = refused(suffered(group)[name], "JsonError" if group == "json" else "XmlError", part)
    assert (fault["line"], fault["column"]) == place


@once("ucum")
@pytest.mark.timeout(660)
@pytest.mark.parametrize("name", UCUM)
def test_a_hostile_unit_is_refused_with_its_place(name: str, suffered: Suffered) -> None:
    _, position, part = UCUM[name]
    fault = refused(suffered("ucum")[name], "UcumError", part)
    assert fault["position"] == position


if __name__ == "__main__":
    print(json.dumps(suffer(sys.argv[1])))
