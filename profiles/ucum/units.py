"""UCUM units: parse, validate, convert, canonicalise, multiply, divide, display. Exact decimals, never floats.

Hides how a code becomes a number: the tree of its text is worked out over the table into an exact fraction of base
units (m, s, g, rad, K, C, cd), kept for the next time. The canonical code lists the base units in ASCII order with
their exponents (`g.m-1.s-2`) and is `1` for a pure number; so `mol` is a number (6.02214076e23), as UCUM defines it.
A unit defined by a procedure (`[iU]`, `[arb'U]`) counts as a base unit of its own: it compares with itself only
(section 25). Units on scales that are no ratios (`Cel`, `[pH]`, `dB`) take numbers and prefixes, and nothing else
(section 22). Annotations mean nothing, as in UCUM: `{tablet}` and `{puff}` are both 1.

Results keep the digits that the arithmetic gives (`6.30 mm` is `0.00630 m`), 40 at most. Importing reads no file; the
first code reads the table.

Normative: https://ucum.org/ucum (version 2.2), https://hl7.org/fhir/R4/datatypes.html#Quantity
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import cache, lru_cache

from profiles.ucum import syntax
from profiles.ucum.scales import SCALES, Scale
from profiles.ucum.syntax import MAX_EXPONENT, MAX_LENGTH, Number, Part, Symbol, UcumError
from profiles.ucum.table import table
from profiles.ucum.words import remedy, spelled_out

__all__ = [
    "Ucum",
    "UcumError",
    "Unit",
    "canonical",
    "comparable",
    "convert",
    "display",
    "divide",
    "multiply",
    "parse",
    "validate",
]

PRECISION = 40
# No measurement needs more than these powers of ten or two; a hostile code can spell far larger ones.
_LARGEST_POWER = 2000
_LARGEST_BITS = 6000
_CONTEXT = Context(prec=PRECISION, rounding=ROUND_HALF_EVEN, Emin=-_LARGEST_POWER, Emax=_LARGEST_POWER, traps=[])
_EXACT = Context(prec=4 * PRECISION, rounding=ROUND_HALF_EVEN, Emin=-20_000, Emax=20_000, traps=[])
_SPECIAL = re.compile(r"(\w+)\((\S+) (\S+)\)", re.ASCII)
_ONE = Fraction(1)

Dimension = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit worked out: `1 unit = magnitude * canonical`.

    `dimension`: base unit codes with their exponents, in order. For a special unit `scale` is its pair of functions,
    `magnitude` that of its corresponding unit and `alpha` the number it is multiplied by (`d` in `dB`).
    `factor` and `divisor` are the magnitude as decimals; the divisor is None when the factor is exact alone.
    """

    code: str
    magnitude: Fraction
    dimension: Dimension
    canonical: str
    factor: Decimal
    divisor: Decimal | None
    scale: Scale | None
    alpha: Fraction

    @property
    def plain(self) -> bool:
        """Whether the unit is the number 1, such as `1`, `{tablet}` or `g/g`."""
        return self.magnitude == 1 and not self.dimension and self.scale is None


class Ucum:
    """UCUM as the FHIRPath engine asks for it: `profiles.fhirpath.values.Units`."""

    def convert(self, value: Decimal, source: str, target: str) -> Decimal | None:
        """See `convert`; None where that raises."""
        if len(source) > MAX_LENGTH or len(target) > MAX_LENGTH or not _meet(source, target):
            return None
        try:
            return convert(value, source, target)
        except UcumError:
            return None


@lru_cache(maxsize=4096)
def _meet(a: str, b: str) -> bool:
    """`comparable`, kept also for codes that are no units: comparing every pair of a list asks again and again."""
    try:
        return comparable(a, b)
    except UcumError:
        return False


