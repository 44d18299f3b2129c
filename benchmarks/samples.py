"""What is measured on: Synthea's transaction Bundles from the shared data, or a small set of our own without them.

Source of the data: samply/blaze (Apache-2.0), 120 synthetic patients, 92,114 R4 resources in 122 Bundles.
"""

from __future__ import annotations

import bz2
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "synthea-92k"
Resource = dict[str, Any]


def described() -> str:
    """One sentence on the data in use."""
    if _files():
        return "Data: Synthea, 120 patients, 92,114 resources in 122 Bundles (samply/blaze, Apache-2.0)."
    return "Data: a few resources of our own (the shared Synthea Bundles are not beside this checkout)."


@cache
def _files() -> tuple[Path, ...]:
    return tuple(sorted(FOLDER.glob("*.json.bz2")))


def directory() -> list[bytes]:
    """The Bundles of hospitals and practitioners that the patients' Bundles refer to by condition."""
    return [bz2.decompress(path.read_bytes()) for path in _files() if path.name.startswith("0-")]


def patients(most: int) -> list[bytes]:
    """Up to `most` patients' transaction Bundles, in a fixed random order."""
    paths = [path for path in _files() if not path.name.startswith("0-")]
    if not paths:
        return [json.dumps(_own_bundle(number)).encode() for number in range(min(most, 3))]
    random.Random(1).shuffle(paths)
    return [bz2.decompress(path.read_bytes()) for path in paths[:most]]


@cache
def _some(bundles: int) -> tuple[Resource, ...]:
    found: list[Resource] = []
    for raw in patients(bundles):
        found.extend(entry["resource"] for entry in json.loads(raw)["entry"])
    return tuple(found)


def resources(most: int) -> list[Resource]:
    """A random sample of the patients' resources, types as frequent as they come; floats as the stdlib reads them."""
    everything = list(_some(12 if most > 100 else 2))
    random.Random(2).shuffle(everything)
    return everything[:most]


def of_type(kind: str, most: int) -> list[Resource]:
    """Resources of one type, in a fixed order."""
    return [resource for resource in _some(12 if most > 100 else 2) if resource["resourceType"] == kind][:most]


def texts(chosen: Sequence[Resource]) -> list[bytes]:
    """The resources as compact JSON."""
    return [json.dumps(resource, ensure_ascii=False, separators=(",", ":")).encode() for resource in chosen]


def _own_bundle(number: int) -> Resource:
    patient = {
        "resourceType": "Patient",
        "id": f"p{number}",
        "identifier": [{"system": "urn:oid:2.25.1", "value": f"P-{number}"}],
        "name": [{"use": "official", "family": f"Essai{number}", "given": ["Alix", "Noor"]}],
        "gender": "female",
        "birthDate": "1980-02-29",
    }
    entries = [_entry(patient, "Patient")]
    entries += [_entry(_own_observation(number, step), "Observation") for step in range(8)]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def _own_observation(number: int, step: int) -> Resource:
    return {
        "resourceType": "Observation",
        "id": f"o{number}-{step}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "29463-7", "display": "Body weight"}]},
        "subject": {"reference": f"urn:uuid:{number:08d}-0000-4000-8000-{0:012d}"},
        "effectiveDateTime": f"2026-01-{step + 1:02d}T08:30:00+01:00",
        "valueQuantity": {"value": 70.25 + step, "unit": "kg", "system": "http://unitsofmeasure.org", "code": "kg"},
    }


def _entry(resource: Resource, url: str) -> Resource:
    key = resource["id"].partition("-")
    place = int(key[2]) + 1 if key[2] else 0
    number = int(key[0][1:])
    full = f"urn:uuid:{number:08d}-0000-4000-8000-{place:012d}"
    return {"fullUrl": full, "resource": resource, "request": {"method": "POST", "url": url}}
