"""UCUM on our own cases (tests/data/ucum/cases.json): what is valid, what a refusal says, and the arithmetic."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from profiles.ucum import syntax, units
from profiles.ucum.table import table
from profiles.ucum.units import Ucum, UcumError, canonical, comparable, convert, display, parse, validate

CASES: dict[str, list[Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "ucum" / "cases.json").read_text(encoding="utf-8")
)
HOSTILE = {
    "long": "m" * 100_000,
    "long annotation": "m{" + "a" * 100_000 + "}",
    "deep": "(" * 120 + "m" + ")" * 120,
    "open": "(" * 250,
    "powers of ten": "10*99." * 42 + "1",
    "large units": "Ym99." * 50 + "1",
    "small units": "/" + "yg99/" * 50 + "1",
    "large exponent": "m" + "9" * 250,
    "large number": "9" * 250,
    "a high power": "m99.m99",
    "brackets": "[" * 250,
    "braces": "{" * 250,
    "bracket runs": "[a]" * 84 + "[",
    "solidi": "/" * 250,
    "a unit to a power that explodes": "[c]99.[c]99.[c]99",
}
CODES = sorted(table().atoms)
ONE = Decimal(1)


@pytest.mark.parametrize("code", CASES["valid"])
def test_a_valid_code_is_accepted(code: str) -> None:
    assert validate(code) == ""


@pytest.mark.parametrize("case", CASES["invalid"], ids=lambda case: repr(case["code"]))
def test_an_invalid_code_is_refused_with_its_place_and_a_remedy(case: dict[str, Any]) -> None:
    with pytest.raises(UcumError) as refusal:
        parse(case["code"])
    assert case["says"] in refusal.value.message
    assert refusal.value.position == case["at"]
    assert validate(case["code"]) == str(refusal.value)


@pytest.mark.parametrize(("value", "code", "number", "base"), CASES["canonical"])
def test_a_value_has_one_canonical_form_with_its_digits(value: str, code: str, number: str, base: str) -> None:
    result, unit = canonical(Decimal(value), code)
    assert (result, unit) == (Decimal(number), base)
    assert canonical(result, unit) == (result, unit)


def test_digits_after_the_point_are_kept() -> None:
    assert str(canonical(Decimal("6.30"), "mm")[0]) == "0.00630"
    assert str(convert(Decimal("1.50"), "m", "cm")) == "150.00"
    assert str(convert(Decimal("5.0"), "mg", "mg")) == "5.0"


def test_a_result_without_end_is_rounded_to_forty_digits_without_false_zeros() -> None:
    assert str(convert(ONE, "min", "h")) == "0.01666666666666666666666666666666666666667"
    assert str(convert(Decimal("100.1"), "[degF]", "[degF]")) == "100.1"
    assert str(convert(convert(Decimal("7.4"), "[pH]", "mol/L"), "mol/L", "[pH]")) == "7.4"


@pytest.mark.parametrize(("value", "source", "target", "result"), CASES["conversions"])
def test_a_value_converts_or_is_refused(value: str, source: str, target: str, result: str | None) -> None:
    if result is None:
        with pytest.raises(UcumError):
            convert(Decimal(value), source, target)
    else:
        assert convert(Decimal(value), source, target) == Decimal(result)


@pytest.mark.parametrize(("code", "words"), CASES["displays"])
def test_a_code_is_spelled_out(code: str, words: str) -> None:
    assert display(code) == words


def test_an_invalid_code_has_no_display() -> None:
    with pytest.raises(UcumError, match="not a UCUM unit"):
        display("blob")


@pytest.mark.parametrize(("value", "code", "by", "by_code", "number", "unit"), CASES["products"])
def test_quantities_multiply(
    value: str, code: str, by: str, by_code: str, number: str | None, unit: str | None
) -> None:
    if number is None:
        with pytest.raises(UcumError):
            units.multiply(Decimal(value), code, Decimal(by), by_code)
    else:
        assert units.multiply(Decimal(value), code, Decimal(by), by_code) == (Decimal(number), unit)


@pytest.mark.parametrize(("value", "code", "by", "by_code", "number", "unit"), CASES["quotients"])
def test_quantities_divide(value: str, code: str, by: str, by_code: str, number: str | None, unit: str | None) -> None:
    if number is None:
        with pytest.raises(UcumError):
            units.divide(Decimal(value), code, Decimal(by), by_code)
    else:
        assert units.divide(Decimal(value), code, Decimal(by), by_code) == (Decimal(number), unit)


@pytest.mark.parametrize(("one", "other"), CASES["equal"])
def test_two_spellings_of_a_unit_are_equal(one: str, other: str) -> None:
    assert comparable(one, other)
    assert canonical(Decimal("2.5"), one) == canonical(Decimal("2.5"), other)


def test_arbitrary_units_compare_with_themselves_only() -> None:
    assert comparable("k[iU]/L", "[IU]/mL")
    assert not comparable("[iU]", "[arb'U]")
    assert not comparable("[iU]", "1")
    assert not comparable("[hp_X]", "[kp_X]")


def test_a_unit_is_checked_against_what_it_should_measure() -> None:
    assert validate("mm", "length") == ""
    assert validate("mm[Hg]", "pressure") == ""
    assert validate("Cel", "temperature") == ""
    assert "does not measure mass" in validate("mm", "mass")
    assert "no property 'weight'" in validate("kg", "weight")
    assert "not a UCUM unit" in validate("qq", "mass")


def test_case_matters() -> None:
    assert not comparable("Pa", "pA")
    assert not comparable("Mg", "mm")
    assert canonical(ONE, "Mg")[0] == Decimal(10) ** 9 * canonical(ONE, "mg")[0]


def test_annotations_mean_nothing() -> None:
    assert canonical(Decimal(3), "g{creat}/L{urine}") == canonical(Decimal(3), "g/L")
    assert comparable("{tablet}", "{puff}")


def test_every_atom_of_the_table_can_be_worked_out_and_prefixed() -> None:
    for code, atom in table().atoms.items():
        assert parse(code).canonical == canonical(ONE if not parse(code).scale else Decimal(2), code)[1]
        assert (validate(f"k{code}") == "") == atom.metric
        assert display(code) == f"({atom.name})"


def test_no_code_of_the_table_reads_in_two_ways() -> None:
    prefixed = [prefix + code for prefix in table().prefixes for code, atom in table().atoms.items() if atom.metric]
    assert len(set(prefixed)) == len(prefixed)
    assert not set(prefixed) & set(table().atoms)


@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("code", ["mm", "deg", "Cel", "[pH]"])
def test_what_is_no_number_is_refused(value: str, code: str) -> None:
    with pytest.raises(UcumError, match="no number"):
        canonical(Decimal(value), code)
    with pytest.raises(UcumError, match="no number"):
        convert(Decimal(value), code, code)
    with pytest.raises(UcumError, match="no number"):
        units.multiply(Decimal(value), code, ONE, "1")
    with pytest.raises(UcumError, match="no number"):
        units.divide(ONE, "1", Decimal(value), "m")


@pytest.mark.parametrize("value", ["1E+999999", "-1E+999999", "1E-999999", "1E+999999999999999999"])
@pytest.mark.parametrize("code", ["mm", "deg", "Cel", "[pH]", "dB", "Np", "bit_s", "[p'diop]", "%[slope]", "[hp'_Q]"])
def test_a_number_of_any_size_is_answered_or_refused_at_once(value: str, code: str) -> None:
    started = time.process_time()
    with pytest.raises(UcumError, match="too large or too small"):
        canonical(Decimal(value), code)
    with pytest.raises(UcumError, match="too large or too small"):
        convert(Decimal(value), code, code)
    assert time.process_time() - started < 60


@pytest.mark.parametrize("code", ["[pH]", "dB", "Np", "bit_s", "[hp'_Q]", "[hp'_X]"])
@pytest.mark.parametrize("value", ["1E+1000", "-1E+1000", "1E+5", "9999"])
def test_a_logarithmic_value_cannot_explode(code: str, value: str) -> None:
    started = time.process_time()
    try:
        number, _ = canonical(Decimal(value), code)
    except UcumError:
        pass
    else:
        assert abs(number.adjusted()) <= 2000
    assert time.process_time() - started < 60


def test_a_zero_stays_a_zero() -> None:
    assert canonical(Decimal("0.0"), "mm") == (Decimal(0), "m")
    assert canonical(Decimal("-0"), "mm")[0] == 0
    assert convert(Decimal(0), "min", "h") == 0


def test_a_value_of_ten_thousand_digits_is_rounded() -> None:
    number, _ = canonical(Decimal("1." + "3" * 10_000), "mm")
    assert len(number.as_tuple().digits) == units.PRECISION


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_code_is_refused_in_bounded_time(code: str) -> None:
    started = time.process_time()
    problem = validate(code)
    assert problem
    assert len(problem) < 500
    assert time.process_time() - started < 60


def test_the_bounds_leave_room_for_real_codes() -> None:
    assert validate("{" + "a" * (syntax.MAX_LENGTH - 2) + "}") == ""
    assert validate("(" * syntax.MAX_NESTING + "m" + ")" * syntax.MAX_NESTING) == ""
    assert validate(f"10*{syntax.MAX_EXPONENT}") == ""
    assert validate("9" * syntax.MAX_DIGITS) == ""


def test_the_fhirpath_engine_gets_none_where_nothing_converts() -> None:
    assert Ucum().convert(Decimal(2), "kg", "g") == 2000
    assert Ucum().convert(Decimal(2), "kg", "m") is None
    assert Ucum().convert(Decimal(2), "days", "days") is None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.text(alphabet="mkgsL10*^+-./(){}[]%'_dBCel \u00b5", max_size=24))
def test_any_text_is_a_unit_or_refused_and_its_canonical_code_reads_back(text: str) -> None:
    try:
        unit = parse(text)
    except UcumError as refusal:
        assert 0 <= refusal.position <= max(1, len(text))
    else:
        assert parse(unit.canonical).dimension == unit.dimension
        assert parse(unit.canonical).canonical == unit.canonical


_NUMBERS = some.decimals(min_value=-10_000, max_value=10_000, places=4, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(_NUMBERS, some.sampled_from(CODES), some.sampled_from(CODES))
def test_a_value_converted_there_and_back_is_the_same(value: Decimal, source: str, target: str) -> None:
    if comparable(source, target):
        try:
            there = convert(value, source, target)
            back = convert(there, target, source)
        except UcumError:
            return
        assert abs(back - value) <= Decimal("1e-20")
    else:
        with pytest.raises(UcumError, match="does not measure the same"):
            convert(value, source, target)