@lru_cache(maxsize=4096)
def parse(code: str) -> Unit:
    """The unit that `code` spells (case-sensitive codes).

    Raises UcumError, with the position and what to write instead, for what is no UCUM unit and for what is too large
    to be one. Source: https://ucum.org/ucum sections 3 to 26.
    """
    measure = _worked_out(code, syntax.read(code))
    dimension = tuple(sorted((base, power) for base, power in measure.powers.items() if power))
    factor, divisor = _decimals(measure.magnitude)
    return Unit(
        code, measure.magnitude, dimension, _spelled(dimension, code), factor, divisor, measure.scale, measure.alpha
    )


def validate(code: str, property: str | None = None) -> str:
    """What is wrong with `code`, or ''. With `property` (a word of the table: `length`, `mass`, `pressure`), also
    whether the unit measures it."""
    try:
        unit = parse(code)
        if property is not None and unit.dimension not in _dimensions(property):
            return f"'{code}' does not measure {property}"
    except UcumError as error:
        return str(error)
    return ""


def canonical(value: Decimal, code: str) -> tuple[Decimal, str]:
    """`value` in base units, with the canonical code: the same for every spelling of the same measurement.

    Raises UcumError for a code that is no unit, a value that is no number, and a result outside 1e-2000 to 1e2000.
    """
    unit = parse(code)
    if unit.scale is None and unit.divisor is None:
        result = _CONTEXT.multiply(value, unit.factor)
        if result and result.is_finite():
            return result, unit.canonical
    return _settled(_in_base(value, unit)), unit.canonical


def convert(value: Decimal, source: str, target: str) -> Decimal:
    """`value` of unit `source` in unit `target`: exact when the result has an end within 40 digits, else rounded.

    Raises UcumError for a code that is no unit, for units that do not measure the same, and for a value outside the
    domain of a special unit or of `canonical`.
    """
    start, goal, factor, divisor = _route(source, target)
    if source == target:
        return _settled(_sound(value))
    if factor is None:
        return _settled(_from_base(_in_base(value, start), goal))
    result = _EXACT.multiply(_sound(value), factor)
    return _settled(result if divisor is None else _EXACT.divide(result, divisor))


def comparable(a: str, b: str) -> bool:
    """Whether two codes measure the same, so that values convert. Raises UcumError for a code that is no unit."""
    return parse(a).dimension == parse(b).dimension


def multiply(value: Decimal, code: str, by: Decimal, by_code: str) -> tuple[Decimal, str]:
    """The product of two quantities, in base units; a unit multiplied by a plain number (`1`, `{tablet}`) stays.

    Raises UcumError as `canonical` does, and for special units (`Cel`) unless the other one is a plain number.
    """
    left, right = parse(code), parse(by_code)
    product = _EXACT.multiply(_sound(value), _sound(by))
    if right.plain or left.plain:
        return _settled(product), code if right.plain else by_code
    ratio = _proper(left).magnitude * _proper(right).magnitude
    return _settled(_times(product, ratio)), _joint(left.dimension, right.dimension, 1)


def divide(value: Decimal, code: str, by: Decimal, by_code: str) -> tuple[Decimal, str]:
    """The quotient of two quantities, in base units; a unit divided by a plain number (`1`, `{tablet}`) stays.

    Raises UcumError as `multiply` does, and for a division by zero.
    """
    left, right = parse(code), parse(by_code)
    if not by:
        raise UcumError("a quantity cannot be divided by zero")
    quotient = _EXACT.divide(_sound(value), _sound(by))
    if right.plain:
        return _settled(quotient), code
    ratio = _proper(left).magnitude / _proper(right).magnitude
    top, bottom = Decimal(ratio.numerator), _EXACT.multiply(by, Decimal(ratio.denominator))
    quotient = _EXACT.divide(_EXACT.multiply(value, top), bottom)
    return _settled(quotient), _joint(left.dimension, right.dimension, -1)


def display(code: str) -> str:
    """The code in words, `(milligram) / (deciliter)`; `(unity)` for no code. Raises UcumError as `parse` does."""
    if not code:
        return "(unity)"
    parse(code)
    return spelled_out(syntax.read(code))


