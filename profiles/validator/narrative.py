"""What a narrative may hold: the text parts of XHTML, nothing that acts or loads by itself.

A narrative is shown by people's browsers, so this is a rule of safety before it is one of form. Named HTML entities
(`&nbsp;`) are no XML, yet common: they are understood.

Sources: https://hl7.org/fhir/R4/narrative.html (the list of elements, txt-1 and txt-2), RFC 3986 section 3.1
"""

from __future__ import annotations

import html.entities
import re
from functools import lru_cache

from lxml import etree

XHTML = "{http://www.w3.org/1999/xhtml}"
ELEMENTS = frozenset(
    [
        "a",
        "abbr",
        "acronym",
        "address",
        "area",
        "b",
        "bdo",
        "big",
        "blockquote",
        "br",
        "caption",
        "cite",
        "code",
        "col",
        "colgroup",
        "dd",
        "dfn",
        "div",
        "dl",
        "dt",
        "em",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "i",
        "img",
        "kbd",
        "li",
        "map",
        "ol",
        "p",
        "pre",
        "q",
        "samp",
        "small",
        "span",
        "strong",
        "sub",
        "sup",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "tt",
        "ul",
        "var",
    ]
)
# Attributes that hold an address, and the schemes that may stand there; an address without one stays in the resource.
_ADDRESSES = {
    "href": ("http", "https", "mailto", "tel", "ftp", "urn"),
    "cite": ("http", "https", "urn"),
    "longdesc": ("http", "https"),
    "src": ("http", "https", "data", "cid"),
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
# Browsers leave these out of an address before they read its scheme.
_IGNORED = re.compile(r"[\x00-\x20\x7f-\xa0\u200b\ufeff]")
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|bmp|webp|tiff)[;,]", re.IGNORECASE)
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,31});")
_XML_ENTITIES = ("amp", "lt", "gt", "quot", "apos")
# A picture of the resource's own may stand in a style; nothing else may be loaded by one.
_OWN_PICTURE = re.compile(
    r"url\s*\(\s*['\"]?(data:\s*image/(png|jpeg|gif)[;,][^)]*|(?!//)[\w./-]*)['\"]?\s*\)", re.IGNORECASE
)
_ACTIVE_STYLE = re.compile(r"expression\s*\(|javascript:|behaviou?r\s*:|@import|url\s*\(|\\", re.IGNORECASE)
LONGEST = 8 * 1024 * 1024


def problem(text: str) -> str:
    """What is wrong with the text of a `Narrative.div`, '' for nothing. It begins with a `div` element."""
    if len(text) > LONGEST:
        return f"is longer than {LONGEST // (1024 * 1024)} MiB: move the content into a Binary or DocumentReference"
    if not text.lstrip().startswith("<div"):
        return "does not begin with a div element"
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(_ENTITY.sub(_character, text), parser)
    except (etree.XMLSyntaxError, ValueError) as fault:
        return f"is not well-formed XHTML: {str(fault).splitlines()[0][:200]}"
    shown = False
    for node in root.iter():
        if not isinstance(node.tag, str):
            if node.tag is not etree.Comment:
                return "has a processing instruction or an entity: leave it out"
            continue
        wrong = _of_element(node)
        if wrong:
            return wrong
        shown = shown or node.tag == XHTML + "img"
    if not shown and not "".join(map(str, root.itertext())).strip():
        return "shows nothing (txt-2): write a text, or leave the narrative out"
    return ""


def _character(found: re.Match[str]) -> str:
    known = html.entities.html5.get(found[1] + ";")
    return found[0] if found[1] in _XML_ENTITIES or known is None else known


def _of_element(node: etree._Element) -> str:
    name = str(node.tag)
    bare = name.removeprefix(XHTML)
    if bare == name or bare not in ELEMENTS:
        return f"holds the element `{bare[:60]}`: a narrative has text, lists, tables, links and images only (txt-1)"
    for attribute, value in node.attrib.items():
        wrong = _of_attribute(str(attribute), str(value))
        if wrong:
            return wrong
    return ""


@lru_cache(maxsize=1024)
def _of_attribute(name: str, value: str) -> str:
    if name.lower().startswith("on"):
        return f"holds the attribute `{name[:60]}`, which acts: leave it out (txt-1)"
    if name.startswith("{") and not name.startswith("{http://www.w3.org/XML/1998/namespace}"):
        return f"holds the attribute `{name[:80]}` of another vocabulary: leave it out (txt-1)"
    if name == "style" and _ACTIVE_STYLE.search(_OWN_PICTURE.sub("", value)):
        return "holds a style that loads or acts: leave it out (txt-1)"
    if name in _ADDRESSES:
        scheme = _SCHEME.match(_IGNORED.sub("", value))
        if scheme and scheme[1].lower() not in _ADDRESSES[name]:
            return f"holds a `{scheme[1][:30]}:` address: use {', '.join(_ADDRESSES[name])} or a place in the resource"
        if scheme and scheme[1].lower() == "data" and not _IMAGE.match(_IGNORED.sub("", value)):
            return "holds data that are no image: leave them out"
    elif name in ("background", "action", "formaction", "srcset", "srcdoc", "poster", "data", "codebase", "profile"):
        return f"holds the attribute `{name}`, which loads or acts: leave it out (txt-1)"
    return ""
