"""Sites: the record, its spellings, and what a wrong record is told."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fhir_server.config import ConfigError
from fhir_server.demo.run import SITES
from fhir_server.patients.sites import INS_SYSTEMS, load_sites, namespace_of, naming_systems, organization
from profiles.validator.structure import check


def table() -> dict[str, Any]:
    return copy.deepcopy(dict(SITES[0]))


def test_the_demo_site_is_found_by_each_of_its_spellings() -> None:
    sites = load_sites([table()])
    site = sites.default
    ipp = namespace_of(site, "PI")
    assert ipp is not None
    assert sites.of_message("GAM", "CH-DEMO") is site
    assert sites.of_ae("ECHO1") is site
    assert sites.of_finess("990000018") is site
    assert sites.of_oid(ipp.oid) == (site, ipp)
    assert sites.of_system(ipp.fhir_system) == (site, ipp)
    assert sites.of_message("X", "Y") is None
    assert {namespace.fhir_system for namespace in site.namespaces} >= INS_SYSTEMS


def test_a_sender_has_a_character_set_of_its_own() -> None:
    sites = load_sites([table() | {"sending_charsets": [["GAM", "CH-DEMO", "8859/15"]]}])
    assert sites.charset_of("GAM", "CH-DEMO") == "8859/15"
    assert sites.charset_of("PFI", "CH-DEMO") == sites.charset_of("GAM", "") == ""


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([["GAM", "8859/15"]], "a row of"),
        (["GAM"], "a row of"),
        ([["GAM", "AILLEURS", "8859/15"]], "none of its `sending_applications`"),
        ([["GAM", "CH-DEMO", "8859/1"], ["GAM", "CH-DEMO", "8859/15"]], "twice"),
        ([["GAM", "CH-DEMO", "klingon"]], "table 0211"),
        ([["GAM", "CH-DEMO", "UNICODE UTF-8"]], "one byte a character"),
    ],
)
def test_a_wrong_character_set_of_a_sender_is_an_error_that_says_so(rows: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_sites([table() | {"sending_charsets": rows}])


def test_a_namespace_is_found_in_any_spelling_of_its_system() -> None:
    sites = load_sites([table()])
    ipp = namespace_of(sites.default, "PI")
    assert ipp is not None
    for system in (ipp.fhir_system.upper(), f" {ipp.fhir_system}", ipp.oid):
        assert sites.of_system(system) == (sites.default, ipp)
    assert sites.of_system(ipp.fhir_system + "1") is None
    assert sites.of_system("") is None


def test_the_owners_of_a_patient_are_those_of_its_identifiers_and_its_managing_organization() -> None:
    other = table() | {"key": "autre", "finess_eg": "990000992", "finess_ej": "990000984", "namespaces": []}
    sites = load_sites([table(), other])
    ipp = namespace_of(sites.default, "PI")
    assert ipp is not None
    patient = {"identifier": [{"system": ipp.fhir_system, "value": "1"}]}
    assert [site.key for site in sites.owners(patient)] == ["ch-demo"]
    managed = patient | {"managingOrganization": {"reference": "Organization/autre"}}
    assert [site.key for site in sites.owners(managed)] == ["ch-demo", "autre"]
    assert sites.owners({}) == ()


def test_a_site_is_an_organization_and_naming_systems_that_hold_as_fhir() -> None:
    site = load_sites([table()]).default
    resources = [organization(site), *naming_systems(site)]
    assert len(resources) == 5
    for resource in resources:
        assert [f for f in check(resource) if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mode": "maybe"}, "mode"),
        ({"finess_eg": "12"}, "finess_eg"),
        ({"name": ""}, "`name` is missing"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"colour": "blue"}, "unknown key `colour`"),
        ({"namespaces": [{"name": "x", "kind": "INS-NIR", "hd": ["a", "b", "c"], "oid": "1.2"}]}, "namespace kind"),
        ({"namespaces": [{"name": "x", "kind": "PI", "hd": ["a"], "oid": "1.2"}]}, "hd"),
    ],
)
def test_a_wrong_record_names_the_site_and_the_key(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load_sites([table() | change])


def test_two_sites_cannot_claim_the_same_namespace() -> None:
    with pytest.raises(ConfigError, match="is declared by"):
        load_sites([table(), table() | {"key": "other"}])


def test_a_server_without_a_site_says_how_to_declare_one() -> None:
    with pytest.raises(ConfigError, match=r"config init"):
        load_sites([])


def test_overseas_sites_have_their_own_time_zone() -> None:
    assert load_sites([table() | {"time_zone": "Indian/Reunion"}]).default.time_zone == "Indian/Reunion"
