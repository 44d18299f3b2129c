"""What the report of a request will need, asked for while it can still be given.

A request goes out only with what its documents cannot do without (identity traits, requester with RPPS, reason), an
expert takes it only with theirs: nobody learns at signing time that a number is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.errors import Invalid, RuleBroken
from fhir_server.patients.sites import Sites
from fhir_server.patients.writing import check_asked
from fhir_server.teleexpertise.case import Context, Resource
from mappers.fhir_to_identity import Professional
from mappers.fhir_to_identity import professional as read_professional
from mappers.fhir_to_report import Incomplete, Sources, expert_complete_in, reason_of, request_complete_in
from mappers.identity import Site


def request_complete(request: Resource, consent: Resource, ctx: Context) -> None:
    """Raises Invalid (422) naming the element and the remedy when the report of this request could not be written."""
    patient = asked_here(request, ctx)
    role, person, organization = professional(request["requester"]["reference"], ctx)
    sources = Sources(
        service_request=request,
        diagnostic_report={},
        patient=patient,
        requester_role=role,
        requester=person,
        requester_organization=organization,
        expert_role={},
        expert={},
        expert_organization={},
        site=site_of(patient, ctx.sites),
        document_id="",
        set_id="",
        consent=consent if consent.get("id") else None,
        consent_extension=ctx.settings.extension_patient_consent,
    )
    _complete(lambda: request_complete_in(sources))


def asked_here(request: Resource, ctx: Context) -> Resource:
    """The patient; raises Invalid (422) when those who are asked work in production and the INS is for tests."""
    patient = ctx.view.get(request["subject"]["reference"]) or {}
    check_asked(request, patient, ctx.sites, ctx.view)
    return patient


def reason_given(request: Resource) -> None:
    """Raises Invalid (422) when a request that is out says no reason."""
    _complete(lambda: reason_of(request))


def expert_complete(ctx: Context) -> None:
    """Raises RuleBroken or Invalid (422) when who calls could not sign a report."""
    if not ctx.caller.who:
        text = "a request is taken by a person: sign in as the expert who will answer"
        raise RuleBroken(text, expression="ServiceRequest.performer")
    role, person, organization = professional(ctx.caller.who, ctx)
    _complete(lambda: expert_complete_in(role, person, organization, ctx.sites.default))


def _complete(check: Callable[[], object]) -> None:
    try:
        check()
    except Incomplete as missing:
        raise Invalid(missing.text, expression=missing.expression, code="required") from missing


def site_of(patient: Mapping[str, Any], sites: Sites) -> Site:
    """The establishment that knows the patient by a local identifier, else the default one."""
    for identifier in patient.get("identifier", ()):
        owner = sites.of_system(identifier.get("system", ""))
        if owner and owner[1].kind == "PI":
            return owner[0]
    return sites.default


def professional(reference: str, ctx: Context) -> tuple[Resource, Resource, Resource]:
    """PractitionerRole, Practitioner and Organization behind a reference."""
    role = ctx.view.get(reference) or {}
    if role.get("resourceType") == "Practitioner":
        return {"resourceType": "PractitionerRole"}, role, {}
    person = ctx.view.get(role.get("practitioner", {}).get("reference", "")) or {}
    organization = ctx.view.get(role.get("organization", {}).get("reference", "")) or {}
    return role, person, organization


def practising(reference: str, site: Site, ctx: Context) -> Professional | None:
    """A professional of the directory with an RPPS; None for anybody else."""
    role, person, organization = professional(reference, ctx)
    if person.get("resourceType") != "Practitioner":
        return None
    try:
        return read_professional("participant", role, person, organization, site, [])
    except Incomplete:
        return None


def shown(reference: Mapping[str, Any], ctx: Context) -> str:
    """A person as others read them: the display given with the reference, else the name on record; the reference."""
    key = str(reference.get("reference", ""))
    name = str(reference.get("display") or named(professional(key, ctx)[1]))
    return f"{name} ({key})" if name else key


def named(person: Mapping[str, Any]) -> str:
    """Title, given names and family name of a Practitioner; '' when none is on record."""
    name = (person.get("name") or [{}])[0]
    parts = [*name.get("suffix", ()), *name.get("given", ()), name.get("family", "")]
    return " ".join(part for part in parts if part)
