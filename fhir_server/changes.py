"""THE write path: every REST verb, HL7 message and DICOM study becomes changes, and only `apply` writes resources.

validate -> match and link -> consequences -> render -> one short transaction that re-checks what was read.
Nothing is written before everything is decided; rendering holds no lock (design, invariants 2 and 3).

Sources: https://hl7.org/fhir/R4/http.html (create, update, conditional interactions, transaction).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

from fhir_server.config import Settings
from fhir_server.context import Caller, Clock, View, instant, now
from fhir_server.errors import (
    Conflict,
    Gone,
    Invalid,
    Issue,
    NotFound,
    PasserelleError,
    Precondition,
    TooLarge,
    Unsupported,
)
from fhir_server.patients import identity
from fhir_server.patients.sites import Sites
from fhir_server.search import index, query, references
from fhir_server.search.plan import Plan
from fhir_server.search.rows import IndexRows
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.inbox import INLINE_BYTES
from fhir_server.store.resources import Prepared, Stored, prepare
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import EPOCH, Stale
from fhir_server.teleexpertise import consequences as workflow
from fhir_server.teleexpertise import documents
from fhir_server.teleexpertise.scopes import case_of, scopes
from profiles.validator.structure import check

Resource = dict[str, Any]
Verb = Literal["create", "update", "patch", "delete"]
ATTEMPTS = 10
# One page of a search: what a conditional delete takes in one request.
MOST_DELETED = 1_000
# The rules read each other's results, so their order is fixed, whatever the order of a Bundle's entries.
_RULE_ORDER = ("ServiceRequest", "Task", "Communication", "DiagnosticReport")
# Strings that are text even when they look like an address of the Bundle (R4 http.html#trules: uris are replaced).
_NOT_LINKS = frozenset({"value", "valueString", "display", "text", "contentString"})


@dataclass(frozen=True, slots=True)
class Hub:
    """What every room above the store works with; made once by `app`."""

    settings: Settings
    store: Store
    sites: Sites
    clock: Clock = now


@dataclass(frozen=True, slots=True)
class Change:
    """One wanted write. `if_match` is the version the client read; `if_none_exist` and `criteria` are search queries
    (conditional create; conditional update, patch and delete); `if_absent` writes only where nothing is; `many` lets a
    conditional delete take every match; `patch` makes the next content from the current one and raises Invalid;
    `full_url` is the Bundle entry's address others refer to; `expression` where it stands in the request
    (`Bundle.entry[3].resource`); `base` the URL the client called us by; `about` the full URL of another change without
    whose writing this one is left out."""

    verb: Verb
    type: str
    id: str = ""
    resource: Resource | None = None
    if_match: int | None = None
    if_none_exist: str = ""
    criteria: str = ""
    full_url: str = ""
    expression: str = ""
    if_absent: bool = False
    many: bool = False
    patch: Callable[[Resource], Resource] | None = None
    base: str = ""
    about: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a change: the HTTP status of the FHIR rules (200, 201, 204) and the stored version."""

    status: int
    type: str
    id: str
    stored: Stored | None


@dataclass(slots=True)
class _Write:
    verb: Verb
    type: str
    id: str
    before: Stored | None
    after: Resource | None
    expression: str
    rows: IndexRows | None = None
    ready: Prepared | None = None


@dataclass(slots=True)
class _Prepared:
    """Everything decided, ready for one short transaction."""

    results: list[tuple[int, str, str]]
    writes: dict[str, _Write]
    reads: dict[str, int]
    locks: set[str]
    recheck: list[tuple[str, str, Plan, frozenset[str]]]
    audit: list[AuditRow]
    rendered: documents.Rendered
    steps: list[tuple[str, str]] = field(default_factory=list)


