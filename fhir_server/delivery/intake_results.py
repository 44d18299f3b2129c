"""ORU^R01: results as DiagnosticReport, Observation, Specimen and documents; or the answer (OK, OC) to a request.

Hides how a result finds its request and its earlier version. A result never answers a téléexpertise: only its expert
does, so a report about one is attached as supporting information and not as the opinion.

Sources: HL7 v2-to-FHIR ORU_R01; CI-SIS téléradiologie 1.0, flow 3; https://hl7.org/fhir/R4/diagnosticreport.html.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fhir_server.context import Caller
from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.delivery.intake_documents import content_of, find_request, linked, stable_id
from fhir_server.delivery.intake_patients import patient_of
from fhir_server.delivery.intake_stays import encounter_of
from fhir_server.patients.identity import identifier_query
from fhir_server.teleexpertise.case import is_case
from fhir_server.teleexpertise.sides import groups_of
from fhir_server.teleexpertise.states import FINAL, state_of, with_state
from mappers.hl7v2_codes_to_fhir import Enclosed
from mappers.hl7v2_results_to_fhir import OrderResult, results

Resource = dict[str, Any]
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
        for number, order in enumerate(said.orders, 1):
            if order.decision:
                _decision(arrival, draft, order, patient, taken)
            else:
                _results(arrival, draft, order, number, about, taken)
        taken.told(mapped.losses)
        return taken

    return decide


def _results(arrival: Arrival, draft: Draft, order: OrderResult, number: int, about: Resource, taken: Taken) -> None:
    patient = about["subject"]["reference"]
    seed = _seed(arrival, order, number)
    report = {**order.report.resource, "id": stable_id("report", *seed), **about}
    known = draft.get(f"DiagnosticReport/{report['id']}") or {}
    if known and known.get("subject", {}).get("reference") != patient:
        raise rejected("the report of this filler number is that of another patient", f"OBR^{number}^3", "207", "904")
    based = linked(arrival, draft, report.pop("basedOn", []), patient, taken)
    cases = [one for one in based if is_case(draft.get(one.get("reference", "")) or {})]
    if others := [one for one in based if one not in cases]:
        report["basedOn"] = others
    specimens = [
        draft.put({**one.resource, "id": stable_id("specimen", *seed, str(n)), "subject": about["subject"]})
        for n, one in enumerate(order.specimens, 1)
    ]
    shared = {**about, **({"specimen": {"reference": specimens[0]}} if len(specimens) == 1 else {})}
    observed = [_observation(draft, dict(one.resource), seed, n, shared) for n, one in enumerate(order.observations, 1)]
    if order.notes:
        report["conclusion"] = "\n".join(filter(None, [report.get("conclusion", ""), *order.notes]))
    report |= {"specimen": [{"reference": one} for one in specimens]} if specimens else {}
    earlier = [one["reference"] for one in known.get("result", ()) if one.get("reference")]
    if listed := list(dict.fromkeys([*earlier, *observed])):
        report["result"] = [{"reference": one} for one in listed]
    documents = [_document(arrival, draft, one, report, seed, about) for one in order.documents]
    if documents:
        report["presentedForm"] = [content["attachment"] for content in documents]
    reference = draft.put(report)
    for case in cases:
        _support(arrival, draft, case["reference"], reference, taken)


def _seed(arrival: Arrival, order: OrderResult, number: int) -> tuple[str, ...]:
    """What stays the same in a correction: the filler number, else the placer's, else this very message."""
    code = order.report.resource["code"]
    what = str((code.get("coding") or [{}])[0].get("code") or code.get("text", ""))
    numbers = order.fillers or order.requests
    if numbers:
        return (arrival.site.key, *numbers[0], what)
    return (arrival.site.key, arrival.msg.text("MSH-3"), arrival.msg.control_id, str(number), what)


def _observation(draft: Draft, said: Resource, seed: tuple[str, ...], number: int, about: Resource) -> str:
    code = said["code"]
    what = str((code.get("coding") or [{}])[0].get("code") or "")
    own = next((str(one["value"]) for one in said.get("identifier", ())), "")
    key = stable_id("observation", *seed, what or str(number), own)
    while any(one["id"] == key for one in draft.written("Observation")):
        key = stable_id("observation", key)  # the same code twice in one order: the second, the third...
    return draft.put({**said, "id": key, **about})


