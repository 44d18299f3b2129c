"""`_text` and `_content`: folded words, phrases, beginnings, OR and NOT, alike on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import fulltext, index, query
from fhir_server.search.plan import Plan
from fhir_server.store.engine import Store

DIV = '<div xmlns="http://www.w3.org/1999/xhtml">{}</div>'


def put(store: Store, key: str, narrative: str = "", note: str = "") -> None:
    one: dict[str, Any] = {"resourceType": "Condition", "id": key, "subject": {"reference": "Patient/p"}}
    if narrative:
        one["text"] = {"status": "generated", "div": DIV.format(narrative)}
    if note:
        one["note"] = [{"text": note}]
    store.write(SYSTEM, lambda tx: tx.create(one, index.rows(one)))


def ids(store: Store, name: str, text: str) -> str:
    with store.read(SYSTEM) as snapshot:
        page = snapshot.search(query.parse("Condition", [(name, text), ("_sort", "_id"), ("_total", "accurate")]))
    assert page.total == len(page.matches)
    return " ".join(one.id for one in page.matches)


CASES = [
    ("mélanome", "a b"),
    ("MELANOME métastases", "a"),
    ("melanome AND metastases", "a"),
    ("metastases OR naevus", "a c"),
    ("(metastases OR naevus) NOT melanome", "c"),
    ("melanome -metastases", "b"),
    ("NOT melanome", "c d"),
    ('"superficiel extensif"', "a"),
    ('"extensif superficiel"', ""),
    ("meta*", "a"),
    ("mela* -supe*", "b"),
    ("absent", ""),
    ("class", ""),
    ("l'épaule", "b"),
    ("l’epaule", "b"),
    ("3mg 1e5", "d"),
    ("12*", "d"),
]


def test_words_are_found_without_case_and_accents(store: Store) -> None:
    put(store, "a", "<p class='x'>Mélanome superficiel&#160;extensif, métastases</p>")
    put(store, "b", "mélanome de l’épaule")
    put(store, "c", "Nævus bénin", "mélanome évoqué")
    put(store, "d", "3mg 1e5 123 x_y")
    for text, expected in CASES:
        assert ids(store, "_text", text) == expected, text
    assert ids(store, "_content", "melanome") == "c"
    assert ids(store, "_content", '"melanome evoque"') == "c"
    store.write(SYSTEM, lambda tx: tx.delete("Condition", "c"))
    assert ids(store, "_content", "melanome") == ""


def test_words_follow_an_update(store: Store) -> None:
    put(store, "a", "avant")
    one: dict[str, Any] = {
        "resourceType": "Condition",
        "id": "a",
        "text": {"status": "generated", "div": DIV.format("après")},
    }
    store.write(SYSTEM, lambda tx: tx.update(one, index.rows(one)))
    assert (ids(store, "_text", "avant"), ids(store, "_text", "apres")) == ("", "a")


def test_full_text_goes_with_other_parameters_and_chains(store: Store) -> None:
    put(store, "a", "douleur")
    patient = {"resourceType": "Patient", "id": "p", "name": [{"family": "Noël"}], "text": {"div": DIV.format("Noël")}}
    store.write(SYSTEM, lambda tx: tx.create(patient, index.rows(patient)))
    with store.read(SYSTEM) as snapshot:
        for pairs, count in (
            ([("_text", "douleur"), ("subject:Patient.name", "noel")], 1),
            ([("subject:Patient._text", "noel"), ("_text", "douleur")], 1),
            ([("subject:Patient._content", "autre")], 0),
        ):
            assert len(snapshot.search(query.parse("Condition", pairs)).matches) == count
        plan = query.parse("Patient", [("_has:Condition:subject:_text", "douleur")])
        assert len(snapshot.search(plan).matches) == 1


@pytest.mark.parametrize(
    "text", ["(a", "a)", '"a', "OR a", "a OR", "NOT", "()", "a AND", "-", '""', "*", "§", "a (OR b)", "a b OR"]
)
def test_what_cannot_be_read_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(errors.Invalid, match="It takes words") as caught:
        query.parse("Condition", [("_text", text)])
    assert caught.value.status == 400


def test_full_text_is_bounded() -> None:
    for text in (" ".join(["a"] * 51), "(" * 30 + "a" + ")" * 30, "NOT " * 30 + "a"):
        with pytest.raises(errors.TooLarge):
            query.parse("Condition", [("_text", text)])
    long = "mot " * 100_000
    assert len(fulltext.words(long)) <= fulltext.MAX_CHARACTERS
    assert fulltext.words("x" * 100 + " court") == "court"
    deep: dict[str, object] = {"text": "fond"}
    for _ in range(5_000):
        deep = {"contained": [deep]} if len(deep) % 2 else {"extension": deep}
    assert isinstance(fulltext.content(deep), str)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='abé"()-* ORNTAD', max_size=30))
def test_any_text_is_a_search_or_an_error_with_a_sentence(text: str) -> None:
    try:
        assert isinstance(query.parse("Condition", [("_content", text)]), Plan)
    except errors.PasserelleError as problem:
        assert problem.status in (400, 413)
        assert problem.diagnostics
