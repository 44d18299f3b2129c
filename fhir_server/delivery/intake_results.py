"""ORU^R01: results as DiagnosticReport, Observation, Specimen and documents; or the answer (OK, OC) to a request.

Hides how a result finds its request and its earlier version, and what becomes of the documents of that version. A
result never answers a téléexpertise: only its expert does, so a report about one is attached as supporting information
and not as the opinion.

Sources: HL7 v2-to-FHIR ORU_R01; CI-SIS téléradiologie 1.0, flow 3; https://hl7.org/fhir/R4/diagnosticreport.html.
"""

from __future__ import annotations

import dataclasses
from itertools import count
from typing import Any

from fhir_server.context import Caller
from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.delivery.intake_documents import content_of, find_request, linked, stable_id
from fhir_server.delivery.intake_labels import Flags, document_labelled, report_labelled
from fhir_server.delivery.intake_patients import patient_of
from fhir_server.delivery.intake_stays import encounter_of
from fhir_server.delivery.order_numbers import carries, given, numbers_of
from fhir_server.patients.identity import identifier_query
from fhir_server.teleexpertise.case import is_case
from fhir_server.teleexpertise.sides import asks, belongs, groups_of
from fhir_server.teleexpertise.states import FINAL, state_of, with_state
from mappers.hl7v2_codes_to_fhir import Enclosed
from mappers.hl7v2_results_to_fhir import OrderResult, ResultMessage, results

Resource = dict[str, Any]
Seed = tuple[str, ...]
"""What the ids of a report, its results and its documents are made of."""
Answers = dict[str, set[tuple[str, str]]]
"""Request -> the decisions, with their reasons, that this very message gave it already."""
WITHDRAWN = ("cancelled", "entered-in-error")
RPPS = "https://rpps.esante.gouv.fr"


def oru(arrival: Arrival) -> Decide:
    """What an ORU^R01 means. Raises Refused as the mapper does."""
    mapped = results(arrival.msg, arrival.site)
    said = mapped.value
    for number, order in enumerate(said.orders, 1):
        if not order.decision and "code" not in order.report.resource:
            raise rejected("OBR-4 must say what was examined", f"OBR^{number}^4", "101")

    def decide(draft: Draft) -> Taken:
        taken = Taken()
        patient = patient_of(arrival, draft, said.patient, taken, create=not any(one.decision for one in said.orders))
        about = {"subject": {"reference": patient}, **encounter_of(draft, said.encounter_ids, patient, taken)}
        answers: Answers = {}
        for number, order in enumerate(said.orders, 1):
            if order.decision:
                _decision(arrival, draft, order, patient, answers, taken)
            else:
                _results(arrival, draft, said, number, about, taken)
        taken.told(mapped.losses)
        return taken

    return decide


def _results(arrival: Arrival, draft: Draft, said: ResultMessage, number: int, about: Resource, taken: Taken) -> None:
    order, patient = said.orders[number - 1], about["subject"]["reference"]
    seed = _seed(arrival, draft, order, number, patient)
    report = {**order.report.resource, "id": stable_id("report", *seed), **about}
    known = draft.get(f"DiagnosticReport/{report['id']}") or {}
    if known and known.get("subject", {}).get("reference") != patient:
        raise rejected("the report of this filler number is that of another patient", f"OBR^{number}^3", "207", "904")
    if identifiers := given(arrival, report.get("identifier", ()), _kind(order)):
        report["identifier"] = identifiers
    based = linked(arrival, draft, report.pop("basedOn", []), patient, taken)
    cases = [one for one in based if is_case(draft.get(one.get("reference", "")) or {})]
    if others := [one for one in based if one not in cases]:
        report["basedOn"] = others
    _observed(draft, order, report, known, seed, about)
    if order.notes:
        report["conclusion"] = "\n".join(filter(None, [report.get("conclusion", ""), *order.notes]))
    presented = _documents(arrival, draft, order, report, known, seed, about)
    if presented:
        report["presentedForm"] = presented
    reference = draft.put(report_labelled(report, said.flags, _labels(known)))
    _label_documents(draft, reference, known, said.flags)
    for case in cases:
        _support(arrival, draft, case["reference"], reference, taken)