def apply(
    hub: Hub, caller: Caller, changes: Sequence[Change], *, also: Callable[[Tx, list[Applied]], None] | None = None
) -> list[Applied]:
    """Write all changes or none. `also` runs in the same transaction (an inbox row, a study) and has no outside effect.

    Raises Invalid, RuleBroken, Conflict, Precondition, NotFound, Gone with the expression of the element at fault.
    """
    for attempt in range(ATTEMPTS):
        with hub.store.read(caller) as snapshot:
            prepared = _Preparation(hub, caller, snapshot).run(changes)
        for delivery in prepared.rendered.deliveries:
            if len(delivery.payload) > INLINE_BYTES:
                hub.store.blobs.put(delivery.payload)  # the slow part of keeping it, before any lock is held
        try:
            return hub.store.write(caller, lambda tx, p=prepared: _commit(hub, tx, p, also))  # type: ignore[misc]
        except Stale as stale:
            if attempt == ATTEMPTS - 1:
                raise Conflict(
                    "the resources kept changing while this was being written; repeat the request"
                ) from stale
    raise AssertionError("unreachable")


class _View:
    """The snapshot with the pending writes laid over it; remembers which versions were read."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.pending: dict[str, Resource | None] = {}
        self.reads: dict[str, int] = {}

    def get(self, reference: str) -> Resource | None:
        reference = reference.split("/_history/")[0]
        if reference in self.pending:
            return self.pending[reference]
        stored = self.stored(reference)
        return None if stored is None or stored.deleted else stored.resource()

    def stored(self, reference: str) -> Stored | None:
        kind, _, key = reference.partition("/")
        if not key or "/" in key or ":" in kind:
            return None
        stored = self.snapshot.get(kind, key)
        self.reads[reference] = stored.version if stored else 0
        return stored

    def find(self, resource_type: str, text: str) -> list[Resource]:
        page = self.snapshot.search(plan_of(resource_type, text))
        found = (
            self.pending[stored.reference] if stored.reference in self.pending else stored.resource()
            for stored in page.matches
        )
        return [resource for resource in found if resource is not None]


def view_of(snapshot: Snapshot) -> View:
    """A snapshot as the View the domain rooms read."""
    return _View(snapshot)


def plan_of(resource_type: str, text: str, count: int = 50) -> Plan:
    """The plan of a query string such as `identifier=urn:oid:1.2|3`."""
    if "\0" in text or "%00" in text:
        raise Invalid("the condition holds the character NUL; leave it out", http=400, code="value")
    pairs = parse_qsl(text.lstrip("?"), keep_blank_values=True)
    return dataclasses.replace(query.parse(resource_type, pairs, lenient=False), count=count)


class _Preparation:
    """One attempt at deciding a list of changes on one snapshot."""

    def __init__(self, hub: Hub, caller: Caller, snapshot: Snapshot) -> None:
        self.hub, self.caller = hub, caller
        self.view = _View(snapshot)
        self.locks: set[str] = set()
        self.recheck: list[tuple[str, str, Plan, frozenset[str]]] = []
        self.links: dict[str, str] = {}
        self.bases: tuple[str, ...] = ()
        self.writes: dict[str, _Write] = {}
        self.rendered = documents.Rendered()

    def run(self, changes: Sequence[Change]) -> _Prepared:
        for change in changes:
            _validate(change)
        self.bases = references.own_bases(self.hub.settings, *(change.base for change in changes))
        results = [self._target(change) for change in changes]
        for reference, write in self.writes.items():
            if write.after is not None:
                write.after = self._linked(write.after, write.expression)
            self.view.pending[reference] = write.after
        ruled = sorted(self.writes.values(), key=lambda write: _rank(write.type))
        steps = [step for write in ruled if (step := self._consequence(write))]
        if self.hub.settings.referential_integrity:
            self._check_integrity()
        for write in self.writes.values():
            if write.after is not None:
                write.rows = index.rows(write.after, zone=self.hub.sites.default.time_zone)
                write.rows.scopes = scopes(write.after)
                write.ready = prepare(write.after)
        audit = [self._audit(write) for write in self.writes.values()]
        return _Prepared(results, self.writes, self.view.reads, self.locks, self.recheck, audit, self.rendered, steps)

    def _target(self, change: Change) -> tuple[int, str, str]:
        """Decide which resource a change is about; (status, type, id)."""
        if change.about and not any(self.links.get(url) in self.writes for url in change.about):
            return 204, change.type, ""
        try:
            if change.verb == "create":
                status, key = self._create_target(change)
            else:
                status, key = self._named_target(change)
        except PasserelleError as error:
            raise _placed(error, change.expression) from error
        named = f"{change.type}/{key}"
        if key and change.full_url and self.links.setdefault(change.full_url, named) != named:
            text = f"{change.full_url} is the fullUrl of two entries; give each its own"
            raise Invalid(text, expression=change.expression, http=400)
        return status, change.type, key

    def _create_target(self, change: Change) -> tuple[int, str]:
        assert change.resource is not None
        if change.if_none_exist:
            found = self._matching(change.type, change.if_none_exist)
            if len(found) > 1:
                raise Precondition(
                    f"{len(found)} resources match If-None-Exist {change.if_none_exist}; make it precise"
                )
            if found:
                return 200, found[0]
        if change.type == "Patient" and (known := self._known_patient(change.resource)):
            return 200, known
        key = change.id or str(uuid.uuid4())
        self._write("create", change, key, None)
        return 201, key

    def _known_patient(self, patient: Resource) -> str | None:
        """The stored (or earlier in this request) Patient this one is; None to create a new one.

        Raises Conflict when its identifiers are those of somebody else: FHIR has no "à rapprocher" answer.
        """
        keys = self._identity_keys(patient)
        for write in self.writes.values():
            shared = [key for key in keys if key in self._pending_keys(write)]
            if shared and not (write.after and identity.agree(write.after, patient)):
                raise _taken(shared[0], f"{write.type}/{write.id}", "an entry before this one")
            if shared:
                return write.id
        found = identity.match(self.view, patient, self.hub.sites) if keys else identity.Match("new")
        if found.kind == "reconcile":
            text = f"this cannot be told from a stored Patient: {found.reason}; correct the traits or the identifiers"
            raise Conflict(text, expression="Patient.identifier")
        if found.kind == "new":
            return None
        self.view.stored(found.reference)
        return found.reference.partition("/")[2]

    def _own_identity(self, patient: Resource, key: str) -> None:
        """A Patient written under its own id takes no identifier of another one. Raises Conflict."""
        for identifier in self._identity_keys(patient):
            owners = {other["id"] for other in identity.patient_at(self.view, identifier)}
            owners |= {write.id for write in self.writes.values() if identifier in self._pending_keys(write)}
            if owners - {key}:
                raise _taken(identifier, f"Patient/{min(owners - {key})}", "a stored Patient")

    def _identity_keys(self, patient: Resource) -> list[tuple[str, str]]:
        """What a Patient is known by; each is locked, and looked up again when writing."""
        identity.check_mode(patient, self.hub.sites.default)
        keys = identity.keys(patient, self.hub.sites)
        for key in keys:
            self._matching("Patient", identity.identifier_query(*key))
        return keys

    def _pending_keys(self, write: _Write) -> list[tuple[str, str]]:
        return identity.keys(write.after, self.hub.sites) if write.type == "Patient" and write.after else []

    def _named_target(self, change: Change) -> tuple[int, str]:
        key = change.id
        if change.criteria:
            if change.many and change.verb == "delete":
                return self._delete_all(change)
            found = self._matching(change.type, change.criteria)
            if len(found) > 1:
                raise Precondition(f"{len(found)} resources match {change.criteria}; make the condition precise")
            if not found and change.verb == "patch":
                raise NotFound(f"no {change.type} matches {change.criteria}; there is nothing to patch")
            if found and key and found[0] != key:
                raise Precondition(f"{change.criteria} finds {found[0]}, the resource says {key}")
            key = found[0] if found else key
            if not found and change.verb == "delete":
                return 204, ""
            if not found:
                key = key or str(uuid.uuid4())
        before = self.view.stored(f"{change.type}/{key}")
        exists = before is not None and not before.deleted
        if change.if_match is not None and (not exists or before is None or before.version != change.if_match):
            held = f"version {before.version}" if before is not None and exists else "nothing"
            raise Precondition(
                f"If-Match asks for version {change.if_match} of {change.type}/{key}; the server holds {held}"
            )
        if change.if_absent and exists:
            raise Precondition(f"{change.type}/{key} exists already and If-None-Match: * asks for it to be absent")
        if change.verb == "delete":
            if before is None:
                raise NotFound(f"{change.type}/{key} is not known here")
            if exists:
                workflow.guard_delete(before.resource(), self._context())
                self._write("delete", change, key, before)
            return 204, key
        if change.verb == "patch":
            change = _patched(change, key, before)
        if change.type == "Patient" and change.resource is not None:
            self._own_identity(change.resource, key)
        self._write(change.verb, change, key, before)
        return (200 if exists else 201), key

    def _delete_all(self, change: Change) -> tuple[int, str]:
        """Every match of a condition deleted, at most MOST_DELETED."""
        for key in self._matching(change.type, change.criteria, MOST_DELETED):
            before = self.view.stored(f"{change.type}/{key}")
            assert before is not None  # it was found on this snapshot
            workflow.guard_delete(before.resource(), self._context())
            self._write("delete", change, key, before)
        return 204, ""

    def _check_integrity(self) -> None:
        """What is written refers to what is here, and nothing here refers to what is deleted. Setting of the hub."""
        for reference, write in self.writes.items():
            if write.after is not None:
                place = write.expression or write.type
                for path, wanted in references.local(write.after, place):
                    if self.view.get(wanted) is None:
                        text = f"{wanted} is not stored here; send it first, or in the same transaction"
                        raise Invalid(text, expression=path, code="not-found")
                continue
            plan = references.referring(write.type, write.id)
            held = self.view.snapshot.search(plan).matches
            users = [one.reference for one in held if self.writes.get(one.reference) is None]
            if users:
                text = f"{reference} is still referred to by {', '.join(users[:3])}; change or delete that first"
                raise Conflict(text, expression=write.expression or write.type)
            found = frozenset(one.id for one in held)
            self.recheck.append((write.type, f"what refers to {reference}", plan, found))

    def _write(self, verb: Verb, change: Change, key: str, before: Stored | None) -> None:
        reference = f"{change.type}/{key}"
        if reference in self.writes:
            raise Invalid(
                f"{reference} appears twice in one request; send each resource once", http=400, code="invalid"
            )
        after = None if change.resource is None or verb == "delete" else {**change.resource, "id": key}
        if after is not None:
            after = {"resourceType": after["resourceType"], "id": key} | after
        if verb == "create":
            self.view.stored(reference)
        elif verb == "delete":
            self.view.pending[reference] = None
        self.writes[reference] = _Write(verb, change.type, key, before, after, change.expression)

    def _matching(self, resource_type: str, text: str, most: int = 0) -> list[str]:
        """Ids that match a condition, a few or up to `most`; it is locked and checked again when writing."""
        pairs = sorted(parse_qsl(text.lstrip("?"), keep_blank_values=True))
        plan = plan_of(resource_type, text, count=most or 3)
        if not plan.clauses:
            raise Invalid(f"the condition `{text}` finds everything; name an identifier", http=400, code="value")
        page = self.view.snapshot.search(plan)
        if most and page.next:
            raise TooLarge(f"more than {most} resources match {text}; make the condition narrower and repeat")
        found = [stored.id for stored in page.matches]
        self.locks.add(f"{resource_type}?{urlencode(pairs)}")
        self.recheck.append((resource_type, text, plan, frozenset(found)))
        return found

    def _linked(self, resource: Resource, expression: str) -> Resource:
        """The resource with the addresses of this request and conditional references replaced by `Type/id`."""

        def walk(value: Any, path: str) -> Any:
            if isinstance(value, dict):
                return {
                    key: item if key in _NOT_LINKS and isinstance(item, str) else walk(item, f"{path}.{key}")
                    for key, item in value.items()
                }
            if isinstance(value, list):
                return [walk(item, f"{path}[{i}]") for i, item in enumerate(value)]
            if isinstance(value, str):
                if value in self.links:
                    return self.links[value]
                if path.endswith(".reference") and (own := references.relative(value, self.bases)):
                    return own
                if (
                    path.endswith(".reference")
                    and "?" in value
                    and not value.startswith(("http:", "https:", "urn:", "#"))
                ):
                    return self._conditional_reference(value, path)
                if path.endswith(".reference") and value.startswith("urn:uuid:"):
                    raise Invalid(
                        f"{value} is the fullUrl of no entry of this Bundle", expression=path, code="not-found"
                    )
            return value

        return dict(walk(resource, expression or resource["resourceType"]))

    def _conditional_reference(self, value: str, path: str) -> str:
        kind, _, text = value.partition("?")
        try:
            found = self._matching(kind, text)
        except PasserelleError as error:
            told = f"the conditional reference {value} cannot be used: {error.diagnostics}"
            raise Invalid(told, expression=path, code="value") from error
        if len(found) != 1:
            how_many = f"{len(found)} resources match" if found else "no resource matches"
            raise Invalid(
                f"{how_many} the conditional reference {value}; exactly one must", expression=path, code="value"
            )
        self.view.stored(f"{kind}/{found[0]}")
        return f"{kind}/{found[0]}"

    def _context(self) -> workflow.Context:
        return workflow.Context(self.caller, self.view, self.hub.settings, self.hub.sites, self.hub.clock())

    def _consequence(self, write: _Write) -> tuple[str, str] | None:
        if write.after is None:
            return None
        before = None if write.before is None or write.before.deleted else write.before.resource()
        context = self._context()
        try:
            outcome = workflow.consequences(before, write.after, context)
        except PasserelleError as error:
            raise _placed(error, write.expression) from error
        write.after = outcome.resource
        self.view.pending[f"{write.type}/{write.id}"] = outcome.resource
        for other in outcome.others:
            self._add(other)
        if outcome.final:
            more = documents.render(write.after, outcome.request, context)
            self.rendered = documents.Rendered(
                (*self.rendered.resources, *more.resources), (*self.rendered.deliveries, *more.deliveries)
            )
            for document in more.resources:
                self._add(document)
        return (outcome.step, outcome.request) if outcome.step else None

    def _add(self, resource: Resource) -> None:
        reference = f"{resource['resourceType']}/{resource['id']}"
        if reference in self.writes:
            self.writes[reference].after = resource
        else:
            before = self.view.stored(reference)
            verb: Verb = "update" if before else "create"
            self.writes[reference] = _Write(verb, resource["resourceType"], resource["id"], before, resource, "")
        self.view.pending[reference] = resource

    def _audit(self, write: _Write) -> AuditRow:
        existed = write.before is not None and not write.before.deleted
        action = "D" if write.after is None else "U" if existed else "C"
        resource = write.after or (write.before.resource() if write.before else {})
        case = case_of({**resource, "resourceType": write.type, "id": write.id})
        return AuditRow(action, entity_type=write.type, entity_id=write.id, case_key=case)


def _patched(change: Change, key: str, before: Stored | None) -> Change:
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
    _validate(dataclasses.replace(changed, expression=""))
    return changed


def _rank(resource_type: str) -> int:
    return _RULE_ORDER.index(resource_type) if resource_type in _RULE_ORDER else len(_RULE_ORDER)


def _taken(key: tuple[str, str], reference: str, where: str) -> Conflict:
    text = f"identifier {key[0]}|{key[1]} is that of {reference}, {where}; use that Patient or leave the identifier out"
    return Conflict(text, expression="Patient.identifier")


def _validate(change: Change) -> None:
    """The structural check in front of every write; a server chooses the id of what is created."""
    if change.type == "AuditEvent":
        text = "the audit trail is written by this server alone; it is read and searched"
        raise Unsupported(text, expression=change.expression or "AuditEvent", http=405)
    if change.resource is None:
        return
    content = {name: value for name, value in change.resource.items() if name != "id"}
    named = change.id or ("" if change.verb == "create" else change.resource.get("id", ""))
    bad = [f for f in check(content | ({"id": named} if named else {})) if f.severity in ("fatal", "error")]
    if bad:
        place = change.expression
        issues = tuple(Issue(f.severity, f.code, f.diagnostics, _joined(place, f.expression)) for f in bad[:50])
        raise Invalid(bad[0].diagnostics, issues=issues)


def _joined(prefix: str, expression: str) -> str:
    if not prefix:
        return expression
    return prefix + "." + expression.partition(".")[2] if "." in expression else prefix


def _placed(error: PasserelleError, prefix: str) -> PasserelleError:
    """The same error with its expressions placed inside the Bundle."""
    if not prefix:
        return error
    issues = tuple(dataclasses.replace(i, expression=_joined(prefix, i.expression)) for i in error.issues)
    return type(error)(error.diagnostics, issues=issues, http=error.status)


def _commit(hub: Hub, tx: Tx, prepared: _Prepared, also: Callable[[Tx, list[Applied]], None] | None) -> list[Applied]:
    tx.lock(*sorted(prepared.locks | set(prepared.writes)))
    for reference, version in sorted(prepared.reads.items()):
        kind, _, key = reference.partition("/")
        if version:
            tx.expect(kind, key, version)
        elif tx.get(kind, key) is not None:
            raise Stale(f"{reference} has come into being")
    for kind, text, plan, found in prepared.recheck:
        if frozenset(stored.id for stored in tx.search(plan).matches) != found:
            raise Stale(f"{kind}?{text} finds something else now")
    stored: dict[str, Stored | None] = {}
    for reference, write in prepared.writes.items():
        stored[reference] = _put(tx, write)
    for delivery in prepared.rendered.deliveries:
        tx.send(delivery)
    for row in prepared.audit:
        tx.audit(row)
    _mark_studies(tx, prepared)
    applied = [
        Applied(status, kind, key, stored.get(f"{kind}/{key}") or (tx.get(kind, key) if key else None))
        for status, kind, key in prepared.results
    ]
    if also is not None:
        also(tx, applied)
    return applied


def _put(tx: Tx, write: _Write) -> Stored | None:
    if write.ready is None or write.rows is None:
        return tx.delete(write.type, write.id)
    if write.before is None:
        return tx.create(write.ready, write.rows, method="POST" if write.verb == "create" else "PUT")
    return tx.update(write.ready, write.rows, method="PATCH" if write.verb == "patch" else "PUT")


def _mark_studies(tx: Tx, prepared: _Prepared) -> None:
    """A patient or a request that arrives lets studies that waited for it be matched again."""
    for write in prepared.writes.values():
        if write.after is None:
            continue
        if write.type == "ServiceRequest":
            for accession in _values(write.after, "ACSN"):
                tx.mark_dirty(accession=accession)
        elif write.type == "Patient":
            ids = [(i["value"], "") for i in write.after.get("identifier", ()) if i.get("value")]
            tx.mark_dirty(patient_ids=ids)


def _values(resource: Mapping[str, Any], code: str) -> Iterator[str]:
    for identifier in resource.get("identifier", ()):
        codes = {coding.get("code") for coding in identifier.get("type", {}).get("coding", ())}
        if code in codes and identifier.get("value"):
            yield identifier["value"]


def read_current(hub: Hub, caller: Caller, kind: str, key: str) -> Stored:
    """The current version. Raises NotFound (404) or Gone (410)."""
    stored = hub.store.get(caller, kind, key)
    if stored is None:
        raise NotFound(f"{kind}/{key} is not known here; search for it or check the id")
    if stored.deleted:
        raise Gone(f"{kind}/{key} was deleted (version {stored.version}, {instant_of(stored)}); read its history")
    return stored


def instant_of(stored: Stored) -> str:
    """The instant a version was stored."""
    return instant(EPOCH + timedelta(microseconds=stored.last_updated))
