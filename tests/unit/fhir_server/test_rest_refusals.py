"""Bad input by every way in: each fault of issue 4's list, through create, update, patch, $validate and Bundle entries,
in JSON and in XML. Each is a 4xx OperationOutcome with an expression, in bounded time, and nothing is written."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hubs import hub_on
from rest_calls import PATIENT, Answer, ask, stored

from fhir_server import changes
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.search import walk
from fhir_server.store.engine import Store
from profiles.xml_text import to_xml

Resource = dict[str, Any]
JSON, XML = "application/fhir+json", "application/fhir+xml"
JSON_PATCH, XML_PATCH = "application/json-patch+json", "application/xml-patch+xml"
NS = 'xmlns="http://hl7.org/fhir"'
# No bad input may take longer; the machine that runs the tests may be busy.
SECONDS = 20


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    opened = hub_on(open_url(sqlite_url), max_body_mib=4)
    stored(opened, PATIENT)
    return opened


def versions(hub: Hub) -> int:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.history_total()


class Watched:
    """Asserts at its end that nothing was written and that it was quick."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def __enter__(self) -> None:
        self.before, self.began = versions(self.hub), time.monotonic()

    def __exit__(self, *problem: object) -> None:
        if problem[0] is None:
            assert versions(self.hub) == self.before
            assert time.monotonic() - self.began < SECONDS


def issue_of(answer: Answer, *statuses: int) -> tuple[str, str]:
    """(expression, words) of the first issue; every issue of a refusal has both."""
    assert answer.status in statuses, answer.body[:500]
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome"
    assert all(issue["diagnostics"] and issue["expression"][0] for issue in outcome["issue"])
    assert all(issue["severity"] in ("error", "fatal") for issue in outcome["issue"])
    return answer.issue["expression"][0], answer.issue["diagnostics"]


def failure_of(answer: Answer, status: int) -> tuple[str, str]:
    """(expression, words) of the first issue of a batch's one entry."""
    (entry,) = answer.entries
    assert entry["response"]["status"].startswith(str(status)), entry
    issue = entry["response"]["outcome"]["issue"][0]
    return issue["expression"][0], issue["diagnostics"]


def bundle(kind: str, resource: str, method: str = "PUT", url: str = "Patient/p") -> bytes:
    """A Bundle of one entry around the text of a resource."""
    request = json.dumps({"method": method, "url": url})
    return (
        f'{{"resourceType":"Bundle","type":"{kind}","entry":[{{"resource":{resource},"request":{request}}}]}}'.encode()
    )


def xml_bundle(kind: str, inner: str) -> bytes:
    return (
        f'<Bundle {NS}><type value="{kind}"/><entry><resource>{inner}</resource>'
        '<request><method value="PUT"/><url value="Patient/p"/></request></entry></Bundle>'
    ).encode()


# --- elements --------------------------------------------------------------------------------------------------------

