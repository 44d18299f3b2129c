"""Labels that come with an MDM or an ORU: set, kept by silence, lifted by N, and never lost."""

from __future__ import annotations

import pytest
from hubs import found, put
from sylve import patient, sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.freezing import CONFIDENTIALITY, VISIBILITY


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = sylve(store)
    tell(hub, "adt-a01-admission")
    return hub


def flag(name: str, answer: str) -> str:
    return f"OBX|90|CWE|{name}^^MetaDMPMSS||{answer}^^expandedYes-NoIndicator||||||F"


def flagged(name: str, *flags: str, without: str = "MetaDMPMSS") -> bytes:
    """A sample with other metadata."""
    lines = sample(name).decode().rstrip("\r").split("\r")
    return ("\r".join([*(one for one in lines if without not in one), *flags]) + "\r").encode()


def hidden(hub: Hub, kind: str = "DocumentReference") -> list[tuple[str, list[str]]]:
    """(status, codes) of each resource of a type."""
    told = []
    for one in found(hub, kind):
        labels = [code for label in one.get("securityLabel", ()) for code in label["coding"]]
        labels += one["meta"].get("security", [])
        assert all(label["system"] in (VISIBILITY, CONFIDENTIALITY) for label in labels)
        told.append((one["status"], [label["code"] for label in labels]))
    return sorted(told)


MASKED, UNSEEN = ("MASQUE_PS", "INVISIBLE_REPRESENTANTS_LEGAUX")


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ([], [MASKED, UNSEEN]),
        ([flag("MASQUE_PS", "N")], [UNSEEN]),
        ([flag("MASQUE_PS", "Y")], [UNSEEN, MASKED]),
        ([flag("MASQUE_PS", "N"), flag("INVISIBLE_REP_LEGAUX", "N"), flag("INVISIBLE_PATIENT", "Y")],
         ["INVISIBLE_PATIENT"]),
    ],
    ids=["silence", "one lifted", "said again", "others"],
)  # fmt: skip
def test_a_replacement_keeps_the_labels_it_does_not_speak_of(hub: Hub, said: list[str], left: list[str]) -> None:
    both = (flag("MASQUE_PS", "Y"), flag("INVISIBLE_REP_LEGAUX", "Y"))
    assert say(hub, flagged("mdm-t02-lps-recu", *both)).code == "AA"
    assert say(hub, flagged("mdm-t10-lps-recu", *said)).code == "AA"
    assert hidden(hub) == [("current", left), ("superseded", [MASKED, UNSEEN])]


def test_a_replacement_keeps_what_a_person_labelled(hub: Hub) -> None:
    tell(hub, "mdm-t02-lps-recu")
    (one,) = found(hub, "DocumentReference")
    both = [{"system": CONFIDENTIALITY, "code": "R"}, {"system": VISIBILITY, "code": MASKED}]
    put(hub, SYSTEM, one | {"securityLabel": [{"coding": both, "text": "à la demande du patient"}]})
    assert say(hub, flagged("mdm-t10-lps-recu", flag("MASQUE_PS", "N"))).code == "AA"
    assert hidden(hub)[0] == ("current", ["R"])


def test_a_withdrawal_keeps_and_sets_labels(hub: Hub) -> None:
    assert say(hub, flagged("mdm-t02-lps-recu", flag("MASQUE_PS", "Y"))).code == "AA"
    raw = flagged("mdm-t04-lps-recu", flag("INVISIBLE_PATIENT", "Y")).replace(b"2.25.310002", b"2.25.310001")
    assert say(hub, raw).code == "AA"
    assert hidden(hub) == [("entered-in-error", [MASKED, "INVISIBLE_PATIENT"])]


def test_the_labels_of_a_report_are_those_of_its_documents_too(hub: Hub) -> None:
    assert say(hub, flagged("oru-r01-biologie", flag("MASQUE_PS", "Y"))).code == "AA"
    assert hidden(hub) == [("current", [MASKED])]
    assert hidden(hub, "DiagnosticReport") == [("final", [MASKED])]
    assert len(found(hub, "Observation", f"subject=Patient/{patient(hub)['id']}")) == 7, "a label is no result"


@pytest.mark.parametrize(("said", "left"), [([], [MASKED]), ([flag("MASQUE_PS", "N")], [])], ids=["silence", "N"])
@pytest.mark.parametrize("without", ["MetaDMPMSS", "|ED|"], ids=["document again", "no document"])
def test_a_later_result_keeps_the_labels_unless_it_lifts_them(
    hub: Hub, said: list[str], left: list[str], without: str
) -> None:
    say(hub, flagged("oru-r01-biologie", flag("MASQUE_PS", "Y")))
    assert say(hub, flagged("oru-r01-biologie", *said, without=without)).code == "AA"
    assert hidden(hub) == [("current", left)]
    assert hidden(hub, "DiagnosticReport") == [("final", left)]


def test_a_document_that_a_masked_report_gets_later_is_masked(hub: Hub) -> None:
    say(hub, flagged("oru-r01-biologie", flag("MASQUE_PS", "Y"), without="|ED|"))
    assert hidden(hub) == []
    tell(hub, "oru-r01-biologie")
    assert hidden(hub) == [("current", [MASKED])]


def test_a_correction_without_its_document_leaves_its_label(hub: Hub) -> None:
    say(hub, flagged("oru-r01-biologie", flag("MASQUE_PS", "Y")))
    raw = flagged("oru-r01-biologie", without="|ED|").replace(b"|CH|F|", b"|CH|C|")
    assert say(hub, raw).code == "AA"
    assert hidden(hub) == [("superseded", [MASKED])]
    assert hidden(hub, "DiagnosticReport") == [("corrected", [MASKED])]


def test_of_two_rows_that_disagree_the_one_that_hides_counts(hub: Hub) -> None:
    assert say(hub, flagged("oru-r01-biologie", flag("MASQUE_PS", "Y"), flag("MASQUE_PS", "N"))).code == "AA"
    assert hidden(hub, "DiagnosticReport") == [("final", [MASKED])]


def test_a_label_behind_many_results_is_read(hub: Hub) -> None:
    rows = [f"OBX|{n}|NM|{n}-0^Dosage {n}^LN||1|||||F" for n in range(20, 300)]
    assert say(hub, flagged("oru-r01-biologie", *rows, flag("MASQUE_PS", "Y"))).code == "AA"
    assert hidden(hub, "DiagnosticReport") == [("final", [MASKED])]
