"""Which references mean a resource of this server, and how what refers to one is found.

Sources: https://hl7.org/fhir/R4/references.html#literal, https://hl7.org/fhir/R4/http.html#general
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from fhir_server.config import Settings
from fhir_server.search import index
from fhir_server.search.plan import Clause, Plan, Value
from profiles import definitions

_LOOPBACK = re.compile(r"(https?://)(?:127\.0\.0\.1|localhost|\[::1\])((?::[0-9]{1,5})?(?:/.*)?)")
_LOCAL = re.compile(r"[A-Z][A-Za-z]{1,63}/[A-Za-z0-9\-.]{1,64}(/_history/[A-Za-z0-9\-.]{1,64})?")


def own_bases(settings: Settings, *called: str) -> tuple[str, ...]:
    """The base URLs that mean this server, without a trailing slash: the public one, its aliases, those called.

    Without a public one, every name of loopback with our port, or with the one called, is ours.
    """
    bases = [*declared_bases(settings), *(base.strip().rstrip("/") for base in called if base.strip())]
    if not settings.public_url:
        for match in filter(
            None, map(_LOOPBACK.fullmatch, [*bases, f"{settings.web_scheme}://localhost:{settings.http_port}/fhir"])
        ):
            bases += [f"{match[1]}{name}{match[2]}" for name in ("127.0.0.1", "localhost", "[::1]")]
    return tuple(dict.fromkeys(bases))


def declared_bases(settings: Settings) -> tuple[str, ...]:
    """The base URLs the settings name: the public one and its aliases."""
    told = (settings.public_url, *settings.base_aliases.split(","))
    return tuple(base.strip().rstrip("/") for base in told if base.strip())


def relative(reference: str, bases: Sequence[str]) -> str:
    """`Type/id` (or a version of it) for an absolute reference to this server, '' for any other."""
    for base in bases:
        if reference.startswith(base + "/") and _LOCAL.fullmatch(reference, len(base) + 1):
            return reference[len(base) + 1 :]
    return ""


def at_home(resource: Any, bases: Sequence[str]) -> Any:
    """A resource with the references to this server as they would be kept today. What was written when a base was not
    yet this server's keeps it; a Bundle kept as a resource is a room of its own."""
    if isinstance(resource, dict):
        if resource.get("resourceType") == "Bundle":
            return resource
        return {
            name: relative(item, bases) or item
            if name == "reference" and isinstance(item, str)
            else at_home(item, bases)
            for name, item in resource.items()
        }
    return [at_home(item, bases) for item in resource] if isinstance(resource, list) else resource


def is_local(reference: str) -> bool:
    """Whether a reference has the form `Type/id`, or that of a version of it."""
    return _LOCAL.fullmatch(reference) is not None


def base_of(full_url: str) -> str:
    """`http://x/fhir` of the RESTful address `http://x/fhir/Type/id`, '' for any other (a URN, another form)."""
    rest, _, key = full_url.rpartition("/")
    base, _, kind = rest.rpartition("/")
    restful = base.startswith(("http://", "https://")) and is_local(f"{kind}/{key}")
    return base if restful and kind in definitions.resource_types() else ""


def local(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, `Type/id`) of every literal reference to this server within a resource."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "reference" and isinstance(item, str):
                if _LOCAL.fullmatch(item):
                    yield f"{path}.reference", item.partition("/_history/")[0]
            else:
                yield from local(item, f"{path}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from local(item, f"{path}[{i}]")


def referring(resource_type: str, key: str) -> Plan:
    """A search for whatever refers to a resource by any reference parameter of any type, those of users too."""
    pids = index.reference_pids()
    return Plan((), (Clause("reference", "reference", pids[0], (Value(type=resource_type, id=key),), pids=pids),))
