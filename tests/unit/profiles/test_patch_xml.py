"""XML Patch: the official cases, our own, and hostile patches."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.json_edit import differences, same
from profiles.json_text import parse, parse_list, pretty, write
from profiles.patch import xml_patch
from profiles.patch.errors import PatchError

CASES: list[dict[str, Any]] = parse_list(
    (Path(__file__).resolve().parents[2] / "data" / "patch" / "xml.json").read_bytes()
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["title"])
def test_own_case(case: dict[str, Any]) -> None:
    before, patch = copy.deepcopy(case["from"]), case["patch"].encode()
    if "error" in case:
        with pytest.raises(PatchError) as caught:
            xml_patch.apply(case["from"], patch)
        assert case["error"] in caught.value.message
        assert caught.value.operation == case.get("at", 0)
    else:
        result = xml_patch.apply(case["from"], patch)
        assert differences(case["to"], result.value) == []
        for text in (write(case["from"]), pretty(case["from"])):
            assert differences(case["to"], parse(xml_patch.apply(text, patch).text(text))) == []
    assert same(case["from"], before), "the resource was changed"


ONE, TWO, END = '<a k="1">x</a>', '<a k="2"/>', "tail<?pi data?><p:b><a>y</a></p:b>"
DOCUMENT = f'<d xmlns:p="urn:p">{ONE} <!--c-->{TWO}{END}</d>'.encode()


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("<remove sel='d/a[1]'/>", f" <!--c-->{TWO}{END}"),
        ("<remove sel='d/a[1]' ws='after'/>", f"<!--c-->{TWO}{END}"),
        ("<remove sel='d/comment()' ws='before'/>", f"{ONE}{TWO}{END}"),
        ("<remove sel='d/text()[2]'/>", f"{ONE} <!--c-->{TWO}<?pi data?><p:b><a>y</a></p:b>"),
        ("<remove sel=\"d/processing-instruction('pi')\"/>", f"{ONE} <!--c-->{TWO}tail<p:b><a>y</a></p:b>"),
        ("<remove sel=\"d/a[.='x']/@k\"/>", f"<a>x</a> <!--c-->{TWO}{END}"),
        ("<remove sel=\"d/*[a='y']\"/>", f"{ONE} <!--c-->{TWO}tail<?pi data?>"),
        ("<replace sel=\"d/a[@k='2']\"><z/>\n</replace>", f"{ONE} <!--c--><z/>{END}"),
        ("<replace sel='d/comment()[1]'><!--n--></replace>", f"{ONE} <!--n-->{TWO}{END}"),
        ("<replace sel='d/text()[1]'>T</replace>", f"{ONE}T<!--c-->{TWO}{END}"),
        ("<add sel='d/a[2]' pos='before'>u<n/>v</add>", f"{ONE} <!--c-->u<n/>v{TWO}{END}"),
        ("<add sel='d/a[2]' pos='after'>u<n/>v</add>", f"{ONE} <!--c-->{TWO}u<n/>v{END}"),
        ("<add sel='d' pos='prepend'>u</add>", f"u{ONE} <!--c-->{TWO}{END}"),
        ("<add sel='d/a[1]' pos='prepend'>u<n/>v</add>", f'<a k="1">u<n/>vx</a> <!--c-->{TWO}{END}'),
        (
            "<add sel='d/p:b/a' type='@xml:lang'>fr</add>",
            f'{ONE} <!--c-->{TWO}tail<?pi data?><p:b><a xml:lang="fr">y</a></p:b>',
        ),
        (
            "<add sel='d/p:b/a' type='namespace::q'>urn:q</add>",
            f'{ONE} <!--c-->{TWO}tail<?pi data?><p:b><a xmlns:q="urn:q">y</a></p:b>',
        ),
    ],
)
def test_a_document_is_changed_where_the_selector_points_and_nowhere_else(operation: str, expected: str) -> None:
    patch = f'<diff xmlns:p="urn:p">{operation}</diff>'.encode()
    assert xml_patch.apply_document(DOCUMENT, patch) == f'<d xmlns:p="urn:p">{expected}</d>'.encode()


def test_the_root_of_a_document_can_be_replaced() -> None:
    assert xml_patch.apply_document(b"<a/>", b"<diff><replace sel='a'><b/></replace></diff>") == b"<b/>"


def test_untouched_text_stays_byte_for_byte() -> None:
    text = (
        '{ "valueQuantity":{"value" : 7.50e0}, "resourceType":"Observation", "status":"\\u0066" ,"note":[{"text":"a"}]}'
    )
    patch = b"<diff><replace sel='f:Observation/f:note/f:text/@value'>b</replace></diff>"
    assert xml_patch.apply(text, patch).text(text) == text.replace('"a"', '"b"')


MEGABYTE = 1024 * 1024
WIDE = {"resourceType": "Patient", "name": [{"family": "A"}] * 3000}
COSTLY = "[f:family='']"
NESTED = '<extension url="u">'
ATTACKS: dict[str, str] = {
    "billion laughs": '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><diff><remove sel="&b;"/></diff>',
    "external entity": '<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/passwd">]><diff><add sel="d">&a;</add></diff>',
    "hidden doctype": '<?xml version="1.0" encoding="UTF-7"?>+ADwAIQ-DOCTYPE d><diff/>',
    "too many operations": "<diff>" + "<remove sel='f:Patient/f:name[1]'/>" * 1001 + "</diff>",
    "much looking": "<diff>" + "<remove sel=\"f:Patient/f:name[f:family/@value='B']\"/>" * 1000 + "</diff>",
    "many predicates": '<diff><remove sel="f:Patient/f:name' + "[f:family='']" * 280 + '"/></diff>',
    "many steps": "<diff><remove sel='" + "*/" * 1900 + "*'/></diff>",
    "long selector": f"<diff><remove sel='{'a' * MEGABYTE}'/></diff>",
    "long predicate": "<diff><remove sel=\"f:Patient/f:name[.='" + "a" * 3900 + "']\"/></diff>",
    "unclosed": "<diff><remove sel='f:Patient[" + "f:a/" * 900 + "'/></diff>",
    "deep": "<diff><add sel='f:Patient'>" + "<a>" * 100_000,
    "deep and closed": f"<diff><add sel='f:Patient'>{NESTED * 200}{'</extension>' * 200}</add></diff>",
    "NUL": "<diff><remove sel='f:Patient\0'/></diff>",
    "reference to NUL": "<diff><remove sel='f:Patient&#0;'/></diff>",
    "size": "<diff>" + " " * 17 * MEGABYTE + "</diff>",
    "nothing": "",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_bounded_time(name: str) -> None:
    started = time.process_time()
    with pytest.raises(PatchError) as caught:
        xml_patch.apply(WIDE, ATTACKS[name].encode())
    assert time.process_time() - started < 20
    assert len(str(caught.value)) < 700
    assert "root:" not in str(caught.value)


def test_a_document_with_a_doctype_is_refused() -> None:
    with pytest.raises(PatchError, match="DOCTYPE"):
        xml_patch.apply_document(b"<!DOCTYPE d [<!ENTITY a 'b'>]><d>&a;</d>", b"<diff><remove sel='d/text()'/></diff>")
    with pytest.raises(PatchError, match="well-formed"):
        xml_patch.apply_document("<!DOCTYPE d><d/>".encode("utf-16"), b"<diff><remove sel='d'/></diff>")


def test_a_sibling_array_of_another_length_is_aligned_when_the_patch_needs_it() -> None:
    name = {"given": ["A", "B", "C"], "_given": [{"id": "a"}]}
    patch = b"<diff><add sel='f:Patient/f:name/f:given[3]' type='@id'>c</add></diff>"
    result = xml_patch.apply({"resourceType": "Patient", "name": [name]}, patch)
    assert result.value["name"] == [{"given": ["A", "B", "C"], "_given": [{"id": "a"}, None, {"id": "c"}]}]
    assert same(parse(result.text('{"resourceType":"Patient","name":[' + write(name) + "]}")), result.value)


def test_a_resource_without_xml_form_is_refused() -> None:
    with pytest.raises(PatchError, match="no XML form"):
        xml_patch.apply({"resourceType": "Patient", "unknown": 1}, b"<diff><remove sel='f:Patient/f:active'/></diff>")


SELECTORS = st.lists(
    st.sampled_from(["f:Patient", "/", "f:name", "[1]", "[2]", "*", "@value", "text()", "f:family", "[@id='a']"]),
    max_size=7,
).map("".join)
CONTENT = st.sampled_from(["", "x", "<name xmlns='http://hl7.org/fhir'><family value='N'/></name>", "<!--c-->", "<a/>"])
OPERATIONS = st.builds(
    lambda name, selector, extra, content: f'<{name} sel="{selector}"{extra}>{content}</{name}>',
    st.sampled_from(["add", "replace", "remove"]),
    SELECTORS,
    st.sampled_from(["", " pos='before'", " pos='after'", " pos='prepend'", " type='@id'", " ws='both'"]),
    CONTENT,
)
PATIENT = {"resourceType": "Patient", "name": [{"family": "A", "id": "a"}, {"family": "B"}], "active": True}


@given(st.lists(OPERATIONS, max_size=3))
@settings(deadline=None, max_examples=200)
def test_value_and_text_agree_whatever_the_patch(operations: list[str]) -> None:
    try:
        result = xml_patch.apply(PATIENT, f"<diff>{''.join(operations)}</diff>".encode())
    except PatchError:
        return
    assert same(parse(result.text(write(PATIENT))), result.value)
