"""`Prefer: handling=lenient` leaves out what the server does not know, and never a modifier: without it a search finds
more than was asked for, and nobody sees it (https://hl7.org/fhir/R4/search.html#modifiers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hubs import hub_on
from rest_calls import OBSERVATION, PATIENT, ask, stored

from fhir_server import errors
from fhir_server.changes import Hub
from fhir_server.search import query
from fhir_server.store.engine import Store

MODIFIERS = [
    ("Patient", "family:sounds-like", "x"),
    ("Patient", "gender:exact", "x"),
    ("Patient", "birthdate:contains", "2020"),
    ("Patient", "identifier:identifier", "x"),
    ("Patient", "general-practitioner:text", "x"),
    ("Observation", "code:in", "http://x.org/vs"),
    ("Observation", "code:not-in", "http://x.org/vs"),
    ("Observation", "code:above", "a"),
    ("Observation", "code:below", "a"),
    ("Observation", "subject:above", "a"),
    ("Observation", "subject:below", "a"),
    ("Observation", "subject:nobody.name", "a"),
    ("Observation", "subject:Patient.gender:in", "a"),
    ("Observation", "value-quantity:not", "1"),
    ("Observation", "code-value-quantity:not", "a$1"),
    ("Patient", "_has:Observation:subject:code:in", "a"),
    ("ValueSet", "url:exact", "http://x.org"),
    ("RiskAssessment", "probability:missing-not", "1"),
    ("Observation", "code-value-quantity:missing", "true"),
    ("Observation", "subject:Practitioner", "x"),
    ("Observation", "subject:Practitioner.family", "x"),
    ("Patient", "_id:contains", "x"),
    ("Patient", "_lastUpdated:exact", "2026"),
    ("Location", "near:x", "48.8|2.3|1|km"),
    ("Patient", "_text:exact", "x"),
    ("Patient", "_content:x", "x"),
    ("Observation", "subject:Patient._text:exact", "x"),
    ("Patient", "_filter:x", "gender eq male"),
    ("Patient", "_list:x", "1"),
    ("Patient", "_type:not", "Patient"),
    ("", "_type:not", "Patient"),
    ("Patient", "_query:x", "x"),
    ("Patient", "_include:foo", "Patient:organization"),
    ("Patient", "_revinclude:foo", "Observation:subject"),
    ("Patient", "_has:Observation:subject:code:foo", "a"),
    ("Patient", "_count:x", "1"),
    ("Patient", "_sort:asc", "family"),
    ("Patient", "_total:x", "none"),
    ("Patient", "_contained:x", "true"),
    ("Patient", "_containedType:x", "contained"),
    ("Patient", "_summary:x", "true"),
    ("Patient", "_elements:exclude", "name"),
]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url))


@pytest.mark.parametrize(("kind", "name", "text"), MODIFIERS)
def test_a_modifier_the_parameter_has_not_is_refused_lenient_or_not(kind: str, name: str, text: str) -> None:
    for lenient in (False, True):
        with pytest.raises(errors.Invalid) as caught:
            query.parse(kind, [("nonsense", "1"), (name, text)], lenient=lenient)
        issues = caught.value.issues
        assert caught.value.status == 400 and len(issues) == (1 if lenient else 2)
        assert name.rpartition(":")[2].partition(".")[0] in issues[-1].diagnostics


@pytest.mark.parametrize("name", ["_id", "_lastUpdated", "_tag", "_profile", "_security", "_source"])
@pytest.mark.parametrize("handling", ["strict", "lenient"])
def test_what_every_resource_has_may_be_asked_for_as_missing(hub: Hub, name: str, handling: str) -> None:
    label = {"system": "urn:l", "code": "l"}
    said = {"tag": [label], "security": [label], "profile": ["http://x.org/p"], "source": "http://x.org/s"}
    stored(hub, PATIENT, OBSERVATION | {"id": "said", "meta": said}, OBSERVATION)

    def found(asked: str) -> list[str]:
        answer = ask(hub, "GET", f"Observation?{asked}&_sort=_id", prefer=f"handling={handling}")
        assert answer.status == 200
        return [one["resource"]["id"] for one in answer.entries]

    with_one, without = (["o", "said"], []) if name in ("_id", "_lastUpdated") else (["said"], ["o"])
    assert found(f"{name}:missing=false") == with_one
    assert found(f"{name}:missing=true") == without


@pytest.mark.parametrize("name", ["_include:iterate", "_revinclude:iterate"])
def test_what_comes_along_has_the_one_modifier_of_r4(name: str) -> None:
    (include,) = query.parse("Patient", [(name, "Patient:organization")]).includes
    assert include.iterate


def test_every_modifier_that_is_refused_is_told_and_what_is_left_out_is_not() -> None:
    pairs = [("nonsense", "1"), ("gender:in", "x"), ("birthdate", "yesterday"), ("name:sounds-like", "x")]
    with pytest.raises(errors.Invalid) as caught:
        query.parse("Patient", pairs, lenient=True)
    told = [one.diagnostics for one in caught.value.issues]
    assert len(told) == 2 and "terminology" in told[0] and ":contains" in told[1]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_leniency_finds_nobody_by_half_a_question(hub: Hub, method: str) -> None:
    stored(hub, PATIENT, OBSERVATION)

    def found(asked: str) -> tuple[int, list[str]]:
        form: dict[str, Any] = {"content_type": "application/x-www-form-urlencoded"} if method == "POST" else {}
        path, body = ("Observation/_search", asked.encode()) if form else (f"Observation?{asked}", None)
        answer = ask(hub, method, path, body, prefer="handling=lenient", **form)
        if answer.status != 200:
            assert answer.issue["diagnostics"]
            return answer.status, []
        links = {one["relation"]: one["url"] for one in answer.json()["link"]}
        assert "colour" not in links["self"]
        return answer.status, [one["resource"]["id"] for one in answer.entries]

    assert found("colour=blue&status=final") == (200, ["o"])
    assert found("colour:exact=blue&status=final") == (200, ["o"]), "the parameter itself is not known"
    assert found("status:in=" + quote("http://x.org/vs", safe="")) == (400, [])
    assert found("status:exact=final") == (400, [])
    assert found("_text:exact=x") == (400, [])
    assert found("_type:not=Observation") == (400, [])
