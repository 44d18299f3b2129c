"""Roles as processes on PostgreSQL, and what an operator does while they run: real processes, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from databases import empty_postgres, postgres_url  # noqa: F401 - fixtures
from house import _toml_site as toml_site
from house import demo_site

from conformance.peers.mllp import Peer
from fhir_server.demo import people
from fhir_server.demo.play import free_ports
from fhir_server.store.schema import upgrade
from hl7v2.message import parse

PEOPLE = {"structures", "professionals"}


@dataclass
class Crew:
    """The processes of one installation: each with its roles, all with one settings file."""

    folder: Path
    database_url: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def command(self, *words: str, expect: int = 0) -> str:
        """One command of the operator; its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "fhir_server.cli", *words, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment,
            check=False,
        )
        assert done.returncode == expect, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout if expect == 0 else done.stderr

    @property
    def config(self) -> Path:
        return self.folder / "passerelle.toml"

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PASSERELLE_")}

    def settle(self, **more: Any) -> None:
        """Write the settings file."""
        values = {
            "data_dir": str(self.folder / "data"),
            "database_url": self.database_url,
            "auth": "none",
            "retry_first_seconds": 0.3,
            "retry_cap_seconds": 1.0,
            "lease_seconds": 3.0,
            "stop_seconds": 10.0,
        } | more
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value != ""]
        self.config.write_text("\n".join(lines) + "\n" + toml_site(demo_site("ch-demo.mssante.fr")), encoding="utf-8")

    def start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "fhir_server.cli", "serve", "--config", str(self.config), "--verbose", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(self, name: str) -> None:
        """Until the process says that it is ready."""
        deadline = time.monotonic() + 40
        while "passerelle is ready" not in self.log(name):
            assert self.processes[name].poll() is None and time.monotonic() < deadline, self.log(name)[-3000:]
            time.sleep(0.05)

    def stop(self, name: str) -> float:
        """SIGTERM; the seconds it took to end with 0."""
        process, began = self.processes.pop(name), time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, self.log(name)[-3000:]
        return time.monotonic() - began

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(20)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Callable[[str], Crew]]:
    made: list[Crew] = []

    def make(database_url: str) -> Crew:
        made.append(Crew(tmp_path, database_url))
        return made[-1]

    yield make
    for one in made:
        one.close()


