"""What a téléexpertise rests on against the step that makes it rest there: one between the other's reading and writing,
in both orders, and both at once.

Whoever is first, the two never both stand: the step finds what it needs gone, or the deletion finds the case.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, Literal

import hubs
import pytest
from hubs import ADMIN, EXPERT, PARTNER, SYSTEM, at_once, delete, directory, hub_on, meddled, message, put, read

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.demo import people
from fhir_server.errors import PasserelleError
from fhir_server.store.engine import Store

Resource = dict[str, Any]
Act = Callable[[Hub, str], object]
ROUNDS = 4
SOMEBODY_ELSE = {
    "name": [{"use": "official", "family": "AUTRE-TEST", "given": ["ZOE"]}],
    "birthDate": "1980-01-01",
}
DENIED = {"provision": {"type": "deny"}}
LATER = "2026-11-21T10:00:00Z"


@pytest.fixture
def hub(open_url: Callable[..., Store], database_url: str) -> Hub:
    return directory(hub_on(open_url(database_url)))


# --- a case with people of its own -----------------------------------------------------------------------------------


def folk(hub: Hub, key: str) -> None:
    """A patient, who asks, who answers, a group, a consent and a picture, each with this id."""
    person = people.patient(0) | {"id": key, "identifier": [{"system": people.IPP_SYSTEM, "value": key}]}
    del person["extension"]
    made = [person, consent(key), {"resourceType": "Binary", "id": key, "contentType": "image/png", "data": "eA=="}]
    for number, (like, own) in enumerate((("moreau", key), ("garnier", f"{key}e"))):
        human = read(hub, f"Practitioner/{like}") | {"id": own}
        rpps = f"1{zlib.crc32(own.encode()) % 10**9:09}{number}"
        human["identifier"] = [one | {"value": rpps} for one in human["identifier"]]
        role = read(hub, f"PractitionerRole/{like}") | {"id": own, "practitioner": {"reference": f"Practitioner/{own}"}}
        made += [human, role]
    made.append(read(hub, "HealthcareService/avis-echo") | {"id": key})
    put(hub, SYSTEM, *made)


def consent(key: str, **more: Any) -> Resource:
    return people.consent(key, 0) | {"patient": {"reference": f"Patient/{key}"}} | more


def expert(key: str) -> Caller:
    groups = frozenset({f"HealthcareService/{key}"})
    return dataclasses.replace(
        EXPERT, who=f"PractitionerRole/{key}e", practitioner=f"Practitioner/{key}e", groups=groups
    )


def ask(hub: Hub, key: str, status: str = "active") -> object:
    parties = {
        "subject": {"reference": f"Patient/{key}"},
        "requester": {"reference": f"PractitionerRole/{key}"},
        "performer": [{"reference": f"HealthcareService/{key}"}],
    }
    return put(hub, PARTNER, hubs.request(key, status=status) | parties)


def prepare(hub: Hub, key: str) -> object:
    return ask(hub, key, "draft")


def take(hub: Hub, key: str) -> object:
    return put(hub, expert(key), read(hub, f"Task/{key}") | {"status": "in-progress"})


def release(hub: Hub, key: str) -> object:
    """A draft goes out."""
    return put(hub, PARTNER, read(hub, f"ServiceRequest/{key}") | {"status": "active"})


def sign(hub: Hub, key: str) -> object:
    return put(hub, expert(key), hubs.opinion(hub, key))


def drafted(hub: Hub, key: str) -> None:
    """A draft, and a second agreement that it does not name."""
    folk(hub, key)
    prepare(hub, key)
    put(hub, SYSTEM, consent(key, id=f"{key}-too"))


def answered(hub: Hub, key: str) -> None:
    """A case that waits for its report, and a second agreement that it does not name."""
    taken(hub, key)
    put(hub, SYSTEM, consent(key, id=f"{key}-too"))


def question(hub: Hub, key: str) -> object:
    said = message(f"{key}-q", key) | {"payload": [{"contentAttachment": {"url": f"Binary/{key}"}}]}
    return put(hub, expert(key), said)


def asked(hub: Hub, key: str) -> None:
    folk(hub, key)
    ask(hub, key)


def taken(hub: Hub, key: str) -> None:
    asked(hub, key)
    take(hub, key)


def gone(reference: str) -> Act:
    return lambda hub, key: delete(hub, ADMIN, reference.format(key=key))


def becomes(reference: str, **more: Any) -> Act:
    return lambda hub, key: put(hub, SYSTEM, read(hub, reference.format(key=key)) | more)


def refuses(hub: Hub, key: str) -> object:
    return put(hub, SYSTEM, consent(key, id=f"{key}-no", dateTime=LATER, **DENIED))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A step, and what would take away what it stands on. `both`: the order in which the two are no contradiction."""

    name: str
    before: Act
    step: Act
    other: Act
    both: Literal["", "step first", "other first"] = ""


