"""ORU^R01 as FHIR: laboratory results and other reports, and the answer of the téléradiologie profile to a request.

Hides the order groups of an ORU and which OBX is a value, which a document and which only says how to send it. The
resources have neither id nor subject; whoever stores them resolves the patient, and the request by the numbers given.

Sources: HL7 v2-to-FHIR ORU_R01, OBR[DiagnosticReport], OBX[Observation], SPM[Specimen], NTE[Observation]
(https://build.fhir.org/ig/HL7/v2-to-fhir/); HL7 tables 0085, 0119, 0123; CI-SIS téléradiologie 1.0, flow 3
(https://interop.esante.gouv.fr/ig/hl7v2/teleradiologie).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from hl7v2.message import Message, Segment
from mappers.hl7v2_codes_to_fhir import (
    Built,
    Enclosed,
    Ids,
    concept_of,
    enclosed,
    first_concept,
    flags_of,
    interpretation_of,
    is_metadata,
    lines_of,
    order_ids,
    organization_of,
    person_of_ndl,
    quantity_of,
    range_of,
    request_of,
    where,
)
from mappers.hl7v2_documents_to_fhir import is_cisis
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_pid_to_fhir import PatientResult, patient_of
from mappers.hl7v2_pv1_to_fhir import stay_of
from mappers.hl7v2_types_to_fhir import Element, Notes, compact, datetime_of, practitioner_of, reps
from mappers.identity import Site
from mappers.mapped import Mapped
from profiles.v2_maps import table

MAX_ORDERS: Final = 200
MAX_OBSERVATIONS: Final = 5_000

_NEAREST: Final = "the nearest state; HL7's map is empty"
OBSERVATION_STATUS: Final = table(
    "ObservationResultStatusCodesInterpretation",
    {
        **dict.fromkeys("UV", ("final", _NEAREST)),
        **dict.fromkeys("B", ("amended", _NEAREST)),
        **dict.fromkeys("RS", ("preliminary", _NEAREST)),
        **dict.fromkeys("IO", ("registered", _NEAREST)),
        **dict.fromkeys("N", ("cancelled", _NEAREST)),
    },
)
"""OBX-11 (HL7 table 0085) -> Observation.status."""
REPORT_STATUS: Final = table(
    "ResultStatus[Non-Queries]",
    {"A": ("partial", _NEAREST), "M": ("preliminary", _NEAREST), "N": ("registered", _NEAREST)},
)
"""OBR-25 (HL7 table 0123) -> DiagnosticReport.status."""
DOCUMENT_STATUS: Final = {"C": "corrected", "D": "entered-in-error"}
"""OBX-11 of the documents that are all of a report -> its status."""
_ORDER_ROWS: Final = {"RO": "C", "CA": "D"}
"""ORC-1 of a CI-SIS push -> the OBX-11 that goes with it."""
ABSENT: Final = {"N": "not-asked", "X": "not-performed", "I": "temp-unknown", "O": "temp-unknown"}
_ABSENT_SYSTEM: Final = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
_SECTION: Final = "http://terminology.hl7.org/CodeSystem/v2-0074"
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")

Decision = Literal["accepted", "refused", ""]
_DECISIONS: Final[dict[str, Decision]] = {"OK": "accepted", "OC": "refused"}


@dataclass(frozen=True, slots=True)
class OrderResult:
    """One OBR with what belongs to it.

    `report` is a DiagnosticReport, `observations` its results in order, `specimens` what was examined, `documents`
    what came enclosed. `requests` are the placer numbers of the request it answers, `fillers` the sender's own.
    `notes` are the NTE under the OBR. `decision` and `reason` are those of the téléradiologie answer (ORC-1 OK, OC),
    `expert` its ORC-12.1 and `orc` the ordinal of its ORC.
    """

    report: Built
    observations: tuple[Built, ...]
    specimens: tuple[Built, ...]
    documents: tuple[Enclosed, ...]
    requests: Ids
    fillers: Ids
    notes: tuple[str, ...] = ()
    decision: Decision = ""
    reason: str = ""
    expert: str = ""
    orc: int = 0


@dataclass(frozen=True, slots=True)
class ResultMessage:
    """An ORU. `patient` is what PID says (to match on, not to store); `flags` the metadata of a CI-SIS push."""

    control_id: str
    patient: PatientResult
    encounter_ids: Ids
    orders: tuple[OrderResult, ...]
    flags: dict[str, bool]


@dataclass(slots=True)
class _Group:
    """The segments of one order as they came."""

    orc: Segment | None
    obr: Segment
    notes: list[Segment] = field(default_factory=list)
    results: list[tuple[Segment, list[Segment]]] = field(default_factory=list)
    specimens: list[Segment] = field(default_factory=list)


def results(msg: Message, site: Site) -> Mapped[ResultMessage]:
    """The results of an ORU^R01. Raises Refused without PID or OBR, and for what `ins_of` refuses."""
    notes = Notes()
    if msg.first("PID") is None:
        raise Refused("the results name no patient: PID is missing", "PID^1", condition="100", code="required")
    groups = _groups(msg, notes)
    if not groups:
        raise Refused("there is no OBR: the message reports nothing", "OBR^1", condition="100", code="required")
    patient = patient_of(msg, site, notes)
    stay = stay_of(msg, site, Notes())
    orders = tuple(_order(msg, group, site, notes) for group in groups)
    value = ResultMessage(msg.control_id, patient, stay.ids, orders, flags_of(msg))
    return Mapped(value, tuple(dict.fromkeys(notes.losses)))


def _groups(msg: Message, notes: Notes) -> list[_Group]:
    """ORC belongs to the OBR that follows; NTE to the OBR or OBX before it; SPM to its order."""
    out: list[_Group] = []
    orc: Segment | None = None
    last, count = "", 0
    unread: set[str] = set()
    for segment in msg.segments:
        name = segment.name
        if name == "ORC":
            orc = segment
        elif name == "OBR":
            out.append(_Group(orc, segment))
            orc = None
        elif not out or not _belongs(out[-1], segment, last, notes):
            unread.add(name)
        count += name == "OBX"
        if count > MAX_OBSERVATIONS or len(out) > MAX_ORDERS:
            raise Refused(f"more than {MAX_OBSERVATIONS} results or {MAX_ORDERS} orders in one message", "OBX",
                          condition="198")  # fmt: skip
        last = name if name in ("OBR", "OBX", "SPM", "ORC") else last
    for name in sorted(unread - {"MSH", "PID", "PV1"})[:30]:
        notes.add(name or "MSH", "the segment is not carried")
    return out


def _belongs(group: _Group, segment: Segment, last: str, notes: Notes) -> bool:
    """Put a segment where it belongs in its order; false when there is no place for it."""
    name = segment.name
    if name == "OBX" and is_metadata(segment):
        return True
    if name == "OBX" and last == "SPM":
        notes.add(where(segment), "a result about the specimen itself is not carried")
    elif name == "OBX":
        group.results.append((segment, []))
    elif name == "NTE" and last == "OBX" and group.results:
        group.results[-1][1].append(segment)
    elif name == "NTE":
        group.notes.append(segment)
    elif name == "SPM":
        group.specimens.append(segment)
    else:
        return name == "PRT"
    return True


def _order(msg: Message, group: _Group, site: Site, notes: Notes) -> OrderResult:
    obr, orc = group.obr, group.orc
    pairs = [(obr.field(2), "PLAC"), (obr.field(3), "FILL")]
    if orc is not None:
        pairs += [(orc.field(2), "PLAC"), (orc.field(3), "FILL")]
    identifiers = order_ids(pairs, site)
    report = _report(obr, identifiers, site, notes)
    observations, documents, texts = [], [], []
    for obx, remarks in group.results:
        if obx.text(2) == "ED":
            document = _enclosed(msg, obx, notes)
            documents += [document] if document else []
            continue
        observations.append(observation(obx, remarks, obr, site, notes))
        if obx.text(2) in ("TX", "FT"):
            texts.append(lines_of(obx))
    if texts and len(texts) == len(observations):
        # Nothing but text: a report that is read as a whole.
        report.put("conclusion", "\n".join(texts))
    if told := _withdrawn_or_corrected(msg, group):
        report.put("status", told)
    decision = _DECISIONS.get(orc.text(1).upper(), "") if orc is not None and _is_answer(obr) else ""
    return OrderResult(
        report=report,
        observations=tuple(observations),
        specimens=tuple(_specimen(spm, site, notes) for spm in group.specimens),
        documents=tuple(documents),
        requests=_pairs(identifiers, "PLAC"),
        fillers=_pairs(identifiers, "FILL"),
        notes=tuple(text for nte in group.notes if (text := nte.field(3).whole.strip())),
        decision=decision,
        reason=(orc.text(16, 2) or orc.text(16)) if decision and orc is not None else "",
        expert=orc.text(12) if decision and orc is not None else "",
        orc=orc.number if orc is not None else 0,
    )


def _enclosed(msg: Message, obx: Segment, notes: Notes) -> Enclosed | None:
    """The document of a row; one without bytes when the row withdraws it."""
    withdraws = obx.text(11).upper() in ("D", "X")
    if withdraws and not len(msg.encapsulated(obx).data):
        return Enclosed(obx.number, "", b"", {}, obx.text(11))
    return enclosed(msg, obx, notes)


def _withdrawn_or_corrected(msg: Message, group: _Group) -> str:
    """The status of a report that is its documents, by what is done with them: OBR-25 often stays F. '' when OBR-25
    has the say. A CI-SIS push says it in ORC-1 and OBX-11, another ORU in OBX-11 of each row."""
    rows = [obx for obx, _ in group.results]
    told = {obx.text(11).upper() for obx in rows if obx.text(2) == "ED"}
    if group.orc is not None and is_cisis(msg):
        told |= {_ORDER_ROWS.get(group.orc.text(1).upper(), "F")}
        return next((DOCUMENT_STATUS[row] for row in ("D", "C") if row in told), "")
    only = all(obx.text(2) == "ED" for obx in rows) and len(told) == 1
    return DOCUMENT_STATUS.get(told.pop(), "") if only else ""


def _is_answer(obr: Segment) -> bool:
    return (obr.text(4), obr.text(4, 3)) == ("REPONSE_DEMANDE", "TLR_OBR_PROCEDURE")


def _pairs(identifiers: list[Element], kind: str) -> Ids:
    return tuple(
        (str(identifier.get("system", "")), str(identifier["value"]))
        for identifier in identifiers
        if identifier.get("type", {}).get("coding", [{}])[0].get("code") == kind
    )


def _report(obr: Segment, identifiers: list[Element], site: Site, notes: Notes) -> Built:
    """OBR[DiagnosticReport]."""
    out = Built({"resourceType": "DiagnosticReport"})
    out.put("identifier", identifiers)
    out.put("basedOn", request_of(identifiers))
    status = obr.text(25).upper()
    if status and status not in REPORT_STATUS:
        notes.add(where(obr, 25), f"result status {status[:5]!r} is not in table 0123")
    out.put("status", REPORT_STATUS.get(status, "unknown"))
    section = obr.text(24)
    out.put("category", [{"coding": [{"system": _SECTION, "code": section}]}] if section else [])
    out.put("code", concept_of(obr.field(4).repetition(1), where(obr, 4), notes))
    begin, end = (datetime_of(obr.text(n), site.time_zone) for n in (7, 8))
    if begin and end:
        out.put("effectivePeriod", {"start": begin, "end": end})
    else:
        out.put("effectiveDateTime", begin)
    issued = datetime_of(obr.text(22), site.time_zone)
    if _INSTANT.match(issued):
        out.put("issued", issued)
    elif issued:
        notes.add(where(obr, 22), "the date of the report has no time: it is not carried as an instant")
    out.put("resultsInterpreter", _interpreters(obr))
    return out


def _interpreters(obr: Segment) -> list[Element]:
    found = (person_of_ndl(rep) for rep in reps(obr.field(32)))
    return [
        compact(type="Practitioner", identifier=compact(value=number), display=f"{given} {family}".strip())
        for number, family, given in found
        if number or family
    ]


def observation(obx: Segment, remarks: list[Segment], obr: Segment | None, site: Site, notes: Notes) -> Built:
    """OBX[Observation]; its time is OBX-14, else that of the order."""
    out = Built({"resourceType": "Observation"})
    out.put("identifier", order_ids([(obx.field(21), "FILL")], site))
    status = obx.text(11).upper()
    if status not in OBSERVATION_STATUS:
        notes.add(where(obx, 11), f"result status {status[:5]!r} is not in table 0085")
    out.put("status", OBSERVATION_STATUS.get(status, "unknown"))
    code = concept_of(obx.field(3).repetition(1), where(obx, 3), notes)
    if not code:
        notes.add(where(obx, 3), "the result does not say what was observed")
    out.put("code", code or {"text": "non précisé"})
    moments = (datetime_of(text, site.time_zone) for text in (obx.text(14), obr.text(7) if obr is not None else ""))
    out.put("effectiveDateTime", next(filter(None, moments), ""))
    people = [practitioner_of(xcn, where(obx, 16), notes) for xcn in reps(obx.field(16))]
    places = [organization_of(xon) for xon in reps(obx.field(23))]
    out.put("performer", [who for who in (*people, *places) if len(who) > 1])
    _value(out, obx, site, notes)
    told = any(name.startswith("value") for name in out.resource)
    if told and status == "O":
        # The order describes the patient: a value is there, nobody has signed it as a result.
        out.resource["status"] = "preliminary"
    if not told and status in ABSENT:
        reason = {"coding": [{"system": _ABSENT_SYSTEM, "code": ABSENT[status]}]}
        out.put("dataAbsentReason", reason)
    out.put("interpretation", interpretation_of(obx.field(8), where(obx, 8), notes))
    texts = [text for nte in remarks if (text := nte.field(3).whole.strip())]
    out.put("note", [{"text": text} for text in texts])
    out.put("bodySite", first_concept(obx.field(20), where(obx, 20), notes))
    out.put("method", first_concept(obx.field(17), where(obx, 17), notes))
    limits = range_of(obx.field(7).whole.strip(), obx.field(6))
    out.put("referenceRange", [limits] if limits else [])
    if obx.text(4):
        notes.add(where(obx, 4), f"the group number {obx.text(4)[:20]!r} of the result is not carried")
    return out


def _value(out: Built, obx: Segment, site: Site, notes: Notes) -> None:
    """OBX-5 by the type OBX-2 names; a value that is not of its type is kept as text."""
    kind, whole, at = obx.text(2).upper(), obx.field(5), where(obx, 5)
    if not whole.valued:
        return
    first = whole.repetition(1)
    made: tuple[str, object] = ("", None)
    if kind == "NM":
        made = ("valueQuantity", quantity_of(first.whole, obx.field(6)))
    elif kind == "SN":
        made = _structured(obx)
    elif kind in ("CE", "CWE", "CNE", "CF", "IS", "ID"):
        made = ("valueCodeableConcept", concept_of(first, at, notes))
    elif kind in ("DT", "TS", "DTM"):
        made = ("valueDateTime", datetime_of(first.text, site.time_zone))
    elif kind == "TM" and re.fullmatch(r"([01]\d|2[0-3])([0-5]\d){1,2}", first.text):
        digits = (first.text + "00")[:6]
        made = ("valueTime", f"{digits[:2]}:{digits[2:4]}:{digits[4:]}")
    elif kind == "NR":
        low, high = (quantity_of(first.component(n).text, obx.field(6)) for n in (1, 2))
        made = ("valueRange", compact(low=low, high=high))
    elif kind in ("ST", "TX", "FT"):
        made = ("valueString", lines_of(obx))
    if made[1]:
        out.put(made[0], made[1])
    else:
        notes.add(at, f"the value is not of the type {kind[:5]!r} or the type is not known; it is kept as text")
        out.put("valueString", lines_of(obx))
    if kind not in ("ST", "TX", "FT") and made[1] and len(whole.repetitions()) > 1:
        notes.add(at, "the result has several values; only the first one is carried")


_COMPARATORS: Final = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "": "", "=": ""}


def _structured(obx: Segment) -> tuple[str, object]:
    """SN: `<^10`, `^1^:^128`, `^2^-^5`."""
    sign, one, between, two = (obx.text(5, n) for n in (1, 2, 3, 4))
    first, second = (quantity_of(text, obx.field(6)) for text in (one, two))
    if sign not in _COMPARATORS or not first:
        return "", None
    if between in (":", "/") and second:
        return "valueRatio", {"numerator": first, "denominator": second}
    if between == "-" and second:
        return "valueRange", {"low": first, "high": second}
    return ("", None) if between else ("valueQuantity", quantity_of(one, obx.field(6), _COMPARATORS[sign]))


def _specimen(spm: Segment, site: Site, notes: Notes) -> Built:
    """SPM[Specimen]."""
    out = Built({"resourceType": "Specimen"})
    # EIP: placer and filler number as subcomponents.
    numbers = [(spm.field(2).component(n).part(1).text, kind) for n, kind in ((1, "PLAC"), (2, "FILL"))]
    made = [{"type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": kind}]},
             "value": number} for number, kind in numbers if number]  # fmt: skip
    out.put("identifier", made)
    out.put("status", {"Y": "available", "N": "unavailable"}.get(spm.text(20), ""))
    out.put("type", concept_of(spm.field(4).repetition(1), where(spm, 4), notes))
    out.put("receivedTime", datetime_of(spm.text(18), site.time_zone))
    begin, end = (datetime_of(spm.text(17, n), site.time_zone) for n in (1, 2))
    collected: Element = {"collectedPeriod": {"start": begin, "end": end}} if begin and end else {}
    site_of = first_concept(spm.field(8), where(spm, 8), notes)
    collection = compact(**(collected or {"collectedDateTime": begin}), bodySite=site_of)
    out.put("collection", collection)
    return out
