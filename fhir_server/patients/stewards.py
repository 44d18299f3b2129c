"""Whose a record is: which messages may change what is known of a person.

Hides which numbers are a sender's own. A message changes a record under a number of its own establishment, under any
number of a record which that establishment made and still manages (`managingOrganization`), or with the qualified INS
and the traits of the record; else the number of another establishment finds the person and no more.

Sources: RNIV (who assigns a number answers for the identity under it); référentiel INS.
"""

from __future__ import annotations

from collections.abc import Collection

from fhir_server.patients.identity import Key, Patient, qualified_ins
from fhir_server.patients.traits import agree
from mappers.identity import Site


def own_systems(site: Site) -> frozenset[str]:
    """The Identifier.system of the site's own patient numbers (PI)."""
    return frozenset(namespace.fhir_system for namespace in site.namespaces if namespace.kind == "PI")


def of_others(site: Site, keys: Collection[Key]) -> list[Key]:
    """The patient numbers among these that another establishment gives."""
    foreign = {namespace.fhir_system for namespace in site.foreign}
    return [key for key in keys if key[0] in foreign]


def is_own(site: Site, patient: Patient) -> bool:
    """Whether a record is the sender's: it has one of its numbers in force, or is managed by it."""
    own = own_systems(site)
    numbered = any(one.get("system") in own and one.get("use") != "old" for one in patient.get("identifier", ()))
    return numbered or _manages(site, patient)


def _manages(site: Site, patient: Patient) -> bool:
    """Whether a record is kept by a site: it made it, and nobody spoke of it under a number of their own since."""
    return bool(patient.get("managingOrganization", {}).get("reference") == f"Organization/{site.key}")


def speaks_for(site: Site, patient: Patient, keys: Collection[Key], *, old: bool = False) -> bool:
    """Whether a message under these numbers is its sender's word about a record. `old`: also under a number that the
    record keeps as old."""
    own, manages = own_systems(site), _manages(site, patient)
    held = {
        (one.get("system"), one.get("value")) for one in patient.get("identifier", ()) if old or one.get("use") != "old"
    }
    return any(key in held and (manages or key[0] in own) for key in keys)


def shares_ins(stored: Patient, incoming: Patient) -> bool:
    """Whether a message brings the qualified INS of a record, with traits that all agree."""
    ins = qualified_ins(stored)
    return ins is not None and ins == qualified_ins(incoming) and agree(stored, incoming)
