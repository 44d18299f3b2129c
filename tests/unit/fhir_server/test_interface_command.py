"""`passerelle interface-document`: the page of a destination that is stored, and what it says of one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import hubs
import pytest
from test_orders import asks_for

from fhir_server import cli
from fhir_server.context import SYSTEM
from fhir_server.store.engine import open_store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    store = open_store(f"sqlite:///{tmp_path / 'data' / 'passerelle.db'}", tmp_path / "data")
    hub = hubs.directory(hubs.hub_on(store))
    quiet = asks_for("images", id="quiet")
    hubs.put(hub, SYSTEM, asks_for("lps-1.1", "tlr-1.0"), quiet)
    store.close()
    return str(tmp_path / "data")


def test_the_document_of_a_destination_names_all_its_profiles(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["interface-document", "dpi", "--data-dir", folder]) == 0
    text = capsys.readouterr().out
    assert "profile `lps-1.1`" in text and "profile `tlr-1.0`" in text
    assert "`DPI`, `CH-DEMO`" in text and "mllp://127.0.0.1:9?" in text and "the same bytes go again" in text
    assert cli.main(["interface-document", "Endpoint/dpi", "--data-dir", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["markdown"] == text


@pytest.mark.parametrize(("key", "told"), [("nobody", "is not known here"), ("quiet", "asks for no HL7 v2 message")])
def test_what_is_no_hl7_destination_is_told(
    folder: str, key: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["interface-document", key, "--data-dir", folder]) == 1
    assert told in capsys.readouterr().err