# name -> (members as JSON, the same as XML or '' where XML cannot say it, where)
ELEMENTS: dict[str, tuple[str, str, str]] = {
    "unknown element": ('"colour":"blue"', "", "colour"),
    "unknown element deep down": ('"name":[{"famly":"A"}]', "", "name[0].famly"),
    "wrong type": ('"active":"yes"', '<active value="yes"/>', "active"),
    "a list for one": ('"gender":["male"]', "", "gender"),
    "one for a list": ('"name":{"family":"A"}', "", "name"),
    "a day that is none": ('"birthDate":"2026-02-30"', '<birthDate value="2026-02-30"/>', "birthDate"),
    "a French day": ('"birthDate":"14/02/1990"', '<birthDate value="14/02/1990"/>', "birthDate"),
    "an hour that is none": (
        '"deceasedDateTime":"2026-01-01T25:00:00Z"',
        '<deceasedDateTime value="2026-01-01T25:00:00Z"/>',
        "deceasedDateTime",
    ),
    "a time without zone": (
        '"deceasedDateTime":"2026-01-01T12:00:00"',
        '<deceasedDateTime value="2026-01-01T12:00:00"/>',
        "deceasedDateTime",
    ),
    "a code that is none": ('"gender":"m"', '<gender value="m"/>', "gender"),
    "no whole number": ('"multipleBirthInteger":1.5', '<multipleBirthInteger value="1.5"/>', "multipleBirth"),
    "no value": ('"name":[{}]', "", "name[0]"),
    "text without a body": ('"text":{"status":"generated"}', '<text><status value="generated"/></text>', "text"),
    "a script": (
        '"text":{"status":"generated","div":"<div xmlns=\\"http://www.w3.org/1999/xhtml\\"><script>1</script></div>"}',
        '<text><status value="generated"/><div xmlns="http://www.w3.org/1999/xhtml"><script>1</script></div></text>',
        "text.div",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTS)
def test_a_bad_element_is_named_whichever_way_it_comes(hub: Hub, name: str) -> None:
    members, _, place = ELEMENTS[name]
    text = f'{{"resourceType":"Patient","id":"p",{members}}}'
    with Watched(hub):
        for method, url in (
            ("POST", "Patient"),
            ("PUT", "Patient/p"),
            ("PUT", "Patient/new"),
            ("PUT", "Patient?_id=p"),
        ):
            body = text.replace('"p"', '"new"', 1) if url.endswith("new") else text
            assert issue_of(ask(hub, method, url, body.encode()), 422)[0].startswith(f"Patient.{place}")
        inside = f"Bundle.entry[0].resource.{place}"
        assert issue_of(ask(hub, "POST", "", bundle("transaction", text)), 422)[0].startswith(inside)
        assert failure_of(ask(hub, "POST", "", bundle("batch", text)), 422)[0].startswith(inside)
        property_, value = next(iter(json.loads("{" + members + "}").items()))
        patch = json.dumps([{"op": "add", "path": f"/{property_}", "value": value}])
        answer = ask(hub, "PATCH", "Patient/p", patch.encode(), content_type=JSON_PATCH)
        assert issue_of(answer, 422)[0].startswith(f"Patient.{place}")
        held = {"resourceType": "Binary", "contentType": JSON_PATCH, "data": base64.b64encode(patch.encode()).decode()}
        entry = bundle("transaction", json.dumps(held), "PATCH")
        assert issue_of(ask(hub, "POST", "", entry), 422)[0].startswith(inside)
        told = ask(hub, "POST", "Patient/$validate", text.encode())
        assert told.status == 200 and told.issue["expression"][0].startswith(f"Patient.{place}")


@pytest.mark.parametrize("name", [name for name, (_, as_xml, _) in ELEMENTS.items() if as_xml])
def test_a_bad_element_in_xml_is_named_too(hub: Hub, name: str) -> None:
    _, as_xml, place = ELEMENTS[name]
    text = f'<Patient {NS}><id value="p"/>{as_xml}</Patient>'
    with Watched(hub):
        for method, url in (("POST", "Patient"), ("PUT", "Patient/p")):
            where, _ = issue_of(ask(hub, method, url, text.encode(), content_type=XML), 400, 422)
            assert where.startswith(f"Patient.{place.partition('.')[0]}")
        where, _ = issue_of(ask(hub, "POST", "", xml_bundle("transaction", text), content_type=XML), 400, 422)
        assert where.startswith("Bundle.entry[0].resource")


# --- documents that cannot be read -----------------------------------------------------------------------------------

JSON_FAULTS: dict[str, str] = {
    "cut off": '{"resourceType":"Patient",\n "id":',
    "a comma too many": '{"resourceType":"Patient",\n "id":"p",}',
    "key twice": '{"resourceType":"Patient","id":"p",\n"active":true,"active":false}',
    "key twice deep down": '{"resourceType":"Patient","id":"p",\n"name":[{"family":"A","family":"B"}]}',
    "NUL": '{"resourceType":"Patient","id":"p",\n"name":[{"family":"A\\u0000B"}]}',
    "lone surrogate": '{"resourceType":"Patient","id":"p",\n"name":[{"family":"\\ud800"}]}',
    "reversed surrogates": '{"resourceType":"Patient","id":"p",\n"name":[{"family":"\\udc00\\ud800"}]}',
    "not a number": '{"resourceType":"Patient","id":"p",\n"multipleBirthInteger":NaN}',
    "deep objects": '{"resourceType":"Patient","id":"p",\n"extension":[' + '{"extension":[' * 50_000,
    "deep lists": '{"resourceType":"Patient","id":"p",\n"name":' + "[" * 200_000,
    "just too deep": '{"resourceType":"Patient",\n"extension":' + '[{"extension":' * 120 + "[]" + "}]" * 120 + "}",
}  # fmt: skip


@pytest.mark.parametrize("name", JSON_FAULTS)
def test_json_that_cannot_be_read_is_told_with_its_place_whichever_way_it_comes(hub: Hub, name: str) -> None:
    text = JSON_FAULTS[name]
    parameters = f'{{"resourceType":"Parameters","parameter":[{{"name":"operation","resource":{text}}}]}}'
    ways: list[tuple[str, str, bytes, str]] = [
        ("POST", "Patient", text.encode(), JSON),
        ("PUT", "Patient/p", text.encode(), JSON),
        ("PUT", "Patient?_id=p", text.encode(), JSON),
        ("POST", "Patient/$validate", text.encode(), JSON),
        ("POST", "Patient/$validate", parameters.encode(), JSON),
        ("PATCH", "Patient/p", parameters.encode(), JSON),
        ("PATCH", "Patient/p", f'[{{"op":"add","path":"/x","value":{text}}}]'.encode(), JSON_PATCH),
        ("POST", "", bundle("transaction", text), JSON),
        ("POST", "", bundle("batch", text), JSON),
    ]
    with Watched(hub):
        for method, url, body, kind in ways:
            _, words = issue_of(ask(hub, method, url, body, content_type=kind), 400)
            assert re.search(r"line \d+, column \d+", words), (url, words)
        answer = ask(hub, "POST", "Patient", PATIENT, x_provenance=text[:60_000].replace("\n", ""))
        issue_of(answer, 400)


BOMB = (
    '<!DOCTYPE b [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {name} "{f"&{inner};" * 10}">' for inner, name in zip("abcdefghi", "bcdefghij", strict=True))
    + "]>"
)
XML_FAULTS: dict[str, str] = {
    "cut off": f'<Patient {NS}>\n<id value="p"/><active value="true"',
    "crossed": f'<Patient {NS}>\n<name><family value="A"></name></family></Patient>',
    "unknown element": f'<Patient {NS}>\n<id value="p"/><colour value="blue"/></Patient>',
    "attribute twice": f'<Patient {NS}>\n<id value="p"/><active value="true" value="false"/></Patient>',
    "billion laughs": BOMB + f'<Patient {NS}>\n<name><family value="&j;"/></name></Patient>',
    "an entity nobody knows": f'<Patient {NS}>\n<name><family value="&j;"/></name></Patient>',
    "a file": '<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    f'<Patient {NS}>\n<name><text value="&a;"/></name></Patient>',
    "NUL": f'<Patient {NS}>\n<name><family value="A&#0;B"/></name></Patient>',
    "lone surrogate": f'<Patient {NS}>\n<name><family value="&#xD800;"/></name></Patient>',
    "another namespace": '<Patient xmlns="urn:other">\n<id value="p"/></Patient>',
    "one twice": f'<Patient {NS}>\n<id value="p"/><gender value="male"/><gender value="female"/></Patient>',
    "deep": f"<Patient {NS}>\n" + "<contained><Patient>" * 50_000,
}  # fmt: skip


