"""What the rules keep and a check looks at all the same: one person to an identifier, cases that are whole, and
addresses that say who is there.

An older release, a restored part of a database or another hand may have left it otherwise. Values of identifiers are
not told: the report may be shown to anybody who runs the server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fhir_server.changes import Hub, plan_of, view_of
from fhir_server.context import SYSTEM, View
from fhir_server.patients import identity
from fhir_server.patients.sites import is_ins
from fhir_server.search import index
from fhir_server.store.check import Report
from fhir_server.store.repeated import repeated
from fhir_server.store.resources import Stored
from fhir_server.teleexpertise.case import IS_CASE, Resource, is_case
from fhir_server.teleexpertise.distribution import named_in, profiles
from fhir_server.teleexpertise.opinion import SIGNED, WITHDRAWN
from fhir_server.teleexpertise.states import state_of

_PAGE = 200


def check(hub: Hub, report: Report) -> None:
    """Adds to the report each identifier in force (INS, local numbers) that several Patients have, each téléexpertise
    whose patient, consent, report or documents are gone, and each Endpoint to which nothing new is sent because its
    address does not say who is there."""
    _identities(hub, report)
    _cases(hub, report)
    _endpoints(hub, report)


def _identities(hub: Hub, report: Report) -> None:
    with hub.store.read(SYSTEM) as snapshot:
        for system, value in repeated(snapshot, index.pid("Patient", "identifier")):
            owner = hub.sites.of_system(system)
            if not is_ins({"system": system}) and not (owner and owner[1].kind == "PI"):
                continue
            view = view_of(snapshot)
            for key in sorted(identity.keys_at(view, (system, value))):
                holders = sorted(f"Patient/{one['id']}" for one in identity.patient_at(view, key))
                if len(holders) > 1:
                    text = (
                        f"the same identifier of {system} is in force for {', '.join(holders)}; merge or correct them"
                    )
                    report.add("identity", holders[0], text)


def _cases(hub: Hub, report: Report) -> None:
    for stored, view in _all(hub, "ServiceRequest", IS_CASE):
        request = stored.resource()
        if is_case(request):
            for text in _lacking(request, view, hub):
                report.add("case", stored.reference, text)


def _endpoints(hub: Hub, report: Report) -> None:
    for stored, _ in _all(hub, "Endpoint", "status=active"):
        endpoint = stored.resource()
        if profiles(endpoint) and named_in(str(endpoint.get("address", ""))) is None:
            text = (
                "its address lacks application or facility (MSH-5, MSH-6): no report, order, answer or slot goes there"
            )
            report.add("endpoint", stored.reference, f"{text}, but for what follows what it has; name both")


def _all(hub: Hub, kind: str, query: str) -> Iterator[tuple[Stored, View]]:
    """Everything of a kind that a search finds, page by page, each page in a snapshot of its own."""
    plan = plan_of(kind, f"{query}&_sort=_id", _PAGE)
    while True:
        with hub.store.read(SYSTEM) as snapshot:
            page, view = snapshot.search(plan), view_of(snapshot)
            yield from ((stored, view) for stored in page.matches)
        if not page.next:
            return
        plan = dataclasses.replace(plan, after=page.next)


def _lacking(request: Resource, view: View, hub: Hub) -> Iterator[str]:
    """What a case rests on and is not here."""
    state = state_of(request, hub.settings)
    if state == "draft":
        return
    named = [request.get("subject", {}), *request.get("supportingInfo", ())]
    for one in named:
        reference = str(one.get("reference", ""))
        if reference.startswith(("Patient/", "Consent/")) and view.get(reference) is None:
            yield f"{reference} is not here"
    if state != "completed":
        return
    reports = [
        one
        for one in view.find("DiagnosticReport", f"based-on=ServiceRequest/{request['id']}")
        if one.get("status") in SIGNED | {WITHDRAWN}
    ]
    if not reports:
        yield "it is completed and its report is not here"
    for one in reports:
        for document in view.find("DocumentReference", f"related=DiagnosticReport/{one['id']}"):
            for content in document.get("content", ()):
                url = str(content["attachment"].get("url", ""))
                if url.startswith("Binary/") and view.get(url) is None:
                    yield f"{url}, a document of DiagnosticReport/{one['id']}, is not here"
