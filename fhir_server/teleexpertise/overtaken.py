"""What is looked at once more before frozen bytes leave: do they still say the truth (design, invariant 3).

Bytes that name a patient who was merged away, whose case is another's now or who has lost the INS in them, or a report
that was replaced or withdrawn since, are held for a person, who releases them as they are, regenerates them (a new
delivery) or cancels them. What another delivery stands for as a first document is never released: nobody gets two. Nor
is what was withdrawn, unless its recall waits behind it, nor what was hidden from its addressee or opposed since, nor
what replaces a document that may yet arrive by another lane.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fhir_server.errors import RuleBroken
from fhir_server.patients import merge
from fhir_server.patients.identity import qualified_ins
from fhir_server.search import query
from fhir_server.store.lanes import Delivery
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.outbox_desk import Attempt, OutboxFilter
from fhir_server.store.query import MAX_COUNT
from fhir_server.store.resources import Stored
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import Stale
from fhir_server.teleexpertise import opposition, succession
from fhir_server.teleexpertise.case import Handed
from fhir_server.teleexpertise.distribution import DMP, MAIL_LANE, MASKED_CODE
from fhir_server.teleexpertise.succession import Holder
from mappers.fhir_to_report import hidden_from

log = logging.getLogger("passerelle.delivery")
Resource = dict[str, Any]
# Statuses of DiagnosticReport, DocumentReference and Composition under which the content no longer stands.
_WITHDRAWN = frozenset({"entered-in-error", "cancelled", "superseded"})
# What became of a delivery and of those that repeat it: the first of these that is true of one is true of all.
_FATES: tuple[Handed, ...] = ("gone", "waits", "kept", "ended")


def held_back(snapshot: Snapshot, claim: Claim) -> Outcome | None:
    """Why a claimed delivery does not leave now; None when it may. Runs in the transaction that notes the attempt."""
    try:
        reason = overtaken(snapshot, claim.delivery)
    except (ValueError, KeyError, TypeError, AttributeError) as defect:
        log.exception("delivery %s could not be compared with what is stored", claim.delivery.id)
        return Outcome("held", "exception", f"a defect of this server ({type(defect).__name__}); its log has more")
    if not reason:
        return None
    log.warning("delivery %s is held: %s", claim.delivery.id, reason)
    return Outcome("held", "overtaken", reason)


def overtaken(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why a delivery does not leave, in words, or '': the first thing that happened since its bytes were frozen, makes
    them untrue and was not set aside by a person, or else what bars them."""
    asked = (_patient(snapshot, delivery), _case(snapshot, delivery), _report(snapshot, delivery))
    reasons = [reason for reason in asked if reason]
    for reason in reasons:
        if reason not in delivery.set_aside:
            return reason
    return unreleasable(snapshot, delivery) if reasons else barred(snapshot, delivery)


def _patient(snapshot: Snapshot, delivery: Delivery) -> str:
    kind, _, key = delivery.patient.partition("/")
    stored = snapshot.get(kind, key) if key else None
    if stored is None:
        return ""
    if stored.deleted:
        return f"{delivery.patient} was deleted after these bytes were made"
    patient = stored.resource()
    if other := _replaced_by(patient):
        return f"{delivery.patient} was merged into {other}"
    ins = qualified_ins(patient)
    if delivery.ins and (ins is None or ins[1] != delivery.ins):
        now = "has no qualified INS any more" if ins is None else "has another INS now"
        return f"{delivery.patient} {now}; these bytes carry {delivery.ins}"
    return ""


def _replaced_by(patient: Resource) -> str:
    """The record a patient was merged into, as a reference, or ''."""
    links = (link for link in patient.get("link", ()) if link.get("type") == "replaced-by")
    return next((str(link.get("other", {}).get("reference", "another record")) for link in links), "")


def _inherits(snapshot: Snapshot, patient: str, other: str) -> bool:
    """Whether a patient (`Patient/x`) was merged into another one, by however many merges: what was about the one is
    about the other, which is part of the merge and no event of its own."""
    seen = {patient}
    while patient and patient != other:
        stored = snapshot.get(*patient.split("/")) if patient.count("/") == 1 else None
        patient = "" if stored is None or stored.deleted else _replaced_by(stored.resource())
        patient = "" if patient in seen else patient
        seen.add(patient)
    return bool(patient)


