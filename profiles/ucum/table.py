"""The table of UCUM atoms and prefixes, read once, when it is first asked for.

Hides the data file `profiles/data/ucum.zip` (made by `python -m profiles.build_ucum`): the table of the UCUM
organization, byte for byte as published, because its licence allows copies but no other forms of it. The licence notice
travels inside the file and stands beside it (`profiles/data/ucum.txt`).

Normative: https://ucum.org/ucum sections 4, 11 and 27 to 49; the table is `ucum-essence.xml`, version 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.parsers import expat

DATA = Path(__file__).parent.parent / "data" / "ucum.zip"
MEMBER = "ucum-essence.xml"


@dataclass(frozen=True, slots=True)
class Prefix:
    """`value` as the table spells it, such as `1e-3`."""

    code: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Atom:
    """One row of the table.

    `value` and `unit` define it: `12` and `[in_i]`. A base unit has no definition; a special unit has an empty value
    and a unit such as `degf(5 K/9)`. `metric`: takes prefixes. `arbitrary`: defined by a procedure of measurement.
    `case_insensitive` is its other spelling, no part of the codes read here.
    """

    code: str
    name: str
    property: str
    metric: bool
    base: bool
    special: bool
    arbitrary: bool
    value: str
    unit: str
    case_insensitive: str


@dataclass(frozen=True, slots=True)
class Table:
    """All atoms and prefixes by their case-sensitive code."""

    version: str
    atoms: Mapping[str, Atom]
    prefixes: Mapping[str, Prefix]

    def split(self, symbol: str) -> tuple[Prefix | None, Atom] | None:
        """What `symbol` (without exponent) stands for: the longest prefix before a metric atom, or an atom alone."""
        for length in (2, 1):
            prefix = self.prefixes.get(symbol[:length])
            if prefix is not None and len(symbol) > length:
                atom = self.atoms.get(symbol[length:])
                if atom is not None and atom.metric:
                    return prefix, atom
        alone = self.atoms.get(symbol)
        return None if alone is None else (None, alone)


@cache
def table() -> Table:
    """The table of the installation; OSError or KeyError when the installation lacks its data file."""
    from zipfile import ZipFile  # costs 10 ms to import, and only the first question needs it

    with ZipFile(DATA) as archive:
        return read(archive.read(MEMBER))


@dataclass(slots=True)
class _Reading:
    """The rows so far and the row in hand: its attributes, and the text of its children that are wanted."""

    version: str = ""
    atoms: dict[str, Atom] = field(default_factory=dict)
    prefixes: dict[str, Prefix] = field(default_factory=dict)
    row: dict[str, str] = field(default_factory=dict)
    wanted: str = ""


def read(xml: bytes) -> Table:
    """The table in `xml`, a `ucum-essence.xml`; a row's first name is the one kept."""
    state = _Reading()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "root":
            state.version = attributes.get("version", "")
        elif tag in ("prefix", "base-unit", "unit"):
            state.row = dict(attributes)
        elif tag == "value":
            state.row["definition"] = attributes.get("value", "")
            state.row["of"] = attributes.get("Unit", "")
        elif tag in ("name", "property") and tag not in state.row:
            state.wanted = tag

    def text(data: str) -> None:
        if state.wanted:
            state.row[state.wanted] = state.row.get(state.wanted, "") + data

    def end(tag: str) -> None:
        state.wanted = ""
        if tag == "prefix":
            row = state.row
            state.prefixes[row["Code"]] = Prefix(row["Code"], row["name"], row["definition"])
        elif tag in ("base-unit", "unit"):
            atom = _atom(state.row, base=tag == "base-unit")
            state.atoms[atom.code] = atom

    parser.StartElementHandler = start
    parser.CharacterDataHandler = text
    parser.EndElementHandler = end
    parser.Parse(xml, True)
    return Table(state.version, state.atoms, state.prefixes)


def _atom(row: Mapping[str, str], *, base: bool) -> Atom:
    return Atom(
        code=row["Code"],
        name=row["name"],
        property=row["property"],
        metric=base or row["isMetric"] == "yes",
        base=base,
        special=row.get("isSpecial") == "yes",
        arbitrary=row.get("isArbitrary") == "yes",
        value=row.get("definition", ""),
        unit=row.get("of", ""),
        case_insensitive=row["CODE"],
    )
