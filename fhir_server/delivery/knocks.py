"""Who knocks at the MLLP and DICOM ports and is not declared, noted for the interface engineer; and who is turned away.

The list lives in the store; here only the rate of writing is bounded: one write in ten seconds for each caller, and a
stranger who changes its name with each call is counted under one name once a thousand names are held.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from dataclasses import dataclass

from dicom_node.scp import AssociationInfo
from fhir_server.changes import Hub
from fhir_server.config import listed
from fhir_server.context import SYSTEM, new_message_id
from fhir_server.store.partners import Partner
from hl7v2 import ack, message
from hl7v2.message import Unreadable

log = logging.getLogger("passerelle.partners")
PAUSE_SECONDS, HELD = 10.0, 1000
MANY = "(many names)"


@dataclass(slots=True)
class _Seen:
    written_at: float
    pending: int = 0


class Knocks:
    """Notes callers. Safe to use from any thread; never fails a wire."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._gate = threading.Lock()
        self._seen: dict[tuple[str, str, str], _Seen] = {}

    def message(self, raw: bytes, peer: str) -> None:
        """A message that was answered: noted when no establishment declares its MSH-3 and MSH-4."""
        try:
            head = message.parse(raw.lstrip(b"\x0b").split(b"\r", 1)[0])
            application, facility = head.text("MSH-3"), head.text("MSH-4")
        except (Unreadable, ValueError):
            application = facility = ""
        if self.hub.sites.of_message(application, facility) is None:
            self._note("mllp", f"{application}|{facility}", host_of(peer), "accepted", "")

    def turned_away(self, raw: bytes, peer: str) -> bytes:
        """The answer to a message from a network that may not speak to the port; it is not stored, only counted."""
        reason = "its address is not among mllp_networks"
        self._note("mllp", "(not read)", host_of(peer), "refused", reason)
        text, key = "this address is not admitted here", new_message_id()
        return ack.build(raw, "AE", text=text, err_code="207", now=self.hub.clock(), control_id=key)

    def association(self, info: AssociationInfo) -> None:
        """A DICOM association: noted when no establishment declares its AE title, or when it was rejected."""
        rejected = info.ended == "rejected"
        if rejected or self.hub.sites.of_ae(info.calling) is None:
            self._note("dicom", info.calling, info.peer, "refused" if rejected else "accepted", info.reason)

    def _note(self, channel: str, name: str, address: str, outcome: str, reason: str) -> None:
        with self._gate:
            key = (channel, name[:100], address)
            if key not in self._seen and len(self._seen) >= HELD:
                key = (channel, MANY, "")
            now = time.monotonic()
            seen = self._seen.get(key)
            if seen is not None and now - seen.written_at < PAUSE_SECONDS:
                seen.pending += 1
                return
            times = 1 + (seen.pending if seen else 0)
            self._seen[key] = _Seen(now)
            for old in [one for one, held in self._seen.items() if now - held.written_at > 3600]:
                del self._seen[old]
        told = Partner(key[0], key[1], key[2], "refused" if outcome == "refused" else "accepted", reason, times=times)
        try:
            self.hub.store.write(SYSTEM, lambda tx: tx.note_partner(told))
        except Exception:
            log.exception("a new partner could not be noted")


def host_of(peer: str) -> str:
    """The address in `host:port CN=...`."""
    return peer.partition(" ")[0].rpartition(":")[0].strip("[]")


def admits(networks: str, host: str) -> bool:
    """Whether a setting of networks admits an address; an empty one admits all."""
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in ipaddress.ip_network(item, strict=False) for item in listed(networks))
