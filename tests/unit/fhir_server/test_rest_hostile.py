"""Hostile requests to the FHIR API: each is answered with an OperationOutcome that names the element and the remedy,
and nothing is stored. On both databases, because some of it reaches them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hubs import hub_on
from rest_calls import OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.store.engine import Store

Resource = dict[str, Any]


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


@pytest.fixture
def light(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    """For what is refused before it reaches a database."""
    return hub_on(open_url(sqlite_url))


def versions(hub: Hub) -> int:
    with hub.store.read(SYSTEM) as snapshot:
        return len(snapshot.history(count=1000).entries)


def refused(answer: Answer, status: int) -> Resource:
    """The first issue of a refusal; it has words and a place."""
    assert answer.status == status, answer.body[:500]
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome"
    assert all(issue["diagnostics"] and issue["expression"] for issue in outcome["issue"])
    return answer.issue


def text_of(**members: str) -> bytes:
    """A Patient with raw JSON members."""
    more = "".join(f',"{name}":{value}' for name, value in members.items())
    return f'{{"resourceType":"Patient","id":"x"{more}}}'.encode()


# name -> (body, status, a word of the answer, the expression)
BODIES: dict[str, tuple[bytes, int, str, str]] = {
    "nothing": (b"", 400, "no body", "Patient"),
    "blanks": (b" \n", 400, "no body", "Patient"),
    "no json": (b"hello", 400, "line 1", "Patient"),
    "cut off": (b'{"resourceType":"Patient",\n "id":', 400, "line 2", "Patient"),
    "a list": (b"[1]", 400, "object", "Patient"),
    "a word": (b'"Patient"', 400, "object", "Patient"),
    "two objects": (text_of() + b"{}", 400, "line 1", "Patient"),
    "not utf-8": (b'{"resourceType":"Patient","id":"\xff"}', 400, "UTF-8", "Patient"),
    "utf-16": (text_of().decode().encode("utf-16"), 400, "", "Patient"),
    "a key twice": (text_of(active="true,\"active\":false"), 400, "twice", "active"),
    "a key twice deep down": (text_of(name='[{"family":"A","family":"B"}]'), 400, "twice", "name[0].family"),
    "a NUL": (text_of(name='[{"family":"A\\u0000B"}]'), 400, "NUL", "name[0].family"),
    "a lone surrogate": (text_of(name='[{"family":"\\ud800"}]'), 400, "surrogate", "name[0].family"),
    "a tab in text": (b'{"resourceType":"Patient","id":"x\ty"}', 400, "line 1", "Patient"),
    "NaN": (text_of(multipleBirthInteger="NaN"), 400, "line 1", "multipleBirthInteger"),
    "deep lists": (text_of(name="[" * 200 + "]" * 200), 400, "", ""),
    "deep objects": (text_of(extension='[{"extension":' * 200 + "[]" + "}]" * 200), 400, "", ""),
    "no type": (b'{"id":"x"}', 400, "resourceType", "Patient"),
    "a type that is none": (b'{"resourceType":"Pizza","id":"x"}', 400, "Pizza", "Pizza"),
    "a type that is a number": (b'{"resourceType":5,"id":"x"}', 400, "resourceType", "Patient"),
    "another type": (b'{"resourceType":"Group","id":"x"}', 400, "Group", "Group"),
    "an unknown element": (text_of(colour='"blue"'), 422, "colour", "Patient.colour"),
    "a wrong type": (text_of(active='"yes"'), 422, "boolean", "Patient.active"),
    "an object for a list": (text_of(name='{"family":"A"}'), 422, "", "Patient.name"),
    "a list for a word": (text_of(gender='["male"]'), 422, "", "Patient.gender"),
    "an unknown code": (text_of(gender='"m"'), 422, "", "Patient.gender"),
    "no date": (text_of(birthDate='"14/02/1990"'), 422, "", "Patient.birthDate"),
    "null": (text_of(active="null"), 422, "", "Patient.active"),
    "an empty list": (text_of(name="[]"), 422, "", "Patient.name"),
    "an empty object": (text_of(name="[{}]"), 422, "", "Patient.name[0]"),
    "an empty word": (text_of(gender='""'), 422, "", "Patient.gender"),
    "a huge number": (text_of(multipleBirthInteger="9" * 400), 422, "", "Patient.multipleBirthInteger"),
    "two choices": (text_of(deceasedBoolean="true", deceasedDateTime='"2020"'), 422, "", "Patient"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_broken_body_is_refused_with_its_place(light: Hub, name: str) -> None:
    body, status, word, place = BODIES[name]
    before = versions(light)
    for method, url in (("POST", "Patient"), ("PUT", "Patient/x")):
        issue = refused(ask(light, method, url, body), status)
        assert word in issue["diagnostics"]
        assert issue["expression"][0].endswith(place.rpartition("Patient.")[2]) or place in issue["expression"][0]
    assert versions(light) == before


@pytest.mark.parametrize("key", ["x" * 65, "x y", "x/y", "_x", "é", "a\u0000b", "a?b", "..%2f", "x" * 5000])
def test_an_id_that_is_none_is_refused_everywhere(hub: Hub, key: str) -> None:
    before = versions(hub)
    for method, url, body in (
        ("GET", f"Patient/{quote(key, safe='')}", None),
        ("PUT", f"Patient/{quote(key, safe='')}", PATIENT | {"id": key}),
        ("DELETE", f"Patient/{quote(key, safe='')}", None),
        ("GET", f"Patient/p/_history/{quote(key, safe='')}", None),
    ):
        answer = ask(hub, method, url, body)
        assert answer.status in (400, 404, 405, 422), (method, answer.body[:300])
        refused(answer, answer.status)
    assert versions(hub) == before


@pytest.mark.parametrize("version", ["0", "-1", "99", "9" * 30, "\u00b2", "\u0661", "x", "1.0", " 1"])
def test_a_version_that_never_was_is_not_found(hub: Hub, version: str) -> None:
    stored(hub, PATIENT)
    answer = ask(hub, "GET", f"Patient/p/_history/{quote(version)}")
    refused(answer, 404)


@pytest.mark.parametrize("told", ["x", '"x"', "W/", '""', "\u00b2", "9" * 40, "*", '"1", "2"', "-1", 'W/"1', "\u0661"])
def test_an_if_match_that_is_no_version_is_refused(light: Hub, told: str) -> None:
    stored(light, PATIENT)
    before = versions(light)
    for method, body in (("PUT", PATIENT), ("DELETE", None)):
        answer = ask(light, method, "Patient/p", body, if_match=told)
        if answer.status in (200, 204):
            assert told == 'W/"1', "read as the version it names"
            return
        refused(answer, answer.status)
        assert answer.status in (400, 412)
    assert versions(light) == before


@pytest.mark.parametrize(
    "query",
    [
        "nonsense=1", "name:wrong=x", "birthdate=yesterday", "birthdate=zz2020", "_sort=nonsense", "_include=x",
        "_count=x", "_count=-1", "_count=\u00b2", "_count=1&_count=x", "identifier=a|b|c|d", "_has:x",
        "_has:Observation:patient:x=1", "general-practitioner.nonsense=1",
        "_page=", "_page=x", "_page=WzFd", "_page=W10", "_page=bnVsbA",
        "_page=" + "A" * 9000, "_summary=maybe", "_elements=" + ",".join(f"e{n}" for n in range(500)), "_total=some",
        "name=" + "," * 5000, "&".join(["name=x"] * 500), ".".join(["link:Patient.link"] * 50) + "=x", "_filter=x",
        "name=%00", "_id=a%00b", "%00=x", "_lastUpdated=9999999999999999999", "_text=x", "_query=x",
    ],
)  # fmt: skip
def test_a_hostile_query_is_refused_or_finds_nothing(hub: Hub, query: str) -> None:
    stored(hub, PATIENT)
    for method, url, body in (
        ("GET", f"Patient?{query}", None),
        ("POST", "Patient/_search", quote(query, safe="=&%:.,|").encode()),
    ):
        more = {"content_type": "application/x-www-form-urlencoded"} if body is not None else {}
        answer = ask(hub, method, url, body, **more)
        assert answer.status in (200, 400, 404, 413, 422), answer.body[:300]
        if answer.status == 200:
            assert query.startswith(("_page=", "_count=1&", "name=", "_elements", "_text=")), answer.body[:300]
        else:
            refused(answer, answer.status)


@pytest.mark.parametrize(
    "value",
    [
        "' OR 1=1 --",
        '"; DROP TABLE resource; --',
        "%",
        "_",
        "\\",
        "x' UNION SELECT 1 --",
        "\u202e",
        "\U0001f600",
        "x" * 9000,
    ],
)
def test_text_of_a_search_is_only_text(hub: Hub, value: str) -> None:
    stored(hub, PATIENT, PATIENT | {"id": "q", "name": [{"family": value[:200]}]})
    for name in ("name", "name:exact", "identifier", "_id", "general-practitioner", "language"):
        answer = ask(hub, "GET", f"Patient?{name}={quote(value, safe='')}")
        assert answer.status in (200, 400), answer.body[:300]
    assert ask(hub, "GET", "Patient?_count=0&_total=accurate").json()["total"] == 2


def page_link(hub: Hub, url: str) -> str:
    """The token of the second page."""
    link = next(one["url"] for one in ask(hub, "GET", url).json()["link"] if one["relation"] == "next")
    return str(link.partition("_page=")[2].partition("&")[0])


def test_a_page_link_of_another_search_is_refused(hub: Hub) -> None:
    stored(hub, *(PATIENT | {"id": f"p{n}"} for n in range(5)))
    token = page_link(hub, "Patient?_count=2")
    assert ask(hub, "GET", f"Patient?_count=2&_page={token}").status == 200
    for other in (
        "Patient?_sort=birthdate",
        "Patient?_count=3",
        "Observation?_count=2",
        "Patient/p1/_history?_count=2",
    ):
        refused(ask(hub, "GET", f"{other}&_page={token}"), 400)


@pytest.mark.parametrize(
    "url", ["Patient?_count=2", "_history?_count=2", "AuditEvent?_count=2", "?_type=Patient&_count=2"]
)
def test_a_page_link_that_was_changed_is_refused(hub: Hub, url: str) -> None:
    stored(hub, *(PATIENT | {"id": f"p{n}"} for n in range(5)))
    token = page_link(hub, url)
    assert ask(hub, "GET", f"{url}&_page={token}").status == 200
    for place in range(0, len(token), 5):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        refused(ask(hub, "GET", f"{url}&_page={changed}"), 400)


@pytest.mark.parametrize(
    "position", [["x", "y"], [None, None], [1, "x"], [True, 1], [1, 2, 3, 4], [1e308, 1], ["\u0000", 1]]
)
def test_a_forged_page_link_is_refused(hub: Hub, position: list[object]) -> None:
    stored(hub, *(PATIENT | {"id": f"p{n}"} for n in range(3)))
    for front in (b"", bytes(16)):
        token = base64.urlsafe_b64encode(front + json.dumps(position).encode()).decode().rstrip("=")
        for url in ("Patient?", "Patient?_sort=name&", "Patient/p0/_history?", "AuditEvent?"):
            refused(ask(hub, "GET", f"{url}_page={token}"), 400)


def test_a_resource_as_deep_as_is_allowed_can_be_stored_found_and_shown(hub: Hub) -> None:
    depth = next(d for d in range(100, 0, -1) if ask(hub, "PUT", "Patient/p", nested(d)).status in (200, 201))
    assert depth > 20
    for url in ("Patient/p", "Patient?_id=p", "Patient/p/_history"):
        for layout in ("", "_pretty=true"):
            answer = ask(hub, "GET", f"{url}{'&' if '?' in url else '?'}{layout}")
            assert answer.status == 200, (url, layout, answer.body[:300])


def nested(depth: int) -> bytes:
    inner = '{"url":"urn:x","valueBoolean":true}'
    for _ in range(depth):
        inner = f'{{"url":"urn:x","extension":[{inner}]}}'
    return text_of(extension=f"[{inner}]").replace(b'"id":"x"', b'"id":"p"')


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", ""), ("GET", "Patient/p/q"), ("PUT", "metadata"), ("DELETE", "metadata"),
     ("POST", "Patient/p"), ("GET", "Patient/$validate"), ("GET", "Patient/p/$everything"), ("GET", "patient"),
     ("GET", "$export"),
     ("GET", "Patient//p"), ("GET", "//"), ("POST", "Patient/p/_history"), ("OPTIONS", "Patient")],
)  # fmt: skip
def test_what_is_not_offered_is_told_in_the_language_of_the_api(light: Hub, method: str, path: str) -> None:
    answer = ask(light, method, path, PATIENT if method in ("PUT", "POST") else None)
    assert answer.status in (404, 405), answer.body[:300]
    refused(answer, answer.status)


def test_every_refusal_is_the_same_on_every_verb_for_a_type_nobody_knows(light: Hub) -> None:
    for method, path, body in (
        ("GET", "Pizza/1", None), ("GET", "Pizza", None), ("POST", "Pizza", {"resourceType": "Pizza"}),
        ("PUT", "Pizza/1", {"resourceType": "Pizza", "id": "1"}), ("DELETE", "Pizza/1", None),
        ("GET", "Pizza/1/_history", None),
    ):  # fmt: skip
        assert "Pizza" in refused(ask(light, method, path, body), 404)["diagnostics"]


def test_numbers_keep_their_spelling(hub: Hub) -> None:
    for lexeme in ("72.50", "1e2", "0.000000100", "-0", "100", "12345678901234567890.12345", "0.0"):
        body = json.dumps(OBSERVATION).replace('"status"', f'"valueQuantity":{{"value":{lexeme}}},"status"', 1).encode()
        assert ask(hub, "PUT", "Observation/o", body).status in (200, 201), lexeme
        assert f'"value":{lexeme}}}'.encode() in ask(hub, "GET", "Observation/o").body