@pytest.mark.parametrize("name", XML_FAULTS)
def test_xml_that_cannot_be_read_is_told_with_its_place_whichever_way_it_comes(hub: Hub, name: str) -> None:
    text = XML_FAULTS[name]
    declared, _, bare = text.rpartition("]>") if "]>" in text else ("", "", text)
    front = declared + "]>" if declared else ""
    inner = f'<parameter><name value="operation"/><resource>{bare}</resource></parameter>'
    parameters = f"{front}<Parameters {NS}>{inner}</Parameters>"
    diff = f'{front}<diff xmlns:f="http://hl7.org/fhir"><add sel="f:Patient">{bare}</add></diff>'
    ways: list[tuple[str, str, str, str]] = [
        ("POST", "Patient", text, XML),
        ("PUT", "Patient/p", text, XML),
        ("POST", "Patient/$validate", text, XML),
        ("PATCH", "Patient/p", parameters, XML),
        ("POST", "", front + xml_bundle("transaction", bare).decode(), XML),
        ("POST", "", front + xml_bundle("batch", bare).decode(), XML),
    ]
    with Watched(hub):
        for method, url, body, kind in ways:
            _, words = issue_of(ask(hub, method, url, body.encode(), content_type=kind), 400, 422)
            assert re.search(r"line \d+, column \d+", words), (method, url, words)
        issue_of(ask(hub, "PATCH", "Patient/p", diff.encode(), content_type=XML_PATCH), 400, 422)


