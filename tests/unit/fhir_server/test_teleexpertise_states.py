"""The state table: every legal step by its role, every other one refused with the legal ones."""

from __future__ import annotations

from typing import Any

import pytest

from fhir_server.config import Settings
from fhir_server.context import Caller, Role
from fhir_server.demo import people
from fhir_server.errors import RuleBroken
from fhir_server.teleexpertise.states import (
    CORRECTION,
    FRENCH,
    TASK_STATUS,
    TRANSITIONS,
    State,
    state_of,
    step,
    with_state,
)

SETTINGS = Settings()
REQUEST = people.request("r", 0, "moreau", "avis-echo", "why")
STATES: tuple[State, ...] = tuple(TASK_STATUS)


class Directory:
    """A View that knows the requester's role."""

    def get(self, reference: str) -> dict[str, Any] | None:
        known = {f"{r['resourceType']}/{r['id']}": r for r in people.professionals()}
        return known.get(reference)

    def find(self, resource_type: str, query: str) -> list[dict[str, Any]]:
        return []

    def written(self, resource_type: str) -> list[dict[str, Any]]:
        return []


def caller(role: Role) -> Caller:
    if role == "requester":
        return Caller("PractitionerRole/moreau", "Claire", frozenset({"requester"}))
    if role == "expert":
        groups = frozenset({"HealthcareService/avis-echo"})
        return Caller("PractitionerRole/garnier", "Hélène", frozenset({"requester", "expert"}), groups)
    return Caller("", role, frozenset({role}))


@pytest.mark.parametrize("role", ["requester", "expert", "partner", "admin", "system", "device"])
@pytest.mark.parametrize("target", STATES)
@pytest.mark.parametrize("source", [None, *STATES])
def test_a_step_is_open_exactly_to_the_roles_of_the_table(source: State | None, target: State, role: Role) -> None:
    legal = {s.name for s in TRANSITIONS if (s.source, s.target) == (source, target) and role in s.by}
    if legal:
        assert step(caller(role), REQUEST, source, target, "", Directory()).name in legal
    else:
        with pytest.raises(RuleBroken, match="Legal steps") as refused:
            step(caller(role), REQUEST, source, target, "ServiceRequest.status", Directory())
        assert refused.value.status == 422
        assert refused.value.issues[0].expression == "ServiceRequest.status"
        for other in TRANSITIONS:
            if other.source == source:
                assert other.how in refused.value.diagnostics


def test_an_expert_of_another_group_and_another_requester_have_no_role() -> None:
    groups = frozenset({"HealthcareService/avis-cardio"})
    foreign = Caller("PractitionerRole/benali", "K", frozenset({"expert"}), groups)
    other = Caller("PractitionerRole/lefevre", "P", frozenset({"requester"}))
    for who in (foreign, other):
        with pytest.raises(RuleBroken, match="no role in this case"):
            step(who, REQUEST, "ready", "in_progress", "", Directory())


@pytest.mark.parametrize("state", STATES)
def test_a_state_written_is_the_state_read(state: State) -> None:
    written = with_state(REQUEST, state, SETTINGS)
    assert state_of(written, SETTINGS) == state
    assert with_state(with_state(written, "ready", SETTINGS), state, SETTINGS) == written


def test_the_requester_is_known_through_another_of_their_roles() -> None:
    other_role = Caller("PractitionerRole/x", "C", frozenset({"requester"}), practitioner="Practitioner/moreau")
    assert step(other_role, REQUEST, "draft", "ready", "", Directory()).name == "publish"


def test_every_step_has_one_french_word_and_no_two_share_it() -> None:
    assert set(FRENCH) == {one.name for one in TRANSITIONS} | {CORRECTION}
    assert len(set(FRENCH.values())) == len(FRENCH)


def test_of_two_steps_between_the_same_states_the_named_one_is_taken() -> None:
    for name in ("amend", "withdraw"):
        assert step(caller("expert"), REQUEST, "completed", "completed", "", Directory(), name).name == name
    with pytest.raises(RuleBroken, match="Legal steps"):
        step(caller("expert"), REQUEST, "completed", "completed", "", Directory(), "report")
