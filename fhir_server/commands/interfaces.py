"""`interface-document`: what a partner's engineers are given about the messages we send them, or may send us."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fhir_server.commands.desk import opened, who
from fhir_server.commands.output import Failed, print_json
from fhir_server.commands.settings import Args, demo_or_own
from fhir_server.config import in_url, version

if TYPE_CHECKING:
    from fhir_server.config import Settings
    from mappers.identity import Site
    from mappers.interface_document import Partner


def interface_document(args: Args) -> int:
    """The HL7 v2 interface document (Markdown) of one destination (an Endpoint) or of one of our ports (`mllp:NAME`, as
    the inbox shows it): address, names, acknowledgements, identifiers, segments and fields, samples about nobody."""
    from mappers.interface_document import document
    from mappers.interface_sample import samples

    if str(args.endpoint).startswith("mllp:"):
        return _told(args, str(args.endpoint), _of_port(args, str(args.endpoint)))
    reference = f"Endpoint/{str(args.endpoint).removeprefix('Endpoint/')}"
    partner, site = _partner(args, reference)
    made = {code: samples(code, site, partner.application, partner.facility) for code in partner.profiles}
    return _told(args, reference, document(partner, site, made, version()))


def _told(args: Args, reference: str, text: str) -> int:
    if args.json:
        print_json({"endpoint": reference, "markdown": text})
    else:
        print(text, end="")
    return 0


def _of_port(args: Args, endpoint: str) -> str:
    """The document of a port of the settings. Raises Failed for one that nobody declared."""
    from fhir_server.delivery.intake import HANDLERS
    from fhir_server.delivery.ports import load_ports
    from mappers.interface_inbound import Door, inbound_document

    with opened(demo_or_own(args)) as hub:
        settings, ports = hub.settings, {port.endpoint: port for port in load_ports(hub.settings, hub.sites)}
        if endpoint not in ports:
            raise Failed(f"no port {endpoint} is declared; known: {', '.join(ports)}")
        port = ports[endpoint]
        site = hub.sites.by_key(port.site) if port.site else hub.sites.default
    security = port.security or settings.mllp_security
    scheme = "mllp" if security == "none" else "mllps"
    door = Door(
        name=port.name or str(port.port),
        address=f"{scheme}://{in_url(_host(settings))}:{port.port}",
        answer=port.answer,
        mode=port.mode,
        refusals=port.refusals,
        a08=port.a08,
        security=security,
        group=port.group,
        networks=settings.mllp_networks,
        charset=port.charset,
    )
    return inbound_document(door, site, HANDLERS, version())


def _host(settings: Settings) -> str:
    """What partners call this machine: the host of `public_url`, else the address the listeners are bound to."""
    return urlsplit(settings.public_url).hostname or settings.bind


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
    answer = (lane.answer_within if lane else 0) / 1_000_000 or hub.settings.send_timeout_seconds
    keep = (lane.keep_open if lane else 0) / 1_000_000
    own = (road.application, road.facility, words, answer, keep)
    return Partner(road.display, reference, road.endpoint, codes, *own), site