def _kind(order: OrderResult) -> str:
    """The kind of the number that names a report: the filler's, else the placer's."""
    return "FILL" if order.fillers else "PLAC"


def _seed(arrival: Arrival, draft: Draft, order: OrderResult, number: int, patient: str) -> Seed:
    """What stays the same in a correction: the filler number, else the placer's, else this very message. A number
    without an OID is that of its sender; what was stored before the sender was kept is found as it was then."""
    code = order.report.resource["code"]
    what = str((code.get("coding") or [{}])[0].get("code") or code.get("text", ""))
    kind = _kind(order)
    numbers = numbers_of(given(arrival, order.report.resource.get("identifier", ()), kind), kind)
    if not numbers:
        return (arrival.site.key, arrival.msg.text("MSH-3"), arrival.msg.control_id, str(number), what)
    first = numbers[0]
    before = (arrival.site.key, first.system, first.value, what)
    held = draft.get(f"DiagnosticReport/{stable_id('report', *before)}") or {}
    if held.get("subject", {}).get("reference") == patient and carries(held, first):
        return _apart(draft, order, before)
    return _apart(draft, order, (arrival.site.key, *first.parts, what))


def _apart(draft: Draft, order: OrderResult, seed: Seed) -> Seed:
    """The first report of a number and code, or the second, the third... when one message has several: each is found
    again by its time, else in order."""
    written = {one["id"] for one in draft.written("DiagnosticReport")}
    free: list[Seed] = []
    for turn in count(1):
        nth = seed if turn == 1 else (*seed, str(turn))
        key = stable_id("report", *nth)
        known = draft.get(f"DiagnosticReport/{key}")
        if known is None:
            return free[0] if free else nth
        if key not in written:
            if _moment(known) == _moment(order.report.resource):
                return nth
            free.append(nth)
    raise AssertionError("unreachable")


def _moment(report: Resource) -> Any:
    return report.get("effectiveDateTime") or report.get("effectivePeriod")


def _observed(draft: Draft, order: OrderResult, report: Resource, known: Resource, seed: Seed, about: Resource) -> None:
    """The specimens and the results of an order, which its report names beside those that came before."""
    specimens = [
        draft.put({**one.resource, "id": stable_id("specimen", *seed, str(n)), "subject": about["subject"]})
        for n, one in enumerate(order.specimens, 1)
    ]
    shared = {**about, **({"specimen": {"reference": specimens[0]}} if len(specimens) == 1 else {})}
    observed = [_observation(draft, dict(one.resource), seed, n, shared) for n, one in enumerate(order.observations, 1)]
    report |= {"specimen": [{"reference": one} for one in specimens]} if specimens else {}
    earlier = [one["reference"] for one in known.get("result", ()) if one.get("reference")]
    if listed := list(dict.fromkeys([*earlier, *observed])):
        report["result"] = [{"reference": one} for one in listed]


def _observation(draft: Draft, said: Resource, seed: Seed, number: int, about: Resource) -> str:
    code = said["code"]
    what = str((code.get("coding") or [{}])[0].get("code") or "")
    own = next((str(one["value"]) for one in said.get("identifier", ())), "")
    key = stable_id("observation", *seed, what or str(number), own)
    while any(one["id"] == key for one in draft.written("Observation")):
        key = stable_id("observation", key)  # the same code twice in one order: the second, the third...
    return draft.put({**said, "id": key, **about})


