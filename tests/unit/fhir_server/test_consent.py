"""Which recorded consent lets a request go out: in force, of this patient, and no refusal beside it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import hubs
import pytest
from hubs import CONSENT_URL, EXPERT, PARTNER, REQUESTER, directory, hub_on, opinion, put, request

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.errors import RuleBroken
from fhir_server.store.engine import Store

Resource = dict[str, Any]
NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
ORAL = {"extension": [{"url": CONSENT_URL, "valueBoolean": True}]}
SCOPES = "http://terminology.hl7.org/CodeSystem/consentscope"
DENY = {"provision": {"type": "deny"}}


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.moment = NOW

    def __call__(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str, clock: Clock) -> Hub:
    return directory(hub_on(open_url(sqlite_url), clock=clock))


def period(**ends: str) -> Resource:
    return {"provision": {"type": "permit", "period": ends}}


def goes_out(hub: Hub, wanted: Resource) -> bool:
    try:
        put(hub, REQUESTER, wanted)
    except RuleBroken as told:
        assert told.issues[0].expression == "ServiceRequest.supportingInfo"
        return False
    return True


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (period(start="2026-01-01", end="2026-12-31"), True),
        (period(end="2026-11-20"), False),
        (period(end="2026-11-21"), True),
        (period(end="2026-11"), True),
        (period(end="2025"), False),
        (period(end="2026-11-21T08:59:59+01:00"), False),
        (period(end="2026-11-21T09:00:01+01:00"), True),
        (period(start="2026-11-21T08:00:01Z"), False),
        (period(start="2026-11-22"), False),
        ({"dateTime": "2026-11-22T08:00:00Z"}, False),
        ({"dateTime": "2026-11-21"}, True),
        (DENY, False),
        ({"status": "proposed"}, False),
        ({"status": "draft"}, False),
        ({"status": "inactive"}, False),
        ({"status": "entered-in-error"}, False),
        ({"patient": {"reference": "Patient/patient-02"}}, False),
        ({"patient": {"display": "Lucie"}}, False),
        ({"scope": {"coding": [{"system": SCOPES, "code": "research"}]}}, False),
        ({"scope": {"coding": [{"system": "urn:x", "code": "treatment"}]}}, False),
        ({"scope": {"text": "Soins"}}, False),
        ({"scope": {"coding": [{"system": SCOPES, "code": "patient-privacy"}]}}, True),
        ({"provision": {"type": "permit", "provision": [{"type": "deny"}]}}, False),
        ({"provision": {"type": "permit", "provision": [{"type": "permit", "provision": [{"type": "deny"}]}]}}, False),
        ({"provision": {"type": "permit", "provision": [{"type": "permit"}]}}, False),
    ],
)
def test_a_consent_counts_while_it_is_in_force_for_this_patient(hub: Hub, change: Resource, counts: bool) -> None:
    put(hub, PARTNER, people.consent("r", 0) | change)
    assert goes_out(hub, request()) is counts


@pytest.mark.parametrize(
    ("refusal", "counts"),
    [
        (DENY, False),
        (DENY | {"dateTime": "2020-01-01"}, False),
        (DENY | {"status": "inactive"}, True),
        ({"provision": {"type": "deny", "period": {"end": "2026-11-20"}}}, True),
        (DENY | {"patient": {"reference": "Patient/patient-02"}}, True),
        ({"provision": {"type": "permit", "provision": [{"type": "deny"}]}}, False),
        (DENY | {"scope": {"coding": [{"system": SCOPES, "code": "patient-privacy"}]}}, True),
    ],
    ids=["a refusal", "an old one", "withdrawn", "expired", "somebody else's", "in part", "about the DMP"],
)
@pytest.mark.parametrize("named", [True, False])
def test_the_guides_boolean_never_beats_a_refusal_on_record(
    hub: Hub, refusal: Resource, counts: bool, named: bool
) -> None:
    put(hub, PARTNER, people.consent("no", 0) | refusal)
    wanted = request() | ORAL | {"supportingInfo": [{"reference": "Consent/no"}]}
    if not named:
        del wanted["supportingInfo"]
    if named and "scope" in refusal:
        counts = False  # a refusal the request itself names counts whatever it is about
    assert goes_out(hub, wanted) is counts


@pytest.mark.parametrize(
    ("agreed", "refused", "counts"),
    [
        ("2026-11-02T09:00:00Z", "2026-11-01T09:00:00Z", True),
        ("2026-11-02T09:00:00Z", "2026-11-03T09:00:00Z", False),
        ("2026-11-02T09:00:00Z", "2026-11-02T09:00:00Z", False),
        ("2026-11-02T09:00:00Z", "", False),
        ("", "2026-11-01", False),
    ],
)
def test_the_last_word_of_the_patient_counts(hub: Hub, agreed: str, refused: str, counts: bool) -> None:
    def dated(key: str, when: str) -> Resource:
        plain = {name: value for name, value in people.consent(key, 0).items() if name != "dateTime"}
        return plain | ({"dateTime": when} if when else {})

    put(hub, PARTNER, dated("r", agreed), dated("no", refused) | DENY)
    assert goes_out(hub, request()) is counts


def test_what_keeps_a_consent_from_counting_is_told(hub: Hub) -> None:
    research = {"scope": {"coding": [{"system": SCOPES, "code": "research"}]}}
    partly = {"provision": {"type": "permit", "provision": [{"type": "permit"}]}}
    for change, words in ((research, "not about care"), (partly, "not interpreted")):
        put(hub, PARTNER, people.consent("r", 0) | change)
        with pytest.raises(RuleBroken, match=f"Consent/r .*{words}"):
            put(hub, REQUESTER, request())


def test_a_report_may_be_signed_after_the_consent_has_run_out(hub: Hub, clock: Clock) -> None:
    put(hub, PARTNER, people.consent("r", 0) | period(end="2026-11-21"))
    put(hub, REQUESTER, request())
    clock.moment = NOW + timedelta(days=3)
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))
    assert len(hubs.deliveries(hub)) == 3


def test_a_refusal_that_comes_while_the_request_goes_out_is_seen(hub: Hub) -> None:
    put(hub, PARTNER, people.consent("r", 0))
    refusal = people.consent("no", 0) | DENY
    late = hubs.meddled(hub, lambda _: put(hub, PARTNER, refusal | {"dateTime": "2026-11-20T09:00:00Z"}))
    assert goes_out(late, request()) is False
