"""Our own server before the judge: every check of the kit passes, those it cannot ask are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conformance import report, runner
from conformance.target import target
from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.demo.run import DEFAULTS

# Checks that are skipped because this version says it does not offer what they need: none.
SKIPPED: set[str] = set()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    settings = replace(
        Settings(**DEFAULTS), data_dir=str(tmp_path), http_port=0, mllp_port=0, dicom_port=0, smtp="", imap=""
    )
    running = Server(settings)
    yield running
    running.close()


def test_every_check_of_the_kit_passes(server: Server, free_port: Callable[[], int]) -> None:
    ports = server.start()
    judged = target(
        [
            f"fhir=http://127.0.0.1:{ports.http}/fhir",
            f"hl7v2=mllp://127.0.0.1:{ports.mllp}",
            f"dicom=dicom://PASSERELLE@127.0.0.1:{ports.dicom}",
        ]
    )
    runner.load()
    run = runner.run(judged)
    text = report.text(run)
    assert {r.id for r in run.results if r.status not in ("pass", "skip")} == set(), text
    assert {r.id for r in run.results if r.status == "skip"} == SKIPPED, text
