"""Studies and what they belong to: by accession number to a request, by patient identifier to a patient, or by hand.

Never a guess: an accession number counts only when the patient of the images is the request's patient or is not
named in a namespace we know; a study that matches nobody is kept, listed, and looked at again when a patient or a
request arrives.
Sources: IHE RAD Scheduled Workflow and PIR; DICOM PS3.3 C.2.3, C.7.2.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from dicom_node.header import Header, from_dict
from fhir_server.context import SYSTEM, View
from fhir_server.errors import Invalid, NotFound
from fhir_server.patients import identity, merge
from fhir_server.patients.sites import Sites
from fhir_server.patients.traits import birth_name, differences, doubt, fold, strict_traits
from fhir_server.store.engine import Store
from fhir_server.store.instances import Conflicting, Instance, Study, StudyFilter
from fhir_server.store.session import Tx
from fhir_server.store.view import instant_of
from fhir_server.teleexpertise.accession import bare_or_ours, number_queries
from fhir_server.teleexpertise.case import is_case
from mappers.dicom_to_fhir import accession, imaging_study, patient_ids, study_id, study_record
from mappers.identity import Site

Resource = dict[str, Any]
_DAY = re.compile(r"[0-9]{8}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of matching: references or '', and why in words."""

    state: Literal["matched", "patient", "unmatched", "manual"]
    subject: str = ""
    request: str = ""
    note: str = ""


def match(study: Study, header: Header, view: View, sites: Sites) -> Found:
    """What a study belongs to. A person's decision (`manual`) is never overwritten."""
    if study.match_state == "manual" and study.request:
        request = view.get(study.request) or {}
        return Found("manual", request.get("subject", {}).get("reference", ""), study.request, study.note)
    site = _site(study, sites)
    known = patient_ids(header, site, study.calling_ae)
    patients = {f"Patient/{patient['id']}" for key in known for patient in identity.patient_at(view, key)}
    # Images keep the number they were made with; a merge says whose it is now.
    merged = (merge.given_up_for(view, key, renumbered=False) for key in known)
    patients = patients or {reference for references in merged for reference in references}
    if len(patients) > 1:
        return Found("unmatched", note="the patient identifiers of the images point at several patients")
    patient = next(iter(patients), "")
    why, told = _doubted(view.get(patient) or {}, header) if patient else ("", "")
    if why:
        text = f"the identifier of the images is that of {patient}, but they show {why}; attach them by hand"
        return Found("unmatched", note=text)
    number = accession(header).value
    requests = _requests(number, view, sites) if number else []
    if len(requests) > 1:
        return Found("unmatched", patient, note=f"{len(requests)} requests have the accession number {number}")
    if requests:
        found = _with_request(requests[0], patient, bool(known), header, view)
        return replace(found, note=told) if found.state == "matched" else found
    waiting = f"no request with accession number {number} yet" if number else "the images name no accession number"
    if patient:
        return Found("patient", patient, note="; ".join(filter(None, (waiting, told))))
    return Found("unmatched", note=f"{waiting}; no known patient has {_shown(header)}")


def _doubted(patient: Resource, header: Header) -> tuple[str, str]:
    """(why images under a known identifier may be of somebody else, what differs and is tolerated): as for messages."""
    family, given, *_ = [*header.patient_name.split("=")[0].split("^"), "", ""]
    birth = header.patient_birth_date
    shown = {
        "name": [{"use": "official", "family": family, "given": [given]}],
        "birthDate": f"{birth[:4]}-{birth[4:6]}-{birth[6:]}" if _DAY.fullmatch(birth) else "",
        "gender": {"M": "male", "F": "female"}.get(header.patient_sex, "unknown"),
    }
    known = patient | {"name": _names_shown(patient, family)}
    reason = doubt(known, shown, qualified=identity.qualified_ins(patient) is not None)
    differ = sorted(differences(known, shown))
    return reason, f"the images show another {', another '.join(differ)} than {patient['id']}" if differ else ""


def _names_shown(patient: Resource, family: str) -> list[Resource]:
    """The birth name, under the family name a device may show instead: that of a marriage."""
    birth = birth_name(patient)
    used = {fold(str(name.get("family", ""))) for name in patient.get("name", ())}
    return [{**birth, "family": family}] if birth and fold(family) in used else patient.get("name", [])


def match_all(study: Study, headers: Sequence[Header], view: View, sites: Sites) -> Found:
    """What a study belongs to when every image says so; images of two people in one study are a person's matter."""
    said = {(h.patient_id, h.other_patient_ids, accession(h), h.patient_name, h.patient_birth_date): h for h in headers}
    found = [match(study, header, view, sites) for header in said.values()]
    if len({(one.subject, one.request) for one in found}) > 1:
        return Found("unmatched", note="the images of this study name several patients or requests")
    return found[0]


def lock_of(study_uid: str) -> str:
    """The criterion that arriving images, matching and a person's decision hold in turn."""
    return f"study|{study_uid}"


def _with_request(request: Resource, patient: str, named: bool, header: Header, view: View) -> Found:
    subject = request.get("subject", {}).get("reference", "")
    reference = f"ServiceRequest/{request['id']}"
    if not subject:
        return Found("unmatched", patient, note=f"the accession number is that of {reference}, which names no patient")
    if patient and patient != subject:
        return Found("unmatched", note=f"the accession number is that of {reference}, the patient is another one")
    if not patient and named:
        return Found(
            "unmatched", note=f"the accession number is that of {reference}, but {_shown(header)} is not known"
        )
    if not patient and not _same_person(view.get(subject) or {}, header):
        return Found("unmatched", note=f"the accession number is that of {reference}, name and birth date differ")
    return Found("matched", subject, reference)


