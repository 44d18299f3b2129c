"""What the mail of a question says, and what it never says."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from report_sources import SITE, obstetric

from mappers.fhir_to_question import question
from mappers.order_number import OrderNumber
from mssante.letter import Letter

REPORT = obstetric()
ORDER = OrderNumber("DEM-2026-90", "RIS")


def letter(*payload: Any, **more: Any) -> Letter:
    arguments: dict[str, Any] = {
        "site": SITE,
        "asked_at": datetime(2026, 3, 2, 23, 30, tzinfo=UTC),
        "answer_to": "e@x.mssante.fr",
    }
    return question({"payload": list(payload)}, ORDER, REPORT.patient, REPORT.expert, **(arguments | more))


def test_the_letter_names_who_asks_the_order_and_where_to_answer() -> None:
    made = letter({"contentString": "Quel est le terme ?"}, phone="01 00 00 00 00")
    for told in (REPORT.expert.family, REPORT.expert.org.name, "n° DEM-2026-90", "Quel est le terme ?",
                 "Répondez par messagerie sécurisée à e@x.mssante.fr, ou appelez le 01 00 00 00 00.",
                 "par FHIR"):  # fmt: skip
        assert told in made.text, told
    assert (made.family, made.birth_date, made.codes) == (REPORT.patient.birth_family, REPORT.patient.birth_date, ())
    assert made.performed == date(2026, 3, 3), "the day on the site's clock"
    assert "appelez" not in letter({"contentString": "?"}).text and "http" not in made.text


def test_attachments_are_counted_and_not_sent() -> None:
    made = letter({"contentString": "Voir"}, {"contentAttachment": {"data": "QUJD"}}, {"contentAttachment": {}})
    assert "Pièces jointes, qui ne sont pas dans ce courriel : 2." in made.text and "QUJD" not in made.text
    assert "Pièces jointes" not in letter({"contentString": "Voir"}).text


def test_a_question_that_says_nothing_is_never_sent_and_an_endless_one_is_cut() -> None:
    for payload in ((), ({"contentString": "  "},)):
        with pytest.raises(ValueError, match="says nothing"):
            letter(*payload)
    text = letter({"contentString": "x" * 1_000_000}).text
    assert len(text) < 25_000 and "xx […]\n" in text
    assert "[…]" not in letter({"contentString": "x" * 20_000}).text
