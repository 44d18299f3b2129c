"""Our answer to a request by HL7 v2: what the requester's system reads, and what is never sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from report_sources import SITE, obstetric

from hl7v2.check import check
from hl7v2.message import parse
from mappers.fhir_to_hl7v2_orders import order_answer
from mappers.hl7v2_results_to_fhir import results
from mappers.mapped import Mapped

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
REPORT = obstetric()


def answer(decision: Any = "accepted", **more: Any) -> Mapped[bytes]:
    arguments: dict[str, Any] = {
        "site": SITE, "control_id": "NB2HI4DTHIXS653XO4XA", "now": NOW,
        "receiving_application": "RIS", "receiving_facility": "CH",
    }  # fmt: skip
    placer = more.pop("placer", ("urn:oid:2.25.4720", "DEM-2026-90"))
    return order_answer(placer, decision, REPORT.patient, REPORT.expert, **{**arguments, **more})


@pytest.mark.parametrize(("decision", "control", "reason"), [("accepted", "OK", ""), ("refused", "OC", "Hors champ")])
def test_the_decision_is_read_back_with_the_number_of_the_request(decision: str, control: str, reason: str) -> None:
    result = answer(decision, reason=reason)
    msg = parse(result.value)
    assert check(msg) == [] and result.losses == ()
    assert [segment.name for segment in msg.segments] == ["MSH", "PID", "PV1", "ORC", "OBR"]
    assert [msg.at(f"MSH-{n}").encoded for n in (9, 12, 21)] == ["ORU^R01^ORU_R01", "2.5.1", "1.0^CISIS_TLR_HL7_V2"]
    assert (msg.get("ORC-1"), msg.at("ORC-2").encoded) == (control, "DEM-2026-90^^2.25.4720^ISO")
    assert (msg.get("OBR-4"), msg.get("ORC-17"), msg.get("PV1-2")) == ("REPONSE_DEMANDE", "PLATEFORME_TLR", "N")
    read = results(msg, SITE).value.orders[0]
    assert (read.decision, read.reason) == (decision, reason)
    assert read.requests == (("urn:oid:2.25.4720", "DEM-2026-90"),)


def test_a_number_without_an_oid_is_sent_bare_and_told() -> None:
    result = answer(placer=("urn:local:ris", "D1"))
    assert parse(result.value).at("ORC-2").encoded == "D1"
    assert [loss.source for loss in result.losses] == ["ORC-2"]


def test_an_answer_that_names_no_request_or_contradicts_itself_is_never_sent() -> None:
    for changes, told in (
        ({"placer": ("", "")}, "must name the request"),
        ({"reason": "non"}, "goes with a refusal"),
        ({"control_id": "X" * 21}, "MSH-10"),
    ):
        with pytest.raises(ValueError, match=told):
            answer(**changes)


def test_a_hostile_reason_stays_in_its_field() -> None:
    msg = parse(answer("refused", reason="a|b^c\rMSH|^~\\&|EVIL").value)
    assert len(msg.all("MSH")) == 1 and msg.get("ORC-16.2") == "a|b^c\rMSH|^~\\&|EVIL"
