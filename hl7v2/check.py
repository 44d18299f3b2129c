"""A located judgement of a message: what the standard and the French overlay say it should hold.

Hides which rule comes from where. Never changes a message, never stops at the first finding; the caller decides what
an error means (on French ports: AE with ERR-2). Every finding names a path, the bytes, the rule and its 0357 code.

Sources: see `hl7v2.tables`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from hl7v2 import overlays, tables, versions
from hl7v2.findings import MOST_SEGMENTS, Finding, at, name_of
from hl7v2.message import Message, Segment, Unreadable, path
from hl7v2.tables import Coded, Required, Structure

_TIME: Final = re.compile(
    r"(\d{4})(?:(\d{2})(?:(\d{2})(?:(\d{2})(?:(\d{2})(?:(\d{2})(?:\.\d{1,4})?)?)?)?)?)?"
    r"(?:\+(?:0\d|1[0-3])[0-5]\d|\+1400|-(?:0\d|1[01])[0-5]\d|-1200)?\Z",
    re.ASCII,
)
_MAX_FINDINGS: Final = 100


def check(msg: Message) -> list[Finding]:
    """Everything worth saying about this message, errors first; at most 100 findings.

    A message type without a table here gets the rules of MSH only.
    """
    structure = tables.STRUCTURES.get(msg.kind, {}).get(msg.trigger)
    found: list[Finding] = []
    try:
        for finding in _all(msg, structure, is_pam_fr(msg)):
            found.append(finding)
            if len(found) >= _MAX_FINDINGS:
                break
    except Unreadable as fault:
        # An element of more parts than are read: what was found before it stays.
        found.append(Finding(fault.location, "v2/parts", fault.code, fault.text))
    return sorted(found, key=lambda finding: finding.severity != "error")


def errors(findings: list[Finding]) -> list[Finding]:
    """Those that forbid integration."""
    return [finding for finding in findings if finding.severity == "error"]


def is_pam_fr(msg: Message) -> bool:
    """The message says that it follows IHE PAM France (an ADT with MSH-12.2 FRA, or MSH-21 naming it)."""
    profiles = (rep.encoded.upper() for rep in msg.at("MSH-21").repetitions())
    return msg.kind == "ADT" and (msg.text("MSH-12.2").upper() == "FRA" or any("IHE_FRANCE" in p for p in profiles))


def is_time(text: str) -> bool:
    """A valid TS, DT or DTM: `YYYY[MM[DD[HH[MM[SS[.S]]]]]][+/-ZZZZ]` that exists in the calendar and, from -1200 to
    +1400, on Earth."""
    match = _TIME.match(text)
    if not match:
        return False
    year, month, day, hour, minute, second = (int(part) if part else None for part in match.groups()[:6])
    try:
        datetime(year or 1, month or 1, 1 if day is None else day, hour or 0, minute or 0, second or 0)  # noqa: DTZ001 - not kept
    except ValueError:
        return False
    return year != 0 and month != 0


def _all(msg: Message, structure: Structure | None, pam: bool) -> Iterator[Finding]:
    yield from _header(msg)
    overlay = None if pam else overlays.of(msg)
    source = "pam.fr" if pam else overlay.name if overlay else "v2"
    if structure:
        yield from _segments(msg, structure, pam)
    transaction = structure.transaction if structure else ""
    for rule in tables.REQUIRED:
        if msg.kind == "ADT" or rule.path.startswith("MSH"):
            yield from _required(msg, rule, transaction, source)
    for rule in tables.PAM_REQUIRED if pam else overlay.required if overlay else ():
        yield from _required(msg, rule, transaction, source)
    more = tables.PAM_CODED if pam else overlay.coded if overlay else ()
    narrowed = {code.path for code in more}
    for code in (*(one for one in tables.CODED if one.path not in narrowed), *more):
        yield from _coded(msg, code, source)
    if pam:
        yield from _forbidden(msg)
    yield from _values(msg)
    if msg.kind == "ADT":
        yield from _name(msg)
    if overlay:
        yield from overlays.judge(msg, overlay)
    yield from versions.judge(msg)


def _header(msg: Message) -> Iterator[Finding]:
    signs = msg.separators
    if not all((signs.component, signs.repetition, signs.escape, signs.subcomponent)):
        yield at(msg, "MSH-2", "v2/MSH-2", "102", "MSH-2 must declare four different delimiters, normally ^~\\&")
    if msg.version and msg.version not in tables.VERSIONS:
        yield at(msg, "MSH-12", "v2/MSH-12", "203", f"version {msg.version[:20]!r} is unknown; 2.1 to 2.8.2 are read")
    if len(msg.all("MSH")) > 1:
        yield Finding("MSH[2]", "v2/segments", "100", "a second MSH: send one message in a frame")
    if len(msg.all("PID")) > 1 and msg.trigger not in ("A40", "A17", "A44"):
        yield Finding("PID[2]", "v2/segments", "198", "a second PID: this message speaks of one patient only")
    for segment in msg.all("")[:5]:
        shown = msg.charset.decode(segment.raw[:20])
        span = (segment.start, segment.end)
        yield Finding("MSH", "v2/segments", "100", f"a line is no segment: {shown!r}", "error", span)


def _segments(msg: Message, structure: Structure, pam: bool) -> Iterator[Finding]:
    wanted = structure.segments
    if pam and msg.trigger in tables.ZBE_EVENTS:
        wanted = (*wanted, "ZBE")
    first: list[tuple[str, Segment]] = []
    for name in wanted:
        segment = msg.first(name)
        if segment is None:
            told = f"{msg.kind}^{msg.trigger} needs a segment {name}"
            yield Finding(name, f"{'pam.fr' if pam else 'v2'}/segments", "100", told)
        else:
            first.append((name, segment))
    for (before, one), (after, two) in itertools.pairwise(first):
        if one.start > two.start:
            told = f"{before} must stand before {after}"
            yield Finding(after, "v2/segments", "100", told, "error", (two.start, two.end))
    third = msg.text("MSH-9.3")
    if third and third != structure.name:
        told = f"MSH-9.3 is {third[:20]}, {structure.name} was expected"
        yield at(msg, "MSH-9[1].3", "v2/MSH-9", "199", told, "warning")


def _required(msg: Message, rule: Required, transaction: str, source: str) -> Iterator[Finding]:
    if rule.when and transaction not in rule.when:
        return
    name = path(rule.path).segment
    # A rule that names an occurrence (OBX[1]-4) holds for that one only.
    for segment in msg.all(name)[: 1 if "[" in rule.path else MOST_SEGMENTS]:
        where = rule.path if segment.number == 1 else rule.path.replace(name, f"{name}[{segment.number}]", 1)
        if msg.at(where).valued:
            continue
        told = f"{rule.path} is required"
        yield at(msg, where, f"{source}/{rule.path}/required", "101", told, rule.severity)


def _coded(msg: Message, rule: Coded, source: str) -> Iterator[Finding]:
    spot = path(rule.path)
    for segment in msg.all(spot.segment)[:MOST_SEGMENTS]:
        field = segment.field(spot.field)
        if field.state in ("absent", "empty", "null"):
            continue
        for number, rep in enumerate(field.repetitions(), 1):
            value = rep.component(spot.comp) if spot.comp else rep
            if not value.valued or value.text in rule.codes:
                continue
            where = _where(segment, spot.field, number) + (f".{spot.comp}" if spot.comp else "")
            told = f"{value.text[:20]!r} is not in table {rule.table} ({' '.join(sorted(rule.codes)[:12])})"
            span = (value.start, value.end)
            yield Finding(where, f"{source}/{rule.path}/table", rule.code, told, rule.severity, span)


def _values(msg: Message) -> Iterator[Finding]:
    for where, severity in tables.TIMES:
        value = msg.at(where)
        if value.valued and not is_time(value.text):
            told = f"{value.text[:30]!r} is no date or time; write YYYYMMDD[HHMM[SS]][+/-ZZZZ]"
            rule = f"v2/{where}/type"
            yield at(msg, where, rule, "102", told, "error" if severity == "error" else "warning")
    for where, most in tables.REPEATS.items():
        value = msg.at(where)
        count = value.message.raw.count(msg.below[0], value.start, value.end) if value.valued and msg.below[0] else 0
        if count >= most:
            yield at(msg, where, f"v2/{where}/repeat", "198", f"{where} has more than {most} repetitions")


def _name(msg: Message) -> Iterator[Finding]:
    reps = msg.at("PID-5").repetitions()[: tables.REPEATS["PID-5"]]
    if not any(rep.component(7).text == "L" for rep in reps):
        yield at(msg, "PID-5", "pam.fr/PID-5/L", "101", "no repetition of type L (birth name)", "warning")
    for number, rep in enumerate(reps, 1):
        if rep.valued and not rep.component(1).part(1).text:
            where = f"PID-5[{number}].1"
            yield Finding(where, "v2/PID-5/family", "101", "the family name is missing", "error", (rep.start, rep.end))


def _forbidden(msg: Message) -> Iterator[Finding]:
    for where in tables.PAM_FORBIDDEN:
        if msg.at(where).valued:
            yield at(msg, where, f"pam.fr/{where}/forbidden", "199", f"{where} is forbidden in France", "warning")


def _where(segment: Segment, field: int, repetition: int) -> str:
    return f"{name_of(segment)}-{field}[{repetition}]"


__all__ = ["Finding", "check", "errors", "is_pam_fr", "is_time"]