# --- from a tree to a measure ---


@dataclass(slots=True)
class _Measure:
    """A product under way: `magnitude` times the base units to their `powers`, on a scale of its own or not."""

    magnitude: Fraction
    powers: dict[str, int]
    scale: Scale | None = None
    alpha: Fraction = _ONE


def _worked_out(code: str, parts: Iterable[Part]) -> _Measure:
    total = _Measure(_ONE, {})
    for part in parts:
        if isinstance(part.body, Number):
            piece = _Measure(Fraction(part.body.value), {})
        elif isinstance(part.body, Symbol):
            piece = _of_symbol(code, part.body)
        else:
            piece = _worked_out(code, part.body.parts)
        total = _joined(code, total, piece, -1 if part.divided else 1)
    return total


def _joined(code: str, total: _Measure, piece: _Measure, sign: int) -> _Measure:
    """The product, or the quotient for `sign` -1. A special unit only takes numbers beside it, and no divisor."""
    if piece.scale is not None or total.scale is not None:
        special, other = (piece, total) if total.scale is None else (total, piece)
        if other.scale is not None or any(other.powers.values()) or (special is piece and sign < 0):
            raise UcumError(
                "a unit on a scale of its own (such as Cel, [pH], dB) takes numbers and prefixes but no other unit: "
                "use its proper unit, K for Cel",
                code,
            )
        alpha = special.alpha * (other.magnitude if sign > 0 else 1 / other.magnitude)
        return _Measure(special.magnitude, special.powers, special.scale, alpha)
    powers = dict(total.powers)
    for base, power in piece.powers.items():
        powers[base] = powers.get(base, 0) + sign * power
    magnitude = total.magnitude * piece.magnitude if sign > 0 else total.magnitude / piece.magnitude
    return _Measure(_bounded(code, magnitude), powers)


def _of_symbol(code: str, symbol: Symbol) -> _Measure:
    found = table().split(symbol.text)
    if found is None:
        raise UcumError(remedy(symbol.text), code, symbol.at + 1)
    prefix, atom = found
    measure = _of_atom(atom.code)
    scaling = _ONE if prefix is None else Fraction(prefix.value)
    if measure.scale is not None:
        if symbol.exponent != 1:
            raise UcumError(f"{atom.code} is on a scale of its own and takes no exponent", code, symbol.at + 1)
        return _Measure(measure.magnitude, measure.powers, measure.scale, scaling)
    magnitude = scaling * measure.magnitude
    if max(magnitude.numerator.bit_length(), magnitude.denominator.bit_length()) * abs(symbol.exponent) > _LARGEST_BITS:
        raise UcumError("the unit is too large or too small to mean anything", code, symbol.at + 1)
    powers = {base: power * symbol.exponent for base, power in measure.powers.items()}
    return _Measure(magnitude**symbol.exponent, powers)


@cache
def _of_atom(code: str) -> _Measure:
    atom = table().atoms[code]
    if atom.base or (atom.arbitrary and atom.unit == "1"):
        return _Measure(_ONE, {code: 1})
    if not atom.special:
        measure = _worked_out(atom.unit, syntax.read(atom.unit))
        return _Measure(measure.magnitude * Fraction(atom.value), measure.powers)
    definition = _SPECIAL.fullmatch(atom.unit)
    if definition is None or definition[1] not in SCALES:
        raise UcumError(f"the table defines {code} by {atom.unit}, which is not known here", code)
    function, value, unit = definition.groups()
    measure = _worked_out(unit, syntax.read(unit))
    return _Measure(measure.magnitude * Fraction(value), measure.powers, SCALES[function])


def _bounded(code: str, magnitude: Fraction) -> Fraction:
    if max(magnitude.numerator.bit_length(), magnitude.denominator.bit_length()) > _LARGEST_BITS:
        raise UcumError("the unit is too large or too small to mean anything", code)
    return magnitude


