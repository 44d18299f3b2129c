"""What becomes of a report and of its documents when it is corrected, when they are withdrawn, or when it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hubs import found, put, read
from sylve import DATA, person, sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery.intake_documents import stable_id
from fhir_server.store.engine import Store
from hl7v2 import message

Resource = dict[str, Any]
PDF = "OBX|8|ED|11502-2^CR d'examens biologiques^LN||^application^pdf^Base64^JVBERi0xLjQgZXNzYWk=||||||F"
OTHER = PDF.replace("JVBERi0xLjQgZXNzYWk=", "JVBERi0xLjQgYXV0cmU=")
MORE = "OBX|8|NM|1751-7^Albumine^LN||41|g/L^^UCUM||||||F"


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = sylve(store)
    tell(hub, "adt-a01-admission")
    return hub


def report(hub: Hub) -> Resource:
    (one,) = found(hub, "DiagnosticReport")
    return one


def documents(hub: Hub) -> dict[str, str]:
    """Status by the bytes that a document names."""
    held = found(hub, "DocumentReference")
    assert len({one["content"][0]["attachment"]["url"] for one in held}) == len(held)
    return {one["content"][0]["attachment"]["url"]: one["status"] for one in held}


def presented(hub: Hub) -> list[str]:
    return [one["url"] for one in report(hub).get("presentedForm", ())]


def test_a_document_is_corrected_however_many_results_stand_before_it(hub: Hub) -> None:
    tell(hub, "oru-r01-biologie")
    before = documents(hub)
    tell(hub, "oru-r01-biologie", ("|CH|F|", "|CH|C|"), (PDF, f"{MORE}\r{OTHER.replace('OBX|8|', 'OBX|9|')}"))
    (url,) = documents(hub)
    assert documents(hub) == {url: "current"} and url not in before, "the wrong one is a past version"
    assert presented(hub) == [url] and report(hub)["status"] == "corrected"


def test_a_document_that_a_correction_does_not_repeat_is_superseded(hub: Hub) -> None:
    second = OTHER.replace("OBX|8|", "OBX|9|")
    tell(hub, "oru-r01-biologie", (PDF, f"{PDF}\r{second}"))
    first, other = presented(hub)
    tell(hub, "oru-r01-biologie", ("|CH|F|", "|CH|C|"))
    assert documents(hub) == {first: "current", other: "superseded"} and presented(hub) == [first]
    tell(hub, "oru-r01-biologie", ("|CH|F|", "|CH|C|"), (f"{PDF}\r", ""))
    assert documents(hub) == {first: "superseded", other: "superseded"} and presented(hub) == []


def test_results_that_follow_without_a_document_leave_it_in_force(hub: Hub) -> None:
    tell(hub, "oru-r01-biologie", ("|CH|F|", "|CH|P|"))
    tell(hub, "oru-r01-biologie", (f"{PDF}\r", ""))
    (url,) = presented(hub)
    assert documents(hub) == {url: "current"} and report(hub)["status"] == "final"


def test_a_document_stored_under_the_number_of_its_obx_is_found_again(hub: Hub) -> None:
    tell(hub, "oru-r01-biologie")
    (new,) = found(hub, "DocumentReference")
    seed = ("sylve", "urn:oid:2.25.4721", "LAB-4411", "24331-1")
    old = {**{k: v for k, v in new.items() if k != "meta"}, "id": stable_id("enclosed", *seed, "8")}
    assert new["id"] == stable_id("enclosed", *seed, "ED", "1")
    hub.store.write(SYSTEM, lambda tx: tx.delete("DocumentReference", new["id"]))
    put(hub, SYSTEM, old)
    tell(hub, "oru-r01-biologie", ("|CH|F|", "|CH|C|"), (PDF, OTHER))
    (one,) = found(hub, "DocumentReference")
    assert one["id"] == old["id"] and presented(hub) == [one["content"][0]["attachment"]["url"]]
    tell(hub, "oru-r01-biologie", ("|CH|F|", "|CH|C|"), (PDF, f"{MORE}\r{PDF.replace('OBX|8|', 'OBX|9|')}"))
    assert read(hub, f"DocumentReference/{old['id']}")["status"] == "superseded"
    assert list(documents(hub).values()).count("current") == 1


@pytest.mark.parametrize("bytes_too", [True, False])
def test_a_withdrawn_document_is_not_presented_any_more_and_the_results_stand(hub: Hub, bytes_too: bool) -> None:
    tell(hub, "oru-r01-biologie")
    (url,) = presented(hub)
    row = PDF[:-1] + "D" if bytes_too else "OBX|8|ED|11502-2^CR d'examens biologiques^LN||||||||D"
    tell(hub, "oru-r01-biologie", (PDF, row))
    assert documents(hub) == {url: "entered-in-error"} and presented(hub) == []
    assert report(hub)["status"] == "final" and len(report(hub)["result"]) == 7


@pytest.mark.parametrize("rows", [PDF, ""])
def test_a_cancelled_report_takes_its_documents_with_it(hub: Hub, rows: str) -> None:
    tell(hub, "oru-r01-biologie")
    (url,) = presented(hub)
    tell(hub, "oru-r01-biologie", ("|CH|F|", "|CH|X|"), (f"{PDF}\r", f"{rows}\r" if rows else ""))
    assert documents(hub) == {url: "entered-in-error"}
    assert (report(hub)["status"], presented(hub)) == ("cancelled", [])


def only_the_document(row: str, status: str = "F") -> bytes:
    lines = sample("oru-r01-biologie", ("|CH|F|", f"|CH|{status}|")).decode().split("\r")
    kept = [line for line in lines if line[:3] in ("MSH", "PID", "PV1", "ORC", "OBR")]
    return ("\r".join([*kept, row]) + "\r").encode()


@pytest.mark.parametrize(
    ("row", "status", "document"), [("C", "corrected", "current"), ("D", "entered-in-error", "entered-in-error")]
)
def test_a_report_that_is_its_document_goes_the_way_of_it(hub: Hub, row: str, status: str, document: str) -> None:
    assert say(hub, only_the_document(PDF)).code == "AA" and report(hub)["status"] == "final"
    assert say(hub, only_the_document(PDF[:-1] + row)).code == "AA"
    assert report(hub)["status"] == status and list(documents(hub).values()) == [document]


def pushed(raw: bytes, order: str, row: str) -> bytes:
    """A push with another ORC-1 and OBX-11; OBR-25 stays F, as in the national sample."""
    msg = message.parse(raw.replace(b"\n", b"\r")).set("MSH-10", f"PUSH{order}").set("MSH-11", "T").set("ORC-1", order)
    return msg.set("OBX[1]-11", row).raw


def a_push_is_replaced_and_withdrawn(hub: Hub, path: Path) -> None:
    raw = path.read_bytes().replace(b"\r\n", b"\n")
    pid = next(line for line in raw.replace(b"\n", b"\r").split(b"\r") if line.startswith(b"PID"))
    known = person("000500").split(b"\r")
    assert say(hub, b"\r".join(pid if one.startswith(b"PID") else one for one in known)).code == "AA"
    for order, row, status, document in (
        ("NW", "F", "final", "current"),
        ("RO", "C", "corrected", "current"),
        ("CA", "D", "entered-in-error", "entered-in-error"),
    ):
        told = say(hub, pushed(raw, order, row))
        assert told.code == "AA", told
        assert (report(hub)["status"], list(documents(hub).values())) == (status, [document])
    assert presented(hub) == []


def test_our_own_push_is_replaced_and_withdrawn_with_its_report(hub: Hub) -> None:
    a_push_is_replaced_and_withdrawn(hub, DATA / "oru-r01-push-2.1.golden.hl7")


@pytest.mark.needs("shared")
def test_the_national_push_is_replaced_and_withdrawn_with_its_report(hub: Hub, shared: Path) -> None:
    a_push_is_replaced_and_withdrawn(hub, shared / "ans-hl7v2" / "oru-r01-initial.hl7")
