"""A server that is killed while clients send transaction Bundles: every Bundle is there whole, or not at all.

A Bundle that was answered is there. One that was cut off may be there: then with every entry, its references, index
rows, journal and audit rows. Sources: https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from house import House

from fhir_server.context import SYSTEM
from fhir_server.search import index
from fhir_server.search.rows import IndexRows
from fhir_server.store.check import check
from fhir_server.store.engine import open_store
from fhir_server.teleexpertise.scopes import scopes

CLIENTS, OBSERVATIONS, PLACES = 4, 3, 3
SYSTEM_URI = "urn:oid:1.2.250.1.999.1"
TURNS, KILLS = 10, 20


@dataclass
class Client:
    """One client: sends Bundles one after the other, and remembers which were answered and which were cut off."""

    number: int
    port: int
    dice: random.Random
    answered: set[int] = field(default_factory=set)
    unsure: set[int] = field(default_factory=set)
    moved: int = -1
    tried: int = -1
    fault: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        try:
            number = 0
            while not stop.is_set():
                if self.dice.random() < 0.7:
                    self._send_new(number)
                    number += 1
                else:
                    self._send_move()
        except BaseException as fault:
            self.fault = fault

    def _send_new(self, number: int) -> None:
        """A patient with observations that refer to it by the Bundle's own addresses."""
        name = f"{self.number}-{number}"
        identifier = [{"system": SYSTEM_URI, "value": name}]
        patient = {"resourceType": "Patient", "identifier": identifier, "name": [{"family": f"Test{name}"}]}
        address = f"urn:uuid:00000000-0000-4000-8000-{self.number:04}{number:08}"
        entries = [_post(patient, address)]
        for part in range(OBSERVATIONS):
            observation = {
                "resourceType": "Observation",
                "identifier": identifier,
                "status": "final",
                "code": {"coding": [{"system": "http://loinc.org", "code": f"{part}-0"}]},
                "subject": {"reference": address},
                "valueInteger": part,
            }
            entries.append(_post(observation))
        self.dice.shuffle(entries)
        self.unsure.add(number)
        if self._sent(entries):
            self.unsure.discard(number)
            self.answered.add(number)

    def _send_move(self) -> None:
        """The same places get the next number, all of them or none."""
        self.tried += 1
        entries = []
        for part in range(PLACES):
            key = f"place-{self.number}-{part}"
            place = {"resourceType": "Location", "id": key, "name": f"number {self.tried}", "status": "active"}
            entries.append({"resource": place, "request": {"method": "PUT", "url": f"Location/{key}"}})
        if self._sent(entries):
            self.moved = self.tried

    def _sent(self, entries: list[dict[str, Any]]) -> bool:
        """Whether the server answered that it did; False when it died, or said it could not now."""
        body = json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/fhir", body, {"Content-Type": "application/fhir+json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            threading.Event().wait(0.02)  # it is being started again
            return False
        finally:
            connection.close()
        assert answer.status == 200 or answer.status >= 500, text
        return answer.status == 200


def _post(resource: dict[str, Any], address: str = "") -> dict[str, Any]:
    request = {"method": "POST", "url": resource["resourceType"]}
    return {"resource": resource, "request": request} | ({"fullUrl": address} if address else {})


def progressed(clients: list[Client], by: int) -> None:
    """Waits until that many more Bundles were answered."""
    before, deadline = sum(len(one.answered) for one in clients), time.monotonic() + 60
    while sum(len(one.answered) for one in clients) < before + by:
        assert time.monotonic() < deadline, "no Bundle is answered any more"
        assert not any(one.fault for one in clients), [one.fault for one in clients]
        threading.Event().wait(0.005)


