"""Which resource a change is about: the one it names, the one its condition finds, the Patient it already is, or a new
one; and whether it may be written there.

Sources: https://hl7.org/fhir/R4/http.html (create, update, delete, conditional interactions); RNIV for Patients.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable

from fhir_server.errors import (
    Conflict,
    Gone,
    Invalid,
    Issue,
    NotFound,
    PasserelleError,
    Precondition,
    Unsupported,
)
from fhir_server.patients import identity, writing
from fhir_server.patients.traits import agree
from fhir_server.pending import FOUND, Change, Pending, Resource, placed, within
from fhir_server.search.plan import Plan
from fhir_server.security import binaries
from fhir_server.store.resources import Stored
from fhir_server.teleexpertise import consequences as workflow
from fhir_server.teleexpertise.case import IS_CASE
from profiles.validator.structure import check

# One page of a search: what a conditional delete takes in one request.
MOST_DELETED = 1_000
# An establishment's own software says who its patients are; its messages have rules of their own (ADR 20).
_WIRES = frozenset({"mllp", "dicom"})


def validate(change: Change) -> None:
    """The structural check in front of every write; a server chooses the id of what is created."""
    if change.type == "AuditEvent":
        text = "the audit trail is written by this server alone; it is read and searched"
        raise Unsupported(text, expression=change.expression or "AuditEvent", http=405)
    if change.resource is None:
        return
    content = {name: value for name, value in change.resource.items() if name != "id"}
    named = change.id or (None if change.verb == "create" else change.resource.get("id"))
    bad = [f for f in check(content if named is None else content | {"id": named}) if f.severity in ("fatal", "error")]
    if bad:
        place = change.expression
        issues = tuple(Issue(f.severity, f.code, f.diagnostics, within(place, f.expression)) for f in bad[:50])
        raise Invalid(bad[0].diagnostics, issues=issues)


def decide(pending: Pending, change: Change, context: workflow.Context) -> tuple[int, str]:
    """Add the write of a change to the pending ones; the HTTP status of the FHIR rules and the id ('' for none).

    Raises Invalid, RuleBroken, Conflict, Precondition, NotFound, Gone.
    """
    if change.resource is not None:
        _check_other_doors(pending, change.resource)
    if change.verb == "create":
        return _created(pending, change, context)
    return _named(pending, change, context)


def _check_other_doors(pending: Pending, resource: Resource) -> None:
    """A Patient's own identifiers have rules of their own; all else passes here."""
    if resource["resourceType"] == "Patient":
        resource = {name: value for name, value in resource.items() if name != "identifier"}
    writing.check_within(resource, pending.sites)


def _created(pending: Pending, change: Change, context: workflow.Context) -> tuple[int, str]:
    assert change.resource is not None
    if change.if_none_exist:
        found = _found(pending, change.type, change.if_none_exist)
        if len(found) > 1:
            text = f"{len(found)} resources match If-None-Exist {change.if_none_exist}; make it precise"
            raise Precondition(text)
        if found:
            return 200, found[0]
    if change.type == "Patient":
        writing.check_tag(None, change.resource, context.caller)
        if known := _known_patient(pending, change.resource):
            return 200, known
    key = change.id or str(uuid.uuid4())
    pending.write("create", change, key, None)
    return 201, key


def _found(pending: Pending, resource_type: str, text: str) -> list[str]:
    """Ids that a conditional create or reference finds.

    A Patient named by one identifier is the one who has it: records that are doubtful, inactive or not qualified for
    the INS they carry make it neither ambiguous nor found (RNIV; `identity.patient_at`).
    """
    key = _one_identifier(pending, text) if resource_type == "Patient" else None
    if key is None:
        # Deletions come first (transaction rules): what this request deletes is there no more, and must not take the
        # place of what is.
        matching = pending.matching(resource_type, text, count=3 + pending.deleting(resource_type))
        return [one for one in matching if not pending.deletes(f"{resource_type}/{one}")]
    pending.matching("Patient", identity.claim_query(key), count=FOUND)
    whole = identity.keys_at(pending.view, key)  # what a condition asks for, a search has cut
    return sorted({patient["id"] for one in whole for patient in identity.patient_at(pending.view, one)})


def sought(pending: Pending, resource_type: str, text: str, *, claimed: bool = True) -> Plan | None:
    """The search a condition is; `claimed`: as a conditional create or reference finds a Patient. None for what cannot
    be read, which is refused where it stands."""
    try:
        key = _one_identifier(pending, text) if claimed and resource_type == "Patient" else None
        return pending.view.plan(resource_type, text) if key is None else pending.view.claim_plan(key)
    except PasserelleError:
        return None


def _one_identifier(pending: Pending, text: str) -> tuple[str, str] | None:
    """(system, value) of a query that says exactly one whole identifier and nothing else."""
    clauses = pending.view.plan("Patient", text).clauses
    if len(clauses) != 1 or clauses[0].name != "identifier" or clauses[0].modifier or len(clauses[0].values) != 1:
        return None
    value = clauses[0].values[0]
    return (value.system, value.code) if value.system and value.code else None