def _case(snapshot: Snapshot, delivery: Delivery) -> str:
    """Whether the case went to another patient since: a merge was undone, or a stay was recorded for the wrong one."""
    kind, _, key = delivery.case_key.partition("/")
    stored = snapshot.get(kind, key) if kind == "ServiceRequest" and delivery.patient else None
    if stored is None or stored.deleted:
        return ""
    subject = str(stored.resource().get("subject", {}).get("reference", "")).partition("/_history/")[0]
    if not subject.startswith("Patient/") or _inherits(snapshot, delivery.patient, subject):
        return ""
    return f"{delivery.case_key} is about {subject} now; these bytes name {delivery.patient}"


def _report(snapshot: Snapshot, delivery: Delivery) -> str:
    kind, _, key = delivery.document.partition("/")
    stored = snapshot.get(kind, key) if key else None
    if stored is None:
        return ""
    if stored.deleted:
        return f"{delivery.document} was deleted after these bytes were made"
    report = stored.resource()
    status, told = str(report.get("status", "")), delivery.document_version
    if told:
        # What takes a report back tells that very status: only another content than the frozen one overtakes.
        frozen = stored if stored.version == told else snapshot.version(kind, key, told)
        if frozen is not None and not frozen.deleted and _says(snapshot, frozen.resource(), report, delivery.patient):
            return ""
    if status in _WITHDRAWN:
        return f"{delivery.document} is {status} now"
    if not told:
        return ""
    return f"{delivery.document} was replaced by version {stored.version} ({status}); these bytes tell version {told}"


def _says(snapshot: Snapshot, frozen: Resource, report: Resource, patient: str) -> bool:
    """Whether a report says what was frozen of it, about that patient or the one that patient was merged into."""
    then, subject = _told(frozen), str(report.get("subject", {}).get("reference", ""))
    if then == _told(report):
        return True
    moved = merge.swapped(then, patient, subject)
    return moved != then and moved == _told(report) and _inherits(snapshot, patient, subject)


def _told(report: Resource) -> Resource:
    """What a document says of it: not its tags, its narrative, nor what this server notes about it."""
    return {name: value for name, value in report.items() if name not in ("meta", "text", "extension")}


