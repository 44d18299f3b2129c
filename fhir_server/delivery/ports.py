"""What each HL7 v2 port promises: when it answers, in which mode, and how it refuses.

One port is the setting `mllp_port`, with the promises of a French port. More are `[[hl7_ports]]` tables:

    [[hl7_ports]]
    port = 2576
    name = "laboratoire"
    answer = "integrated"      # stored | validated | integrated: what AA means here (French ports: integrated)
    mode = "original"          # enhanced honours MSH-15 and MSH-16: CA once stored, AA once integrated
    refusals = "french"        # base: AR, not AE, for a type, event, processing id or version that is not taken in
    a08 = "as-a31"             # refuse: A08 is answered with 201, as IHE PAM France excludes it
    site = "chu-demo"          # the establishment of senders that no site declares
    group = "avis-echo"        # the expert group (HealthcareService) that orders by this port ask
    charset = "windows-1252"   # what is neither what MSH-18 says nor UTF-8 is read in this (8859/15...)
    security = "mutual"        # none | tls | mutual, with the server_* settings; as mllp_security when left out

Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1 (AA, AE, AR); HL7 v2.5 chapter 2.9 and table 0155.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fhir_server.config import ConfigError, Settings
from fhir_server.patients.sites import Sites
from hl7v2 import message
from hl7v2.message import Message
from hl7v2.text import reads_anything

Answer = Literal["stored", "validated", "integrated"]


@dataclass(frozen=True, slots=True)
class Port:
    """One listening port. `endpoint` names it in the inbox; `security` '' = as the setting `mllp_security`."""

    port: int = 0
    name: str = ""
    answer: Answer = "integrated"
    mode: Literal["original", "enhanced"] = "original"
    refusals: Literal["french", "base"] = "french"
    a08: Literal["as-a31", "refuse"] = "as-a31"
    site: str = ""
    group: str = ""
    security: Literal["none", "tls", "mutual", ""] = ""
    charset: str = "windows-1252"

    @property
    def endpoint(self) -> str:
        """The port as the inbox shows it."""
        return f"mllp:{self.name or self.port}"

    @property
    def answers_early(self) -> bool:
        """AA or CA may be said before a message is taken in, which is then this server's to do."""
        return self.answer != "integrated" or self.mode == "enhanced"


_LEVELS = ("none", "tls", "mutual")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "answer": ("stored", "validated", "integrated"),
    "mode": ("original", "enhanced"),
    "refusals": ("french", "base"),
    "a08": ("as-a31", "refuse"),
    "security": ("", "none", "tls", "mutual"),
}


def load_ports(settings: Settings, sites: Sites) -> tuple[Port, ...]:
    """The port of the setting `mllp_port` and those of the tables. Raises ConfigError naming the table and the key.

    No port is less protected than `mllp_security` says, which the rules of the settings hold against the address bound.
    """
    known = {site.key for site in sites.all}
    ports = [Port(settings.mllp_port), *(_port(n, table, known) for n, table in enumerate(settings.hl7_ports, 1))]
    for number, port in enumerate(ports):
        earlier = ports[:number]
        if any(port.endpoint == other.endpoint or (port.port and port.port == other.port) for other in earlier):
            raise ConfigError(f"hl7_ports: port {port.port} (`{port.name}`) is declared twice; give each its own")
        if port.security and _LEVELS.index(port.security) < _LEVELS.index(settings.mllp_security):
            raise ConfigError(f"hl7_ports `{port.name}`: security is weaker than mllp_security; say the same or more")
    return tuple(ports)


def read(raw: bytes, port: Port, sites: Sites) -> Message:
    """A message in the character set it is written in: what MSH-18 says, UTF-8, else what is declared for its sender
    (`sending_charsets` of a site), else for the port. Raises Unreadable."""
    msg = message.parse(raw, fallback=port.charset)
    if not msg.charset.note:
        return msg
    own = sites.charset_of(msg.text("MSH-3"), msg.text("MSH-4"))
    return message.parse(raw, fallback=own) if own else msg


def _port(number: int, table: Mapping[str, Any], sites: set[str]) -> Port:
    where = f"hl7_ports[{number}]"
    unknown = set(table) - set(Port.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"{where}: unknown key `{sorted(unknown)[0]}`")
    for key, allowed in _CHOICES.items():
        if table.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"{where}: `{key}` is one of {', '.join(allowed)}, not {table[key]!r}")
    listening = table.get("port")
    if isinstance(listening, bool) or not isinstance(listening, int) or not 0 <= listening <= 65535:
        raise ConfigError(f"{where}: `port` must be a TCP port (0 takes any free one)")
    if not str(table.get("name", "")):
        raise ConfigError(f"{where}: `name` is missing; the inbox shows it")
    if table.get("site") and table["site"] not in sites:
        raise ConfigError(f"{where}: no site `{table['site']}`; known: {', '.join(sorted(sites))}")
    if not reads_anything(str(table.get("charset", "8859/1"))):
        raise ConfigError(
            f"{where}: `charset` is a name of HL7 table 0211, one byte a character (8859/15), not {table['charset']!r}"
        )
    values: dict[str, Any] = {name: value if name == "port" else str(value) for name, value in table.items()}
    return Port(**values)