def _documents(
    arrival: Arrival,
    draft: Draft,
    order: OrderResult,
    report: Resource,
    known: Resource,
    seed: Seed,
    about: Resource,
) -> list[Resource]:
    """The enclosed documents as DocumentReferences; what the report presents of them.

    What it presented is superseded when a later message brings others or corrects without; with a report that is
    withdrawn go its documents.
    """
    gone = report["status"] in WITHDRAWN
    held = draft.find("DocumentReference", f"related=DiagnosticReport/{report['id']}") if known else []
    presented = []
    for turn, enclosed in enumerate(order.documents, 1):
        key = _document_id(draft, enclosed, seed, turn)
        status = "entered-in-error" if gone or enclosed.status.upper() in ("D", "X") else "current"
        attachment = _document(arrival, draft, enclosed, report, key, status, about)
        presented += [attachment] if status == "current" else []
    before = known.get("presentedForm", [])
    if not (order.documents or gone or report["status"] == "corrected"):
        return list(before)
    written = {one["id"] for one in draft.written("DocumentReference")}
    urls = {attachment.get("url") for attachment in before}
    for one in held:
        shown = {content.get("attachment", {}).get("url") for content in one.get("content", ())}
        if one["id"] not in written and one.get("status") == "current" and urls & shown:
            draft.put({**one, "status": "entered-in-error" if gone else "superseded"})
    return presented


def _document_id(draft: Draft, enclosed: Enclosed, seed: Seed, turn: int) -> str:
    """A document is the first, the second... of its report; once it was told by the number of its OBX."""
    key, before = stable_id("enclosed", *seed, "ED", str(turn)), stable_id("enclosed", *seed, str(enclosed.number))
    stored = (one for one in (key, before) if draft.get(f"DocumentReference/{one}"))
    return next(stored, key)


def _document(
    arrival: Arrival, draft: Draft, enclosed: Enclosed, report: Resource, key: str, status: str, about: Resource
) -> Resource:
    """Write the DocumentReference of an enclosed document; its attachment. A row that withdraws need not bring it."""
    if not enclosed.data:
        if held := draft.get(f"DocumentReference/{key}"):
            draft.put({**held, "status": status})
        return {}
    kind = enclosed.code or report["code"]
    title = str((kind.get("coding") or [{}])[0].get("display") or kind.get("text") or "Document")
    content = content_of(draft, enclosed, title)
    related = [{"reference": f"DiagnosticReport/{report['id']}"}, *report.get("basedOn", ())]
    stay = {"encounter": [about["encounter"]]} if "encounter" in about else {}
    draft.put(
        {
            "resourceType": "DocumentReference",
            "id": key,
            "status": status,
            "type": kind,
            "subject": about["subject"],
            "custodian": arrival.organization,
            "content": [content],
            "context": {**stay, "related": related},
        }
    )
    attachment: Resource = content["attachment"]
    return attachment


def _labels(report: Resource) -> list[Resource]:
    return list(report.get("meta", {}).get("security", ()))


def _label_documents(draft: Draft, report: str, known: Resource, flags: Flags) -> None:
    """The labels of the message on the documents of a report: those it brings, and those it leaves as they are. What
    is not in force any more is hidden with the rest, and stays so when the report is shown again."""
    about = {"reference": report}
    mine = [one for one in draft.written("DocumentReference") if about in one.get("context", {}).get("related", ())]
    stored = draft.find("DocumentReference", f"related={report}") if known and flags else []
    left = [one for one in stored if one not in mine]
    hidden = {name: yes for name, yes in flags.items() if yes}
    for one in (*mine, *left):
        held = draft.upon.get(f"DocumentReference/{one['id']}")
        before = held.get("securityLabel", []) if held else [{"coding": [label]} for label in _labels(known)]
        labelled = document_labelled(one, flags if one.get("status") == "current" else hidden, before)
        if labelled != one:
            draft.put(labelled)


def _support(arrival: Arrival, draft: Draft, case: str, report: str, taken: Taken) -> None:
    """Show a result in the téléexpertise it names, as long as that is open; in a draft, when its own side sends it."""
    request = draft.get(case) or {}
    if state_of(request, arrival.hub.settings) in FINAL:
        taken.notes.append(f"ORC-2: {case} is closed: the result is kept with the patient, not shown there")
        return
    if state_of(request, arrival.hub.settings) == "draft" and not asks(
        request, arrival.organization["reference"], draft
    ):
        text = f"ORC-2: {case} is a draft of who asks: the result is kept with the patient, not shown there"
        taken.notes.append(text)
        return
    held = request.get("supportingInfo", [])
    if all(one.get("reference") != report for one in held):
        draft.put({**request, "supportingInfo": [*held, {"reference": report}]})


