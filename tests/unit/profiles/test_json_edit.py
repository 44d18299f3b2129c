"""Edits of JSON text: what is not edited stays byte for byte, and text and value always tell the same."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import json_edit
from profiles.json_edit import Edit, PathError, Tree, compact, differences, edited, framed, same, splice
from profiles.json_text import JsonError, Number, number, parse, parse_list, write

CLIENT = """{
  "resourceType": "Observation",
  "id": "o1",
  "status" : "final",
  "text": {"status": "empty", "div": "<div xmlns=\\"http://www.w3.org/1999/xhtml\\">72.50 \\/ [a], { \\u00e9 }</div>"},
  "valueQuantity": {"value": 72.50, "unit": "kg" , "code":"kg"},
  "component": [ {"valueInteger": -0}, {"valueDecimal": 1e2} ],
  "note": []
}"""


# --- arrays and numbers of json_text, which patches and XML read ----------------------------------------------------


def test_an_array_is_read_as_an_object_is() -> None:
    assert same(parse_list(b'\xef\xbb\xbf [1.0, {"a": -0}] \n'), [Number("1.0"), {"a": Number("-0")}])
    for text, message, column, path in [
        ("{}", "a JSON array is expected", 1, ""),
        ('[{"a":1,"a":2}]', "stands twice", 9, "[0].a"),
        ("[1]x", "text follows the end of the array", 4, ""),
        ("[1,]", "a value is expected", 4, "[1]"),
        ("[" * 200, "more than 100 deep", 101, "[0]"),
    ]:
        with pytest.raises(JsonError, match=message) as caught:
            parse_list(text)
        assert caught.value.column == column
        assert caught.value.path.startswith(path)


def test_a_lexeme_is_read_as_it_would_be_in_a_text() -> None:
    for lexeme in ("0", "-12", "9" * 400, "-0", "1.50", "1e2", "-0.0"):
        assert same(number(lexeme), parse(f'{{"v":{lexeme}}}')["v"])
    for bad in ("", "-", "+1", "01", "1.", "NaN", "1e1001", "9" * 1001, "٣"):
        with pytest.raises(ValueError, match="number"):
            number(bad)


# --- compact text ---------------------------------------------------------------------------------------------------

STRINGS = st.text(st.sampled_from(' ",:{}[]\\/0e\n\té'), max_size=8)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 99), STRINGS, st.sampled_from(["72.50", "-0", "1e2"]).map(Number)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(STRINGS, inner, max_size=4)),
    max_leaves=20,
)
OBJECTS = st.dictionaries(STRINGS, VALUES, max_size=5)
BLANKS = st.text(" \n\t\r", max_size=2)


def _spaced(value: Any, draw: Any) -> str:
    """JSON text of a value with white space drawn for every place that may have some."""
    if isinstance(value, dict):
        parts = (
            f"{draw()}{json.dumps(key)}{draw()}:{draw()}{_spaced(item, draw)}{draw()}" for key, item in value.items()
        )
        return "{" + (",".join(parts) or draw()) + "}"
    if isinstance(value, list):
        return "[" + (",".join(f"{draw()}{_spaced(item, draw)}{draw()}" for item in value) or draw()) + "]"
    return json.dumps(value) if isinstance(value, str) else write(value)


@given(OBJECTS, st.data())
@settings(deadline=None)
def test_compacting_takes_all_white_space_between_tokens_and_nothing_else(
    value: dict[str, Any], data: st.DataObject
) -> None:
    blanks = iter(
        data.draw(st.lists(st.sampled_from(["", "", " ", "  ", "\n", "\t"]), min_size=200, max_size=200)) * 50
    )
    text = _spaced(value, lambda: next(blanks))
    assert compact(f" {text}\n") == compact(text) == _spaced(value, lambda: "")


def test_a_compact_text_is_given_back_as_it_is() -> None:
    plain = '{"a":"Dupont, Ana: one \\u00e9 two","b":[1,2,{"c":null}]}'
    assert compact(plain) is plain
    text = '{"a":"x, y: {z} [1] , \\" \\\\","b":[1,2,{"c":null}]}'
    assert compact(text) == text
    assert compact("\ufeff" + text) == text
    assert compact('{"a":1, "b":2}') == '{"a":1,"b":2}'
    assert compact('{"a":"\\\\" ,"b":" :"}') == '{"a":"\\\\","b":" :"}'


# --- id, meta, references -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"resourceType":"Patient"}', '{"resourceType":"Patient","id":"new","meta":{VERSION}}'),
        (
            '{"resourceType":"Patient","name":[{"text":"\\u00e9"}]}',
            '{"resourceType":"Patient","id":"new","meta":{VERSION},"name":[{"text":"\\u00e9"}]}',
        ),
        (
            '{"resourceType":"Patient","id":"old","meta":{"versionId":"7","source":"a","lastUpdated":"x"},"x":1.0}',
            '{"resourceType":"Patient","id":"new","meta":{VERSION,"source":"a"},"x":1.0}',
        ),
        (
            '{"x":1.0,"meta":{"tag":[{"code":"\\u0061"}]},"y":[1e2],"resourceType":"Patient","id":"old"}',
            '{"resourceType":"Patient","id":"new","meta":{VERSION,"tag":[{"code":"\\u0061"}]},"x":1.0,"y":[1e2]}',
        ),
        (
            '{ "id" : "\\u006fld", "resourceType" : "Patient", "_id": {"id": "i"} }',
            '{"resourceType":"Patient","id":"new","meta":{VERSION},"_id":{"id":"i"}}',
        ),
        ('{"meta":"none","id":7,"resourceType":"Patient"}', '{"resourceType":"Patient","id":"new","meta":{VERSION}}'),
        ('{"resourceType":"Patient","meta":{}}', '{"resourceType":"Patient","id":"new","meta":{VERSION}}'),
        (
            '{"resourceType":"Patient","meta":{"_versionId":{"id":"i"},"source":"s"},"a":2}',
            '{"resourceType":"Patient","id":"new","meta":{VERSION,"source":"s"},"a":2}',
        ),
    ],
)
def test_a_text_is_framed_for_the_store(text: str, expected: str) -> None:
    head, tail = framed(text, parse(text), "new")
    assert head + "VERSION" + tail == expected
    parse(head + '"versionId":"1"' + tail)


def test_framing_keeps_every_lexeme_and_escape() -> None:
    head, tail = framed(CLIENT, parse(CLIENT), "o2")
    text = head + '"versionId":"1"' + tail
    assert text.startswith('{"resourceType":"Observation","id":"o2","meta":{"versionId":"1"},"status":"final","text":{')
    for part in (
        "72.50 \\/ [a], { \\u00e9 }",
        '"value":72.50,',
        '"valueInteger":-0',
        '"valueDecimal":1e2',
        '"note":[]}',
    ):
        assert part in text


def test_members_are_spliced_in_behind_the_type() -> None:
    text = '{"a": 1.0, "id": "x", "resourceType": "Basic", "b": "\\u00e9"}'
    assert splice(text, parse(text), {"id": "y", "meta": {"source": "s"}}) == (
        '{"resourceType":"Basic","id":"y","meta":{"source":"s"},"a":1.0,"b":"\\u00e9"}'
    )
    assert splice(text, parse(text), {"id": None, "a": None, "b": None}) == '{"resourceType":"Basic"}'
    assert splice('{"a":1}', {"a": 1}, {"b": 2}) == '{"b":2,"a":1}'
    assert splice("{}", {}, {}) == "{}"


@given(
    OBJECTS,
    st.sampled_from([None, "i", 'i"', "\\"]),
    st.none() | st.dictionaries(STRINGS, SCALARS, max_size=3),
    st.randoms(),
)
@settings(deadline=None)
def test_framing_tells_what_the_client_told(rest: dict[str, Any], key: str | None, meta: Any, random: Any) -> None:
    members = [
        ("resourceType", "Basic"),
        *([("id", key)] if key else []),
        *([("meta", meta)] if meta is not None else []),
    ]
    members += [(name, value) for name, value in rest.items() if name not in ("resourceType", "id", "meta")]
    if random.random() < 0.5:
        random.shuffle(members)
    text = json.dumps(dict(members), default=float) if random.random() < 0.5 else write(dict(members))
    resource = parse(text)
    head, tail = framed(text, resource, "new")
    told = parse(head + '"versionId":"1"' + tail)
    wanted = {**resource, "id": "new", "meta": {**resource.get("meta", {}), "versionId": "1"}}
    assert same(told, wanted)
    assert compact(head + '"versionId":"1"' + tail) == head + '"versionId":"1"' + tail


def test_references_are_rewritten_and_nothing_that_looks_like_one() -> None:
    text = (
        '{"subject":{"reference":"urn:uuid:1","display":"\\"reference\\":\\"urn:uuid:1\\""},"x":"urn:uuid:1",'
        '"a\\"reference":"urn:uuid:1","performer":[{"reference":"urn:uuid:\\u0032"},{"reference":"urn:uuid:3"}]}'
    )
    assert json_edit.rewrite_references(text, {"urn:uuid:1": "Patient/1", "urn:uuid:2": 'a"b'}) == (
        '{"subject":{"reference":"Patient/1","display":"\\"reference\\":\\"urn:uuid:1\\""},"x":"urn:uuid:1",'
        '"a\\"reference":"urn:uuid:1","performer":[{"reference":"a\\"b"},{"reference":"urn:uuid:3"}]}'
    )
    assert json_edit.rewrite_references(text, {}) is text


# --- edits ----------------------------------------------------------------------------------------------------------


def _both(text: str, edits: list[Edit]) -> str:
    """The edited text, after checking that the edited value says the same."""
    value = parse(text)
    before = copy.deepcopy(value)
    tree = Tree(value)
    for edit in edits:
        tree.apply(edit)
    assert same(value, before), "the value given was changed"
    result = tree.done().text(text)
    assert same(parse(result), tree.root)
    return result


EDITS: list[tuple[Edit, str, str]] = [
    # edit, what stands in CLIENT, what stands there afterwards
    (Edit("set", ("status",), "amended"), '"status" : "final"', '"status" : "amended"'),
    (Edit("set", ("valueQuantity", "unit"), "g"), '"unit": "kg" , "code"', '"unit": "g" , "code"'),
    (Edit("set", ("valueQuantity", "system"), "u"), '"code":"kg"}', '"code":"kg","system": "u"}'),
    (Edit("set", ("component", 0, "valueInteger"), Number("1.50")), "-0}", "1.50}"),
    (Edit("delete", ("valueQuantity", "unit")), ' "unit": "kg" ,', ""),
    (Edit("delete", ("valueQuantity", "value")), '"value": 72.50, ', ""),
    (Edit("delete", ("component", 1)), ', {"valueDecimal": 1e2} ]', " ]"),
    (Edit("delete", ("id",)), '\n  "id": "o1",', ""),
    (Edit("insert", ("component", 1), {"id": "x"}), ', {"valueDecimal"', ', {"id":"x"}, {"valueDecimal"'),
    (Edit("insert", ("component", 2), []), "1e2} ]", "1e2}, [] ]"),
    (Edit("insert", ("note", 0), {"text": "n"}), '"note": []', '"note": [{"text":"n"}]'),
    (
        Edit("move", ("component", 1), to=("component", 0)),
        '[ {"valueInteger": -0}, {"valueDecimal": 1e2} ]',
        '[ {"valueDecimal": 1e2}, {"valueInteger": -0} ]',
    ),
    (
        Edit("move", ("valueQuantity", "value"), to=("component", 0, "valueInteger")),
        '{"value": 72.50, "unit": "kg" , "code":"kg"},\n  "component": [ {"valueInteger": -0}',
        '{ "unit": "kg" , "code":"kg"},\n  "component": [ {"valueInteger": 72.50}',
    ),
]


@pytest.mark.parametrize(("edit", "before", "after"), EDITS, ids=lambda value: str(value)[:40])
def test_an_edit_leaves_every_other_byte_as_it_was(edit: Edit, before: str, after: str) -> None:
    assert CLIENT.count(before) == 1
    result = _both(CLIENT, [edit])
    at = CLIENT.index(before)
    if edit.path == ("valueQuantity", "value") and edit.kind == "delete":
        after = " " * (len(result) - len(CLIENT) + len(before))
    assert result == CLIENT[:at] + after + CLIENT[at + len(before) :]


def test_edits_build_upon_each_other() -> None:
    result = _both(
        '{"a":[{"b":1.0},{"c":2.00}]}\n',
        [
            Edit("insert", ("a", 0), {"n": [1]}),
            Edit("set", ("a", 1, "b"), {"deep": []}),
            Edit("insert", ("a", 1, "b", "deep", 0), Number("3.0")),
            Edit("move", ("a", 0, "n"), to=("z",)),
            Edit("insert", ("z", 1), 2),
            Edit("delete", ("a", 0)),
        ],
    )
    assert result == '{"a":[{"b":{"deep":[3.0]}},{"c":2.00}],"z":[1,2]}\n'


def test_the_whole_can_be_set_but_not_deleted() -> None:
    assert _both(' {"a":1} ', [Edit("set", (), {"b": 2})]) == ' {"b":2} '
    with pytest.raises(PathError, match="delete the resource"):
        edited("{}", [Edit("delete", ())])


@pytest.mark.parametrize(
    "edit",
    [
        Edit("delete", ("missing",)),
        Edit("delete", ("component", 2)),
        Edit("delete", ("component", -1)),
        Edit("delete", ("component", "0")),
        Edit("delete", ("valueQuantity", 0)),
        Edit("set", ("missing", "x"), 1),
        Edit("set", ("component", 2), 1),
        Edit("set", ("status", "x"), 1),
        Edit("set", ("component", 0, "valueInteger", "x"), 1),
        Edit("insert", ("component", 3), 1),
        Edit("insert", ("component", -1), 1),
        Edit("insert", ("component", "x"), 1),
        Edit("move", ("missing",), to=("x",)),
        Edit("move", ("status",), to=("component", 9)),
    ],
    ids=str,
)
def test_a_path_that_leads_nowhere_is_refused_alike_in_value_and_text(edit: Edit) -> None:
    with pytest.raises(PathError) as in_value:
        Tree(parse(CLIENT)).apply(edit)
    with pytest.raises(PathError) as in_text:
        edited(CLIENT, [edit])
    assert in_value.value.path == in_text.value.path
    assert in_value.value.message == in_text.value.message


PATHS = st.lists(st.sampled_from(["a", "b", 0, 1, 2]), max_size=4).map(tuple)
KEYED = st.recursive(
    st.integers(0, 9) | st.sampled_from(["x", "1.0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=12,
)
ANY_EDIT = st.builds(Edit, st.sampled_from(["set", "insert", "delete", "move"]), PATHS, KEYED, PATHS)


@given(st.dictionaries(st.sampled_from(["a", "b"]), KEYED), st.lists(ANY_EDIT, max_size=6), st.booleans())
@settings(deadline=None, max_examples=300)
def test_value_and_text_go_the_same_way(value: dict[str, Any], edits: list[Edit], indented: bool) -> None:
    text = json.dumps(value, indent=2 if indented else None)
    tree = Tree(value)
    for edit in edits:
        try:
            tree.apply(edit)
        except PathError:
            break
    result = edited(text, tree.edits)
    assert json.loads(result) == tree.root


# --- differences ----------------------------------------------------------------------------------------------------


@given(KEYED, KEYED)
@settings(deadline=None, max_examples=300)
def test_differences_lead_from_one_value_to_the_other(old: Any, new: Any) -> None:
    tree = Tree({"v": old})
    for edit in differences({"v": old}, {"v": new}):
        tree.apply(edit)
    assert same(tree.root, {"v": new})
    assert differences(tree.root, {"v": new}) == []


def test_differences_see_lexemes_and_are_few() -> None:
    old = parse('{"a":[1.0,2,3,4],"b":{"c":true}}')
    assert differences(old, parse('{"b":{"c":true},"a":[1.0,2,3,4]}')) == []
    assert differences(old, parse('{"a":[1.00,2,3,4],"b":{"c":true}}')) == [Edit("set", ("a", 0), Number("1.00"))]
    assert differences(old, parse('{"a":[1.0,3,4],"b":{"c":1}}')) == [
        Edit("delete", ("a", 1)),
        Edit("set", ("b", "c"), 1),
    ]


# --- attacks --------------------------------------------------------------------------------------------------------


def test_copies_of_copies_are_stopped() -> None:
    tree = Tree({"a": ["x" * 1000]})
    with pytest.raises(PathError, match="too much"):
        for _ in range(64):
            tree.apply(Edit("insert", ("a", 0), copy.copy(tree.get(("a",)))))


def test_edits_cannot_nest_deeper_than_what_can_be_read() -> None:
    tree = Tree({"a": {}})
    path: tuple[str | int, ...] = ("a",)
    with pytest.raises(PathError, match="deep"):
        for _ in range(200):
            path = (*path, "a")
            tree.apply(Edit("set", path, {}))
    parse(write(tree.root))
    deep = Tree({"a": {"b": [[[[]]]]}})
    for _ in range(95):
        deep.apply(Edit("set", ("z",), {"z": deep.get(("z",)) if deep.has(("z",)) else 1}))
    with pytest.raises(PathError, match="deep"):
        deep.apply(Edit("move", ("a",), to=("z",) * 96))


def test_a_text_of_very_many_parts_is_written_anew_in_bounded_time() -> None:
    text = '{"a":[' + "1.0," * 410_000 + '1.0],"b":1}'
    tree = Tree(text)
    started = time.process_time()
    tree.apply(Edit("delete", ("a", 0)))
    tree.apply(Edit("set", ("b",), 2))
    with pytest.raises(json_edit.TooManyParts):
        edited(text, tree.edits)
    assert tree.done().text(text) == '{"a":[' + "1.0," * 409_999 + '1.0],"b":2}'
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "body",
    ['"' + "\\\\" * 500_000 + '"', '"' + '\\"' * 500_000 + '"', '" , ' * 1 + '"', "[" + "[]," * 200_000 + "[]]"],
    ids=["backslashes", "quotes", "a comma in a string", "brackets"],
)
def test_hostile_text_is_compacted_and_framed_in_bounded_time(body: str) -> None:
    text = f'{{ "x" : {body} }}'
    started = time.process_time()
    assert compact(text) == f'{{"x":{body}}}'
    framed(text, {"resourceType": "Basic", **parse(text)}, "i")
    assert time.process_time() - started < 10


def test_an_error_shows_a_short_path() -> None:
    with pytest.raises(PathError) as caught:
        Tree({"a": 1}).apply(Edit("delete", tuple("k" * 500 for _ in range(500))))
    assert len(str(caught.value)) < 400
    assert json_edit.shown(("name", 0, "family")) == "name[0].family"
    assert json_edit.shown(()) == "the root"
