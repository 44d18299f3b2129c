"""One HL7 v2 message under way: what it means, decided on one snapshot and written in one transaction.

Hides that a decision may have to be made again because others wrote meanwhile. Whoever reads a kind of message gives a
`Decide`: it looks at stored resources through a `Draft`, puts the changed ones into it, and says in `Taken` what else
belongs to the same transaction. The answer is AA, and only after the commit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fhir_server.changes import ATTEMPTS, Applied, Change, Hub, apply, view_of
from fhir_server.context import Caller, new_message_id
from fhir_server.delivery.ports import Port
from fhir_server.delivery.turns import Turn
from fhir_server.errors import Conflict, Invalid, Precondition, Unavailable
from fhir_server.search import references
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import Stale
from hl7v2 import ack
from hl7v2.ack import AckError
from hl7v2.message import Message
from mappers.identity import Site
from mappers.mapped import Loss

Resource = dict[str, Any]
SOURCE = "urn:passerelle:message:"
"""Resource.meta.source: the inbox row whose bytes said so."""
_A_PAGE = 500
_SOME = 20
MOST_MOVED = 5_000
"""Resources that one merge or one moved stay takes along, in its one transaction: about 12 s of processor time."""

MOST_NOTES = 50
"""Notes that one row of the inbox shows."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message: its inbox row, who sent it, for which establishment, by which port. `turn` is the right to settle a
    message that was answered before; None when its sender waits."""

    hub: Hub
    caller: Caller
    inbox_id: str
    msg: Message
    site: Site
    port: Port
    turn: Turn | None = None

    @property
    def organization(self) -> Resource:
        """The establishment, as a reference."""
        return {"reference": f"Organization/{self.site.key}"}


@dataclass(slots=True)
class Taken:
    """What a message means beside the resources: search keys of its row, notes for its reader, more work for the
    transaction (it returns a note), and who acts when that is not the sending software itself."""

    keys: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    also: Callable[[Tx], str] | None = None
    caller: Caller | None = None

    def told(self, losses: Sequence[Loss]) -> None:
        """Note what a mapper left behind."""
        self.notes += [f"{loss.source}: {loss.reason}" for loss in losses]


class Rejected(Invalid):
    """A message that a resend does not cure, with an ERR for each finding."""

    def __init__(self, found: Sequence[AckError]) -> None:
        told = "; ".join(f"{error.location}: {error.text}" for error in found[:5])
        super().__init__(told, location=found[0].location)
        self.found = list(found)


class Settled(Exception):
    """Another connection took the same message in first."""


def rejected(text: str, location: str, code: str = "207", business: str = "") -> Rejected:
    """One finding: `code` is of HL7 table 0357, `business` a code of the CI-SIS (900 to 906)."""
    return Rejected([AckError(location, code, text, business=business)])


class Draft:
    """The resources of one decision: read from a snapshot, changed here, written together. Is a `context.View`.

    What it was read from is `upon`: whoever writes the changes hands it on, so that it holds to the commit.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.upon = view_of(snapshot)
        self._put: dict[str, Resource] = {}
        self._changed: set[str] = set()

    def get(self, reference: str) -> Resource | None:
        """The resource as it is to be, or as it is stored."""
        return self._put.get(reference) or self.upon.get(reference)

    def find(self, resource_type: str, query: str) -> list[Resource]:
        """The stored resources a search finds, as they are to be."""
        found = self.upon.find(resource_type, query)
        return [self._put.get(f"{resource_type}/{one['id']}", one) for one in found]

    def versions(self, reference: str) -> Iterator[Resource]:
        """The stored versions of a resource, newest first, deletions left out; 500 at most, read as they are asked
        for."""
        kind, _, key = reference.partition("/")
        after: tuple[int, ...] | None = ()
        for _ in range(_A_PAGE // _SOME):
            if after is None:
                return
            page = self._snapshot.history(kind, key, _SOME, after)
            yield from (one.resource() for one in page.entries if not one.deleted)
            after = page.next

    def message(self, inbox_id: str, kind: str) -> bytes:
        """The bytes of a message that came; b'' when it is of another kind (MSH-9.1), or gone."""
        row = self._snapshot.message(inbox_id)
        return self._snapshot.message_raw(inbox_id) if row and row.message_type.startswith(f"{kind}^") else b""

    def written(self, resource_type: str) -> list[Resource]:
        """The resources of a type that are to be written."""
        return [one for one in self._put.values() if one["resourceType"] == resource_type]

    def put(self, resource: Resource, *, identity_change: bool = False) -> str:
        """Write this resource, under its id; its reference. `identity_change`: the event changes who a Patient is."""
        reference = f"{resource['resourceType']}/{resource['id']}"
        self._put[reference] = resource
        if identity_change:
            self._changed.add(reference)
        return reference

    def referring(self, reference: str) -> list[Resource]:
        """Whatever refers to a resource, as it is to be. Raises Rejected beyond MOST_MOVED."""
        kind, _, key = reference.partition("/")
        plan = first = dataclasses.replace(references.referring(kind, key), count=_A_PAGE)
        found: list[Resource] = []
        while True:
            page = self._snapshot.search(plan)
            self.upon.hold("", f"what refers to {reference}", first, page)
            found += [self._put.get(one.reference) or one.resource() for one in page.matches]
            if len(found) > MOST_MOVED:
                text = f"more than {MOST_MOVED} resources refer to {reference}; a person must move them"
                raise rejected(text, "PID^1")
            if not page.next:
                return found
            plan = dataclasses.replace(plan, after=page.next)

    def changes(self, source: str = "") -> list[Change]:
        """One change for each resource put, on the version that was read; a new one only where nothing is. What a
        resource says of its source is `source`, unless that is ''."""
        out = []
        for reference, resource in self._put.items():
            kind, _, key = reference.partition("/")
            stored = self._snapshot.get(kind, key)
            version = None if stored is None or stored.deleted else stored.version
            meta = resource.get("meta", {}) | ({"source": source} if source else {})
            content = {**resource, "meta": meta} if meta else resource
            out.append(
                Change(
                    "update",
                    kind,
                    key,
                    content,
                    if_match=version,
                    if_absent=version is None,
                    identity_change=reference in self._changed,
                )
            )
        return out


Decide = Callable[[Draft], Taken]


def take(arrival: Arrival, raw: bytes, decide: Decide) -> bytes:
    """Decide and write until nobody interferes; the AA that is true then. Raises what `apply` and `decide` raise."""
    hub = arrival.hub
    answer = ack.build(raw, "AA", now=hub.clock(), control_id=new_message_id())
    for attempt in range(ATTEMPTS):
        with hub.store.read(arrival.caller) as snapshot:
            draft = Draft(snapshot)
            taken = decide(draft)
            changes = draft.changes(SOURCE + arrival.inbox_id)

        def also(tx: Tx, applied: list[Applied], taken: Taken = taken) -> None:
            if arrival.turn is not None:
                arrival.turn.check(tx)
            _settle(tx, arrival.inbox_id, answer, taken, [note for one in applied for note in one.notes])

        try:
            apply(hub, taken.caller or arrival.caller, changes, also=also, upon=draft.upon)
            return answer
        except Conflict as conflict:
            # Others write about the same person: look again. Who is never in luck may send again (AR).
            moved = isinstance(conflict, Precondition) or isinstance(conflict.__cause__, Stale)
            if attempt == ATTEMPTS - 1 and moved:
                raise Unavailable("the patient kept changing while this was taken in; send it again") from conflict
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _bounded(notes: Sequence[str]) -> list[str]:
    """Each note once, at most MOST_NOTES of them; the last is what the transaction itself had to say."""
    told = list(dict.fromkeys(filter(None, notes)))
    if len(told) <= MOST_NOTES:
        return told
    return [*told[: MOST_NOTES - 1], f"and {len(told) - MOST_NOTES} more", told[-1]]


def _settle(tx: Tx, inbox_id: str, answer: bytes, taken: Taken, caused: Sequence[str]) -> None:
    """Settle the message in the transaction that took it in; of two that take it in at once, one does. `caused`: what
    the messages leave out, or whom they do not reach, that it makes us send."""
    notes = [*taken.notes, *caused]
    if taken.also is not None:
        notes.append(taken.also(tx))
    try:
        tx.integrate(inbox_id, answer, keys=tuple(taken.keys), note="\n".join(_bounded(notes)))
    except Stale as stale:
        raise Settled from stale
