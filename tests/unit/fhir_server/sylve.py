"""A hub for the fictitious hospital of tests/data/hl7v2 (CH-SYLVE), and short ways to send its messages."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from hubs import found, hub_on

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import intake
from fhir_server.delivery.ports import Port
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from hl7v2 import ack
from hl7v2.ack import Ack

Resource = dict[str, Any]
DATA = Path(__file__).parents[2] / "data" / "hl7v2"
IPP, VISIT, ACCOUNT, ACSN = "urn:oid:2.25.990101", "urn:oid:2.25.990102", "urn:oid:2.25.990103", "urn:oid:2.25.990104"
INS = "urn:oid:1.2.250.1.213.1.4.10"
SITE = {
    "key": "sylve",
    "name": "Centre hospitalier de Sylvelande",
    "finess_eg": "990001234",
    "finess_ej": "990001200",
    "mode": "test",
    "facility": "CH-SYLVE",
    "sending_applications": [[name, "CH-SYLVE"] for name in ("GAM", "SIL", "RIS", "PFI", "AGENDA", "TLR")],
    "namespaces": [
        {"name": "ipp", "kind": "PI", "hd": ["CH-SYLVE", "990001234", "N"], "oid": IPP[8:]},
        {"name": "venue", "kind": "VN", "hd": ["CH-SYLVE", "990001234", "M"], "oid": VISIT[8:]},
        {"name": "dossier", "kind": "AN", "hd": ["CH-SYLVE", "990001234", "M"], "oid": ACCOUNT[8:]},
        {"name": "accession", "kind": "ACSN", "hd": ["PASSERELLE", "990001234", "N"], "oid": ACSN[8:]},
    ],
}
_NUMBERS = itertools.count(1)


def sylve(store: Store, **settings: Any) -> Hub:
    """The hub."""
    return hub_on(store, site=SITE, **settings)


def sample(name: str, *changes: tuple[str, str], fresh: bool = True) -> bytes:
    """A file of tests/data/hl7v2 with (old, new) replacements and, unless told otherwise, a control id of its own."""
    charset = "iso8859-15" if "latin9" in name else "utf-8"
    text = (DATA / f"{name}.er7").read_bytes().decode(charset).replace("\n", "\r")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    fields = text.split("|", 10)
    if fresh:
        fields[9] = f"N{next(_NUMBERS):09}"
    return "|".join(fields).encode(charset)


def say(hub: Hub, raw: bytes, port: Port | None = None) -> Ack:
    """Send it; what was answered."""
    return ack.read(intake.on_message(hub, raw, "192.0.2.7:5001", port))


def tell(hub: Hub, name: str, *changes: tuple[str, str]) -> InboxRow:
    """Send a sample that must be taken in; its inbox row."""
    told = say(hub, sample(name, *changes))
    assert told.code == "AA", (name, told)
    return row(hub, told.control_id)


def row(hub: Hub, control_id: str) -> InboxRow:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter(control_id=control_id))[0]


def patient(hub: Hub, ipp: str = "000417") -> Resource:
    """The one Patient that has this local identifier in force, active or not."""
    mine = [
        one
        for one in found(hub, "Patient", f"identifier={IPP}|{ipp}")
        if any(i.get("value") == ipp and i.get("use") != "old" for i in one["identifier"])
    ]
    assert len(mine) == 1, mine
    return mine[0]


def stays(hub: Hub, ipp: str = "000417") -> list[Resource]:
    return found(hub, "Encounter", f"subject=Patient/{patient(hub, ipp)['id']}")


def person(ipp: str, family: str = "MARTIN", given: str = "Luc", birth: str = "19700101", more: str = "") -> bytes:
    """An A28 of somebody else; `more` are further segments."""
    lines = [
        "MSH|^~\\&|GAM|CH-SYLVE|PASSERELLE|CH-SYLVE|20260302083011+0100||ADT^A28^ADT_A05|"
        f"N{next(_NUMBERS):09}|T|2.5^FRA^2.11|||||FRA|UNICODE UTF-8|FR||2.11^IHE_FRANCE-2.11-PAM",
        "EVN||20260302083011",
        f"PID|1||{ipp}^^^CH-SYLVE&990001234&N^PI||{family}^{given}^{given}^^M^^L||{birth}|M" + "|" * 23 + "N|PROV",
        *([more] if more else []),
    ]
    return ("\r".join(lines) + "\r").encode()
