"""Seventeen messages mapped by another converter: the same resources and key fields, or a reason why not.

The reasons stand in tests/data/hl7v2/oracle-differences.txt, `messages | what | reason`, each message by its name and
each value by itself: `-` what the other converter says and we do not, `+` what we say and it does not. A difference
that is not listed fails, and so does a message that is named and does not differ so. Counts of resources that we
reference logically (people, structures, places) are not compared.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from adt_samples import DATA

from hl7v2.message import Message, parse
from mappers.hl7v2_documents_to_fhir import document
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_orders_to_fhir import orders
from mappers.hl7v2_results_to_fhir import results
from mappers.hl7v2_to_fhir import adt, split
from mappers.identity import Namespace, Site

Resource = dict[str, Any]

NAMES = (
    "ADT-A01-02", "ADT-A03-02", "ADT-A04-02", "ADT-A05-02", "ADT-A08-02", "ADT-A28-02", "ADT-A31-02", "ADT-A40-02",
    "ADT01-28", "ADT04-251", "LAB-ORU-1", "LRI_2.0-NG_CBC_Typ_Message", "MDM-T02-02", "ORM-O01-01", "ORM-O01-03",
    "ORM-O01-05", "ORU-R01-01",
)  # fmt: skip

SITE = Site(
    key="oracle", name="Oracle", finess_eg="", finess_ej="", mode="test", application="A", facility="B",
    sending_applications=(), ae_titles=(), ae_namespaces=(), mailboxes=(),
    namespaces=(
        Namespace("visit", "VN", ("AccMng", "1.2", "HCD"), "2.25.1", "urn:oid:2.25.1", "VN"),
        Namespace("account", "VN", ("AccMgr", "", ""), "2.25.2", "urn:oid:2.25.2", "VN"),
    ),
)  # fmt: skip


def ours(msg: Message) -> list[Resource]:
    """What we make of a message, as a flat list."""
    if msg.kind == "ADT":
        said = [adt(part, SITE).value for part in split(msg)]
        return [one for result in said for one in (result.patient, result.encounter) if one]
    if msg.kind == "ORU":
        read = results(msg, SITE).value
        out = [read.patient.patient]
        for order in read.orders:
            out += [built.resource for built in (order.report, *order.observations, *order.specimens)]
        return out
    if msg.kind == "MDM":
        mdm = document(msg, SITE).value
        return [mdm.patient.patient, mdm.reference.resource]
    asked = orders(msg, SITE).value
    out = [asked.patient.patient]
    for one in asked.orders:
        out += [built.resource for built in (one.request, *one.observations)]
    return out


def of(resources: list[Resource], kind: str) -> list[Resource]:
    return [resource for resource in resources if resource["resourceType"] == kind]


def instant(text: str, raw: str) -> str:
    """A date as it is. A moment as the wall clock where the message has it without an offset (each converter puts its
    own zone there), else in UTC."""
    if "T" not in text:
        return text
    moment = datetime.fromisoformat(text)
    wall = rf"{moment:%Y%m%d%H%M}\d*(\.\d+)?(?![\d.+-])"
    return f"{moment:%Y-%m-%dT%H:%M}" if re.search(wall, raw) else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


def code(resource: Resource) -> str:
    coding = resource.get("code", {}).get("coding") or [{}]
    return str(coding[0].get("code", ""))


def value(resource: Resource) -> str:
    quantity = resource.get("valueQuantity", {})
    text = resource.get("valueString", "")
    coded = resource.get("valueCodeableConcept", {}).get("coding", [{}])[0].get("code", "")
    return " ".join(str(part) for part in (quantity.get("value", ""), text, coded) if part != "")


def identifiers(resource: Resource) -> list[str]:
    return [one["value"] for one in resource.get("identifier", ()) if one.get("value")]


KEYS: dict[str, dict[str, Callable[[Resource], Any]]] = {
    "Patient": {
        "gender": lambda r: r.get("gender"),
        "birthDate": lambda r: r.get("birthDate"),
        "family": lambda r: [name["family"] for name in r.get("name", ()) if name.get("family")],
        "given": lambda r: [given for name in r.get("name", ()) for given in name.get("given", ())],
    },
    "Encounter": {"class": lambda r: r["class"]["code"], "status": lambda r: r["status"]},
    "Observation": {
        "status": lambda r: (code(r), r["status"]),
        "value": lambda r: (code(r), value(r)),
        "unit": lambda r: (code(r), r.get("valueQuantity", {}).get("unit") or r.get("valueQuantity", {}).get("code")),
        "code": code,
    },
    "DiagnosticReport": {"code": code, "status": lambda r: (code(r), r["status"])},
    "ServiceRequest": {"code": code, "status": lambda r: r["status"]},
    "DocumentReference": {
        "masterIdentifier": lambda r: r.get("masterIdentifier", {}).get("value", "").removeprefix("urn:oid:"),
        "docStatus": lambda r: r.get("docStatus"),
        "type": lambda r: r.get("type", {}).get("coding", [{}])[0].get("code"),
    },
}
DATES = {
    "Encounter": {"start": lambda r: r.get("period", {}).get("start"), "end": lambda r: r.get("period", {}).get("end")},
    "Observation": {"effective": lambda r: r.get("effectiveDateTime") or r.get("effectivePeriod", {}).get("start")},
    "DiagnosticReport": {
        "effective": lambda r: r.get("effectiveDateTime") or r.get("effectivePeriod", {}).get("start"),
        "issued": lambda r: r.get("issued"),
    },
    "ServiceRequest": {"authoredOn": lambda r: r.get("authoredOn")},
    "DocumentReference": {"date": lambda r: r.get("date")},
}  # fmt: skip
"""Compared as moments."""


def read_by(kind: str, raw: str) -> dict[str, Callable[[Resource], Any]]:
    """What is compared of a resource of a message."""
    dates = {
        name: lambda r, read=read: (code(r), instant(read(r) or "", raw)) for name, read in DATES.get(kind, {}).items()
    }
    return {"identifier": identifiers, **KEYS[kind], **dates}


def said(read: Callable[[Resource], Any], resources: list[Resource]) -> Iterator[str]:
    """What resources say by one of the keys: each identifier or name apart."""
    for resource in resources:
        value = read(resource)
        if isinstance(value, tuple):
            value = " ".join(str(part) for part in value if part)
        yield from value if isinstance(value, list) else [str(value)]


def differences(name: str, folder: Path) -> set[str]:
    msg = parse((folder / f"{name}.hl7").read_bytes())
    expected = [entry["resource"] for entry in json.loads((folder / f"{name}.expected.json").read_text())["entry"]]
    try:
        made = ours(msg)
    except Refused:
        return {"refused"}
    wanted, have = ({resource["resourceType"] for resource in side} for side in (expected, made))
    out = {f"no {kind}" for kind in wanted - have} | {f"also {kind}" for kind in have - wanted}
    for kind in sorted(wanted & have & set(KEYS)):
        theirs, mine = of(expected, kind), of(made, kind)
        if len(theirs) != len(mine):
            out.add(f"{kind} count")
        for field, read in read_by(kind, msg.raw.decode()).items():
            lacks, more = Counter(said(read, theirs)), Counter(said(read, mine))
            told = [f"-{one}" for one in sorted(lacks - more)] + [f"+{one}" for one in sorted(more - lacks)]
            if told:
                out.add(f"{kind}.{field} {', '.join(told)}")
    return out


def listed() -> dict[tuple[str, str], str]:
    rows = {}
    for line in (DATA / "oracle-differences.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            messages, what, reason = (part.strip() for part in line.split("|"))
            for name in messages.split():
                assert (name, what) not in rows, f"{name} | {what} is listed twice"
                rows[name, what] = reason
    return rows


def test_every_listed_difference_has_a_reason() -> None:
    rows = listed()
    assert all(len(reason) > 20 for reason in rows.values())
    assert {name for name, _ in rows} <= {*NAMES}


@pytest.mark.needs("shared")
@pytest.mark.parametrize("name", NAMES)
def test_a_message_becomes_what_the_other_converter_makes_of_it_or_the_reason_is_listed(
    name: str, shared: Path
) -> None:
    found = differences(name, shared / "hl7v2-to-fhir-oracle")
    assert found == {what for of_, what in listed() if of_ == name}


@pytest.mark.needs("shared")
def test_every_message_is_compared(shared: Path) -> None:
    assert {path.stem for path in (shared / "hl7v2-to-fhir-oracle").glob("*.hl7")} == set(NAMES)
