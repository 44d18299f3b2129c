"""The interface document of a port: what it says is what happens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sylve import say, sylve

from fhir_server import cli
from fhir_server.changes import Hub
from fhir_server.config import Settings
from fhir_server.delivery.intake import HANDLERS
from fhir_server.store.engine import Store, open_store
from hl7v2 import tables
from hl7v2.check import check
from hl7v2.message import parse
from mappers.interface_inbound import Door, inbound_document
from mappers.interface_inbound_sample import inbound

DOOR = Door(
    "dpi", "mllps://h:2575", "integrated", "enhanced", "base", "refuse", "mutual", "avis-echo", "10.0.0.0/8", "8859/15"
)


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def document(hub: Hub, **changes: str) -> str:
    return inbound_document(dataclasses.replace(DOOR, **changes), hub.sites.default, HANDLERS, "1.0")


def test_every_sample_is_sound_and_taken_in_in_the_order_shown(hub: Hub) -> None:
    for one in inbound(hub.sites.default):
        msg = parse(one.raw)
        assert check(msg) == [], msg.kind
        told = say(hub, one.raw)
        # Nobody sent the message that the business acknowledgement names.
        wanted = ("AE", "204") if msg.kind == "ZAM" else ("AA", "")
        assert (told.code, told.errors[0].code if told.errors else "") == wanted, (msg.kind, told)


def test_every_event_field_and_table_stands_in_the_document(hub: Hub) -> None:
    text = document(hub)
    for event in HANDLERS:
        kind, trigger = event.split("^")
        assert f"| {event}^{tables.STRUCTURES[kind][trigger].name} | " in text, event
    for one in inbound(hub.sites.default):
        for segment in parse(one.raw).segments:
            for number, value in segment.fields():
                assert not value.encoded or f"| {segment.name}-{number} | " in text, (segment.name, number)
    families = {event.split("^")[0] for event in HANDLERS}
    assert families == {parse(one.raw).kind for one in inbound(hub.sites.default)}, "each family has a sample"
    for told in ("mllps://h:2575", "client certificate", "10.0.0.0/8", "`GAM`, `CH-SYLVE`", "avis-echo", "| 901 |",
                 "CH-SYLVE&990001234&N = 2.25.990101", "| CA, CR |", "| AR | ERR-3 200 to 203",
                 "| tlr-1.0 |"):  # fmt: skip
        assert told in text, told


def test_the_address_is_the_public_one_when_there_is_one() -> None:
    from fhir_server.commands.interfaces import _host

    assert _host(Settings(bind="0.0.0.0", public_url="https://passerelle.ch-exemple.fr:8443/fhir")) == (
        "passerelle.ch-exemple.fr"
    )
    assert _host(Settings(bind="10.1.2.3")) == "10.1.2.3"


def test_the_document_says_what_this_port_promises(hub: Hub) -> None:
    text = document(hub, answer="stored", mode="original", refusals="french", a08="as-a31", security="none", group="")
    assert "taken in afterwards" in text and "CA, CR" not in text and "excludes it" not in text
    assert "| AE | ERR-3 200 to 203" in text and "client certificate" not in text


def test_the_document_names_the_character_sets_of_single_senders(hub: Hub) -> None:
    site = dataclasses.replace(hub.sites.default, sending_charsets=(("GAM", "CH-SYLVE", "8859/15"),))
    text = inbound_document(dataclasses.replace(DOOR, charset="windows-1252"), site, HANDLERS, "1.0")
    assert "else windows-1252; 8859/15 from `GAM`, `CH-SYLVE` |" in text


def test_a_production_site_shows_no_test_identity(hub: Hub) -> None:
    site = dataclasses.replace(hub.sites.default, mode="production", charset="8859/15", namespaces=())
    for one in inbound(site):
        msg = parse(one.raw)
        assert b"279035121518989" not in one.raw and msg.text("MSH-11") == "P"
    assert "| MSH-11 | P only |" in inbound_document(DOOR, site, HANDLERS, "1.0")


def test_the_command_writes_the_document_of_a_declared_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    open_store(f"sqlite:///{tmp_path / 'data' / 'passerelle.db'}", tmp_path / "data").close()
    words = ["--data-dir", str(tmp_path / "data"), "--mllp-port", "2599"]
    assert cli.main(["interface-document", "mllp:2599", *words]) == 0, capsys.readouterr()
    assert "# HL7 v2 interface: port 2599" in capsys.readouterr().out
    assert cli.main(["interface-document", "mllp:nobody", *words]) == 1
    assert "no port mllp:nobody is declared; known: mllp:2599" in capsys.readouterr().err
