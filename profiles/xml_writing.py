"""A resource as FHIR XML; read back by `xml_text`, which is where both are called.

Hides the element order, which properties are attributes, and how a fault finds its path on the way out.

Normative: https://hl7.org/fhir/R4/xml.html, https://www.w3.org/TR/xml/
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, NoReturn

from profiles import definitions, json_text, xml_rules
from profiles.xml_rules import FHIR, Rule, Unfit, XmlError, nearest


def to_xml(resource: Mapping[str, Any], *, pretty: bool = False) -> bytes:
    """The resource as UTF-8 XML with its declaration; `pretty` puts each element on its own line.

    Raises XmlError, with the path, for what FHIR XML cannot hold: unknown properties, values of the wrong JSON type,
    characters XML has no place for, a narrative that is no well-formed div.
    """
    out = ['<?xml version="1.0" encoding="UTF-8"?>']
    try:
        _write_resource(resource, out, "\n" if pretty else "", 1)
    except _Misplaced as problem:
        path = "".join(reversed(problem.steps)).removeprefix(".")
        raise XmlError(problem.message, path=path if len(path) <= 200 else path[:200] + "...") from None
    return "".join(out).encode("utf-8")


class _Misplaced(Exception):
    """What cannot be written; collects its place on the way out."""

    def __init__(self, message: str, *steps: str) -> None:
        super().__init__(message)
        self.message = message
        self.steps = list(steps)


def _write_resource(resource: Any, out: list[str], pad: str, depth: int) -> None:
    name = resource.get("resourceType") if isinstance(resource, dict) else None
    if type(name) is not str or name not in definitions.resource_types():
        raise _Misplaced("this is no R4 resource: a JSON object with a resourceType is expected")
    body = {key: value for key, value in resource.items() if key != "resourceType"}
    try:
        _write_object(body, name, f'{name} xmlns="{FHIR}"' if depth == 1 else name, out, pad, depth)
    except _Misplaced as problem:
        problem.steps.append(name if depth == 1 else "")
        raise


def _write_object(node: Any, place: str, tag: str, out: list[str], pad: str, depth: int) -> None:
    """Write an object as an element; `tag` is its name, with the namespace when it needs one."""
    if depth > json_text.MAX_DEPTH:
        raise _Misplaced(f"this is nested more than {json_text.MAX_DEPTH} deep: flatten it")
    if type(node) is not dict:
        raise _Misplaced("an object is expected here")
    opening, step, here = f"{pad}<{tag}", pad and pad + "  ", len(out)
    out.append("")
    for rule in _in_order(node, place):
        name = rule.name
        try:
            if rule.attribute:
                opening += f' {name}="{_attribute(rule, node)}"'
            elif rule.kind == "primitive" and not rule.many and f"_{name}" not in node and node[name] is not None:
                out.append(f'{step}<{name} value="{rule.write(node[name])}"/>')
            else:
                _write_property(rule, node, out, step, depth)
        except Unfit as problem:
            raise _Misplaced(f"the value {problem}", f".{name}") from None
        except _Misplaced as problem:
            problem.steps.append(f".{name}")
            raise
    inside = len(out) > here + 1
    out[here] = opening + (">" if inside else "/>")
    if inside:
        out.append(f"{pad}</{tag.partition(' ')[0]}>")


_by_order = itemgetter(1, 0)


def _in_order(node: dict[str, Any], place: str) -> list[Rule]:
    """The rules of the properties there are, in the order of XML."""
    known = xml_rules.rules(place)
    try:
        found = [known[name] for name in node]
    except KeyError:
        names = {name if name in known else name.removeprefix("_") for name in node}
        if not names <= known.keys():
            _fail_unknown_property(names - known.keys(), place)
        found = [known[name] for name in names]
    found.sort(key=_by_order)
    return found


def _fail_unknown_property(names: set[str], place: str) -> NoReturn:
    name = min(names)
    raise _Misplaced(f"{place} has no element '{name[:64]}'{nearest(name, xml_rules.rules(place))}: remove it")


def _attribute(rule: Rule, node: dict[str, Any]) -> str:
    if f"_{rule.name}" in node:
        raise _Misplaced("this is an attribute in XML, which has neither id nor extension: remove them")
    return rule.write(node[rule.name])


def _write_property(rule: Rule, node: dict[str, Any], out: list[str], pad: str, depth: int) -> None:
    name = rule.name
    value, beside = node.get(name), node.get(f"_{name}")
    if beside is not None and rule.kind != "primitive":
        raise _Misplaced("only primitive elements take an underscore: put id and extension inside the element")
    if not rule.many:
        _write_element(rule, value, beside, out, pad, depth + 1)
        return
    values, extras = value if value is not None else [], beside if beside is not None else []
    if not isinstance(values, list) or not isinstance(extras, list) or not (values or extras):
        raise _Misplaced("a JSON array with at least one item is expected here")
    for index in range(max(len(values), len(extras))):
        item = values[index] if index < len(values) else None
        extra = extras[index] if index < len(extras) else None
        try:
            _write_element(rule, item, extra, out, pad, depth + 2)
        except Unfit as problem:
            raise _Misplaced(f"the value {problem}", f"[{index}]") from None
        except _Misplaced as problem:
            problem.steps.append(f"[{index}]")
            raise


def _write_element(rule: Rule, value: Any, beside: Any, out: list[str], pad: str, depth: int) -> None:
    kind, name = rule.kind, rule.name
    if value == {} or beside == {}:
        raise _Misplaced("this object is empty: leave it out")
    if kind == "primitive":
        if value is None and beside is None:
            raise _Misplaced("neither a value nor extensions stand here: give them, or leave the element out")
        tag = name if value is None else f'{name} value="{rule.write(value)}"'
        if beside is None:
            out.append(f"{pad}<{tag}/>")
        else:
            _write_object(beside, rule.place, tag, out, pad, depth)
    elif kind == "xhtml":
        out.append(pad + xml_rules.narrative_written(value))
    elif kind == "resource":
        out.append(f"{pad}<{name}>")
        _write_resource(value, out, pad and pad + "  ", depth)
        out.append(f"{pad}</{name}>")
    else:
        _write_object(value, rule.place, name, out, pad, depth)
