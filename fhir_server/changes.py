"""THE write path: every REST verb, HL7 message and DICOM study becomes changes, and only `apply` writes resources.

validate -> match and link -> consequences -> render -> one short transaction that re-checks what was read.
Nothing is written before everything is decided; rendering holds no lock (design, invariants 2 and 3). Beside it:
`pending` (what is decided so far), `targets` (which resource a change is about), `links` (addresses in a request).

Sources: https://hl7.org/fhir/R4/http.html (create, update, conditional interactions, transaction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial

from fhir_server.config import Settings
from fhir_server.context import Caller, Clock, instant, now
from fhir_server.errors import Conflict, Forbidden, Gone, Invalid, NotFound, PasserelleError, TooLarge
from fhir_server.links import Links, conditional
from fhir_server.patients import identity
from fhir_server.patients.sites import Sites
from fhir_server.pending import (
    FOUND,
    Change,
    Condition,
    Overlay,
    Pending,
    Write,
    placed,
    plan_of,
    view_of,
)
from fhir_server.search import index, references
from fhir_server.search.plan import Plan, elsewhere
from fhir_server.security.scopes import demand
from fhir_server.store.apiece import AT_ONCE
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.resources import Stored, prepare
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import EPOCH, Stale
from fhir_server.targets import check_owners, decide, referred, sought, validate
from fhir_server.teleexpertise import consequences as workflow
from fhir_server.teleexpertise import documents, order_record, orders, overtaken, questions
from fhir_server.teleexpertise.accession import accessions
from fhir_server.teleexpertise.scopes import case_of, scopes

__all__ = ["ATTEMPTS", "Applied", "Change", "Hub", "apply", "judge", "plan_of", "read_current", "view_of"]

ATTEMPTS = 10
# Identifiers of Patients whose studies one statement looks for.
IDS_AT_ONCE = 40
# Index rows one request may make.
MOST_ROWS = 200_000
# The rules read each other's results, so their order is fixed, whatever the order of a Bundle's entries.
_RULE_ORDER = ("ServiceRequest", "Task", "Communication", "DiagnosticReport")


@dataclass(frozen=True, slots=True)
class Hub:
    """What every room above the store works with; made once by `app`."""

    settings: Settings
    store: Store
    sites: Sites
    clock: Clock = now


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a change: the HTTP status of the FHIR rules (200, 201, 204), the stored version, and what a
    person should know of it (a report that did not reach everybody)."""

    status: int
    type: str
    id: str
    stored: Stored | None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Decided:
    """Everything decided, ready for one short transaction."""

    results: list[tuple[int, str, str]]
    pending: Pending
    audit: list[AuditRow]
    rendered: documents.Rendered


def apply(
    hub: Hub,
    caller: Caller,
    changes: Sequence[Change],
    *,
    also: Callable[[Tx, list[Applied]], None] | None = None,
    upon: Overlay | None = None,
) -> list[Applied]:
    """Write all changes or none. `also` runs in the same transaction (an inbox row, a study) and has no outside effect.
    `upon` is what the caller read to decide on the changes: it holds to the commit, or Conflict tells to decide again.

    Raises Invalid, RuleBroken, Conflict, Precondition, NotFound, Gone with the expression of the element at fault.
    """
    for attempt in range(ATTEMPTS):
        with hub.store.read(caller) as snapshot:
            decided = _Deciding(hub, caller, snapshot).run(changes)
        kept = tuple(hub.store.keep(delivery) for delivery in decided.rendered.deliveries)
        decided.rendered = replace(decided.rendered, deliveries=kept)
        try:
            if upon is not None:
                decided.pending.rest_on(upon)
            return hub.store.write(caller, partial(_commit, decided=decided, also=also))
        except Stale as stale:
            if upon is not None or attempt == ATTEMPTS - 1:
                raise Conflict(
                    "the resources kept changing while this was being written; repeat the request"
                ) from stale
    raise AssertionError("unreachable")


