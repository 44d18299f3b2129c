"""Topic `hl7-parse`: what it costs to read a message and to map it; and the messages that the HL7 topics send.

Every message has a new patient and a new control id.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import report
from benchmarks.mllp_load import Numbered
from benchmarks.rounds import Effort, Subject, Timing, measured
from hl7v2.message import parse

KEY = "bench-hl7"


def adt(number: int) -> bytes:
    """An admission of about 600 bytes about a patient of that number."""
    return (
        f"MSH|^~\\&|GAM|BENCH|PASSERELLE|BENCH|20260302083000||ADT^A01^ADT_A01|B{number:018d}|T|2.5^FRA^2.11|||||FRA"
        "|UNICODE UTF-8|||2.11^IHE_FRANCE-2.11-PAM\rEVN||20260302083000||||20260302083000\r"
        f"PID|||P{number:09d}^^^BENCH&2.25.4099&ISO^PI||LECOCQ^Noémie^Noémie^^^^L||19840523|F|||12 rue des Lilas^^"
        f"SYLVELANDE^^99123^FRA^H|||||||S{number:09d}^^^BENCH&2.25.4098&ISO^AN|||||||||||||N|PROV\r"
        f"PV1|1|I|CARDIO^201^1||||||||||||||||V{number:09d}^^^BENCH&2.25.4097&ISO^VN|||||||||||||||||||||||||20260302083000\r"
        f"ZBE|M{number:09d}^GAM^2.25.4096^ISO|20260302083000||INSERT|N||^^^^^^UF^^^CARDIO||HMS\r"
    ).encode()


def oru(number: int, enclosed: bytes = b"") -> bytes:
    """A laboratory result of ten observations; `enclosed` is a PDF carried as a further OBX."""
    lines = [
        f"MSH|^~\\&|LABO|BENCH|PASSERELLE|BENCH|20260302083000||ORU^R01^ORU_R01|R{number:018d}|T|2.5"
        "|||||FRA|UNICODE UTF-8",
        f"PID|1||Q{number:09d}^^^BENCH&2.25.4099&ISO^PI||LECOCQ^Noémie^^^^^L||19840523|F|||||||||||||||||||||||PROV",
        "PV1|1|N",
        f"ORC|RE||F{number:09d}^^2.25.4095^ISO",
        f"OBR|1||F{number:09d}^^2.25.4095^ISO|24323-8^Bilan^LN|||20260302080000|||||||||||||||20260302083000||CH|F",
    ]
    lines += [
        f"OBX|{n}|NM|{2000 + n}-3^Analyse {n}^LN||{n}.20|mmol/L|1.0-9.0|N^Normal^HL70078|||F" for n in range(1, 11)
    ]
    head = ("\r".join(lines) + "\r").encode()
    return head + _BEFORE + enclosed + _BEHIND if enclosed else head


_BEFORE = b"OBX|11|ED|11502-2^Compte rendu^LN||^application^pdf^Base64^"
_BEHIND = b"||||||F\r"


def numbered(number: int, enclosed: bytes = b"") -> Numbered:
    """The admission of that number, or the result that carries what is enclosed, as it is sent."""
    if enclosed:
        return b"R%018d" % number, (oru(number) + _BEFORE, enclosed, _BEHIND)
    return b"B%018d" % number, (adt(number),)


def parse_topic(effort: Effort) -> report.Report:
    """Parsing and mapping one ADT and one ORU, beside the public Python parsers, which map nothing."""
    from mappers.hl7v2_results_to_fhir import results
    from mappers.hl7v2_to_fhir import adt as read_adt

    site = _site()
    kinds: tuple[tuple[str, bytes, Callable[[Any, Any], object]], ...] = (
        ("ADT", adt(1), read_adt),
        ("ORU", oru(1), results),
    )
    subjects: list[Subject] = []
    absent = [name for name in ("hl7apy", "hl7") if importlib.util.find_spec(name) is None]
    for kind, raw, read in kinds:
        subjects += _parsers(kind, raw, read, site, absent)
    found = measured(subjects, effort)
    ratios = [
        [name, report.ratio(timing.median, found[f"{name.partition(',')[0]}, passerelle, parse and map"].median)]
        for name, timing in found.items()
        if "passerelle" not in name
    ]
    method = [
        f"{len(adt(1))} and {len(oru(1))} bytes. Our parse walks every field of every segment; ours is lazy otherwise. "
        "The peers map nothing, so their time to parse stands beside our time to parse and map.",
        *(f"{'python-hl7' if name == 'hl7' else name} is not installed (`pip install {name}`)." for name in absent),
    ]
    grids = [
        report.Grid("Time of the peer's parse, times our parse and map", ["Peer", "times ours"], ratios),
        _absolute("Absolute", found),
    ]
    return report.Report("hl7-parse", "HL7 v2: parse and map", grids, method)


def _parsers(
    kind: str, raw: bytes, read: Callable[[Any, Any], object], site: Any, absent: list[str]
) -> Iterator[Subject]:
    text = raw.decode()
    yield Subject(f"{kind}, passerelle, parse", _many(lambda: _walked(raw)))
    yield Subject(f"{kind}, passerelle, parse and map", _many(lambda: read(parse(raw), site)))
    if "hl7apy" not in absent:
        hl7apy: Any = importlib.import_module("hl7apy.parser")
        yield Subject(f"{kind}, hl7apy, parse", _many(lambda: hl7apy.parse_message(text, find_groups=False), 3))
    if "hl7" not in absent:
        hl7: Any = importlib.import_module("hl7")
        yield Subject(f"{kind}, python-hl7, parse", _many(lambda: hl7.parse(text)))


SITE: dict[str, Any] = {
    "key": KEY,
    "name": "Banc d'essai",
    "finess_eg": "990009999",
    "finess_ej": "990009998",
    "mode": "test",
    "application": "PASSERELLE",
    "facility": "BENCH",
    "sending_applications": [["GAM", "BENCH"], ["LABO", "BENCH"]],
    "namespaces": [
        {"name": name, "kind": kind, "hd": ["BENCH", oid, "ISO"], "oid": oid, "fhir_system": f"urn:oid:{oid}"}
        for name, kind, oid in (
            ("ipp", "PI", "2.25.4099"), ("dossier", "AN", "2.25.4098"), ("sejour", "VN", "2.25.4097")
        )
    ],
}  # fmt: skip


def _site() -> Any:
    from fhir_server.patients.sites import load_sites

    return load_sites((SITE,)).default


def _walked(raw: bytes) -> int:
    return sum(1 for segment in parse(raw).segments for _, value in segment.fields() if value.valued)


def _many(work: Callable[[], object], times: int = 20) -> Callable[[], int]:
    def run() -> int:
        for _ in range(times):
            work()
        return times

    return run


def _absolute(caption: str, found: dict[str, Timing]) -> report.Grid:
    rows = [
        [name, report.micros(t.median), report.spread(t.low * 1e6, t.high * 1e6), report.rate(1 / t.median)]
        for name, t in found.items()
    ]
    return report.Grid(caption, ["Work", "µs a message", "min to max", "a second"], rows)