def _decision(arrival: Arrival, draft: Draft, order: OrderResult, patient: str, answers: Answers, taken: Taken) -> None:
    """OK takes the request for the expert the answer names, OC refuses it with its reason; said again, it is said once.

    Raises Rejected (207) when the message takes and refuses one request.
    """
    identifiers = order.report.resource.get("identifier", ())
    place = f"ORC^{order.orc}^2"
    request = find_request(arrival, draft, numbers_of(identifiers, "PLAC", "FILL"), patient, place)
    if request is None or not is_case(request):
        named = ", ".join(value for _, value in order.requests)[:60]
        raise rejected(f"no request {named} of this patient is known here", place, "204", "900")
    reference = f"ServiceRequest/{request['id']}"
    taken.caller = _same(taken.caller, _speaker(arrival, draft, request, order), order)
    told = (order.decision, order.reason)
    said = answers.setdefault(reference, set())
    if any(decision != order.decision for decision, _ in said):
        raise rejected("the message takes and refuses the same request", f"ORC^{order.orc}^1", "207")
    if told in said:
        return
    said.add(told)
    taken.keys.append(("case", reference))
    if order.decision == "refused":
        text = f"Refus : {order.reason}" if order.reason else "Refus sans motif"
        noted = {**request, "note": [*request.get("note", ()), {"text": text}]}
        draft.put(with_state(noted, "revoked", arrival.hub.settings))
        taken.notes.append(f"{reference} was refused")
        return
    if not taken.caller.who:
        text = "the answer names no expert of who was asked (ORC-12, an RPPS of the directory)"
        raise rejected(text, f"ORC^{order.orc}^12", "204")
    draft.put(with_state(request, "in_progress", arrival.hub.settings))
    taken.notes.append(f"{reference} was taken")


def _same(before: Caller | None, caller: Caller, order: OrderResult) -> Caller:
    """Who answers all that a message answers: one expert, or nobody by name. Raises Rejected (207) for a second one."""
    if before is None:
        return caller
    if before.who != caller.who:
        text = (
            "an answer before this one is of another expert or role: send the answers of each in a message of its own"
        )
        raise rejected(text, f"ORC^{order.orc}^12", "207")
    return dataclasses.replace(before, groups=before.groups | caller.groups)


def _speaker(arrival: Arrival, draft: Draft, request: Resource, order: OrderResult) -> Caller:
    """Who answers: the sender speaks for its own establishment and the groups it provides, by an expert of them if
    named.

    Raises Rejected (207) when neither it nor a group of it was asked.
    """
    groups = groups_of(request, arrival.organization["reference"], draft)
    if not groups:
        text = f"neither {arrival.site.name} nor a group it provides is asked by this request, so it cannot answer it"
        raise rejected(text, f"ORC^{order.orc}^21", "207", "901")
    rpps = _rpps(order.expert)  # an empty one would find whoever has any
    held = draft.find("PractitionerRole", identifier_query(RPPS, rpps)) if rpps else []
    who = next((one for one in held if _practises(one, draft) and belongs(one, groups, draft)), {})
    return dataclasses.replace(
        arrival.caller,
        who=f"PractitionerRole/{who['id']}" if who else "",
        practitioner=who.get("practitioner", {}).get("reference", ""),
        roles=frozenset({"expert"}),
        groups=groups,
    )


def _practises(role: Resource, draft: Draft) -> bool:
    """Whether neither a role nor its professional has ended."""
    person = draft.get(str(role.get("practitioner", {}).get("reference", ""))) or {}
    return bool(role.get("active", True) and person.get("active", True))


def _rpps(number: str) -> str:
    """The RPPS of ORC-12 (11 digits; IDNPS writes an 8 before them)."""
    return number[1:] if len(number) == 12 and number.startswith("8") else number
