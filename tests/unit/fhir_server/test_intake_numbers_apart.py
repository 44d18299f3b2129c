"""A number is one thing only: two orders of one message, a placer's and a filler's number, a slot booked again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hubs import found, put
from sylve import patient, person, row, sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import arrivals
from fhir_server.delivery.arrivals import Draft
from fhir_server.delivery.order_numbers import GIVEN_BY, Number
from fhir_server.delivery.ports import Port
from fhir_server.demo import people
from fhir_server.store.engine import Store
from fhir_server.store.retention import prune
from hl7v2.ack import Ack

Resource = dict[str, Any]
ASKED = Port(group="avis-echo")
EI = "DEM-2026-90^^2.25.4720^ISO"
PLACER, FILLER = "RDV-501^AGENDA^2.25.4730^ISO", "9001^PASSERELLE^2.25.4731^ISO"
REASON = "Métrorragies au 2e trimestre"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    hub = sylve(open_url(sqlite_url))
    tell(hub, "adt-a01-admission")
    put(hub, SYSTEM, *people.structures("127.0.0.1:9", "127.0.0.1:10"), *people.professionals())
    return hub


def twice(*changes: tuple[str, str], second: tuple[tuple[str, str], ...]) -> bytes:
    """An ORM with two orders."""
    raw = sample("orm-o01-tlr-demande", *changes).decode()
    order = raw[raw.index("ORC|") :]
    for old, new in second:
        assert old in order
        order = order.replace(old, new)
    return (raw + order).encode()


def numbered(name: str, placer: str, filler: str) -> bytes:
    return sample(name, (PLACER, placer), (FILLER, filler))


def refused(told: Ack) -> tuple[str, str, str]:
    return told.code, told.errors[0].code, told.errors[0].location


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [EI, "90", "90^RIS-A"])
@pytest.mark.parametrize("control", ["ORC|NW|", "ORC|XO|"])
def test_two_orders_of_one_message_under_one_number_are_refused(hub: Hub, number: str, control: str) -> None:
    told = say(hub, twice((EI, number), second=((REASON, "SECOND"), ("ORC|NW|", control))), ASKED)
    assert refused(told) == ("AE", "205", "ORC^2^2") and number.partition("^")[0] in told.errors[0].text
    assert found(hub, "ServiceRequest") == [] and found(hub, "Observation") == []


def test_an_order_that_is_changed_twice_in_one_message_is_refused(hub: Hub) -> None:
    assert say(hub, sample("orm-o01-tlr-demande"), ASKED).code == "AA"
    told = say(hub, twice(("ORC|NW|", "ORC|XO|"), second=((REASON, "SECOND"),)), ASKED)
    assert refused(told) == ("AE", "205", "ORC^2^2")
    assert found(hub, "ServiceRequest")[0]["reasonCode"] == [{"text": REASON}]


def test_two_orders_of_one_message_under_two_numbers_are_two_requests(hub: Hub) -> None:
    assert say(hub, twice(second=((REASON, "SECOND"), ("DEM-2026-90", "DEM-2026-91"))), ASKED).code == "AA"
    assert sorted(one["reasonCode"][0]["text"] for one in found(hub, "ServiceRequest")) == [REASON, "SECOND"]


def test_an_order_whose_request_moved_to_another_patient_is_said_to_be_known(hub: Hub) -> None:
    assert say(hub, sample("orm-o01-tlr-demande", (EI, "90")), ASKED).code == "AA"
    assert say(hub, person("000399")).code == "AA"
    (request,) = found(hub, "ServiceRequest")
    pid = "PID|1||000399^^^CH-SYLVE&990001234&N^PI||MARTIN^Luc^Luc^^M^^L||19700101|M"
    pid += "|" * 10 + "26000123^^^CH-SYLVE&990001234&M^AN"
    mrg = "MRG|000417^^^CH-SYLVE&990001234&N^PI||||V2026-0417^^^CH-SYLVE&990001234&M^VN"
    base = (("2.5^FRA^2.11", "2.5"), ("2.11^IHE_FRANCE-2.11-PAM", ""))
    lines = {"PID": pid, "MRG": mrg}
    moved = sample("adt-a44-dossier-deplace", *base).decode().split("\r")
    assert say(hub, "\r".join(lines.get(line[:3], line) for line in moved).encode()).code == "AA"
    told = say(hub, sample("orm-o01-tlr-demande", (EI, "90"), (REASON, "AUTRE")), ASKED)
    assert refused(told) == ("AE", "205", "ORC^1^2") and request["id"] in told.errors[0].text
    assert found(hub, "ServiceRequest")[0]["reasonCode"] == [{"text": REASON}]


def test_an_order_names_its_number_once_when_the_bytes_of_the_last_one_are_gone(hub: Hub) -> None:
    assert say(hub, sample("orm-o01-tlr-demande", (EI, "90")), ASKED).code == "AA"
    tell(hub, "omi-o23-tlr-complement", (EI, "90"))
    (held,) = found(hub, "ServiceRequest")
    before = [{k: v for k, v in one.items() if k != "extension"} for one in held["identifier"]]
    assert len(before) == 3, "that of the placer, our own, and the accession number"
    put(hub, SYSTEM, {**{k: v for k, v in held.items() if k != "meta"}, "identifier": before})
    assert prune(hub.store, 0).messages
    told = say(hub, sample("orm-o01-tlr-demande", (EI, "90"), ("ORC|NW|", "ORC|XO|")), ASKED)
    assert told.code == "AA"
    (held,) = found(hub, "ServiceRequest")
    assert [one["value"] for one in held["identifier"]] == [one["value"] for one in before]
    assert [one["url"] for one in held["identifier"][0]["extension"]] == [GIVEN_BY]


def test_the_versions_of_a_draft_are_read_page_by_page_and_only_as_far_as_they_are_asked_for(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_SOME", 2)
    reference = f"Patient/{patient(hub)['id']}"
    for street in "abcd":
        tell(hub, "adt-a01-admission", ("12 bis rue des Lilas", f"rue {street}"))
    with hub.store.read(SYSTEM) as snapshot:
        versions = Draft(snapshot).versions(reference)
        assert next(versions)["meta"]["versionId"] == "5"
        assert [one["meta"]["versionId"] for one in versions] == ["4", "3", "2", "1"]


# --- slots ------------------------------------------------------------------------------------------------------------


def test_a_placer_number_is_no_filler_number() -> None:
    placer, filler, unsaid = (Number("", "12", sender="A|B", kind=kind) for kind in ("PLAC", "FILL", ""))
    assert not placer.agrees(filler) and placer.agrees(unsaid) and unsaid.agrees(filler)
    assert Number("urn:oid:1.2", "12", kind="PLAC").agrees(Number("urn:oid:1.2", "12", kind="FILL"))


@pytest.mark.parametrize("crossed", [("12", "56"), ("12", "34")])
def test_the_placer_number_of_one_appointment_is_not_the_filler_number_of_another(
    hub: Hub, crossed: tuple[str, str]
) -> None:
    assert say(hub, numbered("siu-s12-reservation", "34", "12")).code == "AA"
    told = say(hub, numbered("siu-s15-annulation", *crossed))
    assert refused(told) == ("AE", "204", "SCH^1^1"), "no such appointment yet"
    assert say(hub, numbered("siu-s12-reservation", *crossed)).code == "AA"
    assert len(found(hub, "Appointment")) == 2
    assert say(hub, numbered("siu-s15-annulation", *crossed)).code == "AA"
    assert sorted(one["status"] for one in found(hub, "Appointment")) == ["booked", "cancelled"]
    assert say(hub, numbered("siu-s13-deplacement", "34", "12")).code == "AA"
    states = {one["status"]: one["start"][:10] for one in found(hub, "Appointment")}
    assert states["booked"] == "2026-03-11"


@pytest.mark.parametrize(("placer", "filler"), [(PLACER, FILLER), ("501", ""), ("501^AGENDA-A", "")])
def test_an_appointment_that_was_given_up_is_booked_again(hub: Hub, placer: str, filler: str) -> None:
    assert say(hub, numbered("siu-s12-reservation", placer, filler)).code == "AA"
    assert say(hub, numbered("siu-s15-annulation", placer, filler)).code == "AA"
    (given_up,) = found(hub, "Appointment")
    told = say(hub, numbered("siu-s12-reservation", placer, filler))
    assert told.code == "AA" and "it is booked again" in row(hub, told.control_id).note
    (again,) = found(hub, "Appointment")
    assert (again["id"], again["status"]) == (given_up["id"], "booked") and "cancelationReason" not in again
    assert again["start"].startswith("2026-03-10T09:30")
    assert refused(say(hub, numbered("siu-s12-reservation", placer, filler))) == ("AE", "205", "SCH^1^1")


def test_an_appointment_of_somebody_else_that_was_given_up_is_not_booked_again(hub: Hub) -> None:
    tell(hub, "siu-s12-reservation")
    tell(hub, "siu-s15-annulation")
    assert say(hub, person("000500")).code == "AA"
    luc = "PID|1||000500^^^CH-SYLVE&990001234&N^PI||MARTIN^Luc^Luc^^M^^L||19700101|M"
    lines = sample("siu-s12-reservation").decode().split("\r")
    told = say(hub, "\r".join(luc if line.startswith("PID") else line for line in lines).encode())
    assert told.code == "AE" and told.errors[0].business == "904"
    assert found(hub, "Appointment")[0]["status"] == "cancelled"