PAIRS = (
    Pair("a patient is deleted, the request goes out", folk, ask, gone("Patient/{key}")),
    Pair("a patient becomes somebody else", folk, ask, becomes("Patient/{key}", **SOMEBODY_ELSE), "other first"),
    Pair("a consent becomes a refusal", folk, ask, becomes("Consent/{key}", **DENIED)),
    Pair("a consent is deleted", folk, ask, gone("Consent/{key}")),
    Pair("a refusal is recorded", folk, ask, refuses, "step first"),
    Pair("a consent becomes a refusal, a draft goes out", drafted, release, becomes("Consent/{key}", **DENIED)),
    Pair(
        "another consent becomes a refusal, a draft goes out",
        drafted,
        release,
        becomes("Consent/{key}-too", dateTime=LATER, **DENIED),
        "step first",
    ),
    Pair(
        "another consent becomes a refusal, the report is signed",
        answered,
        sign,
        becomes("Consent/{key}-too", dateTime=LATER, **DENIED),
        "step first",
    ),
    Pair("a refusal is recorded, the report is signed", taken, sign, refuses, "step first"),
    Pair("who asks is deleted", folk, ask, gone("PractitionerRole/{key}")),
    Pair("the person who asks is deleted", folk, ask, gone("Practitioner/{key}")),
    Pair("the group that is asked is deleted", folk, ask, gone("HealthcareService/{key}")),
    Pair("who takes it is deleted", asked, take, gone("PractitionerRole/{key}e")),
    Pair("the person who takes it is deleted", asked, take, gone("Practitioner/{key}e")),
    Pair("an attachment is deleted", taken, question, gone("Binary/{key}")),
    Pair("an attachment is overwritten", taken, question, becomes("Binary/{key}", data="eQ=="), "other first"),
)


def stands(action: Callable[[], object]) -> bool:
    try:
        action()
    except PasserelleError as told:
        assert told.status in (404, 409, 422), told
        return False
    return True


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_what_happens_between_reading_and_writing_is_seen(hub: Hub, pair: Pair) -> None:
    for key, first, second, order in (
        ("a", pair.other, pair.step, "other first"),
        ("b", pair.step, pair.other, "step first"),
    ):
        pair.before(hub, key)
        between: list[bool] = []

        def meddle(_: Store, key: str = key, first: Act = first, between: list[bool] = between) -> None:
            between.append(stands(lambda: first(hub, key)))

        last = stands(lambda: second(meddled(hub, meddle), key))  # noqa: B023 - called within its round
        assert between == [True]
        assert last == (pair.both == order), order


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not pair.both], ids=lambda pair: pair.name)
def test_at_once_one_of_the_two_stands(hub: Hub, pair: Pair) -> None:
    for key in (f"r{number}" for number in range(ROUNDS)):
        pair.before(hub, key)
        outcomes = at_once(functools.partial(pair.step, hub, key), functools.partial(pair.other, hub, key))
        lost = [one for one in outcomes if isinstance(one, Exception)]
        assert len(lost) == 1 and isinstance(lost[0], PasserelleError), outcomes


def test_a_patient_is_not_deleted_beside_a_draft_about_them(hub: Hub) -> None:
    folk(hub, "d")
    assert not stands(lambda: delete(meddled(hub, lambda _: prepare(hub, "d")), ADMIN, "Patient/d"))
