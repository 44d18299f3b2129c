"""Static check of an expression against the R4 model: misspelt elements, impossible types, unordered collections.

What FHIRPath calls type safety and strict evaluation: evaluation itself treats an unknown element as absent, so a
misspelling is best found here, before the expression is stored or run. Where the type cannot be known (resolve(),
contained resources) nothing is claimed.

Source: http://hl7.org/fhirpath/N1/ section 11 (type safety and strict evaluation), https://hl7.org/fhir/R4/fhirpath.html
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

from profiles import definitions
from profiles.fhirpath.engine import compile
from profiles.fhirpath.errors import FhirPathError, placed
from profiles.fhirpath.model import SYSTEM_TYPES, TypeInfo, is_a, known_type, properties, resolve_type, type_of
from profiles.fhirpath.syntax import (
    Binary,
    Call,
    Constants,
    Either,
    Expr,
    External,
    Item,
    Member,
    Sign,
    Special,
    TypeTest,
    type_name,
)


class Shape(NamedTuple):
    """A possible type of an item: a FHIR type with its place, or a System type with place ''."""

    type: str
    place: str


class Known(NamedTuple):
    """What is known of a collection: its possible shapes (None: anything) and whether its order is defined."""

    shapes: frozenset[Shape] | None
    ordered: bool = True


_ANYTHING = Known(None)
_STRINGS = frozenset(("String", "string", "code", "id", "uri", "url", "canonical", "oid", "uuid", "markdown", "xhtml"))
_TEMPORALS = frozenset(("Date", "DateTime", "Time", "date", "dateTime", "instant", "time"))
_NUMBERS = frozenset(("Integer", "Decimal", "integer", "positiveInt", "unsignedInt", "decimal"))
_BOOLEANS = frozenset(("Boolean", "boolean"))

# Function -> the type of its result, where that is always the same.
_RESULTS: dict[str, str] = {
    **dict.fromkeys(("empty", "exists", "all", "not", "allTrue", "anyTrue", "allFalse", "anyFalse"), "Boolean"),
    **dict.fromkeys(("subsetOf", "supersetOf", "isDistinct", "is", "comparable", "htmlChecks"), "Boolean"),
    **dict.fromkeys(("startsWith", "endsWith", "contains", "matches", "matchesFull"), "Boolean"),
    **dict.fromkeys(("hasValue", "hasExtension", "memberOf", "subsumes", "subsumedBy", "conformsTo"), "Boolean"),
    **dict.fromkeys(("count", "indexOf", "lastIndexOf", "length", "toInteger", "precision"), "Integer"),
    **dict.fromkeys(("substring", "upper", "lower", "replace", "replaceMatches", "toString", "toChars"), "String"),
    **dict.fromkeys(("encode", "decode", "escape", "unescape", "trim", "split", "join"), "String"),
}
_TEXT_INPUT = frozenset(name for name, kind in _RESULTS.items() if kind == "String" and name != "toString") | {
    *("indexOf", "lastIndexOf", "startsWith", "endsWith", "contains", "matches", "matchesFull", "length")
}
_NEEDS_ORDER = frozenset(("first", "last", "tail", "skip", "take"))
_SAME = _NEEDS_ORDER | {"where", "distinct", "single", "intersect", "exclude", "trace", "checkModifiers", "sort"}
_LOOPS = frozenset(("where", "select", "all", "exists", "repeat", "aggregate", "sort", "trace", "iif"))


def check(expression: str, place: str, *, ordered: bool = False) -> None:
    """Raises FhirPathError (kind `semantic`, with line and column) when `expression` cannot make sense at `place`.

    `place` is a type (`Patient`) or an inner path (`Patient.contact`). With `ordered`, taking the first or the n-th
    item of a collection without a defined order (children(), descendants()) is an error too.
    """
    kind = place if "." not in place else "BackboneElement"
    outer = place.partition(".")[0]
    resource = _fixed(outer, outer) if outer in definitions.resource_types() else _ANYTHING
    checker = _Checker(expression, _fixed(kind, place), resource, ordered)
    checker.known(compile(expression).tree, checker.root)


class _Checker:
    def __init__(self, source: str, root: Known, resource: Known, ordered: bool) -> None:
        self.source = source
        self.root = root
        self.resource = resource
        self.ordered = ordered

    def error(self, at: int, message: str) -> FhirPathError:
        return placed(FhirPathError(message, kind="semantic"), self.source, at)

    def known(self, node: Expr, focus: Known) -> Known:
        """What the expression gives on a focus."""
        if isinstance(node, Constants):
            return _system(*(type_of(value).name for value in node.values))  # type: ignore[arg-type]  # constants have types
        if isinstance(node, External):
            return self.root if node.name == "context" else self.resource if node.name == "resource" else _ANYTHING
        if isinstance(node, Special):
            return focus if node.name == "$this" else _system("Integer") if node.name == "$index" else _ANYTHING
        if isinstance(node, Member):
            return self.member(node, focus)
        if isinstance(node, Call):
            return self.call(node, focus)
        if isinstance(node, Item):
            self.known(node.index, focus)
            return self.in_order(node.at, "[]", self.known(node.left, focus))
        if isinstance(node, Sign):
            return self.known(node.operand, focus)
        if isinstance(node, Either):
            return _either([self.known(part, focus) for part in node.parts])
        if isinstance(node, TypeTest):
            left = self.known(node.left, focus)
            return _system("Boolean") if node.op == "is" else self.narrowed(left, node.name, node.at)
        return self.binary(node, focus)

    def member(self, node: Member, focus: Known) -> Known:
        before = focus if node.left is None else self.known(node.left, focus)
        if before.shapes is None:
            return _ANYTHING
        if node.left is None and node.name[:1].isupper() and known_type(node.name):
            if any(_may_be(shape, node.name) for shape in before.shapes):
                return before
            raise self.error(node.at, f"{node.name} is not the type of the focus, which is {_names(before)}")
        found: set[Shape] = set()
        for shape in before.shapes:
            if shape.place in ("Resource", "DomainResource"):
                return _ANYTHING
            if shape.place:
                found.update(Shape(way.type, way.place) for way in properties(shape.place).get(node.name, ()))
            elif shape.type == "Any":
                return _ANYTHING
        if not found:
            raise self.error(node.at, self.unknown_element(node.name, before))
        return Known(frozenset(found), before.ordered)

    def unknown_element(self, name: str, before: Known) -> str:
        places = [shape.place for shape in before.shapes or () if shape.place]
        for place in places:
            spelled = definitions.children(place).get(name)
            if spelled is not None:
                return f"{name} is spelled {spelled.element.name} in FHIRPath; its type follows with ofType()"
        names = [known for place in places for known in properties(place)]
        close = get_close_matches(name, names, n=1)
        return f"{_names(before)} has no element {name}" + (f"; did you mean {close[0]}?" if close else "")

    def narrowed(self, before: Known, name: str, at: int) -> Known:
        try:
            wanted = resolve_type(name)
        except FhirPathError as error:
            raise placed(error, self.source, at) from None
        if before.shapes is None or wanted.namespace == "System":
            return Known(frozenset((_shape(wanted),)), before.ordered)
        kept = {shape for shape in before.shapes if shape.place and is_a(shape.type, wanted.name)}
        wider = any(shape.place and is_a(wanted.name, shape.type) for shape in before.shapes)
        if wider and wanted.name not in ("BackboneElement", "Element"):
            kept.add(Shape(wanted.name, wanted.name))
        return Known(frozenset(kept), before.ordered)

    def call(self, node: Call, focus: Known) -> Known:
        before = focus if node.left is None else self.known(node.left, focus)
        name = node.name
        if name in ("as", "ofType", "is"):
            narrowed = self.narrowed(before, type_name(node.args[0]), node.at)
            return _system("Boolean") if name == "is" else narrowed
        if name in _NEEDS_ORDER:
            self.in_order(node.at, f"{name}()", before)
        if name in _TEXT_INPUT and before.shapes and not any(shape.type in _STRINGS for shape in before.shapes):
            raise self.error(node.at, f"{name}() takes a string, not {_names(before)}")
        if name == "repeat":
            return self.repeated(node, before)
        inner = before if name in _LOOPS else focus
        results = [self.known(arg, inner) for arg in node.args]
        if name == "iif":
            return self.choice(node, results)
        if name == "extension":
            return Known(frozenset((Shape("Extension", "Extension"),)))
        if name in ("union", "combine"):
            return _either([before, *results])
        if name == "select":
            return Known(results[0].shapes, before.ordered)
        return self.plain_result(name, before)

    def plain_result(self, name: str, before: Known) -> Known:
        if name in _SAME:
            return before
        if name in ("children", "descendants"):
            return Known(None, ordered=False)
        kind = _RESULTS.get(name)
        return _ANYTHING if kind is None else _system(kind)

    def choice(self, node: Call, results: list[Known]) -> Known:
        criterion = results[0].shapes
        if criterion is not None and criterion and not any(shape.type in _BOOLEANS for shape in criterion):
            raise self.error(node.at, f"the criterion of iif() is a Boolean, not {_names(results[0])}")
        return _either(results[1:])

    def repeated(self, node: Call, before: Known) -> Known:
        found = before
        while True:
            result = self.known(node.args[0], found)
            if result.shapes is None or found.shapes is None:
                return _ANYTHING
            # Elements that only some levels have are legal: what a level lacks ends the walk there.
            wider = frozenset(shape for shape in result.shapes if shape not in found.shapes)
            if not wider:
                return Known(result.shapes)
            found = Known(found.shapes | wider)

    def binary(self, node: Binary, focus: Known) -> Known:
        left, right = self.known(node.left, focus), self.known(node.right, focus)
        if node.op not in ("+", "-", "*", "/", "div", "mod", "&"):
            return _system("Boolean")
        if node.op in "+-" and _all(left, _TEMPORALS) and _all(right, _NUMBERS | _STRINGS | _BOOLEANS):
            raise self.error(node.at, f"{node.op} adds a duration such as 7 days to a date, not {_names(right)}")
        if node.op == "&":
            return _system("String")
        return left if left.shapes == right.shapes and node.op != "/" else _ANYTHING

    def in_order(self, at: int, what: str, before: Known) -> Known:
        if self.ordered and not before.ordered:
            raise self.error(at, f"{what} needs an order, and children() and descendants() have none")
        return before


def _fixed(kind: str, place: str) -> Known:
    return Known(frozenset((Shape(kind, place),)))


def _system(*names: str) -> Known:
    return Known(frozenset(Shape(name, "") for name in names))


def _shape(wanted: TypeInfo) -> Shape:
    return Shape(wanted.name, "" if wanted.namespace == "System" or wanted.name in SYSTEM_TYPES[:1] else wanted.name)


def _either(parts: list[Known]) -> Known:
    if any(part.shapes is None for part in parts):
        return _ANYTHING
    return Known(frozenset(shape for part in parts for shape in part.shapes or ()), all(part.ordered for part in parts))


def _may_be(shape: Shape, name: str) -> bool:
    return bool(shape.place) and known_type(shape.type) and (is_a(shape.type, name) or is_a(name, shape.type))


def _all(known: Known, types: frozenset[str]) -> bool:
    return bool(known.shapes) and all(shape.type in types for shape in known.shapes or ())


def _names(known: Known) -> str:
    names = sorted({shape.place or shape.type for shape in known.shapes or ()})
    return " or ".join(names[:4]) + (" or ..." if len(names) > 4 else "") if names else "nothing"
