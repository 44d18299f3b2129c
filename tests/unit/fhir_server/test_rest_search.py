"""Search as a client walks it: the links of a page, what a page holds, and the same by GET and by POST."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hubs import hub_on
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.store.engine import Store
from profiles.validator.structure import check

Resource = dict[str, Any]
FORM = {"content_type": "application/x-www-form-urlencoded"}


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def people(count: int) -> list[Resource]:
    return [PATIENT | {"id": f"p{n:02}", "birthDate": f"19{70 + n % 7}-01-01"} for n in range(count)]


def link(answer: Answer, relation: str) -> str:
    return next((str(one["url"]) for one in answer.json()["link"] if one["relation"] == relation), "")


def ids(answer: Answer) -> list[str]:
    return [one["resource"]["id"] for one in answer.entries if one["search"]["mode"] == "match"]


def walked(hub: Hub, url: str, meanwhile: Any = None) -> list[str]:
    """The ids of every page from the first to the last."""
    seen: list[str] = []
    answer = ask(hub, "GET", url)
    while True:
        assert answer.status == 200, answer.body
        seen += ids(answer)
        following = link(answer, "next")
        if not following:
            return seen
        assert following.startswith(f"{BASE}/")
        if meanwhile is not None:
            meanwhile()
        answer = ask(hub, "GET", following.removeprefix(f"{BASE}/"))


@pytest.mark.parametrize("sort", ["", "_sort=birthdate", "_sort=-birthdate,_id", "_sort=-_lastUpdated", "_sort=_id"])
def test_pages_hold_every_match_once_in_order(hub: Hub, sort: str) -> None:
    stored(hub, *people(11))
    whole = ids(ask(hub, "GET", f"Patient?{sort}"))
    assert sorted(whole) == [f"p{n:02}" for n in range(11)]
    assert walked(hub, f"Patient?_count=3&{sort}") == whole


def test_what_did_not_change_while_paging_appears_exactly_once(hub: Hub) -> None:
    stored(hub, *people(9))
    fresh = iter(range(100))

    def meanwhile() -> None:
        number = next(fresh)
        stored(hub, PATIENT | {"id": f"new{number}"}, PATIENT | {"id": "p04", "birthDate": f"20{number:02}-01-01"})

    seen = walked(hub, "Patient?_count=2&_sort=_id", meanwhile)
    assert [one for one in seen if one.startswith("p") and one != "p04"] == [f"p{n:02}" for n in range(9) if n != 4]
    assert seen.count("p04") <= 1


def test_the_self_link_says_what_was_asked_whatever_signs_it_holds(hub: Hub) -> None:
    asked = [("name", "é+&=%"), ("identifier", "urn:oid:1.2|a/b"), ("birthdate", "ge2020-01-01T00:00:00+01:00")]
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in asked)
    told = urlsplit(link(ask(hub, "GET", f"Patient?{query}"), "self"))
    assert f"{told.scheme}://{told.netloc}{told.path}" == f"{BASE}/Patient"
    assert parse_qsl(told.query) == asked


def test_under_lenience_the_self_link_leaves_out_what_was_not_used(hub: Hub) -> None:
    stored(hub, *people(3))
    assert ask(hub, "GET", "Patient?nonsense=1&active=true").status == 400
    answer = ask(hub, "GET", "Patient?nonsense=1&active=true&_count=1", prefer="handling=lenient")
    assert answer.status == 200 and len(ids(answer)) == 1
    for relation in ("self", "next"):
        told = dict(parse_qsl(urlsplit(link(answer, relation)).query))
        assert "nonsense" not in told and told["active"] == "true"


def test_a_form_finds_what_an_address_finds_and_its_pages_go_on(hub: Hub) -> None:
    stored(hub, *people(5))
    posted = ask(hub, "POST", "Patient/_search", b"active=true&_count=2&_sort=_id", **FORM)
    assert ids(posted) == ids(ask(hub, "GET", "Patient?active=true&_count=2&_sort=_id"))
    mixed = ask(hub, "POST", "Patient/_search?_count=2", b"active=true&_sort=_id", **FORM)
    assert ids(mixed) == ids(posted)
    seen = ids(posted) + walked(hub, link(posted, "next").removeprefix(f"{BASE}/"))
    assert seen == [f"p{n:02}" for n in range(5)]


@pytest.mark.parametrize(
    ("kind", "body", "status"), [("application/json", b"{}", 415), (FORM["content_type"], b"\xff=\xfe", 400)]
)
def test_a_form_that_is_none_is_refused(hub: Hub, kind: str, body: bytes, status: int) -> None:
    answer = ask(hub, "POST", "Patient/_search", body, content_type=kind)
    assert answer.status == status and answer.issue["expression"]


def test_a_page_is_a_valid_bundle_with_full_urls_and_what_was_included(hub: Hub) -> None:
    stored(hub, PATIENT, OBSERVATION)
    answer = ask(hub, "GET", "Observation?_include=Observation:subject&_total=accurate")
    bundle = answer.json()
    assert check(bundle) == []
    assert (bundle["type"], bundle["total"]) == ("searchset", 1)
    modes = {one["fullUrl"]: one["search"]["mode"] for one in bundle["entry"]}
    assert modes == {f"{BASE}/Observation/o": "match", f"{BASE}/Patient/p": "include"}


def test_nothing_found_is_an_empty_page(hub: Hub) -> None:
    answer = ask(hub, "GET", "Patient?name=nobody")
    assert answer.status == 200 and answer.entries == [] and link(answer, "next") == ""
    assert "entry" not in answer.json(), "R4 has no empty lists"


def test_a_count_beyond_the_limit_is_cut_and_goes_on(hub: Hub) -> None:
    stored(hub, *people(3))
    assert len(ids(ask(hub, "GET", "Patient?_count=999999"))) == 3
    none = ask(hub, "GET", "Patient?_count=0")
    assert none.entries == [] and none.json()["total"] == 3


def test_what_was_deleted_is_found_no_more(hub: Hub) -> None:
    stored(hub, *people(2))
    ask(hub, "DELETE", "Patient/p00")
    assert ids(ask(hub, "GET", "Patient?active=true")) == ["p01"]
    stored(hub, people(1)[0])
    assert sorted(ids(ask(hub, "GET", "Patient?active=true"))) == ["p00", "p01"]


def test_several_types_are_searched_at_once_and_the_pages_go_on(hub: Hub) -> None:
    stored(hub, *people(5), OBSERVATION)
    whole = ask(hub, "GET", "?_type=Patient,Observation&_sort=_id&_count=100")
    assert whole.status == 200 and check(whole.json()) == []
    assert ids(whole) == ["o", *(f"p{n:02}" for n in range(5))]
    assert walked(hub, "?_type=Patient,Observation&_sort=_id&_count=2") == ids(whole)
    by_form = ask(hub, "POST", "_search", b"_type=Patient,Observation&_sort=_id&_count=4", **FORM)
    assert ids(by_form) == ids(whole)[:4]
    rest = walked(hub, link(by_form, "next").removeprefix(f"{BASE}/"))
    assert ids(by_form) + rest == ids(whole)


def test_a_type_that_is_none_is_refused_in_a_search_of_several(hub: Hub) -> None:
    assert ask(hub, "GET", "?_type=Patient,Nonsense").status == 400


def test_a_compartment_holds_what_belongs_to_it(hub: Hub) -> None:
    stored(hub, PATIENT, PATIENT | {"id": "other"}, OBSERVATION, OBSERVATION | {"id": "o2"})
    stored(hub, OBSERVATION | {"id": "not", "subject": {"reference": "Patient/other"}})
    answer = ask(hub, "GET", "Patient/p/Observation?_sort=_id&_count=1")
    assert ids(answer) == ["o"] and link(answer, "self").startswith(f"{BASE}/Patient/p/Observation?")
    assert walked(hub, "Patient/p/Observation?_sort=_id&_count=1") == ["o", "o2"]
    assert ask(hub, "GET", "Patient/p/Nonsense").status == 404


@pytest.mark.parametrize("name", ["", BASE, "https://hub.example.org/fhir", "http://alias.example.org/r4"])
def test_a_reference_is_found_by_each_of_our_names(store: Store, name: str) -> None:
    hub = hub_on(store, public_url="https://hub.example.org/fhir/", base_aliases="http://alias.example.org/r4/")
    stored(hub, PATIENT, OBSERVATION)
    subject = f"{name}/Patient/p".lstrip("/")
    for query in (
        f"subject={subject}",
        f"subject={subject}/_history/3",
        f"subject:Patient={subject}",
        f"patient={subject}",
        f"_filter=subject re {subject}",
    ):
        assert ids(ask(hub, "GET", f"Observation?{quote(query, safe='=')}")) == ["o"], query
    assert ids(ask(hub, "GET", f"Patient?_has:Observation:_id:subject={subject}")) == []
    assert ids(ask(hub, "GET", f"Observation?subject={subject}x")) == []


def test_a_reference_stored_before_its_base_was_ours_is_found_as_it_was_written(store: Store) -> None:
    old = "https://old.example.org/fhir"
    related = {"code": "replaces", "target": {"reference": f"{old}/DocumentReference/d"}}
    attached = [{"attachment": {"contentType": "text/plain"}}]
    document = {"resourceType": "DocumentReference", "id": "n", "status": "current", "content": attached}
    before = hub_on(store, public_url="https://hub.example.org/fhir")
    stored(before, PATIENT, OBSERVATION | {"subject": {"reference": f"{old}/Patient/p"}})
    stored(before, document | {"relatesTo": [related]})
    after = hub_on(store, public_url="https://hub.example.org/fhir", base_aliases=old)
    stored(after, OBSERVATION | {"id": "new"})
    for query in (
        f"subject={old}/Patient/p",
        f"subject={old}/Patient/p/_history/3",
        f"subject:Patient={old}/Patient/p",
        f"_filter=subject re {old}/Patient/p",
    ):
        assert ids(ask(after, "GET", f"Observation?{quote(query, safe='=')}&_sort=_id")) == ["new", "o"], query
    assert ids(ask(after, "GET", f"Observation?_filter=subject ne {old}/Patient/p")) == []
    assert ids(ask(after, "GET", "Observation?subject=Patient/p")) == ["new"]
    related_to = quote(f"replaces${old}/DocumentReference/d")
    for hub in (before, after):
        assert ids(ask(hub, "GET", f"DocumentReference?relationship={related_to}")) == ["n"]
    stored(after, ask(after, "GET", "Observation/o").json())
    assert ids(ask(after, "GET", "Observation?subject=Patient/p&_sort=_id")) == ["new", "o"]


@pytest.mark.parametrize("charset", ["iso-8859-1", '"ISO-8859-1"', "utf-16", "windows-1252"])
def test_a_form_in_another_charset_is_refused_naming_the_one_that_is_taken(hub: Hub, charset: str) -> None:
    body = "name=Léa".encode("iso-8859-1")
    kind = f"application/x-www-form-urlencoded; charset={charset}"
    answer = ask(hub, "POST", "Patient/_search", body, content_type=kind)
    assert (answer.status, answer.issue["code"]) == (415, "not-supported")
    assert "UTF-8" in answer.issue["diagnostics"]


def test_a_form_is_read_in_utf_8_or_not_at_all(hub: Hub) -> None:
    stored(hub, PATIENT)
    kind = "application/x-www-form-urlencoded; charset=UTF-8"
    for body in ("name=Léa".encode(), b"name=L%C3%A9a"):
        assert ids(ask(hub, "POST", "Patient/_search", body, content_type=kind)) == ["p"]
    for body in ("name=Léa".encode("iso-8859-1"), b"name=L%E9a"):
        answer = ask(hub, "POST", "Patient/_search", body, **FORM)
        assert answer.status == 400 and "cannot be read" in answer.issue["diagnostics"]


def test_a_canonical_of_this_server_is_found_as_it_was_written(hub: Hub) -> None:
    ours, versioned = f"{BASE}/Questionnaire/q", f"{BASE}/Questionnaire/q|2"
    answers = {"a": ours, "b": versioned, "c": "Questionnaire/q", "d": "http://example.org/Questionnaire/q"}
    for key, url in answers.items():
        content = {"resourceType": "QuestionnaireResponse", "id": key, "status": "completed", "questionnaire": url}
        stored(hub, content)
    for asked, expected in ((ours, "abc"), (versioned, "b"), (answers["d"], "d"), (f"{ours},{answers['d']}", "abcd")):
        answer = ask(hub, "GET", f"QuestionnaireResponse?questionnaire={quote(asked)}&_sort=_id")
        assert "".join(ids(answer)) == expected, asked


@pytest.mark.parametrize(
    "query",
    [
        "_profile=http://example.org/StructureDefinition/x",
        "_tag=urn:t|a",
        "_security=urn:s|R",
        "_source=urn:uuid:1",
        "_lastUpdated=gt2026-01-01&_id=mine",
    ],
)
def test_what_every_resource_has_is_searched_by_in_one_type_in_all_and_by_form(hub: Hub, query: str) -> None:
    meta = {
        "source": "urn:uuid:1",
        "profile": ["http://example.org/StructureDefinition/x"],
        "security": [{"system": "urn:s", "code": "R"}],
        "tag": [{"system": "urn:t", "code": "a"}],
    }
    other = {"tag": [{"system": "urn:t", "code": "b"}], "source": "urn:uuid:2"}
    stored(hub, PATIENT | {"id": "mine", "meta": meta}, PATIENT | {"id": "other", "meta": other}, OBSERVATION)
    assert ids(ask(hub, "GET", f"Patient?{query}")) == ["mine"]
    assert ids(ask(hub, "GET", f"?{query}")) == ["mine"]
    assert ids(ask(hub, "GET", f"?_type=Observation&{query}")) == []
    assert ids(ask(hub, "POST", "_search", query.encode(), **FORM)) == ["mine"]
