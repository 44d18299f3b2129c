"""Who calls: every entry point turns what it knows of its peer into a Caller.

With `auth=none` (loopback only) the caller is a fictitious person of the demo: `Authorization: Bearer demo:<id>`
names a stored PractitionerRole by its id, `Bearer pull:<name>` the software of a partner that fetches; without it, the
caller is a requester's software. With `auth=smart` the caller is who the access token says (see `tokens`), with the
rights of its scopes. The operator's own commands carry the token of the data folder's lock: who may read that file
runs this server.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fhir_server.config import Settings
from fhir_server.context import SYSTEM, Caller, Role, new_request_id
from fhir_server.errors import Forbidden, Unauthenticated
from fhir_server.security.scopes import rights
from fhir_server.store.engine import Store

if TYPE_CHECKING:
    from fhir_server.security.tokens import Verifier

PREFIX, FETCHER = "demo:", "pull:"
LOCAL = "passerelle-local"
SOFTWARE = "Logiciel requérant (démonstration)"
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
# Claims that name the person or the software, the most telling first.
_NAMES = ("name", "preferred_username", "client_id", "azp", "sub")
_ROLES: Mapping[str, Role] = {"admin": "admin", "requester": "requester", "expert": "expert", "partner": "partner"}


@dataclass(frozen=True, slots=True)
class Gate:
    """What the edge needs to know who calls: settings, the tokens' verifier (auth=smart), the lock's own token."""

    settings: Settings
    verifier: Verifier | None = None
    local_token: str = ""


def http_caller(store: Store, gate: Gate, headers: Mapping[str, str], peer: str) -> Caller:
    """The caller of an HTTP request. Raises Unauthenticated (401) or Forbidden (403) for a foreign Host."""
    request_id = headers.get("x-request-id", "")[:64] or new_request_id()
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == LOCAL:
        return _operator(gate, headers, token.strip(), peer, request_id)
    if gate.settings.auth == "smart":
        return _bearer(store, gate, scheme, token.strip(), peer, request_id)
    _only_loopback(headers)
    if not scheme:
        return Caller("", SOFTWARE, frozenset({"partner"}), channel="http", peer=peer, request_id=request_id)
    if scheme.lower() == "bearer" and token.strip().startswith(FETCHER):
        client = token.strip().removeprefix(FETCHER)[:200]
        found = Caller("", client, frozenset({"partner"}), channel="http", client=client)
        return replace(found, peer=peer, request_id=request_id)
    key = token.strip().removeprefix(PREFIX)
    if scheme.lower() != "bearer" or not token.strip().startswith(PREFIX) or not _ID.fullmatch(key):
        raise Unauthenticated("in the demo a caller is named `Authorization: Bearer demo:<PractitionerRole id>`")
    return replace(_person(store, key), peer=peer, request_id=request_id)


def at_hand(gate: Gate, headers: Mapping[str, str]) -> bool:
    """Whether `http_caller` knows who calls without asking the database or computing a signature."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if not scheme:
        return True
    if scheme.lower() != "bearer" or gate.verifier is None:
        return False
    claims = gate.verifier.lately(token.strip())
    return claims is not None and "PractitionerRole/" not in str(claims.get("fhirUser", ""))


def operator(name: str) -> Caller:
    """The person at this machine's command line."""
    return Caller("", f"{name[:80] or 'exploitant'} (ligne de commande)", frozenset({"admin"}), channel="cli")


def mailbox_reader(address: str) -> Caller:
    """What reads one of our mailboxes."""
    return replace(SYSTEM, display=f"Passerelle, lecteur de {address}", channel="mail", request_id=new_request_id())


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


def _operator(gate: Gate, headers: Mapping[str, str], token: str, peer: str, request_id: str) -> Caller:
    """The command line of this machine, which read the token beside the database."""
    if not gate.local_token or not hmac.compare_digest(token.encode(), gate.local_token.encode()):
        raise Unauthenticated("this is not the token of the server that runs now; repeat the command")
    if not (peer and _is_here(f"[{peer}]" if ":" in peer else peer)):
        raise Forbidden("the operator's token counts on the server's own machine only")
    return replace(operator(headers.get("x-operator", "")), peer=peer, request_id=request_id)


def _bearer(store: Store, gate: Gate, scheme: str, token: str, peer: str, request_id: str) -> Caller:
    if scheme.lower() != "bearer" or not token or gate.verifier is None:
        raise Unauthenticated("send an access token: `Authorization: Bearer <token>` (SMART on FHIR, backend or user)")
    claims = gate.verifier.claims(token)
    scope = claims.get("scope", "")
    granted = rights(scope.split() if isinstance(scope, str) else map(str, scope))
    roles = _roles(claims, gate.settings.auth_roles_claim)
    display = next((str(claims[name]) for name in _NAMES if claims.get(name)), "")
    client = next((str(claims[name]) for name in ("client_id", "azp") if claims.get(name)), "")
    found = Caller("", display[:200], roles or frozenset({"partner"}), channel="http", client=client[:200])
    key = str(claims.get("fhirUser", "")).rstrip("/").rpartition("PractitionerRole/")[2]
    if "PractitionerRole/" in str(claims.get("fhirUser", "")) and _ID.fullmatch(key):
        person = _person(store, key)
        found = replace(person, roles=person.roles | (roles & {"admin"}), client=found.client)
    return replace(found, peer=peer, request_id=request_id, rights=granted)


def _roles(claims: Mapping[str, Any], path: str) -> frozenset[Role]:
    """The roles a claim lists that mean something here; Keycloak writes them as `realm_access.roles`."""
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    names = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    return frozenset(_ROLES[name] for name in names if isinstance(name, str) and name in _ROLES)


def _person(store: Store, key: str) -> Caller:
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