def _named(pending: Pending, change: Change, context: workflow.Context) -> tuple[int, str]:
    key = change.id
    if change.criteria:
        if change.many and change.verb == "delete":
            return _all_deleted(pending, change, context)
        found = pending.matching(change.type, change.criteria)
        if len(found) > 1:
            raise Precondition(f"{len(found)} resources match {change.criteria}; make the condition precise")
        if not found and change.verb == "patch":
            raise NotFound(f"no {change.type} matches {change.criteria}; there is nothing to patch")
        if found and key and found[0] != key:
            raise Precondition(f"{change.criteria} finds {found[0]}, the resource says {key}")
        key = found[0] if found else key
        if not found and change.verb == "delete":
            return 204, ""
    # An id of ours is random and new: there is nothing to look up.
    before = pending.view.stored(f"{change.type}/{key}") if key else None
    key = key or str(uuid.uuid4())
    if change.type == "Binary" and before is not None and _exists(before):
        binaries.demand_context(context.caller, before.resource(), _looked_up(pending))
    _check_version(change, key, before)
    if change.verb == "delete":
        return _deleted(pending, change, key, before, context)
    if change.verb == "patch":
        change = _patched(pending, change, key, before)
    if change.type == "Patient" and change.resource is not None:
        _check_patient(pending, change, key, before, context)
    pending.write(change.verb, change, key, before)
    return (200 if _exists(before) else 201), key


def _exists(before: Stored | None) -> bool:
    return before is not None and not before.deleted


def _check_version(change: Change, key: str, before: Stored | None) -> None:
    """The version or the absence a client asks for. Raises Precondition (412)."""
    exists = before is not None and not before.deleted
    if change.if_match is not None and (not exists or before is None or before.version != change.if_match):
        held = f"version {before.version}" if before is not None and exists else "nothing"
        text = f"If-Match asks for version {change.if_match} of {change.type}/{key}; the server holds {held}"
        raise Precondition(text)
    if change.if_absent and exists:
        raise Precondition(f"{change.type}/{key} exists already and If-None-Match: * asks for it to be absent")


def _deleted(
    pending: Pending, change: Change, key: str, before: Stored | None, context: workflow.Context
) -> tuple[int, str]:
    if before is None:
        raise NotFound(f"{change.type}/{key} is not known here")
    if not before.deleted:
        workflow.guard_delete(before.resource(), context)
        pending.write("delete", change, key, before)
    return 204, key


def _all_deleted(pending: Pending, change: Change, context: workflow.Context) -> tuple[int, str]:
    """Every match of a condition deleted, at most MOST_DELETED."""
    for key in pending.matching(change.type, change.criteria, most=MOST_DELETED):
        before = pending.view.stored(f"{change.type}/{key}")
        assert before is not None  # it was found on this snapshot
        if change.type == "Binary":
            binaries.demand_context(context.caller, before.resource(), _looked_up(pending))
        workflow.guard_delete(before.resource(), context)
        pending.write("delete", change, key, before)
    return 204, ""


def _looked_up(pending: Pending) -> Callable[[str, str], object]:
    return lambda kind, key: pending.view.get(f"{kind}/{key}")


def _patched(pending: Pending, change: Change, key: str, before: Stored | None) -> Change:
    """The change with the content the patch makes of the current version. Raises NotFound, Gone, Invalid."""
    if before is None:
        raise NotFound(f"{change.type}/{key} is not known here; there is nothing to patch")
    if before.deleted:
        raise Gone(f"{change.type}/{key} was deleted; there is nothing to patch")
    assert change.patch is not None
    after = change.patch(before.resource())
    if after.get("resourceType") != change.type or after.get("id") != key:
        raise Invalid("a patch changes neither resourceType nor id", expression=f"{change.type}.id")
    changed = dataclasses.replace(change, resource=after, id=key)
    validate(dataclasses.replace(changed, expression=""))
    _check_other_doors(pending, after)
    return changed


def _known_patient(pending: Pending, patient: Resource) -> str | None:
    """The stored (or earlier in this request) Patient this one is; None to create a new one.

    Raises Conflict when its identifiers are those of somebody else: FHIR has no "à rapprocher" answer.
    """
    keys = _identity_keys(pending, patient)
    for key in keys:
        for write in pending.owners(key):
            if not (write.after and agree(write.after, patient)):
                raise _taken(key, write.reference, "an entry before this one")
            return write.id
    found = identity.match(pending.view, patient, pending.sites) if keys else identity.Match("new")
    if found.kind == "reconcile":
        text = f"this cannot be told from a stored Patient: {found.reason}; correct the traits or the identifiers"
        raise Conflict(text, expression="Patient.identifier")
    if found.kind == "new":
        return None
    pending.view.stored(found.reference)
    return found.reference.partition("/")[2]


