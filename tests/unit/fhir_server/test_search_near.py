"""Places near a point: distances along the sphere, across the date line and at the poles."""

from __future__ import annotations

import math
from operator import methodcaller

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import index, query
from fhir_server.store.engine import Store
from profiles import json_text

PLACES = {
    "paris": (48.8566, 2.3522),
    "lyon": (45.7640, 4.8357),
    "brest": (48.3904, -4.4861),
    "suva": (-18.1416, 178.4419),
    "wallis": (-13.2816, -176.1745),
    "pole": (90, 0),
    "vostok": (-78.4645, 106.8339),
}


def kilometres(one: tuple[float, float], other: tuple[float, float]) -> float:
    """By the angle between two vectors: another way than the server's."""
    (a, b), (c, d) = ((math.radians(part) for part in place) for place in (one, other))
    cosine = math.sin(a) * math.sin(c) + math.cos(a) * math.cos(c) * math.cos(b - d)
    return 6371.0088 * math.acos(max(-1.0, min(1.0, cosine)))


def put(store: Store) -> None:
    for key, (north, east) in PLACES.items():
        position = f'{{"latitude": {north}, "longitude": {east}}}'
        one = json_text.parse(f'{{"resourceType": "Location", "id": "{key}", "position": {position}}}')
        store.write(SYSTEM, methodcaller("create", one, index.rows(one)))


def near(store: Store, text: str) -> set[str]:
    with store.read(SYSTEM) as snapshot:
        return {one.id for one in snapshot.search(query.parse("Location", [("near", text)])).matches}


def test_every_place_within_the_distance_is_found(store: Store) -> None:
    put(store)
    points = [*PLACES.values(), (0.0, 0.0), (89.9, 180.0), (-90.0, 12.0), (-15.0, 179.99), (48.8, 2.1)]
    for point in points:
        for reach in (0, 10, 400, 900, 5000, 12000, 30000):
            expected = {key for key, place in PLACES.items() if kilometres(point, place) <= reach + 1e-3}
            assert near(store, f"{point[0]}|{point[1]}|{reach}|km") == expected, (point, reach)


def test_distances_have_units_and_alternatives(store: Store) -> None:
    put(store)
    assert near(store, "48.85|2.35|1000|m") == {"paris"}
    assert near(store, "48.85|2.35|300|m") == set()
    assert near(store, "48.85|2.35|260|[mi_i]") == {"paris", "lyon"}
    assert near(store, "48.85|2.35,45.76|4.83") == {"paris", "lyon"}
    assert near(store, "48.85|2.35|1e300|km") == set(PLACES)


@pytest.mark.parametrize("text", ["91|0|1|km", "0|181|1|km", "0|0|-1|km", "0|0|1|parsec", "0", "a|b", "0|0|1|km|x"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(errors.Invalid):
        query.parse("Location", [("near", text)])