def judge(hub: Hub, caller: Caller, changes: Sequence[Change]) -> None:
    """Decide as `apply` does and write nothing. Raises what `apply` would raise."""
    with hub.store.read(caller) as snapshot:
        _Deciding(hub, caller, snapshot).run(changes)


class _Deciding:
    """One attempt at deciding a list of changes on one snapshot."""

    def __init__(self, hub: Hub, caller: Caller, snapshot: Snapshot) -> None:
        self.hub, self.caller = hub, caller
        self.pending = Pending(snapshot, hub.sites)
        self.view = self.pending.view
        self.rendered = documents.Rendered()
        self.found: dict[str, str] = {}

    def run(self, changes: Sequence[Change]) -> _Decided:
        for change in changes:
            validate(change)
        self.view.bases = references.own_bases(self.hub.settings, *(change.base for change in changes))
        several = len(changes) > 1
        if several:
            self.view.foresee(self._asked(changes))
        links = Links(self.view.bases, self._referred)
        results = [self._target(change, links) for change in changes]
        check_owners(self.pending)
        writes = self.pending.writes
        if several:
            self.view.foresee(self._asked_by_references(tuple(writes.values())))
        for reference, write in writes.items():
            if write.after is not None:
                write.after = links.replaced(write.after, write.expression, write.full_url)
            self.view.pending[reference] = write.after
        for write in sorted(writes.values(), key=lambda write: _rank(write.type)):
            self._consequence(write)
        if self.hub.settings.referential_integrity:
            self._check_integrity()
        held = 0
        for write in writes.values():
            if write.after is not None:
                # One zone for all: a date without a time is searched for on the clock it was indexed with, and a
                # search speaks of no site.
                write.rows = index.rows(write.after, zone=self.hub.sites.default.time_zone)
                write.rows.scopes = scopes(write.after)
                write.ready = prepare(write.after)
                held += sum(len(getattr(write.rows, part.name) or ()) for part in fields(write.rows))
                if held > MOST_ROWS:
                    text = (
                        f"this would write more than {MOST_ROWS} searchable values at once; send it in several "
                        "requests. For a merge, a person must first move some of the resources it would move"
                    )
                    raise TooLarge(text, expression="Bundle.entry")
        audit = [_audit(write) for write in writes.values()]
        return _Decided(results, self.pending, audit, self.rendered)

    def _asked(self, changes: Sequence[Change]) -> Iterator[Plan | None]:
        """The searches that finding what the changes are about is known to ask for."""
        for change in changes:
            if change.if_none_exist:
                yield self._sought(change.type, change.if_none_exist)
            if change.criteria:
                yield self._sought(change.type, change.criteria, claimed=False)
            if change.type == "Patient" and change.resource is not None:
                yield from map(self.view.claim_plan, identity.keys(change.resource, self.hub.sites))

    def _asked_by_references(self, writes: Sequence[Write]) -> Iterator[Plan | None]:
        """The searches that the conditional references in what is written ask for, equal ones once."""
        seen: set[str] = set()
        for write in writes:
            for value in conditional(write.after) if write.after is not None else ():
                if value not in seen:
                    seen.add(value)
                    kind, _, text = value.partition("?")
                    yield self._sought(kind, text)

    def _sought(self, kind: str, text: str, *, claimed: bool = True) -> Plan | None:
        """The search a condition is, as `sought` has it; None also for one that the caller may not make."""
        try:
            self._may_search(kind, text)
        except PasserelleError:
            return None
        return sought(self.pending, kind, text, claimed=claimed)

    def _target(self, change: Change, links: Links) -> tuple[int, str, str]:
        """Decide which resource a change is about; (status, type, id)."""
        if change.about and not any(links.reference(url) in self.pending.writes for url in change.about):
            return 204, change.type, ""
        try:
            for condition in filter(None, (change.if_none_exist, change.criteria)):
                self._may_search(change.type, condition)
            status, key = decide(self.pending, change, self._context())
        except PasserelleError as error:
            raise placed(error, change.expression) from error
        if key and status != 201:
            self.view.stored(f"{change.type}/{key}")  # what is only found is told too, and held like what is written
        if key and change.full_url:
            told = (change.resource or {}).get("meta", {}).get("versionId", "")
            reference = f"{change.type}/{key}"
            version = self.pending.version_of(reference)
            links.name(change.full_url, reference, change.expression, told=told, version=version)
        return status, change.type, key

    def _may_search(self, kind: str, condition: str) -> None:
        """Raise Forbidden when the caller's token does not let them make the search a condition is: whether it finds
        something is told by the answer."""
        demand(self.caller, kind, "s")
        if self.caller.rights is not None and elsewhere(self.view.plan(kind, condition)):
            demand(self.caller, "", "s")

    def _referred(self, value: str, path: str) -> str:
        """What a conditional reference finds, the same wherever it stands."""
        if found := self.found.get(value):
            return found
        kind, _, condition = value.partition("?")
        try:
            self._may_search(kind, condition)
        except Forbidden as error:
            raise placed(error, path) from error
        except PasserelleError:
            pass  # what cannot be read is refused below, at its place
        found = self.found[value] = referred(self.pending, value, path)
        return found

    def _check_integrity(self) -> None:
        """What is written refers to what is here, and nothing here refers to what is deleted. Setting of the hub."""
        writes = self.pending.writes
        for reference, write in writes.items():
            if write.after is not None:
                place = write.expression or write.type
                for path, wanted in references.local(write.after, place):
                    if self.view.get(wanted) is None:
                        text = f"{wanted} is not stored here; send it first, or in the same transaction"
                        raise Invalid(text, expression=path, code="not-found")
                continue
            text = f"what refers to {reference}"
            held = self.pending.looked_up(write.type, text, references.referring(write.type, write.id))
            users = [one.reference for one in held if writes.get(one.reference) is None]
            if users:
                text = f"{reference} is still referred to by {', '.join(users[:3])}; change or delete that first"
                raise Conflict(text, expression=write.expression or write.type)

    def _context(self) -> workflow.Context:
        handed = partial(overtaken.handed, self.view.snapshot)
        ordered = partial(order_record.in_outbox, self.view.snapshot)
        hub = self.hub
        return workflow.Context(self.caller, self.view, hub.settings, hub.sites, hub.clock(), handed, ordered)

    def _consequence(self, write: Write) -> None:
        if write.after is None:
            return
        before = None if write.before is None or write.before.deleted else write.before.resource()
        context = self._context()
        try:
            outcome = workflow.consequences(before, write.after, context)
        except PasserelleError as error:
            raise placed(error, write.expression) from error
        write.after = outcome.resource
        self.view.pending[write.reference] = outcome.resource
        if outcome.unchanged:
            del self.pending.writes[write.reference]
            return
        for other in outcome.others:
            self.pending.add(other)
        for kind, claimed in outcome.claims:
            self.pending.matching(kind, claimed, count=FOUND)
        more = (
            documents.render(write.after, outcome.request, context)
            if outcome.final
            else (questions if outcome.step == "question" else orders).tell(before, outcome, context)
        )
        self.rendered = documents.Rendered(
            (*self.rendered.resources, *more.resources),
            (*self.rendered.deliveries, *more.deliveries),
            {**self.rendered.notes, **more.notes},
            (*self.rendered.unsent, *more.unsent),
            (*self.rendered.kept, *more.kept),
            (*self.rendered.reached, *more.reached),
            (*self.rendered.standing, *more.standing),
            (*self.rendered.ended, *more.ended),
        )
        for document in more.resources:
            self.pending.add(document)


