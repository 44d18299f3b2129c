"""Who calls: every entry point turns what it knows of its peer into a Caller.

With `auth=none` (loopback only) the caller is a fictitious person of the demo: `Authorization: Bearer demo:<id>`
names a stored PractitionerRole by its id; without it, the caller is a requester's software. `auth=smart` accepts
nobody yet.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from fhir_server.config import Settings
from fhir_server.context import SYSTEM, Caller, Role, new_request_id
from fhir_server.errors import Forbidden, Unauthenticated
from fhir_server.store.engine import Store

PREFIX = "demo:"
SOFTWARE = "Logiciel requérant (démonstration)"
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def http_caller(store: Store, settings: Settings, headers: Mapping[str, str], peer: str) -> Caller:
    """The caller of an HTTP request. Raises Unauthenticated (401) or Forbidden (403) for a foreign Host."""
    request_id = headers.get("x-request-id", "")[:64] or new_request_id()
    if settings.auth != "none":
        raise Unauthenticated("this server wants SMART authorization, which this version does not offer yet")
    _only_loopback(headers)
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if not scheme:
        return Caller("", SOFTWARE, frozenset({"partner"}), channel="http", peer=peer, request_id=request_id)
    key = token.strip().removeprefix(PREFIX)
    if scheme.lower() != "bearer" or not token.strip().startswith(PREFIX) or not _ID.fullmatch(key):
        raise Unauthenticated("in the demo a caller is named `Authorization: Bearer demo:<PractitionerRole id>`")
    return _person(store, key, peer, request_id)


def wire_caller(channel: str, display: str, peer: str) -> Caller:
    """The caller behind an HL7 message or a DICOM association."""
    role: Role = "device" if channel == "dicom" else "system"
    return Caller(
        "",
        display,
        frozenset({role}),
        channel="dicom" if channel == "dicom" else "mllp",
        peer=peer,
        request_id=new_request_id(),
    )


def _person(store: Store, key: str, peer: str, request_id: str) -> Caller:
    with store.read(SYSTEM) as snapshot:
        stored = snapshot.get("PractitionerRole", key)
        role = stored.resource() if stored and not stored.deleted else None
        if role is None or role.get("active") is False:
            raise Unauthenticated(f"no active PractitionerRole `{key}` is known here; search /fhir/PractitionerRole")
        reference = role.get("practitioner", {}).get("reference", "")
        person = snapshot.get("Practitioner", reference.partition("/")[2]) if reference else None
        name = (person.resource().get("name") or [{}])[0] if person and not person.deleted else {}
    groups = frozenset(item["reference"] for item in role.get("healthcareService", ()) if item.get("reference"))
    roles: frozenset[Role] = frozenset({"requester", "expert"} if groups else {"requester"})
    display = " ".join([*name.get("suffix", ()), *name.get("given", ()), name.get("family", "")]).strip()
    return Caller(
        f"PractitionerRole/{role['id']}",
        display or role["id"],
        roles,
        groups,
        practitioner=reference,
        channel="http",
        peer=peer,
        request_id=request_id,
    )


def _only_loopback(headers: Mapping[str, str]) -> None:
    """Without authentication a web page must not reach us under a name of its own (DNS rebinding)."""
    for header in ("host", "origin"):
        value = headers.get(header, "")
        if value and value != "null":
            if not _is_here(value):
                raise Forbidden(f"auth=none answers on loopback names only, not to {header} {value[:80]}")
        elif value == "null":
            raise Forbidden("auth=none does not answer pages without an origin")


def _is_here(value: str) -> bool:
    """Whether a Host or Origin names this machine: `localhost` or a loopback address, no name that looks like one."""
    try:
        name = urlsplit(value if "://" in value else f"//{value}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
