"""Search parameters of users: what a posted SearchParameter must be to be indexed.

Only paths are taken (elements, `where(field = 'text')`, `as`, `extension('url')`, `|`): they join the walk every
resource makes anyway, so a parameter costs what its values cost, whatever the expression says. All else is refused
with the reason.

Source: https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fhir_server import errors
from fhir_server.search import clauses, extract, index
from profiles import definitions
from profiles.fhirpath import engine, paths
from profiles.fhirpath.errors import FhirPathError

TYPES = ("string", "token", "date", "number", "quantity", "reference", "uri")
MAX_EXPRESSION = 2_000
MAX_ROUTES = 200
MAX_BASES = 20
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_\-]{0,63}")


def definition(resource: Mapping[str, Any]) -> definitions.SearchParameter:
    """The parameter a SearchParameter resource defines. errors.Invalid names the element and the remedy."""
    url, code, kind = (_text(resource, name) for name in ("url", "code", "type"))
    expression, bases = _text(resource, "expression"), tuple(resource.get("base") or ())
    if kind not in TYPES:
        raise _invalid("type", f"parameters of type {kind[:40]} cannot be added; one of {', '.join(TYPES)} can")
    if not _CODE.fullmatch(code) or code in (*clauses.RESULT, *clauses.RENDERING):
        raise _invalid("code", "a code is a letter, then letters, digits, - and _, at most 64 in all")
    if definitions.search_parameter(url) is not None:
        raise _invalid("url", f"{url} is the standard's own parameter, which is there already")
    if not bases or len(bases) > MAX_BASES or not all(base in definitions.resource_types() for base in bases):
        raise _invalid("base", f"1 to {MAX_BASES} resource types of R4 are named")
    if len(expression) > MAX_EXPRESSION:
        raise _invalid("expression", f"it is longer than {MAX_EXPRESSION} characters")
    for base in bases:
        known = index.parameters(base).get(code)
        if known is not None and known.url != url:
            raise _invalid("code", f"{base} has a parameter `{code}` already ({known.url}); choose another code")
        _check_expression(base, kind, expression)
    return built(resource)


def built(resource: Mapping[str, Any]) -> definitions.SearchParameter:
    """The parameter of a resource that `definition` accepted before."""
    targets = tuple(one for one in resource.get("target") or () if one in definitions.resource_types())
    url, code, kind, expression = (resource[name] for name in ("url", "code", "type", "expression"))
    bases = tuple(resource["base"])
    return definitions.SearchParameter(url, code, kind, expression, bases, targets, (), (), (), True, True, False)


def _text(resource: Mapping[str, Any], name: str) -> str:
    value = resource.get(name)
    if not isinstance(value, str) or not value:
        raise _invalid(name, "it is needed for searching")
    return value


def _check_expression(base: str, kind: str, expression: str) -> None:
    try:
        ways = paths.routes(engine.compile(expression, search=True).tree, base, search=True)
    except FhirPathError as problem:
        raise _invalid("expression", f"it cannot be read: {problem}") from problem
    if ways is None:
        raise _invalid("expression", "it is more than a path; write elements, where(x = 'y'), as() and extension()")
    if not ways:
        raise _invalid("expression", f"it selects nothing of a {base}")
    if len(ways) > MAX_ROUTES:
        raise _invalid("expression", f"it goes more than {MAX_ROUTES} ways")
    found = {option.type for way in ways for option in way.options}
    if not any(extract.emitter(extract.Want(kind, one)) is not None for one in found):
        raise _invalid("type", f"the expression gives {', '.join(sorted(found))}, which is not searched as {kind}")


def _invalid(name: str, why: str) -> errors.Invalid:
    place = f"SearchParameter.{name}"
    return errors.Invalid(f"{place}: {why}.", expression=place)
