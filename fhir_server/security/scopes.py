"""What an access token lets its bearer do: SMART v2 scopes as rights on resource types.

`system/Patient.rs` is read and search of Patient; `user/*.cruds` everything. The older `.read`, `.write` and `.*` are
read as `rs`, `cud` and `cruds` (SMART 2 says so). Launch contexts (`patient/...`) and scopes narrowed by a query
(`user/Observation.rs?category=...`) give nothing: granting more than they say would be worse than refusing.

Source: https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from fhir_server.context import Caller
from fhir_server.errors import Forbidden

_SCOPE = re.compile(r"(?:system|user)/(\*|[A-Z][A-Za-z]{1,63})\.(read|write|\*|c?r?u?d?s?)\Z")
_OLD = {"read": "rs", "write": "cud", "*": "cruds"}
_WORDS: Final = {"c": "create", "r": "read", "u": "update", "d": "delete", "s": "search"}
# R4 interaction codes and what they need; history-type and history-system list like a search (SMART 2, "s").
NEEDS: Final = {
    "create": "c", "read": "r", "vread": "r", "history-instance": "r", "update": "u", "patch": "u", "delete": "d",
    "search-type": "s", "search-system": "s", "history-type": "s", "history-system": "s",
}  # fmt: skip


def rights(scopes: Iterable[str]) -> frozenset[tuple[str, str]]:
    """(resource type or `*`, one of c r u d s) of each scope that grants something here."""
    granted: set[tuple[str, str]] = set()
    for scope in scopes:
        found = _SCOPE.match(scope)
        if found:
            granted |= {(found[1], letter) for letter in _OLD.get(found[2], found[2])}
    return frozenset(granted)


def may(caller: Caller, resource_type: str, letter: str) -> bool:
    """Whether the caller's token grants c, r, u, d or s on a type ('' = on every type)."""
    if caller.rights is None:
        return True
    return ("*", letter) in caller.rights or (resource_type != "" and (resource_type, letter) in caller.rights)


def check(caller: Caller, interaction: str, method: str, resource_type: str, query: Iterable[tuple[str, str]]) -> None:
    """Raise Forbidden unless the token covers one interaction of the FHIR API; whoever came without one passes.

    A search that looks at other types (`_include`, `_has`, chains) needs search on every type.
    """
    if caller.rights is None or interaction in _FREE:
        return
    letter = NEEDS.get(interaction, "r" if method in ("GET", "HEAD") else "u")
    # What is no plain interaction on one type (an operation, the audit trail) is covered by `*` only.
    demand(caller, resource_type if interaction in NEEDS else "", letter)
    if letter == "s" and any(name.split(":")[0] in _ELSEWHERE or "." in name for name, _ in query):
        demand(caller, "", "s")


# Free at the door; what a transaction or $validate does is asked for where it is known.
_FREE = frozenset({"capabilities", "transaction", "async", "validate"})
_ELSEWHERE = frozenset({"_include", "_revinclude", "_has"})


def demand(caller: Caller, resource_type: str, letter: str) -> None:
    """Raise Forbidden (403) naming the scope that is missing."""
    if not may(caller, resource_type, letter):
        wanted = f"{resource_type or '*'}.{letter}"
        raise Forbidden(f"the access token does not let you {_WORDS[letter]} {resource_type or 'everything'}; "
                        f"ask for the scope user/{wanted} or system/{wanted}")  # fmt: skip
