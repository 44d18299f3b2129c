"""XML Patch: the operations of RFC 5261 on a resource, or on any XML document.

Hides that resources are kept as JSON: the resource is written as XML, patched, read again, and only what the patch
changed is changed in the JSON, so that all else keeps its lexemes, its order of keys and its spelling. Neither the
patch nor a document may have a DTD; there are no entities and no network; operations, sizes and work are bounded.

Normative: RFC 5261 (operations), RFC 7351 (media type), https://hl7.org/fhir/R4/http.html#patch. Namespace declarations
can be added, not replaced or removed. The root element of a patch may have any name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from lxml import etree

from profiles import xml_text
from profiles.json_edit import Edit, Edited, PathError, Tree, differences
from profiles.patch.errors import MAX_PATH, PatchError, check_count
from profiles.patch.selector import Budget, Selected, Unselected, clark, select
from profiles.xml_rules import FHIR
from profiles.xml_text import XmlError

MAX_BYTES = 16 * 1024 * 1024
_BUDGET = 2_000_000
_BLANK = " \t\r\n"


def apply(resource: dict[str, Any] | str, patch: bytes) -> Edited:
    """Apply an XML Patch to a resource; all of it or nothing.

    The result has the new value, and makes the new text out of the old one. The resource given is not changed; whether
    the new one is valid beyond being FHIR XML is for the caller to judge. Names without prefix, in selectors and in
    content, are in the default namespace of the patch, or else in FHIR's. Raises PatchError; JsonError when the
    resource is given as text that is none.
    """
    tree = Tree(resource)
    original = tree.root
    try:
        root = _parsed(xml_text.to_xml(original), "resource")
    except XmlError as problem:
        raise PatchError(f"the resource has no XML form that could be patched: {problem}") from None
    before = xml_text.from_xml(etree.tostring(root, encoding="utf-8"))
    root = _patched(root, _parsed(patch, "patch", most=MAX_BYTES), FHIR)
    try:
        after = xml_text.from_xml(etree.tostring(root, encoding="utf-8"))
    except XmlError as problem:
        raise PatchError(f"the patched resource is no FHIR XML: {problem.message}", path=problem.path) from None
    try:
        return _changed(tree, differences(before, after))
    except PathError:
        # The JSON is spelled in another way than XML can tell (a `_` array of another length): then it is respelled.
        pass
    try:
        return _changed(Tree(original), differences(original, after))
    except PathError as problem:
        raise PatchError(problem.message) from None


def _changed(tree: Tree, edits: list[Edit]) -> Edited:
    for edit in edits:
        tree.apply(edit)
    return tree.done()


def apply_document(document: bytes, patch: bytes) -> bytes:
    """Apply an XML Patch to any UTF-8 XML document of at most 64 MiB; gives the new one without XML declaration."""
    if not document.strip():
        raise PatchError("there is no document to patch", malformed=True)
    root = _parsed(document, "document", most=xml_text.MAX_BYTES)
    return etree.tostring(_patched(root, _parsed(patch, "patch", most=MAX_BYTES), ""), encoding="utf-8")


def _parsed(data: bytes, name: str, most: int | None = None) -> etree._Element:
    if most is not None and len(data) > most:
        raise PatchError(f"the {name} is longer than {most} bytes: send it in parts", malformed=True)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise PatchError(f"a DOCTYPE is not accepted in the {name}, nor entities: remove it", malformed=True)
    # The encoding is fixed, so that no declaration can hide a DOCTYPE from the look above.
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True, encoding="utf-8", collect_ids=False
    )
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as problem:
        raise PatchError(f"the {name} is no well-formed XML: {str(problem)[:200]}", malformed=True) from None


# --- operations -----------------------------------------------------------------------------------------------------


class _Failed(Exception):
    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.malformed = malformed


def _patched(root: etree._Element, patch: etree._Element, default: str) -> etree._Element:
    """The root of the document after all operations; `default` is the namespace of names without any."""
    operations = [child for child in patch if isinstance(child.tag, str)]
    if not operations:
        raise PatchError("the patch has no operations: add, replace or remove", malformed=True)
    check_count(len(operations))
    if any((text or "").strip(_BLANK) for text in (patch.text, *(child.tail for child in patch))):
        raise PatchError("text stands between the operations: remove it", malformed=True)
    budget = Budget(_BUDGET)
    # Inside another element the root is replaced like any other.
    document = etree.Element("document")
    document.append(root)
    for number, operation in enumerate(operations):
        selector = operation.get("sel", "")
        try:
            _apply_one(document, operation, selector, default, budget)
        except (_Failed, Unselected) as problem:
            raise PatchError(problem.message, number, selector, malformed=problem.malformed) from None
    return next(document.iterchildren(etree.Element))


def _apply_one(
    document: etree._Element, operation: etree._Element, selector: str, default: str, budget: Budget
) -> None:
    name = etree.QName(operation).localname
    run = _OPERATIONS.get(name)
    if run is None:
        raise _Failed(f"'{name[:64]}' is no operation: use add, replace or remove", malformed=True)
    if not selector:
        raise _Failed(f"'{name}' needs the attribute sel, which selects a node", malformed=True)
    if len(selector) > MAX_PATH:
        raise _Failed(f"the selector is longer than {MAX_PATH} characters", malformed=True)
    root = next(document.iterchildren(etree.Element))
    target = select(selector, root, operation.nsmap, default, budget)
    budget.spend(sum(1 for _ in operation.iter()))
    run(target, operation)
    roots = list(document.iterchildren(etree.Element))
    if len(roots) != 1 or (document.text or roots[0].tail or "").strip(_BLANK):
        raise _Failed("a document has one root element and no text beside it: it cannot be removed or doubled")


def _add(target: Selected, operation: etree._Element) -> None:
    kind, position = operation.get("type"), operation.get("pos")
    if kind is not None:
        _add_named(target, operation, kind)
    elif position in ("before", "after"):
        if target.kind not in ("element", "comment", "processing-instruction"):
            raise _Failed(f"nothing can be added {position} {_article(target)}: select an element")
        _put_beside(target.element, operation, behind=position == "after")
    elif position not in (None, "prepend"):
        raise _Failed("pos must be prepend, before or after", malformed=True)
    elif target.kind != "element":
        raise _Failed(f"content can only be added to an element, not to {_article(target)}")
    else:
        _put_inside(target.element, operation, first=position == "prepend")


def _add_named(target: Selected, operation: etree._Element, kind: str) -> None:
    """Add an attribute (`@name`) or a namespace declaration (`namespace::prefix`)."""
    element = target.element
    if target.kind != "element":
        raise _Failed("attributes and namespaces can only be added to an element")
    try:
        if kind.startswith("@"):
            name = clark(kind[1:], operation.nsmap, attribute=True)
            if name in element.attrib or name == "xmlns":
                raise _Failed(f"the attribute '{name[:64]}' is there already: use replace")
            element.set(name, _only_text(operation))
            return
        if kind.startswith("namespace::"):
            prefix = kind.removeprefix("namespace::")
            if not prefix or prefix in element.nsmap:
                raise _Failed(f"the prefix '{prefix[:40]}' is missing, or declared here already")
            _declare(element, prefix, _only_text(operation))
            return
    except ValueError as problem:
        raise _Failed(f"'{kind[:64]}' cannot be added: {problem}", malformed=True) from None
    raise _Failed("type must be @name for an attribute or namespace::prefix for a declaration", malformed=True)


def _declare(element: etree._Element, prefix: str, uri: str) -> None:
    namespaces: Any = {**element.nsmap, prefix: uri}
    made = etree.Element(element.tag, {str(key): str(value) for key, value in element.attrib.items()}, nsmap=namespaces)
    made.text, made.tail = element.text, element.tail
    made.extend(list(element))
    _parent(element).replace(element, made)


def _replace(target: Selected, operation: etree._Element) -> None:
    if target.kind == "attribute":
        target.element.set(target.name, _only_text(operation))
    elif target.kind == "text":
        _set_text(target, _only_text(operation))
    elif target.kind == "namespace":
        raise _Failed("a namespace declaration cannot be replaced: replace the elements that use it")
    else:
        new = list(operation)
        if len(new) != 1 or not _alike(new[0], target.element):
            raise _Failed(f"{_article(target)} must be replaced by exactly one of its kind")
        if (operation.text or "").strip(_BLANK) or (new[0].tail or "").strip(_BLANK):
            raise _Failed(f"{_article(target)} cannot be replaced by text")
        made = copy.deepcopy(new[0])
        made.tail = target.element.tail
        _parent(target.element).replace(target.element, made)


def _remove(target: Selected, operation: etree._Element) -> None:
    space = operation.get("ws")
    if space not in (None, "before", "after", "both"):
        raise _Failed("ws must be before, after or both", malformed=True)
    if target.kind == "attribute":
        del target.element.attrib[target.name]
    elif target.kind == "text":
        _set_text(target, "")
    elif target.kind == "namespace":
        raise _Failed("a namespace declaration cannot be removed: remove the elements that use it")
    else:
        _cut(target.element, space or "")


_OPERATIONS: Mapping[str, Callable[[Selected, etree._Element], None]] = {
    "add": _add,
    "replace": _replace,
    "remove": _remove,
}


def _article(target: Selected) -> str:
    return f"{'an' if target.kind[0] in 'ae' else 'a'} {target.kind}"


def _alike(left: etree._Element, right: etree._Element) -> bool:
    """Both elements, both comments or both processing instructions."""
    return left.tag is right.tag or (isinstance(left.tag, str) and isinstance(right.tag, str))


# --- nodes: lxml keeps text in the element before it ----------------------------------------------------------------


def _only_text(operation: etree._Element) -> str:
    if len(operation):
        raise _Failed("this operation takes text only: remove the elements and comments inside it")
    return operation.text or ""


def _set_text(target: Selected, text: str) -> None:
    if target.before is None:
        target.element.text = text or None
    else:
        target.before.tail = text or None


def _parent(element: etree._Element) -> etree._Element:
    parent = element.getparent()
    if parent is None:
        raise _Failed("this node cannot be changed")
    return parent


def _append_text(parent: etree._Element, index: int, text: str | None) -> None:
    """Add text behind what stands before the child at an index."""
    if not text:
        return
    if index:
        parent[index - 1].tail = (parent[index - 1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text


def _put(parent: etree._Element, index: int, operation: etree._Element) -> int:
    """Put the content of an operation before the child at an index; gives the index behind it."""
    _append_text(parent, index, operation.text)
    for child in operation:
        parent.insert(index, copy.deepcopy(child))
        index += 1
    return index


def _put_inside(element: etree._Element, operation: etree._Element, *, first: bool) -> None:
    if not first:
        _put(element, len(element), operation)
        return
    text, element.text = element.text, None
    _append_text(element, _put(element, 0, operation), text)


def _put_beside(node: etree._Element, operation: etree._Element, *, behind: bool) -> None:
    parent = _parent(node)
    if not behind:
        _put(parent, parent.index(node), operation)
        return
    tail, node.tail = node.tail, None
    _append_text(parent, _put(parent, parent.index(node) + 1, operation), tail)


def _cut(node: etree._Element, space: str) -> None:
    """Take a node out, with the white space before or behind it when asked to."""
    parent = _parent(node)
    index, tail = parent.index(node), node.tail or ""
    before = (parent[index - 1].tail if index else parent.text) or ""
    if space in ("before", "both"):
        if not before or before.strip(_BLANK):
            raise _Failed("there is no white space alone before the node: leave ws out")
        before = ""
    if space in ("after", "both"):
        if not tail or tail.strip(_BLANK):
            raise _Failed("there is no white space alone behind the node: leave ws out")
        tail = ""
    parent.remove(node)
    if index:
        parent[index - 1].tail = before + tail or None
    else:
        parent.text = before + tail or None
