"""FHIR elements as FHIRPath sees them: typed nodes over plain JSON values.

Hides how JSON spells things (`valueQuantity`, `_birthDate`, arrays with holes) behind one question, `child_nodes`, and
how FHIR primitives become System values.

Sources: https://hl7.org/fhir/R4/fhirpath.html (types, choices, polymorphism), https://hl7.org/fhir/R4/json.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, NamedTuple

from profiles import definitions
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.values import Kind, Quantity, Temporal, temporal

UCUM = "http://unitsofmeasure.org"
SYSTEM_TYPES = ("Boolean", "String", "Integer", "Decimal", "Date", "DateTime", "Time", "Quantity")
# A FHIR Quantity of time means the calendar duration: https://hl7.org/fhir/R4/fhirpath.html, "Use of FHIR Quantity".
_CALENDAR_CODES = {"a": "year", "mo": "month", "d": "day", "h": "hour", "min": "minute", "s": "second"}
_TEMPORALS: dict[str, Kind] = {"date": "Date", "dateTime": "DateTime", "instant": "DateTime", "time": "Time"}


class Property(NamedTuple):
    """One JSON spelling of an element name at a place (see profiles/definitions): `value` has many, `name` has one."""

    json: str
    type: str
    place: str
    primitive: bool
    many: bool


class TypeInfo(NamedTuple):
    """What type() answers: `namespace` is System or FHIR."""

    namespace: str
    name: str


class Node:
    """One FHIR element: its JSON `value` (None when only `extra` is there), its type, and where it was found.

    `place` says what its children are; `extra` is the `_` sibling of a primitive; `parent`, `key` (JSON property) and
    `index` (-1: not in an array) lead back to the root.
    """

    __slots__ = ("extra", "index", "key", "parent", "place", "type", "value")

    def __init__(
        self,
        value: Any,
        type_name: str,
        place: str,
        parent: Node | None = None,
        key: str = "",
        index: int = -1,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.value = value
        self.type = type_name
        self.place = place
        self.parent = parent
        self.key = key
        self.index = index
        self.extra = extra

    def __repr__(self) -> str:
        return f"Node({self.type} at {location(self)})"


Item = Node | bool | int | Decimal | str | Temporal | Quantity | TypeInfo
Collection = list[Any]


@cache
def properties(place: str) -> Mapping[str, tuple[Property, ...]]:
    """Element name -> its JSON spellings at `place`, in the order of the definitions."""
    found: dict[str, list[Property]] = {}
    for json, child in definitions.children(place).items():
        primitive = definitions.is_primitive(child.type)
        found.setdefault(child.element.name, []).append(
            Property(json, child.type, child.place, primitive, child.element.many)
        )
    return {name: tuple(options) for name, options in found.items()}


@cache
def _by_json(place: str) -> Mapping[str, Property]:
    return {option.json: option for options in properties(place).values() for option in options}


def known_type(name: str) -> bool:
    """Whether FHIR R4 has a type (resource, data type, primitive, abstract) of this name."""
    try:
        definitions.base_of(name)
    except KeyError:
        return False
    return True


@lru_cache(maxsize=4096)
def is_a(name: str, ancestor: str) -> bool:
    """Whether FHIR type `name` is `ancestor` or derives from it."""
    return definitions.is_a(name, ancestor)


def root_node(value: Mapping[str, Any], type_name: str = "") -> Node:
    """The node of a resource (or of a data type when `type_name` says which). FhirPathError for an unknown type."""
    name = type_name or value.get("resourceType")
    if not isinstance(name, str) or not known_type(name):
        raise FhirPathError(f"{name!r} is no type of FHIR R4; a resource names its type in resourceType")
    return Node(value, name, name)


def child_nodes(node: Node, name: str) -> list[Node]:
    """The children called `name`; none when the type has no such element."""
    value = node.value
    if type(value) is not dict:
        return _beside(node, name)
    found: list[Node] = []
    for option in properties(node.place).get(name, ()):
        raw = value.get(option.json)
        sibling = value.get("_" + option.json) if option.primitive else None
        if raw is not None or sibling is not None:
            _add(found, node, option, raw, sibling)
    return found


def all_children(node: Node) -> list[Node]:
    """Every child, in the order of the JSON text."""
    value = node.value
    found: list[Node] = []
    if type(value) is not dict:
        return _beside(node, "id") + _beside(node, "extension")
    table = _by_json(node.place)
    for key, raw in value.items():
        option = table.get(key)
        if option is not None:
            _add(found, node, option, raw, value.get("_" + key) if option.primitive else None)
        elif key[:1] == "_" and key[1:] not in value and key[1:] in table:
            _add(found, node, table[key[1:]], None, raw)
    return found


def _beside(node: Node, name: str) -> list[Node]:
    """The `id` and `extension` of a primitive, which JSON keeps in the `_` sibling."""
    extra = node.extra
    found: list[Node] = []
    if type(extra) is dict and name in ("id", "extension") and extra.get(name) is not None:
        option = _by_json("Element")[name]
        _add(found, node, option, extra[name], None)
    return found


def _add(found: list[Node], parent: Node, option: Property, raw: Any, sibling: Any) -> None:
    json, name, place = option.json, option.type, option.place
    if type(raw) is list or type(sibling) is list:
        values = raw if type(raw) is list else []
        extras = sibling if type(sibling) is list else []
        for index in range(max(len(values), len(extras))):
            value = values[index] if index < len(values) else None
            extra = extras[index] if index < len(extras) else None
            if value is not None or extra is not None:
                found.append(_node(value, name, place, parent, json, index, extra))
    else:
        found.append(_node(raw, name, place, parent, json, -1, sibling))


def _node(value: Any, name: str, place: str, parent: Node, json: str, index: int, extra: Any) -> Node:
    if place == "Resource" and type(value) is dict:
        own = value.get("resourceType")
        if isinstance(own, str) and known_type(own):
            name = place = own
    return Node(value, name, place, parent, json, index, extra if type(extra) is dict else None)


def resource_of(node: Node) -> Node:
    """The innermost resource that holds `node` (itself when it is one): %resource."""
    while node.parent is not None and not (type(node.value) is dict and "resourceType" in node.value):
        node = node.parent
    return node


def root_of(node: Node) -> Node:
    """The resource that holds `node`, the container when that one is contained: %rootResource."""
    inner = resource_of(node)
    if inner.key == "contained" and inner.parent is not None:
        return resource_of(inner.parent)
    return inner


def location(node: Node) -> str:
    """Where the node stands, in JSON spelling: `Patient.name[0].given[1]`."""
    steps: list[str] = []
    walk: Node | None = node
    while walk is not None:
        if walk.parent is None:
            steps.append(walk.type)
        else:
            steps.append(walk.key if walk.index < 0 else f"{walk.key}[{walk.index}]")
        walk = walk.parent
    return ".".join(reversed(steps))


# --- types and System values -----------------------------------------------------------------------------------------


def type_of(item: Item) -> TypeInfo:
    """The type of an item: FHIR for nodes, System for the rest."""
    if isinstance(item, Node):
        return TypeInfo("FHIR", item.type)
    if isinstance(item, bool):
        return TypeInfo("System", "Boolean")
    if isinstance(item, int):
        return TypeInfo("System", "Integer")
    if isinstance(item, Decimal):
        return TypeInfo("System", "Decimal")
    if isinstance(item, str):
        return TypeInfo("System", "String")
    if isinstance(item, Temporal):
        return TypeInfo("System", item.kind)
    return TypeInfo("System", "Quantity" if isinstance(item, Quantity) else "Any")


def resolve_type(name: str) -> TypeInfo:
    """The type an expression names: `Patient`, `FHIR.Patient`, `System.String`, `Boolean`.

    An unqualified name is sought in FHIR, then in System; namespace '' means both have it (`Quantity`). Raises
    FhirPathError (semantic) for a name that neither R4 nor FHIRPath knows. Of a FHIR type taken for a System one
    (`System.Patient`, as the suite of R4 writes) there is no item.
    """
    namespace, _, short = name.rpartition(".")
    if namespace == "System" and (short in (*SYSTEM_TYPES, "Any") or known_type(short)):
        return TypeInfo("System", short)
    if namespace in ("", "FHIR") and known_type(short):
        return TypeInfo("" if not namespace and short in SYSTEM_TYPES else "FHIR", short)
    if not namespace and short in (*SYSTEM_TYPES, "Any"):
        return TypeInfo("System", short)
    raise FhirPathError(f"{name} is no type of FHIR R4 or FHIRPath", kind="semantic")


def matches(item: Item, wanted: TypeInfo) -> bool:
    """Whether `item` is of the type or of one derived from it."""
    if isinstance(item, Node):
        return wanted.namespace != "System" and is_a(item.type, wanted.name)
    return wanted.namespace != "FHIR" and wanted.name in (type_of(item).name, "Any")


def system(item: Item) -> Any:
    """The System value of an item (bool, int, Decimal, str, Temporal, Quantity); the item itself when it has none.

    A date that breaks the format stays a string. A Quantity counts when its unit is UCUM (or it has none).
    """
    if type(item) is not Node:
        return item
    value = item.value
    if type(value) is dict:
        return _quantity(item) if is_a(item.type, "Quantity") else item
    name = item.type
    if name in _TEMPORALS and type(value) is str:
        kind = _TEMPORALS[name]
        moment = temporal(value, kind)
        return value if moment is None else moment
    if name == "decimal" and isinstance(value, (int, Decimal)) and type(value) is not bool:
        return Decimal(value)
    return item if value is None or type(value) is list else value


def _quantity(node: Node) -> Any:
    body = node.value
    number = body.get("value")
    if isinstance(number, bool) or not isinstance(number, (int, Decimal)) or body.get("comparator"):
        return node
    code, unit = body.get("code"), body.get("unit")
    if body.get("system") == UCUM and isinstance(code, str):
        return Quantity(Decimal(number), _CALENDAR_CODES.get(code, code))
    return node if code or unit or body.get("system") else Quantity(Decimal(number), "1")
