"""The two faces of a transaction: `Snapshot` to read, `Tx` to read and write. Each method is one store function."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fhir_server.search.plan import Plan
from fhir_server.search.rows import IndexRows
from fhir_server.store import (
    apiece,
    audit,
    history,
    inbox,
    instances,
    journal,
    lanes,
    leases,
    outbox_desk,
    partners,
    query,
    resources,
    trace,
    view,
)
from fhir_server.store.audit import AuditFilter, AuditRow
from fhir_server.store.blob_place import Kept
from fhir_server.store.history import HistoryPage
from fhir_server.store.inbox import InboxFilter, InboxRow, InboxState, Keys
from fhir_server.store.instances import Arrived, Conflicting, Instance, NewInstance, Study, StudyFilter
from fhir_server.store.journal import JournalRow
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.outbox_desk import Attempt, Lane, OutboxFilter, Policy, Rate, Waiting, WaitingLeg
from fhir_server.store.partners import Partner
from fhir_server.store.query import Explained, Page
from fhir_server.store.resources import Prepared, Stored
from fhir_server.store.trace import TraceEvent

Resource = dict[str, Any]


class Snapshot:
    """What one caller may see, at one moment."""

    def __init__(self, seen: view.View) -> None:
        self.view = seen

    # resources
    def get(self, resource_type: str, resource_id: str) -> Stored | None:
        """The current version, a deletion too; None when it never existed or is not for this caller."""
        return resources.get(self.view, resource_type, resource_id)

    def many(self, references: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Stored]:
        """The current versions of several (type, id)."""
        return resources.many(self.view, references)

    def version(self, resource_type: str, resource_id: str, number: int) -> Stored | None:
        return resources.version(self.view, resource_type, resource_id, number)

    def history(
        self,
        resource_type: str | None = None,
        resource_id: str | None = None,
        count: int = 50,
        after: tuple[int, ...] = (),
        *,
        since: int = 0,
        at: tuple[int, int] | None = None,
        oldest_first: bool = False,
    ) -> HistoryPage:
        """Versions newest first, of one resource, a type, or everything; `at`: those current at some time between."""
        wanted = history.Wanted(resource_type, resource_id, since, at)
        return history.history(self.view, wanted, count, after, oldest_first=oldest_first)

    def history_total(
        self,
        resource_type: str | None = None,
        resource_id: str | None = None,
        *,
        since: int = 0,
        at: tuple[int, int] | None = None,
    ) -> int:
        """How many versions all pages of `history` hold together."""
        return history.total(self.view, history.Wanted(resource_type, resource_id, since, at))

    def search(self, plan: Plan) -> Page:
        return query.search(self.view, plan)

    def searches(self, plans: Sequence[Plan]) -> list[Page]:
        """What each of the searches finds; those for a token each are asked together."""
        return apiece.search(self.view, plans)

    def explain(self, plan: Plan) -> Explained:
        """The statement a search runs, and the database's own plan for it."""
        return query.explain(self.view, plan)

    def journal(self, after: tuple[int, int] = (0, 0), limit: int = 500) -> list[JournalRow]:
        """Versions in order of commit, behind a position."""
        return journal.read(self.view, after, limit)

    def journal_head(self) -> tuple[int, int]:
        return journal.head(self.view)

    # inbox
    def message(self, inbox_id: str) -> InboxRow | None:
        return inbox.get(self.view, inbox_id)

    def message_raw(self, inbox_id: str) -> bytes:
        """The original bytes."""
        return inbox.raw_of(self.view, inbox_id)

    def message_keys(self, inbox_id: str) -> tuple[tuple[str, str], ...]:
        return inbox.keys_of(self.view, "in", inbox_id)

    def keys_of_many(self, box: str, messages: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """The business keys of inbox rows (`in`) or deliveries (`out`)."""
        return inbox.keys_of_many(self.view, box, messages)

    def unsettled(self) -> dict[tuple[str, str], int]:
        """Messages that are not taken in, by (channel, state)."""
        return inbox.counts(self.view)

    def messages(self, wanted: InboxFilter | None = None) -> list[InboxRow]:
        return inbox.listed(self.view, wanted or InboxFilter())

    # outbox
    def delivery(self, delivery_id: str) -> Delivery | None:
        return lanes.get(self.view, delivery_id)

    def payload(self, delivery_id: str) -> bytes:
        """The frozen bytes."""
        return lanes.payload_of(self.view, delivery_id)

    def deliveries(self, wanted: OutboxFilter | None = None) -> list[Delivery]:
        return outbox_desk.listed(self.view, wanted or OutboxFilter())

    def delivery_keys(self, delivery_id: str) -> tuple[tuple[str, str], ...]:
        return inbox.keys_of(self.view, "out", delivery_id)

    def attempts(self, delivery_id: str) -> list[Attempt]:
        return outbox_desk.attempts(self.view, delivery_id)

    def waiting(self, delivery_id: str) -> Waiting:
        """The facts behind "why is it waiting"."""
        return outbox_desk.waiting(self.view, delivery_id)

    def lanes(self, name: str = "") -> list[Lane]:
        return outbox_desk.lanes(self.view, name)

    def replays(self, delivery_id: str) -> list[str]:
        """The deliveries that replay or replace this one."""
        return outbox_desk.replays(self.view, delivery_id)

    def attempt_rates(self) -> list[Rate]:
        """How the latest attempts ended, lane by lane."""
        return outbox_desk.rates(self.view)

    def waiting_legs(self) -> list[WaitingLeg]:
        """Second legs nobody has settled."""
        return outbox_desk.waiting_legs(self.view)

    def totals(self) -> tuple[int, int, int]:
        """Messages received, deliveries made, attempts begun, ever."""
        return outbox_desk.totals(self.view)

    # images
    def instance(self, sop_uid: str) -> Instance | None:
        return instances.get(self.view, sop_uid)

    def instances(self, study_uid: str, series_uid: str = "") -> list[Instance]:
        return instances.of_study(self.view, study_uid, series_uid)

    def study(self, study_uid: str) -> Study | None:
        return instances.study(self.view, study_uid)

    def studies(self, wanted: StudyFilter | None = None) -> list[Study]:
        return instances.studies(self.view, wanted or StudyFilter())

    def conflicts(self, study_uid: str = "", limit: int = 50) -> list[Conflicting]:
        """Images that came under the SOP Instance UID of another, the latest first."""
        return instances.conflicts(self.view, study_uid, limit)

    # audit, trace, blobs
    def audit_rows(self, wanted: AuditFilter | None = None) -> list[AuditRow]:
        return audit.listed(self.view, wanted or AuditFilter())

    def case(self, case_key: str) -> list[TraceEvent]:
        """Everything that carries the case, in order of time."""
        return trace.case(self.view, case_key)

    def partners(self) -> list[Partner]:
        """Callers no establishment declares, the last first."""
        return partners.listed(self.view)

    def epoch(self) -> int:
        """The number that changes when definitions, settings or grants do."""
        row = self.view.db.one("SELECT value FROM counter WHERE name = 'epoch'")
        return 0 if row is None else int(row[0])


class Tx(Snapshot):
    """One write transaction. It may run up to three times: nothing outside the database may happen in it."""

    # resources
    def create(
        self, resource: Resource | Prepared, rows: IndexRows, *, method: str = "POST", absent: bool = False
    ) -> Stored:
        """A new resource under the id it carries; `Conflict` when the id is in use. `absent`: it is known not to be,
        which saves waiting; should it be, `Stale`."""
        return resources.create(self.view, resource, rows, method=method, absent=absent)

    def update(
        self, resource: Resource | Prepared, rows: IndexRows, *, if_version: int | None = None, method: str = "PUT"
    ) -> Stored:
        """The next version; `Precondition` when the current one is not `if_version`, `NotFound` when none exists."""
        return resources.update(self.view, resource, rows, if_version=if_version, method=method)

    def delete(self, resource_type: str, resource_id: str, *, if_version: int | None = None) -> Stored:
        return resources.delete(self.view, resource_type, resource_id, if_version=if_version)

    def expect(self, resource_type: str, resource_id: str, version: int) -> None:
        """Holds the resource; `Stale` unless this is its current version."""
        resources.expect(self.view, resource_type, resource_id, version)

    def expect_many(
        self, versions: Mapping[tuple[str, str], int], *, writing: Collection[tuple[str, str]] = ()
    ) -> None:
        """Holds every (type, id) against change, in one statement; `Stale` unless all are at these versions, 0 = never
        written. Those of `writing` are held for this transaction alone. Lock the names whose 0 matters."""
        resources.expect_many(self.view, versions, writing=writing)

    def lock(self, *criteria: str) -> None:
        """Holds named criteria to the end of the transaction: search again after it, before acting on the result."""
        view.lock(self.view, *criteria)

    def attach(self, content: Kept, media_type: str) -> None:
        """Keeps content with the record for good. It lies in `store.blobs` before the transaction."""
        inbox.record_blob(self.view, content, media_type, for_good=True)

    # inbox
    def integrate(
        self, inbox_id: str, ack: bytes, *, state: InboxState = "done", keys: Keys = (), note: str = ""
    ) -> None:
        """Marks a message as taken in; `Stale` when it was settled meanwhile."""
        inbox.integrate(self.view, inbox_id, ack, state=state, keys=keys, note=note)

    def reject(
        self,
        inbox_id: str,
        error_text: str,
        location: str,
        ack: bytes | None,
        *,
        state: InboxState = "error",
        keys: Keys = (),
    ) -> None:
        inbox.reject(self.view, inbox_id, error_text, location, ack, state=state, keys=keys)

    def reopen(self, inbox_id: str) -> None:
        """Puts a message that was not taken in back to `received`, to be taken in again from its original bytes."""
        inbox.reopen(self.view, inbox_id)

    # outbox
    def send(self, delivery: NewDelivery) -> str:
        """Puts frozen bytes behind the others of their lane; returns the delivery id."""
        return lanes.send(self.view, delivery)

    def confirm(self, delivery_id: str, leg_state: str, text: str, inbox_id: str = "") -> bool:
        """Settles the second leg."""
        return outbox_desk.confirm(self.view, delivery_id, leg_state, text, inbox_id)

    def remark(self, delivery_id: str, text: str) -> None:
        """Adds to what the second leg says."""
        outbox_desk.remark(self.view, delivery_id, text)

    def retry(self, delivery_id: str) -> None:
        outbox_desk.retry(self.view, delivery_id)

    def release(self, delivery_id: str) -> str:
        """Lets a held delivery go in spite of the reason it was held for; the reason."""
        return outbox_desk.release(self.view, delivery_id)

    def replay(self, delivery_id: str) -> str:
        """The same bytes to the same destination once more; the new delivery's id."""
        return outbox_desk.replay(self.view, delivery_id)

    def set_policy(self, lane: str, policy: Policy) -> None:
        outbox_desk.set_policy(self.view, lane, policy)

    def hold(self, delivery_id: str, reason: str) -> None:
        outbox_desk.hold(self.view, delivery_id, reason)

    def lock_lanes(self, names: Iterable[str]) -> None:
        """Holds lanes before their deliveries are touched."""
        outbox_desk.lock_lanes(self.view, names)

    def interrupt(self, delivery_id: str) -> bool:
        """Ends the attempt of a delivery that is being sent under a lease that is over; False when none is."""
        return leases.interrupt(self.view, delivery_id, self.view.now())

    def cancel(self, delivery_id: str, reason: str) -> None:
        outbox_desk.cancel(self.view, delivery_id, reason)

    def pause(self, lane: str, note: str) -> None:
        outbox_desk.pause(self.view, lane, note)

    def resume(self, lane: str) -> None:
        outbox_desk.resume(self.view, lane)

    # images
    def add_instance(self, instance: NewInstance) -> Arrived:
        """'new', 'same' (these bytes are known) or 'conflict' (other bytes under the same SOP Instance UID)."""
        return instances.add(self.view, instance)

    def mark_dirty(
        self, *, accession: str = "", patient_ids: Sequence[tuple[str, str]] = (), study_uid: str = ""
    ) -> int:
        """Asks for the matching of these studies again; patient ids are (id, issuer or '')."""
        return instances.mark_dirty(self.view, accession, patient_ids, study_uid)

    def settle_study(self, study: Study, **found: str) -> bool:
        """Records the outcome of matching; False when the study changed meanwhile (it stays dirty)."""
        return instances.settle(self.view, study, **found)

    # audit, epoch
    def audit(self, row: AuditRow) -> None:
        audit.append(self.view, row)

    def note_partner(self, seen: Partner) -> None:
        """Counts a call of somebody no establishment declares."""
        partners.note(self.view, seen)

    def forget_partner(self, name: str) -> int:
        return partners.forget(self.view, name)

    def next_epoch(self) -> int:
        """Tells every process that definitions, settings or grants changed."""
        self.view.db.run("UPDATE counter SET value = value + 1 WHERE name = 'epoch'")
        return self.epoch()
