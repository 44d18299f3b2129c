"""What FHIR XML makes of each element, and how single values and narratives are spelled in it.

Hides which JSON properties are XML attributes or hold XHTML, how primitives are read from and written to text, and how
a narrative is fitted into a document and cut loose from it. `xml_text` reads and writes whole resources with it.

Normative: https://hl7.org/fhir/R4/xml.html, https://hl7.org/fhir/R4/datatypes.html#primitive,
https://hl7.org/fhir/R4/narrative.html, https://www.w3.org/TR/xml/#charsets
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import cache
from html.entities import name2codepoint
from typing import Any, Literal, NamedTuple, NoReturn
from xml.parsers import expat

from profiles import definitions, json_text

FHIR = "http://hl7.org/fhir"
XHTML = "http://www.w3.org/1999/xhtml"
# Elements nested in one narrative.
MAX_NARRATIVE_DEPTH = 200

Kind = Literal["primitive", "object", "resource", "xhtml"]
_KINDS: Mapping[str, Kind] = {"xhtml": "xhtml", "Resource": "resource"}


class Unfit(ValueError):
    """A text or value is not what its type wants; the message completes a sentence about it."""


class XmlError(ValueError):
    """The text is no acceptable FHIR XML, or the value cannot be written as XML.

    `line` and `column` count from 1 and are 0 when a value was written; `path` is like `Patient.name[0].family`.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0, path: str = "") -> None:
        where = [f"line {line}, column {column}"] * bool(line) + [f"at {path}"] * bool(path)
        super().__init__(f"{message} ({', '.join(where)})" if where else message)
        self.message = message
        self.line = line
        self.column = column
        self.path = path


class Rule(NamedTuple):
    """One JSON property: its place in XML order, what it holds, how the text of a primitive is read and written."""

    name: str
    order: int
    kind: Kind
    place: str
    many: bool
    attribute: bool
    read: Callable[[str], Any]
    write: Callable[[Any], str]


@cache
def rules(place: str) -> Mapping[str, Rule]:
    """JSON property -> rule, for a type or inner path of `definitions.children`."""
    return {name: _rule(name, child) for name, child in definitions.children(place).items()}


def _rule(name: str, child: definitions.Child) -> Rule:
    element, type_name = child
    kind = _KINDS.get(type_name) or ("primitive" if definitions.is_primitive(type_name) else "object")
    read, write = _CONVERSIONS.get(type_name, (str, _text_written))
    return Rule(name, element.order, kind, child.place, element.many, element.xml_attribute, read, write)


@cache
def elements(place: str) -> Mapping[str, Rule]:
    """Namespace, blank and name of a child element, as Expat spells it -> rule."""
    inside = [rule for rule in rules(place).values() if not rule.attribute]
    return {f"{XHTML if rule.kind == 'xhtml' else FHIR} {rule.name}": rule for rule in inside}


@cache
def attributes(place: str) -> frozenset[str]:
    """The attributes of an element at this place; the `value` of a primitive is not among them."""
    return frozenset(name for name, rule in rules(place).items() if rule.attribute)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that was probably meant, or ''."""
    close = difflib.get_close_matches(name[:64], sorted(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


# --- primitives -----------------------------------------------------------------------------------------------------


def _text_written(value: Any) -> str:
    if type(value) is not str:
        raise Unfit("must be a JSON string")
    return escaped(value)


def _boolean_read(text: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    raise Unfit(f"must be true or false, not '{text[:40]}'")


def _boolean_written(value: Any) -> str:
    if type(value) is not bool:
        raise Unfit("must be true or false")
    return "true" if value else "false"


_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)


def _whole_read(text: str) -> int | json_text.Number:
    if not _WHOLE.fullmatch(text):
        raise Unfit(f"must be a whole number, not '{text[:40]}'")
    # Only XML allows the plus sign.
    return _decimal_read(text.removeprefix("+"))


def _decimal_read(text: str) -> int | json_text.Number:
    try:
        return json_text.number(text)
    except ValueError as problem:
        raise Unfit(f"must be a number: {problem}") from None


def _number_written(value: Any) -> str:
    if isinstance(value, (int, float, Decimal)) and type(value) is not bool:
        return json_text.write(value)
    raise Unfit("must be a JSON number")


_CONVERSIONS: Mapping[str, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
    "boolean": (_boolean_read, _boolean_written),
    "decimal": (_decimal_read, _number_written),
    "integer": (_whole_read, _number_written),
    "positiveInt": (_whole_read, _number_written),
    "unsignedInt": (_whole_read, _number_written),
}

# What an attribute cannot hold as it is: a parser would turn a raw line end or tab into a blank.
_SPECIAL = re.compile('[&<>"\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]')
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def escaped(text: str) -> str:
    """Text as an attribute's value between double quotes; Unfit for characters that XML 1.0 does not have."""
    if text.isprintable() and "&" not in text and "<" not in text and '"' not in text and ">" not in text:
        return text
    return _SPECIAL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    mark = found[0]
    if mark in _NAMED:
        return _NAMED[mark]
    if mark in "\t\n\r" or "\x7f" <= mark <= "\x9f":
        return f"&#{ord(mark)};"
    raise Unfit(f"holds the character U+{ord(mark):04X}, which XML does not allow: remove it")


