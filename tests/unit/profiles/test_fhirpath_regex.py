"""Regular expressions of untrusted origin: the bounded matcher finds what Python's backtracking one finds."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.fhirpath import regex
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.regex_syntax import Alt, CharSet, Group, Look, Regex, Rep, Seq, parse

atoms = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\w", r"\s", r"\.", "^", "$", r"\b"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        inner.map("(?:{})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "+?", "??"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)
texts = st.text(alphabet="abc1 .\n", max_size=12)


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pattern counts as safe for backtracking."""
    monkeypatch.setattr(regex, "_SAFE_WAYS", 0)


def native(pattern: str) -> re.Pattern[str]:
    # `$` is the very end here, as in XML Schema and ECMAScript.
    return re.compile(pattern.replace("$", r"\Z").replace(r"\b", "\x00").replace("\x00", r"\b"), re.DOTALL)


def empty(node: Regex) -> bool:
    """Whether a pattern can match without taking a character."""
    if isinstance(node, Seq):
        return all(empty(part) for part in node.parts)
    if isinstance(node, Alt):
        return any(empty(part) for part in node.parts)
    if isinstance(node, Rep):
        return node.least == 0 or empty(node.body)
    return empty(node.body) if isinstance(node, Group) else not isinstance(node, CharSet)


def repeats_nothing(node: Regex) -> bool:
    """Whether something that can be empty is repeated: where to stop then is a matter of taste, and engines differ."""
    if isinstance(node, Rep):
        return empty(node.body) or repeats_nothing(node.body)
    if isinstance(node, (Seq, Alt)):
        return any(repeats_nothing(part) for part in node.parts)
    return isinstance(node, (Group, Look)) and repeats_nothing(node.body)


@settings(max_examples=300, deadline=None)
@given(patterns, texts)
def test_both_matchers_agree_with_python(pattern: str, text: str) -> None:
    try:
        root = parse(pattern).root
    except FhirPathError:
        return  # a repetition of a place, which Python allows and we refuse
    wanted = native(pattern)
    program = regex._prepared(pattern).program()
    followed = regex._run(program, text, 0, whole=False)
    found = wanted.search(text)
    assert (followed is None) is (found is None)
    if followed is not None and found is not None:
        assert followed[0] == found.start()
        if not repeats_nothing(root):
            assert followed[1] == found.end()
    assert (regex._run(program, text, 0, whole=True) is None) is (wanted.fullmatch(text) is None)
    assert regex.search(pattern, text) is (found is not None)
    assert regex.fullmatch(pattern, text) is (wanted.fullmatch(text) is not None)


@pytest.mark.usefixtures("side_by_side")
@pytest.mark.parametrize(
    ("pattern", "substitution", "text", "result"),
    [
        ("b", "-", "abab", "a-a-"),
        ("(a)(b)?", "<$1$2>", "abaa", "<ab><a><a>"),
        ("x*", "-", "abc", "-a-b-c-"),
        ("(?<first>a)", "${first}${first}$$", "ab", "aa$b"),
        ("a|ab", "X", "ab", "Xb"),
        ("a+?", "X", "aaa", "XXX"),
        (r"\p{Lu}", "_", "Été À", "_té _"),
        ("(?i)É", "e", "éÉ", "ee"),
        ("", "-", "abc", "abc"),
    ],
)
def test_replacing_takes_the_first_way_of_the_leftmost_match(
    pattern: str, substitution: str, text: str, result: str
) -> None:
    assert regex.replace(pattern, substitution, text) == result


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a)", "[a", "*a", "a{2,1}", "a{1001}", r"\1", r"(?<=a)b", "(?>a)", "a++", r"\q", "[z-a]", r"\x1", "a\\",
     "(?<1>a)", r"\p{IsBasicLatin}", "(" * 51 + ")" * 51, "a" * 10_001, "[[:alpha:]]", "(a{1000}){1000}"],
)  # fmt: skip
def test_a_bad_pattern_is_refused_with_a_sentence(pattern: str) -> None:
    with pytest.raises(FhirPathError, match="regular expression"):
        regex.search(pattern, "a" * 2000)


def test_an_unknown_group_in_a_substitution_is_an_error() -> None:
    with pytest.raises(FhirPathError, match="no group 2"):
        regex.replace("(a)", "$2", "a")


def test_look_ahead_works_where_backtracking_is_safe_and_is_refused_elsewhere() -> None:
    assert regex.search("a(?!b)", "ac")
    assert not regex.search("a(?=b)", "ac")
    with pytest.raises(FhirPathError, match="look-ahead"):
        regex.search("(a+)+(?!b)", "a" * 50)


def test_the_primitive_formats_of_r4_run_in_bounded_time() -> None:
    from profiles import definitions

    started = time.monotonic()
    for primitive in definitions.primitives().values():
        if primitive.regex:
            for text in ("a" * 2000, "1" * 2000, "/" * 2000, " " * 2000, "A=" * 1000):
                try:
                    regex.fullmatch(primitive.regex, text)
                except FhirPathError as error:
                    assert "costly" in error.message or "look-ahead" in error.message
    assert time.monotonic() - started < 60
