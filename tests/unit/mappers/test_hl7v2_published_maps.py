"""The shipped concept maps of HL7 v2-to-FHIR are the published ones; what a mapper adds to them is ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest

from mappers import hl7v2_pid_to_fhir as pid
from mappers import hl7v2_types_to_fhir as types
from mappers.fhir_to_hl7v2_orders import PRIORITIES
from mappers.hl7v2_codes_to_fhir import INTERPRETATIONS
from mappers.hl7v2_events_to_fhir import EVENTS
from mappers.hl7v2_orders_to_fhir import ACTIONS, PRIORITY, STATUS
from mappers.hl7v2_pv1_to_fhir import CLASSES
from mappers.hl7v2_results_to_fhir import OBSERVATION_STATUS, REPORT_STATUS
from mappers.hl7v2_schedule_to_fhir import STATUS as APPOINTMENTS
from profiles import build_v2_maps, v2_maps
from profiles.build_v2_maps import MAPS, BuildError

USED: Mapping[str, Mapping[str, str]] = {
    "AddressType[Type]": types.ADDRESS_TYPES,
    "AddressType[Use]": types.ADDRESS_USES,
    "AdministrativeSex": pid.GENDERS,
    "ExtendedPriorityCodes": PRIORITY,
    "FillerStatusCodes[Appointment]": APPOINTMENTS,
    "InterpretationCodes": INTERPRETATIONS,
    "MaritalStatus": pid.MARITAL,
    "NameType": types.NAME_USES,
    "ObservationResultStatusCodesInterpretation": OBSERVATION_STATUS,
    "PatientClass[EncounterClass]": CLASSES,
    "ResultStatus[Non-Queries]": REPORT_STATUS,
    "TelecommunicationEquipmentType": types.TELECOM_SYSTEMS,
    "TelecommunicationUseCode": types.TELECOM_USES,
}
_ACTED = "not asked of us by any flow of the téléradiologie guide: noted, not acted upon"
_OTHERS = ("AF", "CR", "DF", "DR", "FU", "HD", "HR", "OC", "OD", "OH", "OK", "PR", "PY", "RL", "RO", "RQ")
WORKFLOW: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "Event[EncounterStatus]": (
        {code: event.status for code, event in EVENTS.items()},
        {
            "A04": "in PAM France A04 is an outpatient who is here, not one who is planned",
        },
    ),
    "OrderControlCode[ServiceRequest.status]": (
        {code: STATUS[action] for code, action in ACTIONS.items()},
        {
            "NW": "an order carries no consent: it is a draft until somebody completes it",
            "CA": "the guide takes a request back by CA",
            **dict.fromkeys(_OTHERS, _ACTED),
        },
    ),
}
"""Tables of a workflow, which are more than a map of codes: ours, and where they differ from the published one."""


@pytest.mark.needs("shared")
def test_what_is_shipped_is_what_is_published(shared: Path, tmp_path: Path) -> None:
    build_v2_maps.build(shared / "v2-to-fhir" / "codesystems", tmp_path / "maps.json")
    assert (tmp_path / "maps.json").read_bytes() == v2_maps.DATA.read_bytes()


@pytest.mark.needs("shared")
@pytest.mark.parametrize("name", sorted(WORKFLOW))
def test_our_workflow_is_the_published_one_or_the_reason_is_listed(name: str, shared: Path) -> None:
    theirs = build_v2_maps.published(shared / "v2-to-fhir" / "codesystems", name)
    ours, reasons = WORKFLOW[name]
    assert {code for code, status in theirs.items() if ours.get(code, "") != status} == set(reasons)


@pytest.mark.parametrize("name", MAPS)
def test_a_mapper_works_from_each_shipped_map(name: str) -> None:
    theirs = v2_maps.published(name)
    same = {code for code, equivalent in theirs.items() if USED[name].get(code) == equivalent}
    assert len(same) >= len(theirs) / 3


def test_every_priority_we_send_is_a_published_one() -> None:
    assert set(PRIORITIES.values()) <= set(v2_maps.published("ExtendedPriorityCodes"))


def test_an_overlay_adds_changes_and_takes_away() -> None:
    overlay: v2_maps.Overlay = {"F": ("x", "changed"), "Z": ("z", "added"), "O": (v2_maps.NONE, "taken away")}
    table = v2_maps.table("AdministrativeSex", overlay)
    assert (table["F"], table["Z"], table["M"]) == ("x", "z", "male") and "O" not in table
    with pytest.raises(KeyError):
        v2_maps.table("NoSuchMap")


def test_an_overlay_says_only_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module with tables is read again, with an eye on what it hands over."""
    seen: list[tuple[str, v2_maps.Overlay]] = []
    whole = v2_maps.table

    def noted(name: str, overlay: v2_maps.Overlay | None = None) -> dict[str, str]:
        seen.append((name, overlay or {}))
        return whole(name, overlay)

    monkeypatch.setattr(v2_maps, "table", noted)
    for module in _with_tables():
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert {name for name, _ in seen} == set(MAPS)
    for name, overlay in seen:
        theirs = v2_maps.published(name)
        for code, (ours, reason) in overlay.items():
            assert theirs.get(code) != ours, (name, code)
            assert len(reason) > 15, (name, code)


def _with_tables() -> list[str]:
    folder = Path(pid.__file__).parent
    found = [path.stem for path in sorted(folder.glob("*.py")) if "v2_maps import" in path.read_text("utf-8")]
    return [f"mappers.{name}" for name in found]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("A,a,HL7,,,,x\nA,a,HL7,,,,y\n", "under a condition"),
        ("A,a,HL7,,,IF TRUE,x\n", "under a condition"),
        ("A,a,HL7,,,,\n", "no code"),
        (None, "No such file"),
    ],
)
def test_a_sheet_that_is_no_plain_map_is_refused(rows: str | None, why: str, tmp_path: Path) -> None:
    if rows is not None:
        (tmp_path / "HL7 Concept Map_ X - Sheet1.csv").write_text(f"HL7 v2\nCode\n{rows}", encoding="utf-8")
    with pytest.raises(BuildError, match=why):
        build_v2_maps.published(tmp_path, "X")
