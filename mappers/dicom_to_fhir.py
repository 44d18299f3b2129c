"""DICOM objects -> one FHIR R4 ImagingStudy per Study Instance UID, and the identifiers its patient is matched by.

Hides how issuers, person names, times and codes are spelt on the DICOM side. A patient is never guessed: an
identifier whose issuer is named but unknown to the site stays unqualified.

Sources: https://hl7.org/fhir/R4/imagingstudy.html and imagingstudy-mappings.html#dicom; PS3.3 C.2.2, C.2.3, C.7.2,
C.7.3; PS3.5 section 6.2 (DA, TM, PN); PS3.16 CID 4 and table 8-1 (coding schemes).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from dicom_node.header import Code, Header, Identifier
from mappers.identity import Namespace, Site
from mappers.mapped import Loss, Mapped

Resource = dict[str, Any]

DCM = "http://dicom.nema.org/resources/ontology/DCM"
_SCHEMES = {"DCM": DCM, "SCT": "http://snomed.info/sct", "LN": "http://loinc.org", "UCUM": "http://unitsofmeasure.org"}
_LATERALITY = {"R": ("24028007", "Right"), "L": ("7771000", "Left"), "B": ("51440002", "Right and left")}
_TEST_KINDS = ("INS-NIR-TEST", "INS-NIR-DEMO")
_IDENTIFIER_TYPES = "http://terminology.hl7.org/CodeSystem/v2-0203"
_REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_NONE = Identifier("")
_NAME_GROUPS = ("ABC", "IDE", "SYL")


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One stored object of a series."""

    uid: str
    sop_class_uid: str
    number: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """One series; dates, times and numbers are DICOM text."""

    uid: str
    modality: str
    instances: tuple[InstanceRecord, ...]
    number: str = ""
    description: str = ""
    date: str = ""
    time: str = ""
    body_part: str = ""
    anatomic_regions: tuple[Code, ...] = ()
    laterality: str = ""
    performer: str = ""


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One study as the index knows it. `patient_ids` are (FHIR system or '', value); names are DICOM PN."""

    uid: str
    series: tuple[SeriesRecord, ...]
    patient_ids: tuple[tuple[str, str], ...] = ()
    patient_name: str = ""
    accession_number: Identifier = _NONE
    study_id: str = ""
    date: str = ""
    time: str = ""
    timezone_offset: str = ""
    description: str = ""
    referrer: str = ""
    procedure_codes: tuple[Code, ...] = ()


def study_id(uid: str) -> str:
    """Logical id of the ImagingStudy of a Study Instance UID: always the same one (UUID version 5)."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, uid))


def study_record(headers: Sequence[Header], site: Site, calling_ae: str) -> StudyRecord:
    """The record of a study from the headers of its objects (at least one); study facts are those of the first."""
    first = headers[0]
    members: dict[str, dict[str, Header]] = {}
    for header in headers:
        members.setdefault(header.series_instance_uid, {}).setdefault(header.sop_instance_uid, header)
    return StudyRecord(
        first.study_instance_uid,
        tuple(_series_record(tuple(objects.values())) for objects in members.values()),
        patient_ids(first, site, calling_ae) or _bare_id(first.patient_id, site),
        first.patient_name,
        accession(first),
        first.study_id,
        first.study_date,
        first.study_time,
        first.timezone_offset_from_utc,
        first.study_description,
        first.referring_physician_name,
        first.procedure_codes,
    )


def _bare_id(identifier: Identifier, site: Site) -> tuple[tuple[str, str], ...]:
    """A Patient ID of no known namespace, so that a person can look for it; no test identity in production."""
    tests = [namespace for namespace in site.namespaces if namespace.kind in _TEST_KINDS]
    forbidden = site.mode == "production" and any(_issued(identifier, namespace) for namespace in tests)
    return () if forbidden else (("", identifier.value),)


def _series_record(headers: tuple[Header, ...]) -> SeriesRecord:
    first = headers[0]
    return SeriesRecord(
        first.series_instance_uid,
        first.modality,
        tuple(
            InstanceRecord(h.sop_instance_uid, h.sop_class_uid, h.instance_number, h.image_type.replace("\\", " / "))
            for h in headers
        ),
        first.series_number,
        first.series_description,
        first.series_date,
        first.series_time,
        first.body_part_examined,
        first.anatomic_regions,
        first.laterality,
        first.performing_physician_name or first.operators_name,
    )


