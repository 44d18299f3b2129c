"""Special units: the functions between a value on a scale such as degree Celsius, pH or bel and a proper quantity.

Hides the arithmetic: 70 digits inside, so that 40 digits of a result are right, and the trigonometry that `decimal`
lacks. Every function takes and gives a finite Decimal; outside its domain, and for a logarithm beyond LARGEST, it
raises UcumError.

Normative: https://ucum.org/ucum sections 21 to 23 (special units), 30 (Celsius), 43 (Fahrenheit, Reaumur), 44 (prism
diopter, slope, homeopathic potencies), 45 (pH), 46 (levels), 48 (bit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

from profiles.ucum.syntax import UcumError

LARGEST = 10_000
_WIDE = Context(prec=70, rounding=ROUND_HALF_EVEN, Emin=-20_000, Emax=20_000, traps=[])
_EPSILON = Decimal("1e-72")
# The 72 digits the trigonometry needs; the table's own [pi] has 65.
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640")
_HALF_PI = _WIDE.divide(_PI, Decimal(2))

Function = Callable[[Decimal], Decimal]


@dataclass(frozen=True, slots=True)
class Scale:
    """A pair of functions: `proper` gives the number of corresponding units a scale value stands for, `scaled` is its
    inverse."""

    proper: Function
    scaled: Function


def _offset(amount: str) -> Scale:
    zero = Decimal(amount)
    return Scale(lambda value: _WIDE.add(value, zero), lambda number: _WIDE.subtract(number, zero))


def _power(base: int, factor: str) -> Scale:
    """Values r that stand for base^(factor*r)."""
    root, times = Decimal(base), Decimal(factor)
    divisor = _WIDE.multiply(times, _WIDE.ln(root))

    def proper(value: Decimal) -> Decimal:
        exponent = _WIDE.multiply(value, times)
        return _bounded(value, _WIDE.power(root, exponent) if abs(value) <= LARGEST else None)

    def scaled(number: Decimal) -> Decimal:
        if base == 10:
            return _WIDE.divide(_WIDE.log10(_positive(number)), times)
        return _WIDE.divide(_WIDE.ln(_positive(number)), divisor)

    return Scale(proper, scaled)


def _natural(value: Decimal) -> Decimal:
    return _bounded(value, _WIDE.exp(value) if abs(value) <= LARGEST else None)


def _logarithm(number: Decimal) -> Decimal:
    return _WIDE.ln(_positive(number))


def _square(value: Decimal) -> Decimal:
    if value < 0:
        raise UcumError(f"{value} is negative: an amplitude spectral density is not")
    return _WIDE.multiply(value, value)


def _root(number: Decimal) -> Decimal:
    if number < 0:
        raise UcumError(f"{number} is negative and has no square root")
    return _WIDE.sqrt(number)


def _bounded(value: Decimal, power: Decimal | None) -> Decimal:
    """`power`, which `value` stands for, unless it was not computed or left the range of numbers."""
    if not power or not power.is_finite():
        raise UcumError(f"{value:.6} is too large or too small for a logarithmic scale")
    return power


def _positive(number: Decimal) -> Decimal:
    if number <= 0:
        raise UcumError(f"{number:.6} is not positive and has no logarithm")
    return number


def _angle(percent: Decimal) -> Decimal:
    """The angle in radians whose tangent is `percent` hundredths."""
    tangent = _WIDE.divide(percent, Decimal(100))
    size = abs(tangent)
    angle = _WIDE.subtract(_HALF_PI, _arctangent(_WIDE.divide(Decimal(1), size))) if size > 1 else _arctangent(size)
    return angle.copy_sign(percent)


def _arctangent(x: Decimal) -> Decimal:
    """The arctangent of 0 <= x <= 1: three halvings of the angle, then the power series."""
    for _ in range(3):
        x = _WIDE.divide(x, _WIDE.add(Decimal(1), _WIDE.sqrt(_WIDE.fma(x, x, Decimal(1)))))
    square = _WIDE.multiply(x, x).copy_negate()
    total, power, divisor = x, x, 1
    while abs(power) > _EPSILON:
        power, divisor = _WIDE.multiply(power, square), divisor + 2
        total = _WIDE.add(total, _WIDE.divide(power, Decimal(divisor)))
    return _WIDE.multiply(total, Decimal(8))


def _percent(angle: Decimal) -> Decimal:
    """One hundred times the tangent of `angle` in radians."""
    if abs(angle) >= _HALF_PI:
        raise UcumError(f"an angle of {angle:.6} rad has no slope: it must lie between -pi/2 and pi/2")
    square = _WIDE.multiply(angle, angle).copy_negate()
    sine, cosine, term, order = angle, Decimal(1), Decimal(1), 1
    while abs(term) > _EPSILON:
        term = _WIDE.divide(_WIDE.multiply(term, square), Decimal(order * (order + 1)))
        cosine = _WIDE.add(cosine, term)
        sine = _WIDE.add(sine, _WIDE.divide(_WIDE.multiply(term, angle), Decimal(order + 2)))
        order += 2
    return _WIDE.multiply(_WIDE.divide(sine, cosine), Decimal(100))


_TANGENT = Scale(_angle, _percent)

# By the function symbol of the definition, `degf` in `degf(5 K/9)`.
SCALES: dict[str, Scale] = {
    "cel": _offset("273.15"),
    "degf": _offset("459.67"),
    "degre": _offset("218.52"),
    "pH": _power(10, "-1"),
    "ln": Scale(_natural, _logarithm),
    "lg": _power(10, "1"),
    "2lg": _power(10, "0.5"),
    "ld": _power(2, "1"),
    "sqrt": Scale(_square, _root),
    "100tan": _TANGENT,
    "hpX": _power(10, "-1"),
    "hpC": _power(100, "-1"),
    "hpM": _power(1000, "-1"),
    "hpQ": _power(50000, "-1"),
}