def _audit(write: Write) -> AuditRow:
    existed = write.before is not None and not write.before.deleted
    action = "D" if write.after is None else "U" if existed else "C"
    resource = write.after or (write.before.resource() if write.before else {})
    case = case_of({**resource, "resourceType": write.type, "id": write.id})
    return AuditRow(action, entity_type=write.type, entity_id=write.id, case_key=case)


def _rank(resource_type: str) -> int:
    return _RULE_ORDER.index(resource_type) if resource_type in _RULE_ORDER else len(_RULE_ORDER)


def _commit(tx: Tx, decided: _Decided, also: Callable[[Tx, list[Applied]], None] | None) -> list[Applied]:
    pending = decided.pending
    read = pending.view.reads
    # What was never looked up has a new random id: nobody else can be about to write it.
    writing = [reference for reference in pending.writes if reference in read]
    tx.lock(*sorted(pending.locks.union(writing)))
    tx.expect_many({_key(one): version for one, version in read.items()}, writing=set(map(_key, writing)))
    _expect_found(tx, pending.conditions)
    _mark_studies(tx, pending)
    stored: dict[str, Stored | None] = {}
    for reference, write in pending.writes.items():
        stored[reference] = _put(tx, write)
    rendered = decided.rendered
    ordered = (*rendered.standing, *rendered.ended)
    earlier = (tx.delivery(one) for one in (*rendered.unsent, *rendered.kept, *rendered.reached, *ordered))
    lanes = [one.lane for one in earlier if one] + [one.lane for one in rendered.deliveries]
    tx.lock_lanes(lanes)
    overtaken.stay(tx, rendered.kept, rendered.reached)
    overtaken.same_ends(tx, rendered.standing, rendered.ended)
    overtaken.give_up(tx, rendered.unsent, "nobody had received it when what it says was overtaken")
    for delivery in rendered.deliveries:
        tx.send(delivery)
    for row in decided.audit:
        written = stored.get(f"{row.entity_type}/{row.entity_id}")
        tx.audit(replace(row, entity_version=written.version if written else 0))
    applied = [
        Applied(
            status,
            kind,
            key,
            stored.get(f"{kind}/{key}") or (pending.view.stored(f"{kind}/{key}") if key else None),
            decided.rendered.notes.get(f"{kind}/{key}", ()),
        )
        for status, kind, key in decided.results
    ]
    if also is not None:
        also(tx, applied)
    return applied


