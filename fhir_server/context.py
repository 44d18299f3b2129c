"""Who acts, and when: the values every entry point makes and every room receives."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

Role = Literal["requester", "expert", "admin", "system", "device", "partner"]
Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Caller:
    """The acting party of one request, message or association.

    `who` is a FHIR reference (`PractitionerRole/x`, `Device/passerelle`) or '' ; `groups` are the
    references of the HealthcareServices (expert groups) the caller belongs to. `everything` is the access
    predicate of the demo and of internal work: no row filter. `rights` are what an access token grants: (resource type
    or `*`, one of c r u d s); None = the caller came without a token and is limited by `roles` alone. `client` is the
    software as the issuer of its token names it, '' = not told.
    """

    who: str
    display: str
    roles: frozenset[Role]
    groups: frozenset[str] = frozenset()
    practitioner: str = ""
    channel: Literal["http", "mllp", "dicom", "mail", "work", "cli"] = "work"
    peer: str = ""
    request_id: str = ""
    everything: bool = True
    rights: frozenset[tuple[str, str]] | None = None
    client: str = ""


class View(Protocol):
    """What a domain room may look at while it decides: stored resources with the pending changes laid over them."""

    def get(self, reference: str) -> dict[str, Any] | None:
        """The resource at `Type/id`, or None."""
        ...

    def find(self, resource_type: str, query: str) -> Iterable[dict[str, Any]]:
        """The resources a FHIR search of that type returns, e.g. `identifier=urn:oid:1.2|3`: all of them, newest
        first, read as far as they are asked for. Raises TooLarge when they are too many to decide on."""
        ...

    def written(self, resource_type: str) -> list[dict[str, Any]]:
        """The resources of that type which the request under way writes: a search does not find them yet."""
        ...


SYSTEM = Caller("Device/passerelle", "Passerelle", frozenset({"system"}))


def now() -> datetime:
    """The present instant, UTC, microseconds."""
    return datetime.now(UTC)


def instant(moment: datetime) -> str:
    """FHIR instant with microseconds and `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC, exact."""
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


_BASE32 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" * 8
_ID, _AT_A_TIME = 20, 64
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)


def new_delivery_id() -> str:
    """20 characters of RFC 4648 base32 (100 random bits): fits MSH-10 of HL7 v2.5 (ST, length 20). Drawn at this very
    moment, so that not even a machine that is rolled back or copied while it runs gives one twice."""
    return _random_ids(1)[0]


def new_message_id() -> str:
    """The same for what stays here (rows of the inbox, our acknowledgements), drawn ahead: asking the system for random
    bytes gives all other threads the turn, which costs more than the bytes. A child process draws its own."""
    try:
        return _drawn.pop()
    except IndexError:
        first, *others = _random_ids(_AT_A_TIME)
        _drawn.extend(others)
        return first


def _random_ids(count: int) -> list[str]:
    text = secrets.token_bytes(_ID * count).translate(_BASE32).decode("ascii")
    return [text[begin : begin + _ID] for begin in range(0, len(text), _ID)]


def new_request_id() -> str:
    """16 lower-case base32 characters: one id from the wire to the log to the audit row."""
    return base64.b32encode(secrets.token_bytes(10)).decode("ascii").lower()
