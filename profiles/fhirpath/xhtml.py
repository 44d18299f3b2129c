"""What a Narrative's XHTML may hold: the rule behind htmlChecks().

Sources: https://hl7.org/fhir/R4/narrative.html#xhtml (allowed content), invariants txt-1 and txt-2.
"""

from __future__ import annotations

import re
from html.entities import name2codepoint
from typing import Any

_XHTML = "{http://www.w3.org/1999/xhtml}"
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,12});")

_ELEMENTS = """
    a abbr acronym b bdo big blockquote br caption center cite code col colgroup dd del dfn div dl dt em h1 h2 h3 h4 h5
    h6 hr i img ins kbd li ol p pre q samp small span strong sub sup table tbody td tfoot th thead tr tt ul var
"""
_ATTRIBUTES = """
    abbr accesskey align alt axis border cellhalign cellpadding cellspacing cellvalign char charoff charset cite class
    colspan coords data datetime dir frame headers height href hreflang hspace id ismap lang longdesc name nowrap rel
    rev rowspan rules scope shape span src start style summary tabindex title type usemap valign value vspace width
"""
ELEMENTS = frozenset(_ELEMENTS.split())
ATTRIBUTES = frozenset((*_ATTRIBUTES.split(), "{http://www.w3.org/XML/1998/namespace}lang"))
MAX_LENGTH = 4_000_000


def well_formed_narrative(text: str) -> bool:
    """Whether `text` is one well-formed XHTML div with visible content, allowed elements and no active content."""
    from lxml import etree

    if len(text) > MAX_LENGTH or "<!" in text.replace("<!--", ""):
        return False
    # XML knows five entities; XHTML's others stand for characters. No DTD is ever read.
    plain = _ENTITY.sub(_character, text)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(plain.encode("utf-8"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return False
    if root.tag != _XHTML + "div":
        return False
    visible = any(part.strip() for part in root.itertext()) or root.find(f".//{_XHTML}img") is not None
    return visible and all(_allowed(element) for element in root.iter() if isinstance(element.tag, str))


def _character(match: re.Match[str]) -> str:
    name = match.group(1)
    if name in ("amp", "lt", "gt", "quot", "apos") or name not in name2codepoint:
        return match.group()
    return chr(name2codepoint[name])


def _allowed(element: Any) -> bool:
    tag: str = element.tag
    if not tag.startswith(_XHTML) or tag.removeprefix(_XHTML) not in ELEMENTS:
        return False
    for name, value in element.attrib.items():
        if name not in ATTRIBUTES:
            return False
        if name in ("href", "src") and value.strip().lower().startswith(("javascript:", "vbscript:")):
            return False
    return True
