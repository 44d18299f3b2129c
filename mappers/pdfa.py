"""A4 pages of PDF/A-1b: fonts, line breaking, pages and metadata, with nothing of what is written on them.

Hidden here: fpdf2, the embedded font and what it cannot print (a visible placeholder, counted), the XMP form every
validator accepts, and the bounds that keep a hostile text from making endless pages. The same calls always give the
same bytes.

Sources: ISO 19005-1 (PDF/A-1, level B), ISO 16684-1 (XMP). Font: Source Sans Pro, SIL OFL 1.1
(assets/SourceSansPro-LICENSE.txt); colour profile: sRGB2014 of the ICC, shipped by fpdf2.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from lxml import etree

from mappers.mapped import Loss

ASSETS = Path(__file__).resolve().parent / "assets"
PLACEHOLDER = "\N{BALLOT BOX}"
"""Stands for each character the font has no glyph for."""

Colour = tuple[int, int, int]
INK: Colour = (28, 36, 48)
BOTTOM = 274.0
"""Where a page is full, in mm from the top."""

_MM_PER_PT = 25.4 / 72
_LEADING = 1.32
_CHARACTERS = 400_000
_FACT_LINES = 3

# Look-alikes the font does print, and characters that are invisible by design.
_SUBSTITUTES = str.maketrans(
    {"\u2010": "-", "\u2011": "-", "\u2007": "\u00a0", "\u3000": " ", "\t": "    "}
    | {chr(space): " " for space in (*range(0x2000, 0x2007), 0x2008, 0x2009, 0x200A)}
    | {"\u00ad": "", "\u2060": "", "\ufeff": "", "\u2028": "\n", "\u2029": "\n\n"}
)


@dataclass(slots=True)
class Sheet:
    """A document being drawn: `y` is the pen, in mm from the top; `total` the number of pages, 0 while it is unknown.

    `head` draws what every page carries and leaves `y` under it. `missing` counts characters that could not be
    printed, `cuts` names the texts that are not printed to their end.
    """

    pdf: Any
    total: int
    head: Callable[[Sheet], None]
    widths: dict[bool, Any]
    glyphs: frozenset[int]
    y: float = 0.0
    known: dict[str, str] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    cuts: dict[Loss, None] = field(default_factory=dict)

    @property
    def page(self) -> int:
        """The number of the page being drawn, from 1."""
        return int(self.pdf.page)


def open_sheet(
    head: Callable[[Sheet], None], total: int, *, title: str, author: str, document_id: str, at: datetime
) -> Sheet:
    """A document with its first page. `document_id` is a UUID; `at` dates the file, whenever it is made."""
    document = _document()
    document.set_auto_page_break(False)
    document.set_creation_date(at)
    document.set_lang("fr-FR")
    sheet = Sheet(document, total, head, *_measures())
    document.set_xmp_metadata(_xmp(one_line(sheet, title), one_line(sheet, author), document_id, at))
    new_page(sheet)
    return sheet


def _document() -> Any:
    from fpdf import FPDF  # a fifth of what a server would load before it is ready, and most processes draw no page

    document: Any = FPDF(unit="mm", format="A4", enforce_compliance="PDF/A-1B")
    document.add_font("text", "", ASSETS / "SourceSansPro-Regular.ttf")
    document.add_font("text", "B", ASSETS / "SourceSansPro-Semibold.ttf")
    return document


@lru_cache(maxsize=1)
def _measures() -> tuple[dict[bool, Any], frozenset[int]]:
    """How wide each character is, plain and strong, and which there are in both: all that laying out asks a font."""
    fonts = _document().fonts
    both = {False: fonts["text"], True: fonts["textB"]}
    widths = {strong: dict(font.cw) for strong, font in both.items()}
    glyphs = frozenset(both[False].cmap) & frozenset(both[True].cmap)
    for font in both.values():
        font.ttfont.close()
    return widths, glyphs


class _NoPen:
    """Stands where fpdf2 would: it turns pages and draws nothing."""

    def __init__(self) -> None:
        self.page = 0
        self.fonts: dict[str, Any] = {}

    def add_page(self) -> None:
        self.page += 1

    def _drawn(self, *_: object, **__: object) -> None:
        """What is drawn leaves nothing."""

    set_font = set_text_color = set_fill_color = text = rect = _drawn


def blank_sheet(head: Callable[[Sheet], None]) -> Sheet:
    """A document that is laid out and never drawn: it tells how many pages it takes."""
    sheet = Sheet(_NoPen(), 0, head, *_measures())
    new_page(sheet)
    return sheet


def finish(sheet: Sheet) -> bytes:
    """The bytes of the document; the sheet is spent."""
    try:
        return bytes(sheet.pdf.output())
    finally:
        close(sheet)


def close(sheet: Sheet) -> None:
    """Give up a sheet without making its bytes: fpdf2 keeps the font files open as long as it may read them."""
    for font in sheet.pdf.fonts.values():
        font.ttfont.close()


def new_page(sheet: Sheet) -> None:
    """Turn the page and draw its head."""
    sheet.pdf.add_page()
    sheet.head(sheet)


_XMP = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "pdf": "http://ns.adobe.com/pdf/1.3/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "pdfaid": "http://www.aiim.org/pdfa/ns/id/",
}


def _xmp(title: str, author: str, document_id: str, at: datetime) -> str:
    """XMP with one Description per schema, the form every validator reads."""
    instant = at.isoformat(timespec="seconds")
    root = etree.Element(f"{{{_XMP['x']}}}xmpmeta", nsmap={"x": _XMP["x"]})
    rdf = _under(root, "rdf:RDF", "rdf")
    for facts in (
        {"pdfaid:part": "1", "pdfaid:conformance": "B"},
        {"dc:title/rdf:Alt/rdf:li": title, "dc:creator/rdf:Seq/rdf:li": author},
        {"xmp:CreateDate": instant, "xmp:ModifyDate": instant, "xmp:CreatorTool": "Passerelle"},
        {"pdf:Producer": "fpdf2"},
        {"xmpMM:DocumentID": f"uuid:{document_id}"},
    ):
        description = _under(rdf, "rdf:Description", next(iter(facts)).partition(":")[0])
        description.set(f"{{{_XMP['rdf']}}}about", "")
        for path, text in facts.items():
            node = description
            for name in path.split("/"):
                node = _under(node, name)
            node.text = text
            if path.startswith("dc:title"):
                node.set("{http://www.w3.org/XML/1998/namespace}lang", "x-default")
    return etree.tostring(root, encoding="unicode", pretty_print=True)


def _under(parent: etree._Element, name: str, declared: str = "") -> etree._Element:
    """A child; `declared` is the prefix whose namespace it declares: validators want RDF and schemas declared late."""
    prefix, _, local = name.partition(":")
    nsmap = {declared: _XMP[declared]} if declared else None
    return etree.SubElement(parent, f"{{{_XMP[prefix]}}}{local}", nsmap=nsmap)


def clean(sheet: Sheet, text: str) -> str:
    """What the font can print of a text: composed, look-alikes taken, the rest a placeholder and counted once."""
    if text in sheet.known:
        return sheet.known[text]
    composed = unicodedata.normalize("NFC", text[:_CHARACTERS].replace("\r\n", "\n").replace("\r", "\n"))
    composed = composed.translate(_SUBSTITUTES)
    unknown = {character for character in set(composed) if ord(character) not in sheet.glyphs and character != "\n"}
    if unknown:
        sheet.missing.update(character for character in composed if character in unknown)
        composed = composed.translate({ord(character): PLACEHOLDER for character in unknown})
    sheet.known[text] = composed
    return composed


def missing_text(sheet: Sheet) -> str:
    """The French sentence that says which characters were replaced."""
    shown = ", ".join(f"U+{ord(character):04X}" for character, _ in sheet.missing.most_common(8))
    more = ", …" if len(sheet.missing) > 8 else ""
    count = sheet.missing.total()
    plural = "s" if count > 1 else ""
    return (
        f"{count} caractère{plural} que la police de ce document ne sait pas imprimer "
        f"{'sont remplacés' if count > 1 else 'est remplacé'} par {PLACEHOLDER} ({shown}{more})."
    )


def breadth(sheet: Sheet, text: str, size: float, strong: bool) -> float:
    """The printed width in mm; `size` in points."""
    widths = sheet.widths[strong]
    return float(sum(widths[ord(character)] for character in text)) * size / 1000 * _MM_PER_PT


def _wrapped(sheet: Sheet, text: str, size: float, strong: bool, width: float) -> Iterator[str]:
    """Lines no wider than `width`; breaks at spaces, inside a word only when it is wider than a line."""
    space = breadth(sheet, " ", size, strong)
    blank = True
    for paragraph in text.split("\n"):
        if not paragraph.strip():
            if not blank:
                yield ""
            blank = True
            continue
        blank = False
        line, used = "", 0.0
        for word in paragraph.rstrip().split(" "):
            wide = breadth(sheet, word, size, strong)
            if line and used + space + wide <= width:
                line, used = f"{line} {word}", used + space + wide
                continue
            if line:
                yield line
            if wide > width:
                *full, word = _pieces(sheet, word, size, strong, width)
                yield from full
                wide = breadth(sheet, word, size, strong)
            line, used = word, wide
        yield line


def _pieces(sheet: Sheet, word: str, size: float, strong: bool, width: float) -> Iterator[str]:
    """A word wider than a line, cut where the lines are full."""
    start, used = 0, 0.0
    for index, character in enumerate(word):
        wide = breadth(sheet, character, size, strong)
        if used + wide > width and index > start:
            yield word[start:index]
            start, used = index, 0.0
        used += wide
    yield word[start:]


def text_lines(sheet: Sheet, text: str, size: float, strong: bool, width: float, most: int) -> tuple[list[str], bool]:
    """At most `most` lines of a text as it will be printed, and whether something was left."""
    made = list(islice(_wrapped(sheet, clean(sheet, text), size, strong, width), most + 1))
    while made and not made[-1]:
        made.pop()
    cut = len(made) > most or len(text) > _CHARACTERS
    return made[:most], cut


def short_lines(sheet: Sheet, text: str, size: float, strong: bool, width: float) -> list[str]:
    """A short fact on at most three lines; an ellipsis ends it, and a loss names it, when there was more."""
    lines, cut = text_lines(sheet, text.replace("\n", " "), size, strong, width, _FACT_LINES)
    if cut:
        lines[-1] = next(_pieces(sheet, lines[-1], size, strong, width - 4)) + " …"
        sheet.cuts[Loss("Report", f"{lines[0][:40]}…: a short fact of more than three lines, cut")] = None
    return lines


def one_line(sheet: Sheet, text: str, width: float = 400.0, size: float = 9.5, strong: bool = False) -> str:
    """The first line of a text, for places that have only one."""
    return next(iter(text_lines(sheet, text.replace("\n", " "), size, strong, width, 1)[0]), "")


def put(
    sheet: Sheet,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 9.5,
    strong: bool = False,
    colour: Colour = INK,
    right: bool = False,
) -> None:
    """Print one line with its top at `y`; `right` takes `x` as the right edge."""
    text = clean(sheet, text).replace("\n", " ")
    pen = sheet.pdf
    pen.set_font("text", "B" if strong else "", size)
    pen.set_text_color(*colour)
    left = x - breadth(sheet, text, size, strong) if right else x
    pen.text(left, y + size * _MM_PER_PT * 0.98, text)


def box(sheet: Sheet, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    """A filled rectangle, `x` and `y` its upper left corner."""
    sheet.pdf.set_fill_color(*colour)
    sheet.pdf.rect(x, y, w, h, style="F")


def line_height(size: float) -> float:
    """How far apart lines of `size` points stand, in mm."""
    return size * _MM_PER_PT * _LEADING


def room(sheet: Sheet, wanted: float) -> None:
    """Turn the page unless `wanted` mm are left on it."""
    if sheet.y + wanted > BOTTOM:
        new_page(sheet)
