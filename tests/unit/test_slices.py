"""The long tests in daily parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slices import MOST_MINUTES, slices

COUNTS = st.dictionaries(st.text("abcdef", min_size=1), st.floats(0.1, MOST_MINUTES), max_size=40)


@given(COUNTS)
def test_every_long_test_has_its_turn_and_no_part_is_too_long(minutes: dict[str, float]) -> None:
    parts = slices(minutes)
    assert sorted(name for part in parts for name in part) == sorted(minutes)
    assert all(part and sum(minutes[name] for name in part) <= MOST_MINUTES for part in parts)


@pytest.mark.parametrize("most", [10.0, 20.0])
def test_small_parts_are_filled_up(most: float) -> None:
    assert len(slices({f"t{n}": 1.0 for n in range(40)}, most)) == 40 / most


def test_a_number_beyond_the_last_begins_again(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmarkers =\n  long: x")
    lines = ["import pytest", "def test_short(): pass"]
    lines += [f"@pytest.mark.long(minutes=15)\ndef test_{name}(): pass" for name in "ab"]
    pytester.makepyfile("\n".join(lines))
    for number, turn in enumerate(("test_a", "test_b", "test_a")):
        told = pytester.runpytest_inprocess("-p", "slices", "-v", "--slice", str(number))
        told.assert_outcomes(passed=1, deselected=2)
        told.stdout.fnmatch_lines([f"*{turn} PASSED*"])
