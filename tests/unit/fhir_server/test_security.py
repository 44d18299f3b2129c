"""Who calls: the demo's persons by their role, nobody by a name that only looks like this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hubs import PARTNER, SYSTEM, delete, directory, hub_on, put, read

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.errors import Forbidden, PasserelleError, Unauthenticated
from fhir_server.security.identity import Gate, http_caller, wire_caller
from fhir_server.store.engine import Store


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def calls(hub: Hub, **headers: str) -> Caller:
    return http_caller(hub.store, Gate(hub.settings), {"host": "127.0.0.1:8080"} | headers, "127.0.0.1")


def test_without_a_name_the_caller_is_a_requesters_software(hub: Hub) -> None:
    caller = calls(hub)
    assert (caller.who, caller.roles, caller.channel) == ("", {"partner"}, "http")
    assert caller.peer == "127.0.0.1" and len(caller.request_id) == 16


def test_a_person_calls_with_the_groups_of_their_role(hub: Hub) -> None:
    expert = calls(hub, authorization="Bearer demo:garnier")
    assert expert.who == "PractitionerRole/garnier"
    assert expert.practitioner == "Practitioner/garnier"
    assert expert.groups == {"HealthcareService/avis-echo"}
    assert expert.roles == {"requester", "expert"}
    assert expert.display == "DR Hélène GARNIER"
    assert calls(hub, authorization="bearer  demo:moreau").roles == {"requester"}


@pytest.mark.parametrize(
    "told",
    [
        "Bearer demo:nobody",
        "Bearer demo:",
        "Bearer demo:a/b",
        "Bearer demo:\x00",
        "Bearer demo:" + "x" * 65,
        "Bearer garnier",
        "Basic ZGVtbzpnYXJuaWVy",
        "demo:garnier",
        "Bearer",
    ],
)
def test_who_cannot_be_known_is_refused(hub: Hub, told: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        calls(hub, authorization=told)
    assert refused.value.status == 401


def test_who_left_calls_no_more(hub: Hub) -> None:
    put(hub, PARTNER, read(hub, "PractitionerRole/benali") | {"active": False})
    delete(hub, PARTNER, "PractitionerRole/lefevre")
    for key in ("benali", "lefevre"):
        with pytest.raises(Unauthenticated, match="no active"):
            calls(hub, authorization=f"Bearer demo:{key}")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "127.8.9.1"]
)
def test_a_loopback_name_is_answered(hub: Hub, host: str) -> None:
    assert calls(hub, host=host).roles == {"partner"}


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "127.evil.example:8080",
        "localhost.evil.example",
        "192.168.1.10:8080",
        "0.0.0.0",
        "[::ffff:10.0.0.1]",
        "[::1",
        "user@evil.example",
        "127.0.0.1:x@evil.example",
        " ",
    ],
)
def test_a_name_that_only_looks_like_this_machine_is_not_answered(hub: Hub, name: str) -> None:
    for headers in ({"host": name}, {"origin": f"http://{name}"}):
        with pytest.raises(PasserelleError) as refused:
            calls(hub, **headers)
        assert isinstance(refused.value, Forbidden) and refused.value.status == 403


def test_a_page_of_another_place_is_not_answered(hub: Hub) -> None:
    for origin in ("null", "https://evil.example", "file://"):
        with pytest.raises(Forbidden):
            calls(hub, origin=origin)
    assert calls(hub, origin="http://localhost:3000").roles == {"partner"}


def test_without_the_demo_its_names_open_nothing(hub: Hub) -> None:
    closed = dataclasses.replace(hub.settings, auth="smart")
    for headers in ({"authorization": "Bearer demo:garnier"}, {}):
        with pytest.raises(Unauthenticated, match="SMART"):
            http_caller(hub.store, Gate(closed), headers, "127.0.0.1")


def test_the_request_id_of_the_client_is_kept_and_bounded(hub: Hub) -> None:
    assert calls(hub, **{"x-request-id": "abc"}).request_id == "abc"
    assert len(calls(hub, **{"x-request-id": "x" * 1000}).request_id) == 64


def test_a_wire_gives_its_callers_their_role(hub: Hub) -> None:
    device, message = wire_caller("dicom", "DICOM ECHO1", "192.0.2.1"), wire_caller("mllp", "GAM", "192.0.2.2:1")
    assert (device.roles, device.channel) == ({"device"}, "dicom")
    assert (message.roles, message.channel) == ({"system"}, "mllp")
    assert device.request_id != message.request_id
    assert SYSTEM.roles == {"system"}
