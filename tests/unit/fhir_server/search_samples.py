"""What the oracle and the store are asked about: Synthea's patients, the official examples, and our own edges."""

from __future__ import annotations

import bz2
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

from oracle_values import UCUM, Key
from test_rest_examples import package

from fhir_server.search.rows import IndexRows
from fhir_server.store.session import Tx
from profiles import build

OWN = Path(__file__).resolve().parents[2] / "data" / "search" / "resources.json"


def create(part: list[tuple[dict[str, Any], IndexRows]], tx: Tx) -> None:
    """Some resources with their rows."""
    for one, found in part:
        tx.create(one, found)


def synthea(folder: Path, patients: int, others: int) -> list[dict[str, Any]]:
    """The smallest patients' files, some hospitals and practitioners, with references to one another made relative."""
    files = sorted(folder.glob("*.json.bz2"), key=lambda path: (path.stat().st_size, path.name))
    shared = [path for path in files if path.name.startswith("0-")]
    chosen = [path for path in files if path not in shared][:patients]
    found: list[dict[str, Any]] = []
    for path in shared:
        found += [entry["resource"] for entry in json.loads(bz2.decompress(path.read_bytes()))["entry"]][:others]
    for path in chosen:
        found += [entry["resource"] for entry in json.loads(bz2.decompress(path.read_bytes()))["entry"]]
    unique = {(one["resourceType"], one["id"]): one for one in found}
    names = {f"urn:uuid:{key}": f"{kind}/{key}" for kind, key in unique}
    numbered = {
        f"{kind}?identifier={i.get('system', '')}|{i['value']}": f"{kind}/{key}"
        for (kind, key), one in unique.items()
        for i in one.get("identifier", ())
        if "value" in i
    }
    every = {**names, **numbered}
    for one in unique.values():
        _relink(one, every)
    return list(unique.values())


def _relink(value: Any, names: dict[str, str]) -> None:
    if isinstance(value, dict):
        text = value.get("reference")
        if isinstance(text, str):
            value["reference"] = names.get(text, text)
        for inner in value.values():
            _relink(inner, names)
    elif isinstance(value, list):
        for inner in value:
            _relink(inner, names)


def dated() -> list[dict[str, Any]]:
    """Visits with dates that are short or long, open at an end or turned round, and up to three of them each."""
    dice = random.Random(5)
    found: list[dict[str, Any]] = []
    for n in range(60):
        stays = [{"location": {"reference": "Location/l1"}, "period": _stay(dice)} for _ in range(n % 4)]
        found.append(
            {"resourceType": "Encounter", "id": f"v{n}", "status": "finished", "class": {"code": "AMB"}}
            | {"period": _stay(dice), "location": stays, "subject": {"reference": f"Patient/p{n % 3}"}}
        )
    return found


def _stay(dice: random.Random) -> dict[str, str]:
    day = dice.choice((1, 2, 10, 11, 12, 28))
    first = f"2025-0{dice.choice((2, 3))}-{day:02}"
    last = dice.choice(
        (first, f"{first}T10:00:00+01:00", f"2025-03-{day:02}", "2025-03", "2026-01-01", "2025-02-01", "")
    )
    return {"start": first, "end": last} if last and dice.random() < 0.9 else {dice.choice(("start", "end")): first}


