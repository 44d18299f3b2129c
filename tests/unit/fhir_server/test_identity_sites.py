"""A laboratory of one establishment that sends the patient number of another one."""

from __future__ import annotations

import pytest
from hubs import found, hub_on
from sylve import IPP, SITE, patient, row, sample, say, tell

from fhir_server.app import seed_sites
from fhir_server.changes import Hub
from fhir_server.config import ConfigError
from fhir_server.patients.identity import is_doubtful
from fhir_server.patients.sites import load_sites
from fhir_server.store.engine import Store

AULNE = {
    "key": "aulne",
    "name": "Laboratoire des Aulnes",
    "finess_eg": "990005678",
    "finess_ej": "990005600",
    "mode": "test",
    "application": "PASSERELLE",
    "facility": "LABO-AULNE",
    "sending_applications": [["SGL", "LABO-AULNE"]],
    "namespaces": [
        {"name": "ipp", "kind": "PI", "hd": ["LABO-AULNE", "990005678", "N"], "oid": "2.25.990201"},
        {"name": "venue", "kind": "VN", "hd": ["LABO-AULNE", "990005678", "M"], "oid": "2.25.990202"},
    ],
}
"""Fictitious, like the hospital of tests/data/hl7v2."""
THERE = ("SIL|CH-SYLVE", "SGL|LABO-AULNE")
OWN = "000417^^^CH-SYLVE&990001234&N^PI"
NO_INS = ("~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS", "")


@pytest.fixture
def hub(store: Store) -> Hub:
    alone = hub_on(store, site=SITE)
    first = {**SITE, "application": "PASSERELLE"}
    both = load_sites((first, AULNE))
    seed_sites(alone, both)
    return Hub(alone.settings, store, both, alone.clock)


@pytest.mark.parametrize(
    ("authority", "known"),
    [
        ("CH-SYLVE&990001234&N", True),
        (f"&{IPP[8:]}&ISO", True),
        (f"AUTRE&{IPP[8:]}&ISO", True),
        ("CH-SYLVE", False),
        ("&990001234&N", False),
        ("AUTRE&990001234&N", False),
    ],
)
def test_the_number_of_another_establishment_is_known_when_its_authority_is_whole(
    hub: Hub, authority: str, known: bool
) -> None:
    tell(hub, "adt-a01-admission")
    told = say(hub, sample("oru-r01-biologie", THERE, NO_INS, ("CH-SYLVE&990001234&N^PI", f"{authority}^PI")))
    assert told.code == "AA", told
    people = found(hub, "Patient")
    assert len(people) == (1 if known else 2) and sum(map(is_doubtful, people)) == (0 if known else 1)
    assert ("no declared namespace of kind PI of Laboratoire des Aulnes" in row(hub, told.control_id).note) is not known


def test_nobody_gives_up_the_numbers_of_another_establishment(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a28-creation-provisoire", ("000417^", "000399^"), NO_INS)
    mine = "000001^^^LABO-AULNE&990005678&N^PI"
    told = say(hub, sample("adt-a40-fusion", ("GAM|CH-SYLVE", "SGL|LABO-AULNE"), (OWN, mine), NO_INS))
    assert (told.code, told.errors[0].location) == ("AE", "MRG^1^1")
    assert all(one["active"] for one in found(hub, "Patient"))


def test_visit_numbers_are_of_the_senders_own_establishment_only(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    stay = len(found(hub, "Encounter"))
    tell(hub, "adt-a03-sortie", ("GAM|CH-SYLVE", "SGL|LABO-AULNE"))
    assert patient(hub) and len(found(hub, "Encounter")) == stay
    assert found(hub, "Encounter")[0]["status"] == "in-progress"


def test_the_numbers_of_others_are_no_setting(hub: Hub) -> None:
    with pytest.raises(ConfigError, match="unknown key `foreign`"):
        load_sites(({**AULNE, "foreign": []},))