def _check_patient(
    pending: Pending, change: Change, key: str, before: Stored | None, context: workflow.Context
) -> None:
    """What may be written over a stored Patient or under a client's id. Raises Conflict, Invalid, RuleBroken."""
    patient = change.resource
    assert patient is not None
    stored = None if before is None or before.deleted else before.resource()
    writing.check_tag(stored, patient, context.caller)
    _identity_keys(pending, patient)
    if before is not None and not change.identity_change:
        if stored is None:
            writing.check_revival(_last_content(pending, before), patient)
        else:
            writing.check_update(stored, patient)
            if context.caller.channel not in _WIRES and (anchor := _in_open_case(pending, before)):
                writing.check_in_case(anchor, patient)
    if stored is None and identity.is_doubtful(patient):
        _only_doubt(pending, patient, key)


def _last_content(pending: Pending, deleted: Stored) -> Resource:
    """What a deleted resource was: whoever refers to its id means that."""
    held = pending.view.snapshot.version(deleted.type, deleted.id, deleted.version - 1)
    return held.resource() if held is not None and not held.deleted else {"id": deleted.id}


def _in_open_case(pending: Pending, patient: Stored) -> Resource | None:
    """Who a Patient was when the request of their oldest open téléexpertise was made, None without one: small steps
    add up."""
    query = f"subject=Patient/{patient.id}&status=draft,active,on-hold&{IS_CASE}"
    held = pending.view.snapshot.version
    first = (held("ServiceRequest", request["id"], 1) for request in pending.view.find("ServiceRequest", query))
    began = min((one.last_updated for one in first if one is not None), default=None)
    if began is None:
        return None
    low, high = 1, patient.version
    while low < high:  # the last version that was stored by then
        middle = (low + high + 1) // 2
        version = held("Patient", patient.id, middle)
        low, high = (middle, high) if version is not None and version.last_updated <= began else (low, middle - 1)
    version = held("Patient", patient.id, low)
    return patient.resource() if version is None or version.deleted else version.resource()


def _only_doubt(pending: Pending, patient: Resource, key: str) -> None:
    """One doubtful record for a person, however many messages about them come at once. Raises Conflict; who looks
    again finds the record."""
    queries = identity.doubt_queries(patient, pending.sites)
    for other in (one for query in queries for one in pending.matching("Patient", query, count=FOUND)):
        known = pending.view.get(f"Patient/{other}")
        if (
            known
            and other != key
            and identity.is_doubtful(known)
            and identity.same_doubt(known, patient, pending.sites)
        ):
            text = f"Patient/{other} is a doubtful record of the same person; write there"
            raise Conflict(text, expression="Patient")


def check_owners(pending: Pending) -> None:
    """No Patient of a request takes an identifier that is another one's when everything is written, nor keeps such an
    INS, on an inactive record or as `old`, that did not have it before. Raises Conflict."""
    for write in pending.writes.values():
        if write.type != "Patient" or write.after is None:
            continue
        before = None if write.before is None or write.before.deleted else write.before.resource()
        unclaimed = identity.unclaimed_ins(write.after, before)
        for identifier in [*identity.keys(write.after, pending.sites), *unclaimed]:
            owners = {other.reference for other in pending.owners(identifier)}
            if write.verb != "create" or unclaimed:  # nobody stored had it when it was decided to create this one
                stored = (f"Patient/{other['id']}" for other in identity.patient_at(pending.view, identifier))
                owners |= {reference for reference in stored if reference not in pending.writes}
            if owners - {write.reference}:
                other = min(owners - {write.reference})
                where = "another entry of this request" if other in pending.writes else "a stored Patient"
                raise placed(_taken(identifier, other, where), write.expression)


def _identity_keys(pending: Pending, patient: Resource) -> list[tuple[str, str]]:
    """What a Patient is known by; each is locked, and looked up again when writing."""
    writing.check_mode(patient, pending.sites, pending.view)
    writing.check_spelling(patient, pending.sites)
    writing.check_ins(patient)
    keys = identity.keys(patient, pending.sites)
    for key in [*keys, *identity.unclaimed_ins(patient, None)]:
        pending.matching("Patient", identity.claim_query(key), count=FOUND)
    return keys


def _taken(key: tuple[str, str], reference: str, where: str) -> Conflict:
    text = f"identifier {key[0]}|{key[1]} is that of {reference}, {where}; use that Patient or leave the identifier out"
    return Conflict(text, expression="Patient.identifier")


def referred(pending: Pending, value: str, path: str) -> str:
    """`Type/id` of the one resource a conditional reference finds. Raises Invalid (422) at its place."""
    kind, _, text = value.partition("?")
    try:
        found = _found(pending, kind, text)
    except PasserelleError as error:
        told = f"the conditional reference {value} cannot be used: {error.diagnostics}"
        raise Invalid(told, expression=path, code="value") from error
    if len(found) != 1:
        how_many = f"{len(found)} resources match" if found else "no resource matches"
        text = f"{how_many} the conditional reference {value}; exactly one must"
        raise Invalid(text, expression=path, code="value")
    pending.view.stored(f"{kind}/{found[0]}")
    return f"{kind}/{found[0]}"
