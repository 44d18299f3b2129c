"""What a request wants and what has been decided about it so far, over one snapshot.

Hides how the pending writes lie over what is stored, and which versions, conditions and locks a decision stands on:
all of them are looked at again in the transaction that writes.
Source: https://hl7.org/fhir/R4/http.html (create, update, conditional interactions).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

from fhir_server.errors import Conflict, Invalid, PasserelleError, TooLarge
from fhir_server.patients import identity
from fhir_server.patients.sites import Sites
from fhir_server.search import literals, query
from fhir_server.search.plan import Plan
from fhir_server.search.references import relative
from fhir_server.search.rows import IndexRows
from fhir_server.store.apiece import AT_ONCE, is_alike
from fhir_server.store.query import MAX_COUNT, Page
from fhir_server.store.resources import Prepared, Stored
from fhir_server.store.session import Snapshot
from fhir_server.store.view import Stale

Resource = dict[str, Any]
Verb = Literal["create", "update", "patch", "delete"]
FOUND = 50
"""How many matches one look takes."""
MOST_FOUND = 5_000
"""Matches a decision may need to read; beyond that it is refused, never decided on a part of them."""


@dataclass(frozen=True, slots=True)
class Change:
    """One wanted write. `if_match` is the version the client read; `if_none_exist` and `criteria` are search queries
    (conditional create; conditional update, patch and delete); `if_absent` writes only where nothing is; `many` lets a
    conditional delete take every match; `patch` makes the next content from the current one and raises Invalid;
    `full_url` is the Bundle entry's address others refer to; `expression` where it stands in the request
    (`Bundle.entry[3].resource`); `base` the URL the client called us by; `about` the full URL of another change without
    whose writing this one is left out; `identity_change`: the event is meant to change who a Patient is (A47)."""

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
    identity_change: bool = False


@dataclass(slots=True)
class Write:
    """One resource as it will be written; `after` is None for a deletion."""

    verb: Verb
    type: str
    id: str
    before: Stored | None
    after: Resource | None
    expression: str
    full_url: str = ""
    rows: IndexRows | None = None
    ready: Prepared | None = None

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A search whose answer a decision stands on: the ids it found, with their `versions` when the content was read."""

    type: str
    text: str
    plan: Plan
    found: frozenset[tuple[str, int]]
    versions: bool = False

    def holds(self, page: Page) -> bool:
        """Whether a search finds what was found."""
        return _answer(page, self.versions) == self.found


def _answer(page: Page, versions: bool) -> frozenset[tuple[str, int]]:
    return frozenset((one.id, one.version if versions else 0) for one in page.matches)