def accession(header: Header) -> Identifier:
    """The accession number of the object: its own, else the only one of its requests (0040,0275)."""
    if header.accession_number.value:
        return header.accession_number
    requested = {number for number in header.requested_accession_numbers if number.value}
    return requested.pop() if len(requested) == 1 else _NONE


def patient_ids(header: Header, site: Site, calling_ae: str) -> tuple[tuple[str, str], ...]:
    """(FHIR system, value) of each patient identifier whose namespace is certain, Patient ID (0010,0020) first."""
    return identity(header, site, calling_ae).value


def identity(header: Header, site: Site, calling_ae: str) -> Mapped[tuple[tuple[str, str], ...]]:
    """As `patient_ids`, with what was left out and why.

    The issuer is looked for as OID (0010,0024), then as Issuer of Patient ID (0010,0021), then by the calling AE
    title; an issuer that is named but unknown is not replaced by the AE's namespace.
    """
    found: dict[tuple[str, str], None] = {}
    losses: list[Loss] = []
    default = dict(site.ae_namespaces).get(calling_ae, "")
    for number, identifier in enumerate((header.patient_id, *header.other_patient_ids)):
        where = "(0010,0020)" if number == 0 else f"(0010,1002)[{number}]"
        value = identifier.value.strip()
        if not value:
            continue
        system, reason = _system(identifier, site, default if number == 0 else "", ("ACSN", "VN", "AN"))
        if system:
            found[system, value] = None
        else:
            losses.append(Loss(where, f"identifier not used: {reason}"))
    return Mapped(tuple(found), tuple(losses))


def _system(identifier: Identifier, site: Site, default: str, excluded: Iterable[str]) -> tuple[str, str]:
    """(FHIR system, '') or ('', why there is none)."""
    usable = [namespace for namespace in site.namespaces if namespace.kind not in excluded]
    if identifier.universal_id:
        namespace = next((n for n in usable if _universal(identifier, n)), None)
        if (
            namespace is None
            and identifier.universal_id_type in ("ISO", "")
            and _OID.fullmatch(identifier.universal_id)
        ):
            return f"urn:oid:{identifier.universal_id}", ""
        unknown = f"issuer {identifier.universal_id!r} is unknown to site {site.key}"
    elif identifier.issuer:
        named = [n for n in usable if _issued(identifier, n)]
        namespace = named[0] if len(named) == 1 else None
        unknown = f"issuer {identifier.issuer!r} is {'ambiguous' if named else 'unknown'} at site {site.key}"
    else:
        namespace = next((n for n in usable if n.name == default), None) if default else None
        unknown = "it has no issuer, and the calling AE title has no default namespace"
    if namespace is None:
        return "", unknown
    if site.mode == "production" and namespace.kind in _TEST_KINDS:
        return "", f"{namespace.name} is a test namespace and site {site.key} is in production"
    return namespace.fhir_system, ""


def _issued(identifier: Identifier, namespace: Namespace) -> bool:
    """Whether the issuer a data set names, by whichever of its attributes, is that of a namespace."""
    if identifier.universal_id:
        return _universal(identifier, namespace)
    return bool(identifier.issuer) and identifier.issuer in (namespace.dicom_issuer, namespace.hd[0], namespace.oid)


def _universal(identifier: Identifier, namespace: Namespace) -> bool:
    return identifier.universal_id == namespace.oid or (
        identifier.universal_id == namespace.hd[1] and identifier.universal_id_type == namespace.hd[2]
    )


def human_names(name: str) -> list[Resource]:
    """FHIR HumanName of a PN: one for each component group, the ideographic and phonetic ones marked as such."""
    groups = name.split("=")[:3]
    made = []
    for group, representation in zip(groups, _NAME_GROUPS, strict=False):
        family, given, middle, prefix, suffix = (part.strip() for part in (group.split("^") + [""] * 5)[:5])
        human: Resource = {}
        if len(groups) > 1:
            human["extension"] = [{"url": _REPRESENTATION, "valueCode": representation}]
        human |= {"family": family} if family else {}
        human |= {"given": [part for part in (given, middle) if part]} if given or middle else {}
        human |= {"prefix": [prefix]} if prefix else {}
        human |= {"suffix": [suffix]} if suffix else {}
        if human.keys() - {"extension"}:
            made.append(human)
    return made


