"""HL7 v2 in over real MLLP: every event through a server's own listeners, and each port keeps its promise."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fhir_server.app import Server
from fhir_server.changes import plan_of
from fhir_server.config import ConfigError, Settings
from fhir_server.context import SYSTEM
from fhir_server.delivery.intake import HANDLERS
from fhir_server.delivery.ports import load_ports
from fhir_server.patients.sites import load_sites
from fhir_server.store.inbox import InboxFilter, InboxRow
from hl7v2 import ack, mllp
from hl7v2.ack import Ack

sys.path.append(str(Path(__file__).parents[1] / "unit" / "fhir_server"))
from sylve import DATA, IPP, SITE, person, sample

from fhir_server.demo.run import SITES

PORTS = (
    {"port": 0, "name": "stored", "answer": "stored"},
    {"port": 0, "name": "validated", "answer": "validated"},
    {"port": 0, "name": "enhanced", "mode": "enhanced"},
    {"port": 0, "name": "base", "refusals": "base", "a08": "refuse"},
)
ORDER = (
    "adt-a28", "adt-a31", "adt-a14", "adt-a27", "adt-a05", "adt-a38", "adt-a04", "adt-a01-admission", "adt-a02",
    "adt-a12", "adt-a54", "adt-a55", "adt-a15", "adt-a26", "adt-a16", "adt-a25", "adt-a21", "adt-a52", "adt-a22",
    "adt-a53", "adt-a06", "adt-a07", "adt-a03", "adt-a13", "adt-z99", "adt-a11", "adt-a40-fusion", "adt-a47",
    "orm-o01-tlr-demande", "omi-o23", "orm-o01-tlr-annulation", "oru-r01-biologie", "mdm-t02", "mdm-t10",
    "siu-s12", "siu-s13", "siu-s14", "siu-s15",
)  # fmt: skip

SOMEBODY = (
    ("000417^", "000600^"),
    ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "MARTIN^Luc^Luc"),
    ("19840523|F", "19700101|M"),
    ("V2026-0417", "V7"),
    ("~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS", ""),
)
MOVED = (("MRG|000399^", "MRG|000600^"), ("26000099^^^CH-SYLVE&990001234&M^AN", ""), ("V2026-0099", "V7"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    site = dict(SITES[0]) | SITE
    settings: dict[str, Any] = {"auth": "none", "http_port": 0, "dicom_port": 0, "mllp_port": 0}
    made = Server(Settings(**settings, data_dir=str(tmp_path), sites=(site,), hl7_ports=PORTS))
    made.start()
    yield made
    made.close()


def say(server: Server, raw: bytes, port: int = 0) -> Ack:
    """One message over TCP to the port of that place (0 = mllp_port, then the tables in order)."""
    return ack.read(mllp.send(("127.0.0.1", list(server.bound.hl7.values())[port]), raw, timeout=30.0))


def rows(server: Server, **wanted: Any) -> list[InboxRow]:
    with server.hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter(**wanted, limit=500))


def count(server: Server, kind: str) -> int:
    with server.hub.store.read(SYSTEM) as snapshot:
        return len(snapshot.search(plan_of(kind, "")).matches)


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def named(prefix: str) -> str:
    return min(path.stem for path in DATA.glob(f"{prefix}*.er7"))


def test_every_event_is_taken_in_over_the_wire(server: Server) -> None:
    assert say(server, person("000399")).code == "AA"
    answers: dict[str, Ack] = {}
    for prefix in ORDER:
        name = named(prefix)
        changes = [("284056912345543^^^ASIP-SANTE-INS-NIA", "284056912345640^^^ASIP-SANTE-INS-NIR")]
        answers[name] = say(server, sample(name, *(changes if "a47" in name else [])))
    assert {name: told.text for name, told in answers.items() if told.code != "AA"} == {}
    say(server, person("000600"))
    assert say(server, sample("adt-a01-admission", *SOMEBODY)).code == "AA"
    assert say(server, sample("adt-a44-dossier-deplace", *MOVED)).code == "AA"
    done = {row.message_type for row in rows(server, state="done")}
    told_elsewhere = {"ADT^A08", "MDM^T04", "ZAM^Z01", "ZAM^Z02", "ZAM^Z03"}  # refused or unknown here, tested below
    assert set(HANDLERS) - done == told_elsewhere


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Server]:
    """A server whose port reads windows-1252, and one of its senders writes 8859/15 without saying so."""
    site = dict(SITES[0]) | SITE | {"sending_charsets": [["RIS", "CH-SYLVE", "8859/15"]]}
    settings: dict[str, Any] = {"auth": "none", "http_port": 0, "dicom_port": 0, "mllp_port": 0}
    made = Server(Settings(**settings, data_dir=str(tmp_path), sites=(site,)))
    made.start()
    yield made
    made.close()


def test_each_sender_is_read_in_its_own_character_set_on_one_port(mixed: Server) -> None:
    def family(ipp: str) -> str:
        with mixed.hub.store.read(SYSTEM) as snapshot:
            found = snapshot.search(plan_of("Patient", f"identifier={IPP}|{ipp}")).matches
            return str(found[0].resource()["name"][0]["family"])

    written = b"C\x8cUR-L\xc9GER"  # 0x8c is a letter in windows-1252 alone: it means nothing in 8859/15
    gam = person("000801").replace(b"MARTIN", written)
    assert say(mixed, gam).code == "AA"
    ris = person("000802").replace(b"MARTIN", b"C\xbcUR-L\xc9GER").replace(b"|GAM|", b"|RIS|", 1)
    assert say(mixed, ris).code == "AA"
    plain = person("000803").replace(b"MARTIN", "CŒUR-LÉGER".encode()).replace(b"|GAM|", b"|RIS|", 1)
    assert say(mixed, plain).code == "AA"
    assert [family(ipp) for ipp in ("000801", "000802", "000803")] == ["CŒUR-LÉGER"] * 3
    notes = [one.note for one in rows(mixed)]
    assert any("read as 8859/15" in note for note in notes) and any("read as windows-1252" in note for note in notes)


def test_the_same_frames_again_get_the_same_answers(server: Server) -> None:
    for name in ("adt-a01-admission", "oru-r01-biologie", "mdm-t04-lps-recu", "zam-z01-dmp-ok"):
        raw = sample(name)
        assert say(server, raw) == say(server, raw)
    assert [row.repeats for row in rows(server)] == [1, 1, 1, 1]


def test_a_port_that_stores_says_so_at_once_and_integrates_later(server: Server) -> None:
    assert say(server, sample("adt-a01-admission"), 1).code == "AA"
    broken = sample("adt-a01-admission", ("19840523", "yesterday"))
    assert say(server, broken, 1).code == "AA", "it is stored, no more was said"
    until(lambda: not rows(server, state="received"))
    assert {row.state for row in rows(server)} == {"done", "error"} and count(server, "Encounter") == 1
    assert say(server, broken, 1).code == "AE", "who asks again learns what became of it"


def test_what_was_stored_is_integrated_in_its_order(server: Server) -> None:
    for name in ("adt-a01-admission", "adt-a02-mutation", "adt-a03-sortie", "adt-a13-sortie-annulee"):
        assert say(server, sample(name), 1).code == "AA"
    until(lambda: not rows(server, state="received"))
    assert {row.state for row in rows(server)} == {"done"}
    with server.hub.store.read(SYSTEM) as snapshot:
        stay = snapshot.search(plan_of("Encounter", "")).matches[0].resource()
    assert stay["status"] == "in-progress"


def test_a_port_that_validates_refuses_what_is_broken_and_integrates_later(server: Server) -> None:
    told = say(server, sample("adt-a01-admission", ("19840523", "yesterday")), 2)
    assert (told.code, told.errors[0].code) == ("AE", "102")
    assert say(server, sample("adt-a11-annulation"), 2).code == "AA", "sound, though there is nothing to cancel"
    assert say(server, sample("adt-a01-admission"), 2).code == "AA"
    until(lambda: not rows(server, state="received"))
    assert sorted(row.state for row in rows(server)) == ["done", "error", "error"]


def test_an_enhanced_port_commits_and_then_answers(server: Server) -> None:
    raw = sample("adt-a01-admission", ("|FRA|UNICODE UTF-8", "|FRA|UNICODE UTF-8"))
    fields = raw.split(b"|")
    fields[14:16] = [b"AL", b"AL"]
    with socket.create_connection(("127.0.0.1", list(server.bound.hl7.values())[3]), timeout=20) as wire:
        wire.sendall(b"\x0b" + b"|".join(fields) + b"\x1c\r")
        got = b""
        while got.count(b"\x1c\r") < 2:
            got += wire.recv(65536)
    first, second = (ack.read(part.strip(b"\x0b\x1c\r")) for part in got.split(b"\x1c\r")[:2])
    assert (first.code, second.code) == ("CA", "AA")
    assert [(row.state, row.repeats) for row in rows(server)] == [("done", 0)], "journalled once"
    assert say(server, sample("adt-a02-mutation"), 3).code == "AA", "who asks for nothing gets one answer"


def test_a_base_port_rejects_what_it_does_not_support(server: Server) -> None:
    strange = sample("adt-a01-admission", ("ADT^A01^ADT_A01", "BAR^P01^BAR_P01"))
    assert say(server, strange).code == "AE"
    again = sample("adt-a01-admission", ("ADT^A01^ADT_A01", "BAR^P01^BAR_P01"))
    assert say(server, again, 4).code == "AR"
    assert say(server, sample("adt-a11-annulation"), 4).code == "AE", "204 is no matter of support"
    told = say(server, sample("adt-a01-admission", ("ADT^A01^ADT_A01", "ADT^A08^ADT_A01")), 4)
    assert (told.code, told.errors[0].code) == ("AR", "201")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"port": 1}, "`name` is missing"),
        ({"name": "x"}, "`port` must be"),
        ({"name": "x", "port": 2600, "anser": "stored"}, "unknown key `anser`"),
        ({"name": "x", "port": 2600, "answer": "soon"}, "one of stored, validated, integrated"),
        ({"name": "x", "port": 2600, "site": "nowhere"}, "no site `nowhere`"),
        ({"name": "x", "port": 2600, "charset": "utf-16"}, "a name of HL7 table 0211"),
        ({"name": "x", "port": 2600, "charset": "UNICODE UTF-8"}, "one byte a character"),
        ({"name": "x", "port": 2600, "charset": "ASCII"}, "one byte a character"),
        ({"name": "x", "port": 2575}, "declared twice"),
        ({"name": "x", "port": 2600, "security": "none"}, "weaker than mllp_security"),
    ],
)
def test_a_wrong_port_table_is_an_error_that_names_the_key(table: dict[str, Any], words: str) -> None:
    settings = Settings(hl7_ports=(table,), mllp_security="tls", sites=SITES)
    with pytest.raises(ConfigError, match=words):
        load_ports(settings, load_sites(SITES))


NATIONAL = {
    "adt-a01-consentement-dmp": "",
    "sgl-adt-a01-admission": "",
    "mdm-t02-initial": "",
    "mdm-t02-initial-base64": "205",  # the same TXA-12 as the one before: that document is here already
    "oru-r01-initial": "",
    "zam-z01-reception-dmp": "204",  # it speaks of a message this server never sent
    "mdm-t10-ack": "200",  # an acknowledgement, which nobody sends by itself
}
"""The national samples, each by a sender of its own: '' = AA, else the condition of the AE and why."""


@pytest.mark.needs("shared")
def test_the_national_samples_are_taken_in_or_refused_for_a_reason_we_can_state(server: Server, shared: Path) -> None:
    told = {}
    for number, name in enumerate(sorted(NATIONAL)):
        path = next(p for p in (shared / "ans-hl7v2").iterdir() if p.stem == name and p.suffix != ".xml")
        fields = path.read_bytes().replace(b"\n", b"\r").replace(b"\r\r", b"\r").split(b"|", 10)
        fields[9] = b"NAT%d" % number  # the samples share their control ids
        told[name] = say(server, b"|".join(fields))
    assert {name: answer.errors[0].code if answer.errors else "" for name, answer in told.items()} == NATIONAL