@cache
def _dimensions(property: str) -> frozenset[Dimension]:
    found = [code for code, atom in table().atoms.items() if atom.property == property]
    if not found:
        raise UcumError(f"the table knows no property '{property}'")
    return frozenset(parse(code).dimension for code in found)


# --- names ---


def _spelled(dimension: Dimension, code: str = "") -> str:
    """The canonical code, within the bounds that `parse` sets, so that it can be read again."""
    if any(abs(power) > MAX_EXPONENT for _, power in dimension):
        raise UcumError(f"the unit has a base unit to a power beyond {MAX_EXPONENT}", code)
    name = ".".join(base if power == 1 else f"{base}{power}" for base, power in dimension) or "1"
    if len(name) > MAX_LENGTH:
        raise UcumError(f"the unit has a canonical form of more than {MAX_LENGTH} characters", code)
    return name


def _joint(left: Dimension, right: Dimension, sign: int) -> str:
    """The canonical code of a product, or of a quotient for `sign` -1."""
    powers = dict(left)
    for base, power in right:
        powers[base] = powers.get(base, 0) + sign * power
    return _spelled(tuple(sorted((base, power) for base, power in powers.items() if power)))


# --- numbers ---


def _decimals(magnitude: Fraction) -> tuple[Decimal, Decimal | None]:
    """The fraction as one decimal when it has an end within the precision, else as numerator and denominator."""
    top, bottom = Decimal(magnitude.numerator), Decimal(magnitude.denominator)
    quotient = _EXACT.divide(top, bottom)
    if len(quotient.as_tuple().digits) <= PRECISION and Fraction(quotient) == magnitude:
        return quotient, None
    return top, bottom


def _times(value: Decimal, ratio: Fraction) -> Decimal:
    return _EXACT.divide(_EXACT.multiply(value, Decimal(ratio.numerator)), Decimal(ratio.denominator))


def _in_base(value: Decimal, unit: Unit) -> Decimal:
    """`value` in base units, with more digits than a result has."""
    number = _sound(value)
    if unit.scale is not None:
        number = unit.scale.proper(_times(number, unit.alpha))
    return _times(number, unit.magnitude)


def _from_base(value: Decimal, unit: Unit) -> Decimal:
    """The inverse of `_in_base`."""
    number = _times(value, 1 / unit.magnitude)
    return number if unit.scale is None else _times(unit.scale.scaled(number), 1 / unit.alpha)


def _sound(value: Decimal) -> Decimal:
    """`value` when it is a number that a measurement can have."""
    if not value.is_finite():
        raise UcumError(f"{value} is no number")
    if value and abs(value.adjusted()) > _LARGEST_POWER:
        raise UcumError(f"{value:.6} is too large or too small to be a measurement")
    return value


def _settled(value: Decimal) -> Decimal:
    """`value` with 40 digits; without trailing zeros when that cost it some, as they come from the rounding alone."""
    result = _CONTEXT.plus(_sound(value))
    if result == value:
        return result
    plain = _CONTEXT.normalize(result)
    return _CONTEXT.quantize(plain, Decimal(1)) if 0 < int(plain.as_tuple().exponent) <= PRECISION else plain


@lru_cache(maxsize=4096)
def _route(source: str, target: str) -> tuple[Unit, Unit, Decimal | None, Decimal | None]:
    """The two units and, when neither is special, the factor and divisor between them."""
    start, goal = parse(source), parse(target)
    if start.dimension != goal.dimension:
        message = f"({start.canonical}) does not measure the same as '{goal.code}' ({goal.canonical})"
        raise UcumError(message, source)
    if start.scale is not None or goal.scale is not None:
        return start, goal, None, None
    return start, goal, *_decimals(start.magnitude / goal.magnitude)


def _proper(unit: Unit) -> Unit:
    if unit.scale is not None:
        message = "a value on a scale of its own cannot be multiplied or divided: convert it first"
        raise UcumError(message, unit.code)
    return unit
