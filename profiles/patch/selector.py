"""Selectors of XML Patch: the small part of XPath that RFC 5261 uses, read and evaluated without an XPath engine.

Hides the grammar and the namespaces of names. A selector has child steps, the last one possibly an attribute, text,
comment, processing instruction or namespace; predicates are a position or a comparison with a string. Beyond the RFC, a
predicate may compare a path (`f:identifier[f:system/@value='urn:x']`), since FHIR keeps its values in attributes.
Evaluation costs at most one look at each child of the elements on the way, counted against a budget.

Normative: RFC 5261 sections 4.1, 4.2 and 8 (grammar), https://www.w3.org/TR/1999/REC-xpath-19991116/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lxml import etree

from profiles.xml_rules import FHIR, XHTML

# Prefixes that FHIR patches use without declaring them.
_USUAL: Mapping[str | None, str] = {"f": FHIR, "h": XHTML}
_MAX_CONDITIONS = 16
_XML = "http://www.w3.org/XML/1998/namespace"

Kind = Literal["element", "attribute", "text", "comment", "processing-instruction", "namespace"]


class Unselected(Exception):
    """The selector is malformed (`malformed`), or does not select exactly one node."""

    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.malformed = malformed


class Selected(NamedTuple):
    """One node. `element` is it, or the one that holds it: of an attribute or namespace named `name`, of a text that
    stands in it (`name` '') or behind its child `before`."""

    kind: Kind
    element: etree._Element
    name: str = ""
    before: etree._Element | None = None


@dataclass(slots=True)
class Budget:
    """How many nodes the selectors of one patch may still look at."""

    left: int

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise Unselected("the selectors look at too many nodes: send the patch in parts")


class _Step(NamedTuple):
    kind: Kind
    name: str  # in Clark notation; * for any element; the target of a processing instruction or ''
    conditions: tuple[_Condition, ...]


class _Condition(NamedTuple):
    """`position` counts from 1, or is 0 for a comparison of the children, then the attribute, with `text`."""

    position: int
    steps: tuple[_Step, ...] = ()
    attribute: str = ""
    text: str = ""


_NAME = r"(?:[^\W\d][\w.\-]*:)?[^\W\d][\w.\-]*"
_STEP = re.compile(
    rf"""(?:(?P<attribute>@{_NAME})|(?P<text>text\(\))|(?P<comment>comment\(\))|namespace::(?P<namespace>{_NAME})
    |(?P<pi>processing-instruction\(\s*(?:'[^']*'|"[^"]*")?\s*\))|(?P<element>\*|{_NAME}))\s*""",
    re.VERBOSE,
)
_PREDICATE = re.compile(
    rf"""\[\s*(?:(?P<position>[1-9][0-9]{{0,8}})
    |(?P<path>\.|@{_NAME}|{_NAME}(?:/{_NAME})*(?:/@{_NAME})?)\s*=\s*(?P<text>'[^']*'|"[^"]*"))\s*\]\s*""",
    re.VERBOSE,
)


def select(
    selector: str, root: etree._Element, namespaces: Mapping[str | None, str], default: str, budget: Budget
) -> Selected:
    """The one node a selector means in the document of `root`.

    `namespaces` are those in force at the operation; names without prefix are in its default namespace, or else in
    `default`. Raises Unselected.
    """
    steps = _parsed(selector, {None: default, **namespaces})
    here = [root] if _fits(root, steps[0], budget) else []
    here = _conditioned(here, steps[0], budget)
    for step in steps[1:-1]:
        here = [found for element in here for found in _children(element, step, budget)]
    found = [Selected("element", element) for element in here]
    if len(steps) > 1:
        found = [node for element in here for node in _last(element, steps[-1], budget)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise Unselected("the selector matches nothing: check names, prefixes and predicates")
    raise Unselected(f"the selector matches {len(found)} nodes: make it select one, as with [1] or [@id='a']")


# --- reading --------------------------------------------------------------------------------------------------------


def _parsed(selector: str, namespaces: Mapping[str | None, str]) -> list[_Step]:
    text = selector.strip()
    steps: list[_Step] = []
    position = 1 if text.startswith("/") and not text.startswith("//") else 0
    while not steps or position < len(text):
        if steps:
            if text[position] != "/" or steps[-1].kind != "element":
                raise _malformed(text, position)
            position += 1
        found = _STEP.match(text, position)
        if not found:
            raise _malformed(text, position)
        position = found.end()
        conditions = []
        while predicate := _PREDICATE.match(text, position):
            conditions.append(_condition(predicate, namespaces))
            position = predicate.end()
        if len(conditions) > _MAX_CONDITIONS:
            raise Unselected(f"a step has more than {_MAX_CONDITIONS} predicates: choose fewer", malformed=True)
        steps.append(_step(found, tuple(conditions), namespaces))
    if steps[0].kind != "element" or any(step.conditions and step.kind == "attribute" for step in steps):
        raise _malformed(text, 0)
    return steps


def _malformed(text: str, position: int) -> Unselected:
    place = f"'{text[position : position + 30]}'" if position < len(text) else "its end"
    return Unselected(
        f"the selector cannot be read at {place}: use child steps such as f:Patient/f:name[1]/@id", malformed=True
    )


def _step(found: re.Match[str], conditions: tuple[_Condition, ...], namespaces: Mapping[str | None, str]) -> _Step:
    if found["attribute"]:
        return _Step("attribute", clark(found["attribute"][1:], namespaces, attribute=True), conditions)
    if found["namespace"]:
        return _Step("namespace", found["namespace"], conditions)
    if found["pi"]:
        return _Step("processing-instruction", "".join(re.findall(r"['\"]([^'\"]*)['\"]", found["pi"])), conditions)
    if found["element"]:
        name = found["element"]
        return _Step("element", name if name == "*" else clark(name, namespaces), conditions)
    return _Step("text" if found["text"] else "comment", "", conditions)


def _condition(found: re.Match[str], namespaces: Mapping[str | None, str]) -> _Condition:
    if found["position"]:
        return _Condition(int(found["position"]))
    elements, _, attribute = found["path"].partition("@")
    names = [name for name in elements.removesuffix("/").split("/") if name not in ("", ".")]
    return _Condition(
        0,
        tuple(_Step("element", clark(name, namespaces), ()) for name in names),
        clark(attribute, namespaces, attribute=True) if attribute else "",
        found["text"][1:-1],
    )


def clark(name: str, namespaces: Mapping[str | None, str], *, attribute: bool = False) -> str:
    """A qualified name as `{namespace}local`; an attribute without prefix is in no namespace. Raises Unselected."""
    prefix, _, local = name.rpartition(":")
    if not prefix and attribute:
        return local
    if prefix == "xml":
        return f"{{{_XML}}}{local}"
    namespaces = {**_USUAL, **namespaces}
    if prefix and prefix not in namespaces:
        raise Unselected(f"the prefix '{prefix[:40]}' is not declared in the patch: add its xmlns", malformed=True)
    namespace = namespaces.get(prefix or None, "")
    return f"{{{namespace}}}{local}" if namespace else local


# --- evaluating -----------------------------------------------------------------------------------------------------


def _fits(node: etree._Element, step: _Step, budget: Budget) -> bool:
    budget.spend(1)
    tag: Any = node.tag
    if isinstance(tag, str):
        return step.kind == "element" and step.name in ("*", tag)
    if step.kind == "comment":
        return tag is etree.Comment
    target = getattr(node, "target", "") if tag is etree.PI else None
    return step.kind == "processing-instruction" and target is not None and step.name in ("", target)


def _children(element: etree._Element, step: _Step, budget: Budget) -> list[etree._Element]:
    return _conditioned([child for child in element if _fits(child, step, budget)], step, budget)


def _conditioned(nodes: list[etree._Element], step: _Step, budget: Budget) -> list[etree._Element]:
    for condition in step.conditions:
        if condition.position:
            nodes = nodes[condition.position - 1 : condition.position]
        else:
            nodes = [node for node in nodes if _holds(node, condition, budget)]
    return nodes


def _holds(node: etree._Element, condition: _Condition, budget: Budget) -> bool:
    here = [node]
    for step in condition.steps:
        here = [child for element in here for child in element if _fits(child, step, budget)]
    if condition.attribute:
        return any(element.get(condition.attribute) == condition.text for element in here)
    for element in here:
        budget.spend(len(element))
        if "".join(_texts_within(element, budget)) == condition.text:
            return True
    return False


def _texts_within(element: etree._Element, budget: Budget) -> Iterator[str]:
    for text in element.itertext(tag=etree.Element):
        budget.spend(1 + len(text) // 64)
        yield str(text)


def _last(element: etree._Element, step: _Step, budget: Budget) -> list[Selected]:
    if step.kind == "attribute":
        return [Selected("attribute", element, step.name)] if step.name in element.attrib else []
    if step.kind == "namespace":
        return [Selected("namespace", element, step.name)] if step.name in element.nsmap else []
    if step.kind != "text":
        return [Selected(step.kind, child) for child in _children(element, step, budget)]
    budget.spend(len(element))
    texts = [Selected("text", element)] if element.text else []
    texts += [Selected("text", element, before=child) for child in element if child.tail]
    for condition in step.conditions:
        if not condition.position:
            raise Unselected("a predicate of text() must be a position, such as [1]", malformed=True)
        texts = texts[condition.position - 1 : condition.position]
    return texts
