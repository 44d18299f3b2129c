"""What is looked at in XML before Expat sees it, and how it is handed over: nothing hostile reaches the parser whole.

Hides the counting of tags and attributes, and the cutting into pieces. Expat holds the interpreter's lock as long as it
finds no tag to report, keeps every attribute of a tag before it reports that one, and reads a token again that a piece
cuts: so tags are counted, laden ones are found first, and pieces end where a tag begins.

Normative: https://www.w3.org/TR/xml/ (a `<` never stands raw in an attribute value, production 10)
"""

from __future__ import annotations

import re
from itertools import islice
from xml.parsers.expat import XMLParserType

# 64 MiB of real resources hold 2.5 million tags (opening and closing ones) and 1.2 million attributes.
MAX_TAGS = 3_000_000
MAX_ATTRIBUTES = 2_000_000
# Of one tag: a FHIR element has two, the root element of some tools a dozen namespaces.
MAX_TAG_ATTRIBUTES = 100
# What is handed to Expat at once.
_PIECE = 64 * 1024

_ATTRIBUTE = rb"""\s++[^\s<>="'/]++\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+')"""
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)
# Quick to find: a tag and what follows it, up to the next one, with enough equals signs; then to be looked at closely.
_MAYBE_LADEN = re.compile(rb"<(?:[^<=]*+=){%d}" % (MAX_TAG_ATTRIBUTES + 1))
_LADEN = re.compile(rb"<[^\s<>=/]++(?:%b){%d}" % (_ATTRIBUTE, MAX_TAG_ATTRIBUTES + 1))


def refusal(data: bytes, max_bytes: int, max_tags: int) -> tuple[str, int] | None:
    """Why the text is not even read, and the byte where its fault stands; None when it may be."""
    if len(data) > max_bytes:
        return f"the text is longer than {max_bytes} bytes: send it in smaller parts", 0
    if data.count(b"<") > max_tags:
        return f"the text holds more than {max_tags} tags: send it in smaller parts", 0
    # Text may hold equals signs too: only where there are many is it looked at closely.
    if data.count(b"=") > MAX_ATTRIBUTES:
        attributes = sum(1 for _ in islice(_ONE_ATTRIBUTE.finditer(data), MAX_ATTRIBUTES + 1))
        if attributes > MAX_ATTRIBUTES:
            return f"the text holds more than {MAX_ATTRIBUTES} attributes: send it in smaller parts", 0
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as problem:
        return "the text is not UTF-8: encode it as UTF-8", problem.start
    return None


def feed(parser: XMLParserType, data: bytes) -> int:
    """Let the parser read all of it; the byte where a tag with too many attributes begins, before which it stops, or
    -1 when there is none. Raises what the parser and its handlers do."""
    start, size = 0, _PIECE
    while True:
        stop = data.find(b"<", start + size) if len(data) - start > size else -1
        piece = data[start:] if stop < 0 else data[start:stop]
        laden = _laden(piece)
        if laden >= 0:
            parser.Parse(piece[:laden], False)
            return start + laden
        parser.Parse(piece, stop < 0)
        if stop < 0:
            return -1
        # A comment may hold what looks like a tag: as long as Expat waits for the end of one, pieces grow.
        size = _PIECE if parser.CurrentByteIndex >= start else 2 * size
        start = stop


def _laden(piece: bytes) -> int:
    """Where a tag with too many attributes begins; -1 without."""
    at = 0
    while found := _MAYBE_LADEN.search(piece, at):
        if _LADEN.match(piece, found.start()):
            return found.start()
        at = found.end()
    return -1
