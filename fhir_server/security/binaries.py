"""Who may see and change the content of a Binary: those who may read the resource its securityContext names.

Source: https://hl7.org/fhir/R4/binary.html#security
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.context import Caller
from fhir_server.errors import Forbidden
from fhir_server.search.references import is_local
from fhir_server.security.scopes import may


def context_of(binary: Mapping[str, Any]) -> str:
    """The reference a Binary names as its security context, '' for none."""
    context = binary.get("securityContext")
    return str(context.get("reference", "")) if isinstance(context, Mapping) else ""


def may_see(caller: Caller, binary: Mapping[str, Any], known: Callable[[str, str], object]) -> bool:
    """Whether a caller may read what the context names; `known` looks up (type, id) with the caller's own eyes.

    What lies on another server cannot be looked at here: it takes a caller who may read everything.
    """
    reference = context_of(binary)
    if not reference:
        return True
    if not is_local(reference):
        return may(caller, "", "r") and caller.everything
    kind, key = reference.split("/")[:2]
    return may(caller, kind, "r") and (caller.everything or known(kind, key) is not None)


def demand_context(caller: Caller, binary: Mapping[str, Any], known: Callable[[str, str], object]) -> None:
    """Raise Forbidden (403) unless `may_see`."""
    if not may_see(caller, binary, known):
        text = "this content is for those who may read its securityContext, which your access does not let you"
        raise Forbidden(text, expression="Binary.securityContext")
