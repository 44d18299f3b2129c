"""What a client is told of addresses behind a proxy, HEAD, and bodies of the size that is allowed, on a real socket."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.demo.run import DEFAULTS

PUBLIC, ALIAS, OTHER = "https://hub.example.org/fhir", "http://localhost/r4", "http://old.example.org/api"
# The Host a client sends -> the base it is told.
HOSTS = {"127.0.0.1": PUBLIC, "localhost": ALIAS, "LOCALHOST": ALIAS, "localhost:81": PUBLIC}
PATIENT: dict[str, Any] = {"resourceType": "Patient", "name": [{"family": "Martin"}]}
JSON = {"content-type": "application/fhir+json"}
MIB = 1 << 20


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    quiet = {"http_port": 0, "mllp_port": 0, "dicom_port": 0, "smtp": "", "imap": ""}
    known = {"public_url": PUBLIC, "base_aliases": f"{ALIAS}/, {OTHER}"}
    folder = str(tmp_path_factory.mktemp("addresses"))
    running = Server(replace(Settings(**DEFAULTS), data_dir=folder, **(quiet | known)))
    ports = running.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{ports.http}/fhir", timeout=60) as client:
        yield client
    running.close()


def addresses(value: Any) -> list[str]:
    """Every absolute address of a FHIR server in an answer."""
    if isinstance(value, dict):
        return [one for name, item in value.items() if name not in ("div", "system") for one in addresses(item)]
    if isinstance(value, list):
        return [one for item in value for one in addresses(item)]
    return [value] if isinstance(value, str) and value.startswith(("http://", "https://")) else []


@pytest.mark.parametrize("host", HOSTS)
def test_every_address_in_an_answer_begins_with_the_base_the_client_called(client: httpx.Client, host: str) -> None:
    told = {"host": host}
    base = HOSTS[host]
    made = client.post("/Patient", json=PATIENT, headers=told | JSON)
    key = made.json()["id"]
    assert made.headers["location"] == f"{base}/Patient/{key}/_history/1"
    changed = client.put(f"/Patient/{key}", json=PATIENT | {"id": key}, headers=told | JSON)
    assert changed.headers["content-location"] == f"{base}/Patient/{key}/_history/2"
    client.post("/Patient", json=PATIENT, headers=told | JSON)
    for path in (
        "/Patient?_count=1",
        f"/Patient/{key}/_history?_count=1",
        "/_history?_count=1",
        "?_type=Patient&_count=1",
    ):
        page = client.get(path, headers=told).json()
        links = {link["relation"]: link["url"] for link in page["link"]}
        found = [*links.values(), *(entry["fullUrl"] for entry in page["entry"])]
        assert all(one.startswith((f"{base}/", f"{base}?")) for one in found), found
        parts = urlsplit(links["next"])
        again = client.get(
            f"{links['next'][len(base) :].partition('?')[0]}?{parts.query}", headers={"host": "127.0.0.1"}
        )
        assert again.status_code == 200 and again.json()["entry"], "a page link is good under every name"
    assert client.get("/metadata", headers=told).json()["implementation"]["url"] == base
    assert client.get("/openapi.json", headers=told).json()["servers"] == [{"url": base}]
    later = client.get("/Patient", headers=told | {"prefer": "respond-async"})
    assert later.status_code == 202 and later.headers["content-location"].startswith(f"{base}/_async/")
    bundle = {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [{"request": {"method": "GET", "url": "Patient?_count=1"}}],
    }
    inner = client.post("/", json=bundle, headers=told | JSON).json()["entry"][0]["resource"]
    assert inner["entry"][0]["fullUrl"].startswith(f"{base}/Patient/")


@pytest.mark.parametrize("host", HOSTS)
def test_references_by_any_of_our_names_are_our_own(client: httpx.Client, host: str) -> None:
    told = {"host": host} | JSON
    for base in (PUBLIC, ALIAS, OTHER):
        content = {"resourceType": "Basic", "code": {"text": "x"}, "subject": {"reference": f"{base}/Patient/p"}}
        assert client.post("/Basic", json=content, headers=told).json()["subject"]["reference"] == "Patient/p"
        entries = [
            {"fullUrl": f"{base}/Patient/one", "resource": PATIENT | {"id": "one"},
             "request": {"method": "PUT", "url": f"{base}/Patient/one"}},
            {"resource": content | {"subject": {"reference": f"{base}/Patient/one"}},
             "request": {"method": "POST", "url": "Basic"}},
        ]  # fmt: skip
        headers = told | {"prefer": "return=representation"}
        answer = client.post(
            "/", json={"resourceType": "Bundle", "type": "transaction", "entry": entries}, headers=headers
        )
        assert answer.json()["entry"][1]["resource"]["subject"]["reference"] == "Patient/one"
    counts = set()
    for name in ("", f"{PUBLIC}/", f"{ALIAS}/", f"{OTHER}/"):
        query = f"/Basic?subject={name}Patient/one&_summary=count"
        counts.add(client.get(query, headers=told).json()["total"])
        form = {"subject": f"{name}Patient/one/_history/1", "_summary": "count"}
        counts.add(client.post("/Basic/_search", data=form, headers={"host": host}).json()["total"])
    assert len(counts) == 1 and counts != {0}, "and they are found by any of them, as by the relative one"
    elsewhere = "/Basic?subject=http://localhost:1/r4/Patient/one&_summary=count"
    assert client.get(elsewhere, headers=told).json()["total"] == 0
    foreign = {
        "resourceType": "Basic",
        "code": {"text": "x"},
        "subject": {"reference": "http://localhost:1/r4/Patient/p"},
    }
    assert client.post("/Basic", json=foreign, headers=told).json()["subject"] == foreign["subject"]


HEADS = [
    "/Patient/h",
    "/Patient?_count=5",
    "/Patient/h/_history",
    "/_history?_count=5",
    "/Patient/h/_history/1",
    "/metadata",
    "/Patient/h?_format=xml",
    "/Patient/nobody",
]


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("path", HEADS)
def test_head_has_the_headers_of_get_and_no_body(client: httpx.Client, path: str, coding: str) -> None:
    text = {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{"a" * 3000}</div>'}
    client.put("/Patient/h", json=PATIENT | {"id": "h", "text": text}, headers=JSON)
    told = {"accept-encoding": coding, "x-request-id": "same"}
    got, head = client.get(path, headers=told), client.head(path, headers=told)
    assert (head.status_code, head.content) == (got.status_code, b"")
    drop = {"date", "content-length"} if "?" in path or "/_history" in path else {"date"}
    same = [{name: value for name, value in one.headers.items() if name not in drop} for one in (got, head)]
    assert same[0] == same[1]
    assert abs(int(head.headers["content-length"]) - int(got.headers["content-length"])) < 20, "timestamps may differ"
    worth_it = coding == "gzip" and path != "/Patient/nobody"
    assert (got.headers.get("content-encoding") == "gzip") == worth_it
    known = client.get("/Patient/h").headers["etag"]
    assert client.head("/Patient/h", headers={"if-none-match": known}).status_code == 304


def test_a_body_of_64_mib_is_taken_and_one_byte_more_is_not(client: httpx.Client) -> None:
    assert Settings().max_body_mib == 64
    content = json.dumps(PATIENT | {"id": "large"}).encode()
    full = content + b" " * (64 * MIB - len(content))
    assert client.put("/Patient/large", content=full, headers=JSON).status_code == 201
    packed = JSON | {"content-encoding": "gzip"}
    assert client.put("/Patient/large", content=gzip.compress(full, 1), headers=packed).status_code == 200
    for body, headers in ((full + b" ", JSON), (gzip.compress(full + b" ", 1), packed)):
        answer = client.put("/Patient/large", content=body, headers=headers)
        assert (answer.status_code, answer.json()["issue"][0]["code"]) == (413, "too-costly")
    assert client.get("/Patient/large").headers["etag"] == 'W/"2"'


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_transaction_of_10_000_entries_is_taken_and_one_more_is_not(client: httpx.Client) -> None:
    entry = {
        "resource": {"resourceType": "Basic", "code": {"text": "many"}},
        "request": {"method": "POST", "url": "Basic"},
    }
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry] * 10_000}
    assert len(client.post("/", json=bundle, headers=JSON, timeout=500).json()["entry"]) == 10_000
    assert client.post("/", json=bundle | {"entry": [entry] * 10_001}, headers=JSON).status_code == 413
    assert client.get("/Basic?code:text=many&_summary=count").json()["total"] == 10_000


@pytest.mark.parametrize("query", ["name=%E9", "name=a%ff", "%e9=x", "name=L\xe9a"])
def test_an_address_that_is_no_utf_8_is_refused_and_not_read_as_something_else(
    client: httpx.Client, query: str
) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as wire:
        wire.sendall(f"GET /fhir/Patient?{query} HTTP/1.1\r\nhost: x\r\n\r\n".encode("latin-1"))
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        told = answer.read().decode()
    assert answer.status == 400, told
    assert "%" not in query or "percent-encode it in UTF-8" in json.loads(told)["issue"][0]["diagnostics"]