def killed(house: House, kills: int, seed: int, first: int = 0) -> list[Client]:
    """Clients send while the server is killed that often; at the end it is dead. `first` is the first one's number."""
    dice = random.Random(seed)
    port = house.ports["http"]
    clients = [Client(number, port, random.Random(dice.random())) for number in range(first, first + CLIENTS)]
    stop = threading.Event()
    threads = [threading.Thread(target=one.run, args=(stop,)) for one in clients]
    house.start()
    for thread in threads:
        thread.start()
    try:
        for _ in range(kills):
            progressed(clients, dice.randint(1, 12))
            threading.Event().wait(dice.random() * 0.05)
            house.kill()
            house.start()
        progressed(clients, CLIENTS)
    finally:
        stop.set()
        house.kill()
        for thread in threads:
            thread.join(60)
    assert [one.fault for one in clients if one.fault] == []
    return clients


def extract(resource: dict[str, Any]) -> IndexRows:
    rows = index.rows(resource)
    rows.scopes = scopes(resource)
    return rows


def quiet(url: str) -> None:
    """Waits for the end of what the killed server's connections still did."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 20
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(sql).fetchone() != (0,):
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)


def verify(house: House, url: str, clients: list[Client]) -> int:
    """Everything the clients know of is there, everything is whole, and the store agrees with itself; how many
    Bundles were cut off and yet are there."""
    if url.startswith("postgresql"):
        quiet(url)
    store = open_store(url, house.folder / "data", migrate=False)
    try:
        report = check(store, extract, deep=True)
        assert report.ok, report.problems
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        places: dict[str, set[str]] = defaultdict(set)
        with store.read(SYSTEM) as snapshot:
            rows = snapshot.view.db.rows(
                "SELECT text FROM resource WHERE deleted = 0 AND type IN ('Patient', 'Observation', 'Location')"
            )
        for (text,) in rows:
            resource = json.loads(text)
            if resource["resourceType"] == "Location" and resource["id"].startswith("place-"):
                places[resource["id"].rsplit("-", 1)[0]].add(resource["name"])
            elif resource.get("identifier", [{}])[0].get("system") == SYSTEM_URI:
                found[resource["identifier"][0]["value"]].append(resource)
    finally:
        store.close()
    for name, resources in found.items():
        _whole(name, resources)
    late = 0
    for one in clients:
        known = {int(name.split("-")[1]) for name in found if name.split("-")[0] == str(one.number)}
        assert one.answered <= known <= one.answered | one.unsure
        late += len(known & one.unsure)
        numbers = places.get(f"place-{one.number}", set())
        assert len(numbers) <= 1, "the places of one Bundle say different numbers"
        said = int(numbers.pop().split()[1]) if numbers else -1
        assert one.moved <= said <= one.tried
    return late


def _whole(name: str, resources: list[dict[str, Any]]) -> None:
    kinds = [resource["resourceType"] for resource in resources]
    assert sorted(kinds) == ["Observation"] * OBSERVATIONS + ["Patient"], f"Bundle {name} is there in part: {kinds}"
    (patient,) = (resource for resource in resources if resource["resourceType"] == "Patient")
    for resource in resources:
        if resource is not patient:
            assert resource["subject"]["reference"] == f"Patient/{patient['id']}"
    assert sorted(r["valueInteger"] for r in resources if r is not patient) == list(range(OBSERVATIONS))


def house_and_url(build: Callable[..., House], story_database: str) -> tuple[House, str]:
    house = build(story_database)
    path: Path = house.folder / "data" / "passerelle.db"
    return house, story_database or f"sqlite:///{path}"


def test_bundles_are_whole_or_absent_after_a_few_kills(build: Callable[..., House], story_database: str) -> None:
    house, url = house_and_url(build, story_database)
    clients = killed(house, 2, seed=20261121)
    verify(house, url, clients)
    assert sum(len(one.answered) for one in clients) >= 6


@pytest.mark.long(minutes=18)
@pytest.mark.timeout(3600)
def test_bundles_are_whole_or_absent_after_many_kills(build: Callable[..., House], story_database: str) -> None:
    house, url = house_and_url(build, story_database)
    clients: list[Client] = []
    for turn in range(TURNS):
        clients += killed(house, KILLS, seed=turn, first=turn * CLIENTS)
        verify(house, url, clients)
    assert all(one.answered for one in clients)
