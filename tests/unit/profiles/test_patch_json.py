"""JSON Patch: the official cases, our own, and hostile patches."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.json_edit import same
from profiles.json_text import parse, parse_list, pretty, write
from profiles.patch import json_patch
from profiles.patch.errors import PatchError

CASES: list[dict[str, Any]] = parse_list(
    (Path(__file__).resolve().parents[2] / "data" / "patch" / "json.json").read_bytes()
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["title"])
def test_own_case(case: dict[str, Any]) -> None:
    before = copy.deepcopy(case)
    if "error" in case:
        with pytest.raises(PatchError) as caught:
            json_patch.apply(case["from"], case["patch"])
        assert case["error"] in caught.value.message
        assert caught.value.operation == case.get("at", 0)
    else:
        result = json_patch.apply(case["from"], case["patch"])
        assert same(result.value, case["to"])
        for text in (write(case["from"]), pretty(case["from"])):
            again = json_patch.apply(text, write(case["patch"]))
            assert same(parse(again.text(text)), case["to"])
    assert same(case, before), "the resource or the patch was changed"


def test_untouched_text_stays_byte_for_byte() -> None:
    text = (
        '{ "resourceType":"Basic",\n "valueQuantity" : {"value": 72.50e0, "unit":"\\u006bg"}, "note":[ {"x":"a"} ] }\n'
    )
    patch = b'[{"op":"replace","path":"/note/0/x","value":"b"},{"op":"add","path":"/valueQuantity/code","value":"kg"}]'
    assert json_patch.apply(text, patch).text(text) == (
        '{ "resourceType":"Basic",\n "valueQuantity" : {"value": 72.50e0, "unit":"\\u006bg","code": "kg"},'
        ' "note":[ {"x":"b"} ] }\n'
    )


@pytest.mark.parametrize(
    ("patch", "message", "malformed"),
    [
        (b"", "JSON array is expected", True),
        (b"{}", "JSON array is expected", True),
        (b'[{"op":"remove","op":"add","path":"/a"}]', "stands twice", True),
        (b"\xff[]", "UTF-8", True),
        (b'[{"op":"add","path":"/a","value":1e99999}]', "1e1000", True),
        (b'[{"op":"add","path":"/\\u0000","value":1}]', "NUL", True),
        (b'[{"op":"add","path":"/\\ud800","value":1}]', "surrogate", True),
        ('[{"op":"add","path":"/a","value":"\ud800"}]', "surrogate", True),
        (b'[{"op":"jump","path":"/a"}]', "op must be one of", True),
        (b'[{"op":"remove","path":"a"}]', "begin with /", True),
        (b'[{"op":"remove","path":"/a"}]', "no such element", False),
        (b'[{"op":"test","path":"","value":1}]', "test failed", False),
    ],
)
def test_a_patch_that_is_none_is_told_from_one_that_does_not_fit(
    patch: bytes | str, message: str, malformed: bool
) -> None:
    with pytest.raises(PatchError, match=message) as caught:
        json_patch.apply({}, patch)
    assert caught.value.malformed is malformed


ATTACKS: dict[str, list[Any]] = {
    "too many operations": [{"op": "test", "path": "", "value": {"a": ["x"]}}] * 1001,
    "doubling": [{"op": "copy", "from": "/a", "path": "/a/-"}] * 60,
    "doubling strings": [
        {"op": "add", "path": "/a/-", "value": "x" * 200_000},
        *[{"op": "copy", "from": "/a", "path": "/a/0"}] * 20,
    ],
    "deepening": [{"op": "add", "path": "/b" * depth, "value": {}} for depth in range(1, 150)],
    "deep moves": [
        {"op": "add", "path": "/b", "value": {}},
        *[
            {"op": "add", "path": "/c", "value": {}},
            {"op": "move", "from": "/b", "path": "/c/b"},
            {"op": "move", "from": "/c", "path": "/b"},
        ]
        * 120,
    ],
    "long pointer": [{"op": "add", "path": "/" + "x" * 1_000_000, "value": 1}],
    "deep pointer": [{"op": "add", "path": "/a" * 1_000_000, "value": 1}],
    "long index": [{"op": "add", "path": "/a/" + "9" * 100_000, "value": 1}],
    "huge index": [{"op": "add", "path": "/a/999999999", "value": 1}],
    "many tildes": [{"op": "add", "path": "/" + "~" * 3000, "value": 1}],
    "types": [{"op": ["add"], "path": {}, "value": 1}],
    "numbers": [{"op": 1, "path": 2}],
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_bounded_time(name: str) -> None:
    started = time.process_time()
    with pytest.raises(PatchError) as caught:
        json_patch.apply({"a": ["x"]}, ATTACKS[name])
    assert time.process_time() - started < 15
    assert len(str(caught.value)) < 600


def test_what_is_accepted_can_be_read_back() -> None:
    resource: dict[str, Any] = {"a": {}}
    path = ""
    for _ in range(200):
        path += "/a"
        try:
            resource = json_patch.apply(resource, [{"op": "add", "path": path, "value": {}}]).value
        except PatchError as problem:
            assert "deep" in problem.message
            break
    assert parse(write(resource)) == resource


KEYS = st.sampled_from(["a", "b", "0", "-", "", "~", "/"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.just("x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)
POINTERS = st.lists(st.sampled_from(["a", "b", "0", "1", "-", "~0", "~1", "", "x"]), max_size=3).map(
    lambda tokens: "".join(f"/{token}" for token in tokens)
)
OPERATIONS = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": POINTERS, "from": POINTERS},
    optional={"value": VALUES},
)


@given(st.dictionaries(KEYS, VALUES, max_size=3), st.lists(OPERATIONS, max_size=5))
@settings(deadline=None, max_examples=300)
def test_value_and_text_agree_whatever_the_patch(resource: dict[str, Any], patch: list[Any]) -> None:
    before = copy.deepcopy(resource)
    try:
        result = json_patch.apply(resource, patch)
    except PatchError as problem:
        assert problem.operation is not None
    else:
        assert same(parse(result.text(write(resource))), result.value)
    assert resource == before