def barred(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why these bytes do not leave now though they are true, whoever lets them go, or ''."""
    return hidden(snapshot, delivery) or _opposed(snapshot, delivery) or _first_in_doubt(snapshot, delivery)


def _opposed(snapshot: Snapshot, delivery: Delivery) -> str:
    """Whether the patient, or the state of their DMP, forbids a report that was to reach them when it was signed. What
    takes one back goes all the same."""
    stored = _reported(snapshot, delivery)
    patient = _standing(snapshot, delivery.patient) if stored else None
    if stored is None or patient is None or _takes_back(snapshot, delivery):
        return ""
    if _feeds_dmp(snapshot, delivery) and (why := opposition.dmp_closed(delivery, patient)):
        return why
    if not opposition.denied(snapshot, patient):
        return ""
    who = _made(snapshot, delivery)[0].to
    if not who.person or who.person in _parties(snapshot, delivery, stored):
        return ""
    unwanted = opposition.opposed(snapshot, patient, who.person)
    return f"{delivery.patient} opposes that {who.display or who.lane} gets it" if unwanted else ""


def _standing(snapshot: Snapshot, reference: str) -> Resource | None:
    """The record that stands for a patient, by however many merges: it is the one whose choices count."""
    patient, seen = None, set[str]()
    while reference.count("/") == 1 and reference not in seen:
        seen.add(reference)
        stored = snapshot.get(*reference.split("/"))
        if stored is None or stored.deleted:
            break
        patient = stored.resource()
        reference = _replaced_by(patient)
    return patient


def _feeds_dmp(snapshot: Snapshot, delivery: Delivery) -> bool:
    """Whether a platform brings these bytes to the DMP; what sends them once more awaits no answer, and does too."""
    if delivery.second_leg != "none" or not delivery.parent:
        return delivery.second_leg == "zam"
    return _told_of(snapshot, delivery)[0].to.addressee == DMP


def _first_in_doubt(snapshot: Snapshot, delivery: Delivery) -> str:
    """Whether what this replaces or takes back may yet arrive by another lane, which keeps no order with this one."""
    elsewhere = (one for one in _alike(snapshot, delivery).values() if one.lane != delivery.lane)
    if all(map(_settled, elsewhere)):
        return ""
    own, others = _told_of(snapshot, delivery)
    for one in (one for one in others if one.delivery.lane != delivery.lane and not _settled(one.delivery)):
        back = not own.after and _rivals(own, one) and _takes_back(snapshot, delivery)
        if back or one.origin.id == own.after:
            other = one.delivery
            return f"{other.id} in {other.lane}, which this follows, is not settled: release or cancel that one first"
    return ""


def _settled(delivery: Delivery) -> bool:
    return delivery.state in ("sent", "cancelled")


def _reported(snapshot: Snapshot, delivery: Delivery) -> Stored | None:
    """The report a delivery tells of, while it is stored; None for everything else."""
    kind, _, key = delivery.document.partition("/")
    stored = snapshot.get(kind, key) if kind == "DiagnosticReport" and key else None
    return None if stored is None or stored.deleted else stored


def _takes_back(snapshot: Snapshot, delivery: Delivery) -> bool:
    """Whether the version of the report that a delivery tells is withdrawn by it."""
    kind, _, key = delivery.document.partition("/")
    told = snapshot.version(kind, key, delivery.document_version) if delivery.document_version else None
    return told is not None and not told.deleted and told.resource().get("status") in _WITHDRAWN


def hidden(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why these bytes are not for their addressee any more, or '': the report was masked to professionals after they
    were made, and who reads them neither asked for it nor signs it. A house that takes part gets it, labelled."""
    kind, _, key = delivery.document.partition("/")
    stored = snapshot.get(kind, key) if key else None
    if stored is None or stored.deleted or not _masked(stored):
        return ""
    told = snapshot.version(kind, key, delivery.document_version) if delivery.document_version else None
    if told is not None and _masked(told):
        return ""
    who = _made(snapshot, delivery)[0].to
    if who.person in _parties(snapshot, delivery, stored) if who.person else not who.lane.startswith(MAIL_LANE):
        return ""
    version = f"version {stored.version} of {delivery.document}"
    return f"{version} is masked to professionals (MASQUE_PS), and {who.display or who.lane} neither asked nor signs"


def _masked(stored: Stored) -> bool:
    labels = {} if stored.deleted else stored.resource().get("meta", {})
    return any(one.code == MASKED_CODE for one in hidden_from(labels.get("security", ())))


def _parties(snapshot: Snapshot, delivery: Delivery, report: Stored) -> frozenset[str]:
    """Who asked for a report and who signs it, as references."""
    kind, _, key = delivery.case_key.partition("/")
    request = snapshot.get(kind, key) if key else None
    asked = [] if request is None or request.deleted else [request.resource().get("requester", {})]
    signed = report.resource().get("resultsInterpreter", ())
    return frozenset(str(one.get("reference", "")) for one in (*asked, *signed))


def handed(snapshot: Snapshot, delivery_id: str) -> Handed:
    """Whether the partner may have a delivery, or what sends its bytes once more. One the outbox no longer knows was
    settled and cleaned away: it may."""
    fates: set[Handed] = set()
    for one in _repeated(snapshot, delivery_id):
        delivery = snapshot.delivery(one) if one else None
        if delivery is None or _left(snapshot, delivery):
            return "gone"
        fates.add(_fate(delivery))
    return next(fate for fate in _FATES if fate in fates)


def _left(snapshot: Snapshot, delivery: Delivery) -> bool:
    """Whether the partner may have it by this very delivery."""
    return delivery.state in ("sending", "sent") or not all(_refused(one) for one in snapshot.attempts(delivery.id))


def _fate(delivery: Delivery) -> Handed:
    """What becomes of a delivery that has not left."""
    if delivery.state == "cancelled":
        return "ended"
    return "kept" if delivery.state == "held" and delivery.error_class == "person" else "waits"


def _refused(attempt: Attempt) -> bool:
    """Whether an attempt ended with a definite no: not connected, or the partner's own refusal."""
    return attempt.outcome.removeprefix("late: ") in ("retry", "error", "held") and attempt.error_class != "ambiguous"


@dataclass(frozen=True, slots=True)
class _Made:
    """A delivery of a report, the one that had its bytes first (`origin`, itself or what it repeats) and, where a
    DocumentReference records that one, who gets which document by it (`to`; else just its lane, or the DMP), whether as
    the `first` they get, and `after` which delivery."""

    delivery: Delivery
    origin: Delivery
    to: Holder
    first: bool
    after: str


def _follows(one: Delivery, other: Delivery) -> bool:
    """Whether a delivery of a report was made after another one of it."""
    if one.lane == other.lane:
        return one.lane_seq > other.lane_seq
    return (one.document_version, one.created_at) > (other.document_version, other.created_at)


def _made(snapshot: Snapshot, delivery: Delivery) -> tuple[_Made, list[_Made]]:
    """A delivery, and the others of its report, in whatever lane, that go its way or to its addressee; oldest first."""
    own, others = _told_of(snapshot, delivery)
    return own, [one for one in others if one.delivery.lane == delivery.lane or _rivals(own, one)]


def _told_of(snapshot: Snapshot, delivery: Delivery) -> tuple[_Made, list[_Made]]:
    """A delivery and all others of its report, oldest first, with what is recorded of them."""
    found = _alike(snapshot, delivery)
    lines: Mapping[str, tuple[Holder, bool, str]] = {}
    if delivery.document:
        plan = query.parse("DocumentReference", [("related", delivery.document)])
        documents = snapshot.search(replace(plan, count=MAX_COUNT)).matches
        lines = succession.recorded(one.resource() for one in documents)
    made = []
    for one in sorted(found.values(), key=lambda one: (one.created_at, one.lane_seq)):
        root = one.id
        while root not in lines and root in found and found[root].parent:
            root = found[root].parent
        origin = found.get(root, one)
        to, first, after = lines.get(root, (Holder(one.lane, "", "", ""), False, ""))
        if origin.second_leg == "zam":
            to = replace(to, addressee=DMP)  # which records of before do not say
        made.append(_Made(one, origin, to, first, after))
    (own,) = (one for one in made if one.delivery.id == delivery.id)
    return own, [one for one in made if one is not own]


def _alike(snapshot: Snapshot, delivery: Delivery) -> dict[str, Delivery]:
    """A delivery and all others of its report, by their ids."""
    found = {delivery.id: delivery}
    if delivery.document:
        lane = "" if delivery.case_key else delivery.lane
        wanted = OutboxFilter(lane=lane, case_key=delivery.case_key, document=delivery.document, limit=1_000)
        found |= {one.id: one for one in snapshot.deliveries(wanted)}
    return found


def _rivals(own: _Made, other: _Made) -> bool:
    """Whether two deliveries bring one addressee two documents; the same one once more is no other."""
    return own.to.document != other.to.document and succession.same(own.to, other.to)


def hold(tx: Tx, delivery: Delivery) -> None:
    """Hold what decides whether a delivery goes: its report, which may be withdrawn with nothing said to any lane, then
    the lanes by which its addressee gets it, in the order of whoever writes a correction."""
    kind, _, key = delivery.document.partition("/")
    if key:
        with suppress(Stale):  # held all the same, and what is asked after this sees what changed
            tx.expect(kind, key, 0)
    tx.lock_lanes([delivery.lane, *(one.delivery.lane for one in _made(tx, delivery)[1])])


def later(snapshot: Snapshot, delivery: Delivery) -> list[Delivery]:
    """What was made of the same report for the same lane or addressee after a delivery, and was not given up; oldest
    first."""
    others = _made(snapshot, delivery)[1]
    return [one.delivery for one in others if _follows(one.delivery, delivery) and one.delivery.state != "cancelled"]


def doubled(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why a delivery of a report cannot leave whoever wants it to: another one, made since this one was kept back, or
    let go since that one was given up, hands its addressee the first document they get; '' when none does."""
    own, others = _made(snapshot, delivery)
    never_came = _instead_of(own, others)
    for one in others:
        if not one.first or not _rivals(own, one):
            continue
        if one.delivery.state == "cancelled" and one.origin.id in never_came:
            continue
        other = one.delivery
        if _follows(one.origin, own.origin) and other.state != "cancelled":
            return f"{other.id} was made instead and hands the report over as a first document; cancel this one"
        if own.first and _follows(own.origin, one.origin) and (other.state == "queued" or _left(snapshot, other)):
            return f"{other.id} hands the report over as a first document already; cancel or regenerate this one"
    return ""


def _instead_of(own: _Made, others: Sequence[_Made]) -> set[str]:
    """What was replaced by a delivery that `own`, a first document, was made of: it was shown never to have come
    (`remade`)."""
    made, found, parent = {one.delivery.id: one for one in others}, set[str](), own.delivery.parent
    while own.first and parent in made:
        found.add(made[parent].after)
        parent = made.pop(parent).delivery.parent
    return found - {""}


def unreleasable(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why a delivery does not leave even when a person lets it go, or ''."""
    return barred(snapshot, delivery) or doubled(snapshot, delivery) or _unrecalled(snapshot, delivery)


def _unrecalled(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why a report that was taken back does not leave: nothing that waits behind it takes it back, or ''."""
    reason = _report(snapshot, delivery) if _taken_back(snapshot, delivery.document) else ""
    if not reason:
        return ""
    others = (one for one in _made(snapshot, delivery)[1] if one.delivery.lane == delivery.lane)
    if any(_follows(one.delivery, delivery) and _recalls(snapshot, one) for one in others):
        return ""
    return f"{reason}, and nothing that waits behind it takes it back; cancel this one"


def _recalls(snapshot: Snapshot, made: _Made) -> bool:
    """Whether a delivery takes a report back, and has not left: no document is recorded for it, and it tells a version
    that was withdrawn."""
    one = made.delivery
    return not made.to.document and one.state in ("queued", "held", "error") and _takes_back(snapshot, one)


def _taken_back(snapshot: Snapshot, document: str) -> bool:
    kind, _, key = document.partition("/")
    stored = snapshot.get(kind, key) if key else None
    return stored is not None and (stored.deleted or stored.resource().get("status") in _WITHDRAWN)


def unrepeatable(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why the same bytes are not sent once more, or '': nothing brings back a report that was taken back, nor hands
    one to whom it was hidden from, or refused, since. A version that was replaced may be, for a partner who lost its
    data and gets what replaced it after that."""
    back = _taken_back(snapshot, delivery.document)
    why = barred(snapshot, delivery) or doubled(snapshot, delivery)
    return why or (_report(snapshot, delivery) if back else "")


def stay(tx: Tx, kept: Iterable[str], reached: Iterable[str]) -> None:
    """What was decided stands only while a person keeps these deliveries back, and while those may have got there: one
    that was under way has been refused since, and is no more what a replacement follows. Raises Stale."""
    for delivery_id in kept:
        if handed(tx, delivery_id) != "kept":
            raise Stale(f"delivery {delivery_id} is kept back no more")
    for delivery_id in reached:
        if handed(tx, delivery_id) != "gone":
            raise Stale(f"delivery {delivery_id} did not get there")


def same_ends(tx: Tx, standing: Iterable[str], ended: Iterable[str]) -> None:
    """What was decided stands only while the outbox says the same of these: not given up, and given up. Raises
    Stale."""
    for delivery_ids, wanted in ((standing, False), (ended, True)):
        for delivery_id in delivery_ids:
            if (handed(tx, delivery_id) == "ended") is not wanted:
                raise Stale(f"delivery {delivery_id} was given up or repeated meanwhile")


def give_up(tx: Tx, delivery_ids: Iterable[str], reason: str) -> None:
    """Cancel deliveries nobody received, with what sends their bytes once more, in the transaction that makes what
    comes instead. Raises Stale when one of them has begun to leave since it was looked at."""
    ended: set[str] = set()
    for delivery_id in delivery_ids:
        if delivery_id in ended:
            continue
        if handed(tx, delivery_id) not in ("waits", "kept"):
            raise Stale(f"delivery {delivery_id} left meanwhile")
        repeated = list(_repeated(tx, delivery_id))
        for one in repeated:
            _cancel(tx, one, reason)
        # The rows are locked now: an attempt that ended between the look and the lock shows itself.
        if handed(tx, delivery_id) != "ended":
            raise Stale(f"delivery {delivery_id} was tried meanwhile")
        ended.update(repeated)


def _repeated(snapshot: Snapshot, delivery_id: str) -> Iterator[str]:
    """A delivery and every later one that was made of it."""
    waiting = [delivery_id]
    while waiting:  # no recursion: an operator may repeat what repeats any number of times
        one = waiting.pop()
        yield one
        waiting += reversed(snapshot.replays(one))


def _cancel(tx: Tx, delivery_id: str, reason: str) -> None:
    found = tx.delivery(delivery_id)
    if found is not None and found.state == "cancelled":
        return
    try:
        tx.cancel(delivery_id, reason)
    except RuleBroken as moved:
        raise Stale(f"delivery {delivery_id} left meanwhile") from moved