def _document(
    arrival: Arrival, draft: Draft, enclosed: Enclosed, report: Resource, seed: tuple[str, ...], about: Resource
) -> Resource:
    """A DocumentReference of an enclosed document; its content."""
    kind = enclosed.code or report["code"]
    title = str((kind.get("coding") or [{}])[0].get("display") or kind.get("text") or "Document")
    content = content_of(draft, enclosed, title)
    related = [{"reference": f"DiagnosticReport/{report['id']}"}, *report.get("basedOn", ())]
    stay = {"encounter": [about["encounter"]]} if "encounter" in about else {}
    withdrawn = enclosed.status.upper() in ("D", "X")
    draft.put(
        {
            "resourceType": "DocumentReference",
            "id": stable_id("enclosed", *seed, str(enclosed.number)),
            "status": "entered-in-error" if withdrawn else "current",
            "type": kind,
            "subject": about["subject"],
            "custodian": arrival.organization,
            "content": [content],
            "context": {**stay, "related": related},
        }
    )
    return content


def _support(arrival: Arrival, draft: Draft, case: str, report: str, taken: Taken) -> None:
    """Show a result in the téléexpertise it names, as long as that is open."""
    request = draft.get(case) or {}
    if state_of(request, arrival.hub.settings) in FINAL:
        taken.notes.append(f"ORC-2: {case} is closed: the result is kept with the patient, not shown there")
        return
    held = request.get("supportingInfo", [])
    if all(one.get("reference") != report for one in held):
        draft.put({**request, "supportingInfo": [*held, {"reference": report}]})


def _decision(arrival: Arrival, draft: Draft, order: OrderResult, patient: str, taken: Taken) -> None:
    """OK takes the request for the expert the answer names, OC refuses it with its reason."""
    request = find_request(arrival, draft, (*order.requests, *order.fillers), patient, "ORC^1^2")
    if request is None or not is_case(request):
        named = ", ".join(value for _, value in order.requests)[:60]
        raise rejected(f"no request {named} of this patient is known here", "ORC^1^2", "204", "900")
    reference = f"ServiceRequest/{request['id']}"
    taken.keys.append(("case", reference))
    taken.caller = _speaker(arrival, draft, request)
    if order.decision == "refused":
        text = f"Refus : {order.reason}" if order.reason else "Refus sans motif"
        noted = {**request, "note": [*request.get("note", ()), {"text": text}]}
        draft.put(with_state(noted, "revoked", arrival.hub.settings))
        taken.notes.append(f"{reference} was refused")
        return
    if not taken.caller.who:
        text = "the answer names no expert of the group that was asked (ORC-12, an RPPS of the directory)"
        raise rejected(text, "ORC^1^12", "204")
    draft.put(with_state(request, "in_progress", arrival.hub.settings))
    taken.notes.append(f"{reference} was taken")


def _speaker(arrival: Arrival, draft: Draft, request: Resource) -> Caller:
    """Who answers: the sender speaks for the groups its own establishment provides, by an expert of them if named.

    Raises Rejected (207) when it provides none of the groups that were asked.
    """
    groups = groups_of(request, arrival.organization["reference"], draft)
    if not groups:
        text = f"{arrival.site.name} provides no group that this request asks, so it cannot answer it"
        raise rejected(text, "ORC^1^21", "207", "901")
    rpps = _rpps(arrival)  # an empty one would find whoever has any
    held = draft.find("PractitionerRole", identifier_query(RPPS, rpps)) if rpps else []
    roles = [one for one in held if one.get("active", True)]
    who = next((one for one in roles if groups & {s.get("reference") for s in one.get("healthcareService", ())}), {})
    return dataclasses.replace(
        arrival.caller,
        who=f"PractitionerRole/{who['id']}" if who else "",
        practitioner=who.get("practitioner", {}).get("reference", ""),
        roles=frozenset({"expert"}),
        groups=groups,
    )


def _rpps(arrival: Arrival) -> str:
    """The RPPS of ORC-12 (11 digits; IDNPS writes an 8 before them)."""
    number = arrival.msg.text("ORC-12")
    return number[1:] if len(number) == 12 and number.startswith("8") else number
