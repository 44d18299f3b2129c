"""FHIR XML both ways: nothing is lost, what is hostile or wrong is refused with its place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import r4_package
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from profiles import build, definitions, json_text
from profiles.json_edit import differences, same
from profiles.json_text import Number, parse
from profiles.xml_text import XmlError, from_xml, to_xml

DATA = Path(__file__).resolve().parents[2] / "data"
NAMES = ["patient", "observation", "bundle"]
NS = 'xmlns="http://hl7.org/fhir"'
DIV = '<div xmlns="http://www.w3.org/1999/xhtml">'


def _json(path: Path) -> dict[str, Any]:
    return parse(path.read_bytes())


# --- both ways ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_xml_is_read_as_the_json_that_says_the_same(name: str) -> None:
    value = from_xml((DATA / "xml" / f"{name}.xml").read_bytes())
    assert differences(_json(DATA / "xml" / f"{name}.json"), value) == []


@pytest.mark.parametrize("name", NAMES)
def test_xml_is_written_in_the_order_of_the_definitions(name: str) -> None:
    resource = _json(DATA / "xml" / f"{name}.json")
    assert to_xml(resource, pretty=True) + b"\n" == (DATA / "xml" / f"{name}.golden.xml").read_bytes()
    for text in (to_xml(resource), to_xml(resource, pretty=True)):
        assert same(from_xml(text), resource)
        assert etree.fromstring(text).tag == f"{{http://hl7.org/fhir}}{resource['resourceType']}"


SAMPLES = sorted((DATA / "profiles" / "valid").glob("*.json"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_valid_resources_go_to_xml_and_back_unchanged(path: Path) -> None:
    resource = _json(path)
    assert differences(resource, from_xml(to_xml(resource))) == []


def test_every_element_of_every_type_has_a_place_in_xml() -> None:
    """What an attribute, a narrative or a resource is follows from the definitions alone."""
    from profiles import xml_rules

    attributes = {
        (name, rule.name)
        for name in (*definitions.data_types(), *definitions.resource_types())
        for rule in xml_rules.rules(name).values()
        if rule.attribute
    }
    assert {name for _, name in attributes} == {"id", "url"}
    assert ("Extension", "url") in attributes
    assert not any(name in definitions.resource_types() for name, _ in attributes)
    assert xml_rules.rules("Narrative")["div"].kind == "xhtml"
    assert xml_rules.rules("Bundle.entry.response")["outcome"].kind == "resource"


LEXEMES = ["0", "-1", "72.50", "0.000000100", "1e2", "1E+2", "1.50e-07", "-0", "-0.0", "9" * 60, "1e1000"]


@pytest.mark.parametrize("lexeme", LEXEMES)
def test_a_decimal_keeps_its_lexeme(lexeme: str) -> None:
    resource = parse(f'{{"resourceType":"Basic","extension":[{{"url":"u","valueDecimal":{lexeme}}}]}}')
    assert f'<valueDecimal value="{lexeme}"/>'.encode() in to_xml(resource)
    assert same(from_xml(to_xml(resource)), resource)


@given(st.text(st.characters(codec="utf-8"), max_size=30) | st.text("<>&\"'\n\r\t \x7f\x85\xa0\u2028]é😀", max_size=8))
@settings(deadline=None)
def test_any_text_that_xml_can_hold_survives(text: str) -> None:
    resource = {"resourceType": "Basic", "extension": [{"url": "u", "valueString": text}]}
    try:
        written = to_xml(resource)
    except XmlError as problem:
        assert "U+" in problem.message
        assert problem.path == "Basic.extension[0].valueString"
        assert any(ord(mark) < 32 or mark in "\ufffe\uffff" for mark in text)
    else:
        assert from_xml(written) == resource
        assert etree.fromstring(written)[0][0].get("value") == text


# --- narratives -----------------------------------------------------------------------------------------------------

KEPT = [
    f"{DIV}text</div>",
    f"{DIV}</div>",
    f"{DIV} \n <p class='a'>a &lt; b &amp; &#233; é</p><br/><br></br>\t<!-- c --></div>",
    '<div lang="fr"\n xmlns = \'http://www.w3.org/1999/xhtml\' ><a href="x?a=1&amp;b=2">l</a></div>',
    '<div xmlns="http://www.w3.org/1999/xhtml"/>',
    f"{DIV}<div><div>/></div></div></div>",
    f"{DIV}<![CDATA[<p>]]></div>",
    '<div xmlns="http://www.w3.org/1999/xhtml"><s:svg xmlns:s="urn:s" s:a="1"/></div>',
]


@pytest.mark.parametrize("div", KEPT)
def test_a_narrative_keeps_its_source_text(div: str) -> None:
    resource = {"resourceType": "Basic", "text": {"status": "generated", "div": div}, "language": "fr"}
    for pretty in (False, True):
        assert from_xml(to_xml(resource, pretty=pretty)) == resource


@pytest.mark.parametrize(
    ("given_div", "written"),
    [
        ("<div>a&nbsp;b &eacute; &lt;</div>", f"{DIV}a\xa0b é &lt;</div>"),
        (f" \n{DIV}a</div>\n", f"{DIV}a</div>"),
        ('<div class="c">a</div>', '<div xmlns="http://www.w3.org/1999/xhtml" class="c">a</div>'),
    ],
)
def test_a_narrative_is_made_fit_for_xml(given_div: str, written: str) -> None:
    resource = {"resourceType": "Basic", "text": {"status": "generated", "div": given_div}}
    assert from_xml(to_xml(resource))["text"]["div"] == written


@pytest.mark.parametrize(
    "namespaces", [('xmlns="http://www.w3.org/1999/xhtml"', ""), ("", 'xmlns="http://www.w3.org/1999/xhtml"')]
)
def test_a_narrative_with_prefixes_from_outside_stands_on_its_own_afterwards(namespaces: tuple[str, str]) -> None:
    text = (
        f'<f:Basic xmlns:f="http://hl7.org/fhir" {namespaces[0]} xmlns:v="urn:v"><f:text><f:status value="generated"/>'
        f'<div {namespaces[1]}><p xml:lang="fr" v:w="1">a f: b</p> <!-- c --><br/></div></f:text></f:Basic>'
    )
    div = from_xml(text.encode())["text"]["div"]
    assert div.startswith('<div xmlns="http://www.w3.org/1999/xhtml" ')
    root = etree.fromstring(div)
    assert root.tag == "{http://www.w3.org/1999/xhtml}div"
    assert dict(root[0].attrib.items()) == {"{http://www.w3.org/XML/1998/namespace}lang": "fr", "{urn:v}w": "1"}
    assert to_xml({"resourceType": "Basic", "text": {"status": "generated", "div": div}})


# --- refusals when reading ------------------------------------------------------------------------------------------


def _patient(inside: str) -> str:
    return f"<Patient {NS}>\n {inside}</Patient>"


REFUSED: list[tuple[str | bytes, int, int, str, str]] = [
    # text, line, column, path, part of the message
    ("", 1, 1, "", "no element"),
    ("plain", 1, 1, "", "well-formed"),
    ('{"resourceType":"Patient"}', 1, 1, "", "well-formed"),
    ("<Patient", 1, 1, "", "ends inside a tag"),
    (f"<Patient {NS}>", 1, 38, "Patient", "ends before"),
    (f"<Patient {NS}></Basic>", 1, 40, "Patient", "does not match"),
    (f"<Patient {NS}/><Basic/>", 1, 39, "", "follows the end"),
    ("<Patient/>", 1, 1, "", "is in no namespace"),
    ('<Patient xmlns="http://hl7.org/fhir/"/>', 1, 1, "", "is in the namespace http://hl7.org/fhir/:"),
    ('<ClinicalDocument xmlns="urn:hl7-org:v3"/>', 1, 1, "", "is in the namespace urn:hl7-org:v3"),
    (f"<Patinet {NS}/>", 1, 1, "", "did you mean 'Patient'"),
    (f"<Resource {NS}/>", 1, 1, "", "no R4 resource type"),
    (f'<Patient {NS} id="x"/>', 1, 1, "Patient", "write it as an element"),
    (f'<Patient {NS} xml:lang="fr"/>', 1, 1, "Patient", "attribute 'lang' is unknown"),
    (_patient('<birthdate value="2020"/>'), 2, 2, "Patient.birthdate", "did you mean 'birthDate'"),
    (_patient('<name>\n  <familly value="A"/></name>'), 3, 3, "Patient.name[0].familly", "did you mean 'family'"),
    (_patient('<name/><active value="true"/>'), 2, 9, "Patient.name[0]", "empty"),
    (_patient("<active/>"), 2, 11, "Patient.active", "empty"),
    (_patient('<name><given value="A"/><given/></name>'), 2, 34, "Patient.name[0].given[1]", "empty"),
    (_patient('<active value="yes"/>'), 2, 2, "Patient.active", "'active' must be true or false"),
    (_patient('<active value="true"/><active value="true"/>'), 2, 24, "Patient", "stands twice"),
    (_patient('<multipleBirthInteger value="1.0"/>'), 2, 2, "Patient.multipleBirthInteger", "whole number"),
    (_patient('<multipleBirthInteger value="０"/>'), 2, 2, "Patient.multipleBirthInteger", "whole number"),
    (
        _patient('<multipleBirthInteger value="' + "9" * 5000 + '"/>'),
        2,
        2,
        "Patient.multipleBirthInteger",
        "1000 characters",
    ),
    (
        _patient('<extension url="u"><valueDecimal value="1,5"/></extension>'),
        2,
        21,
        "Patient.extension[0].valueDecimal",
        "number",
    ),
    (
        _patient('<extension url="u"><valueDecimal value="NaN"/></extension>'),
        2,
        21,
        "Patient.extension[0].valueDecimal",
        "number",
    ),
    (
        _patient('<extension url="u"><valueDecimal value="1e9999"/></extension>'),
        2,
        21,
        "Patient.extension[0].valueDecimal",
        "1e1000",
    ),
    (_patient('<active value="true" extra="1"/>'), 2, 2, "Patient.active", "'extra' is unknown here: allowed are id"),
    (_patient('<name value="A"/>'), 2, 2, "Patient.name[0]", "'value' is unknown here: allowed are id"),
    (_patient('<contained id="a"><Basic/></contained>'), 2, 2, "Patient.contained[0]", "no attribute is allowed"),
    (
        _patient('<active xmlns:i="http://www.w3.org/2001/XMLSchema-instance" i:nil="true"/>'),
        2,
        2,
        "Patient.active",
        "nil",
    ),
    (_patient("<active>true</active>"), 2, 10, "Patient.active", "text stands between"),
    (_patient('<name>A<family value="B"/></name>'), 2, 8, "Patient.name[0]", "text stands between"),
    (_patient("<contained/>"), 2, 14, "Patient.contained[0]", "empty"),
    (_patient("<contained><Basic/><Basic/></contained>"), 2, 21, "Patient.contained[0]", "only one resource"),
    (_patient("<contained><code/></contained>"), 2, 13, "Patient.contained[0]", "no R4 resource type"),
    (_patient('<active xmlns="urn:x" value="true"/>'), 2, 2, "Patient", "'active' is in the namespace urn:x"),
    (_patient("<text><div>a</div></text>"), 2, 8, "Patient.text", "must be in http://www.w3.org/1999/xhtml"),
    (_patient("<text><p:div>a</p:div></text>"), 2, 8, "Patient.text", "prefix is not declared"),
    (_patient('<given value="a&nbsp;b"/>'), 2, 2, "Patient", "no such entity"),
    (_patient(f"<text>{DIV}&nbsp;</div></text>"), 2, 50, "Patient.text.div", "no such entity"),
    (_patient('<id value="&#0;"/>'), 2, 13, "Patient", "no such character"),
    (_patient('<id value="&#xD800;"/>'), 2, 13, "Patient", "no such character"),
    (_patient('<id value="\x01"/>'), 2, 13, "Patient", "well-formed"),
    (_patient('<id value="a" value="b"/>'), 2, 16, "Patient", "an attribute stands twice"),
    (f"<!DOCTYPE Patient><Patient {NS}/>", 1, 18, "", "DOCTYPE"),
    (f'<?xml version="1.0" encoding="ISO-8859-1"?><Patient {NS}/>', 1, 1, "", "ISO-8859-1: encode it as UTF-8"),
    (f'<Patient {NS}><id value="é\xff"/>'.encode("latin-1"), 1, 49, "", "not UTF-8"),
    (f"<Patient {NS}/>".encode("utf-16"), 1, 1, "", "not UTF-8"),
    (_patient('é<id value="x"/>'), 2, 2, "Patient", "text stands"),
    (_patient('<id value="éé"/> <b/>'), 2, 19, "Patient.b", "'b' is unknown"),
]


@pytest.mark.parametrize(("text", "line", "column", "path", "message"), REFUSED, ids=lambda value: str(value)[-40:])
def test_a_refusal_says_what_is_wrong_and_where(
    text: str | bytes, line: int, column: int, path: str, message: str
) -> None:
    with pytest.raises(XmlError) as caught:
        from_xml(text.encode() if isinstance(text, str) else text)
    fault = caught.value
    assert message in fault.message
    assert (fault.line, fault.column, fault.path) == (line, column, path)
    assert len(str(fault)) < 600
    assert isinstance(fault, ValueError)


def test_what_is_tolerated() -> None:
    assert from_xml(f"\ufeff<Patient {NS}/>".encode()) == {"resourceType": "Patient"}
    assert from_xml(f'<?xml version="1.0" encoding="utf-8" standalone="yes"?><Patient {NS}/>'.encode())
    out_of_order = _patient('<active value="true"/><id value="a"/><name><text value="x"/></name><gender value="male"/>'
                            '<name><text value="y"/></name>')  # fmt: skip
    assert from_xml(out_of_order.encode()) == {
        "resourceType": "Patient",
        "active": True,
        "id": "a",
        "name": [{"text": "x"}, {"text": "y"}],
        "gender": "male",
    }


# --- refusals when writing ------------------------------------------------------------------------------------------


def _basic(**members: Any) -> dict[str, Any]:
    return {"resourceType": "Basic", **members}


UNWRITABLE: list[tuple[Any, str, str]] = [
    # value, path, part of the message
    ({}, "", "no R4 resource"),
    ([], "", "no R4 resource"),
    ({"resourceType": 1}, "", "no R4 resource"),
    ({"resourceType": "Patinet"}, "", "no R4 resource"),
    (_basic(cod={}), "Basic", "Basic has no element 'cod' (did you mean 'code'?)"),
    (_basic(code={"text": 1}), "Basic.code.text", "must be a JSON string"),
    (_basic(code={"text": "\x00"}), "Basic.code.text", "U+0000"),
    (_basic(code={"text": "\ud800"}), "Basic.code.text", "U+D800"),
    (_basic(code={"text": "\uffff"}), "Basic.code.text", "U+FFFF"),
    (_basic(code={}), "Basic.code", "empty"),
    (_basic(code=[{"text": "a"}]), "Basic.code", "object is expected"),
    (_basic(code={"resourceType": "Basic"}), "Basic.code", "no element 'resourceType'"),
    (_basic(_code={"id": "a"}), "Basic.code", "only primitive"),
    (_basic(identifier={"value": "a"}), "Basic.identifier", "array"),
    (_basic(identifier=[]), "Basic.identifier", "array"),
    (_basic(identifier=["a"]), "Basic.identifier[0]", "object is expected"),
    (_basic(identifier=[{"value": "a"}, {"value": True}]), "Basic.identifier[1].value", "string"),
    (_basic(id=1), "Basic.id", "string"),
    (_basic(created=None), "Basic.created", "neither a value nor extensions"),
    (_basic(_created={}), "Basic.created", "empty"),
    (_basic(extension=[{"url": "u", "_url": {"id": "a"}}]), "Basic.extension[0].url", "attribute in XML"),
    (_basic(extension=[{"url": "u", "valueBoolean": "true"}]), "Basic.extension[0].valueBoolean", "true or false"),
    (_basic(extension=[{"url": "u", "valueInteger": True}]), "Basic.extension[0].valueInteger", "number"),
    (_basic(extension=[{"url": "u", "valueDecimal": "1"}]), "Basic.extension[0].valueDecimal", "number"),
    (_basic(meta={"profile": ["a", None]}), "Basic.meta.profile[1]", "neither"),
    (_basic(meta={"profile": ["a", 1]}), "Basic.meta.profile[1]", "string"),
    (_basic(contained=[{"resourceType": "Basic", "x": 1}]), "Basic.contained[0]", "no element 'x'"),
    (_basic(contained=[1]), "Basic.contained[0]", "no R4 resource"),
    *(
        (_basic(text={"div": div}), "Basic.text.div", message)
        for div, message in [
            ("", "one <div>"),
            ("<p>a</p>", "one <div>"),
            ("<divan/>", "one <div>"),
            (5, "string"),
            (f"{DIV}", "well-formed"),
            (f"{DIV}</div></text><id value='evil'/><text>", "well-formed"),
            (f"{DIV}</div>{DIV}</div>", "well-formed"),
            (f"{DIV}\x00</div>", "well-formed"),
            (f"{DIV}\ud800</div>", "well-formed"),
            (f"{DIV}&unknown;</div>", "well-formed"),
            (f"<!DOCTYPE div><div>{DIV}", "one <div>"),
            ('<div xmlns="urn:other">a</div>', "well-formed"),
            (DIV + "<b>" * 300 + "</b>" * 300 + "</div>", "deep"),
        ]
    ),
]


@pytest.mark.parametrize(("value", "path", "message"), UNWRITABLE, ids=lambda value: ascii(value)[:50])
def test_what_xml_cannot_hold_is_refused_with_its_path(value: Any, path: str, message: str) -> None:
    with pytest.raises(XmlError) as caught:
        to_xml(value)
    assert message in caught.value.message
    assert (caught.value.path, caught.value.line) == (path, 0)
    assert len(str(caught.value)) < 600


# --- attacks --------------------------------------------------------------------------------------------------------

MEGABYTE = 1024 * 1024
LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
ATTACKS: dict[str, str] = {
    "billion laughs": f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><Patient {NS}><id value="&a9;"/></Patient>',
    "quadratic": f'<!DOCTYPE x [<!ENTITY a "{"a" * MEGABYTE}">]><Patient {NS}><id value="{"&a;" * 1000}"/></Patient>',
    "external entity": f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Basic {NS}><id value="&a;"/></Basic>',
    "external subset": f'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><Patient {NS}/>',
    "parameter entity": f'<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x">%p;]><Patient {NS}/>',
    "deep": _patient('<extension url="u">' * 100_000),
    "deep and closed": _patient('<extension url="u">' * 1000 + "</extension>" * 1000),
    "deep narrative": _patient(f"<text>{DIV}" + "<b>" * 100_000),
    "unknown names": _patient("<" + "n" * MEGABYTE + "/>"),
    "attributes": _patient("<id " + " ".join(f'a{n}="1"' for n in range(50_000)) + "/>"),
    "long attribute": _patient('<active value="' + "x" * 4 * MEGABYTE + '"/>'),
    "long number": _patient('<multipleBirthInteger value="' + "7" * 4 * MEGABYTE + '"/>'),
    "text": _patient("x" * 4 * MEGABYTE),
    "comments": _patient("<!-- -->" * 300_000 + "x"),
    "prefixes": f"<Patient {NS} " + " ".join(f'xmlns:p{n}="urn:p"' for n in range(20_000)) + "><x/></Patient>",
    "tags": _patient('<name id="a"/>' * 2_100_000),
    "line ends": "\n" * 4 * MEGABYTE,
    "open brackets": "<" * 1000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_bounded_time(name: str) -> None:
    data = ATTACKS[name].encode()
    started = time.process_time()
    with pytest.raises(XmlError) as caught:
        from_xml(data)
    assert time.process_time() - started < 10
    assert len(str(caught.value)) < 700
    assert "passwd" not in str(caught.value)


def test_size_depth_and_count_are_limited() -> None:
    with pytest.raises(XmlError, match="longer than 10 bytes"):
        from_xml(f"<Patient {NS}/>".encode(), max_bytes=10)
    with pytest.raises(XmlError, match="more than 3 tags"):
        from_xml(_patient('<id value="a"/><language value="fr"/>').encode(), max_tags=3)


@pytest.mark.parametrize("levels", [30, 48, 49, 50, 60])
def test_what_is_read_from_xml_is_never_deeper_than_json_may_be(levels: int) -> None:
    extension: dict[str, Any] = {"url": "u", "valueString": "x"}
    for _ in range(levels - 1):
        extension = {"url": "u", "extension": [extension]}
    resource = {"resourceType": "Basic", "extension": [extension]}
    fits = 1 + 2 * levels <= json_text.MAX_DEPTH
    text = ('<extension url="u">' * levels + '<valueString value="x"/>' + "</extension>" * levels).join(
        (f"<Basic {NS}>", "</Basic>")
    )
    if fits:
        assert from_xml(text.encode()) == resource
        assert same(from_xml(to_xml(resource)), parse(json_text.write(resource)))
    else:
        with pytest.raises(XmlError, match="deep"):
            from_xml(text.encode())
        with pytest.raises(XmlError, match="deep"):
            to_xml(resource)


@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: _patient(text).encode("utf-8", "replace")))
@settings(deadline=None)
def test_noise_is_refused_with_an_xml_error_and_nothing_else(noise: bytes) -> None:
    try:
        value = from_xml(noise)
    except XmlError as problem:
        assert problem.line >= 1
        assert problem.column >= 1
    else:
        assert from_xml(to_xml(value)) == value


GOLDEN = (DATA / "xml" / "patient.golden.xml").read_bytes()


@given(
    st.integers(0, len(GOLDEN)),
    st.sampled_from([b"<", b">", b"/", b'"', b"&", b"\0", b"x", b"<x/>", b"]]>", b"\xc3", b"<!--", b""]),
)
@settings(deadline=None, max_examples=200)
def test_a_damaged_text_is_read_or_refused(at: int, mark: bytes) -> None:
    damaged = GOLDEN[:at] + mark + GOLDEN[at + (not mark) :]
    try:
        value = from_xml(damaged)
    except XmlError:
        return
    assert same(from_xml(to_xml(value)), value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3) | st.just(Number("1.50")),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "_id", "url", "extension", "text", "div", "value", "name", "contained",
                                       "resourceType", "given", "_given", "valueDecimal"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["id", "_id", "name", "text", "contained", "extension", "active", "_active"]), JUNK)
)
@settings(deadline=None, max_examples=300)
def test_any_value_is_written_readably_or_refused(members: dict[str, Any]) -> None:
    resource = {"resourceType": "Patient", **members}
    try:
        text = to_xml(resource)
    except XmlError:
        return
    assert same(from_xml(text), resource) or "null" in json_text.write(resource)


# --- official examples ----------------------------------------------------------------------------------------------


@pytest.mark.needs("shared")
@pytest.mark.parametrize("name", ["patient-example", "questionnaire-example"])
def test_the_official_xml_says_what_the_official_json_says(name: str, shared: Path) -> None:
    folder = shared / "fhirpath" / "input"
    assert differences(_json(folder / f"{name}.json"), from_xml((folder / f"{name}.xml").read_bytes())) == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_official_example_goes_to_xml_and_back_unchanged() -> None:
    count = 0
    for name, data in build.files(r4_package.located()):
        resource = parse(data)
        text = to_xml(resource, pretty=count % 2 == 1)
        assert differences(resource, from_xml(text)) == [], name
        count += 1
    assert count == 5306
