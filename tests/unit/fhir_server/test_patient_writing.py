"""What may not be written about a patient: an INS that nobody qualified, another person, a test identity."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import OTHER_SITE
from identities import (
    INS,
    NIA,
    NIR,
    SITES_,
    changed,
    person,
    unqualified,
    with_ins,
    with_status,
    without,
)
from shelves import Shelf

from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.errors import Conflict, Invalid
from fhir_server.patients.identity import (
    to_reconcile,
)
from fhir_server.patients.sites import load_sites
from fhir_server.patients.writing import check_asked, check_ins, check_mode, check_spelling, check_update
from mappers.ins import key_of


@pytest.mark.parametrize("status", ["PROV", "RECUP", "DOUT", ""])
@pytest.mark.parametrize("use", ["official", "old", "usual"])
def test_an_ins_without_a_qualified_identity_is_refused_with_the_remedy(status: str, use: str) -> None:
    patient = with_status(person(), status) if status else person(extension=[])
    patient["identifier"] = [patient["identifier"][1], patient["identifier"][0] | {"use": use}]
    with pytest.raises(Invalid, match="qualified identity only: say identityStatus VALI") as refused:
        check_ins(patient)
    assert refused.value.status == 422
    assert refused.value.issues[0].expression == "Patient.identifier[1]"


def test_a_qualified_identity_has_one_ins_in_force() -> None:
    check_ins(person())
    check_ins(with_status(person(), "QUAL"))
    check_ins(unqualified(person()))
    two = person()
    two["identifier"].append({"use": "official", "system": NIR, "value": INS})
    with pytest.raises(Invalid, match="one INS; only a NIA") as refused:
        check_ins(two)
    assert refused.value.issues[0].expression == "Patient.identifier[2]"
    for system in (NIR, NIA, people.INS_SYSTEM):
        two["identifier"][2] |= {"use": "old", "system": system, "value": "294029912300199"}
        with pytest.raises(Invalid, match="one INS; only a NIA"):
            check_ins(two)
    succeeded = with_ins(INS, NIR)
    succeeded["identifier"].append({"use": "old", "system": NIA, "value": INS})
    check_ins(succeeded)
    with pytest.raises(Invalid, match="kept on a qualified identity only"):
        check_ins(person(identifier=[{"system": NIR}]))


CORSICA = "175032A004012"


@pytest.mark.parametrize(("system", "use"), [(NIR, "official"), (NIA, "official"), (NIA, "old")])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (f"{INS[:13]}{int(INS[13:]) % 97 + 1:02d}", f"{INS[13:]} was expected"),
        (INS[:13], "13 characters and a key"),
        (f"{INS} ", "13 characters and a key"),
        (f"{CORSICA}00", "was expected"),
        (f"{CORSICA.lower()}{key_of(CORSICA)}", "13 characters and a key"),
    ],
)
def test_a_real_ins_has_fifteen_characters_and_the_right_key(system: str, use: str, value: str, told: str) -> None:
    patient = with_ins(INS, NIR)
    patient["identifier"].append({"use": use, "system": system, "value": value})
    if use == "official":
        del patient["identifier"][0]
    with pytest.raises(Invalid, match=told) as refused:
        check_ins(patient)
    place = f"Patient.identifier[{len(patient['identifier']) - 1}].value"
    assert (refused.value.status, refused.value.issues[0].expression) == (422, place)


def test_a_right_key_is_taken_in_corsica_too_and_a_test_ins_may_have_a_wrong_one() -> None:
    check_ins(with_ins(CORSICA + key_of(CORSICA), NIR))
    check_ins(with_ins(INS[:13] + "00"))


def test_a_fhir_update_does_not_give_a_qualified_identity_another_ins() -> None:
    with pytest.raises(Conflict, match="has another INS; take the qualification away first") as refused:
        check_update(person(), with_ins("294029912300199"))
    assert (refused.value.status, refused.value.issues[0].expression) == (409, "Patient.identifier")


@pytest.mark.parametrize("traits", [("family", "gender"), ("given", "birth_date"), ("family", "given")])
def test_a_fhir_update_does_not_turn_a_qualified_identity_into_somebody_else(traits: tuple[str, ...]) -> None:
    for incoming in (changed(*traits), with_status(without(changed(*traits), people.INS_SYSTEM), "PROV")):
        with pytest.raises(Conflict, match="qualified identity and this has another"):
            check_update(person(), incoming)
    check_update(unqualified(person()), changed(*traits))


def test_a_qualification_does_not_fall_by_being_left_out() -> None:
    for silent in (unqualified(person()), without(person(), people.INS_SYSTEM)):
        with pytest.raises(Invalid, match="send its INS and identityStatus back") as refused:
            check_update(person(), silent)
        assert (refused.value.status, refused.value.issues[0].expression) == (422, "Patient.extension")
        with pytest.raises(Invalid, match="send its INS and identityStatus back"):
            check_update(person(), silent | {"active": False})
    check_update(person(), with_status(without(person(), people.INS_SYSTEM), "PROV"))
    check_update(person(), changed("family"))


# --- test identities on production sites -----------------------------------------------------------------------------


def test_a_production_site_refuses_test_identities() -> None:
    production = load_sites([dict(SITES[0]) | {"mode": "production"}])
    with pytest.raises(Invalid, match="production") as refused:
        check_mode(person(), production)
    assert refused.value.issues[0].expression == "Patient.identifier[0]"
    check_mode(without(person(), people.INS_SYSTEM), production)
    check_mode(person(), SITES_)


OTHER_IPP = {"system": "urn:oid:1.2.3.4.5", "value": "7"}
FINESS = {"system": people.FINESS, "value": "990000992"}


@pytest.mark.parametrize(
    "order", [(SITES[0], OTHER_SITE), (OTHER_SITE, SITES[0])], ids=["test first", "production first"]
)
@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"identifier": [person()["identifier"][0], OTHER_IPP]}, False),
        ({"identifier": [*person()["identifier"], OTHER_IPP]}, False),
        ({"identifier": [*person()["identifier"], OTHER_IPP | {"use": "old"}]}, True),
        ({"identifier": person()["identifier"][:1], "managingOrganization": {}}, False),
        (
            {"identifier": person()["identifier"][:1], "managingOrganization": {"reference": "Organization/ch-demo"}},
            True,
        ),
        (
            {"identifier": person()["identifier"][:1], "managingOrganization": {"reference": "Organization/autre"}},
            False,
        ),
        ({"identifier": person()["identifier"][:1], "managingOrganization": {"identifier": FINESS}}, False),
        ({"identifier": person()["identifier"][:1], "managingOrganization": {"reference": "Organization/x"}}, True),
        ({"identifier": person()["identifier"][:1], "managingOrganization": {"reference": "Organization/y"}}, False),
        ({"managingOrganization": {"reference": "Organization/autre"}}, False),
    ],
)
def test_the_site_that_owns_a_patient_decides_about_test_identities(
    order: tuple[Any, ...], change: dict[str, Any], taken: bool
) -> None:
    """The namespaces of the local identifiers and the managing organization; strict when either is, or nobody knows."""
    ours = {
        "resourceType": "Organization",
        "id": "x",
        "identifier": [{"system": "urn:oid:1.2.250.1.71.4.2.2", "value": "1" + SITES[0]["finess_eg"]}],
    }

    patient, sites = person(**change), load_sites(order)
    if taken:
        check_mode(patient, sites, Shelf(ours))
        return
    with pytest.raises(Invalid, match="Clinique en production is a production site") as refused:
        check_mode(patient, sites, Shelf(ours))
    assert refused.value.issues[0].expression == "Patient.identifier[0]"


LOUD = (
    "URN:OID:1.2.250.1.213.1.4.10",
    " urn:oid:1.2.250.1.213.1.4.10 ",
    "1.2.250.1.213.1.4.10",
    "Urn:Oid:1.2.250.1.213.1.4.11",
)


@pytest.mark.parametrize("system", LOUD)
def test_a_test_ins_is_one_however_its_namespace_is_spelled(system: str) -> None:
    production = load_sites([dict(SITES[0]) | {"mode": "production"}])
    with pytest.raises(Invalid, match="production site"):
        check_mode(with_ins(INS, system), production)
    with pytest.raises(Invalid, match="this namespace is written urn:oid:") as refused:
        check_spelling(with_ins(INS, system), SITES_)
    assert refused.value.issues[0].expression == "Patient.identifier[0].system"
    assert len(to_reconcile(with_ins(INS, system), "")["identifier"]) == 1
    check_spelling(person(), SITES_)


@pytest.mark.parametrize(
    ("performer", "refused"),
    [
        ({"resourceType": "HealthcareService", "providedBy": {"reference": "Organization/autre"}}, True),
        ({"resourceType": "PractitionerRole", "organization": {"reference": "Organization/service"}}, True),
        ({"resourceType": "Organization", "identifier": [FINESS]}, True),
        ({"resourceType": "HealthcareService", "providedBy": {"reference": "Organization/ch-demo"}}, False),
        ({"resourceType": "HealthcareService"}, False),
    ],
)
def test_a_patient_with_a_test_ins_is_not_asked_about_at_a_production_site(
    performer: dict[str, Any], refused: bool
) -> None:
    sites = load_sites((SITES[0], OTHER_SITE))
    stored = [
        performer | {"id": "asked"},
        {"resourceType": "Organization", "id": "service", "partOf": {"reference": "Organization/autre"}},
        {"resourceType": "Organization", "id": "autre"},
        {"resourceType": "Organization", "id": "ch-demo"},
    ]
    view = Shelf(*stored)
    request = {"performer": [{"reference": f"{performer['resourceType']}/asked"}]}
    check_asked(request, without(person(), people.INS_SYSTEM), sites, view)
    if not refused:
        check_asked(request, person(), sites, view)
        return
    with pytest.raises(Invalid, match="Clinique en production is a production site") as told:
        check_asked(request, person(), sites, view)
    assert (told.value.status, told.value.issues[0].expression) == (422, "ServiceRequest.subject")
