"""The plan of a distribution as a function: whatever Endpoints take part, nobody gets a report twice and nobody is
left out in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fhir_server.config import Settings
from fhir_server.demo.run import SITES
from fhir_server.patients.sites import load_sites
from fhir_server.teleexpertise.case import Handed
from fhir_server.teleexpertise.distribution import DMP, FLAVOURS, Destination, Plan, addressee_of, plan, road_of
from fhir_server.teleexpertise.parties import Candidate, doctors, human
from fhir_server.teleexpertise.succession import Held, by_who_fed, follow, held, recall, record, renamed
from mappers.fhir_to_identity import FR_CORE
from mappers.fhir_to_report import Code, Org, PatientIdentity, Professional, Report

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
HOSPITAL = load_sites(SITES)
IPP = next(ns for ns in HOSPITAL.default.namespaces if ns.kind == "PI")
LOCAL = (("DEMO0001", IPP.oid, IPP.hd, "PI"),)
INS = ("294029912300153", "1.2.250.1.213.1.4.10")
BORN = date(1994, 2, 11)
PATIENT = PatientIdentity("Patient/p", "MARTIN", "LUCIE", "LUCIE", "female", BORN, ins=INS, local_ids=LOCAL)
OPEN = {"extension": [{"url": "urn:passerelle:dmp", "extension": [{"url": "status", "valueCode": "ACTIF"}]}]}


def professional(rpps: str, mailbox: str = "") -> Professional:
    midwife, house = Code("G15_50", "Sage-femme", "1.2"), Org("Cabinet", "990000026")
    return Professional(rpps, "MOREAU", "Claire", midwife, house, mailbox=mailbox)


REPORT = Report(
    id="i", set_id="s", version=1, title="t", patient=PATIENT, requester=professional("99000000011"),
    expert=professional("99000000037"), request_id="r", accession="A", requested_at=WHEN, started_at=WHEN,
    ended_at=WHEN, signed_at=WHEN, consent="c", reason="r", exchange=(), conclusion="c",
)  # fmt: skip
HOSTS = ("dpi.example.org", "DPI.Example.org", "dpi.example.org.", "192.0.2.1", "[2001:db8::1]", "[2001:0DB8:0:0::1]")


def sum_of(parts: tuple[list[Candidate], ...]) -> list[Candidate]:
    return [one for part in parts for one in part]


@st.composite
def candidates(draw: st.DrawFn, codes: Sequence[str] = (*FLAVOURS, "future-9")) -> Candidate:
    named = st.sampled_from(["DPI", "DPI", "PFI", "LGC"])
    query = draw(st.permutations([f"application={draw(named)}", "facility=CH"]))
    query = query[: draw(st.sampled_from([2, 2, 2, 2, 2, 1, 0]))]  # the same listener, with fewer names
    scheme = draw(st.sampled_from(["mllp", "MLLP"]))
    port = draw(st.sampled_from(["2575", "02575", "2576"]))
    place = f"{scheme}://{draw(st.sampled_from(HOSTS))}:{port}{draw(st.sampled_from(['', '/']))}"
    address = f"{place}?{'&'.join(query)}"
    profile = draw(st.sampled_from(codes))
    endpoint: dict[str, Any] = {
        "id": draw(st.uuids().map(str)),
        "status": draw(st.sampled_from(["active", "active", "active", "off"])),
        "address": address,
        "payloadType": [{"coding": [{"system": "urn:passerelle:profil", "code": profile}]}],
    }
    person = draw(st.sampled_from(["", "", "PractitionerRole/asker", "PractitionerRole/expert"]))
    there = draw(st.integers(0, 9)) > 0
    site = draw(st.sampled_from(["ch-demo", ""]))
    return Candidate(f"Endpoint/{endpoint['id']}", endpoint if there else {}, site, person)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(candidates(), max_size=8),
    st.sampled_from(["", "claire@x.mssante.fr"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "127.0.0.1:25"]),
)
def test_nobody_gets_a_report_twice_and_nobody_is_left_out_in_silence(
    found: list[Candidate], mailbox: str, has_ins: bool, has_number: bool, dmp: bool, smtp: str
) -> None:
    patient = dataclasses.replace(PATIENT, ins=INS if has_ins else None, local_ids=LOCAL if has_number else ())
    report = dataclasses.replace(REPORT, patient=patient, requester=professional("99000000011", mailbox))
    chosen = Settings(smtp=smtp)
    made = plan(report, OPEN if dmp else {}, found, "PractitionerRole/asker", HOSPITAL, chosen)
    ends = [(one.application, one.facility, one.mailbox.lower()) for one in made.destinations]
    assert len(ends) == len(set(ends)), "one addressee, one road"
    assert all(one.application and one.facility for one in made.destinations if one.kind == "hl7"), "MSH-5 and MSH-6"
    assert sum(one.dmp for one in made.destinations) <= (1 if dmp and has_ins else 0), "the DMP is fed once"
    served = {one.lane for one in made.destinations}
    by_lane = {candidate.reference: candidate for candidate in found}
    for one in made.destinations:
        if one.kind == "hl7":
            assert one.dmp == FLAVOURS[one.flavour].platform, "a platform with nothing to do is not written to"
            assert has_ins or (has_number and by_lane[one.lane].site == "ch-demo"), "PID-3 names the patient"
    asker = {c.reference for c in found if c.person == "PractitionerRole/asker"} & served
    own = [one for one in made.destinations if one.lane in asker and not one.dmp]
    mailed = [one for one in made.destinations if one.kind == "mail"]
    assert not (own and mailed), "the requester has one road"
    told = {shut.whom for shut in made.shut}
    for candidate in found:
        twins = [addressee_of(one.endpoint) for one in made.destinations if one.kind == "hl7"]
        reached = candidate.endpoint and addressee_of(candidate.endpoint["address"]) in twins
        assert reached or candidate.reference in told, "every Endpoint is served or told"
    assert mailed or own or "Claire MOREAU" in told or any(c.person == "PractitionerRole/asker" for c in found)
    assert made.destinations or made.shut, "a report without any road says so"
    again = plan(report, OPEN if dmp else {}, found, "PractitionerRole/asker", HOSPITAL, chosen)
    assert again == made


THE_DOCTOR = "the doctor"
Fate = Literal["gone", "waits", "ended", "kept", "sending"]
FATES: tuple[Fate, ...] = ("gone", "gone", "waits", "ended", "kept", "sending")


def role(key: str, mailbox: str) -> dict[str, Any]:
    """A role of the declared doctor."""
    secure = {"url": FR_CORE + "fr-core-contact-point-email-type", "valueCoding": {"code": "MSSANTE"}}
    box = [{"system": "email", "value": mailbox, "extension": [secure]}] if mailbox else []
    return {"resourceType": "PractitionerRole", "id": key, "practitioner": {"reference": "Practitioner/mt"}} | (
        {"telecom": box} if box else {}
    )


PEOPLE: dict[str, dict[str, Any]] = {
    "Practitioner/mt": {"resourceType": "Practitioner", "id": "mt", "name": [{"family": "PETIT", "given": ["Jean"]}]},
    "PractitionerRole/town": role("town", "town@x.mssante.fr"),
    "PractitionerRole/house": role("house", "house@x.mssante.fr"),
    "PractitionerRole/none": role("none", ""),
}


def platform(name: str) -> Candidate:
    """A platform that takes part."""
    profile = [{"coding": [{"system": "urn:passerelle:profil", "code": "push-2.1"}]}]
    address = f"mllp://192.0.2.1:2575?application={name}&facility=CH"
    found = {"id": name, "status": "active", "address": address, "payloadType": profile}
    return Candidate(f"Endpoint/{name}", found, "ch-demo")


BOTH, ORDER = [platform("A"), platform("B")], [0, 1, 2, 3, 4, 5]
GONE: list[Fate] = ["gone"]


class Case:
    """One report through its versions: the records of its documents, and what each addressee saw."""

    def __init__(self, found: Sequence[Candidate]) -> None:
        self.endpoints = {one.reference: one.endpoint for one in found}
        self.documents: list[dict[str, Any]] = []
        self.fates: dict[str, Fate] = {}
        self.sent: dict[str, tuple[Destination, str]] = {}
        self.seen: dict[str, list[tuple[str, str, str]]] = {}

    def get(self, reference: str) -> dict[str, Any] | None:
        found = self.endpoints.get(reference) or PEOPLE.get(reference) or {}
        return dict(found) or None

    def find(self, resource_type: str, query: str) -> list[dict[str, Any]]:
        if resource_type == "PractitionerRole":
            return [one for one in PEOPLE.values() if "practitioner" in one]
        if resource_type != "DocumentReference":
            return []
        return [one for one in self.documents if one["status"] == query.rpartition("=")[2]]

    def written(self, resource_type: str) -> list[dict[str, Any]]:
        return []

    def before(self, *, taken_back: bool = False) -> Held:
        found = held("DiagnosticReport/r", "current", self, self.handed, taken_back=taken_back)
        self.fates |= dict.fromkeys(found.unsent, "ended")
        return found

    def handed(self, key: str) -> Handed:
        fate = self.fates[key]
        return "gone" if fate == "sending" else fate

    def settle(self, late: bool) -> None:
        """What was under way arrives, or is refused `late`; what a person kept is let go then, and is overtaken."""
        for key, fate in list(self.fates.items()):
            if fate == "sending":
                self.fates[key] = "waits" if late else "gone"
                if not late:
                    self.tell(*self.sent[key])
            elif fate == "kept" and late:
                self.fates[key] = "waits"

    def written_down(self, made: Plan, before: Held, fates: Sequence[Fate], late: bool) -> None:
        """The version goes out; `fates` say who gets it, once what was under way has ended."""
        self.settle(late)
        number = before.version + 1
        ids = {one: f"v{number}-{place}" for place, one in enumerate(made.destinations)}
        for place, (one, key) in enumerate(ids.items()):
            unknown = bool(one.after) and self.fates[one.after] != "gone"
            self.fates[key] = "waits" if unknown else fates[place % len(fates)]
            self.sent[key] = (one, f"d{number}")
        for one in self.documents:
            one["status"] = "superseded"
        recorded = record(number, made, ids, before)
        self.documents.append({"id": f"d{number}", "status": "current", "extension": [recorded]})
        for one, key in ids.items():
            if self.fates[key] == "gone":
                self.tell(one, f"d{number}")

    def tell(self, one: Destination, document: str) -> None:
        who = THE_DOCTOR if one.kind == "mail" and human(one.person, self) else DMP if one.dmp else one.addressee
        self.seen.setdefault(who, []).append((one.trigger, document, one.replaces))


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.lists(candidates(), max_size=4), st.lists(candidates(("push-2.1",)), max_size=2)).map(sum_of),
    st.lists(st.tuples(st.sets(st.integers(0, 5)), st.lists(st.sampled_from(FATES), min_size=1, max_size=4),
                       st.booleans()), min_size=1, max_size=4),
    st.lists(st.sampled_from(["claire@x.mssante.fr", ""]), min_size=4, max_size=4),
    st.lists(st.lists(st.sampled_from([*PEOPLE]), max_size=3), min_size=4, max_size=4),
    st.lists(st.permutations(range(6)), min_size=4, max_size=4),
)  # fmt: skip
# The platform that fed the DMP is off by the second version; another one is listed before it then.
@example(BOTH, [(set(), GONE, False), ({0}, GONE, False)], [""] * 4, [[]] * 4, [ORDER] * 4)
@example(BOTH, [(set(), GONE, False)] * 2, [""] * 4, [[]] * 4, [ORDER, [1, 0, 2, 3, 4, 5], ORDER, ORDER])
def test_each_addressee_sees_a_report_its_corrections_and_its_withdrawal_in_order_and_nothing_twice(
    found: list[Candidate],
    versions: list[tuple[set[int], list[Fate], bool]],
    boxes: list[str],
    declared: list[list[str]],
    orders: list[list[int]],
) -> None:
    """`versions`: which Endpoints are off when it is written, what becomes of its deliveries, and whether those of the
    one before are refused late; `declared`: by which of their roles the doctor is named then; `orders`: which Endpoint
    is listed before which."""
    case = Case(found)
    chosen = Settings(smtp="127.0.0.1:25")
    for (away, fates, late), mailbox, names, order in zip(versions, boxes, declared, orders, strict=False):
        there = [
            dataclasses.replace(one, endpoint=one.endpoint | {"status": "off"})
            if place in away and one.endpoint
            else one
            for place, one in ((place, found[place]) for place in order if place < len(found))
        ]
        named = doctors({}, {}, {"generalPractitioner": [{"reference": one} for one in names]}, case)
        report = dataclasses.replace(REPORT, requester=professional("99000000011", mailbox))
        before = case.before()
        there = by_who_fed(there, before)
        made = plan(report, OPEN, there, "PractitionerRole/asker", HOSPITAL, chosen, named)
        made = follow(made, renamed(before, made, case), mailing=True)
        assert len({one.addressee for one in made.destinations}) == len(made.destinations)
        assert len({one.lane for one in made.destinations}) == len(made.destinations)
        case.written_down(made, before, fates, late)
    case.settle(late=False)
    last = case.before(taken_back=True)
    assert {"waits", "kept"}.isdisjoint(case.fates.values()), "nothing can leave after a withdrawal"
    back = recall(last, PATIENT, case, HOSPITAL, mailing=True, found=found)
    for one in back.destinations:
        case.tell(one, "")
    told = {shut.lane for shut in back.shut}
    for addressee, seen in case.seen.items():
        triggers = [trigger for trigger, _, _ in seen]
        brought = [document for trigger, document, _ in seen if trigger != "T04"]
        assert triggers.count("T04") <= 1 and "T04" not in triggers[:-1], "nothing follows a withdrawal"
        assert triggers[0] == "T02" and triggers.count("T02") == 1, "one first version, first"
        assert len(brought) == len(set(brought)), "no version twice"
        for (_, document, _), (_, _, replaces) in pairwise(seen):
            assert replaces == document, "what is replaced or withdrawn is what they hold"
        own = [one for one in last.holders if one.addressee == addressee and one.document]
        if addressee == THE_DOCTOR:
            own = [one for one in last.holders if human(one.person, case)]
        assert triggers[-1] == "T04" or not own or own[0].lane in told, "whoever holds one is recalled or told"


@pytest.mark.parametrize(
    "other",
    [
        "MLLP://DPI.example.org:2575?application=A&facility=B",
        "mllp://dpi.example.org:2575?facility=B&application=A",
        "mllp://dpi.example.org.:02575/?facility=B&application=A#x",
        " mllp://dpi.example.org:2575?application=%41&facility=B",
    ],
)
def test_two_spellings_of_an_address_are_one(other: str) -> None:
    assert road_of(other) == road_of("mllp://dpi.example.org:2575?application=A&facility=B")


@pytest.mark.parametrize(
    "other",
    [
        "mllps://dpi.example.org:2575?application=A&facility=B",
        "mllp://dpi.example.org:2576?application=A&facility=B",
        "mllp://dpi2.example.org:2575?application=A&facility=B",
        "mllp://dpi.example.org:2575?application=A&facility=C",
        "mllp://dpi.example.org:2575?application=a&facility=B",
        "mllp://dpi.example.org:2575/x?application=A&facility=B",
    ],
)
def test_two_addresses_are_two(other: str) -> None:
    assert road_of(other) != road_of("mllp://dpi.example.org:2575?application=A&facility=B")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]"])
def test_this_machine_has_one_name(host: str) -> None:
    assert road_of(f"mllp://{host}:2576") == road_of("mllp://localhost:2576")
    assert road_of(f"mllp://{host}:2576") != road_of("mllp://localhost:2577")


@pytest.mark.parametrize(
    "address", ["", "x", "mllp://[::1", "mllp://host:99999", "mllp://\udcff:1", "mllp://" + "a" * 70]
)
def test_an_address_nobody_can_read_stands_for_itself(address: str) -> None:
    assert isinstance(road_of(address), str)
