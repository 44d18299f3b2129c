"""What may not be written of a Patient, and what a client is told to do instead.

HL7 v2 messages are taken with a note where a FHIR client is refused: it can correct its resource and send it again.
Sources: RNIV (Référentiel national d'identitovigilance); référentiel INS; FR Core 2.2.0 `fr-core-patient-ins`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fhir_server.context import Caller, View
from fhir_server.errors import Conflict, Invalid, RuleBroken
from fhir_server.patients.identity import Patient, change_of, is_doubtful, keeps, qualified_ins, succeeded
from fhir_server.patients.sites import INS_SYSTEMS, Sites, is_ins, is_test_ins, says_ins
from mappers.identity import Site
from mappers.ins import fault, shaped

_HOUSES = 5  # how far up an Organization is part of others


def check_mode(patient: Patient, sites: Sites, view: View | None = None) -> None:
    """A production site refuses test and demonstration INS. Raises Invalid naming the identifier.

    The sites are those whose namespaces the local identifiers are of and the managing organization's: one in
    production among them is enough to refuse, and when nobody can be told, one among all.
    """
    reference = patient.get("managingOrganization", {}).get("reference", "")
    organization = view.get(reference) if view and reference else None
    for site in sites.owners(patient, organization) or sites.all:
        check_site(patient, site)


def check_site(patient: Patient, site: Site, expression: str = "") -> None:
    """A test or demonstration INS does not go to a production site. Raises Invalid (422) at `expression`, else at the
    identifier."""
    if site.mode != "production":
        return
    for index, identifier in enumerate(patient.get("identifier", ())):
        if is_test_ins(identifier):
            raise Invalid(
                f"{identifier['system']} is a test or demonstration INS and {site.name} is a production site; "
                "send the real INS or leave it out",
                expression=expression or f"Patient.identifier[{index}]",
                code="value",
            )


def check_within(resource: Mapping[str, Any], sites: Sites) -> None:
    """No test or demonstration INS comes in by another door: a contained Patient, a Person, a RelatedPerson, the
    identifier of a reference, a Bundle that is kept. Raises Invalid (422) naming the place.

    A part with a namespace of a site is that site's; of the others one site in production is enough.
    """
    if any(site.mode == "production" for site in sites.all):
        _check_part(resource, resource["resourceType"], sites, sites.all)


def _check_part(value: Any, path: str, sites: Sites, owners: Sequence[Site]) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_part(item, f"{path}[{index}]", sites, owners)
    elif isinstance(value, Mapping):
        if isinstance(value.get("identifier"), list):
            said = [one for one in value["identifier"] if isinstance(one, Mapping)]
            owners = sites.owners({"identifier": said}) or owners
        if "system" in value and is_test_ins(value):
            for site in owners:
                check_site({"identifier": [value]}, site, path)
        for name, item in value.items():
            if isinstance(item, dict | list):
                _check_part(item, f"{path}.{name}", sites, owners)


def check_asked(request: Mapping[str, Any], patient: Patient, sites: Sites, view: View) -> None:
    """A patient with a test INS is not asked about at a production site. Raises Invalid (422).

    The site is that of the organization which a performer (group, role or Organization) is, belongs to or is part of.
    """
    for performer in request.get("performer", ()):
        for site in _sites_of(view.get(performer.get("reference", "")) or {}, sites, view):
            check_site(patient, site, "ServiceRequest.subject")


def _sites_of(party: Mapping[str, Any], sites: Sites, view: View) -> Iterator[Site]:
    above = party.get("organization") or party.get("providedBy") or {}
    house = party if party.get("resourceType") == "Organization" else view.get(above.get("reference", "")) or {}
    for _ in range(_HOUSES):
        if site := sites.of_organization(house):
            yield site
        house = view.get(house.get("partOf", {}).get("reference", "")) or {}


def check_spelling(patient: Patient, sites: Sites) -> None:
    """An identifier of a known namespace is written with the one spelling by which it is looked up. Raises Invalid
    (422) naming `Patient.identifier[i].system`."""
    for index, identifier in enumerate(patient.get("identifier", ())):
        owner = sites.of_system(identifier.get("system", ""))
        if owner and identifier["system"] != owner[1].fhir_system:
            text = f"this namespace is written {owner[1].fhir_system}"
            raise Invalid(text, expression=f"Patient.identifier[{index}].system", code="value")


def check_ins(patient: Patient) -> None:
    """An INS goes with a qualified identity, there is one in force, and it is a possible one: 15 characters, and for a
    real INS the right key (référentiel INS; FR Core fr-core-1, fr-core-2).

    HL7 v2 messages lose an INS without a qualified identity and are taken; a FHIR client is told, since it can send the
    resource again. Raises Invalid (422) naming the identifier, or its value.
    """
    ins = qualified_ins(patient)
    for index, identifier in enumerate(patient.get("identifier", ())):
        if not is_ins(identifier):
            if says_ins(identifier):
                text = f"the type says INS and the system is none of its namespaces ({', '.join(sorted(INS_SYSTEMS))})"
                raise Invalid(text, expression=f"Patient.identifier[{index}].system", code="value")
            continue
        place, value = f"Patient.identifier[{index}]", str(identifier.get("value", ""))
        if is_doubtful(patient):
            text = "a doubtful record (à rapprocher) has no INS until a person has settled whose it is; leave it out"
        elif ins is None:
            text = (
                "an INS is kept on a qualified identity only: say identityStatus VALI (or QUAL) in the extension "
                "fr-core-identity-reliability with the INS as use `official`, or leave the INS out"
            )
        elif (identifier["system"], value) != ins and not (
            identifier.get("use") == "old" and succeeded(identifier["system"], ins)
        ):
            text = "a Patient has one INS; only a NIA may stay as `old` beside the NIR that took its place"
        elif (text := fault(value)) and not (is_test_ins(identifier) and shaped(value)):
            raise Invalid(text, expression=f"{place}.value", code="value")
        else:
            continue
        raise Invalid(text, expression=place, code="business-rule")


def check_tag(stored: Patient | None, incoming: Patient, caller: Caller) -> None:
    """The tag "à rapprocher" is set and removed by what takes messages in and by an administrator who settled the
    matter, not by a client. Raises RuleBroken (422)."""
    before = stored is not None and is_doubtful(stored)
    if is_doubtful(incoming) == before or caller.channel != "http" or caller.roles & {"admin", "system"}:
        return
    text = "the tag à rapprocher is set by this server and removed by an administrator (role admin)"
    raise RuleBroken(f"{text}; send it back as it is" if before else f"{text}; leave it out", expression="Patient.meta")


def check_update(stored: Patient, incoming: Patient) -> None:
    """What a FHIR update may not do to a qualified identity: give it another INS, turn it into somebody else, or let
    the qualification fall by leaving it out. Raises Conflict (409) or Invalid (422).

    A qualification is taken away by saying so: a lower identityStatus and no INS; then the identity can be corrected
    and qualified again. A record keeps these rules while it is inactive: it may become active again.
    """
    mine, theirs = qualified_ins(stored), qualified_ins(incoming)
    if mine is None or is_doubtful(stored):
        return
    remedy = "take the qualification away first (identityStatus PROV, no INS), or send the change of identity (A47)"
    if theirs is None and keeps(stored, incoming):
        text = f"Patient/{stored['id']} is a qualified identity: send its INS and identityStatus back; or {remedy}"
        raise Invalid(text, expression="Patient.extension", code="business-rule")
    if reason := change_of(stored, incoming):
        text = f"Patient/{stored['id']} is a qualified identity and this has {reason}; {remedy}"
        raise Conflict(text, expression="Patient.identifier" if "INS" in reason else "Patient")


def check_revival(last: Patient, incoming: Patient) -> None:
    """A deleted Patient comes back as who it was: stays and results still refer to this id. Raises Conflict (409), or
    as `check_update` does."""
    check_update(last, incoming)
    if reason := change_of(last, incoming):
        text = (
            f"Patient/{last['id']} was deleted, was somebody else by what is said here ({reason}), and others may "
            "still refer to it; give this person an id of their own"
        )
        raise Conflict(text, expression="Patient.id")


def check_in_case(anchor: Patient, incoming: Patient) -> None:
    """Whom a téléexpertise is about stays the same person while it is open, however many steps a change takes.
    `anchor` is who they were when it began. Raises Conflict (409)."""
    if reason := change_of(anchor, incoming):
        text = (
            f"Patient/{anchor['id']} has an open téléexpertise and this is {reason} than when it began; close or "
            "cancel that first, or let the establishment send the change of identity (ADT A47, or A40 for a merge)"
        )
        raise Conflict(text, expression="Patient")