def display_name(name: str) -> str:
    """A PN as a person reads it: prefix, given names, family, suffix of the first group that has any."""
    for human in human_names(name):
        parts = [*human.get("prefix", ()), *human.get("given", ()), human.get("family", ""), *human.get("suffix", ())]
        return " ".join(part for part in parts if part)
    return ""


def imaging_study(
    study: StudyRecord,
    *,
    site: Site,
    subject: str = "",
    based_on: Sequence[str] = (),
    endpoints: Sequence[str] = (),
    status: Literal["registered", "available", "cancelled", "entered-in-error", "unknown"] = "available",
) -> Mapped[Resource]:
    """The ImagingStudy. `subject`, `based_on` and `endpoints` are references such as `Patient/1`.

    Without `subject` the study is unmatched: its subject carries the DICOM identifier and name alone.
    """
    losses: list[Loss] = []
    series = [_series(s, study, site, losses) for s in sorted(study.series, key=lambda s: (_order(s.number), s.uid))]
    modalities = sorted({s["modality"]["code"] for s in series})
    named: Resource = {"display": display_name(study.referrer)} if display_name(study.referrer) else {}
    made: Resource = {
        "resourceType": "ImagingStudy",
        "id": study_id(study.uid),
        "identifier": _identifiers(study, site, losses),
        "status": status,
        "modality": [{"system": DCM, "code": code} for code in modalities],
        "subject": {"reference": subject} if subject else _unmatched(study),
        "started": moment(study.date, study.time, study.timezone_offset, site.time_zone, "(0008,0020)", losses),
        "basedOn": [{"reference": reference} for reference in based_on],
        "referrer": named,
        "endpoint": [{"reference": reference} for reference in endpoints],
        "numberOfSeries": len(series),
        "numberOfInstances": sum(s["numberOfInstances"] for s in series),
        "procedureCode": [
            {"coding": [_coding(code, "(0008,1032)", losses)], "text": code.meaning or code.value}
            for code in study.procedure_codes
        ],
        "description": study.description,
        "series": series,
    }
    return Mapped(_filled(made), tuple(losses))


def _identifiers(study: StudyRecord, site: Site, losses: list[Loss]) -> list[Resource]:
    made: list[Resource] = [{"system": "urn:dicom:uid", "value": f"urn:oid:{study.uid}"}]
    if study.accession_number.value:
        owned = next((n.name for n in site.namespaces if n.kind == "ACSN"), "")
        others = {n.kind for n in site.namespaces} - {"ACSN"}
        system, reason = _system(study.accession_number, site, owned, others)
        if not system:
            losses.append(Loss("(0008,0050)", f"accession number has no system: {reason}"))
        kind = {"coding": [{"system": _IDENTIFIER_TYPES, "code": "ACSN"}]}
        made.append({"type": kind, **({"system": system} if system else {}), "value": study.accession_number.value})
    if study.study_id:
        made.append({"type": {"text": "Study ID"}, "value": study.study_id})
    return made


def _unmatched(study: StudyRecord) -> Resource:
    subject: Resource = {"display": display_name(study.patient_name) or "Patient non identifié"}
    for system, value in [pair for pair in study.patient_ids if pair[1]][:1]:
        subject["identifier"] = {**({"system": system} if system else {}), "value": value}
    return subject


def _series(series: SeriesRecord, study: StudyRecord, site: Site, losses: list[Loss]) -> Resource:
    where = f"(0020,000E) {series.uid}"
    if not series.modality:
        losses.append(Loss(where, "the series has no modality; OT (other) stands for it"))
    instances = sorted(series.instances, key=lambda i: (_order(i.number), i.uid))
    performer = display_name(series.performer)
    return _filled(
        {
            "uid": series.uid,
            "number": _whole(series.number, f"{where} (0020,0011)", losses),
            "modality": {"system": DCM, "code": series.modality or "OT"},
            "description": series.description,
            "numberOfInstances": len(instances),
            "bodySite": _body_site(series, losses),
            "laterality": _laterality(series, losses),
            "started": moment(series.date, series.time, study.timezone_offset, site.time_zone, where, losses),
            "performer": [{"actor": {"display": performer}}] if performer else [],
            "instance": [_instance(instance, losses) for instance in instances],
        }
    )


