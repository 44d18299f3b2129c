"""What surrounds the FHIR API on a real socket: compression both ways, request ids, web pages, HEAD, odd addresses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.demo.run import DEFAULTS

PAGE = "http://localhost:3000"
PATIENT: dict[str, Any] = {"resourceType": "Patient", "id": "p", "name": [{"family": "Martin"}]}
JSON = {"content-type": "application/fhir+json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = replace(
        Settings(**DEFAULTS),
        data_dir=str(tmp_path_factory.mktemp("edge")),
        http_port=0,
        mllp_port=0,
        dicom_port=0,
        smtp="",
        imap="",
        max_body_mib=2,
        cors_origins=PAGE,
    )
    running = Server(settings)
    ports = running.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{ports.http}") as client:
        client.put("/fhir/Patient/p", json=PATIENT).raise_for_status()
        yield client
    running.close()


# --- compression -----------------------------------------------------------------------------------------------------


def test_a_large_answer_is_packed_for_who_takes_gzip(client: httpx.Client) -> None:
    packed = client.get("/fhir/metadata", headers={"accept-encoding": "gzip"})
    plain = client.get("/fhir/metadata", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 5
    assert packed.json()["rest"] == plain.json()["rest"]
    assert "content-encoding" not in plain.headers
    assert "accept-encoding" in plain.headers["vary"]


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "gzip; q=0.0"])
def test_nobody_gets_gzip_who_does_not_take_it(client: httpx.Client, accepted: str) -> None:
    assert "content-encoding" not in client.get("/fhir/metadata", headers={"accept-encoding": accepted}).headers


def test_a_small_answer_is_left_as_it_is(client: httpx.Client) -> None:
    assert "content-encoding" not in client.get("/fhir/Patient/p", headers={"accept-encoding": "gzip"}).headers


def test_a_packed_body_is_read(client: httpx.Client) -> None:
    body = json.dumps(PATIENT | {"id": "packed"}).encode()
    for content in (gzip.compress(body), gzip.compress(body[:20]) + gzip.compress(body[20:])):
        headers = JSON | {"content-encoding": "gzip"}
        assert client.put("/fhir/Patient/packed", content=content, headers=headers).status_code in (200, 201)


@pytest.mark.parametrize(
    ("coding", "content", "status"),
    [
        ("gzip", gzip.compress(b" " * 200_000_000, 1, mtime=0), 413),
        ("gzip", gzip.compress(b"{}" * 1000, mtime=0)[:-12], 400),
        ("gzip", gzip.compress(b"", mtime=0) * 20_000, 413),
        ("gzip", b"no gzip at all", 400),
        ("br", b"x", 415),
        ("gzip, gzip", b"x", 415),
    ],
    ids=["bomb", "cut off", "many", "no gzip", "other coding", "twice"],
)
def test_a_bomb_and_what_is_no_gzip_are_refused(client: httpx.Client, coding: str, content: bytes, status: int) -> None:
    answer = client.post("/fhir/Patient", content=content, headers=JSON | {"content-encoding": coding})
    assert answer.status_code == status
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_a_body_over_the_limit_is_413(client: httpx.Client) -> None:
    answer = client.post("/fhir/Patient", content=b" " * 3_000_000, headers=JSON)
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (413, "too-costly")


# --- request ids -----------------------------------------------------------------------------------------------------


def test_the_request_id_is_echoed_and_stands_in_the_audit_trail(client: httpx.Client) -> None:
    answer = client.put("/fhir/Patient/traced", json=PATIENT | {"id": "traced"}, headers={"x-request-id": "abc-1.2"})
    assert answer.headers["x-request-id"] == "abc-1.2"
    assert b"abc-1.2" in client.get("/fhir/AuditEvent?entity=Patient/traced").content


def test_a_request_without_id_gets_one_and_it_is_the_one_of_the_audit_trail(client: httpx.Client) -> None:
    given = client.put("/fhir/Patient/named", json=PATIENT | {"id": "named"}).headers["x-request-id"]
    assert given.encode() in client.get("/fhir/AuditEvent?entity=Patient/named").content


@pytest.mark.parametrize("told", ["a b", "x" * 65, "é".encode().decode("latin-1"), "<script>"])
def test_an_id_that_is_no_plain_word_is_replaced(client: httpx.Client, told: str) -> None:
    headers = {"x-request-id": told.encode("latin-1")}
    given = client.get("/fhir/Patient/p", headers=headers).headers["x-request-id"]  # type: ignore[arg-type]  # a word the test gives
    assert given != told
    assert given.isalnum()


# --- web pages -------------------------------------------------------------------------------------------------------


def test_a_page_of_an_allowed_origin_may_ask_and_read(client: httpx.Client) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "PUT", "access-control-request-headers": "if-match"}
    preflight = client.options("/fhir/Patient/p", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert "If-Match" in preflight.headers["access-control-allow-headers"]
    answer = client.get("/fhir/Patient/p", headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "ETag" in answer.headers["access-control-expose-headers"]
    assert "origin" in answer.headers["vary"]
    assert "accept" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_of_another_origin_may_not(client: httpx.Client) -> None:
    other = {"origin": "http://localhost:4000"}
    assert "access-control-allow-origin" not in client.get("/fhir/Patient/p", headers=other).headers
    asked = other | {"access-control-request-method": "PUT"}
    preflight = client.options("/fhir/Patient/p", headers=asked)
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers


def test_the_operator_commands_are_for_no_page(client: httpx.Client) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    answer = client.options("/admin/inbox-list", headers=asked)
    assert answer.status_code >= 400
    assert "access-control-allow-origin" not in answer.headers


# --- addresses, methods, HEAD ----------------------------------------------------------------------------------------


def test_head_tells_the_length_and_sends_nothing(client: httpx.Client) -> None:
    got = client.get("/fhir/Patient/p")
    head = client.head("/fhir/Patient/p")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))
    assert head.headers["etag"] == got.headers["etag"]


def test_options_without_a_page_says_what_is_offered(client: httpx.Client) -> None:
    answer = client.options("/fhir/Patient/p")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD, PATCH, PUT")


@pytest.mark.parametrize("path", ["Patient/p%3Fx", "Patient/p%23x", "Patient/%00", "Patient/..%2Fp", "Patient/%ff"])
def test_an_encoded_sign_in_an_id_is_part_of_the_id(client: httpx.Client, path: str) -> None:
    assert client.get(f"/fhir/{path}").status_code == 404


def test_a_query_of_too_many_parameters_is_refused(client: httpx.Client) -> None:
    answer = client.get("/fhir/Patient?" + "&".join(["name=a"] * 2500))
    assert answer.status_code == 400
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_an_error_before_the_api_is_xml_to_who_wants_it(client: httpx.Client) -> None:
    headers = {"accept": "application/fhir+xml", "authorization": "Bearer nonsense"}
    answer = client.get("/fhir/Patient/p", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert b"<OperationOutcome" in answer.content


def test_a_host_that_is_none_is_refused(client: httpx.Client) -> None:
    answer = client.get("/fhir/Patient/p", headers={"host": "localhost/evil"})
    assert answer.status_code == 400
