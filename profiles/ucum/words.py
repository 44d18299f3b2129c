"""UCUM in words: a code spelled out, and the sentence that mends a symbol the table does not hold.

Hides the list of common slips and the search for the unit that was meant. Nothing here changes what a code means.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from profiles.ucum.syntax import ONE, Group, Number, Part
from profiles.ucum.table import table

# Common words of clinical systems, English and French, to the unit meant; also tried behind a prefix (`mUI`).
_HINTS = {
    "sec": "s", "hr": "h", "hrs": "h", "hour": "h", "hours": "h", "heure": "h", "heures": "h", "day": "d", "days": "d",
    "jour": "d", "jours": "d", "week": "wk", "weeks": "wk", "semaine": "wk", "semaines": "wk", "month": "mo",
    "months": "mo", "mois": "mo", "year": "a", "years": "a", "yr": "a", "an": "a", "ans": "a", "minute": "min",
    "minutes": "min", "mmHg": "mm[Hg]", "cmHg": "cm[Hg]", "cmH2O": "cm[H2O]", "mmH2O": "mm[H2O]", "degC": "Cel",
    "celsius": "Cel", "degF": "[degF]", "mcg": "ug", "cc": "mL", "kgs": "kg", "lb": "[lb_av]", "lbs": "[lb_av]",
    "oz": "[oz_av]", "in": "[in_i]", "inch": "[in_i]", "ft": "[ft_i]", "bpm": "/min", "gm": "g", "gms": "g",
    "IU": "[IU]", "iU": "[iU]", "UI": "[IU]", "IE": "[IU]",
}  # fmt: skip
_DIGITS = "0123456789"


def spelled_out(parts: Iterable[Part]) -> str:
    """A valid term in words: names in parentheses, `*`, `/` and `^` between blanks, annotations in their braces."""
    text = ""
    for part in parts:
        if part.divided:
            text = f"{text or '1'} / "
        elif text:
            text += " * "
        text += _component(part)
    return text


def _component(part: Part) -> str:
    annotation = "" if part.annotation is None else f"{{{part.annotation}}}"
    body = part.body
    if body is ONE and annotation:
        return annotation
    if isinstance(body, Number):
        words = str(body.value)
    elif isinstance(body, Group):
        words = f"({spelled_out(body.parts)})"
    else:
        words = f"({_name(body.text)})" if body.exponent == 1 else f"({_name(body.text)} ^ {body.exponent})"
    return f"{words} {annotation}" if annotation else words


def _name(symbol: str) -> str:
    found = table().split(symbol)
    if found is None:
        return symbol
    prefix, atom = found
    return (prefix.name if prefix else "") + atom.name


def remedy(symbol: str) -> str:
    """The sentence for a symbol that the table does not hold."""
    hint = _HINTS.get(symbol) or _respelled(symbol)
    rest = symbol.lstrip(_DIGITS)
    if not hint and rest != symbol and table().split(rest) is not None:
        product = f"{symbol[: -len(rest)]}.{rest}"
        hint = f"{product}, or ({product}) after a solidus"
    text = f"'{symbol}' is not a UCUM unit"
    return f"{text}: write {hint}" if hint else f"{text}; what is no unit can only be an annotation, in braces"


def _respelled(symbol: str) -> str:
    """The unit meant when only case, brackets or a zero for an O are wrong, alone or after a prefix; or ''."""
    for length in range(min(3, len(symbol))):
        prefix, rest = symbol[:length], symbol[length:]
        if prefix and prefix not in table().prefixes:
            continue
        code = _HINTS.get(rest) or _spellings().get(_folded(rest), "")
        if code and table().split(prefix + code) is not None:
            return prefix + code
    return ""


@cache
def _spellings() -> dict[str, str]:
    """Folded codes to codes; what two codes share is left out."""
    found: dict[str, str] = {}
    shared: set[str] = set()
    for atom in table().atoms.values():
        for folded in {_folded(atom.code), _folded(atom.case_insensitive)}:
            if found.setdefault(folded, atom.code) != atom.code:
                shared.add(folded)
    return {folded: code for folded, code in found.items() if folded not in shared}


def _folded(code: str) -> str:
    return code.replace("[", "").replace("]", "").replace("0", "o").lower()
