"""Numbers and quantities become index rows: what is measured, as it is spelled and in UCUM base units.

Source: https://hl7.org/fhir/R4/search.html#quantity
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from fhir_server.search.rows import Emit, IndexRows, Pids
from fhir_server.search.values import NUMBER_HIGH, NUMBER_LOW, bounded, nearest, number
from profiles.ucum import units

UCUM = "http://unitsofmeasure.org"
CURRENCIES = "urn:iso:std:iso:4217"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, Decimal)) and type(value) is not bool


def numeric(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if is_number(value):
        double = nearest(value)
        for pid in pids:
            found.number.append((pid, double, double))


def _ends(value: Any) -> tuple[Decimal | int | None, Decimal | int | None, dict[str, Any]] | None:
    """(low, high, the Quantity that names the unit) of a Range; None for an open end."""
    if type(value) is not dict:
        return None
    sides = [value.get("low"), value.get("high")]
    low, high = (side if type(side) is dict and is_number(side.get("value")) else None for side in sides)
    unit = low or high
    if unit is None:
        return None
    return low["value"] if low else None, high["value"] if high else None, unit


def span(first: str, last: str) -> Emit:
    """The rows of an element whose two properties are the first and the last number of a span."""

    def emit(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
        if type(value) is dict and is_number(value.get(first)) and is_number(value.get(last)):
            row = nearest(value[first]), nearest(value[last])
            for pid in pids:
                found.number.append((pid, *row))

    return emit


def numeric_range(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    ends = _ends(value)
    if ends is not None:
        low, high = _doubles(ends[0], ends[1])
        for pid in pids:
            found.number.append((pid, low, high))


def _doubles(low: Decimal | int | None, high: Decimal | int | None) -> tuple[float, float]:
    return NUMBER_LOW if low is None else nearest(low), NUMBER_HIGH if high is None else nearest(high)


@dataclass(frozen=True, slots=True)
class _Span:
    """The numbers a quantity may be: None is an open end; an end marked `open_*` does not belong to it."""

    low: Decimal | int | None
    high: Decimal | int | None
    open_low: bool = False
    open_high: bool = False

    def doubles(self, convert: Callable[[Decimal | int], Decimal | int]) -> tuple[float, float]:
        """The closed interval of doubles after a conversion, which must be a rising one."""
        low, high = _doubles(*(None if end is None else convert(end) for end in (self.low, self.high)))
        return (
            math.nextafter(low, math.inf) if self.open_low else low,
            math.nextafter(high, -math.inf) if self.open_high else high,
        )


def _measured(found: IndexRows, pids: Pids, span: _Span, unit: dict[str, Any]) -> None:
    """Rows for a quantity; one more under the human unit where that differs from the code.

    A UCUM quantity has its canonical form beside it: the same for every spelling of the same measurement.
    """
    system, code, word = unit.get("system"), unit.get("code"), unit.get("unit")
    pairs = [(system if type(system) is str else "", code if type(code) is str else "")]
    if type(word) is str and word != code:
        pairs.append(("", word))
        if not pairs[0][1]:
            pairs = [(pairs[0][0], word)]
    low, high = span.doubles(lambda end: end)
    canonical = _base_units(span, code) if system == UCUM and type(code) is str else _NO_UNIT
    for place, (spelled, name) in enumerate(pairs):
        row = (bounded(spelled), bounded(name), low, high, *(canonical if place == 0 else _NO_UNIT))
        for pid in pids:
            found.quantity.append((pid, *row))


_NO_UNIT = ("", 0.0, 0.0)


def _base_units(span: _Span, code: str) -> tuple[str, float, float]:
    """(unit, low, high) in UCUM base units; unit '' when the code is none or its scale does not rise (`[pH]`)."""
    unit = base_unit(code)
    if not unit:
        return _NO_UNIT
    try:
        if span.low is not None and span.low is span.high:
            exact = nearest(units.canonical(Decimal(span.low), code)[0])
            return unit, exact, exact
        low, high = span.doubles(lambda end: units.canonical(Decimal(end), code)[0])
    except units.UcumError:
        return _NO_UNIT
    return unit, low, high


@lru_cache(maxsize=4096)
def base_unit(code: str) -> str:
    """The canonical UCUM unit of a code, '' when it has none that keeps the order of numbers."""
    try:
        (one, unit), (two, _) = units.canonical(Decimal(1), code), units.canonical(Decimal(2), code)
    except units.UcumError:
        return ""
    return bounded(unit) if one < two else ""


def quantity(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is dict and is_number(value.get("value")):
        exact = value["value"]
        compared = _COMPARED.get(str(value.get("comparator")))
        _measured(found, pids, compared(exact) if compared is not None else _Span(exact, exact), value)


_COMPARED: dict[str, Callable[[Decimal | int], _Span]] = {
    "<": lambda end: _Span(None, end, open_high=True),
    "<=": lambda end: _Span(None, end),
    ">=": lambda end: _Span(end, None),
    ">": lambda end: _Span(end, None, open_low=True),
}


def quantity_range(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    ends = _ends(value)
    if ends is not None:
        _measured(found, pids, _Span(ends[0], ends[1]), ends[2])


def money(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is dict and is_number(value.get("value")):
        unit = {"system": CURRENCIES, "code": value.get("currency")}
        _measured(found, pids, _Span(value["value"], value["value"]), unit)


def sampled(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    """From the smallest to the largest sample."""
    if type(value) is not dict or type(value.get("data")) is not str or type(value.get("origin")) is not dict:
        return
    origin, factor = value["origin"].get("value"), value.get("factor", 1)
    samples = list(_samples(value["data"].split()))
    if samples and is_number(origin) and is_number(factor):
        ends = sorted(origin + factor * edge for edge in (min(samples), max(samples)))
        _measured(found, pids, _Span(ends[0], ends[1]), value["origin"])


def _samples(words: Iterable[str]) -> Iterable[Decimal]:
    # E, U and L stand for errors and values beyond the limits of detection.
    return (sample for sample in map(number, words) if sample is not None)