def call(port: int, method: str, path: str, body: Mapping[str, Any], who: str = "") -> dict[str, Any]:
    headers = {"content-type": "application/fhir+json"} | ({"authorization": f"Bearer demo:{who}"} if who else {})
    data = json.dumps(body).encode()
    message = urllib.request.Request(f"http://127.0.0.1:{port}/fhir/{path}", data, headers, method=method)
    with urllib.request.urlopen(message, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def fill(port: int, dpi: str) -> None:
    """The directory, one patient, and a request that waits for its expert, by the API at one port."""
    for resource in (*people.structures(dpi, "127.0.0.1:9"), *people.professionals(), people.patient(0)):
        call(port, "PUT", f"{resource['resourceType']}/{resource['id']}", resource)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/fhir/Organization/ch-demo", timeout=30) as answer:
        hospital = json.load(answer)
    call(port, "PUT", "Organization/ch-demo", hospital | {"endpoint": [{"reference": "Endpoint/dpi"}]})


def wait(what: str, look: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


@pytest.mark.needs("postgresql")
def test_two_api_and_two_worker_processes_share_one_database(
    crew: Callable[[str], Crew],
    empty_postgres: str,  # noqa: F811 - the fixture
) -> None:
    upgrade(empty_postgres)
    house = crew(empty_postgres)
    first, second, dpi = free_ports(3)
    house.settle()
    house.start("api-1", "--roles", "api", "--http-port", str(first))
    house.start("api-2", "--roles", "api", "--http-port", str(second))
    house.start("work-1", "--roles", "workers")
    house.start("work-2", "--roles", "workers,mailbox")
    for name in house.processes:
        house.wait(name)
    fill(first, f"127.0.0.1:{dpi}")
    peer = Peer(port=dpi, role="dpi").start()
    try:
        key = _delivery(empty_postgres, house.folder, f"mllp://127.0.0.1:{dpi}")
        wait("the delivery arrives", lambda: peer.received)
        assert parse(peer.received[0].raw).control_id == key
        wait("it is known as sent", lambda: _state(house, key) == "sent")
        assert len(peer.received) == 1
    finally:
        peer.close()
    with urllib.request.urlopen(f"http://127.0.0.1:{second}/fhir/Patient/patient-01", timeout=30) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{second}/metrics", timeout=30) as answer:
        assert b"passerelle_outbox_attempts_total 1" in answer.read()
    assert json.loads(house.command("check", "--json"))["ok"] is True
    for name in list(house.processes):
        assert house.stop(name) < 12, name


def _delivery(url: str, folder: Path, endpoint: str) -> str:
    """A delivery written by a process of no role at all: the workers hear of it through the database."""
    from fhir_server.context import SYSTEM, new_delivery_id
    from fhir_server.demo import story
    from fhir_server.store.engine import open_store
    from fhir_server.store.lanes import NewDelivery

    key = new_delivery_id()
    store = open_store(url, folder / "data", migrate=False)
    try:
        one = NewDelivery("Endpoint/dpi", endpoint, "mllp", story.admission(key), id=key)
        store.write(SYSTEM, lambda tx: tx.send(one))
    finally:
        store.close()
    return key


def _state(house: Crew, key: str) -> str:
    return str(json.loads(house.command("outbox", "show", key, "--json"))["state"])


@pytest.mark.needs("postgresql")
def test_a_worker_that_talks_to_a_silent_partner_stops_in_time_and_another_goes_on(
    crew: Callable[[str], Crew],
    empty_postgres: str,  # noqa: F811 - the fixture
) -> None:
    upgrade(empty_postgres)
    house = crew(empty_postgres)
    (dpi,) = free_ports(1)
    house.settle()
    house.start("work-1", "--roles", "workers")
    house.wait("work-1")
    silent = Peer(port=dpi, role="dpi", script=["silence"]).start()
    try:
        key = _delivery(empty_postgres, house.folder, f"mllp://127.0.0.1:{dpi}")
        wait("the message is with the partner", lambda: silent.received)
        assert house.stop("work-1") < 12
        house.start("work-2", "--roles", "workers")
        house.wait("work-2")
        wait("the same bytes come again", lambda: len(silent.received) == 2)
        wait("and are acknowledged", lambda: _state(house, key) == "sent")
        assert silent.received[0].raw == silent.received[1].raw
    finally:
        silent.close()


def test_on_sqlite_the_work_is_not_shared(crew: Callable[[str], Crew]) -> None:
    house = crew("")
    house.settle()
    assert "on SQLite one process does everything" in house.command("serve", "--roles", "api", expect=2)


def test_a_backup_of_a_running_server_is_restored_and_serves(crew: Callable[[str], Crew]) -> None:
    house = crew("")
    http, mllp, dicom = free_ports(3)
    ports = {"http_port": http, "mllp_port": mllp, "dicom_port": dicom}
    house.settle(**ports)
    house.start("all")
    house.wait("all")
    call(http, "PUT", "Patient/patient-01", people.patient(0))
    told = json.loads(house.command("backup", str(house.folder / "copy"), "--json"))
    assert told["damaged"] == [] and told["engine"] == "sqlite"
    assert json.loads(house.command("check", "--deep", "--json"))["ok"] is True
    assert "already serves" in house.command("restore", str(house.folder / "copy"), expect=1)
    assert house.stop("all") < 12
    shutil.rmtree(house.folder / "data")
    house.command("restore", str(house.folder / "copy"), "--verify")
    house.command("restore", str(house.folder / "copy"))
    assert house.command("db", "current").strip()
    house.start("again")
    house.wait("again")
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/fhir/Patient/patient-01", timeout=30) as answer:
        assert json.load(answer)["id"] == "patient-01"
    house.stop("again")
