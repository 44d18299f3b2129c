"""One accession number, one request: at once, in one Bundle, in any spelling; and images find it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import PARTNER, at_once, directory, hub_on, put, read, request

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.errors import Invalid
from fhir_server.patients.sites import load_sites
from fhir_server.search.index import rows as index_rows
from fhir_server.store.engine import Store
from fhir_server.store.instances import NewInstance
from fhir_server.teleexpertise.accession import accessions

Resource = dict[str, Any]
ACSN = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
PLAIN: dict[str, Any] = {"system": people.ACCESSION_SYSTEM}
TYPED = PLAIN | {"type": ACSN}
BARE: dict[str, Any] = {"type": ACSN}
FOREIGN = {"type": ACSN, "system": "urn:oid:1.2.3.4"}


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def numbered(key: str, value: str, form: Resource) -> Resource:
    return request(key, status="draft", identifier=[form | {"value": value}])


def numbers(hub: Hub, key: str) -> list[str]:
    return [i["value"] for _, i in accessions(read(hub, f"ServiceRequest/{key}"), load_sites(SITES))]


def test_of_two_requests_with_one_number_at_once_one_is_stored(
    open_url: Callable[..., Store], database_url: str
) -> None:
    hub = directory(hub_on(open_url(database_url)))
    forms = (TYPED, PLAIN, BARE, TYPED)
    for round_ in range(4):
        keys = [f"r{round_}-{n}" for n in range(len(forms))]
        works = [
            functools.partial(put, hub, PARTNER, numbered(key, f"N{round_}", form))
            for key, form in zip(keys, forms, strict=True)
        ]
        outcomes = at_once(*works)
        lost = [one for one in outcomes if isinstance(one, Exception)]
        assert len(lost) == len(forms) - 1
        assert all(isinstance(one, Invalid) and "another request" in one.diagnostics for one in lost), lost
        assert sum(hubs.stored(hub, f"ServiceRequest/{key}") is not None for key in keys) == 1


@pytest.mark.parametrize("first", [TYPED, PLAIN, BARE])
@pytest.mark.parametrize("second", [TYPED, PLAIN, BARE])
def test_a_number_in_any_spelling_is_one_number(hub: Hub, first: Resource, second: Resource) -> None:
    put(hub, PARTNER, numbered("r", "N1", first))
    with pytest.raises(Invalid) as told:
        put(hub, PARTNER, numbered("s", "N1", second))
    assert told.value.issues[0].expression == "ServiceRequest.identifier[0].value"
    put(hub, PARTNER, numbered("r", "N1", first) | {"priority": "urgent"})


def test_two_requests_of_one_bundle_share_no_number(hub: Hub) -> None:
    with pytest.raises(Invalid, match="another request"):
        put(hub, PARTNER, numbered("r", "N1", TYPED), numbered("s", "N1", PLAIN))
    put(hub, PARTNER, numbered("r", "N1", TYPED), numbered("s", "N2", PLAIN))


def test_the_same_number_of_another_system_is_another_number(hub: Hub) -> None:
    put(hub, PARTNER, numbered("r", "N1", TYPED))
    put(hub, PARTNER, numbered("s", "N1", FOREIGN))
    with pytest.raises(Invalid):
        put(hub, PARTNER, numbered("t", "N1", FOREIGN))


@pytest.mark.parametrize("form", [TYPED, PLAIN, BARE, FOREIGN])
def test_a_number_that_is_brought_is_not_doubled_by_ours(hub: Hub, form: Resource) -> None:
    put(hub, PARTNER, numbered("r", "N1", form))
    assert numbers(hub, "r") == ["N1"]


def test_a_number_of_our_own_that_somebody_took_is_not_given_twice(hub: Hub) -> None:
    put(hub, PARTNER, request("s", status="draft"))
    ours = numbers(hub, "s")[0]
    put(hub, PARTNER, read(hub, "ServiceRequest/s") | {"identifier": [TYPED | {"value": "MINE"}]})
    put(hub, PARTNER, numbered("thief", ours, PLAIN))
    put(hub, PARTNER, read(hub, "ServiceRequest/s") | {"identifier": [{"system": "urn:x", "value": "y"}]})
    assert numbers(hub, "s") != [ours] and len(numbers(hub, "s")) == 1
    assert len(numbers(hub, "s")[0]) <= 16


@pytest.mark.parametrize("form", [PLAIN, TYPED, BARE])
def test_a_request_lets_the_images_of_its_number_be_matched_again(hub: Hub, form: Resource) -> None:
    uid = "2.25.1"
    image = NewInstance(
        sop_uid="2.25.3", study_uid=uid, series_uid="2.25.2", sop_class="1.2", transfer_syntax="1.2", blob="0" * 64,
        size=1, data_sha256="0" * 64, header="{}", accession="N1",
    )  # fmt: skip
    hub.store.write(hubs.SYSTEM, lambda tx: tx.add_instance(image))
    with hub.store.read(hubs.SYSTEM) as snapshot:
        study = snapshot.study(uid)
    assert study is not None
    hub.store.write(hubs.SYSTEM, lambda tx: tx.settle_study(study, match_state="unmatched"))
    put(hub, PARTNER, numbered("r", "N1", form))
    with hub.store.read(hubs.SYSTEM) as snapshot:
        again = snapshot.study(uid)
    assert again is not None and again.dirty


# --- requests that are no téléexpertise ------------------------------------------------------------------------------


def order(key: str, value: str, form: Resource, **more: Any) -> Resource:
    """Anybody's order, outside any téléexpertise."""
    out = {name: found for name, found in numbered(key, value, form).items() if name != "category"}
    return out | {"status": "active"} | more


