"""The interface document says everything the messages carry: it is made from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from report_sources import SITE as BARE

from fhir_server.teleexpertise.distribution import FLAVOURS, WORKFLOW
from hl7v2.check import check
from hl7v2.message import parse
from mappers.identity import Namespace
from mappers.interface_document import FIELDS, Partner, document, name_of
from mappers.interface_sample import MAKERS, Sample, samples

PROFILES = sorted(MAKERS)
STAYS = (
    Namespace("venue", "VN", ("CH EXEMPLE", "990000018", "M"), "2.25.71", "urn:oid:2.25.71", "VN"),
    Namespace("dossier", "AN", ("CH EXEMPLE", "990000018", "M"), "2.25.72", "urn:oid:2.25.72", "AN"),
)
SITE = dataclasses.replace(BARE, namespaces=(*BARE.namespaces, *STAYS))


def made(profile: str, site: Any = SITE) -> tuple[str, list[Sample]]:
    found = samples(profile, site, "DPI", "CH-X")
    partner = Partner("DPI du CH", "Endpoint/dpi", "mllp://dpi:2575", (profile,), "DPI", "CH-X", "it waits", 30, 0)
    return document(partner, site, {profile: found}, "1.0"), found


def test_every_profile_an_endpoint_may_ask_for_has_samples() -> None:
    assert set(MAKERS) == set(FLAVOURS) | set(WORKFLOW)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_segment_and_field_we_write_is_documented(profile: str) -> None:
    text, found = made(profile)
    rows = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()}
    for sample in found:
        msg = parse(sample.raw)
        assert check(msg) == [] and sample.event in text and f"`{msg.at('MSH-9').encoded}`" in text
        for segment in msg.segments:
            wanted = {f"{segment.name}-{number}" for number, value in segment.fields() if value.encoded}
            assert wanted <= rows, wanted - rows


@pytest.mark.parametrize("profile", sorted(FLAVOURS))
def test_a_report_its_correction_and_its_withdrawal_have_a_sample_each(profile: str) -> None:
    text, found = made(profile)
    told = [parse(sample.raw) for sample in found]
    first, ordered, corrected, withdrawn = ((msg.get("OBX-11"), msg.trigger, msg.get("TXA-12")) for msg in told)
    assert [one[0] for one in (first, ordered, corrected, withdrawn)] == ["F", "F", "C", "D"]
    assert corrected[2] == withdrawn[2] and (first[2] != corrected[2] or told[0].kind == "ORU")
    if told[0].kind == "MDM":
        assert [one[1] for one in (first, ordered, corrected, withdrawn)] == ["T02", "T02", "T10", "T04"]
        assert told[2].get("TXA-13") == ordered[2]
    if profile != "lps-1.1":
        assert [msg.get("PV1-2") for msg in told] == ["N", "O", "O", "O"] and told[1].get("PV1-19.1") == "EXEMPLE-2"
    assert "corrects it" in text and "withdraws it" in text


@pytest.mark.parametrize("profile", PROFILES)
def test_names_addresses_and_authorities_stand_in_it(profile: str) -> None:
    text, _ = made(profile)
    for told in ("`PASSERELLE`, `CH EXEMPLE`", "`DPI`, `CH-X`", "mllp://dpi:2575", "1.2.250.1.213.1.4.8",
                 "within 30 s: it waits", "| one a message |", SITE.namespaces[0].oid, "| AR, CR |"):  # fmt: skip
        assert told in text, told
    assert max(map(len, text.splitlines())) < 1_500  # documents in base64 are cut


def test_a_production_site_shows_no_test_identity_and_another_charset_is_readable() -> None:
    text, found = made("lps-1.1", dataclasses.replace(SITE, mode="production", charset="8859/15"))
    assert "279035121518989" not in text and "| MSH-11 | P |" in text
    assert "télémédecine" in text and parse(found[0].raw).get("MSH-18") == "8859/15"


def test_a_field_without_a_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="PID-99 is sent and has no name"):
        name_of("PID", 99)
    with pytest.raises(ValueError, match="ZZZ-1"):
        name_of("ZZZ", 1)
    assert all(names for names in FIELDS.values())
