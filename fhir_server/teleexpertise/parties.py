"""Who takes part in a téléexpertise, and at which Endpoints their systems are reached.

A report goes to those who take part, not to whoever knows the patient: the group that was asked and its establishment,
the expert who answers, the requester and theirs, the place of the stay, and the hospital whose patient number the
request carries (`ServiceRequest.subject.identifier`). Endpoints are read where FHIR puts them: HealthcareService,
Organization (else the one it is part of) and PractitionerRole.

The declared médecin traitant (`Patient.generalPractitioner`) gets it too: HAS guide of May 2019, the report goes to the
requester and to the médecin traitant. A patient who does not want that says so by an active Consent of type `deny` that
names the doctor as an actor (CSP L.1110-4: the person concerned may oppose an exchange at any time).

Source: https://hl7.org/fhir/R4/endpoint.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from fhir_server.context import View
from fhir_server.patients.sites import Sites
from fhir_server.teleexpertise.readiness import named
from mappers.fhir_to_identity import mailbox_of

Resource = Mapping[str, Any]
OPPOSED = "une opposition à cet envoi est enregistrée"
_HOUSES = 4  # Organization.partOf is followed this far
FINESS = ("https://finess.esante.gouv.fr", "urn:oid:1.2.250.1.71.4.2.2")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An Endpoint somebody has who takes part. `endpoint` is {} when its reference leads nowhere; `site` is the key of
    the establishment whose patient numbers are known there, or ''; `person` is the own role of requester, expert or
    doctor, as a reference, when the Endpoint is theirs and not their structure's."""

    reference: str
    endpoint: Resource = field(default_factory=dict)
    site: str = ""
    person: str = ""


@dataclass(frozen=True, slots=True)
class Doctor:
    """A declared médecin traitant: `person` is their role or, without one, themselves or their structure, as a
    reference; `mailbox` their MSSanté address or ''; `refusal` says in French why nothing may go to them."""

    person: str
    name: str
    mailbox: str = ""
    refusal: str = ""


def candidates(
    request: Resource, opinion: Resource, patient: Resource, view: View, sites: Sites, doctors: Iterable[Doctor] = ()
) -> list[Candidate]:
    """The Endpoints of those who take part, each reference once, the expert's side first; a médecin traitant's are
    those of their own role alone. What an expert shares with anybody else is not the expert's own: they know what they
    signed, and who else reads it there does not."""
    signers = set(_signers(opinion)) - {_asker(request)}
    found: dict[str, Candidate] = {}
    known = ((view.get(one.person) or {}, one.person) for one in doctors if not one.refusal)
    roles = [(role, key) for role, key in known if key.startswith("PractitionerRole/")]
    for owner, person in (*_owners(request, opinion, patient, view, sites), *roles):
        house = _house(owner, view)
        for item in owner.get("endpoint", ()):
            reference = str(item.get("reference", ""))
            if reference and reference not in found:
                endpoint = view.get(reference) or {}
                key = site_at(endpoint, view, sites)
                found[reference] = Candidate(reference, endpoint, key or _site(house, sites), person)
            elif reference and (own := found[reference].person) in signers:
                shared = _practitioner(owner) != (human(own, view) or own)
                found[reference] = replace(found[reference], person="" if shared else own)
    return list(found.values())


def _signers(opinion: Resource) -> list[str]:
    named = opinion.get("resultsInterpreter") or opinion.get("performer") or ()
    return [str(one.get("reference", "")) for one in named]


def _asker(request: Resource) -> str:
    return str(request.get("requester", {}).get("reference", ""))


def _owners(
    request: Resource, opinion: Resource, patient: Resource, view: View, sites: Sites
) -> Iterator[tuple[Resource, str]]:
    """Whatever may carry an Endpoint, and whose own it is."""
    experts, requester = _signers(opinion), _asker(request)
    asked = [p.get("reference", "") for p in request.get("performer", ())]
    for reference in dict.fromkeys([*experts, *reversed(asked), requester]):
        party = view.get(reference) or {}
        own = reference if reference in (requester, *experts) and reference.startswith("PractitionerRole/") else ""
        yield party, own
        for part in ("organization", "providedBy"):
            house = view.get(party.get(part, {}).get("reference", "")) or {}
            yield _nearest(house, view), ""
    stay = view.get(request.get("encounter", {}).get("reference", "")) or {}
    yield _nearest(view.get(stay.get("serviceProvider", {}).get("reference", "")) or {}, view), ""
    carried = _carried(request, patient, sites)
    if carried:
        yield _nearest(view.get(f"Organization/{carried}") or {}, view), ""


def _nearest(house: Resource, view: View) -> Resource:
    """The organisation itself when it has Endpoints, else the nearest it is part of that has."""
    for _ in range(_HOUSES):
        above = house.get("partOf", {}).get("reference", "")
        if house.get("endpoint") or not above:
            break
        house = view.get(above) or {}
    return house