def own() -> list[dict[str, Any]]:
    """Our examples of every search type, and variations on them that meet at the edges."""
    found: list[dict[str, Any]] = json.loads(OWN.read_bytes())["entry"]
    for n, (amount, unit) in enumerate(
        [("5", "g/dL"), ("50", "g/L"), ("5.0", "g/dL"), ("49.4", "g/L"), ("5000", "mg/dL"), ("55", "g/L"), ("5", "mg")]
    ):
        measured = {"value": json.loads(amount, parse_float=Decimal), "unit": unit, "system": UCUM, "code": unit}
        subject = {"reference": ("Patient/p1", "Patient/e1", "Patient/e2")[n % 3]}
        day = ("2025", "2025-03", "2025-03-30", "2025-03-30T02:30:00+01:00", "2025-10-26T00:30:00Z")[n % 5]
        coded = {"coding": [{"system": "http://loinc.org", "code": "718-7", "display": "Hémoglobine"}]}
        found.append(
            {"resourceType": "Observation", "id": f"q{n}", "status": "final", "code": coded, "subject": subject}
            | ({"valueQuantity": measured} if n % 2 else {"component": [{"code": coded, "valueQuantity": measured}]})
            | {"effectiveDateTime": day}
        )
    for n, comparator in enumerate(("<", "<=", ">", ">=")):
        measured = {"value": 50, "comparator": comparator, "unit": "g/L", "system": UCUM, "code": "g/L"}
        found.append(
            {"resourceType": "Observation", "id": f"c{n}", "status": "final", "valueQuantity": measured}
            | {"code": {"text": "Hémoglobine"}, "effectivePeriod": {"start": f"2025-0{n + 1}"}}
        )
    for n, (code, day) in enumerate([("a", "2025-01"), ("b", "2025-01-02"), ("a", "2024")]):
        coded = {"coding": [{"system": "urn:c", "code": code}, {"system": "urn:d", "code": "x"}, {"code": code}]}
        said = {"coding": [{"system": "urn:v", "code": day}]}
        value = ({"valueDateTime": day}, {"valueCodeableConcept": said}, {"valueString": "Été $ 5,5"})
        part = {"code": coded, "valueCodeableConcept": said}
        found.append(
            {"resourceType": "Observation", "id": f"k{n}", "status": "final", "code": coded, "component": [part]}
            | value[n]
        )
        other = {"reference": f"DocumentReference/dr{(n + 1) % 3}"}
        related = [{"code": ("replaces", "appends")[n % 2], "target": other}]
        found.append({"resourceType": "DocumentReference", "id": f"dr{n}", "status": "current", "relatesTo": related})
        trait = {"code": coded, "valueCodeableConcept": said, "exclude": False}
        found.append({"resourceType": "Group", "id": f"g{n}", "type": "person", "characteristic": [trait]})
        use = {"code": {"system": "urn:u", "code": code}, "valueQuantity": {"value": n, "system": UCUM, "code": "kg"}}
        found.append({"resourceType": "Measure", "id": f"m{n}", "status": "draft", "useContext": [use]})
        place = {"chromosome": said, "referenceSeqId": coded, "windowStart": 10 * n, "windowEnd": 100 - n}
        spans = [{"start": 10 + n, "end": 20}, {"start": 30, "end": 40 + n}, {"start": 50}]
        found.append(
            {"resourceType": "MolecularSequence", "id": f"s{n}", "coordinateSystem": 0, "referenceSeq": place}
            | {"variant": spans}
        )
    found += _containing()
    names = [("Œuvrard", "Zoé"), ("oeuvrard", "ZOE"), ("L’Hôpital", "Jean-François"), ("50%_a", "\\b,c|d$e")]
    for n, (family, given) in enumerate(names):
        found.append(
            {"resourceType": "Patient", "id": f"e{n}", "name": [{"family": family, "given": [given]}]}
            | ({"birthDate": ("1955", "1955-06", "1955-06-15")[n]} if n < 3 else {})
            | {"link": [{"other": {"reference": f"Patient/e{(n + 1) % 4}"}, "type": "seealso"}]}
        )
    return found


def _containing() -> list[dict[str, Any]]:
    """Resources that hold others, which refer to one another and outwards."""
    found: list[dict[str, Any]] = []
    for n in range(6):
        coded = {"coding": [{"system": "urn:c", "code": "ab"[n % 2], "display": f"Produit {n}"}]}
        maker = {"resourceType": "Organization", "id": "o", "name": f"Pharmacie {n}", "partOf": {"reference": "#top"}}
        top = {"resourceType": "Organization", "id": "top", "name": "Groupe", "active": n % 2 == 0}
        made: dict[str, Any] = {"resourceType": "Medication", "id": "m", "code": coded, "status": "active"}
        made["manufacturer"] = {"reference": ("#o", "Organization/held-1", "#none")[n % 3]}
        person = {"resourceType": "Patient", "id": "p", "name": [{"family": f"Kerbrat{n}"}], "gender": "female"}
        asked: dict[str, Any] = {
            "resourceType": "MedicationRequest",
            "id": f"held-{n}",
            "status": "active",
            "intent": "order",
        }
        asked |= {"contained": [made, maker, top, person], "medicationReference": {"reference": "#m"}}
        asked["subject"] = {"reference": ("#p", "Patient/e1")[n % 2]}
        found += [asked, maker | {"id": f"held-{n}", "partOf": {"reference": f"Organization/held-{(n + 1) % 6}"}}]
    return found


def official(step: int = 1) -> list[dict[str, Any]]:
    """The official examples of R4, every `step`th, without the few that are very large."""
    found: dict[Key, dict[str, Any]] = {}
    for number, (_, data) in enumerate(build.files(package())):
        if number % step == 0 and len(data) < 200_000:
            one = json.loads(data, parse_float=Decimal)
            found.setdefault((one["resourceType"], one["id"]), one)
    return list(found.values())