def _expect_found(tx: Tx, conditions: Sequence[Condition]) -> None:
    """Every condition finds what it found. Raises Stale."""
    for start in range(0, len(conditions), AT_ONCE):
        block = conditions[start : start + AT_ONCE]
        for condition, page in zip(block, tx.searches([one.plan for one in block]), strict=True):
            if not condition.holds(page):
                raise Stale(f"{condition.type}?{condition.text} finds something else now")


def _key(reference: str) -> tuple[str, str]:
    kind, _, key = reference.partition("/")
    return kind, key


def _put(tx: Tx, write: Write) -> Stored | None:
    if write.ready is None or write.rows is None:
        return tx.delete(write.type, write.id)
    if write.before is None:
        method = "POST" if write.verb == "create" else "PUT"
        return tx.create(write.ready, write.rows, method=method, absent=True)
    return tx.update(write.ready, write.rows, method="PATCH" if write.verb == "patch" else "PUT")


def _mark_studies(tx: Tx, pending: Pending) -> None:
    """A patient or a request that arrives lets studies that waited for it be matched again."""
    ids: list[tuple[str, str]] = []
    for write in pending.writes.values():
        if write.after is None:
            continue
        if write.type == "ServiceRequest":
            for _, identifier in accessions(write.after, pending.sites):
                tx.mark_dirty(accession=identifier["value"])
        elif write.type == "Patient":
            ids += [(i["value"], "") for i in write.after.get("identifier", ()) if i.get("value")]
    for start in range(0, len(ids), IDS_AT_ONCE):
        tx.mark_dirty(patient_ids=ids[start : start + IDS_AT_ONCE])


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