def _same_person(patient: Resource, header: Header) -> bool:
    """Images without a usable identifier: family name and birth date must both agree with the request's patient."""
    family, _, birth, _ = strict_traits(patient)
    shown = fold(header.patient_name.split("=")[0].split("^")[0])
    return bool(family) and shown == family and header.patient_birth_date == birth.replace("-", "")


def _requests(number: str, view: View, sites: Sites) -> list[Resource]:
    """Who has the number, in a namespace of ours or without one; when a téléexpertise has it, that alone."""
    found = {one["id"]: one for query in number_queries(number, sites) for one in view.find("ServiceRequest", query)}
    holders = [one for one in found.values() if any(held["value"] == number for _, held in bare_or_ours(one, sites))]
    return [one for one in holders if is_case(one)] or holders


def resource(study: Study, instances: list[Instance], found: Found, sites: Sites) -> Resource:
    """The ImagingStudy of a study as it stands now."""
    site = _site(study, sites)
    headers = [header_of(instance) for instance in instances]
    record = study_record(headers, site, study.calling_ae)
    based_on = (found.request,) if found.request else ()
    return imaging_study(record, site=site, subject=found.subject, based_on=based_on).value


def header_of(instance: Instance) -> Header:
    """The header kept beside an instance, in text that FHIR can carry."""
    return from_dict(_printable(json.loads(instance.header)))


def _printable(value: Any) -> Any:
    """Control characters and lone surrogates made visible: devices write them, FHIR strings have none."""
    if isinstance(value, str):
        return _CONTROL.sub("\ufffd", value)
    if isinstance(value, dict):
        return {name: _printable(item) for name, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def reference_of(study_uid: str) -> str:
    """The ImagingStudy's reference: always the same for a Study Instance UID."""
    return f"ImagingStudy/{study_id(study_uid)}"


def listed(store: Store, args: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
    """Studies, latest first; `state` (matched, patient, unmatched, manual, new) and `key` (a patient's or accession
    number, a reference) narrow."""
    wanted = StudyFilter(match_state=args.get("state", ""), key=args.get("key", ""), limit=limit)
    with store.read(SYSTEM) as snapshot:
        return [asdict(study) for study in snapshot.studies(wanted)]


def conflicts(store: Store, study_uid: str, limit: int) -> list[dict[str, Any]]:
    """Images that came under the SOP Instance UID of another and were kept beside it, latest first; '' is any study.

    `first` is what the UID stands for here, as it came: sha256 and size of the file, who sent it, and when.
    """
    with store.read(SYSTEM) as snapshot:
        return [_told_apart(one, snapshot.instance(one.sop_uid)) for one in snapshot.conflicts(study_uid, limit)]


def _told_apart(one: Conflicting, first: Instance | None) -> dict[str, Any]:
    shown = asdict(one) | {"received_at": instant_of(one.received_at), "same_study": False, "first": None}
    if first is not None:
        shown["same_study"] = first.study_uid == one.study_uid
        shown["first"] = {
            "study_uid": first.study_uid,
            "blob": first.blob,
            "size": first.size,
            "calling_ae": first.calling_ae,
            "peer": first.peer,
            "received_at": instant_of(first.received_at),
        }
    return shown


def attach(store: Store, study_uid: str, request_id: str) -> dict[str, str]:
    """A person says which request a study belongs to. Raises NotFound naming what is not known."""
    reference = f"ServiceRequest/{request_id.removeprefix('ServiceRequest/')}"
    with store.read(SYSTEM) as snapshot:
        study = snapshot.study(study_uid)
        if study is None:
            raise NotFound(f"no study {study_uid or '(name one)'} is stored; `passerelle studies list` shows them")
        stored = snapshot.get("ServiceRequest", reference.partition("/")[2])
        projected = snapshot.get(*reference_of(study_uid).split("/"))
    if stored is None or stored.deleted:
        raise NotFound(f"{reference} is not known here")
    request = stored.resource()
    if not is_case(request):
        text = f"{reference} is no téléexpertise: images are attached by hand to a request for an opinion only"
        raise Invalid(text, expression="ServiceRequest.category")
    subject = request.get("subject", {}).get("reference", "")
    if not subject:
        raise Invalid(f"{reference} names no patient", expression="ServiceRequest.subject")
    known, note = study, "attached by a person"
    before = projected.resource() if projected is not None and not projected.deleted else {}
    had = before.get("subject", {}).get("reference", "")
    if had not in ("", subject):
        note += f"; the images were those of {had} and are those of {subject} now"

    def work(tx: Tx) -> None:
        tx.lock(lock_of(study_uid))
        tx.settle_study(known, match_state="manual", request=reference, note=note)
        tx.mark_dirty(study_uid=study_uid)

    store.write(SYSTEM, work)
    return {"study": study_uid, "request": reference, "state": "manual", "note": note}


def _site(study: Study, sites: Sites) -> Site:
    return sites.of_ae(study.calling_ae) or sites.default


def _shown(header: Header) -> str:
    name = header.patient_id
    return f"patient id {name.value or '(none)'} of {name.universal_id or name.issuer or 'no named issuer'}"
