"""Where the elements of a received message came from: its stored bytes, mapped again when somebody asks.

Hides that nothing of this is kept: what is told is what the mapper of this version makes of the bytes, which is what
was stored unless the mapper or the site's declaration changed since.
"""

from __future__ import annotations

from typing import Any

from fhir_server.changes import Hub
from fhir_server.config import version
from fhir_server.delivery.ports import Port, load_ports, read
from fhir_server.errors import NotFound
from fhir_server.store.inbox import InboxRow
from hl7v2.message import Unreadable
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_sources import READERS, explain

REMARK = (
    "mapped again just now from the stored bytes; ids, subject, meta and what this hub adds by its own rules have no "
    "place in the message"
)


def sources(hub: Hub, row: InboxRow, raw: bytes) -> dict[str, Any]:
    """`mapper` (the version), `remark`, `left_out`, and `elements`: each with its value, its places (`from`) and
    whether they hold the value, only decide that it is there (`condition`), or nothing does (`fixed`).

    Raises NotFound, with the reason, for a message that maps to nothing here.
    """
    known = {port.endpoint: port for port in load_ports(hub.settings, hub.sites)}
    port = known.get(row.endpoint) or Port(hub.settings.mllp_port)
    try:
        msg = read(raw, port, hub.sites)
        if row.channel != "mllp" or msg.kind not in READERS:
            raise NotFound(f"message {row.id} is not mapped from HL7 v2; mapped: {', '.join(READERS)}")
        site = hub.sites.by_key(port.site) if port.site else hub.sites.default
        found = explain(msg, hub.sites.of_message(msg.text("MSH-3"), msg.text("MSH-4")) or site)
    except (Unreadable, Refused, KeyError) as refused:
        raise NotFound(f"message {row.id} maps to nothing: {refused}") from refused
    return {
        "mapper": version(),
        "remark": REMARK,
        "left_out": list(found.cut),
        "elements": [
            {"element": one.element, "value": one.value, "from": list(one.places), "how": one.how}
            for one in found.origins
        ],
    }
