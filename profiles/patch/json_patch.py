"""JSON Patch on lossless JSON: numbers that no operation touches keep their lexemes, in the value and in the text.

Hides pointers, and that array indexes and member names are told apart only by what they meet in the document. Hostile
patches are bounded: number of operations, length and depth of pointers, content added (copies of copies).

Normative: RFC 6902 (JSON Patch), RFC 6901 (JSON Pointer), https://hl7.org/fhir/R4/http.html#patch
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from profiles import json_text
from profiles.json_edit import Edit, Edited, Path, PathError, Tree
from profiles.json_text import JsonError
from profiles.patch.errors import MAX_PATH, PatchError, check_count

MAX_BYTES = 16 * 1024 * 1024


def apply(resource: dict[str, Any] | str, patch: bytes | str | list[Any]) -> Edited:
    """Apply a JSON Patch (its text, or the array it reads as) to a resource; all of it or nothing.

    The result has the new value, and makes the new text out of the old one. The resource given is not changed; whether
    the new one is valid, and still of the same type and id, is for the caller to judge. Raises PatchError; JsonError
    when the resource is given as text that is none.
    """
    operations = _read(patch)
    tree = Tree(resource)
    for number, operation in enumerate(operations):
        try:
            _apply_one(tree, operation)
        except _Failed as problem:
            raise PatchError(problem.message, number, _path_of(operation), malformed=problem.malformed) from None
        except PathError as problem:
            raise PatchError(problem.message, number, _path_of(operation)) from None
    return tree.done()


class _Failed(Exception):
    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.malformed = malformed


def _read(patch: bytes | str | list[Any]) -> list[Any]:
    if not isinstance(patch, list):
        try:
            patch = json_text.parse_list(patch, max_bytes=MAX_BYTES)
        except JsonError as problem:
            raise PatchError(f"the patch is no JSON Patch: {problem}", malformed=True) from None
    check_count(len(patch))
    return patch


def _path_of(operation: Any) -> str:
    path = operation.get("path") if isinstance(operation, Mapping) else None
    return path if isinstance(path, str) else ""


# --- operations -----------------------------------------------------------------------------------------------------


def _apply_one(tree: Tree, operation: Any) -> None:
    if not isinstance(operation, Mapping):
        raise _Failed("an operation must be a JSON object with op and path", malformed=True)
    name = operation.get("op")
    run = _OPERATIONS.get(name) if isinstance(name, str) else None
    if run is None:
        raise _Failed(f"op must be one of {', '.join(_OPERATIONS)}", malformed=True)
    run(tree, operation)
    if not isinstance(tree.root, dict):
        raise _Failed("the resource must stay a JSON object")


def _add(tree: Tree, operation: Mapping[str, Any]) -> None:
    _put(tree, _pointer(operation, "path"), _value(operation))


def _remove(tree: Tree, operation: Mapping[str, Any]) -> None:
    tree.apply(Edit("delete", _existing(tree, _pointer(operation, "path"))))


def _replace(tree: Tree, operation: Mapping[str, Any]) -> None:
    tree.apply(Edit("set", _existing(tree, _pointer(operation, "path")), _value(operation)))


def _move(tree: Tree, operation: Mapping[str, Any]) -> None:
    source, target = _pointer(operation, "from"), _pointer(operation, "path")
    if len(source) < len(target) and target[: len(source)] == source:
        raise _Failed("an element cannot be moved into itself: choose a path outside of 'from'")
    start = _existing(tree, source)
    if not start:
        raise _Failed("the whole resource cannot be moved")
    tree.apply(Edit("move", start, to=_resolved(tree.root, target, gone=start)))


def _copy(tree: Tree, operation: Mapping[str, Any]) -> None:
    source = tree.get(_existing(tree, _pointer(operation, "from")))
    _put(tree, _pointer(operation, "path"), source, copied=True)


def _test(tree: Tree, operation: Mapping[str, Any]) -> None:
    expected = _value(operation)
    if not equal(tree.get(_existing(tree, _pointer(operation, "path"))), expected):
        raise _Failed("the test failed: the element has another value, so nothing was changed")


_OPERATIONS: Mapping[str, Callable[[Tree, Mapping[str, Any]], None]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}


def _put(tree: Tree, pointer: tuple[str, ...], value: Any, *, copied: bool = False) -> None:
    path = _resolved(tree.root, pointer)
    in_array = bool(path) and isinstance(path[-1], int)
    tree.apply(Edit("insert" if in_array else "set", path, value), shared=copied)


def _value(operation: Mapping[str, Any]) -> Any:
    if "value" not in operation:
        raise _Failed(f"'{operation['op']}' needs a value", malformed=True)
    return operation["value"]


# --- pointers -------------------------------------------------------------------------------------------------------

_ESCAPE = re.compile(r"~(.?)", re.DOTALL)
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


def _pointer(operation: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The reference tokens of a JSON Pointer, unescaped."""
    text = operation.get(name)
    if not isinstance(text, str):
        raise _Failed(f"'{operation['op']}' needs '{name}', a JSON Pointer such as /name/0/family", malformed=True)
    if text and text[0] != "/":
        raise _Failed(f"the JSON Pointer in '{name}' must be empty or begin with /", malformed=True)
    if len(text) > MAX_PATH or text.count("/") > json_text.MAX_DEPTH:
        raise _Failed(f"the JSON Pointer in '{name}' is longer or deeper than any resource", malformed=True)
    return tuple(_ESCAPE.sub(_unescape, token) for token in text.split("/")[1:])


def _unescape(found: re.Match[str]) -> str:
    if found[1] not in ("0", "1") or not found[1]:
        raise _Failed("in a JSON Pointer ~ is written ~0 and / is written ~1", malformed=True)
    return "~" if found[1] == "0" else "/"


def _existing(tree: Tree, pointer: tuple[str, ...]) -> Path:
    path = _resolved(tree.root, pointer)
    tree.get(path)
    return path


def _resolved(root: Any, pointer: tuple[str, ...], gone: Path = ()) -> Path:
    """The path a pointer means: all of it but the last step must exist. `gone` is to be thought away beforehand."""
    path: list[str | int] = []
    here = root
    for depth, token in enumerate(pointer):
        taken = gone[-1] if gone and tuple(path) == gone[:-1] else None
        last = depth == len(pointer) - 1
        if isinstance(here, list):
            index = _index(token, len(here) - (taken is not None), last)
            here = here[index + (isinstance(taken, int) and index >= taken)] if not last else None
            path.append(index)
        elif isinstance(here, dict):
            if not last and (token not in here or token == taken):
                raise _Failed(f"there is no '{token[:64]}' on the way: add it first")
            here = here[token] if not last else None
            path.append(token)
        else:
            raise _Failed(f"'{token[:64]}' is sought inside a single value: end the pointer before it")
    return tuple(path)


def _index(token: str, size: int, last: bool) -> int:
    if token == "-" and last:
        return size
    if not _INDEX.fullmatch(token):
        raise _Failed(f"an array index is a number from 0 to {size}, or - for the end, not '{token[:40]}'")
    index = int(token)
    if index > size or (index == size and not last):
        raise _Failed(f"the index {index} lies beyond the array, which has {size} items")
    return index


# --- comparing ------------------------------------------------------------------------------------------------------


def equal(left: Any, right: Any) -> bool:
    """Equality of RFC 6902 section 4.6: numbers by their value, objects without order, no type mistaken for another."""
    if isinstance(left, (int, Decimal)) and isinstance(right, (int, Decimal)):
        return isinstance(left, bool) is isinstance(right, bool) and left == right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(item, right[key]) for key, item in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and bool(left == right)