def _house(owner: Resource, view: View) -> Resource:
    if owner.get("resourceType") == "Organization":
        return owner
    reference = (owner.get("organization") or owner.get("providedBy") or {}).get("reference", "")
    return view.get(reference) or {}


def site_at(endpoint: Resource, view: View, sites: Sites) -> str:
    """The key of the declared establishment that an Endpoint says it is managed by, or ''."""
    return _site(view.get(endpoint.get("managingOrganization", {}).get("reference", "")) or {}, sites)


def _site(house: Resource, sites: Sites) -> str:
    """The key of the declared establishment an Organization is, by its id or its FINESS."""
    if house.get("id") in {site.key for site in sites.all}:
        return str(house["id"])
    for identifier in house.get("identifier", ()):
        if identifier.get("system") in FINESS:
            value = str(identifier.get("value", ""))
            site = sites.of_finess(value[1:] if identifier["system"] == FINESS[1] else value)
            if site:
                return site.key
    return ""


def _carried(request: Resource, patient: Resource, sites: Sites) -> str:
    """The establishment whose number of this very patient the request was asked with, or ''."""
    said = request.get("subject", {}).get("identifier", {})
    owner = sites.of_system(said.get("system", ""))
    if owner is None or owner[1].kind != "PI" or not said.get("value"):
        return ""
    held = {(i.get("system"), i.get("value")) for i in patient.get("identifier", ()) if i.get("use") != "old"}
    return owner[0].key if (said["system"], said["value"]) in held else ""


# --- the declared médecin traitant -----------------------------------------------------------------------------------


def doctors(request: Resource, opinion: Resource, patient: Resource, view: View) -> list[Doctor]:
    """The médecins traitants declared for a patient, but for who asked and who signed; each once, by the first role of
    theirs that has a mailbox."""
    parts = (request.get("requester", {}), *(opinion.get("resultsInterpreter") or ()))
    references = [str(part.get("reference", "")) for part in parts]
    known = set(references) | {human(reference, view) for reference in references}
    found: dict[str, Doctor] = {}  # by who they are: two roles of one person are one doctor
    for declared in patient.get("generalPractitioner", ()):
        reference = _declared(declared, view)
        if not reference or view.get(reference) is None:
            name = str(declared.get("display") or declared.get("identifier", {}).get("value") or "")
            found.setdefault(name, Doctor("", name, refusal="le professionnel déclaré n'est pas enregistré ici"))
        elif not {reference, person := human(reference, view)} & known:
            before, new = found.get(person or reference), _doctor(reference, patient, view)
            if before is None or (new.mailbox and not before.mailbox):
                found[person or reference] = new
    return list(found.values())


def _declared(reference: Resource, view: View) -> str:
    """Whom `generalPractitioner` names: by reference, or by an identifier that exactly one Practitioner has."""
    if reference.get("reference"):
        return str(reference["reference"])
    identifier = reference.get("identifier", {})
    if not identifier.get("system") or not identifier.get("value"):
        return ""
    known = list(view.find("Practitioner", urlencode({"identifier": f"{identifier['system']}|{identifier['value']}"})))
    return f"Practitioner/{known[0]['id']}" if len(known) == 1 else ""


def _doctor(reference: str, patient: Resource, view: View) -> Doctor:
    """Their address: of a role, of themselves, of their structure, in this order."""
    party = view.get(reference) or {}
    roles = [party] if party.get("resourceType") == "PractitionerRole" else []
    if party.get("resourceType") == "Practitioner":
        roles = [
            role for role in view.find("PractitionerRole", f"practitioner={reference}") if role.get("active", True)
        ]
    person = view.get(human(reference, view)) or {}
    houses = [view.get(role.get("organization", {}).get("reference", "")) or {} for role in roles]
    mailbox = next(filter(None, map(mailbox_of, (*roles, person or party, *houses))), "")
    role = next((one for one in roles if mailbox_of(one)), roles[0] if len(roles) == 1 else None)
    name = named(person) if person else str(party.get("name", ""))
    key = f"PractitionerRole/{role['id']}" if role else reference
    return Doctor(key, name, mailbox, OPPOSED if opposed(patient, reference, view) else "")


def opposed(patient: Resource, person: str, view: View) -> bool:
    """Whether an active refusal of the patient names somebody, as a person or in a role of theirs."""
    own = human(person, view)
    roles = view.find("PractitionerRole", f"practitioner={own}") if own else ()
    actors = {person, own, *(f"PractitionerRole/{one['id']}" for one in roles)} - {""}
    query = f"patient=Patient/{patient.get('id', '')}&status=active&actor={','.join(sorted(actors))}"
    return any(one.get("provision", {}).get("type") == "deny" for one in view.find("Consent", query))


def human(reference: str, view: View) -> str:
    """The Practitioner behind a reference to one or to a role, or ''."""
    if reference.startswith("Practitioner/"):
        return reference
    return _practitioner(view.get(reference) or {})


def _practitioner(role: Resource) -> str:
    return str(role.get("practitioner", {}).get("reference", ""))
