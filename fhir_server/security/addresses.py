"""Where a delivery may go: an Endpoint is data a partner may write, so it must not open our own doors to them.

`destination` looks the name up once and hands back the address it judged; the transport connects to that address, so
that a second answer of the name server (DNS rebinding) changes nothing. What nobody is ever sent to, unless a setting
names a network inside it: link-local addresses (cloud metadata at 169.254.169.254 among them), multicast, and
addresses that mean "any host". Source: RFC 6890 (special-purpose addresses).
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fhir_server.config import ConfigError, Settings, listed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Sequence[str]]
_LOOPBACK = "127.0.0.0/8, ::1, localhost"
# Refused even where everything routable is allowed. fd00:ec2::254 and 100.100.100.200 are metadata services.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "100.100.100.200/32",
        "::/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128",
    )
)  # fmt: skip


class Refused(Exception):
    """This address is not one we deliver to; the text says which setting would allow it."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What `delivery_networks` says: networks, host names, and `*.domain` suffixes. Empty = any routable address."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()

    @property
    def anywhere(self) -> bool:
        return not (self.networks or self.hosts or self.suffixes)

    def names(self, host: str) -> bool:
        """Whether the host is allowed by its name, whatever its address."""
        name = host.rstrip(".").lower()
        return name in self.hosts or name.endswith(self.suffixes or ("\0",))


@functools.lru_cache(maxsize=16)
def allowed(text: str) -> Allowed:
    """Read the setting. Raises ConfigError naming the item that is neither network nor host."""
    networks: list[Network] = []
    hosts: set[str] = set()
    suffixes: list[str] = []
    for item in listed(text):
        try:
            networks.append(ipaddress.ip_network(item.strip("[]"), strict=False))
            continue
        except ValueError:
            name = item.lower().rstrip(".")
        if not all(part and part.replace("-", "").isalnum() for part in name.removeprefix("*.").split(".")):
            raise ConfigError(f"setting `delivery_networks`: {item!r} is no network, host or *.domain")
        if name.startswith("*."):
            suffixes.append(name[1:])
        else:
            hosts.add(name)
    return Allowed(tuple(networks), frozenset(hosts), tuple(suffixes))


def allowed_by(settings: Settings) -> Allowed:
    """What the settings allow: without `delivery_networks`, loopback only for auth=none, else any routable address."""
    return allowed(settings.delivery_networks or (_LOOPBACK if settings.auth == "none" else ""))


def looked_up(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system's resolver gives them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def destination(host: str, port: int, rules: Allowed, resolve: Resolve = looked_up) -> tuple[str, int]:
    """The (address, port) to connect to. Raises Refused when one of the host's addresses is not allowed: a name that
    also points to a forbidden place is no partner's. Raises OSError when the name cannot be resolved."""
    addresses = resolve(host, port)
    if not addresses:
        raise OSError(f"{host} has no address")
    named = rules.names(host)
    for text in addresses:
        _judge(host, _plain(text), rules, named)
    return addresses[0], port


def _plain(text: str) -> Address:
    """An address without its zone; an IPv4 one dressed as IPv6 is taken as what it is."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return mapped or address


def _judge(host: str, address: Address, rules: Allowed, named: bool) -> None:
    where = f"{host} ({address})" if host.strip("[]") != str(address) else host
    for never in _NEVER:
        if address in never:
            if not any(address in network and _inside(network, never) for network in rules.networks):
                raise Refused(f"{where} is no address of a partner; correct the Endpoint")
            return
    if rules.anywhere:
        if address.is_loopback:
            raise Refused(f"{where} is this machine; allow it with delivery_networks, or correct the Endpoint")
        return
    if not named and not any(address in network for network in rules.networks):
        raise Refused(f"{where} is not among delivery_networks; add it there, or correct the Endpoint")


def _inside(network: Network, never: Network) -> bool:
    """Whether a network that was named lies within one that is never meant: then it was meant."""
    return network.version == never.version and network.prefixlen >= never.prefixlen
