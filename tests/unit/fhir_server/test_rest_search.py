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
