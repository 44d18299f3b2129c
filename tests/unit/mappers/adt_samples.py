"""Messages of the hospital and the site they come to, for the tests of the mappers from HL7 v2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hl7v2.message import Message, parse
from mappers.hl7v2_to_fhir import AdtResult, adt
from mappers.identity import Namespace, Site
from mappers.mapped import Mapped

DATA = Path(__file__).resolve().parents[2] / "data" / "hl7v2"
TEST_INS = ("urn:oid:1.2.250.1.213.1.4.10", "284056912345640")

SITE = Site(
    key="sylve",
    name="Centre hospitalier de Sylvelande",
    finess_eg="990001234",
    finess_ej="990001200",
    mode="test",
    application="PASSERELLE",
    facility="CH-SYLVE",
    sending_applications=(("GAM", "CH-SYLVE"),),
    ae_titles=(),
    ae_namespaces=(),
    mailboxes=(),
    namespaces=(
        Namespace("ipp", "PI", ("CH-SYLVE", "990001234", "N"), "2.25.4711", "urn:oid:2.25.4711", "PI"),
        Namespace("venue", "VN", ("CH-SYLVE", "990001234", "M"), "2.25.4712", "urn:oid:2.25.4712", "VN"),
        Namespace("dossier", "AN", ("CH-SYLVE", "990001234", "M"), "2.25.4713", "urn:oid:2.25.4713", "AN"),
    ),
)
PRODUCTION = replace(SITE, mode="production")


def sample(name: str) -> Message:
    return parse((DATA / f"{name}.er7").read_bytes().replace(b"\n", b"\r"))


def mapped(msg: Message | str, site: Site = SITE) -> Mapped[AdtResult]:
    return adt(sample(msg) if isinstance(msg, str) else msg, site)


def reasons(result: Mapped[Any]) -> str:
    return "\n".join(f"{loss.source}: {loss.reason}" for loss in result.losses)


def status(patient: dict[str, Any]) -> str:
    for extension in patient.get("extension", []):
        for part in extension.get("extension", []):
            if part["url"] == "identityStatus":
                return str(part["valueCoding"]["code"])
    return ""


ADMISSION = sample("adt-a01-admission")