@pytest.mark.parametrize("kind", [JSON, XML])
def test_a_body_over_the_limit_is_refused_by_every_verb(hub: Hub, kind: str) -> None:
    body = (to_xml(PATIENT) if kind == XML else json.dumps(PATIENT).encode()) + b" " * (4 << 20)
    with Watched(hub):
        for method, url in (
            ("POST", "Patient"), ("PUT", "Patient/p"), ("PATCH", "Patient/p"), ("POST", ""),
            ("POST", "Patient/$validate"),
        ):  # fmt: skip
            issue_of(ask(hub, method, url, body, content_type=kind), 400, 413)


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["x" * 65, "x" * 10_000, "a b", "a/b", "é", "", "a_b", "_x", "$x"])
def test_an_id_that_is_none_is_refused_whichever_way_it_comes(hub: Hub, key: str) -> None:
    content = PATIENT | {"id": key}
    with Watched(hub):
        for answer in (
            ask(hub, "PUT", "Patient?name=nobody", content),
            ask(hub, "PUT", "Patient?name=nobody", to_xml(content), content_type=XML) if key else None,
            ask(hub, "POST", "", bundle("transaction", json.dumps(content), "PUT", "Patient?name=nobody")),
            ask(hub, "POST", "", bundle("transaction", json.dumps(content), "PUT", f"Patient/{key}")),
            ask(hub, "POST", "", bundle("transaction", json.dumps(content), "PUT", "Patient")),
            ask(hub, "PATCH", "Patient/p", json.dumps([{"op": "replace", "path": "/id", "value": key}]).encode(),
                content_type=JSON_PATCH),
        ):  # fmt: skip
            if answer is not None:
                where, _ = issue_of(answer, 400, 422)
                assert where.startswith(("Patient", "Bundle.entry[0]"))
        if key:
            assert failure_of(
                ask(hub, "POST", "", bundle("batch", "null", "DELETE", f"Patient/{key}")),
                404 if "/" not in key else 400,
            )


def test_ids_that_conflict_are_refused_whichever_way_they_come(hub: Hub) -> None:
    other = PATIENT | {"id": "q"}
    twice = [{"resource": PATIENT, "request": {"method": "PUT", "url": "Patient/p"}}] * 2
    both = {"resourceType": "Bundle", "type": "transaction", "entry": twice}
    moved = b'[{"op":"replace","path":"/id","value":"q"}]'
    with Watched(hub):
        for answer, place in (
            (ask(hub, "PUT", "Patient/p", other), "Patient.id"),
            (ask(hub, "PUT", "Patient/p", {k: v for k, v in PATIENT.items() if k != "id"}), "Patient.id"),
            (ask(hub, "PUT", "Patient/p", to_xml(other), content_type=XML), "Patient.id"),
            (ask(hub, "PATCH", "Patient/p", moved, content_type=JSON_PATCH), "Patient.id"),
            (ask(hub, "POST", "", bundle("transaction", json.dumps(other))), "Bundle.entry[0].resource.id"),
            (ask(hub, "POST", "", both), "Bundle.entry[1].resource"),
        ):  # fmt: skip
            assert issue_of(answer, 400, 422)[0] == place
        assert (
            failure_of(ask(hub, "POST", "", bundle("batch", json.dumps(other))), 400)[0]
            == "Bundle.entry[0].resource.id"
        )
        assert issue_of(ask(hub, "PUT", "Patient?_id=p", other), 412)


# --- Bundles over the limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transaction", "batch"])
@pytest.mark.parametrize("form", [JSON, XML])
def test_a_bundle_of_too_many_entries_is_refused_whole(hub: Hub, kind: str, form: str) -> None:
    small = dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, max_bundle_entries=3))
    entry = {
        "resource": {"resourceType": "Basic", "code": {"text": "x"}},
        "request": {"method": "POST", "url": "Basic"},
    }
    content = {"resourceType": "Bundle", "type": kind, "entry": [entry] * 4}
    with Watched(hub):
        answer = ask(small, "POST", "", to_xml(content) if form == XML else content, content_type=form)
        assert issue_of(answer, 413)[0] == "Bundle.entry"
    assert hub.settings.max_bundle_entries == 10_000, "the default"


def test_one_resource_of_too_many_searchable_values_is_refused(hub: Hub) -> None:
    assert changes.MOST_ROWS == walk.MAX_ROWS == 200_000
    names = ",".join(f'{{"family":"f{n}"}}' for n in range(walk.MAX_ROWS // 2 + 100))
    body = f'{{"resourceType":"Patient","id":"p","name":[{names}]}}'.encode()
    with Watched(hub):
        where, words = issue_of(ask(hub, "PUT", "Patient/p", body), 413)
        assert "200000" in words.replace(",", "") and where
        issue_of(ask(hub, "POST", "", bundle("transaction", body.decode())), 413)


def test_many_resources_of_too_many_searchable_values_together_are_refused(hub: Hub) -> None:
    names = ",".join(f'{{"family":"f{n}"}}' for n in range(2_000))
    entries = ",".join(
        f'{{"resource":{{"resourceType":"Patient","name":[{names}]}},"request":{{"method":"POST","url":"Patient"}}}}'
        for _ in range(walk.MAX_ROWS // (2_000 * 2) + 1)
    )
    roomy = dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, max_body_mib=64))
    with Watched(hub):
        answer = ask(
            roomy, "POST", "", f'{{"resourceType":"Bundle","type":"transaction","entry":[{entries}]}}'.encode()
        )
        assert issue_of(answer, 413)[0] == "Bundle.entry"
