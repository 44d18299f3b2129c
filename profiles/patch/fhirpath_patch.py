"""FHIRPath Patch on lossless JSON: the operations of a Parameters resource, each applied to what the last one left.

Hides how elements selected by FHIRPath are found again in JSON (choice types, `_` siblings, lists of primitives with
holes), and how the value of a Parameters part becomes the JSON of the element it is meant for. Hostile patches are
bounded: number of operations, length of paths, work of all expressions together, content added.

Values may be given in a primitive type other than the element's as long as they fit it (`valueString` for a code).
Elements left without content by a deletion are taken away too, up to the resource.

Normative: https://hl7.org/fhir/R4/fhirpatch.html, https://hl7.org/fhir/R4/parameters.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from profiles.fhirpath import engine
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Node, Property, root_node
from profiles.json_edit import Edit, Edited, Path, PathError, Tree
from profiles.patch.content import Content, Misfit, content_of, options, siblings
from profiles.patch.errors import MAX_PATH, PatchError, check_count

# The work all expressions of one patch may do together, in elements touched; each may do the least at any rate.
_BUDGET, _LEAST_BUDGET = 1_000_000, 20_000


def apply(resource: dict[str, Any] | str, patch: Mapping[str, Any]) -> Edited:
    """Apply a FHIRPath Patch (a Parameters resource as value) to a resource; all of it or nothing.

    The result has the new value, and makes the new text out of the old one. The resource given is not changed; whether
    the new one is valid is for the caller to judge. Raises PatchError; JsonError when the resource is given as text
    that is none.
    """
    operations = _read(patch)
    tree = Tree(resource)
    budget = max(_LEAST_BUDGET, _BUDGET // max(1, len(operations)))
    for number, operation in enumerate(operations):
        try:
            _OPERATIONS[operation.type](_Target(tree, operation, budget))
        except (Misfit, PathError) as problem:
            raise PatchError(problem.message, number, operation.path) from None
    return tree.done()


# --- the Parameters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Operation:
    """One operation; `value` is the part of that name; parts that were not given have their empty value."""

    type: str
    path: str
    name: str = ""
    value: Mapping[str, Any] | None = None
    index: int = -1
    source: int = -1
    destination: int = -1


_PARTS: Mapping[str, tuple[str, ...]] = {
    "add": ("path", "name", "value"),
    "insert": ("path", "value", "index"),
    "delete": ("path",),
    "replace": ("path", "value"),
    "move": ("path", "source", "destination"),
}
_TEXTS = ("type", "path", "name")
_NUMBERS = ("index", "source", "destination")


def _read(patch: Any) -> list[_Operation]:
    if not isinstance(patch, Mapping) or patch.get("resourceType") != "Parameters":
        raise PatchError("a FHIRPath Patch is a Parameters resource", malformed=True)
    parameters = patch.get("parameter", [])
    if not isinstance(parameters, list):
        raise PatchError("Parameters.parameter must be an array", malformed=True)
    check_count(len(parameters))
    return [_operation(number, parameter) for number, parameter in enumerate(parameters)]


def _operation(number: int, parameter: Any) -> _Operation:
    def fail(message: str, path: str = "") -> PatchError:
        return PatchError(message, number, path, malformed=True)

    if not isinstance(parameter, dict) or parameter.get("name") != "operation":
        raise fail("each parameter of the patch must be named 'operation'")
    parts: dict[str, Any] = {}
    for part in parameter["part"] if isinstance(parameter.get("part"), list) else ():
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str) or name not in ("type", "path", "name", "value", *_NUMBERS):
            raise fail("the parts of an operation are type, path, name, value, index, source, destination")
        if name in parts:
            raise fail(f"the part '{name}' stands twice: keep one of them")
        parts[name] = part if name == "value" else _simple(part, name, fail)
    kind = parts.pop("type", None)
    if kind not in _PARTS:
        raise fail(f"the type of an operation must be one of {', '.join(_PARTS)}")
    wanted = _PARTS[kind]
    missing, needless = [name for name in wanted if name not in parts], [name for name in parts if name not in wanted]
    if missing:
        raise fail(f"'{kind}' needs the part '{missing[0]}'", parts.get("path", ""))
    if needless:
        raise fail(f"'{kind}' takes no part '{needless[0]}': remove it", parts["path"])
    if len(parts["path"]) > MAX_PATH:
        raise fail(f"the path is longer than {MAX_PATH} characters", parts["path"])
    return _Operation(kind, **parts)


def _simple(part: dict[str, Any], name: str, fail: Callable[[str], PatchError]) -> str | int:
    values = [value for key, value in part.items() if key.startswith("value")]
    if len(values) == 1 and name in _NUMBERS and type(values[0]) is int:
        return values[0]
    if len(values) == 1 and name in _TEXTS and isinstance(values[0], str):
        return values[0]
    raise fail(f"the part '{name}' must have one value, {'an integer' if name in _NUMBERS else 'a string'}")


# --- operations -----------------------------------------------------------------------------------------------------


class _Target:
    """An operation together with the tree it changes."""

    def __init__(self, tree: Tree, operation: _Operation, budget: int) -> None:
        self.tree = tree
        self.operation = operation
        self.budget = budget

    def nodes(self) -> list[Node]:
        """The elements the path selects, all of them in the resource."""
        try:
            compiled = engine.compile(_NARRATIVE_DIV.sub(_delimited, self.operation.path))
            root = root_node(self.tree.root)
            found = compiled.nodes(root, budget=self.budget)
        except FhirPathError as problem:
            raise Misfit(f"the path cannot be evaluated: {problem}") from None
        for node in found:
            if not isinstance(node, Node) or _root_of(node) is not root:
                raise Misfit("the path must select elements of the resource itself, not computed or other ones")
        return found

    def node(self) -> Node:
        """The one element the path selects."""
        found = self.nodes()
        if len(found) == 1:
            return found[0]
        if not found:
            raise Misfit("no element matches the path: an element can only be added to one that is there")
        raise Misfit(f"{len(found)} elements match the path: make it select one, as with [0] or where()")

    def content(self, choices: tuple[Property, ...]) -> Content:
        return content_of(self.operation.value or {}, choices)


def _add(target: _Target) -> None:
    holder = target.node()
    choices = options(holder.place, target.operation.name)
    content = target.content(choices)
    if not content.property.many:
        present = _inside_value(target.tree, holder)
        taken = [choice.json for choice in choices if choice.json in present or f"_{choice.json}" in present]
        if taken:
            raise Misfit(f"'{taken[0]}' is there already and may stand once: use replace")
        _set_single(target.tree, holder, content)
    else:
        _List(target.tree, _opened(target.tree, holder), content.property).insert(None, content)


def _insert(target: _Target) -> None:
    items, operation = _whole_list(target), target.operation
    if not 0 <= operation.index <= items.size:
        raise Misfit(f"the index must be from 0 to {items.size}, the length of the list, not {operation.index}")
    items.insert(operation.index, target.content((items.property,)))


def _move(target: _Target) -> None:
    items, operation = _whole_list(target), target.operation
    for name, place in (("source", operation.source), ("destination", operation.destination)):
        if not 0 <= place < items.size:
            raise Misfit(f"the {name} must be from 0 to {items.size - 1}, an item of the list, not {place}")
    items.move(operation.source, operation.destination)


def _delete(target: _Target) -> None:
    found = target.nodes()
    if len(found) > 1:
        raise Misfit(f"{len(found)} elements match the path: only one can be deleted at a time")
    if found and found[0].parent is None:
        raise Misfit("the resource itself cannot be deleted by a patch")
    for node in found:
        _take_away(target.tree, node)


def _replace(target: _Target) -> None:
    node = target.node()
    if node.parent is None:
        raise Misfit("the resource itself cannot be replaced by a patch: update it instead")
    content = target.content(siblings(node.parent.place, node.key))
    if node.index >= 0:
        _list_with(target.tree, node).replace(node.index, content)
        return
    if content.property.json != node.key:
        _delete_keys(target.tree, _inside(node.parent), node.key, f"_{node.key}")
    _set_single(target.tree, node.parent, content)


_OPERATIONS: Mapping[str, Callable[[_Target], None]] = {
    "add": _add,
    "insert": _insert,
    "delete": _delete,
    "replace": _replace,
    "move": _move,
}


# In FHIRPath `div` is an operator, so the element of that name needs backquotes, but HL7's own patches do without.
_NARRATIVE_DIV = re.compile(r"""'(?:[^'\\]|\\.)*+'|`[^`]*`|"[^"]*"|\.\s*div\b""", re.DOTALL)


