"""What the entries of one Bundle call each other becomes `Type/id`: references, uris, narrative, versions; and nothing
else does. Rules of bundle.html#references and http.html#trules."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hubs import hub_on
from rest_calls import BASE, Answer, ask

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.errors import Invalid
from fhir_server.links import Links
from fhir_server.search.references import base_of
from fhir_server.store.engine import Store

Resource = dict[str, Any]
URN = "urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e"
OID = "urn:oid:1.2.250.1.999.4"
A, B = "http://a.example.org/fhir", "https://b.example.org/r4"
DIV = '<div xmlns="http://www.w3.org/1999/xhtml">%s</div>'


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url))


def person(name: str = "x", **more: Any) -> Resource:
    return {"resourceType": "Patient", "name": [{"text": name}]} | more


def basic(reference: str, **more: Any) -> Resource:
    return {"resourceType": "Basic", "code": {"text": "x"}, "subject": {"reference": reference}} | more


def entry(full_url: str, resource: Resource, method: str = "POST") -> Resource:
    url = resource["resourceType"] if method == "POST" else f"{resource['resourceType']}/{resource['id']}"
    return {"fullUrl": full_url, "resource": resource, "request": {"method": method, "url": url}}


def send(hub: Hub, *entries: Resource, kind: str = "transaction") -> Answer:
    return ask(hub, "POST", "", {"resourceType": "Bundle", "type": kind, "entry": list(entries)})


def made(hub: Hub, *entries: Resource) -> list[Resource]:
    """What each entry became, as it is read back."""
    answer = send(hub, *entries)
    assert answer.status == 200, answer.body[:500]
    places = [one["response"]["location"].partition("/_history/")[0] for one in answer.entries]
    return [ask(hub, "GET", place).json() for place in places]


def subject(resource: Resource) -> str:
    return str(resource["subject"]["reference"])


def refuse(value: str, path: str) -> str:
    """For what holds no conditional reference."""
    raise Invalid(value, expression=path)


# --- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [URN, OID, f"{A}/Patient/1", f"{BASE}/Patient/1", "http://a.example.org/x?y=1"])
def test_an_absolute_reference_to_a_full_url_becomes_the_id_the_server_gives(hub: Hub, address: str) -> None:
    patient, about = made(hub, entry(address, person()), entry("urn:uuid:2", basic(address)))
    assert subject(about) == f"Patient/{patient['id']}"


def test_a_relative_reference_means_the_entry_under_the_same_base(hub: Hub) -> None:
    patient, about = made(hub, entry(f"{A}/Patient/1", person()), entry(f"{A}/Basic/2", basic("Patient/1")))
    assert subject(about) == f"Patient/{patient['id']}"
    assert patient["id"] != "1"


def test_two_entries_of_two_bases_each_mean_their_own_patient(hub: Hub) -> None:
    ask(hub, "PUT", "Patient/1", person("ours", id="1"))
    first, second, *about = made(
        hub,
        entry(f"{A}/Patient/1", person("of a")),
        entry(f"{B}/Patient/1", person("of b")),
        entry(f"{A}/Basic/1", basic("Patient/1")),
        entry(f"{B}/Basic/1", basic("Patient/1")),
        entry("urn:uuid:3", basic("Patient/1")),
    )
    assert [subject(one) for one in about] == [f"Patient/{first['id']}", f"Patient/{second['id']}", "Patient/1"]


def test_a_relative_reference_that_names_no_entry_means_this_server(hub: Hub) -> None:
    _, about = made(hub, entry(f"{A}/Patient/1", person()), entry(f"{A}/Basic/1", basic("Patient/9")))
    assert subject(about) == "Patient/9"


@pytest.mark.parametrize("address", ["urn:uuid:0f8fad5b-0000-469f-a165-70867728950e", "urn:oid:1.2.3"])
def test_a_urn_that_is_no_full_url_is_an_error_at_its_place(hub: Hub, address: str) -> None:
    answer = send(hub, entry(URN, person()), entry("urn:uuid:2", basic(address, author={"reference": URN})))
    assert answer.status == 422
    assert (answer.issue["code"], answer.issue["expression"]) == (
        "not-found",
        ["Bundle.entry[1].resource.subject.reference"],
    )


def test_a_fragment_and_another_servers_address_stay(hub: Hub) -> None:
    contained = {"resourceType": "Patient", "id": "c", "name": [{"text": "in it"}]}
    inside, outside = made(
        hub,
        entry(f"{A}/Basic/c", basic("#c", contained=[contained])),
        entry(f"{A}/Basic/2", basic(f"{B}/Patient/1")),
    )
    assert (subject(inside), subject(outside)) == ("#c", f"{B}/Patient/1")


def test_references_within_contained_resources_and_extensions_are_replaced(hub: Hub) -> None:
    deep = {"resourceType": "Basic", "id": "c", "code": {"text": "x"}, "subject": {"reference": "Patient/1"}}
    extension = [{"url": "http://x.example.org/e", "valueReference": {"reference": f"{A}/Patient/1"}}]
    patient, about = made(
        hub,
        entry(f"{A}/Patient/1", person()),
        entry(f"{A}/Basic/1", basic("#c", contained=[deep], extension=extension)),
    )
    mine = f"Patient/{patient['id']}"
    assert about["contained"][0]["subject"]["reference"] == mine
    assert about["extension"][0]["valueReference"]["reference"] == mine


def test_an_entry_that_was_known_already_is_referred_to_under_its_id(hub: Hub) -> None:
    known = made(hub, entry(URN, people.patient(0)))[0]
    again, about = made(hub, entry(f"{A}/Patient/7", people.patient(0)), entry(f"{A}/Basic/1", basic("Patient/7")))
    assert (again["id"], subject(about)) == (known["id"], f"Patient/{known['id']}")


def test_the_entries_of_a_batch_do_not_know_each_other(hub: Hub) -> None:
    answer = send(hub, entry(URN, person()), entry("urn:uuid:2", basic(URN)), kind="batch")
    assert [one["response"]["status"][:3] for one in answer.entries] == ["201", "422"]


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_version_of_an_entry_becomes_the_version_it_is_given(hub: Hub) -> None:
    ask(hub, "PUT", "Patient/kept", person("first", id="kept"))
    kept = person("second", id="kept", meta={"versionId": "8"})
    _, new, *about = made(
        hub,
        entry(f"{A}/Patient/kept", kept, "PUT"),
        entry(f"{A}/Patient/new", person(meta={"versionId": "3"})),
        entry(f"{A}/Basic/1", basic("Patient/kept/_history/8")),
        entry("urn:uuid:2", basic(f"{A}/Patient/kept/_history/8")),
        entry(f"{A}/Basic/3", basic("Patient/new/_history/3")),
    )
    assert [subject(one) for one in about] == [
        "Patient/kept/_history/2",
        "Patient/kept/_history/2",
        f"Patient/{new['id']}/_history/1",
    ]
    assert ask(hub, "GET", "Patient/kept/_history/2").json()["name"] == [{"text": "second"}]


def test_an_entry_that_does_not_tell_its_version_is_the_one_referred_to(hub: Hub) -> None:
    new, about = made(hub, entry(f"{A}/Patient/1", person()), entry(f"{A}/Basic/1", basic("Patient/1/_history/5")))
    assert subject(about) == f"Patient/{new['id']}/_history/1"


def test_another_version_than_the_entrys_is_where_it_came_from(hub: Hub) -> None:
    patient = person(meta={"versionId": "3"})
    _, *about = made(
        hub,
        entry(f"{A}/Patient/1", patient),
        entry(f"{A}/Basic/1", basic("Patient/1/_history/2")),
        entry("urn:uuid:2", basic(f"{A}/Patient/1/_history/2")),
    )
    assert [subject(one) for one in about] == [f"{A}/Patient/1/_history/2"] * 2


def test_a_version_of_a_known_resource_is_the_stored_one(hub: Hub) -> None:
    known = made(hub, entry(URN, people.patient(0)))[0]
    ask(hub, "PUT", f"Patient/{known['id']}", people.patient(0) | {"id": known["id"], "telecom": [{"value": "1"}]})
    _, about = made(
        hub, entry(f"{A}/Patient/7", people.patient(0)), entry(f"{A}/Basic/1", basic("Patient/7/_history/4"))
    )
    assert subject(about) == f"Patient/{known['id']}/_history/2"


# --- uris, text and narrative ----------------------------------------------------------------------------------------

HELD: dict[str, tuple[Resource, bool]] = {
    "Attachment.url": ({"content": [{"attachment": {"url": URN}}]}, True),
    "a uri in an extension": ({"extension": [{"url": "http://x.example.org/e", "valueUri": URN}]}, True),
    "a url in an extension": ({"extension": [{"url": "http://x.example.org/e", "valueUrl": URN}]}, True),
    "a uuid in an extension": ({"extension": [{"url": "http://x.example.org/e", "valueUuid": URN}]}, True),
    "an extension of a primitive": (
        {"_description": {"extension": [{"url": "http://x.example.org/e", "valueUri": URN}]}, "description": "x"},
        True,
    ),
    "a canonical": ({"extension": [{"url": "http://x.example.org/e", "valueCanonical": URN}]}, False),
    "a string": ({"extension": [{"url": "http://x.example.org/e", "valueString": URN}]}, False),
    "markdown": ({"extension": [{"url": "http://x.example.org/e", "valueMarkdown": URN}]}, False),
    "a code": ({"extension": [{"url": "http://x.example.org/e", "valueCode": URN}]}, False),
    "Identifier.value": ({"identifier": [{"system": "urn:ietf:rfc:3986", "value": URN}]}, False),
    "Reference.display": ({"subject": {"display": URN}}, False),
    "a uri with more in it": ({"content": [{"attachment": {"url": f"{URN}#page=2"}}]}, False),
}


@pytest.mark.parametrize("element", HELD)
def test_links_are_replaced_by_the_type_of_their_element(hub: Hub, element: str) -> None:
    held, replaced = HELD[element]
    document = {"resourceType": "DocumentReference", "status": "current", "content": [{"attachment": {"title": "x"}}]}
    binary = {"resourceType": "Binary", "contentType": "text/plain", "data": "QQ=="}
    answer = send(hub, entry(URN, binary), entry("urn:uuid:2", document | held))
    assert answer.status == 200, answer.body[:500]
    binary_at, document_at = (
        one["response"]["location"].partition("/_history/")[0].rpartition("/fhir/")[2] for one in answer.entries
    )
    text = ask(hub, "GET", document_at).body.decode()
    assert (URN in text) is not replaced
    assert (binary_at in text) is replaced


def test_an_oid_is_replaced_too() -> None:
    links = Links((), conditional=refuse)
    links.name(OID, "Patient/p", "")
    extension = {"url": "http://x.example.org/e", "valueOid": OID}
    assert links.replaced({"resourceType": "Basic", "extension": [extension]}, "")["extension"][0]["valueOid"] == (
        "Patient/p"
    )


NARRATIVES = {
    f'<a href="{URN}">x</a>': '<a href="Patient/p">x</a>',
    f"<p><img alt='y' src='{URN}'/></p>": "<p><img alt='y' src=\"Patient/p\"/></p>",
    f'<a href = "{URN}" title="{URN}">{URN}</a>': f'<a href = "Patient/p" title="{URN}">{URN}</a>',
    '<a href="http://a.example.org/x?y=1&amp;z=2">x</a>': '<a href="Patient/q">x</a>',
    f'<a title="a > b" href="{URN}">x</a>': '<a title="a > b" href="Patient/p">x</a>',
    f'<a href="{URN}#part">x</a>': None,
    f"<a title='say href=\"{URN}\"'>x</a>": None,
    f'<abbr href="{URN}">x</abbr>': None,
    f'<p class="{URN}">href="{URN}"</p>': None,
    '<a href="#there">x</a>': None,
}


@pytest.mark.parametrize("text", NARRATIVES)
def test_narrative_links_are_replaced_where_they_are_exactly_a_full_url(text: str) -> None:
    links = Links((), conditional=refuse)
    links.name(URN, "Patient/p", "")
    links.name("http://a.example.org/x?y=1&z=2", "Patient/q", "")
    resource = {"resourceType": "Basic", "text": {"status": "generated", "div": DIV % text}}
    expected = NARRATIVES[text]
    assert links.replaced(resource, "")["text"]["div"] == DIV % (text if expected is None else expected)


def test_narrative_goes_through_a_transaction(hub: Hub) -> None:
    told = {"status": "generated", "div": DIV % f'<a href="{URN}">x</a>'}
    patient, about = made(hub, entry(URN, person()), entry("urn:uuid:2", basic(URN, text=told)))
    assert f'href="Patient/{patient["id"]}"' in about["text"]["div"]


def test_a_bundle_kept_as_a_resource_is_a_room_of_its_own(hub: Hub) -> None:
    inner = {"fullUrl": "urn:uuid:0f8fad5b-1111-469f-a165-70867728950e", "resource": person(id="1")}
    about = {"fullUrl": f"{A}/Basic/2", "resource": basic(str(inner["fullUrl"]), id="2", author={"reference": URN})}
    kept = {"resourceType": "Bundle", "type": "collection", "entry": [inner, about]}
    _, stored = made(hub, entry(URN, person()), entry("urn:uuid:2", kept))
    assert stored["entry"] == kept["entry"]


# --- the address of a base, and hostile sizes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("full_url", "base"),
    [
        (f"{A}/Patient/1", A),
        ("http://x/Patient/a.b-c", "http://x"),
        (URN, ""),
        (f"{A}/Patient/1/_history/2", ""),
        (f"{A}/Person-x/1", ""),
        (f"{A}/Unknown/1", ""),
        ("Patient/1", ""),
        ("ftp://x/Patient/1", ""),
        (f"{A}/Patient/{'1' * 65}", ""),
        ("", ""),
        ("http:///", ""),
    ],
)
def test_the_base_of_a_restful_full_url(full_url: str, base: str) -> None:
    assert base_of(full_url) == base


def test_ten_thousand_entries_with_ten_references_each_are_linked_in_linear_time() -> None:
    links = Links(("http://ours.example.org/fhir",), conditional=refuse)
    for n in range(10_000):
        links.name(f"{A}/Patient/{n}", f"Patient/p{n}", "")
    started = time.process_time()
    for n in range(10_000):
        others = [{"reference": f"Patient/{(n + k) % 10_000}"} for k in range(10)]
        done = links.replaced({"resourceType": "List", "entry": [{"item": o} for o in others]}, "x", f"{A}/List/{n}")
        assert done["entry"][9]["item"]["reference"] == f"Patient/p{(n + 9) % 10_000}"
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "text",
    [
        "<a " * 50_000,
        "<a " + "x" * 200_000,
        "<a " + "x " * 100_000,
        "<a " + " " * 200_000,
        "<a " + "href " * 50_000,
        "<a " + 'href="' * 50_000,
        "<a " + "href='x\" " * 30_000,
        "<a href" + "=" * 200_000,
        "<img" + " src=''" * 30_000,
    ],
    ids=lambda text: text[:14],
)
def test_hostile_narrative_is_read_once(text: str) -> None:
    links = Links((), conditional=refuse)
    links.name(URN, "Patient/p", "")
    started = time.process_time()
    assert links.of_narrative(text) == text
    assert links.of_narrative(text + f'><a href="{URN}">').count("Patient/p") <= 1
    assert time.process_time() - started < 3


def test_deeply_nested_extensions_are_typed_all_the_same() -> None:
    links = Links((), conditional=refuse)
    links.name(URN, "Patient/p", "")
    inner: Resource = {"url": "http://x.example.org/e", "valueUri": URN}
    for _ in range(80):
        inner = {"url": "http://x.example.org/e", "extension": [inner]}
    out = links.replaced({"resourceType": "Basic", "extension": [inner]}, "")
    assert "Patient/p" in str(out)
    assert URN not in str(out)
