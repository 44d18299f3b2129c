"""HL7 v2 coming in while somebody else writes: what a message was decided on still stands when it is written, or it is
decided again; both orders, and both at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hubs import ADMIN, at_once, delete, found, meddled, put, read, results
from sylve import patient, person, sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, Caller
from fhir_server.delivery.intake_merges import unmerge
from fhir_server.errors import Conflict
from fhir_server.store.engine import Store
from fhir_server.store.session import Snapshot

SURVIVOR, GIVEN_UP = "000417", "000399"
INS = "~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
UNDER = (f"{SURVIVOR}^^^CH-SYLVE&990001234&N^PI{INS}", f"{GIVEN_UP}^^^CH-SYLVE&990001234&N^PI")
"""A message of the survivor turned into one of the person that is about to be given up."""
TRAITS = ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "LECOCQ^Noémie^Noémie")


class Elsewhere:
    """A store where something happens once, between the look a message is decided on and the next one."""

    def __init__(self, store: Store, meddle: Callable[[], object]) -> None:
        steps: list[Callable[[], object]] = [meddle, lambda: None]
        self._store, self._steps = store, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, caller: Caller) -> AbstractContextManager[Snapshot]:
        if self._steps:
            self._steps.pop()()
        return self._store.read(caller)


def between_looks(hub: Hub, meddle: Callable[[], object]) -> Hub:
    return dataclasses.replace(hub, store=Elsewhere(hub.store, meddle))  # type: ignore[arg-type]  # a stand-in


def before_writing(hub: Hub, meddle: Callable[[], object]) -> Hub:
    return meddled(hub, lambda _: meddle())


Moment = Callable[[Hub, Callable[[], object]], Hub]
MOMENTS = pytest.mark.parametrize("moment", [between_looks, before_writing], ids=lambda one: one.__name__)


@pytest.fixture
def hub(open_url: Callable[..., Store], database_url: str) -> Hub:
    return sylve(open_url(database_url))


def two(hub: Hub) -> tuple[str, str]:
    """The survivor and the record that is to be given up."""
    tell(hub, "adt-a01-admission")
    assert say(hub, person(GIVEN_UP, "LECOCQ", "Noémie", "19840523")).code == "AA"
    return f"Patient/{patient(hub)['id']}", f"Patient/{patient(hub, GIVEN_UP)['id']}"


def document(hub: Hub, number: str = "2.25.310001") -> None:
    assert say(hub, sample("mdm-t02-lps-recu", UNDER, TRAITS, ("2.25.310001", number))).code == "AA"


def merge(hub: Hub) -> None:
    tell(hub, "adt-a40-fusion")


def subjects(hub: Hub) -> list[str]:
    return [one["subject"]["reference"] for one in found(hub, "DocumentReference")]


@MOMENTS
def test_a_document_follows_a_merge_that_came_while_it_was_taken_in(hub: Hub, moment: Moment) -> None:
    survivor, _ = two(hub)
    document(moment(hub, lambda: merge(hub)))
    assert subjects(hub) == [survivor]


@MOMENTS
def test_a_merge_takes_along_what_came_while_it_was_decided(hub: Hub, moment: Moment) -> None:
    survivor, given_up = two(hub)
    merge(moment(hub, lambda: document(hub)))
    assert read(hub, given_up)["active"] is False
    assert subjects(hub) == [survivor]


@MOMENTS
def test_a_merge_is_parted_with_all_it_moved_or_not_at_all(hub: Hub, moment: Moment) -> None:
    """The list of what a merge moved grows no more once it was read: who parts it in between is told to look again."""
    survivor, given_up = two(hub)
    document(hub)
    merge(hub)
    (held,) = found(hub, "DocumentReference")
    changed = functools.partial(put, hub, SYSTEM, held | {"description": "relu"})
    with pytest.raises(Conflict):
        unmerge(moment(hub, changed), ADMIN, survivor, given_up)
    assert subjects(hub) == [survivor] and read(hub, given_up)["active"] is False
    unmerge(hub, ADMIN, survivor, given_up)
    assert subjects(hub) == [given_up]


@pytest.mark.parametrize("there", [True, False], ids=["known before", "new"])
@MOMENTS
def test_a_document_names_what_was_sent_whoever_wrote_under_its_name_meanwhile(
    hub: Hub, moment: Moment, there: bool
) -> None:
    two(hub)
    document(hub)
    (sent,) = found(hub, "Binary")
    if not there:
        for one in found(hub, "DocumentReference"):
            delete(hub, ADMIN, f"DocumentReference/{one['id']}")
        delete(hub, ADMIN, f"Binary/{sent['id']}")
    other = {"resourceType": "Binary", "id": sent["id"], "contentType": "text/plain", "data": "YXV0cmU="}
    document(moment(hub, lambda: put(hub, SYSTEM, other)), "2.25.310002")
    (kept,) = found(hub, "Binary")
    assert (kept["id"], kept["data"]) == (sent["id"], sent["data"]) and sent["data"] != other["data"]
    named = {one["content"][0]["attachment"]["url"] for one in found(hub, "DocumentReference")}
    assert named == {f"Binary/{sent['id']}"}


def test_a_document_and_a_write_under_its_name_at_once_end_in_one_order_or_the_other(hub: Hub) -> None:
    two(hub)
    document(hub)
    (sent,) = found(hub, "Binary")
    other = {name: value for name, value in sent.items() if name != "meta"} | {"data": "YXV0cmU="}
    for number in range(6):
        say_document = functools.partial(document, hub, f"2.25.3200{number}1")
        results(at_once(say_document, lambda: put(hub, SYSTEM, other)))
        (kept,) = found(hub, "Binary")
        last = kept["data"] == other["data"]  # the other came after it, or it replaced what came before
        assert last or kept["data"] == sent["data"]
        document(hub, f"2.25.3200{number}2")
        assert found(hub, "Binary")[0]["data"] == sent["data"]


def test_what_was_sent_under_a_name_is_of_the_kind_it_was_sent_as(hub: Hub) -> None:
    """The same bytes as a page of HTML would be shown as one."""
    two(hub)
    document(hub)
    (sent,) = found(hub, "Binary")
    held = {name: value for name, value in sent.items() if name != "meta"}
    put(hub, SYSTEM, held | {"contentType": "text/html"})
    document(hub, "2.25.310002")
    (kept,) = found(hub, "Binary")
    assert (kept["contentType"], kept["data"]) == (sent["contentType"], sent["data"])
    version = kept["meta"]["versionId"]
    document(hub, "2.25.310003")
    assert found(hub, "Binary")[0]["meta"]["versionId"] == version, "what is there already is not written again"


@MOMENTS
def test_a_result_names_no_stay_that_went_to_somebody_else_meanwhile(hub: Hub, moment: Moment) -> None:
    tell(hub, "adt-a01-admission")
    (stay,) = found(hub, "Encounter")
    assert say(hub, person("000500")).code == "AA"
    other = {"subject": {"reference": f"Patient/{patient(hub, '000500')['id']}"}}
    moved = functools.partial(put, hub, SYSTEM, stay | other)
    assert say(moment(hub, moved), sample("oru-r01-biologie")).code == "AA"
    named = [one.get("encounter", {}).get("reference") for one in found(hub, "DiagnosticReport")]
    assert named == [None]


@MOMENTS
def test_a_result_of_somebody_deleted_meanwhile_makes_a_record_anew(hub: Hub, moment: Moment) -> None:
    assert say(hub, person(SURVIVOR, "LECOCQ-MARAIS", "Noémie", "19840523")).code == "AA"
    first = patient(hub)["id"]
    raw = sample("oru-r01-biologie")
    assert say(moment(hub, lambda: delete(hub, ADMIN, f"Patient/{first}")), raw).code == "AA"
    (report,) = found(hub, "DiagnosticReport")
    assert report["subject"]["reference"] == f"Patient/{patient(hub)['id']}" != f"Patient/{first}"


def test_a_document_and_the_merge_of_its_patient_at_once_end_with_the_survivor(hub: Hub) -> None:
    survivor, _ = two(hub)
    for number in range(6):
        say_document = functools.partial(document, hub, f"2.25.3100{number}1")
        results(at_once(say_document, lambda: merge(hub)))
        assert subjects(hub) == [survivor] * (number + 1)
        unmerge(hub, ADMIN, survivor, f"Patient/{patient(hub, GIVEN_UP)['id']}")
