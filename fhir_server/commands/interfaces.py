"""`interface-document`: what a partner's engineers are given about the messages we send them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fhir_server.commands.desk import opened, who
from fhir_server.commands.output import Failed, print_json
from fhir_server.commands.settings import Args, demo_or_own
from fhir_server.config import version

if TYPE_CHECKING:
    from mappers.identity import Site
    from mappers.interface_document import Partner


def interface_document(args: Args) -> int:
    """The HL7 v2 interface document (Markdown) of one destination, made from the messages this version writes: address,
    MSH-3 to 6, acknowledgements, identifiers, every segment and field, samples about people who do not exist."""
    from mappers.interface_document import document
    from mappers.interface_sample import samples

    reference = f"Endpoint/{str(args.endpoint).removeprefix('Endpoint/')}"
    partner, site = _partner(args, reference)
    made = {code: samples(code, site, partner.application, partner.facility) for code in partner.profiles}
    text = document(partner, site, made, version())
    if args.json:
        print_json({"endpoint": reference, "markdown": text})
    else:
        print(text, end="")
    return 0


def _partner(args: Args, reference: str) -> tuple[Partner, Site]:
    """What is stored of a destination, and the establishment whose names it is written to with. Raises Failed."""
    from fhir_server.delivery.transports import AMBIGUOUS
    from fhir_server.teleexpertise import distribution
    from fhir_server.teleexpertise.parties import Candidate
    from mappers.interface_document import Partner
    from mappers.interface_sample import MAKERS

    with opened(demo_or_own(args)) as hub, hub.store.read(who()) as snapshot:
        stored = snapshot.get("Endpoint", reference.partition("/")[2])
        if stored is None or stored.deleted:
            raise Failed(f"{reference} is not known here; `passerelle lane list` names the destinations")
        endpoint = stored.resource()
        owner = endpoint.get("managingOrganization", {}).get("reference", "").removeprefix("Organization/")
        site = next((one for one in hub.sites.all if one.key == owner), hub.sites.default)
        lane = next(iter(snapshot.lanes(reference)), None)
    codes = tuple(code for code in distribution.profiles(endpoint) if code in MAKERS)
    if not codes:
        known = ", ".join(MAKERS)
        raise Failed(f"{reference} asks for no HL7 v2 message; payloadType of {distribution.PROFILE_SYSTEM}: {known}")
    road = distribution.hl7_road(Candidate(reference, endpoint), codes[0])
    silence = (lane.on_silence if lane else "") or AMBIGUOUS.get(road.endpoint.split(":")[0], "resend")
    words = {"resend": "the same bytes go again", "hold": "it waits for a person"}[silence]
    return Partner(road.display, reference, road.endpoint, codes, road.application, road.facility, words), site
