"""The MLLP listeners of a server: one for each port, with the promises of its table.

Hides what stands between the wire and the intake: networks that may not speak, partners nobody declared, TLS, and which
functions a port in enhanced mode needs.
"""

from __future__ import annotations

from collections.abc import Iterable

from fhir_server.changes import Hub
from fhir_server.delivery import intake
from fhir_server.delivery.knocks import Knocks, admits, host_of
from fhir_server.delivery.ports import Port
from fhir_server.security.certificates import on_port
from hl7v2.conversation import Policy
from hl7v2.mllp import Listener

MIB = 1024 * 1024


def listeners(hub: Hub, ports: Iterable[Port], knocks: Knocks) -> list[tuple[Port, Listener]]:
    """A listener for each port, not started. Raises ConfigError for TLS files that cannot be used."""
    return [(port, _listener(hub, port, knocks)) for port in ports]


def _listener(hub: Hub, port: Port, knocks: Knocks) -> Listener:
    settings = hub.settings
    answer, store = intake.wired(hub, port)

    def on_message(raw: bytes, peer: str) -> bytes:
        if not admits(settings.mllp_networks, host_of(peer)):
            return knocks.turned_away(raw, peer)
        told = answer(raw, peer)
        knocks.message(raw, peer)
        return told

    def on_store(raw: bytes, peer: str) -> bytes:
        if not admits(settings.mllp_networks, host_of(peer)) or store is None:
            return knocks.turned_away(raw, peer)
        return store(raw, peer)

    policy = Policy(
        max_frame=settings.max_body_mib * MIB,
        tls=on_port(settings, port.security or settings.mllp_security),
        enhanced=port.mode == "enhanced",
    )
    address = (settings.bind, port.port)
    return Listener(address, on_message, policy=policy, on_store=on_store if store else None)
