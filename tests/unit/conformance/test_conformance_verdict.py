"""Bounded evidence and deadlines."""

from __future__ import annotations

import pytest

from conformance.verdict import EXCERPT, EXCHANGES, Deadline, Failed, Overdue, Transcript, expect


def test_an_expectation_that_holds_says_nothing() -> None:
    expect([1], "something", "something")
    with pytest.raises(Failed, match="expected a; found b"):
        expect("", "a", "b")


def test_long_excerpts_are_cut() -> None:
    transcript = Transcript()
    transcript.sent("x" * 1_000_000)
    (kept,) = transcript.excerpts()
    assert len(kept) < EXCERPT + 100
    assert "characters or more" in kept


def test_many_exchanges_keep_the_first_and_the_latest() -> None:
    transcript = Transcript()
    for number in range(1000):
        transcript.received(f"answer {number}")
    kept = transcript.excerpts()
    assert len(kept) == EXCHANGES + 1
    assert kept[0] == "< answer 0"
    assert kept[-1] == "< answer 999"
    assert any("976 exchanges left out" in one for one in kept)


def test_secrets_are_blanked_before_the_cut() -> None:
    transcript = Transcript(("TOPSECRET",))
    transcript.sent("x" * (EXCERPT - 4) + "TOPSECRET")
    assert "TOPS" not in transcript.excerpts()[0]


def test_a_deadline_that_has_passed_raises() -> None:
    over = Deadline.after(-1)
    with pytest.raises(Overdue):
        over.remaining()
    with pytest.raises(Overdue):
        over.within(10)
    assert over.remaining_or_zero() == 0


def test_a_shorter_wait_stays_within_the_deadline() -> None:
    assert Deadline.after(1).within(100).remaining() <= 1
    assert Deadline.after(100).within(1).remaining() <= 1