def _instance(instance: InstanceRecord, losses: list[Loss]) -> Resource:
    return _filled(
        {
            "uid": instance.uid,
            "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{instance.sop_class_uid}"},
            "number": _whole(instance.number, f"(0008,0018) {instance.uid} (0020,0013)", losses),
            "title": instance.title,
        }
    )


def _body_site(series: SeriesRecord, losses: list[Loss]) -> Resource:
    if series.anatomic_regions:
        return _coding(series.anatomic_regions[0], "(0008,2218)", losses)
    return {"display": series.body_part} if series.body_part else {}


def _laterality(series: SeriesRecord, losses: list[Loss]) -> Resource:
    if series.laterality in _LATERALITY:
        code, display = _LATERALITY[series.laterality]
        return {"system": _SCHEMES["SCT"], "code": code, "display": display}
    if series.laterality not in ("", "U"):
        losses.append(Loss("(0020,0060)", f"laterality {series.laterality!r} is no defined term"))
    return {}


def _coding(code: Code, where: str, losses: list[Loss]) -> Resource:
    system = _SCHEMES.get(code.scheme, "")
    if not system:
        losses.append(Loss(where, f"coding scheme {code.scheme!r} has no FHIR system here; code and text are kept"))
    return _filled({"system": system, "code": code.value, "display": code.meaning})


def _whole(text: str, where: str, losses: list[Loss]) -> int | str:
    """FHIR unsignedInt of an IS; '' when there is none."""
    number = text.strip()
    if re.fullmatch(r"\+?[0-9]{1,10}", number) and int(number) < 1 << 31:
        return int(number)
    if number:
        losses.append(Loss(where, f"{text!r} is no unsigned number"))
    return ""


def _order(number: str) -> tuple[int, str]:
    digits = number.strip().lstrip("+")
    return (int(digits[:12]), "") if digits.isascii() and digits.isdecimal() else (1 << 62, number)


def moment(date: str, time: str, offset: str, zone: str, where: str, losses: list[Loss]) -> str:
    """FHIR dateTime of DA and TM; '' when there is no date.

    A time takes the object's offset (0008,0201), else the site's `zone` (IANA name); what cannot be read is dropped
    and noted: a wrong time leaves the date, a wrong date leaves nothing.
    """
    day = re.fullmatch(r"(\d{4})[.\-]?(\d\d)[.\-]?(\d\d)", date.strip(), re.ASCII)  # 2 dots: ACR-NEMA, PS3.5 6.2
    clock = re.fullmatch(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(\.\d{1,6})?)?)?", time.strip(), re.ASCII)
    if day is None:
        if date.strip():
            losses.append(Loss(where, f"date {date!r} is no DICOM date"))
        return ""
    if time.strip() and clock is None:
        losses.append(Loss(where, f"time {time!r} is no DICOM time"))
    at = _calendar(day, clock)
    if at is None:
        losses.append(Loss(where, f"{date} {time} is no moment of the calendar"))
        at, clock = _calendar(day, None), None
    if at is None:
        return ""
    if clock is None:
        return at.date().isoformat()
    return at.strftime("%Y-%m-%dT%H:%M:%S") + (clock[4] or "") + _offset(at, offset, zone)


def _calendar(day: re.Match[str], clock: re.Match[str] | None) -> datetime | None:
    hour, minute, second = (int(part or 0) for part in clock.group(1, 2, 3)) if clock else (0, 0, 0)
    try:
        # A leap second (60) is legal in TM; it is written as the last second of its minute.
        return datetime(int(day[1]), int(day[2]), int(day[3]), hour, minute, 59 if second == 60 else second)  # noqa: DTZ001 - local
    except ValueError:
        return None


def _offset(at: datetime, offset: str, zone: str) -> str:
    """`+02:00`: the written offset when it is one, else that of `zone` at this local time, to the minute."""
    written = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", offset.strip(), re.ASCII)
    if written and int(written[2]) <= 14:
        return f"{written[1]}{written[2]}:{written[3]}"
    shift = at.replace(tzinfo=ZoneInfo(zone)).utcoffset() or timedelta()
    minutes = round(shift.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _filled(resource: Resource) -> Resource:
    """Without the elements that have no value; FHIR knows no empty ones."""
    return {name: value for name, value in resource.items() if value not in ("", [], {}, None)}