def _delimited(found: re.Match[str]) -> str:
    return ".`div`" if found[0][0] == "." else found[0]


def _whole_list(target: _Target) -> _List:
    found = target.nodes()
    if not found:
        raise Misfit("no element matches the path: use add for the first item of a list")
    first, items = found[0], _list_with(target.tree, found[0])
    if len(found) != items.size or any(node.parent is not first.parent or node.key != first.key for node in found):
        raise Misfit("the path must select one whole list, without filter or index")
    return items


# --- from nodes to JSON ---------------------------------------------------------------------------------------------


def _root_of(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node


def _inside(node: Node) -> Path:
    """The path of the object that holds the children of a node: of a primitive, its `_` sibling."""
    if node.parent is None:
        return ()
    key = node.key if type(node.value) is dict else f"_{node.key}"
    return (*_inside(node.parent), key, *([node.index] if node.index >= 0 else []))


def _inside_value(tree: Tree, node: Node) -> dict[str, Any]:
    path = _inside(node)
    value = tree.get(path) if tree.has(path) else None
    return value if isinstance(value, dict) else {}


def _opened(tree: Tree, node: Node) -> Path:
    """The path `_inside` a node, after making sure that an object stands there: a primitive may have no sibling yet."""
    path = _inside(node)
    if not tree.has(path) or tree.get(path) is None:
        if node.index < 0:
            tree.apply(Edit("set", path, {}))
        else:
            _list_with(tree, node).set_beside(node.index, {})
    return path


def _set_single(tree: Tree, holder: Node, content: Content) -> None:
    path, name = _opened(tree, holder), content.property.json
    for key, value in ((name, content.value), (f"_{name}", content.beside)):
        if value is not None:
            tree.apply(Edit("set", (*path, key), value))
        else:
            _delete_keys(tree, path, key)


def _delete_keys(tree: Tree, path: Path, *keys: str) -> None:
    for key in keys:
        if tree.has((*path, key)):
            tree.apply(Edit("delete", (*path, key)))


def _take_away(tree: Tree, node: Node) -> None:
    """Delete an element, and what is empty without it."""
    parent = node.parent
    if parent is None:
        return
    path = _inside(parent)
    if node.index >= 0:
        _list_with(tree, node).remove(node.index)
    else:
        _delete_keys(tree, path, node.key, f"_{node.key}")
    if parent.parent is None or _inside_value(tree, parent):
        return
    if type(parent.value) is dict or parent.value is None:
        _take_away(tree, parent)
    elif parent.index >= 0:
        _list_with(tree, parent).set_beside(parent.index, None)
    else:
        _delete_keys(tree, path[:-1], f"_{parent.key}")


def _list_with(tree: Tree, item: Node) -> _List:
    """The list that holds a node."""
    parent = item.parent
    if parent is None or item.index < 0:
        raise Misfit("the path must select a list, an element that may repeat")
    chosen = next(option for option in siblings(parent.place, item.key) if option.json == item.key)
    return _List(tree, _inside(parent), chosen)


class _List:
    """A repeating element: one array, or for a primitive two in step, the second with what stands beside the values."""

    def __init__(self, tree: Tree, path: Path, chosen: Property) -> None:
        self.tree = tree
        self.path = path
        self.property = chosen
        self.keys: tuple[str, ...] = (chosen.json, f"_{chosen.json}") if chosen.primitive else (chosen.json,)

    def array(self, key: str) -> list[Any] | None:
        path = (*self.path, key)
        found = self.tree.get(path) if self.tree.has(path) else None
        if found is not None and not isinstance(found, list):
            raise Misfit(f"'{key}' is no array in this resource")
        return found

    @property
    def size(self) -> int:
        return max(len(self.array(key) or ()) for key in self.keys)

    def insert(self, index: int | None, content: Content) -> None:
        """Put an item before an index, None for the end."""
        size = self.size
        for key, item in zip(self.keys, (content.value, content.beside), strict=False):
            if self._filled(key, size, needed=item is not None):
                self.tree.apply(Edit("insert", (*self.path, key, size if index is None else index), item))

    def replace(self, index: int, content: Content) -> None:
        size = self.size
        for key, item in zip(self.keys, (content.value, content.beside), strict=False):
            if self._filled(key, size, needed=item is not None):
                self.tree.apply(Edit("set", (*self.path, key, index), item))
        self._tidy()

    def remove(self, index: int) -> None:
        for key in self.keys:
            if index < len(self.array(key) or ()):
                self.tree.apply(Edit("delete", (*self.path, key, index)))
        self._tidy()

    def move(self, source: int, destination: int) -> None:
        size = self.size
        for key in self.keys:
            if self._filled(key, size, needed=False):
                self.tree.apply(Edit("move", (*self.path, key, source), to=(*self.path, key, destination)))

    def set_beside(self, index: int, beside: dict[str, Any] | None) -> None:
        if self._filled(self.keys[1], self.size, needed=beside is not None):
            self.tree.apply(Edit("set", (*self.path, self.keys[1], index), beside))
        if beside is None:
            self._tidy()

    def _filled(self, key: str, size: int, *, needed: bool) -> bool:
        """Whether there is an array to change, made as long as the list; it is created where it is needed."""
        found = self.array(key)
        if found is None and not needed:
            return False
        if found is None or len(found) < size:
            there = found or []
            self.tree.apply(Edit("set", (*self.path, key), [*there, *[None] * (size - len(there))]))
        return True

    def _tidy(self) -> None:
        """Take away an array that holds nothing any more."""
        for key in self.keys:
            found = self.array(key)
            if found is not None and all(item is None for item in found):
                self.tree.apply(Edit("delete", (*self.path, key)))