@pytest.mark.parametrize("form", [TYPED, PLAIN, BARE])
def test_an_order_takes_no_number_of_a_case(hub: Hub, form: Resource) -> None:
    hubs.asked(hub)
    ours = numbers(hub, "r")[0]
    with pytest.raises(Invalid, match="another request") as told:
        put(hub, PARTNER, order("thief", ours, form))
    assert told.value.issues[0].code == "duplicate"
    put(hub, PARTNER, order("o", "N1", form))
    with pytest.raises(Invalid, match="another request"):
        put(hub, PARTNER, numbered("t", "N1", TYPED))
    put(hub, PARTNER, order("f", ours, FOREIGN))
    assert "identifier" not in read(hub, "ServiceRequest/o") or len(read(hub, "ServiceRequest/o")["identifier"]) == 1


def test_a_case_whose_number_somebody_else_has_by_now_goes_on(hub: Hub) -> None:
    hubs.asked(hub)
    thief = order("thief", numbers(hub, "r")[0], PLAIN)
    hub.store.write(hubs.SYSTEM, lambda tx: tx.create(thief, index_rows(thief)))
    hubs.take(hub)
    put(hub, hubs.EXPERT, hubs.opinion(hub))
    put(hub, PARTNER, thief | {"priority": "urgent"})
    with pytest.raises(Invalid, match="another request"):
        put(hub, PARTNER, numbered("new", numbers(hub, "r")[0], TYPED))


@pytest.mark.parametrize("value", ["N1 ", " N1", "N1\u00a0", "N\u00a01", "X\\Y", "N\u200b1", "N\t1", "N" * 17])
@pytest.mark.parametrize("make", [numbered, order])
def test_a_number_that_dicom_would_not_carry_as_it_is_is_refused(
    hub: Hub, value: str, make: Callable[..., Resource]
) -> None:
    for form in (TYPED, BARE):
        with pytest.raises(Invalid) as told:
            put(hub, PARTNER, make("r", value, form))
        assert told.value.issues[0].expression == "ServiceRequest.identifier[0].value"
    put(hub, PARTNER, make("r", "N 1-é", TYPED))