def plan_of(
    resource_type: str, text: str, count: int = FOUND, zone: str = "Europe/Paris", bases: Sequence[str] = ()
) -> Plan:
    """The plan of a query string such as `identifier=urn:oid:1.2|3`; `zone` is the clock of its dates without one,
    `bases` are the URLs that mean this server."""
    if "\0" in text or "%00" in text:
        raise Invalid("the condition holds the character NUL; leave it out", http=400, code="value")
    try:
        pairs = parse_qsl(text.lstrip("?"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise Invalid("the condition is not percent-encoded in UTF-8", http=400, code="value") from error
    return dataclasses.replace(query.parse(resource_type, pairs, lenient=False, zone=zone, bases=bases), count=count)


class Overlay:
    """The snapshot with the pending writes laid over it; remembers which versions were read and what searches found.
    A `context.View`."""

    def __init__(self, snapshot: Snapshot, zone: str = "Europe/Paris") -> None:
        self.snapshot, self.zone = snapshot, zone
        self.bases: Sequence[str] = ()
        self.pending: dict[str, Resource | None] = {}
        self.reads: dict[str, int] = {}
        self.held: dict[Plan, Condition] = {}
        self._seen: dict[str, Stored | None] = {}
        self._pages: dict[Plan, Page] = {}
        self._plans: dict[tuple[str, str], Plan] = {}
        self._ahead: Iterator[Plan | None] = iter(())

    def plan(self, resource_type: str, text: str, count: int = FOUND) -> Plan:
        """`plan_of`, read once."""
        plan = self._plans.get((resource_type, text))
        if plan is None:
            plan = self._plans[resource_type, text] = plan_of(resource_type, text, FOUND, self.zone, self.bases)
        return plan if plan.count == count else dataclasses.replace(plan, count=count)

    def claim_plan(self, key: identity.Key) -> Plan:
        """The plan of `identity.claim_query`, made from one that was read before: many are wanted."""
        text = identity.claim_query(key)
        like = self.plan("Patient", identity.claim_query(("system", "value")))
        first, *others = like.clauses
        value = dataclasses.replace(first.values[0], system=key[0], code=key[1])
        plan = dataclasses.replace(like, clauses=(dataclasses.replace(first, values=(value,)), *others), self_link=())
        return self._plans.setdefault(("Patient", text), plan)

    def foresee(self, plans: Iterator[Plan | None]) -> None:
        """Searches that are to come, in their order, of `FOUND` each, instead of those told before; None for what is
        asked by itself. A search that is asked brings the next of them along: no more are read than have been asked
        for, so that what is refused early costs little, whatever comes behind it."""
        self._ahead = plans

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
        if reference not in self._seen:
            self._seen[reference] = self.snapshot.get(kind, key)
        stored = self._seen[reference]
        self.reads.setdefault(reference, stored.version if stored else 0)
        return stored

    def written(self, resource_type: str) -> list[Resource]:
        found = (self.pending[key] for key in self.pending if key.startswith(f"{resource_type}/"))
        return [resource for resource in found if resource is not None]

    def search(self, plan: Plan) -> Page:
        """What is stored, asked once: a snapshot answers the same each time."""
        if plan not in self._pages:
            self._know(plan, self._foreseen(plan) or self.snapshot.search(plan))
        return self._pages[plan]

    def _know(self, plan: Plan, page: Page) -> None:
        self._pages[plan] = page
        for one in page.matches:
            if one.rid >= 0:  # no contained resource
                self._seen.setdefault(one.reference, one)

    def _foreseen(self, plan: Plan) -> Page | None:
        """What a search finds, if it was asked with others or is now; None to ask it by itself."""
        like = plan if plan.count == FOUND else dataclasses.replace(plan, count=FOUND)
        if like not in self._pages and is_alike(like):
            behind = [one for one in islice(self._ahead, AT_ONCE - 1) if one is not None and is_alike(one)]
            block = [one for one in dict.fromkeys((like, *behind)) if one not in self._pages]
            if len(block) == 1:
                return None
            try:
                pages = self.snapshot.searches(block)
            except PasserelleError:
                return None  # one of them cannot be asked: that is told where it stands
            for one, page in zip(block, pages, strict=True):
                self._know(one, page)
        known = self._pages.get(like)
        whole = known is not None and (like is plan or (not known.next and len(known.matches) <= plan.count))
        return known if whole else None

    def find(self, resource_type: str, text: str) -> Iterator[Resource]:
        """What a search finds, newest first, page by page; read as far as it is asked for.

        The first page is found again when writing: whatever comes in or changes meanwhile stands there. Raises
        TooLarge beyond MOST_FOUND.
        """
        plan, seen = self.plan(resource_type, text), 0
        page = self.search(plan)
        self.hold(resource_type, text, plan, page)
        while True:
            for stored in page.matches:
                resource = self.pending.get(stored.reference, stored)
                if resource is not None:
                    yield resource.resource() if isinstance(resource, Stored) else resource
            seen += len(page.matches)
            if not page.next:
                return
            if seen >= MOST_FOUND:
                raise _too_many(resource_type, text)
            page = self.snapshot.search(dataclasses.replace(plan, after=page.next, count=MAX_COUNT))

    def hold(self, resource_type: str, text: str, plan: Plan, page: Page) -> None:
        """The first page of a search that was read: it is found again, in the same versions, when writing. It is of
        `resource_type`, '' = of any."""
        self.held.setdefault(plan, Condition(resource_type, text, plan, _answer(page, True), versions=True))


def _too_many(resource_type: str, text: str) -> TooLarge:
    told = (
        f"more than {MOST_FOUND} {resource_type} match {text}, too many to decide on; list them with "
        f"GET {resource_type}?{text}, delete those that should not be there or take out of them what they match by, "
        "and send this again"
    )
    return TooLarge(told, expression=resource_type)


def view_of(snapshot: Snapshot) -> Overlay:
    """A snapshot as the View the domain rooms read."""
    return Overlay(snapshot)


def _criterion(resource_type: str, text: str, bases: Sequence[str]) -> str:
    """The name under which whoever relies on a search holds it; one for all `bases`, the URLs that mean this server."""
    pairs = parse_qsl(text.lstrip("?"), keep_blank_values=True)
    return f"{resource_type}?{urlencode(sorted((name, _without_bases(value, bases)) for name, value in pairs))}"


def _without_bases(value: str, bases: Sequence[str]) -> str:
    """The alternatives, those that are references to this server as `Type/id`."""
    return ",".join(relative(one, bases).partition("/_history/")[0] or one for one in literals.parts(value, ","))


class Pending:
    """The writes of one request, and everything they depend on."""

    def __init__(self, snapshot: Snapshot, sites: Sites) -> None:
        self.view = Overlay(snapshot, sites.default.time_zone)
        self.sites = sites
        self.writes: dict[str, Write] = {}
        self._deleting: Counter[str] = Counter()
        self.locks: set[str] = set()
        self._conditions: dict[Plan, Condition] = {}
        self._owners: dict[tuple[str, str], list[Write]] = {}
        self._found: dict[tuple[str, str, int, int], Sequence[Stored]] = {}

    def write(self, verb: Verb, change: Change, key: str, before: Stored | None) -> None:
        """Decide a write. Raises Invalid (400) for a resource that this request writes already, Conflict for the
        creation of one that is there."""
        reference = f"{change.type}/{key}"
        if reference in self.writes:
            text = f"{reference} appears twice in one request; send each resource once"
            raise Invalid(text, http=400, code="invalid")
        after = None if change.resource is None or verb == "delete" else {**change.resource, "id": key}
        if after is not None:
            after = {"resourceType": after["resourceType"], "id": key} | after
        if verb == "create" and change.id:  # an id of ours is random and new: nothing to look up, nothing to hold
            held = self.view.stored(reference)
            if held is not None and not held.deleted:
                raise Conflict(f"{reference} exists already; update it, or create it without an id of your own")
        elif verb == "delete":
            self.view.pending[reference] = None
            self._deleting[change.type] += 1
        write = Write(verb, change.type, key, before, after, change.expression, change.full_url)
        self.writes[reference] = write
        if change.type == "Patient" and after is not None:
            for identifier in identity.keys(after, self.sites):
                self._owners.setdefault(identifier, []).append(write)

    def add(self, resource: Resource) -> None:
        """Write a resource that follows from the others; the last content counts."""
        reference = f"{resource['resourceType']}/{resource['id']}"
        if reference in self.writes:
            self.writes[reference].after = resource
        else:
            before = self.view.stored(reference)
            verb: Verb = "update" if before else "create"
            self.writes[reference] = Write(verb, resource["resourceType"], resource["id"], before, resource, "")
        self.view.pending[reference] = resource

    def rest_on(self, upon: Overlay) -> None:
        """Hold what the wanted changes were decided on like what is read here, and the names of what was not there.

        Raises Stale when it has changed already.
        """
        for reference, version in upon.reads.items():
            if self.view.reads.setdefault(reference, version) != version:
                raise Stale(f"{reference} is no longer at version {version}")
            if not version:
                self.locks.add(reference)
        for plan, condition in upon.held.items():
            if self.view.held.setdefault(plan, condition).found != condition.found:
                raise Stale(f"{condition.type}?{condition.text} finds something else now")
            if condition.type:  # who is found is held too, so that of two who rest on each other one waits and sees
                self.view.reads |= {f"{condition.type}/{key}": version for key, version in condition.found}
            if not condition.found:
                self.locks.add(_criterion(condition.type, condition.text, self.view.bases))

    def deletes(self, reference: str) -> bool:
        """Whether this request deletes it."""
        write = self.writes.get(reference)
        return write is not None and write.verb == "delete"

    def deleting(self, resource_type: str) -> int:
        """How many resources of a type this request deletes."""
        return self._deleting[resource_type]

    def version_of(self, reference: str) -> int:
        """The version a resource has when this is written: the next one when it is, else the stored one."""
        write = self.writes.get(reference)
        stored = write.before if write else self.view.stored(reference)
        return (stored.version if stored else 0) + (1 if write else 0)

    def owners(self, identifier: tuple[str, str]) -> list[Write]:
        """The Patients this request writes that claim an identifier (system, value)."""
        return self._owners.get(identifier, [])

    @property
    def conditions(self) -> list[Condition]:
        """Every search that was made while deciding, each once: all are made again when writing. One that was read
        counts more than one that was counted."""
        return list((self._conditions | self.view.held).values())

    def matching(self, resource_type: str, text: str, *, most: int = 0, count: int = 3) -> list[str]:
        """Ids that match a condition, `count` of them or all up to `most`; it is locked and checked again when writing.

        Raises Invalid (400) for a condition that says nothing, TooLarge when more than `most` match.
        """
        plan = self.view.plan(resource_type, text, most or count)
        if not plan.clauses:
            raise Invalid(f"the condition `{text}` finds everything; name an identifier", http=400, code="value")
        self.locks.add(_criterion(resource_type, text, self.view.bases))
        return [stored.id for stored in self.looked_up(resource_type, text, plan, most)]

    def looked_up(self, resource_type: str, text: str, plan: Plan, most: int = 0) -> list[Stored]:
        """What a search finds, to be found again when writing. Raises TooLarge for more than `most`, unless 0."""
        known = self._found.get((resource_type, text, plan.count, most))
        if known is not None:
            return list(known)
        page = self.view.search(plan)
        if most and page.next:
            raise TooLarge(f"more than {most} resources match {text}; make the condition narrower and repeat")
        self._conditions[plan] = Condition(resource_type, text, plan, _answer(page, False))
        self._found[resource_type, text, plan.count, most] = page.matches
        return list(page.matches)


def placed(error: PasserelleError, prefix: str) -> PasserelleError:
    """The same error with its expressions placed inside the Bundle."""
    if not prefix:
        return error
    issues = tuple(dataclasses.replace(i, expression=within(prefix, i.expression)) for i in error.issues)
    return type(error)(error.diagnostics, issues=issues, http=error.status)


def within(prefix: str, expression: str) -> str:
    """`Patient.name` as it stands in `Bundle.entry[0].resource`."""
    if not prefix:
        return expression
    return prefix + "." + expression.partition(".")[2] if "." in expression else prefix