# --- narratives -----------------------------------------------------------------------------------------------------

_DIV = re.compile(r"<div(?=[\s/>])")
_OWN_NAMESPACE = re.compile(rf"""<div(?:\s[^<>]*?)?\sxmlns\s*=\s*["']{re.escape(XHTML)}["']""")
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,12});")


def narrative_written(value: Any) -> str:
    """A narrative's div as it may stand in FHIR XML: the text given, where it is one well-formed XHTML div.

    HTML's named entities are turned into characters, and a missing namespace is declared. Raises Unfit.
    """
    if type(value) is not str:
        raise Unfit("must be a JSON string")
    text = value.strip(" \t\r\n")
    if not _DIV.match(text):
        raise Unfit("must be one <div> element of XHTML")
    text = _ENTITY.sub(_character, text) if "&" in text else text
    text = text if _OWN_NAMESPACE.match(text) else text.replace("<div", f'<div xmlns="{XHTML}"', 1)
    _check_narrative(text)
    return text


def _character(found: re.Match[str]) -> str:
    known = found[1] not in ("amp", "lt", "gt", "quot", "apos") and name2codepoint.get(found[1])
    return chr(known) if known else found[0]


def _check_narrative(text: str) -> None:
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_NARRATIVE_DEPTH:
            raise Unfit(f"is nested more than {MAX_NARRATIVE_DEPTH} deep: flatten it")
        if depth == 1 and name != f"{XHTML} div":
            raise Unfit(f"must be a div in the namespace {XHTML}")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: Any) -> NoReturn:
        raise Unfit("must not hold a DOCTYPE")

    parser = expat.ParserCreate("utf-8", " ")
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, doctype
    try:
        parser.Parse(text.encode("utf-8"), True)
    except (expat.ExpatError, UnicodeEncodeError) as problem:
        raise Unfit(f"must be well-formed XHTML: {problem}") from None


def narrative_read(source: str, namespaces: Mapping[str, str]) -> str:
    """A narrative's source text, made to stand on its own; `namespaces` are the prefixes in force around it ('' too).

    The text stays as it is unless it uses a prefix from outside; then it is written anew with XHTML as its default.
    """
    prefixes = "|".join(re.escape(prefix) for prefix in namespaces if prefix)
    if _OWN_NAMESPACE.match(source) and not (
        prefixes and re.search(rf"</?(?:{prefixes}):|\s(?:{prefixes}):[^\s=<>]+\s*=", source)
    ):
        return source
    from lxml import etree

    declared = " ".join(f'xmlns{":" * bool(key)}{key}="{escaped(uri)}"' for key, uri in namespaces.items() if uri)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True)
    outer = etree.fromstring(f"<outer {declared}>{source}</outer>".encode(), parser)
    default: Any = {None: XHTML}
    inner = etree.Element(f"{{{XHTML}}}outer", nsmap=default)
    inner.append(outer[0])
    etree.cleanup_namespaces(inner, top_nsmap=default)
    text = etree.tostring(inner, encoding="unicode")
    return text[text.index("<", 1) : text.rindex("</")].replace("<div", f'<div xmlns="{XHTML}"', 1)
